"""nftables in memory: the conduct of the real one as far as this project uses it, for tests without root."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import Final

from cnvnet.kernel.nft.elements import encode
from cnvnet.kernel.nft.table_text import is_newer, render_load, targets
from cnvnet.kernel.nft.tables import (
    Element,
    NftChain,
    NftError,
    NftRule,
    explained,
    intact,
)
from cnvnet.kernel.nft.wire import FAMILIES

_OPENING: Final = re.compile(r"(set|map|counter|chain)\s+(\S+)\s*\{(.*)")


class FakeTable:
    """A table: the rules of its chains, and the elements of its sets by their keys in the kernel."""

    def __init__(self) -> None:
        self.chains: dict[str, list[NftRule]] = {}
        self.sets: dict[str, dict[tuple[bytes, bytes], Element]] = {}
        self.counters: dict[str, int] = {}
        self.dormant = False


class FakeNft:
    """An Nft whose tables are Python objects; `tables` is there to be looked at."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, str], FakeTable] = {}
        self._handle = 0
        # By a rule's handle: a verdict map leads to several chains.
        self._targets: dict[int, list[str]] = {}

    def ensure(self, family: str, table: str, version: str, text: str) -> None:
        if intact(self, family, table, text):
            return
        present = list(self.tables.get((family, table), FakeTable()).chains)
        if not any(is_newer(name, version) for name in present):
            self.run(render_load(family, table, version, text, present))

    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None:
        for element in add:
            if self._set(element) is None:
                raise explained(errno.ENOENT, f"set {element.family} {element.table} {element.set}")
        before = deepcopy(self.tables)
        for element in delete:
            (self._set(element) or {}).pop(encode(element), None)
        for element in add:
            if (self._set(element) or {}).get(encode(element), element) != element:
                self.tables = before
                raise explained(errno.EEXIST, f"set {element.family} {element.table} {element.set}")
            self.tables[element[:2]].sets[element.set][encode(element)] = element

    def missing(self, elements: Sequence[Element]) -> list[Element]:
        found = {e: (self._set(e) or {}).get(encode(e)) for e in elements}
        # A query without a verdict asks for the key.
        return [e for e, present in found.items() if present is None or (e.data and present.data != e.data)]

    def chain(self, family: str, table: str, name: str) -> NftChain | None:
        found = self.tables.get((family, table), FakeTable())
        if name not in found.chains:
            return None
        handles = {rule.handle for rules in found.chains.values() for rule in rules}
        jumps = [to for handle in handles for to in self._targets.get(handle, ()) if to == name]
        entries = [e for of in found.sets.values() for e in of.values() if e.data.endswith(f" {name}")]
        return NftChain(name, len(found.chains[name]) + len(jumps) + len(entries))

    def uses(self, family: str, table: str, chains: Collection[str]) -> dict[str, int]:
        found = ((name, self.chain(family, table, name)) for name in chains)
        return {name: chain.use for name, chain in found if chain is not None}

    def dormant(self, family: str, table: str) -> bool:
        return self.tables.get((family, table), FakeTable()).dormant

    def rules(self, family: str, table: str, chain: str) -> list[NftRule]:
        return list(self.tables.get((family, table), FakeTable()).chains.get(chain, ()))

    def counters(self, family: str, table: str) -> dict[str, int]:
        return dict(self.tables.get((family, table), FakeTable()).counters)

    def contents(self, family: str, table: str, chains: Collection[str] | None = None) -> str:
        found = self.tables.get((family, table))
        if found is None:
            raise NftError(errno.ENOENT, f"table {family} {table}: the table or its set is not loaded")
        rules = {name: [rule.comment for rule in entries] for name, entries in found.chains.items()}
        if chains is not None:
            return repr({name: entries for name, entries in rules.items() if name in chains})
        return repr((rules, {name: sorted(entries) for name, entries in found.sets.items()}))

    def run(self, text: str) -> str:
        before = deepcopy(self.tables)
        lines = iter(line.strip() for line in text.splitlines())
        try:
            for line in lines:
                if line.startswith("table "):
                    _, family, table, _ = line.split()
                    self._block((family, table), lines)
                elif line and not line.startswith("#"):
                    self._command(line)
        except NftError:
            self.tables = before
            raise
        return ""

    def chains(self, family: str, table: str) -> list[str]:
        return list(self.tables.get((family, table), FakeTable()).chains)

    def delete_chain(self, family: str, table: str, name: str) -> None:
        found = self.chain(family, table, name)
        if found is not None and found.use <= len(self.rules(family, table, name)):
            del self.tables[family, table].chains[name]

    def elements(self) -> list[str]:
        """Every element there is, as nft would add it."""
        return [
            render(add=[element]).strip()
            for table in self.tables.values()
            for found in table.sets.values()
            for element in found.values()
        ]

    def _set(self, element: Element) -> dict[tuple[bytes, bytes], Element] | None:
        table = self.tables.get((element.family, element.table), FakeTable())
        return table.sets.get(element.set)

    def _block(self, family_and_table: tuple[str, str], lines: Iterator[str]) -> None:
        table = self.tables.setdefault(family_and_table, FakeTable())
        table.dormant = False
        for line in lines:
            if line == "}":
                return
            opening = _OPENING.fullmatch(line)
            if opening is None:
                continue
            kind, name, rest = opening.groups()
            if kind in ("set", "map"):
                table.sets.setdefault(name, {})
            if kind == "counter":
                table.counters.setdefault(name, 0)
            inside = [] if rest.endswith("}") else _until_closed(lines)
            for element in _elements_of(family_and_table, name, inside):
                table.sets[name][encode(element)] = element
            if kind == "chain":
                rules = table.chains.setdefault(name, [])
                rules += [self._rule(rule) for rule in inside if not rule.startswith("type ")]

    def _command(self, line: str) -> None:
        match line.split(maxsplit=5):
            case ["flush", "ruleset"]:
                self.tables.clear()
            case ["create", "table", family, table]:
                if (family, table) in self.tables:
                    raise NftError(errno.EINVAL, f"nft: Error: {family} {table}: File exists")
                self.tables[family, table] = FakeTable()
            case ["add", "table", family, table]:
                self.tables.setdefault((family, table), FakeTable())
            case ["add", "table", family, table, "{", "flags dormant; }"]:
                self.tables.setdefault((family, table), FakeTable()).dormant = True
            case ["delete", "table", family, table]:
                self._table(family, table)
                del self.tables[family, table]
            case ["flush", "table", family, table]:
                for rules in self._table(family, table).chains.values():
                    rules.clear()
            case ["add", "chain", family, table, name, *_]:
                self._table(family, table).chains.setdefault(name, [])
            case ["flush", "chain", family, table, name]:
                self._rules(family, table, name).clear()
            case ["delete", "chain", family, table, name]:
                self._delete_chain(family, table, name)
            case ["add", "rule", family, table, name, rule]:
                self._rules(family, table, name).append(self._rule(rule))
            case ["delete", "rule", family, table, name, rule]:
                self._delete_rule(self._rules(family, table, name), rule)
            case _:
                raise NftError(errno.EINVAL, f"nft: Error: {line}")

    def _delete_chain(self, family: str, table: str, name: str) -> None:
        found = self.chain(family, table, name)
        if found is None:
            raise NftError(errno.EINVAL, f"nft: Error: no chain {name}")
        if found.use:
            raise NftError(errno.EINVAL, f"nft: Error: chain {name} is in use")
        del self._table(family, table).chains[name]

    def _delete_rule(self, rules: list[NftRule], which: str) -> None:
        found = [rule for rule in rules if which == f"handle {rule.handle}"]
        if not found:
            raise NftError(errno.EINVAL, f"nft: Error: no rule with {which}")
        rules.remove(found[0])

    def _table(self, family: str, table: str) -> FakeTable:
        if family not in FAMILIES or (family, table) not in self.tables:
            raise NftError(errno.EINVAL, f"nft: Error: no table {family} {table}")
        return self.tables[family, table]

    def _rules(self, family: str, table: str, chain: str) -> list[NftRule]:
        found = self._table(family, table).chains
        if chain not in found:
            raise NftError(errno.EINVAL, f"nft: Error: no chain {chain}")
        return found[chain]

    def _rule(self, text: str) -> NftRule:
        self._handle += 1
        words = shlex.split(text)
        found = targets(words)
        self._targets[self._handle] = found
        return NftRule(
            self._handle, _after(words, "comment"), found[0] if found and "vmap" not in words else ""
        )


