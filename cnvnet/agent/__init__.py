"""cnvnet-agent: serves the guests of one node, from the records that the plugins write."""

from __future__ import annotations


def main() -> None:
    """The executable."""
    from cnvnet.agent.main import command

    command()
