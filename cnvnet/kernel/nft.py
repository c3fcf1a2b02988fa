"""nftables: tables as text, loaded once; elements as one raw batch; and nothing that lists the host's rules.

A table of ours has one text, and the text one version: the name of its first base chain (`guard_v1`).
Loading is `ensure`'s work and happens once per boot; after that a call adds and deletes elements of the
table's sets, which takes the same time whatever else the host keeps in nftables.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from cnvnet.kernel import nfnetlink as wire
from cnvnet.kernel.netlink import CREATE, EXCL, Message, NetlinkError, attribute, attributes, nested, text
from cnvnet.kernel.netns import Netns, entered

_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10
_VALUE, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
# As many as there will ever be; each costs a look-up of microseconds where nothing is loaded.
_NEXT_VERSIONS: Final = 10
_JUMPS: Final = {"jump": -3, "goto": -4}
_INTERVAL_END: Final = 1
_COMMENT: Final = 0


class Element(NamedTuple):
    """One element of a named set: its family ("bridge", "ip", "ip6", "inet"), table, set and key.

    Each part of `key` is the field as nft would print it ("veth1234abcd", "02:00:00:00:00:01", "10.0.0.5");
    in an interval set also a prefix ("10.0.0.0/24") or a range ("10.0.0.5-10.0.0.9"). `types` gives the nft
    datatype of each part: ifname, ether_addr, ipv4_addr, ipv6_addr, inet_proto, inet_service, and
    integer<bits> (as "0x2a") where the set is declared by the typeof of a raw payload.
    """

    family: str
    table: str
    set: str
    types: tuple[str, ...]
    key: tuple[str, ...]
    data: str = ""


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

    `ensure` loads a table's constant part unless `version`, its first base chain, is loaded or a newer one
    is. `change` is one transaction: first the deletions, then the additions. `missing` and `chain` are what
    CHECK asks, `rules` what cleaning up after other programs needs, all without listing. `run` takes any nft
    script. All raise NftError.
    """

    def ensure(self, family: str, table: str, version: str, text: str) -> None: ...
    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None: ...
    def missing(self, elements: Sequence[Element]) -> list[Element]: ...
    def chain(self, family: str, table: str, name: str) -> Chain | None: ...
    def rules(self, family: str, table: str, chain: str) -> list[Rule]: ...
    def run(self, text: str) -> str: ...


@contextmanager
def open_nft(netns: Netns | None = None) -> Generator[Nft]:
    """nftables of a namespace (None: the thread's own), for one thread, closed at the end of the block."""
    try:
        if netns is None:
            connection = wire.Connection()
        else:
            with entered(netns):
                connection = wire.Connection()
    except OSError as e:
        if e.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            raise NftError(e.errno, "nftables: the kernel has no nfnetlink (modprobe nfnetlink)") from e
        raise
    with connection:
        yield Nftables(connection, netns)


class Nftables:
    """The kernel's nftables, reached through a connection of its namespace."""

    def __init__(self, connection: wire.Connection, netns: Netns | None = None) -> None:
        self._connection = connection
        self._netns = netns

    def ensure(self, family: str, table: str, version: str, text: str) -> None:
        chain = self.chain(family, table, version)
        # A chain without rules was flushed by hand: what it should do is not being done.
        if chain is not None and chain.use > 0:
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
        deletions = [(_deletion(element), _describe(element)) for element in dict.fromkeys(delete)]
        additions = list(_additions(add))
        while deletions or additions:
            everything = deletions + additions
            refused = self._connection.transaction([message for message, _ in everything])
            gone = {i for i, error in refused.items() if error == errno.ENOENT and 0 <= i < len(deletions)}
            if not gone:
                self._raise(refused, [subject for _, subject in everything])
                return
            # The kernel has no "delete if there" before 6.3, and one missing element fails the transaction.
            deletions = [entry for i, entry in enumerate(deletions) if i not in gone]

    def missing(self, elements: Sequence[Element]) -> list[Element]:
        return [element for element in elements if not self._has(element)]

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

    def rules(self, family: str, table: str, chain: str) -> list[Rule]:
        query = wire.message(wire.GETRULE, family, wire.string(1, table), wire.string(2, chain))
        try:
            return [_rule(raw) for raw in self._connection.dump(query)]
        except NetlinkError as e:
            if wire.absent(e):
                return []
            raise explained(e.errno, f"rules of {family} {table} {chain}") from e

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

    def _has(self, element: Element) -> bool:
        key, end = encode(element)
        # A tree of single values keeps an interval's end as another element: asking for its start is enough.
        if len(element.types) == 1:
            end = b""
        wanted = nested(1, _data(_KEY, key), _data(_KEY_END, end) if end else b"")
        query = wire.message(wire.GETSETELEM, element.family, *_where(element), nested(3, wanted))
        try:
            answer = attributes(self._connection.get(query), wire.BODY)
        except NetlinkError as e:
            if wire.absent(e):
                return False
            raise explained(e.errno, _describe(element)) from e
        found = attributes(next(wire.members(answer[3])))
        # A wider interval that holds this one is not this one.
        if end and [attributes(found[kind])[_VALUE] for kind in (_KEY, _KEY_END)] != [key, end]:
            return False
        return not element.data or _verdict_chain(found.get(_DATA, b"")) == element.data.split()[1]

    def _raise(self, refused: dict[int, int], subjects: Sequence[str]) -> None:
        if not refused:
            return
        index, error = min(refused.items(), key=lambda item: (item[0] < 0, item[0]))
        raise explained(error, subjects[index] if index >= 0 else "transaction")