def _elements_of(where: tuple[str, str], name: str, inside: Sequence[str]) -> Iterator[Element]:
    """What a set's own block says is in it."""
    words = {line.split()[0]: line for line in inside}
    if "elements" not in words:
        return
    types = tuple(words["type"].removeprefix("type ").rstrip(";").split(" . "))
    for key in words["elements"].partition("{")[2].rpartition("}")[0].split(","):
        yield Element(*where, name, types, tuple(part.strip() for part in key.split(" . ")))


def _until_closed(lines: Iterator[str]) -> list[str]:
    inside: list[str] = []
    for line in lines:
        if line == "}":
            break
        if line and not line.startswith("#"):
            inside.append(line)
    return inside


def _after(words: Sequence[str], word: str) -> str:
    return words[words.index(word) + 1] if word in words[:-1] else ""


def render(*, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> str:
    """One change as nft's own text: what tests compare."""
    return "".join(
        f"{verb} element {e.family} {e.table} {e.set} {{ {_printed(e, with_data=verb == 'add')} }}\n"
        for verb, elements in (("delete", delete), ("add", add))
        for e in elements
    )


def _printed(element: Element, *, with_data: bool) -> str:
    parts = [f'"{part}"' if kind == "ifname" else part for kind, part in zip(*element[3:5], strict=True)]
    data = f" : {element.data}" if element.data and with_data else ""
    return " . ".join(parts) + data
