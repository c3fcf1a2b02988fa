"""nftables: tables as text, loaded once; elements as one raw batch; and nothing that lists the host's rules.

A table of ours has one text, and the text one version: the name of its first base chain (`guard_v1`).
Loading is `ensure`'s work and happens once per boot; after that a call adds and deletes elements of the
table's sets, which takes the same time whatever else the host keeps in nftables.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from cnvnet.kernel import nfnetlink as wire
from cnvnet.kernel.netlink import CREATE, EXCL, NetlinkError, attributes, text
from cnvnet.kernel.netns import Netns, entered
from cnvnet.kernel.nft_elements import Element as Element
from cnvnet.kernel.nft_elements import (
    additions,
    answers,
    deletion,
    describe,
    encode,
    listed,
    listing,
    query,
    verdict_chain,
)

# As many as there will ever be; each costs a look-up of microseconds where nothing is loaded.
_NEXT_VERSIONS: Final = 10
# From so many of one set on it is quicker to list the set, which is ours, than to ask for each.
_MANY: Final = 64
_COMMENT: Final = 0
# include/uapi/linux/netfilter/nf_tables.h: the flag of a table whose chains are not hooked.
_DORMANT: Final = 1
# What a chain's block says beside its rules.
_NO_RULES: Final = ("type", "policy", "comment", "#")


class Chain(NamedTuple):
    """A chain as the kernel reports it; `use` counts its rules and the jumps to it."""

    name: str
    use: int


class Rule(NamedTuple):
    """A rule of somebody's chain: its handle, its comment, the chain it jumps or goes to ("" for none)."""

    handle: int
    comment: str
    target: str


class NftError(OSError):
    """nftables refused: `errno` says how, the text what was asked and what to do about it."""

    def __str__(self) -> str:
        return str(self.strerror)


class Nft(Protocol):
    """nftables of one namespace. Adding an element twice and deleting one that is not there are both fine.

    `ensure` loads a table's constant part unless it is `intact` or there is a newer `version`, which is its
    first base chain. `change` is one transaction: first the deletions, then the additions. `missing`,
    `chain` and `dormant` are what CHECK asks, `rules` what cleaning up after other programs needs, all
    without listing. `contents` is a digest of all that a table does, or of the rules of some chains. `run`
    takes any nft script. All raise NftError.
    """

    def ensure(self, family: str, table: str, version: str, text: str) -> None: ...
    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None: ...
    def missing(self, elements: Sequence[Element]) -> list[Element]: ...
    def chain(self, family: str, table: str, name: str) -> Chain | None: ...
    def dormant(self, family: str, table: str) -> bool: ...
    def rules(self, family: str, table: str, chain: str) -> list[Rule]: ...
    def contents(self, family: str, table: str, chains: Collection[str] | None = None) -> str: ...
    def run(self, text: str) -> str: ...


@contextmanager
def open_nft(netns: Netns | None = None) -> Generator[Nft]:
    """nftables of a namespace (None: the thread's own), for one thread, closed at the end of the block."""
    with connect(netns) as connection:
        yield Nftables(connection, netns)


def connect(netns: Netns | None = None) -> wire.Connection:
    """A connection to nftables of a namespace (None: the thread's own), for one thread at a time."""
    try:
        if netns is None:
            return wire.Connection()
        with entered(netns):
            return wire.Connection()
    except OSError as e:
        if e.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            raise NftError(e.errno, "nftables: the kernel has no nfnetlink (modprobe nfnetlink)") from e
        raise


