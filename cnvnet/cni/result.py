"""The result of an ADD: one value for all spec versions, and its conversion from and to each of them.

Shapes, order of keys and conversions are those of containernetworking/cni pkg/types/{020,040,100}: what is
printed equals what the reference prints, to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Any, NamedTuple

from cnvnet.cni.errors import DECODING_FAILURE, CNIError, InvalidConfig
from cnvnet.cni.fields import Fields, as_interface_address, as_network
from cnvnet.cni.version import BEFORE_1_0, SUPPORTED, WITHOUT_INTERFACES

if TYPE_CHECKING:
    from cnvnet.cni.request import Request

_UINT32 = 2**32 - 1


class Interface(NamedTuple):
    """An entry of `interfaces`."""

    name: str
    mac: str = ""
    # The path of its network namespace, "" for the host's.
    sandbox: str = ""
    # 0 where it is not known.
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


class IP(NamedTuple):
    """An entry of `ips`."""

    address: IPv4Interface | IPv6Interface
    gateway: IPv4Address | IPv6Address | None = None
    # An index into `Result.interfaces`; None in the result of an IPAM plugin.
    interface: int | None = None


class ResultRoute(NamedTuple):
    """An entry of `routes`; 0 or None where the plugin gave no value."""

    dst: IPv4Network | IPv6Network
    gw: IPv4Address | IPv6Address | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class DNS(NamedTuple):
    """Resolver settings; empty where the plugin has none."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(NamedTuple):
    """What an ADD made. `parse` and `render` (same module) convert from and to every spec version."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[ResultRoute, ...] = ()
    dns: DNS = DNS()


def previous(request: Request) -> Result | None:
    """The `prevResult`, in the configuration's version unless it names its own; None if absent."""
    if not request.fields.has("prevResult"):
        return None
    return _parse(request.fields.fields("prevResult"), request.cni_version)


def parse(document: Mapping[str, Any], version: str, where: str = "") -> Result:
    """The result that a plugin printed; `version` counts when the document does not name its own.

    Raises InvalidConfig naming the key, below `where`; code 6 for a version that is not of the spec.
    """
    return _parse(Fields(document, where), version)


def routes_and_dns(fields: Fields) -> tuple[tuple[ResultRoute, ...], DNS]:
    """What an address manager's configuration has of a result. Raises InvalidConfig naming the key."""
    return _parse_routes(fields), _parse_dns(fields.fields("dns"))


def render(result: Result, version: str) -> dict[str, Any]:
    """The document of a spec version; what that version has no place for is left out.

    0.1.0 and 0.2.0 take the first address of each family; without any address: InvalidConfig.
    """
    if version in WITHOUT_INTERFACES:
        return _render_020(result, version)
    if version in BEFORE_1_0:
        return _render_040(result, version)
    return _render_100(result, version)


def ensure_renderable(version: str, *, has_ips: bool) -> None:
    """InvalidConfig if an ADD in this version could not report its success.

    To be called before the first change.
    """
    if version in WITHOUT_INTERFACES and not has_ips:
        details = f"cniVersion {version} has no place for a result without addresses"
        raise InvalidConfig("cannot convert: no valid IP addresses", details)


def _parse(fields: Fields, version: str) -> Result:
    version = fields.text("cniVersion") or version
    if version not in SUPPORTED:
        raise CNIError(
            DECODING_FAILURE, f'{fields.path("cniVersion")}: unsupported CNI result version "{version}"'
        )
    dns = _parse_dns(fields.fields("dns"))
    if version in WITHOUT_INTERFACES:
        return _parse_020(fields, dns)
    interfaces = tuple(_parse_interface(item, version) for item in fields.each("interfaces") or ())
    ips = tuple(_parse_ip(item, len(interfaces)) for item in fields.each("ips") or ())
    return Result(interfaces, ips, _parse_routes(fields), dns)


def _parse_020(fields: Fields, dns: DNS) -> Result:
    ips: list[IP] = []
    routes: list[ResultRoute] = []
    for key in ("ip4", "ip6"):
        if fields.has(key):
            item = fields.fields(key)
            ips.append(
                IP(as_interface_address(item.required("ip"), item.path("ip")), item.address("gateway"))
            )
            routes.extend(_parse_routes(item))
    return Result((), tuple(ips), tuple(routes), dns)


def _parse_interface(item: Fields, version: str) -> Interface:
    known = Interface(item.text("name"), item.text("mac"), item.text("sandbox"))
    if version in BEFORE_1_0:
        return known
    return known._replace(
        mtu=item.integer("mtu", minimum=0, maximum=_UINT32),
        socket_path=item.text("socketPath"),
        pci_id=item.text("pciID"),
    )


