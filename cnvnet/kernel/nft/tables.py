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

from cnvnet.kernel.netlink import CREATE, EXCL, NetlinkError, attribute, attributes, string, text
from cnvnet.kernel.netns import Netns, entered
from cnvnet.kernel.nft import wire
from cnvnet.kernel.nft.elements import Element as Element
from cnvnet.kernel.nft.elements import (
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
from cnvnet.kernel.nft.table_text import is_newer, render_load, uses

# How many later versions are looked for: a look-up of microseconds each, where no table is loaded.
_NEXT_VERSIONS: Final = 10
# From so many elements of one set on, listing the set is quicker than asking for each element.
_MANY: Final = 64
_COMMENT: Final = 0
# include/uapi/linux/netfilter/nf_tables.h: the flag of a table whose chains are not hooked.
_DORMANT: Final = 1
# NFT_OBJECT_COUNTER there.
_COUNTER: Final = 1


class NftChain(NamedTuple):
    """A chain as the kernel reports it; `use` counts its rules and the jumps to it."""

    name: str
    use: int


class NftRule(NamedTuple):
    """A rule of any chain: its handle, its comment, the chain it jumps or goes to ("" for none)."""

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
    `chain`, `uses` (of many chains at once, without those that are missing) and `dormant` are what CHECK
    asks, `rules` what cleaning up after other programs needs, all without listing. `counters` are the
    packets of a table's named counters, none without the table. `contents` is a digest of all that a table
    does, or of the rules of some chains. `run` takes any nft script. `chains` has to list those of the
    whole family. `delete_chain` takes a chain with its rules, unless something leads to it; one that is gone
    is fine. All raise NftError.
    """

    def ensure(self, family: str, table: str, version: str, text: str) -> None:
        """Load a table's text unless it stands as this version or a newer one.

        Its sets keep their elements.
        """
        ...

    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None:
        """Delete and add elements in one transaction.

        Absent ones are no error to delete, nor present ones to add.
        """
        ...

    def missing(self, elements: Sequence[Element]) -> list[Element]:
        """Those of the elements that are in no set."""
        ...

    def chain(self, family: str, table: str, name: str) -> NftChain | None:
        """A chain, or None if there is none."""
        ...

    def uses(self, family: str, table: str, chains: Collection[str]) -> dict[str, int]:
        """How many rules lead to each of the chains that exist."""
        ...

    def dormant(self, family: str, table: str) -> bool:
        """Whether the table is switched off."""
        ...

    def rules(self, family: str, table: str, chain: str) -> list[NftRule]:
        """The rules of a chain in their order; none if there is no such chain."""
        ...

    def counters(self, family: str, table: str) -> dict[str, int]:
        """Packets by the names of the table's counters; none if there is no such table."""
        ...

    def contents(self, family: str, table: str, chains: Collection[str] | None = None) -> str:
        """A digest of a table, or only of the rules in some chains."""
        ...

    def run(self, text: str) -> str:
        """Run a script in nft's language, and return what it prints."""
        ...

    def chains(self, family: str, table: str) -> list[str]:
        """The names of the table's chains."""
        ...

    def delete_chain(self, family: str, table: str, name: str) -> None:
        """Delete a chain with its rules, unless a rule leads to it."""
        ...


@contextmanager
def open_nft(netns: Netns | None = None) -> Generator[Nft]:
    """nftables of a namespace (None: the thread's own), for one thread, closed at the end of the block."""
    with connect(netns) as connection:
        yield Nftables(connection, netns)


def connect(netns: Netns | None = None) -> wire.NftConnection:
    """A connection to nftables of a namespace (None: the thread's own), for one thread at a time."""
    try:
        if netns is None:
            return wire.NftConnection()
        with entered(netns):
            return wire.NftConnection()
    except OSError as e:
        if e.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            raise NftError(e.errno, "nftables: the kernel has no nfnetlink (modprobe nfnetlink)") from e
        raise


class Nftables:
    """The kernel's nftables, reached through a connection of its namespace."""

    def __init__(self, connection: wire.NftConnection, netns: Netns | None = None) -> None:
        self._connection = connection
        self._netns = netns

    def ensure(self, family: str, table: str, version: str, text: str) -> None:
        """Load a table's text unless it stands as this version or a newer one.

        Its sets keep their elements.
        """
        if intact(self, family, table, text):
            return
        created = self._create_table(family, table)
        present = self.chains(family, table)
        if any(is_newer(name, version) for name in present):
            return
        try:
            self.run(render_load(family, table, version, text, present))
        except NftError:
            if created:
                self._connection.transaction([wire.message(wire.DELTABLE, family, string(1, table))])
            raise

    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None:
        """Delete and add elements in one transaction; one that is absent already is left out."""
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
        """Those of the elements that are in no set."""
        sets: dict[tuple[str, str, str], list[Element]] = {}
        for element in elements:
            sets.setdefault(element[:3], []).append(element)
        present = {each for of_one in sets.values() for each in self._present(of_one)}
        return [element for element in elements if element not in present]

    def chain(self, family: str, table: str, name: str) -> NftChain | None:
        """A chain, or None if there is none."""
        try:
            raw = self._connection.get(
                wire.message(wire.GETCHAIN, family, string(1, table), string(3, name))
            )
        except NetlinkError as e:
            if wire.absent(e):
                return None
            raise explained(e.errno, f"chain {family} {table} {name}") from e
        return _chain(raw)

    def uses(self, family: str, table: str, chains: Collection[str]) -> dict[str, int]:
        """How many rules lead to each of the chains that exist."""
        of_table = string(1, table)
        queries = [wire.message(wire.GETCHAIN, family, of_table, string(3, name)) for name in chains]
        counts: dict[str, int] = {}
        for name, answer in zip(chains, self._connection.get_each(queries), strict=True):
            if not isinstance(answer, NetlinkError):
                counts[name] = _chain(answer).use
            elif not wire.absent(answer):
                raise explained(answer.errno, f"chain {family} {table} {name}") from answer
        return counts

    def dormant(self, family: str, table: str) -> bool:
        """Whether the table is switched off."""
        try:
            raw = self._connection.get(wire.message(wire.GETTABLE, family, string(1, table)))
        except NetlinkError as e:
            if wire.absent(e):
                return False
            raise explained(e.errno, f"table {family} {table}") from e
        return bool(int.from_bytes(attributes(raw, wire.BODY).get(2, b"")) & _DORMANT)

    def rules(self, family: str, table: str, chain: str) -> list[NftRule]:
        """The rules of a chain in their order; none if there is no such chain."""
        listing = wire.message(wire.GETRULE, family, string(1, table), string(2, chain))
        try:
            return [_rule(raw) for raw in self._connection.dump(listing)]
        except NetlinkError as e:
            if wire.absent(e):
                return []
            raise explained(e.errno, f"rules of {family} {table} {chain}") from e

    def counters(self, family: str, table: str) -> dict[str, int]:
        """Packets by the names of the table's counters; none if there is no such table."""
        kind = attribute(3, _COUNTER.to_bytes(4))
        listing = wire.message(wire.GETOBJ, family, string(1, table), kind)
        try:
            objects = [attributes(raw, wire.BODY) for raw in self._connection.dump(listing)]
        except NetlinkError as e:
            if wire.absent(e):
                return {}
            raise explained(e.errno, f"counters of table {family} {table}") from e
        # A kernel that knows no such filter lists those of all tables.
        return {
            text(each[2]): int.from_bytes(attributes(each[4]).get(2, b""))
            for each in objects
            if text(each[1]) == table and int.from_bytes(each[3]) == _COUNTER
        }

    def contents(self, family: str, table: str, chains: Collection[str] | None = None) -> str:
        """A digest of a table, or only of the rules in some chains."""
        from cnvnet.kernel.nft import digest

        try:
            if chains is not None:
                return digest.digest_of_rules(self._connection, family, table, chains)
            return digest.digest(self._connection, family, table)
        except NetlinkError as e:
            raise explained(e.errno, f"table {family} {table}") from e

    def run(self, text: str) -> str:
        """Run a script in nft's language by libnftables, and return what it prints."""
        from cnvnet.kernel.nft import script

        try:
            if self._netns is None:
                return script.run(text)
            with entered(self._netns):
                return script.run(text)
        except OSError as e:
            raise NftError(e.errno, e.strerror) from e

    def chains(self, family: str, table: str) -> list[str]:
        """The names of the table's chains."""
        chains = (
            attributes(raw, wire.BODY) for raw in self._connection.dump(wire.message(wire.GETCHAIN, family))
        )
        return [text(chain[3]) for chain in chains if text(chain[1]) == table]

    def delete_chain(self, family: str, table: str, name: str) -> None:
        """Delete a chain with its rules, unless a rule leads to it."""
        chain = self.chain(family, table, name)
        # Asked first, in 0.2 ms: to refuse a transaction takes the kernel 10 ms (a grace period of RCU).
        if chain is None or chain.use > len(self.rules(family, table, name)):
            return
        deletion = wire.message(wire.DELCHAIN, family, string(1, table), string(3, name))
        refused = self._connection.transaction([deletion])
        # EBUSY: something leads to it since then.
        if not {errno.ENOENT, errno.EBUSY}.issuperset(refused.values()):
            self._raise(refused, [f"chain {family} {table} {name}"])

    def _create_table(self, family: str, table: str) -> bool:
        """Whether the table was not there; only this distinguishes a missing family from a faulty text."""
        new = wire.message(wire.NEWTABLE, family, string(1, table), flags=CREATE | EXCL)
        refused = self._connection.transaction([new])
        if errno.EEXIST in refused.values():
            return False
        self._raise(refused, [f"table {family} {table}"])
        return True

    def _present(self, of_one_set: Sequence[Element]) -> list[Element]:
        if len(of_one_set) < _MANY:
            return [element for element in of_one_set if self._has(element)]
        first = of_one_set[0]
        try:
            chain_by_key = listed(self._connection.dump(listing(first)))
        except NetlinkError as e:
            if wire.absent(e):
                return []
            raise explained(e.errno, describe(first)) from e
        if not chain_by_key:
            return []
        keys = [encode(element) for element in of_one_set]
        if any(end for _, end in keys):
            return [element for element in of_one_set if self._has(element)]
        pairs = zip(of_one_set, keys, strict=True)
        return [
            e
            for e, (key, _) in pairs
            if key in chain_by_key and e.data.rpartition(" ")[2] in ("", chain_by_key[key])
        ]

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
    if intact(nft, family, table, text):
        return True
    return bool(newer(nft, family, table, version)) and not nft.dormant(family, table)


def newer(nft: Nft, family: str, table: str, version: str) -> str:
    """The first of the next versions that a table does its work in, "" for none."""
    base, _, number = version.rpartition("_v")
    names = (f"{base}_v{int(number) + n}" for n in range(1, _NEXT_VERSIONS))
    return next((n for n in names if (chain := nft.chain(family, table, n)) and chain.use > 0), "")


def intact(nft: Nft, family: str, table: str, text: str) -> bool:
    """Whether all chains of this version's text are there, with as many rules and jumps to them.

    False for a dormant table, too. A chain with fewer was flushed manually (`nft flush table` leaves the
    elements where they are), one with more may accept what ours would drop. All chains are asked for at
    once, a few microseconds each.
    """
    wanted = uses(text)
    return nft.uses(family, table, wanted) == wanted and not nft.dormant(family, table)


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


def _chain(raw: bytes) -> NftChain:
    attrs = attributes(raw, wire.BODY)
    return NftChain(text(attrs[3]), struct.unpack("!I", attrs[6])[0])


def _rule(raw: bytes) -> NftRule:
    attrs = attributes(raw, wire.BODY)
    comment = _comment(attrs.get(7, b""))
    targets = [target for target in map(_target, wire.members(attrs.get(4, b""))) if target]
    return NftRule(struct.unpack("!Q", attrs[3])[0], comment, targets[0] if targets else "")


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
    attrs = attributes(expression)
    if text(attrs.get(1, b"")) != "immediate":
        return ""
    immediate = attributes(attrs.get(2, b""))
    return verdict_chain(immediate.get(2, b""))
