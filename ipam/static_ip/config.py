"""The configuration of static-ip: every key, parsed once.

Ranges are written as for host-local (`subnet`, `ranges`; containernetworking/plugins v1.9.1,
allocator/config.go) or as for whereabouts (`range`, `ipRanges`; pkg/config/config.go), and mean here what
they mean there: host-local's have their first address as gateway unless told otherwise, whereabouts' have
none unless told.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from cnvnet import caller
from cnvnet.cni.args import parse_args
from cnvnet.cni.conventions import capability_ips, cni_args, requested_mac, runtime_config
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address, Fields, as_address, as_interface_address
from cnvnet.cni.request import Request
from cnvnet.cni.result import DNS, Route
from cnvnet.cni.result import parse as parse_result
from cnvnet.cni.version import WITHOUT_INTERFACES
from cnvnet.ipam.allocator import Policy, Wish
from cnvnet.ipam.lease import POD, POLICIES, VM_DELETED
from cnvnet.ipam.pool import Pool
from cnvnet.ipam.static_ip.ranges import ensure_gateways_lead, parse_pool
from cnvnet.vm import identity

STATEDIR: Final = "/var/lib/cnvnet"
# Locally administered and unicast, and nobody's habit: ovn-kubernetes has 0a:58, Docker 02:42, kubemacpool
# 02.
MAC_PREFIX: Final = b"\x0a\x63"
STICKY: Final = "sticky"
OFF: Final = "off"

_ARGS: Final = frozenset({"IP", "MAC", *identity.ARGS, *identity.KUBERNETES_ARGS})
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_COOLDOWN: Final = 366 * 86400


class Config(NamedTuple):
    """What the configuration and the runtime ask for. `vm` None is a container that is no VM.

    `remark` is what an ADD is to say about it, "" for nothing.
    """

    pool: Pool
    routes: tuple[Route, ...]
    dns: DNS
    policy: Policy
    folder: str
    vm: identity.VM | None
    wishes: tuple[Wish, ...]
    mac: str
    mac_where: str
    remark: str

    @classmethod
    def parse(cls, request: Request) -> Config:
        """Raises CNIError (7, for CNI_ARGS 4) naming the key that is wrong or contradicts another."""
        fields = request.fields
        ipam = _ipam(fields)
        args = parse_args(request.args, _ARGS)
        wanted = parse_pool(fields, ipam)
        _ensure_one_per_family(wanted, request.cni_version)
        report = {"routes": ipam.raw("routes"), "dns": ipam.raw("dns")}
        written = parse_result(report, "1.1.0", ipam.where)
        ensure_gateways_lead(wanted, written.routes, default=fields.raw("isDefaultGateway") is True)
        vm = identity.identify(fields, args, storable(request.ifname))
        _ensure_store(ipam, in_kubernetes=identity.in_kubernetes(args))
        mac_where, mac = _mac(fields, args)
        return cls(
            pool=wanted,
            routes=_routes(written.routes, ipam),
            dns=_dns(ipam, written.dns),
            policy=_policy(ipam),
            folder=_folder(ipam, request.env),
            vm=vm,
            wishes=tuple(_wishes(fields, args)),
            mac=mac,
            mac_where=mac_where,
            remark=_remark(ipam, args),
        )


def storable(text: str) -> str:
    """The text as a database can have it: bytes that are no UTF-8 (the kernel takes any) are spelled out."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def folder(request: Request) -> str:
    """Where the leases of this request's network are, for DEL and GC: whatever has become of the rest."""
    try:
        return _folder(_ipam(request.fields), request.env)
    except InvalidConfig:
        # No ADD can have succeeded with this, so what there is was made before, and probably at the usual
        # place.
        return _statedir(request.env)


def _ipam(fields: Fields) -> Fields:
    if not fields.has("ipam"):
        raise InvalidConfig("IPAM config missing 'ipam' key")
    return fields.fields("ipam")


# -- what comes with the addresses


def _ensure_one_per_family(wanted: Pool, cni_version: str) -> None:
    families = [each.version for each in wanted.sets]
    if cni_version in WITHOUT_INTERFACES and len(set(families)) < len(families):
        raise InvalidConfig(f"CNI version {cni_version} does not support more than 1 address per family")


def _routes(routes: tuple[Route, ...], ipam: Fields) -> tuple[Route, ...]:
    for index, route in enumerate(routes):
        if route.gw is not None and route.gw.version != route.dst.version:
            raise InvalidConfig(f"{ipam.path('routes')}[{index}].gw: {route.gw} cannot lead to {route.dst}")
    return routes


def _dns(ipam: Fields, dns: DNS) -> DNS:
    path = ipam.text("resolvConf")
    if not path:
        return dns
    where = ipam.path("resolvConf")
    if ipam.has("dns"):
        raise InvalidConfig(f"{where}: {ipam.path('dns')} is given too")
    if not os.path.isabs(path):
        raise InvalidConfig(f"{where}: not an absolute path")
    try:
        with open(path, encoding="utf-8", errors="replace", opener=caller.open_path) as file:
            return _resolv_conf(file)
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise InvalidConfig(f"{where}: {path}: {reason.lower()}") from e


def _resolv_conf(lines: Iterable[str]) -> DNS:
    """resolv.conf(5) as host-local reads it: all nameservers and options, the last domain and search."""
    nameservers: list[str] = []
    options: list[str] = []
    domain = ""
    search: tuple[str, ...] = ()
    for line in lines:
        key, *values = line.split() or [""]
        if key == "nameserver" and values:
            nameservers.append(values[0])
        elif key == "domain" and values:
            domain = values[0]
        elif key == "search":
            search = tuple(values)
        elif key == "options":
            options.extend(values)
    return DNS(tuple(nameservers), domain, search, tuple(options))


