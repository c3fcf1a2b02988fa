"""The configuration of cnv-bridge: every key, parsed once.

Keys, defaults and messages are those of the reference bridge plugin v1.9.1 (containernetworking/plugins,
plugins/main/bridge/bridge.go, loadNetConf and cmdAdd); ipspoofchk, dhcpGuard, raGuard and compat are ours.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cnvnet.cni.args import parse_args
from cnvnet.cni.conventions import RequestedMac, requested_mac
from cnvnet.cni.errors import INVALID_ENVIRONMENT, CNIError, InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import DNS
from cnvnet.executables import STATIC_IP
from cnvnet.kernel.addresses import MIN_IPV6_MTU
from cnvnet.kernel.links import IFNAMSIZ
from cnvnet.plugins.cnv_bridge.guards import Guards
from cnvnet.vm import identity

# The reference plugin's default, so that its configurations find their bridge.
DEFAULT_BRIDGE: Final = "cni0"
# IEEE 802.1Q: VID 0 is a priority tag alone, and 4095 is reserved.
LAST_VLAN: Final = 4094
_ARGS: Final = frozenset({"MAC"})
_STATIC_IP_ARGS: Final = frozenset({"IP", *identity.ARGS})
# What the folders of sysctls are called that are for all interfaces and for new ones.
_NO_NAMES: Final = ("all", "default")
# ETH_MIN_MTU and ETH_MAX_MTU in linux/if_ether.h, which bridges and veths go by.
_MTU: Final = (68, 65535)


class Config(NamedTuple):
    """What the configuration asks for."""

    network: str
    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    # Only where an address manager gives addresses.
    ip_masq: bool
    ip_masq_backend: str
    # Bytes; 0 leaves it to the kernel.
    mtu: int
    hairpin_mode: bool
    promisc_mode: bool
    # 1 to 4094; 0 is none.
    vlan: int
    # Ranges (first, last) of VLANs, sorted, with gaps between them. None without the key vlanTrunk; an empty
    # list of it makes a new bridge filter VLANs.
    trunk: tuple[tuple[int, int], ...] | None
    preserve_default_vlan: bool
    macspoofchk: bool
    ipspoofchk: bool
    dhcp_guard: bool
    ra_guard: bool
    enable_dad: bool
    disable_container_interface: bool
    port_isolation: bool
    # The MAC that the call asks for and the key that asks; both "" where none does.
    mac: RequestedMac
    # "" for a network without addresses.
    ipam_type: str
    # None: what the address manager says.
    dns: DNS | None

    @classmethod
    def parse(cls, request: Request) -> Config:
        """Raises CNIError (7, for CNI_ARGS 4) naming the key that is wrong or contradicts another."""
        fields = request.fields
        ipspoofchk = fields.flag("ipspoofchk")
        ipam_type = fields.fields("ipam").text("type")
        is_default_gateway = fields.flag("isDefaultGateway")
        config = cls(
            network=request.name,
            bridge=_bridge(fields),
            is_gateway=fields.flag("isGateway") or is_default_gateway,
            is_default_gateway=is_default_gateway,
            force_address=fields.flag("forceAddress"),
            ip_masq=fields.flag("ipMasq") and bool(ipam_type),
            ip_masq_backend=_ip_masq_backend(fields),
            mtu=_mtu(fields),
            hairpin_mode=fields.flag("hairpinMode"),
            promisc_mode=fields.flag("promiscMode"),
            vlan=_vlan(fields),
            trunk=_trunk(fields),
            preserve_default_vlan=fields.flag("preserveDefaultVlan", default=_compat(fields) == "v1.5"),
            macspoofchk=fields.flag("macspoofchk"),
            ipspoofchk=ipspoofchk,
            dhcp_guard=fields.flag("dhcpGuard", default=ipspoofchk),
            ra_guard=fields.flag("raGuard", default=ipspoofchk),
            enable_dad=fields.flag("enabledad"),
            disable_container_interface=fields.flag("disableContainerInterface"),
            port_isolation=fields.flag("portIsolation"),
            mac=_mac(fields, request.args, ipam_type),
            ipam_type=ipam_type,
            dns=_dns(fields.fields("dns")),
        )
        _refuse_contradictions(config)
        return config

    def ensure_effective(self, fields: Fields, versions: frozenset[int]) -> None:
        """Raises InvalidConfig for what an ADD would take and which then did nothing, or could not work.

        `fields` is the whole configuration, `versions` are those of IP that there will be. No other command
        minds: there may be attachments that older programs have made of such a configuration.
        """
        if fields.flag("ipMasq") and not self.ipam_type:
            raise InvalidConfig("ipMasq: without ipam there are no addresses to masquerade")
        for item in fields.each("vlanTrunk") or ():
            if not any(map(item.has, ("id", "minID", "maxID"))):
                raise InvalidConfig(f"{item.where}: neither id nor minID and maxID")
        if 6 in versions and 0 < self.mtu < MIN_IPV6_MTU:
            raise InvalidConfig(f"mtu: {self.mtu} is less than {MIN_IPV6_MTU}, which an IPv6 range needs")

    @property
    def filters_vlans(self) -> bool:
        """Whether a bridge made for this configuration filters VLANs."""
        return self.vlan != 0 or self.trunk is not None

    @property
    def guards(self) -> Guards:
        """Which guards the port gets."""
        return Guards(self.macspoofchk, self.ipspoofchk, self.dhcp_guard, self.ra_guard)

    @property
    def gateway_link(self) -> str:
        """The link that bears the gateway addresses."""
        return f"{self.bridge}.{self.vlan}" if self.vlan else self.bridge


class DeleteConfig(NamedTuple):
    """What DEL and GC need. A key that ADD would refuse must not keep an attachment from being deleted."""

    bridge: str
    ipam_type: str
    ip_masq: bool

    @classmethod
    def parse(cls, request: Request) -> DeleteConfig:
        """Never raises: a key of the wrong type is taken for absent."""
        fields = request.fields
        try:
            ipam_type = fields.fields("ipam").text("type")
        except InvalidConfig:
            ipam_type = ""  # whatever it says, ADD has refused it
        try:
            bridge = _bridge(fields)
        except InvalidConfig:
            bridge = ""
        return cls(bridge=bridge, ipam_type=ipam_type, ip_masq=fields.raw("ipMasq") is True)


def _refuse_contradictions(config: Config) -> None:
    if config.ipam_type and config.disable_container_interface:
        raise InvalidConfig("cannot use IPAM when DisableContainerInterface flag is set")
    if config.hairpin_mode and config.promisc_mode:
        raise InvalidConfig("cannot set hairpin mode and promiscuous mode at the same time")
    if config.ipspoofchk and not config.ipam_type:
        raise InvalidConfig("ipspoofchk: without ipam there are no addresses to allow")
    if config.is_gateway and config.ipam_type and len(config.gateway_link.encode()) >= IFNAMSIZ:
        raise InvalidConfig(
            f"isGateway: the gateway of VLAN {config.vlan} would be called {config.gateway_link}, "
            "which is longer than 15 characters"
        )


def ensure_usable_ifname(ifname: str) -> None:
    """Code 4 for what the kernel takes for a template, or sysctls for something else than an interface."""
    if "%" in ifname:
        raise CNIError(INVALID_ENVIRONMENT, f'CNI_IFNAME: "{ifname}" has a %, which makes a template of it')
    if ifname in _NO_NAMES:
        raise CNIError(INVALID_ENVIRONMENT, f'CNI_IFNAME: "{ifname}" cannot be the name of an interface')


def _bridge(fields: Fields) -> str:
    name = fields.text("bridge", DEFAULT_BRIDGE)
    where = fields.path("bridge")
    # dev_valid_name of the kernel; % would be a template for a name, and two names are taken by the sysctls.
    if not name:
        raise InvalidConfig(f"{where}: an empty name")
    if len(name.encode(errors="surrogatepass")) >= IFNAMSIZ:
        raise InvalidConfig(f'{where}: "{name[:40]}" is longer than 15 characters')
    if name in (".", "..", *_NO_NAMES):
        raise InvalidConfig(f'{where}: "{name}" cannot be the name of an interface')
    if not name.isprintable() or any(character in "/:%" or character.isspace() for character in name):
        raise InvalidConfig(f'{where}: "{name}" has a character no name of an interface can have')
    return name


def _mtu(fields: Fields) -> int:
    mtu = fields.integer("mtu")
    if mtu and not _MTU[0] <= mtu <= _MTU[1]:
        raise InvalidConfig(f"mtu: {mtu} is not between {_MTU[0]} and {_MTU[1]}")
    return mtu


def _vlan(fields: Fields) -> int:
    vlan = fields.integer("vlan")
    if not 0 <= vlan <= LAST_VLAN:
        raise InvalidConfig(f"invalid VLAN ID {vlan} (must be between 0 and {LAST_VLAN})")
    return vlan


def _trunk(fields: Fields) -> tuple[tuple[int, int], ...] | None:
    items = fields.each("vlanTrunk")
    if items is None:
        return None
    vids: set[int] = set()
    for item in items:
        first, last = _optional(item, "minID"), _optional(item, "maxID")
        if first is not None and last is not None:
            if not 0 < first <= LAST_VLAN:
                raise InvalidConfig("incorrect trunk minID parameter", _no_vlan(item, "minID", first))
            if not 0 < last <= LAST_VLAN:
                raise InvalidConfig("incorrect trunk maxID parameter", _no_vlan(item, "maxID", last))
            if last < first:
                details = f"{item.where}: minID {first} is greater than maxID {last}"
                raise InvalidConfig("minID is greater than maxID in trunk parameter", details)
            vids.update(range(first, last + 1))
        elif first is not None or last is not None:
            missing = "maxID" if last is None else "minID"
            msg = f"minID and maxID should be configured simultaneously, {missing} is missing"
            raise InvalidConfig(msg, f"{item.path(missing)}: required")
        single = _optional(item, "id")
        if single is not None:
            if not 0 < single <= LAST_VLAN:
                raise InvalidConfig("incorrect trunk id parameter", _no_vlan(item, "id", single))
            vids.add(single)
    return ranges(vids)


def _no_vlan(item: Fields, key: str, vid: int) -> str:
    return f"{item.path(key)}: {vid} is not between 1 and {LAST_VLAN}"


def ranges(vids: set[int]) -> tuple[tuple[int, int], ...]:
    """The numbers as the fewest ranges (first, last), sorted."""
    fewest: list[tuple[int, int]] = []
    for vid in sorted(vids):
        if fewest and fewest[-1][1] == vid - 1:
            fewest[-1] = (fewest[-1][0], vid)
        else:
            fewest.append((vid, vid))
    return tuple(fewest)


def _optional(item: Fields, key: str) -> int | None:
    return item.integer(key) if item.has(key) else None


def _compat(fields: Fields) -> str:
    compat = fields.text("compat")
    if compat not in ("", "v1.5"):
        raise InvalidConfig(f'compat: "{compat}" is not known, only "v1.5" is')
    return compat


def _ip_masq_backend(fields: Fields) -> str:
    backend = fields.text("ipMasqBackend")
    if backend not in ("", "iptables", "nftables"):
        raise InvalidConfig(f'unknown ipmasq backend "{backend}"')
    return backend


def _mac(fields: Fields, args: str, ipam_type: str) -> RequestedMac:
    # Our own address manager reads its arguments in the same call, so they are no strangers.
    known = _ARGS | _STATIC_IP_ARGS if ipam_type == STATIC_IP else _ARGS
    return requested_mac(fields, parse_args(args, known))


def _dns(fields: Fields) -> DNS | None:
    dns = DNS(
        nameservers=fields.texts("nameservers"),
        domain=fields.text("domain"),
        search=fields.texts("search"),
        options=fields.texts("options"),
    )
    # A list that is there, though empty, replaces what IPAM says, as in the reference's dnsConfSet.
    present = dns.domain or any(fields.has(key) for key in ("nameservers", "search", "options"))
    return dns if present else None
