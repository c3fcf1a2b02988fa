"""cnvnet-controller: frees the addresses whose VM, pod or node has gone, one process for a cluster."""

from __future__ import annotations


def main() -> None:
    """The executable."""
    from cnvnet.controller.main import command

    command()