class Nftables:
    """The kernel's nftables, reached through a connection of its namespace."""

    def __init__(self, connection: wire.Connection, netns: Netns | None = None) -> None:
        self._connection = connection
        self._netns = netns

    def ensure(self, family: str, table: str, version: str, text: str) -> None:
        if intact(self, family, table, version, text):
            return
        created = self._create_table(family, table)
        present = self._chains(family, table)
        if any(is_newer(name, version) for name in present):
            return
        try:
            self.run(render_load(family, table, version, text, present))
        except NftError:
            if created:
                self._connection.transaction([wire.message(wire.DELTABLE, family, wire.string(1, table))])
            raise

    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None:
        deletions = [(deletion(element), describe(element)) for element in dict.fromkeys(delete)]
        new = list(additions(add))
        while deletions or new:
            everything = deletions + new
            refused = self._connection.transaction([message for message, _ in everything])
            gone = {i for i, error in refused.items() if error == errno.ENOENT and 0 <= i < len(deletions)}
            if not gone:
                self._raise(refused, [subject for _, subject in everything])
                return
            # The kernel has no "delete if there" before 6.3, and one missing element fails the transaction.
            deletions = [entry for i, entry in enumerate(deletions) if i not in gone]

    def missing(self, elements: Sequence[Element]) -> list[Element]:
        sets: dict[tuple[str, str, str], list[Element]] = {}
        for element in elements:
            sets.setdefault(element[:3], []).append(element)
        there = {found for of_one in sets.values() for found in self._present(of_one)}
        return [element for element in elements if element not in there]

    def chain(self, family: str, table: str, name: str) -> Chain | None:
        try:
            raw = self._connection.get(
                wire.message(wire.GETCHAIN, family, wire.string(1, table), wire.string(3, name))
            )
        except NetlinkError as e:
            if wire.absent(e):
                return None
            raise explained(e.errno, f"chain {family} {table} {name}") from e
        return _chain(raw)

    def dormant(self, family: str, table: str) -> bool:
        try:
            raw = self._connection.get(wire.message(wire.GETTABLE, family, wire.string(1, table)))
        except NetlinkError as e:
            if wire.absent(e):
                return False
            raise explained(e.errno, f"table {family} {table}") from e
        return bool(int.from_bytes(attributes(raw, wire.BODY).get(2, b"")) & _DORMANT)

    def rules(self, family: str, table: str, chain: str) -> list[Rule]:
        listing = wire.message(wire.GETRULE, family, wire.string(1, table), wire.string(2, chain))
        try:
            return [_rule(raw) for raw in self._connection.dump(listing)]
        except NetlinkError as e:
            if wire.absent(e):
                return []
            raise explained(e.errno, f"rules of {family} {table} {chain}") from e

    def contents(self, family: str, table: str, chains: Collection[str] | None = None) -> str:
        from cnvnet.kernel import nft_contents

        try:
            if chains is not None:
                return nft_contents.digest_of_rules(self._connection, family, table, chains)
            return nft_contents.digest(self._connection, family, table)
        except NetlinkError as e:
            raise explained(e.errno, f"table {family} {table}") from e

    def run(self, text: str) -> str:
        from cnvnet.kernel import nft_text

        try:
            if self._netns is None:
                return nft_text.run(text)
            with entered(self._netns):
                return nft_text.run(text)
        except OSError as e:
            raise NftError(e.errno, e.strerror) from e

    def _create_table(self, family: str, table: str) -> bool:
        """Whether the table was not there; only this tells a missing family from a faulty text."""
        new = wire.message(wire.NEWTABLE, family, wire.string(1, table), flags=CREATE | EXCL)
        refused = self._connection.transaction([new])
        if errno.EEXIST in refused.values():
            return False
        self._raise(refused, [f"table {family} {table}"])
        return True

    def _chains(self, family: str, table: str) -> list[str]:
        found = (
            attributes(raw, wire.BODY) for raw in self._connection.dump(wire.message(wire.GETCHAIN, family))
        )
        return [text(chain[3]) for chain in found if text(chain[1]) == table]

    def _present(self, of_one_set: Sequence[Element]) -> list[Element]:
        if len(of_one_set) < _MANY:
            return [element for element in of_one_set if self._has(element)]
        first = of_one_set[0]
        try:
            there = listed(self._connection.dump(listing(first)))
        except NetlinkError as e:
            if wire.absent(e):
                return []
            raise explained(e.errno, describe(first)) from e
        if not there:
            return []
        keys = [encode(element) for element in of_one_set]
        if any(end for _, end in keys):
            return [element for element in of_one_set if self._has(element)]
        pairs = zip(of_one_set, keys, strict=True)
        return [e for e, (key, _) in pairs if key in there and e.data.rpartition(" ")[2] in ("", there[key])]

    def _has(self, element: Element) -> bool:
        try:
            return answers(element, self._connection.get(query(element)))
        except NetlinkError as e:
            if wire.absent(e):
                return False
            raise explained(e.errno, describe(element)) from e

    def _raise(self, refused: dict[int, int], subjects: Sequence[str]) -> None:
        if not refused:
            return
        index, error = min(refused.items(), key=lambda item: (item[0] < 0, item[0]))
        raise explained(error, subjects[index] if index >= 0 else "transaction")


def loaded(nft: Nft, family: str, table: str, version: str, text: str) -> bool:
    """Whether a table does its work, in this version or one of the next; elements alone do not."""
    if intact(nft, family, table, version, text):
        return True
    return bool(newer(nft, family, table, version)) and not nft.dormant(family, table)


def newer(nft: Nft, family: str, table: str, version: str) -> str:
    """The first of the next versions that a table does its work in, "" for none."""
    base, _, number = version.rpartition("_v")
    names = (f"{base}_v{int(number) + n}" for n in range(1, _NEXT_VERSIONS))
    return next((n for n in names if (found := nft.chain(family, table, n)) and found.use > 0), "")


