"""Settings as the JSON that a record keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import TypeVar, cast

from cnvnet.cni.errors import InvalidConfig
from cnvnet.guest.settings import LEASE_SECONDS, V4, V6, GuestNeighbour, GuestRoute, Settings, checked

T = TypeVar("T")


def encode(settings: Settings) -> dict[str, object]:
    """The document that `parse` reads back: field names as keys, addresses as text."""
    return cast("dict[str, object]", _encode(settings))


def _encode(value: object) -> object:
    if isinstance(value, tuple):
        values = cast("tuple[object, ...]", value)
        items = [_encode(item) for item in values]
        names: tuple[str, ...] = getattr(values, "_fields", ())
        return dict(zip(names, items, strict=True)) if names else items
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def parse(document: Mapping[str, object]) -> Settings:
    """The checked settings in a document. Keys that this version does not know are skipped.

    InvalidConfig names the key whose value is of the wrong form.
    """
    return checked(
        Settings(
            server_mac=_get(document, "server_mac", str, ""),
            mtu=_get(document, "mtu", _number, 1500),
            guest_mac=_get(document, "guest_mac", str, ""),
            hostname=_get(document, "hostname", str, ""),
            nameservers=_get(document, "nameservers", _each(_address), ()),
            search=_get(document, "search", _each(str), ()),
            ntp_servers=_get(document, "ntp_servers", _each(str), ()),
            tftp_server=_get(document, "tftp_server", str, ""),
            boot_file=_get(document, "boot_file", str, ""),
            private_options=_get(document, "private_options", _each(_private_option), ()),
            lease_seconds=_get(document, "lease_seconds", _number, LEASE_SECONDS),
            v4=_get(document, "v4", _v4, None),
            v6=_get(document, "v6", _v6, None),
            neighbours=_get(document, "neighbours", _each(_neighbour), ()),
        )
    )


def _get(document: Mapping[str, object], key: str, read: Callable[[object], T], default: T) -> T:
    value = document.get(key)
    if value is None:
        return default
    try:
        return read(value)
    except ValueError as e:
        raise InvalidConfig(f"{key} {value!r}: {e}") from e


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("not a whole number")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return cast("list[object]", value)


def _fields(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return cast("dict[str, object]", value)


def _each(read: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    return lambda value: tuple(read(item) for item in _list(value))


def _address(value: object) -> IPv4Address | IPv6Address:
    return ip_address(str(value))


def _address4(value: object) -> IPv4Address:
    return IPv4Address(str(value))


def _address6(value: object) -> IPv6Address:
    return IPv6Address(str(value))


def _network6(value: object) -> IPv6Network:
    return IPv6Network(str(value))


def _private_option(value: object) -> tuple[int, str]:
    pair = _list(value)
    if len(pair) != 2:
        raise ValueError("not a number and a text")
    return _number(pair[0]), str(pair[1])


def _neighbour(value: object) -> GuestNeighbour:
    fields = _fields(value)
    return GuestNeighbour(_address(fields.get("address")), str(fields.get("mac")))


def _route(value: object) -> GuestRoute:
    fields = _fields(value)
    return GuestRoute(IPv4Network(str(fields.get("destination"))), _get(fields, "gateway", _address4, None))


def _v4(value: object) -> V4:
    fields = _fields(value)
    return V4(
        IPv4Interface(str(fields.get("address"))),
        _address4(fields.get("server")),
        _get(fields, "gateway", _address4, None),
        _get(fields, "routes", _each(_route), ()),
        _get(fields, "mtu", _number, 0),
    )


def _v6(value: object) -> V6:
    fields = _fields(value)
    return V6(
        IPv6Interface(str(fields.get("address"))),
        _get(fields, "router", _address6, None),
        _get(fields, "router_mac", str, ""),
        _get(fields, "default_route", _flag, True),
        _get(fields, "routes", _each(_network6), ()),
        _get(fields, "mtu", _number, 0),
    )
