"""Typed reading of decoded JSON: every parser of a configuration names its keys through `Fields`.

Keys are matched as Go's encoding/json matches them (without regard to case, the later of duplicates wins,
null is absent), because configurations written for the reference plugins rely on it. Types are strict. Every
complaint is an InvalidConfig that names the full path of the key: "ipam.ranges[0].subnet: expected a string,
got an integer".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, cast

from cnvnet.cni.document import kind
from cnvnet.cni.errors import InvalidConfig

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
InterfaceAddress = IPv4Interface | IPv6Interface

# What Go's int takes on a node: the reference refuses a larger number as no integer.
_INT64 = (-(2**63), 2**63 - 1)


class Fields:
    """One JSON object, read key by key. `where` is its own path, "" for the document itself.

    `data` must come from `document.decode` (or be in an order where the later duplicate stands last). Which
    keys have been asked for is remembered, so that those which no parser knows can be reported (`unread`).
    """

    __slots__ = ("_asked", "_nested", "_values", "data", "where")

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        self.data = data
        self.where = where
        self._values = {_fold(key): value for key, value in data.items() if value is not None}
        # How a parser writes the keys that it asks for, by what they are folded to.
        self._asked: dict[str, str] = {}
        # Nested objects by their paths: reading one twice gives the same Fields.
        self._nested: dict[str, Fields] = {}

    def path(self, key: str) -> str:
        """The full path of a key, for messages."""
        return f"{self.where}.{key}" if self.where else key

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        folded = _fold(key)
        self._asked[folded] = key
        return folded in self._values

    def raw(self, key: str) -> Any:  # noqa: ANN401 -- what the document says, whatever it is
        """The decoded value as it is; None when absent."""
        folded = _fold(key)
        self._asked[folded] = key
        return self._values.get(folded)

    def know(self, *keys: str) -> None:
        """These keys are known here, though they need not be asked for."""
        self._asked.update((_fold(key), key) for key in keys)

    def unread(self) -> list[str]:
        """The keys of this object, as they are written, that have not been asked for."""
        rest = self._values.keys() - self._asked.keys()
        return [key for key in self.data if _fold(key) in rest] if rest else []

    def asked(self) -> list[str]:
        """The keys that have been asked for, there or not, as their parser writes them."""
        return list(self._asked.values())

    def not_all_read(self) -> list[Fields]:
        """Of this object and those read in it, all with keys that have not been asked for."""
        unfinished: list[Fields] = [] if self._values.keys() <= self._asked.keys() else [self]
        for nested in self._nested.values():
            unfinished += nested.not_all_read()
        return unfinished

    def text(self, key: str, default: str = "") -> str:
        """A string; the default if it is missing or null. InvalidConfig for another type."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._unexpected(key, "a string", value)
        return value

    def required(self, key: str) -> str:
        """A string that must be there and not empty."""
        value = self.text(key)
        if not value:
            raise InvalidConfig(f"{self.path(key)}: required")
        return value

    def integer(
        self, key: str, default: int = 0, *, minimum: int | None = None, maximum: int | None = None
    ) -> int:
        """A whole number; 1.0 and 1e3 are none, and neither is true. The default is not checked."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._unexpected(key, "an integer", value)
        return _in_range(value, minimum, maximum, self.path(key))

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; the default if it is missing or null. InvalidConfig for another type."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._unexpected(key, "true or false", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent. A null in it is an empty string, as in Go."""
        texts: list[str] = []
        for index, item in enumerate(self._list(key, "a list of strings")):
            if item is not None and not isinstance(item, str):
                raise _unexpected(f"{self.path(key)}[{index}]", "a string", item)
            texts.append(item or "")
        return tuple(texts)

    def integers(self, key: str, *, minimum: int, maximum: int) -> tuple[int, ...]:
        """A list of whole numbers; empty when absent."""
        numbers: list[int] = []
        for index, item in enumerate(self._list(key, "a list of integers")):
            where = f"{self.path(key)}[{index}]"
            if not isinstance(item, int) or isinstance(item, bool):
                raise _unexpected(where, "an integer", item)
            numbers.append(_in_range(item, minimum, maximum, where))
        return tuple(numbers)

    def fields(self, key: str) -> Fields:
        """A nested object; an empty one when absent (`has` tells them apart)."""
        value = self.raw(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self._unexpected(key, "an object", value)
        return self._object(cast("Mapping[str, Any]", value), self.path(key))

    def each(self, key: str) -> list[Fields] | None:
        """A list of objects; None when absent, which is not the same as an empty list."""
        if not self.has(key):
            return None
        return self._objects(self._list(key, "a list of objects"), self.path(key))

    def each_list(self, key: str) -> list[list[Fields]] | None:
        """A list of lists of objects, such as host-local's `ranges`; None when absent."""
        if not self.has(key):
            return None
        lists: list[list[Fields]] = []
        for index, item in enumerate(self._list(key, "a list of lists")):
            where = f"{self.path(key)}[{index}]"
            if not isinstance(item, list):
                raise _unexpected(where, "a list of objects", item)
            lists.append(self._objects(cast("Sequence[Any]", item), where))
        return lists

    def address(self, key: str) -> Address | None:
        """An IP address; None when absent or empty."""
        text = self.text(key)
        return as_address(text, self.path(key)) if text else None

    def network(self, key: str) -> Network | None:
        """A network in CIDR notation, its host bits ignored; None when absent or empty."""
        text = self.text(key)
        return as_network(text, self.path(key)) if text else None

    def mac(self, key: str, *, unicast: bool = False) -> str:
        """A MAC address in canonical form (see `as_mac`); "" when absent or empty."""
        text = self.text(key)
        return as_mac(text, self.path(key), unicast=unicast) if text else ""

    def _list(self, key: str, wanted: str) -> Sequence[Any]:
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self._unexpected(key, wanted, value)
        return cast("Sequence[Any]", value)

    def _objects(self, items: Sequence[Any], where: str) -> list[Fields]:
        objects: list[Fields] = []
        for index, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise _unexpected(f"{where}[{index}]", "an object", item)
            objects.append(self._object(cast("Mapping[str, Any]", item), f"{where}[{index}]"))
        return objects

    def _object(self, data: Mapping[str, Any], where: str) -> Fields:
        fields = self._nested.get(where)
        if fields is None:
            fields = self._nested[where] = Fields(data, where)
        return fields

    def _unexpected(self, key: str, wanted: str, value: object) -> InvalidConfig:
        return _unexpected(self.path(key), wanted, value)


def as_address(text: str, where: str) -> Address:
    """An IP address; an IPv4-mapped IPv6 one is the IPv4 address, as everywhere in Go."""
    try:
        return _without_zone(IPv6Address(text)) if ":" in text else IPv4Address(text)
    except ValueError:
        raise InvalidConfig(f"{where}: {_quoted(text)} is not an IP address") from None


def as_interface_address(text: str, where: str) -> InterfaceAddress:
    """An address with a prefix length, host bits kept: 10.0.0.5/24."""
    address, slash, length = text.partition("/")
    try:
        if not slash or not (length.isascii() and length.isdigit()):
            raise ValueError("a netmask or nothing at all where the prefix length should be")
        if ":" not in address:
            return IPv4Interface(text)
        plain = _without_zone(IPv6Address(address))
        if isinstance(plain, IPv4Address):
            return IPv4Interface((plain, int(length) - 96))
        return IPv6Interface(text)
    except ValueError:
        raise InvalidConfig(f"{where}: {_quoted(text)} is not in CIDR notation") from None


def as_plain_address(text: str, where: str) -> Address:
    """An IP address, behind which a prefix length may be written that does not count."""
    return as_interface_address(text, where).ip if "/" in text else as_address(text, where)


def as_network(text: str, where: str) -> Network:
    """A network; host bits are ignored: 10.0.0.5/24 is 10.0.0.0/24."""
    return as_interface_address(text, where).network


def as_mac(text: str, where: str, *, unicast: bool = False) -> str:
    """A 48-bit MAC in lower case with colons, from any notation Go's net.ParseMAC reads (: - or dotted).

    `unicast` refuses what no interface can have: multicast addresses and 00:00:00:00:00:00.
    """
    octets = _octets(text)
    if octets is None:
        raise InvalidConfig(f"{where}: {_quoted(text)} is not a MAC address")
    if unicast and octets[0] & 1:
        raise InvalidConfig(f"{where}: {_quoted(text)} is a multicast MAC address")
    if unicast and not any(octets):
        raise InvalidConfig(f"{where}: {_quoted(text)} cannot be the MAC address of an interface")
    return octets.hex(":")


def _octets(text: str) -> bytes | None:
    for separator, size, count in ((":", 2, 6), ("-", 2, 6), (".", 4, 3)):
        groups = text.split(separator)
        if len(groups) == count and all(len(group) == size and group.isascii() for group in groups):
            try:
                octets = bytes.fromhex("".join(groups))
            except ValueError:
                return None
            # fromhex skips blanks, so "a :…" would otherwise give fewer octets.
            return octets if len(octets) == 6 else None
    return None


def _without_zone(address: IPv6Address) -> Address:
    if address.scope_id is not None:
        raise ValueError("zones are for link-local addresses of one host")
    return address.ipv4_mapped or address


def _in_range(value: int, minimum: int | None, maximum: int | None, where: str) -> int:
    low = _INT64[0] if minimum is None else minimum
    high = _INT64[1] if maximum is None else maximum
    if low <= value <= high:
        return value
    if minimum is not None and maximum is not None:
        raise InvalidConfig(f"{where}: {value} is not between {low} and {high}")
    if value < low:
        raise InvalidConfig(f"{where}: {value} is less than {low}")
    raise InvalidConfig(f"{where}: {value} is more than {high}")


def _unexpected(where: str, wanted: str, value: object) -> InvalidConfig:
    return InvalidConfig(f"{where}: expected {wanted}, got {kind(value)}")


def _quoted(text: str) -> str:
    # Long rubbish is cut: the message has to stay one readable line.
    return f'"{text}"' if len(text) <= 64 else f'"{text[:61]}..."'


def _fold(key: str) -> str:
    # Go folds by Unicode's simple rules; the only non-ASCII letters that fold to ASCII are the Kelvin sign
    # (lower() does it) and the long s.
    return key.lower() if key.isascii() else key.lower().replace("ſ", "s")
