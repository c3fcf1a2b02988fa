"""The nftables of a pod, as values and as nft's text: what a binding loads in one transaction.

Every rule has a comment that no other of its chain has: that is how CHECK knows it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cnvnet.cni.errors import IO_FAILURE, CNIError
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nft.tables import Element, NftError
from cnvnet.kernel.stack import Kernel


class TableName(NamedTuple):
    """Which table."""

    family: str
    name: str

    def __str__(self) -> str:
        return f"table {self.family} {self.name}"


class PlannedRule(NamedTuple):
    """What matches, and what becomes of it; one that nearly every packet meets is better not `counted`."""

    match: str
    verdict: str
    comment: str
    counted: bool = True


class PlannedChain(NamedTuple):
    """A chain; `hook` is its type, hook and priority, "" for one that others jump to."""

    name: str
    hook: str
    rules: tuple[PlannedRule, ...]


class Ruleset(NamedTuple):
    """A whole table. The sets and their elements, and the chains, none of which is empty."""

    table: TableName
    elements: tuple[Element, ...]
    chains: tuple[PlannedChain, ...]


def render(ruleset: Ruleset) -> str:
    """The transaction that makes the table, and fails where there is one of its name."""
    head = f"{ruleset.table.family} {ruleset.table.name}"
    names = dict.fromkeys(element.set for element in ruleset.elements)
    sets = "".join(_render_set(name, ruleset.elements) for name in names)
    chains = "".join(map(_render_chain, ruleset.chains))
    return f"create table {head}\ntable {head} {{\n{sets}{chains}}}\n"


def render_removal(tables: Iterable[TableName]) -> str:
    """The transaction that removes the tables, whether they are there or not."""
    heads = [f"table {table.family} {table.name}" for table in tables]
    return "".join(f"add {head}\ndelete {head}\n" for head in heads)


def load(kernel: Kernel, netns: Netns, ruleset: Ruleset) -> None:
    """Makes the table. Raises CNIError 5 naming it."""
    with kernel.nft(netns) as nft:
        try:
            nft.run(render(ruleset))
        except NftError as e:
            raise CNIError(IO_FAILURE, f"{ruleset.table}: {e}") from e


def replace(kernel: Kernel, netns: Netns, ruleset: Ruleset) -> None:
    """Makes the table, in the place of one that may be there. Raises CNIError 5 naming it."""
    with kernel.nft(netns) as nft:
        try:
            nft.run(render_removal([ruleset.table]) + render(ruleset))
        except NftError as e:
            raise CNIError(IO_FAILURE, f"{ruleset.table}: {e}") from e


def contents(kernel: Kernel, netns: Netns, rulesets: Iterable[Ruleset]) -> dict[str, str]:
    """What is in each table now (Nft.contents), by the table's name: for CHECK to compare."""
    with kernel.nft(netns) as nft:
        return {str(each.table): nft.contents(*each.table) for each in rulesets}


def delete(kernel: Kernel, netns: Netns, tables: Iterable[TableName]) -> None:
    """All in one transaction, whatever of them is there."""
    wanted = tuple(tables)
    if wanted:
        with kernel.nft(netns) as nft:
            nft.run(render_removal(wanted))


def delete_present(kernel: Kernel, netns: Netns, table: TableName) -> None:
    """Deletes the table if it is there; a kernel may know nothing of its family."""
    with kernel.nft(netns) as nft:
        try:
            nft.contents(*table)
        except NftError as e:
            if e.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise
            return
        nft.run(render_removal([table]))


def _render_set(name: str, elements: Sequence[Element]) -> str:
    members = [element for element in elements if element.set == name]
    lines = [f"type {' . '.join(members[0].types)}"]
    if any("-" in part for element in members for part in element.key):
        lines.append("flags interval")
    lines.append(f"elements = {{ {', '.join(' . '.join(element.key) for element in members)} }}")
    return _block(f"set {name}", lines)


def _render_chain(chain: PlannedChain) -> str:
    lines = [f"type {chain.hook}; policy accept;"] if chain.hook else []
    lines += map(_render_rule, chain.rules)
    return _block(f"chain {chain.name}", lines)


def _render_rule(rule: PlannedRule) -> str:
    verdict = f"counter {rule.verdict}" if rule.counted else rule.verdict
    return f'{rule.match} {verdict} comment "{rule.comment}"'.lstrip()


def _block(head: str, lines: Sequence[str]) -> str:
    return f"\t{head} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"
