"""The configuration of static-ip: every key, parsed once.

Ranges are written as for host-local (`subnet`, `ranges`; containernetworking/plugins v1.9.1,
allocator/config.go) or as for whereabouts (`range`, `ipRanges`; pkg/config/config.go), and mean here what
they mean there: host-local's have their first address as gateway unless a key names another, whereabouts'
have none unless a key names one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from cnvnet.cni.args import parse_args
from cnvnet.cni.conventions import PodRef, capability_ips, cni_args, requested_mac
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_plain_address
from cnvnet.cni.request import Request
from cnvnet.cni.result import DNS, ResultRoute, routes_and_dns
from cnvnet.cni.version import WITHOUT_INTERFACES
from cnvnet.ipam.allocation import AddressRequest, Policy
from cnvnet.ipam.lease import POD, POLICIES, VM_DELETED
from cnvnet.ipam.pool import Pool
from cnvnet.ipam.static_ip.ranges import ensure_gateways_lead, parse_pool, useless_exclusions
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE, StoreRef
from cnvnet.kernel import regular_file
from cnvnet.vm import identity, launcher
from cnvnet.vm.launcher import Subject

if TYPE_CHECKING:
    # Imported where a pod names a claim.
    from cnvnet.ipam.static_ip.claims import ClaimedAddresses

STATEDIR: Final = "/var/lib/cnvnet"
# Locally administered and unicast, and unlike those of others: ovn-kubernetes has 0a:58, Docker 02:42,
# kubemacpool 02.
MAC_PREFIX: Final = b"\x0a\x63"
STICKY: Final = "sticky"
OFF: Final = "off"

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A year: a longer one is a mistyped unit, and would keep the addresses of a year's VMs.
_LONGEST_COOLDOWN: Final = 366 * 86400


class Config(NamedTuple):
    """What the configuration and the runtime ask for."""

    pool: Pool
    # Into the result as written.
    routes: tuple[ResultRoute, ...]
    dns: DNS
    policy: Policy
    # Where the leases are.
    store: StoreRef
    # What the call says it is for; None for a container outside Kubernetes that is no VM.
    claim: identity.VM | PodRef | None
    # The VM's interface, None for what is none: in Kubernetes its API knows.
    subject: Subject | None
    # The Kubernetes node this process is on, "" where the environment does not say.
    node: str
    # None outside Kubernetes.
    pod: PodRef | None
    # Addresses that are asked for, the strongest source first.
    addresses: tuple[AddressRequest, ...]
    # The MAC that is asked for and the key that asks; both "" when none is.
    mac: str
    mac_where: str
    # Whether an ADD goes on with another MAC where that one is taken.
    mac_yields: bool
    # The release policy as the configuration has it, "" where it leaves it to the default.
    written_release: str
    # Lines that an ADD writes to stderr about its configuration.
    remarks: tuple[str, ...]
    # What the pod says about keeping its addresses (`args.cni.persistIP`), None where it does not.
    persists: bool | None = None
    # Whether the network has IPAMClaims, if pods name some.
    allows_claims: bool = True
    # The one that keeps the addresses of the VM's interface; in Kubernetes its API knows.
    ipam_claim: ClaimedAddresses | None = None

    @classmethod
    def parse(cls, request: Request, has_api: Callable[[], bool] = lambda: False) -> Config:
        """Raises CNIError (7, for CNI_ARGS 4) naming the key that is wrong or contradicts another.

        `has_api` says whether this node has credentials for the Kubernetes API; it is asked for pods only.
        """
        fields = request.fields
        ipam = _ipam(fields)
        # Read for some kinds of ranges only, or by the plugin above.
        ipam.know("type", "gateway", "rangeStart", "rangeEnd", "range_start", "range_end")
        args = parse_args(request.args, identity.KNOWN_ARGS)
        wanted = parse_pool(fields, ipam)
        _ensure_one_per_family(wanted, request.cni_version)
        routes, dns = routes_and_dns(ipam)
        ensure_gateways_lead(wanted, routes, default=fields.raw("isDefaultGateway") is True)
        claim = identity.claim(fields, args, storable(request.ifname))
        kind = _store_kind(ipam, in_kubernetes=identity.in_kubernetes(args), has_api=has_api)
        _ensure_no_gateway(fields, ipam, kind)
        mac, mac_where = requested_mac(fields, args)
        return cls(
            pool=wanted,
            routes=_routes(routes, ipam),
            dns=_dns(ipam, dns),
            policy=_policy(ipam),
            store=parse_store(ipam, statedir(request.env), kind),
            claim=claim,
            subject=launcher.explicit(claim) if isinstance(claim, identity.VM) else None,
            node=node(request),
            pod=identity.named(fields, request.args).pod,
            addresses=tuple(_address_requests(fields, args)),
            mac=mac,
            mac_where=mac_where,
            mac_yields=False,
            written_release=ipam.text("release"),
            remarks=useless_exclusions(ipam, wanted),
            persists=_persists(fields),
            allows_claims=fields.flag("allowPersistentIPs", True),
        )

    @property
    def vm(self) -> identity.VM | None:
        """Whose lease it is; None for a container that is no VM."""
        return self.subject.vm if self.subject is not None else None

    @property
    def holder_role(self) -> str:
        """The role in which the pod is going to hold the lease."""
        vm = self.vm
        if vm is None:
            return identity.ACTIVE
        # The source's lease is on another node, whose embedded store is not this one's.
        moved_in = vm.role == identity.TARGET and self.pod is not None and self.store.kind == SQLITE
        return identity.ACTIVE if moved_in else vm.role


def storable(text: str) -> str:
    """The text as a database can have it: bytes that are no UTF-8 (the kernel takes any) are spelled out."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def node(request: Request) -> str:
    """The name of our Kubernetes node, as the caller's CNVNET_NODE has it; "" where nothing says."""
    return storable(request.env.get("CNVNET_NODE", ""))