def _parse_ip(item: Fields, interfaces: int) -> IP:
    # Without a list of interfaces (the result of an IPAM plugin) an index points to nothing yet.
    last = interfaces - 1 if interfaces else _UINT32
    return IP(
        address=as_interface_address(item.required("address"), item.path("address")),
        gateway=item.address("gateway"),
        interface=item.integer("interface", minimum=0, maximum=last) if item.has("interface") else None,
    )


def _parse_routes(fields: Fields) -> tuple[ResultRoute, ...]:
    return tuple(_parse_route(item) for item in fields.each("routes") or ())


def _parse_route(item: Fields) -> ResultRoute:
    return ResultRoute(
        dst=as_network(item.required("dst"), item.path("dst")),
        gw=item.address("gw"),
        mtu=item.integer("mtu", minimum=0, maximum=_UINT32),
        advmss=item.integer("advmss", minimum=0, maximum=_UINT32),
        priority=item.integer("priority", minimum=0, maximum=_UINT32),
        table=item.integer("table", minimum=0, maximum=_UINT32) if item.has("table") else None,
        scope=item.integer("scope", minimum=0, maximum=255) if item.has("scope") else None,
    )


def _parse_dns(item: Fields) -> DNS:
    return DNS(item.texts("nameservers"), item.text("domain"), item.texts("search"), item.texts("options"))


def _render_020(result: Result, version: str) -> dict[str, Any]:
    document: dict[str, Any] = {"cniVersion": version}
    for family, key in ((4, "ip4"), (6, "ip6")):
        ip = next((ip for ip in result.ips if ip.address.version == family), None)
        if ip is not None:
            routes = [
                {"dst": str(r.dst), "gw": _text(r.gw)} for r in result.routes if r.dst.version == family
            ]
            document[key] = _filled(
                {
                    "ip": str(ip.address),
                    "gateway": _text(ip.gateway),
                    "routes": [_filled(route) for route in routes],
                }
            )
    ensure_renderable(version, has_ips=len(document) > 1)
    return document | {"dns": _render_dns(result.dns)}


def _render_040(result: Result, version: str) -> dict[str, Any]:
    interfaces = [
        {"name": i.name, **_filled({"mac": i.mac, "sandbox": i.sandbox})} for i in result.interfaces
    ]
    ips: list[dict[str, Any]] = []
    for ip in result.ips:
        entry: dict[str, Any] = {"version": str(ip.address.version)}
        if ip.interface is not None:
            entry["interface"] = ip.interface
        ips.append(entry | {"address": str(ip.address), **_filled({"gateway": _text(ip.gateway)})})
    routes = [_render_route(route) for route in result.routes]
    lists = _filled({"interfaces": interfaces, "ips": ips, "routes": routes})
    return {"cniVersion": version, **lists, "dns": _render_dns(result.dns)}


def _render_100(result: Result, version: str) -> dict[str, Any]:
    # The reference prints this one through a Go map, hence the keys in alphabetical order.
    interfaces = [
        _sorted(
            {
                "name": i.name,
                **_filled(
                    {
                        "mac": i.mac,
                        "mtu": i.mtu,
                        "sandbox": i.sandbox,
                        "socketPath": i.socket_path,
                        "pciID": i.pci_id,
                    }
                ),
            }
        )
        for i in result.interfaces
    ]
    ips: list[dict[str, Any]] = []
    for ip in result.ips:
        entry = {"address": str(ip.address), **_filled({"gateway": _text(ip.gateway)})}
        ips.append(entry if ip.interface is None else entry | {"interface": ip.interface})
    routes = [_sorted(_render_route(route)) for route in result.routes]
    dns = _sorted(_render_dns(result.dns))
    lists = _filled({"dns": dns, "interfaces": interfaces, "ips": ips, "routes": routes})
    return {"cniVersion": version, **lists}


def _render_route(route: ResultRoute) -> dict[str, Any]:
    document: dict[str, Any] = {"dst": str(route.dst)}
    document |= _filled(
        {"gw": _text(route.gw), "mtu": route.mtu, "advmss": route.advmss, "priority": route.priority}
    )
    if route.table is not None:
        document["table"] = route.table
    if route.scope is not None:
        document["scope"] = route.scope
    return document


def _render_dns(dns: DNS) -> dict[str, Any]:
    lists: dict[str, str | Sequence[str]] = {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }
    return _filled(lists)


def _filled(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty or zero (Go's omitempty)."""
    return {key: value for key, value in document.items() if value}


def _sorted(document: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(document.items()))


def _text(address: IPv4Address | IPv6Address | None) -> str:
    return "" if address is None else str(address)
