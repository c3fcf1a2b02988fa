"""nftables: base chains as text, elements as one raw batch, and nothing that ever lists the host's rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Element(NamedTuple):
    """One element of a named set or map: its family ("bridge", "ip", "ip6", "inet"), table, set and key.

    Each part of `key` is the field as nft would print it ("veth1234abcd", "02:00:00:00:00:01", "10.0.0.5",
    "10.0.0.0/24"); `types` gives the nft datatype of each part ("ifname", "ether_addr", "ipv4_addr", ...).
    """

    family: str
    table: str
    set: str
    types: tuple[str, ...]
    key: tuple[str, ...]


class Nft(Protocol):
    """nftables of one namespace. `ensure` loads a table's constant part once; `change` is one transaction.

    Adding an element twice and deleting one that is not there are both fine.
    """

    def ensure(self, family: str, table: str, version: str, text: str) -> None: ...
    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None: ...
    def missing(self, elements: Sequence[Element]) -> list[Element]: ...
    def run(self, text: str) -> str: ...