def intact(nft: Nft, family: str, table: str, version: str, text: str) -> bool:
    """Whether all chains of this version's text are there, with as many rules and jumps to them, and awake.

    A chain with fewer was flushed by hand (`nft flush table` leaves the elements where they are), one with
    more may accept what ours would drop. Ten microseconds a chain.
    """
    wanted = uses(text)
    # The base chain first: mostly it is the only one asked for where nothing is loaded.
    return all(
        (found := nft.chain(family, table, name)) is not None and found.use == wanted[name]
        for name in dict.fromkeys((version, *wanted))
    ) and not nft.dormant(family, table)


def uses(text: str) -> dict[str, int]:
    """The chains of a table's text and the `use` that the kernel counts for each, when all is there."""
    found: dict[str, int] = {}
    inside = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            inside = words[1]
            found.setdefault(inside, 0)
        elif words == ["}"]:
            inside = ""
        elif inside and words and not words[0].startswith(_NO_RULES):
            found[inside] += 1
        for target in targets(words):
            found[target] = found.get(target, 0) + 1
    return found


def targets(words: Sequence[str]) -> list[str]:
    """The chains that a rule's words jump or go to, through a verdict map as well."""
    return [words[at].rstrip(",;") for at in range(1, len(words)) if words[at - 1] in ("jump", "goto")]


def render(*, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> str:
    """One change as nft's own text: what tests, logs and a dry run show."""
    return "".join(
        f"{verb} element {e.family} {e.table} {e.set} {{ {_printed(e, with_data=verb == 'add')} }}\n"
        for verb, elements in (("delete", delete), ("add", add))
        for e in elements
    )


def render_load(family: str, table: str, version: str, text: str, present: Sequence[str] = ()) -> str:
    """The script that loads a table's text over the chains `present`: elements and chains of no text stay.

    Chains the text declares are filled anew; those of an older version go.
    """
    words = [line.split() for line in text.splitlines()]
    declared = {word[1] for word in words if word[:1] == ["chain"]}
    old = [name for name in present if is_newer(version, name)]
    lines = [f"flush chain {family} {table} {name}" for name in present if name in declared or name in old]
    lines += [f"delete chain {family} {table} {name}" for name in old]
    return "".join(f"{line}\n" for line in lines) + text


def is_newer(chain: str, version: str) -> bool:
    """Whether a chain is the later version of what `version` names: `guard_v3` of `guard_v2`."""
    base, _, number = version.rpartition("_v")
    other_base, _, other = chain.rpartition("_v")
    return base == other_base and number.isdecimal() and other.isdecimal() and int(other) > int(number)


def explained(error: int | None, subject: str) -> NftError:
    """The error for a refused message, with what to do about it."""
    if error in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL) and subject.startswith("table "):
        family = subject.split()[1]
        return NftError(
            error,
            f"{subject}: the kernel has no nftables for family {family} (modprobe nf_tables)",
        )
    if error in (errno.EPERM, errno.EACCES):
        return NftError(error, f"{subject}: not permitted (nftables needs CAP_NET_ADMIN)")
    if error == errno.ENOENT:
        return NftError(error, f"{subject}: the table or its set is not loaded")
    return NftError(error, f"{subject}: {os.strerror(error or 0).lower()}")


def _printed(element: Element, *, with_data: bool) -> str:
    parts = [f'"{part}"' if kind == "ifname" else part for kind, part in zip(*element[3:5], strict=True)]
    data = f" : {element.data}" if element.data and with_data else ""
    return " . ".join(parts) + data


def _chain(raw: bytes) -> Chain:
    found = attributes(raw, wire.BODY)
    return Chain(text(found[3]), struct.unpack("!I", found[6])[0])


def _rule(raw: bytes) -> Rule:
    found = attributes(raw, wire.BODY)
    comment = _comment(found.get(7, b""))
    targets = [target for target in map(_target, wire.members(found.get(4, b""))) if target]
    return Rule(struct.unpack("!Q", found[3])[0], comment, targets[0] if targets else "")


def _comment(userdata: bytes) -> str:
    """The comment in a rule's user data, which are triples of type, length and value (libnftnl's udata)."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        if kind == _COMMENT:
            return text(userdata[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""


def _target(expression: bytes) -> str:
    """The chain an immediate expression jumps to."""
    found = attributes(expression)
    if text(found.get(1, b"")) != "immediate":
        return ""
    immediate = attributes(found.get(2, b""))
    return verdict_chain(immediate.get(2, b""))