def store_refs(request: Request) -> tuple[StoreRef, ...]:
    """Where leases of this request's network can be, for DEL and GC: any key may have changed since the ADD.

    So may the credentials that have decided where the configuration does not. The cluster's store is asked
    where pods of this node have ever held anything in it.
    """
    usual = statedir(request.env)
    try:
        ref = parse_store(_ipam(request.fields), usual, SQLITE)
    except InvalidConfig:
        # No ADD can have succeeded with this, so what there is was made before, and probably at the usual
        # place.
        ref = StoreRef(SQLITE, usual)
    cluster = StoreRef(KUBERNETES, usual)
    return (ref, cluster) if cluster.has_holds else (ref,)


def all_store_refs(request: Request, recorded: StoreRef | None) -> tuple[StoreRef, ...]:
    """Where the lease of a pod's interface can be: where its record says, or has gone to since."""
    refs = store_refs(request)
    if recorded is not None:
        refs = (recorded, *refs)
    elif refs[0].location == statedir(request.env):
        # A configuration that has lost its dataDir says so, too: the node has a list of those.
        from cnvnet.ipam.store import data_dirs

        refs = (*refs, *(StoreRef(SQLITE, each) for each in data_dirs.read(refs[0].location).folders))
    return tuple(dict.fromkeys(refs))


def _ipam(fields: Fields) -> Fields:
    if not fields.has("ipam"):
        raise InvalidConfig("IPAM config missing 'ipam' key")
    return fields.fields("ipam")


# -- what comes with the addresses


def _ensure_one_per_family(wanted: Pool, cni_version: str) -> None:
    families = [each.version for each in wanted.sets]
    if cni_version in WITHOUT_INTERFACES and len(set(families)) < len(families):
        raise InvalidConfig(f"CNI version {cni_version} does not support more than 1 address per family")


def _routes(routes: tuple[ResultRoute, ...], ipam: Fields) -> tuple[ResultRoute, ...]:
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
        content = regular_file.read_file(path)
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise InvalidConfig(f"{where}: {path}: {reason.lower()}") from e
    return _resolv_conf(content.decode(errors="replace").split("\n"))


def _resolv_conf(lines: Iterable[str]) -> DNS:
    """resolv.conf(5) as host-local reads it: all nameservers and options, the last domain and search.

    Unlike cnvnet.guest.resolvconf, which keeps of a pod's file what a guest can use.
    """
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


def _persists(config: Fields) -> bool | None:
    """KubeVirt's users write it into a network element, some of them as a text."""
    args = cni_args(config)
    if isinstance(args.raw("persistIP"), str):
        text = args.text("persistIP")
        if text not in ("true", "false"):
            raise InvalidConfig(f'{args.path("persistIP")}: "{text[:64]}" is neither true nor false')
        return text == "true"
    return args.flag("persistIP") if args.has("persistIP") else None


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
    seconds = as_seconds(ipam.text("cooldown"), where)
    if seconds > _LONGEST_COOLDOWN:
        raise InvalidConfig(f"{where}: {seconds} is not between 0 and {_LONGEST_COOLDOWN}")
    return seconds


