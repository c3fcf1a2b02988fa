"""The ranges of a configuration, in host-local's words and in whereabouts', as a pool.

They mean here what they mean there: host-local's have the first address of their subnet as gateway unless a
key names another, whereabouts' have none unless a key names one. But a plugin above with `isGateway` that
gets no gateway from its IPAM plugin makes up the network's first address (the reference bridge does);
static-ip gives it the same one. Sources:
containernetworking/plugins v1.9.1 plugins/ipam/host-local/backend/allocator, whereabouts
pkg/config/config.go.
"""

from __future__ import annotations

from collections.abc import Iterable

from cnvnet.cni.conventions import runtime_config
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address, Fields, Network, as_address, as_interface_address, as_network
from cnvnet.cni.result import ResultRoute
from cnvnet.ipam.pool import Pool, Range, pool

# An end of a range and the key it was read from.
_End = tuple[str, Address | None]


def parse_pool(fields: Fields, ipam: Fields) -> Pool:
    """What the network has to give: the capability `ipRanges` first, then the configuration's own sets."""
    where = ipam.path("ranges")
    host_local = ipam.each_list("ranges") or []
    sets = [_host_local_set(each, f"{where}[{index}]") for index, each in enumerate(host_local)]
    if ipam.text("subnet"):
        sets.insert(0, (_host_local(ipam),))
    excluded = [(first, last) for _, _, first, last in _written_exclusions(ipam)]
    entries = ipam.each("ipRanges") or []
    if ipam.text("range"):
        entries.insert(0, ipam)
    # Whatever else they may be: only true makes a plugin above put the gateway on its bridge.
    bridged = any(fields.raw(key) is True for key in ("isGateway", "isDefaultGateway"))
    whereabouts = [(_whereabouts(entry, ipam, bridged=bridged),) for entry in entries]
    capability = runtime_config(fields).each_list("ipRanges") or []
    where = runtime_config(fields).path("ipRanges")
    first = [_host_local_set(each, f"{where}[{index}]") for index, each in enumerate(capability)]
    sets = [*first, *sets, *whereabouts]
    if not sets:
        raise InvalidConfig("no IP ranges specified", f"{ipam.path('subnet')}, ranges, range or ipRanges")
    _ensure_apart(sets, ipam)
    parsed = pool(sets, excluded)
    for given in parsed.sets:
        if not given.spans:
            raise InvalidConfig(f"{ipam.path('exclude')}: leaves no address of {given.name}")
    return parsed


def _host_local_set(parts: list[Fields], where: str) -> tuple[Range, ...]:
    if not parts:
        raise InvalidConfig(f"{where}: empty range set")
    ranges = tuple(_host_local(part) for part in parts)
    if len({each.subnet.version for each in ranges}) > 1:
        raise InvalidConfig(f"{where}: mixed address families")
    for index, each in enumerate(ranges):
        for other in ranges[index + 1 :]:
            if each.overlaps(other):
                raise InvalidConfig(f"{where}: subnets {each.name} and {other.name} overlap")
    return ranges


def _host_local(part: Fields) -> Range:
    where = part.path("subnet")
    written = as_interface_address(part.required("subnet"), where)
    subnet = written.network
    if written.ip != subnet.network_address:
        raise InvalidConfig(f"{where}: {written} has host bits set: the network is {subnet}")
    _ensure_roomy(subnet, where)
    made = _range(subnet, _end(part, "rangeStart"), _end(part, "rangeEnd"))
    gateway, key = part.address("gateway"), part.path("gateway")
    if gateway is None:
        return made._replace(gateway=subnet.network_address + 1)
    if gateway.version != subnet.version:
        raise InvalidConfig(f"{key}: {gateway} cannot be the gateway of {subnet}")
    return made._replace(gateway=gateway, gateway_key=key)


def _whereabouts(entry: Fields, ipam: Fields, *, bridged: bool) -> Range:
    where = entry.path("range")
    text = entry.required("range")
    first, last = _end(entry, "range_start"), _end(entry, "range_end")
    start, dash, rest = text.partition("-")
    written = as_interface_address(rest if dash else text, where)
    subnet = written.network
    if dash:
        first = _agreed(first, (where, as_address(start, where)))
        last = _agreed(last, (where, written.ip))
    _ensure_roomy(subnet, where)
    made = _range(subnet, first, last)
    gateway = ipam.address("gateway")
    # whereabouts has one gateway for both families; it can only be meant for its own.
    if gateway is not None and gateway.version == subnet.version:
        return made._replace(gateway=gateway, gateway_key=ipam.path("gateway"))
    return made._replace(gateway=subnet.network_address + 1 if bridged else None)


