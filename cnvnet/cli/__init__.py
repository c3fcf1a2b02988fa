"""cnvctl: leases, attachments and the state of one node, from the files and the kernel alone.

One module per command group. What is decided lives below: in `cnvnet.ipam`, `cnvnet.attachment` and the
plugins; here it is asked for and printed.
"""

from __future__ import annotations


def main() -> None:
    """The entry point of the executable."""
    from cnvnet.cli.main import command

    command(prog_name="cnvctl")
