"""Elements of nftables' sets and maps as values, and as the bytes the kernel keeps."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

from cnvnet.kernel.netlink import CREATE, NetlinkMessage, attribute, attributes, nested, string, text
from cnvnet.kernel.nft import wire

# NFTA_SET_ELEM_*, then NFTA_DATA_* and NFTA_VERDICT_* of include/uapi/linux/netfilter/nf_tables.h.
_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10
_VALUE, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
# NFT_JUMP comes back to the rule behind it, NFT_GOTO does not.
_JUMPS: Final = {"jump": -3, "goto": -4}
# NFT_SET_ELEM_INTERVAL_END: the element is the first key behind the interval that begins before it.
_INTERVAL_END: Final = 1


class Element(NamedTuple):
    """One element of a named set or map: its family ("bridge", "ip", "ip6", "inet"), table, set and key.

    Each part of `key` is the field as nft would print it ("veth1234abcd", "02:00:00:00:00:01", "10.0.0.5");
    in an interval set also a prefix ("10.0.0.0/24") or a range ("10.0.0.5-10.0.0.9"). `types` gives the nft
    datatype of each part: ifname, ether_addr, ipv4_addr, ipv6_addr, inet_proto, inet_service, and
    integer<bits> (as "0x2a") where the set is declared by the typeof of a raw payload. `data` is the verdict
    of a verdict map's element ("goto some_chain"), "" in a set; deleting goes by the key alone.
    """

    family: str
    table: str
    set: str
    types: tuple[str, ...]
    key: tuple[str, ...]
    data: str = ""


def encode(element: Element) -> tuple[bytes, bytes]:
    """The first and, for an interval, the last key the element stands for, as the kernel keeps them."""
    if len(element.types) == 1 == len(element.key):
        return _bounds(element.types[0], element.key[0])
    # Inside a concatenation every field begins at a multiple of four bytes.
    first = last = b""
    is_interval = False
    for kind, part in zip(element.types, element.key, strict=True):
        low, high = _bounds(kind, part)
        first += _padded(low)
        last += _padded(high or low)
        is_interval = is_interval or bool(high)
    return first, last if is_interval else b""


def describe(element: Element) -> str:
    """The set or map an element is in, for messages."""
    return f"set {element.family} {element.table} {element.set}"


def deletion(element: Element) -> NetlinkMessage:
    """The message that deletes one element."""
    elements = nested(3, *_members(element._replace(data="")))
    return wire.message(wire.DELSETELEM, element.family, *_where(element), elements)


def additions(elements: Sequence[Element]) -> Iterator[tuple[NetlinkMessage, str]]:
    """Messages that add the elements, those of one set together."""
    sets: dict[tuple[str, str, str], list[Element]] = {}
    for element in elements:
        sets.setdefault(element[:3], []).append(element)
    for of_one in sets.values():
        first = of_one[0]
        for part in wire.lists(3, (member for element in of_one for member in _members(element))):
            yield (
                wire.message(wire.NEWSETELEM, first.family, *_where(first), part, flags=CREATE),
                describe(first),
            )


def query(element: Element) -> NetlinkMessage:
    """The message that asks for one element; ENOENT when its key is in none."""
    key, end = encode(element)
    # A tree of single values keeps an interval's end as another element: asking for its start is enough.
    whole = _data(_KEY_END, end) if len(element.types) > 1 and end else b""
    wanted = nested(3, nested(1, _data(_KEY, key), whole))
    return wire.message(wire.GETSETELEM, element.family, *_where(element), wanted)


def answers(element: Element, answer: bytes) -> bool:
    """Whether the element that the kernel found is this one: no wider interval, no other verdict."""
    key, end = encode(element)
    attrs = attributes(next(wire.members(attributes(answer, wire.BODY)[3])))
    spans = len(element.types) > 1 and bool(end)
    if spans and [attributes(attrs[kind])[_VALUE] for kind in (_KEY, _KEY_END)] != [key, end]:
        return False
    return not element.data or verdict_chain(attrs.get(_DATA, b"")) == element.data.split()[1]


def listing(element: Element) -> NetlinkMessage:
    """The message that asks for all elements of the set that this one is in."""
    return wire.message(wire.GETSETELEM, element.family, *_where(element))


def listed(answers: Iterable[bytes]) -> dict[bytes, str]:
    """The elements of a set without intervals: the keys, and the chains they lead to ("" in a set)."""
    chains: dict[bytes, str] = {}
    for answer in answers:
        for member in wire.members(attributes(answer, wire.BODY).get(3, b"")):
            # A key is the only member of what holds it, behind a header of four bytes.
            parts = attributes(member)
            chains[parts[_KEY][4:]] = verdict_chain(parts[_DATA]) if _DATA in parts else ""
    return chains


def verdict_chain(data: bytes) -> str:
    """The chain of a verdict, "" where there is none."""
    verdict = attributes(attributes(data).get(_VERDICT, b""))
    return text(verdict.get(_VERDICT_CHAIN, b""))


def _bounds(kind: str, value: str) -> tuple[bytes, bytes]:
    """One field's bytes, or the first and last of an interval."""
    if kind == "ifname":
        # The kernel compares all IFNAMSIZ bytes of a name: without the zeroes it would be no interface's.
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
    return field if len(field) % 4 == 0 else field + b"\0" * (-len(field) % 4)


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_VALUE, value))


@cache
def _before(length: int) -> bytes:
    """What comes before a key of that length in a list of elements: thousands are packed at once."""
    return nested(1, _data(_KEY, bytes(length)))[: -length or None]


def _where(element: Element) -> tuple[bytes, bytes]:
    return string(1, element.table), string(2, element.set)


def _members(element: Element) -> Iterator[bytes]:
    """The element as the kernel wants it: a tree of single values takes an interval's two ends apart."""
    key, end = encode(element)
    if not end and not element.data and len(key) % 4 == 0:
        yield _before(len(key)) + key
        return
    data = _verdict(element.data) if element.data else b""
    if end and len(element.types) > 1:
        yield nested(1, _data(_KEY, key), _data(_KEY_END, end), data)
        return
    yield nested(1, _data(_KEY, key), data)
    # An interval that reaches the last key of all has no key behind it: without an end element it is open.
    if end and any(byte != 0xFF for byte in end):
        after = (int.from_bytes(end) + 1).to_bytes(len(end))
        yield nested(1, _data(_KEY, after), attribute(_FLAGS, struct.pack("!I", _INTERVAL_END)))


def _verdict(data: str) -> bytes:
    verb, chain = data.split()
    code = attribute(_VERDICT_CODE, struct.pack("!i", _JUMPS[verb]))
    return nested(_DATA, nested(_VERDICT, code, string(_VERDICT_CHAIN, chain)))