def _end(part: Fields, key: str) -> _End:
    return part.path(key), part.address(key)


def _agreed(separate: _End, together: _End) -> _End:
    if separate[1] not in (None, together[1]):
        raise InvalidConfig(
            f"{separate[0]}: {separate[1]} contradicts {together[0]}, which says {together[1]}"
        )
    return together


def _range(subnet: Network, start: _End, end: _End) -> Range:
    for where, ip in (start, end):
        if ip is not None and ip not in subnet:
            raise InvalidConfig(f"{where}: {ip} is not in {subnet}")
    # The ends of an IPv4 subnet are no addresses of hosts; IPv6's first is the routers' anycast address.
    first = start[1] or subnet.network_address + 1
    last = end[1] or (subnet.broadcast_address - 1 if subnet.version == 4 else subnet.broadcast_address)
    if int(last) < int(first):
        where = end[0] if end[1] is not None else start[0]
        raise InvalidConfig(f"{where}: the range would end at {last} before it begins at {first}")
    return Range(subnet, first, last)


def ensure_gateways_lead(wanted: Pool, routes: Iterable[ResultRoute], *, default: bool) -> None:
    """Code 7 if a route would go through a gateway out of reach: the kernel refuses it without a reason.

    Routes without a gateway of their own go through that of the family's first address; `default` is
    whether the plugin above makes such a route itself. A gateway that is only reported may be anywhere.
    """
    given = list(routes)
    for version in (4, 6):
        ours = [route for route in given if route.dst.version == version]
        default_given = any(route.gw is not None and not route.dst.prefixlen for route in ours)
        used = (default and not default_given) or any(route.gw is None for route in ours)
        first = next((each for each in wanted.sets if each.version == version), None)
        if first is None or not used:
            continue
        near = [part.subnet for each in wanted.sets for part in each.ranges]
        near += [route.dst for route in ours if route.gw is not None and route.dst.prefixlen]
        for part in first.ranges:
            ip = part.gateway
            if ip is not None and not ip.is_link_local and not any(ip in each for each in near):
                text = f"{ip} is not in {part.subnet}, so no route can lead through it"
                raise InvalidConfig(f"{part.gateway_key}: {text}")


def _ensure_roomy(subnet: Network, where: str) -> None:
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise InvalidConfig(f"{where}: network {subnet} is too small to allocate from")


def _ensure_apart(sets: list[tuple[Range, ...]], ipam: Fields) -> None:
    for index, ranges in enumerate(sets):
        for number, others in enumerate(sets[index + 1 :], index + 1):
            if any(each.overlaps(other) for each in ranges for other in others):
                raise InvalidConfig(f"{ipam.path('ranges')}: range set {index} overlaps with {number}")


def useless_exclusions(ipam: Fields, wanted: Pool) -> tuple[str, ...]:
    """The line that an ADD says about exclusions outside every range, which may be mistyped."""
    useless = [
        f'{where}: "{text}"'
        for where, text, first, last in _written_exclusions(ipam)
        # Those that no VM gets in any case are excluded out of habit.
        if not wanted.purpose_of(first) and not _touches(wanted, first, last)
    ]
    if not useless:
        return ()
    return (f"{', '.join(useless)}: in no range of the network ({wanted.name}), so nothing is excluded",)


def _touches(wanted: Pool, first: Address, last: Address) -> bool:
    parts = [part for each in wanted.sets if each.version == first.version for part in each.ranges]
    return any(part.overlaps(part._replace(first=first, last=last)) for part in parts)


def _written_exclusions(ipam: Fields) -> Iterable[tuple[str, str, Address, Address]]:
    """Each exclusion's key, how it is written, and its first and last address."""
    for part in (ipam, *(ipam.each("ipRanges") or ())):
        for index, text in enumerate(part.texts("exclude")):
            where = f"{part.path('exclude')}[{index}]"
            yield where, text, *_ends(text, where)


def _ends(text: str, where: str) -> tuple[Address, Address]:
    if "/" in text:
        network = as_network(text, where)
        return network.network_address, network.broadcast_address
    try:
        ip = as_address(text, where)
    except InvalidConfig:
        raise InvalidConfig(f'{where}: "{text[:64]}" is neither an address nor a network') from None
    return ip, ip