# -- the leases


def _policy(ipam: Fields) -> Policy:
    release = ipam.text("release", VM_DELETED)
    if release not in POLICIES:
        raise InvalidConfig(f'{ipam.path("release")}: "{release}" is not one of {", ".join(POLICIES)}')
    return Policy(_mac_prefix(ipam), release, _cooldown(ipam))


def _mac_prefix(ipam: Fields) -> bytes:
    """The first octets of the MACs this network gives out; empty when it gives none."""
    if isinstance(ipam.raw("mac"), Mapping):
        wanted = ipam.fields("mac")
        where, mode, prefix = wanted.path("mode"), wanted.text("mode", STICKY), wanted.text("prefix")
    else:
        where, mode, prefix = ipam.path("mac"), ipam.text("mac", STICKY), ""
        wanted = ipam
    if mode not in (STICKY, OFF):
        raise InvalidConfig(f'{where}: "{mode}" is not one of {STICKY}, {OFF}')
    if not prefix:
        return MAC_PREFIX if mode == STICKY else b""
    where = wanted.path("prefix")
    if mode == OFF:
        raise InvalidConfig(f"{where}: MACs are {OFF}")
    return _octets(prefix, where)


def _octets(text: str, where: str) -> bytes:
    groups = text.split(":")
    digits = set("0123456789abcdefABCDEF")
    if len(groups) != 2 or not all(len(group) == 2 and digits.issuperset(group) for group in groups):
        raise InvalidConfig(f'{where}: "{text[:64]}" is not two octets such as {MAC_PREFIX.hex(":")}')
    octets = bytes.fromhex("".join(groups))
    if octets[0] & 0b11 != 0b10:
        raise InvalidConfig(f"{where}: {text} is not locally administered and unicast (x2, x6, xa or xe)")
    return octets


def _cooldown(ipam: Fields) -> int:
    """Seconds, or a number with its unit: 90, "90s", "10m", "1h", "1d"."""
    where = ipam.path("cooldown")
    if not isinstance(ipam.raw("cooldown"), str):
        return ipam.integer("cooldown", minimum=0, maximum=_LONGEST_COOLDOWN)
    text = ipam.text("cooldown")
    number, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (text, "s")
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise InvalidConfig(f'{where}: "{text[:64]}" is no time such as 90, "10m", "1h" or "1d"')
    seconds = int(number) * _SECONDS[unit]
    if seconds > _LONGEST_COOLDOWN:
        raise InvalidConfig(f"{where}: {seconds} is not between 0 and {_LONGEST_COOLDOWN}")
    return seconds


def _ensure_store(ipam: Fields, *, in_kubernetes: bool) -> None:
    where = ipam.path("store")
    store = ipam.text("store", "sqlite")
    node_local = ipam.flag("nodeLocal")
    if store == "kubernetes":
        raise InvalidConfig(f'{where}: "kubernetes" is not available in this version, only "sqlite"')
    if store != "sqlite":
        raise InvalidConfig(f'{where}: "{store[:64]}" is not one of sqlite, kubernetes')
    if in_kubernetes and not node_local:
        raise InvalidConfig(
            f"{where}: sqlite knows the leases of one node only, and with Kubernetes two nodes would "
            "give one address twice: give each node ranges of its own and say so by "
            f"{ipam.path('nodeLocal')}: true"
        )


def _remark(ipam: Fields, args: Mapping[str, str]) -> str:
    # For whoever wrote a policy down: the default is not worth a line at every ADD.
    release = ipam.text("release")
    if release in ("", POD) or not identity.in_kubernetes(args):
        return ""
    pod = args.get("K8S_POD_NAME") or "the pod"
    known = f"{pod} is not known to be a virtual machine, its address lasts as long as the container"
    return f"{ipam.path('release')}: {release} has no effect in Kubernetes: {known}"


def _folder(ipam: Fields, env: Mapping[str, str]) -> str:
    path = ipam.text("dataDir")
    if path and not (os.path.isabs(path) and path.isprintable()):
        raise InvalidConfig(f"{ipam.path('dataDir')}: not an absolute path")
    return path or _statedir(env)


def _statedir(env: Mapping[str, str]) -> str:
    return env.get("CNVNET_STATEDIR") or STATEDIR


# -- what the runtime asks for


def _wishes(fields: Fields, args: Mapping[str, str]) -> Iterable[Wish]:
    """Wanted addresses, strongest source first. A prefix length may be written; the subnet's counts."""
    capability = "runtimeConfig.ips"
    yield from _each_wish(enumerate(capability_ips(fields)), capability)
    yield from _each_wish(enumerate(cni_args(fields).texts("ips")), "args.cni.ips")
    texts = [text.strip() for text in args.get("IP", "").split(",") if text.strip()]
    for text in texts:
        yield Wish(_address(text, "CNI_ARGS IP"), "CNI_ARGS IP", "CNI_ARGS IP")


def _each_wish(texts: Iterable[tuple[int, str]], source: str) -> Iterable[Wish]:
    for index, text in texts:
        where = f"{source}[{index}]"
        yield Wish(_address(text, where), where, source)


def _address(text: str, where: str) -> Address:
    return as_interface_address(text, where).ip if "/" in text else as_address(text, where)


def _mac(fields: Fields, args: Mapping[str, str]) -> tuple[str, str]:
    """The MAC somebody asked for and the key that does; both "" when nobody did."""
    mac = requested_mac(fields, args)
    for where, part in (("runtimeConfig.mac", runtime_config(fields)), ("args.cni.mac", cni_args(fields))):
        if part.text("mac"):
            return where, mac
    return ("CNI_ARGS MAC", mac) if mac else ("", "")
