"""What a table does, as a digest: two of them differ exactly if the table was changed in between.

Chains with hook and policy, rules in their order, sets with their elements. What is counted does not matter,
nor who refers to what how often.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from itertools import chain

from cnvnet.kernel.netlink import attributes, string, text
from cnvnet.kernel.nft import wire

# include/uapi/linux/netfilter/nf_tables.h: the attributes of a chain that count; the others are its handle
# and its users.
_OF_CHAIN = (3, 4, 5, 7)


def digest(connection: wire.NftConnection, family: str, table: str) -> str:
    """Raises NetlinkError."""
    return _digest(chain(_rules(connection, family, table), _sets(connection, family, table)))


def digest_of_rules(connection: wire.NftConnection, family: str, table: str, chains: Collection[str]) -> str:
    """Of these chains and their rules only: others, and elements, come and go. Raises NetlinkError."""
    return _digest(_rules(connection, family, table, chains))


def _digest(parts: Iterable[bytes]) -> str:
    hashed = sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(4, "big") + part)
    return hashed.hexdigest()


def _rules(
    connection: wire.NftConnection, family: str, table: str, chains: Collection[str] | None = None
) -> Iterator[bytes]:
    of_table = string(1, table)
    for raw in connection.dump(wire.message(wire.GETCHAIN, family)):
        attrs = attributes(raw, wire.BODY)
        if text(attrs[1]) == table and (chains is None or text(attrs[3]) in chains):
            yield from (attrs.get(kind, b"") for kind in _OF_CHAIN)
    for raw in connection.dump(wire.message(wire.GETRULE, family, of_table)):
        rule = attributes(raw, wire.BODY)
        if chains is not None and text(rule[2]) not in chains:
            continue
        yield rule[2]
        for expression in wire.members(rule.get(4, b"")):
            yield b"" if text(attributes(expression)[1]) == "counter" else expression


def _sets(connection: wire.NftConnection, family: str, table: str) -> Iterator[bytes]:
    of_table = string(1, table)
    names = [
        attributes(raw, wire.BODY)[2] for raw in connection.dump(wire.message(wire.GETSET, family, of_table))
    ]
    for name in sorted(names):
        yield name
        listing = wire.message(wire.GETSETELEM, family, of_table, string(2, text(name)))
        answers = (attributes(raw, wire.BODY).get(3, b"") for raw in connection.dump(listing))
        yield from sorted(element for answer in answers for element in wire.members(answer))