def as_seconds(text: str, where: str) -> int:
    """A time as people write it, in seconds: 90, 90s, 10m, 1h, 1d. Raises InvalidConfig."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (text, "s")
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise InvalidConfig(f'{where}: "{text[:64]}" is no time such as 90, "10m", "1h" or "1d"')
    return int(number) * _SECONDS[unit]


def _store_kind(ipam: Fields, *, in_kubernetes: bool, has_api: Callable[[], bool]) -> str:
    where = ipam.path("store")
    store, node_local = ipam.text("store"), ipam.flag("nodeLocal")
    if store not in ("", SQLITE, KUBERNETES):
        raise InvalidConfig(f'{where}: "{store[:64]}" is not one of {SQLITE}, {KUBERNETES}')
    if store == KUBERNETES and ipam.has("dataDir"):
        raise InvalidConfig(f"{ipam.path('dataDir')}: {where} {KUBERNETES} keeps no leases in a folder")
    if store == KUBERNETES or not in_kubernetes or node_local:
        return store or SQLITE
    if not store and has_api():
        return KUBERNETES
    remedy = "" if store else f", or give the node credentials for the API and {where} {KUBERNETES}"
    raise InvalidConfig(
        f"{where}: sqlite knows the leases of one node only, and with Kubernetes two nodes would "
        "give one address twice: give each node ranges of its own and say so by "
        f"{ipam.path('nodeLocal')}: true{remedy}"
    )


def _ensure_no_gateway(fields: Fields, ipam: Fields, kind: str) -> None:
    """The gateway of a network whose addresses move between nodes is a router, not a bridge of each node."""
    if kind != KUBERNETES or ipam.flag("nodeLocal"):
        return
    for key in ("isGateway", "isDefaultGateway"):
        if fields.raw(key) is True:
            raise InvalidConfig(
                f"{key}: every node would have the gateway's address, and VMs move between nodes: let a "
                f"router of the network be the gateway, or say {ipam.path('nodeLocal')}: true"
            )


def release_remark(config: Config) -> str:
    """For an ADD that has no way to find out whether the pod is a VM's; "" where that is no matter."""
    # Only where a policy is written: the default is not worth a line at every ADD.
    if config.pod is None or config.written_release in ("", POD):
        return ""
    known = f"{config.pod.name or 'the pod'} is not known to be a virtual machine"
    return (
        f"ipam.release: {config.written_release} has no effect in Kubernetes without credentials for its "
        f"API: {known}, its address lasts as long as the container"
    )


def parse_store(ipam: Fields, statedir: str, kind: str = "") -> StoreRef:
    """Where an `ipam` object says that its leases are, `statedir` where it does not. Raises CNIError 7.

    `kind` is the store's; "" takes what the object says alone.
    """
    path = ipam.text("dataDir")
    if path and not (os.path.isabs(path) and path.isprintable()):
        raise InvalidConfig(f"{ipam.path('dataDir')}: not an absolute path")
    if (kind or ipam.text("store", SQLITE)) == KUBERNETES:
        return StoreRef(KUBERNETES, statedir)
    return StoreRef(SQLITE, path or statedir)


def statedir(env: Mapping[str, str]) -> str:
    """The caller's STATEDIR, from its CNVNET_STATEDIR."""
    return env.get("CNVNET_STATEDIR") or STATEDIR


# -- what the runtime asks for


def _address_requests(fields: Fields, args: Mapping[str, str]) -> Iterable[AddressRequest]:
    """What is asked for, strongest source first. A prefix length may be written; the subnet's counts."""
    capability = "runtimeConfig.ips"
    yield from _requests_of(enumerate(capability_ips(fields)), capability)
    yield from _requests_of(enumerate(cni_args(fields).texts("ips")), "args.cni.ips")
    texts = [text.strip() for text in args.get("IP", "").split(",") if text.strip()]
    for text in texts:
        yield AddressRequest(as_plain_address(text, "CNI_ARGS IP"), "CNI_ARGS IP", "CNI_ARGS IP")


def _requests_of(texts: Iterable[tuple[int, str]], source: str) -> Iterable[AddressRequest]:
    for index, text in texts:
        where = f"{source}[{index}]"
        yield AddressRequest(as_plain_address(text, where), where, source)