def loaded(nft: Nft, family: str, table: str, version: str) -> bool:
    """Whether a table does its work, in this version or one of the next; elements alone do not.

    A chain without rules was flushed by hand; `nft flush table` leaves the elements where they are.
    """
    base, _, number = version.rpartition("_v")
    names = (f"{base}_v{n}" for n in range(int(number), int(number) + _NEXT_VERSIONS))
    return any(found.use > 0 for name in names if (found := nft.chain(family, table, name)))


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


def encode(element: Element) -> tuple[bytes, bytes]:
    """The first and, for an interval, the last key the element stands for, as the kernel keeps them."""
    bounds = [_bounds(kind, part) for kind, part in zip(element.types, element.key, strict=True)]
    first = [low for low, _ in bounds]
    last = [high or low for low, high in bounds] if any(high for _, high in bounds) else []
    if len(bounds) == 1:
        return first[0], b"".join(last)
    # Inside a concatenation every field begins at a multiple of four bytes.
    return b"".join(map(_padded, first)), b"".join(map(_padded, last))


def _bounds(kind: str, value: str) -> tuple[bytes, bytes]:
    """One field's bytes, or the first and last of an interval."""
    if kind == "ifname":
        return value.encode().ljust(16, b"\0"), b""
    if "/" in value:
        address, _, length = value.partition("/")
        low = _field(kind, address)
        host = (1 << (8 * len(low) - int(length))) - 1
        start = int.from_bytes(low) & ~host
        return start.to_bytes(len(low)), (start | host).to_bytes(len(low))
    if "-" in value:
        start_text, _, end_text = value.partition("-")
        return _field(kind, start_text), _field(kind, end_text)
    return _field(kind, value), b""


def _field(kind: str, value: str) -> bytes:
    match kind:
        case "ether_addr":
            return bytes.fromhex(value.replace(":", ""))
        case "ipv4_addr":
            return socket.inet_aton(value)
        case "ipv6_addr":
            return socket.inet_pton(socket.AF_INET6, value)
        case "inet_service":
            return struct.pack("!H", int(value))
        case "inet_proto":
            return bytes((int(value),))
        case _ if kind.startswith("integer"):
            return int(value, 16).to_bytes(int(kind.removeprefix("integer")) // 8)
        case _:
            raise ValueError(f"{kind}: not a datatype this module encodes")


def _padded(field: bytes) -> bytes:
    return field + b"\0" * (-len(field) % 4)


def _printed(element: Element, *, with_data: bool) -> str:
    parts = [f'"{part}"' if kind == "ifname" else part for kind, part in zip(*element[3:5], strict=True)]
    data = f" : {element.data}" if element.data and with_data else ""
    return " . ".join(parts) + data


def _describe(element: Element) -> str:
    return f"set {element.family} {element.table} {element.set}"


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_VALUE, value))


def _where(element: Element) -> tuple[bytes, bytes]:
    return wire.string(1, element.table), wire.string(2, element.set)


def _members(element: Element) -> Iterator[bytes]:
    """The element as the kernel wants it: a tree of single values takes an interval's two ends apart."""
    key, end = encode(element)
    data = _verdict(element.data) if element.data else b""
    if end and len(element.types) > 1:
        yield nested(1, _data(_KEY, key), _data(_KEY_END, end), data)
        return
    yield nested(1, _data(_KEY, key), data)
    if end and any(byte != 0xFF for byte in end):
        after = (int.from_bytes(end) + 1).to_bytes(len(end))
        yield nested(1, _data(_KEY, after), attribute(_FLAGS, struct.pack("!I", _INTERVAL_END)))


def _verdict(data: str) -> bytes:
    verb, chain = data.split()
    code = attribute(_VERDICT_CODE, struct.pack("!i", _JUMPS[verb]))
    return nested(_DATA, nested(_VERDICT, code, wire.string(_VERDICT_CHAIN, chain)))


def _verdict_chain(data: bytes) -> str:
    """The chain of a verdict, "" where there is none."""
    verdict = attributes(attributes(data).get(_VERDICT, b""))
    return text(verdict.get(_VERDICT_CHAIN, b""))


def _deletion(element: Element) -> Message:
    elements = nested(3, *_members(element._replace(data="")))
    return wire.message(wire.DELSETELEM, element.family, *_where(element), elements)


def _additions(elements: Sequence[Element]) -> Iterator[tuple[Message, str]]:
    """Messages that add the elements, those of one set together."""
    sets: dict[tuple[str, str, str], list[Element]] = {}
    for element in elements:
        sets.setdefault(element[:3], []).append(element)
    for of_one in sets.values():
        first = of_one[0]
        for part in wire.lists(3, (member for element in of_one for member in _members(element))):
            yield (
                wire.message(wire.NEWSETELEM, first.family, *_where(first), part, flags=CREATE),
                _describe(first),
            )


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
    return _verdict_chain(immediate.get(2, b""))
