"""The messages of links: queries, operations as bytes, and links as the kernel reports them.

What every ADD and DEL sends and reads (one link, a veth, a change, a deletion) is packed here with `struct`:
pyroute2's classes take 0.3 ms to encode a veth and 17 ms to import. The tests hold each such message
against pyroute2's.
"""

from __future__ import annotations

import sys
from typing import Final

from cnvnet.kernel import pyroute2_light
from cnvnet.kernel.links import (
    Bridge,
    BridgePort,
    ChangeLink,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
    Link,
    Tun,
)
from cnvnet.kernel.netlink import (
    CREATE,
    ECHO,
    EXCL,
    HEADER_SIZE,
    NetlinkMessage,
    attribute,
    attributes,
    nested,
    string,
    text,
)
from cnvnet.kernel.rtnetlink import IFINFO, IFLA_EXT_MASK, U32

# include/uapi/linux/{rtnetlink,if,if_link,veth}.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
_IFF_UP: Final = 0x1
_IFF_PROMISC: Final = 0x100
_IFF_ALLMULTI: Final = 0x200
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_TXQLEN: Final = 13
_IFLA_OPERSTATE: Final = 16
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_GROUP: Final = 27
_IFLA_NET_NS_FD: Final = 28
_IFLA_NUM_TX_QUEUES: Final = 31
_IFLA_NUM_RX_QUEUES: Final = 32
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFLA_INFO_SLAVE_KIND: Final = 4
_IFLA_INFO_SLAVE_DATA: Final = 5
_VETH_INFO_PEER: Final = 1
_IFLA_BR_VLAN_FILTERING: Final = 7
_IFLA_BR_GROUP_FWD_MASK: Final = 9
_IFLA_BR_MCAST_SNOOPING: Final = 23
_IFLA_BR_VLAN_DEFAULT_PVID: Final = 39
_IFLA_BR_MULTI_BOOLOPT: Final = 46
# Linux 5.0: the bridge learns no MAC from frames to 01:80:c2:00:00:0X, which pass by nftables' hooks.
_BR_BOOLOPT_NO_LL_LEARN: Final = 1 << 0
_IFLA_TUN_OWNER: Final = 1
_IFLA_TUN_GROUP: Final = 2
_IFLA_TUN_MULTI_QUEUE: Final = 7
_IFLA_BRPORT_MODE: Final = 4
_IFLA_BRPORT_LEARNING: Final = 8
_IFLA_BRPORT_ISOLATED: Final = 33
# Leave the counters out: they are half of a link's message, and no caller needs them.
_RTEXT_FILTER_SKIP_STATS: Final = 8
# IF_OPER_*, RFC 2863
_OPERSTATES: Final = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")

# What is read of the fifty attributes of a link, the forty of a bridge and the forty of its port.
_OF_LINK: Final = frozenset(
    (
        _IFLA_ADDRESS,
        _IFLA_IFNAME,
        _IFLA_MTU,
        _IFLA_LINK,
        _IFLA_MASTER,
        _IFLA_TXQLEN,
        _IFLA_OPERSTATE,
        _IFLA_LINKINFO,
        _IFLA_IFALIAS,
        _IFLA_GROUP,
    )
)
_OF_BRIDGE: Final = frozenset(
    (
        _IFLA_BR_VLAN_FILTERING,
        _IFLA_BR_GROUP_FWD_MASK,
        _IFLA_BR_MCAST_SNOOPING,
        _IFLA_BR_VLAN_DEFAULT_PVID,
        _IFLA_BR_MULTI_BOOLOPT,
    )
)
_OF_PORT: Final = frozenset((_IFLA_BRPORT_MODE, _IFLA_BRPORT_LEARNING, _IFLA_BRPORT_ISOLATED))

_MESSAGE: Final = ("netlink.rtnl.ifinfmsg", "ifinfmsg")


def query(link: str | int) -> NetlinkMessage:
    """Asks for one link by name or ifindex."""
    ifindex, name = (link, b"") if isinstance(link, int) else (0, string(_IFLA_IFNAME, link))
    return NetlinkMessage(RTM_GETLINK, 0, IFINFO.pack(0, 0, ifindex, 0, 0) + name + _SKIP_STATS)


def query_all() -> NetlinkMessage:
    """Asks for all links of the namespace."""
    return NetlinkMessage(RTM_GETLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + _SKIP_STATS)


def decode(raw: bytes) -> Link:
    """The link in an RTM_NEWLINK message, header included."""
    _, _, ifindex, flags, _ = IFINFO.unpack_from(raw, HEADER_SIZE)
    attrs = attributes(raw, HEADER_SIZE + IFINFO.size, _OF_LINK)
    info = attributes(attrs[_IFLA_LINKINFO]) if _IFLA_LINKINFO in attrs else {}
    kind = text(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else ""
    is_port = info.get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"bridge"
    operstate = _number(attrs.get(_IFLA_OPERSTATE))
    return Link(
        ifindex=ifindex,
        name=text(attrs[_IFLA_IFNAME]),
        kind=kind,
        mac=attrs.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(attrs.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else str(operstate),
        master=_number(attrs.get(_IFLA_MASTER)),
        peer=_number(attrs.get(_IFLA_LINK)),
        # Both as `ip link set` sets them: what a bridge asks of its port does not show.
        promisc=bool(flags & _IFF_PROMISC),
        allmulti=bool(flags & _IFF_ALLMULTI),
        txqlen=_number(attrs.get(_IFLA_TXQLEN)),
        group=_number(attrs.get(_IFLA_GROUP)),
        alias=text(attrs.get(_IFLA_IFALIAS, b"")),
        bridge=_decode_bridge(info.get(_IFLA_INFO_DATA, b"")) if kind == "bridge" else None,
        port=_decode_port(info.get(_IFLA_INFO_SLAVE_DATA, b"")) if is_port else None,
        tun=_decode_tun(info.get(_IFLA_INFO_DATA, b"")) if kind == "tun" else None,
    )


def encode_veth(wanted: CreateVeth) -> NetlinkMessage:
    """Both ends in one RTM_NEWLINK."""
    peer = wanted.peer
    far = IFINFO.pack(0, 0, 0, 0, 0) + string(_IFLA_IFNAME, peer.name) + _basics(peer.mac, peer.mtu)
    far += _ONE_QUEUE
    if peer.netns_fd is not None:
        far += attribute(_IFLA_NET_NS_FD, U32.pack(peer.netns_fd))
    flags = _IFF_UP if wanted.up else 0
    body = IFINFO.pack(0, 0, 0, flags, flags) + string(_IFLA_IFNAME, wanted.name)
    body += _basics(wanted.mac, wanted.mtu) + _ONE_QUEUE
    if wanted.master:
        body += attribute(_IFLA_MASTER, U32.pack(wanted.master))
    kind = attribute(_IFLA_INFO_KIND, b"veth")
    body += nested(_IFLA_LINKINFO, kind, nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER | 0x8000, far)))
    return NetlinkMessage(RTM_NEWLINK, CREATE | EXCL | ECHO, body)


def encode_bridge(wanted: CreateBridge) -> NetlinkMessage:
    """A bridge, with its VLAN filtering set before it can have a port."""
    data: list[tuple[str, object]] = [("IFLA_BR_VLAN_FILTERING", 1)] if wanted.vlan_filtering else []
    if wanted.group_fwd_mask:
        data.append(("IFLA_BR_GROUP_FWD_MASK", wanted.group_fwd_mask))
    if not wanted.multicast_snooping:
        data.append(("IFLA_BR_MCAST_SNOOPING", 0))
    return _encode_new(wanted.name, wanted.mac, wanted.mtu, up=wanted.up, kind="bridge", data=data)


def encode_dummy(wanted: CreateDummy) -> NetlinkMessage:
    """A dummy link."""
    return _encode_new(wanted.name, wanted.mac, wanted.mtu, up=False, kind="dummy", data=[])


def encode_change(wanted: ChangeLink) -> list[NetlinkMessage]:
    """The one to three messages of a change."""
    messages: list[NetlinkMessage] = []
    body = _basics(wanted.mac or "", wanted.mtu or 0)
    if wanted.name is not None:
        body += string(_IFLA_IFNAME, wanted.name)
    if wanted.alias is not None:
        # Without a NUL, so that an empty one clears it.
        body += attribute(_IFLA_IFALIAS, wanted.alias.encode())
    if wanted.group is not None:
        body += attribute(_IFLA_GROUP, U32.pack(wanted.group))
    if wanted.master is not None:
        body += attribute(_IFLA_MASTER, U32.pack(wanted.master))
    if wanted.txqlen is not None:
        body += attribute(_IFLA_TXQLEN, U32.pack(wanted.txqlen))
    flags = mask = 0
    for flag, value in (
        (_IFF_UP, wanted.up),
        (_IFF_PROMISC, wanted.promisc),
        (_IFF_ALLMULTI, wanted.allmulti),
    ):
        if value is not None:
            mask |= flag
            flags |= flag if value else 0
    if wanted.up is False and body:
        # In one message the kernel would rename before it sets down, and old kernels rename no link that
        # is up.
        messages.append(_set(wanted.ifindex, 0, _IFF_UP, b""))
        mask &= ~_IFF_UP
    if body or mask:
        messages.append(_set(wanted.ifindex, flags, mask, body))
    if port := _port_flags(wanted):
        info = attribute(_IFLA_INFO_SLAVE_KIND, b"bridge") + nested(_IFLA_INFO_SLAVE_DATA, port)
        header = IFINFO.pack(0, 0, wanted.ifindex, 0, 0)
        messages.append(NetlinkMessage(RTM_NEWLINK, 0, header + nested(_IFLA_LINKINFO, info)))
    if wanted.linklocal_learning is not None:
        messages.append(_set_linklocal_learning(wanted.ifindex, wanted=wanted.linklocal_learning))
    return messages


def encode_delete(wanted: DeleteLink) -> NetlinkMessage:
    """RTM_DELLINK of one link."""
    return NetlinkMessage(RTM_DELLINK, 0, IFINFO.pack(0, 0, wanted.ifindex, 0, 0))


def encode_delete_group(wanted: DeleteGroup) -> NetlinkMessage:
    """RTM_DELLINK of a group."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFLA_GROUP, U32.pack(wanted.group))
    return NetlinkMessage(RTM_DELLINK, 0, body)


def _encode_new(
    name: str, mac: str, mtu: int, *, up: bool, kind: str, data: list[tuple[str, object]]
) -> NetlinkMessage:
    info: list[tuple[str, object]] = [("IFLA_INFO_KIND", kind)]
    if data:
        info.append(("IFLA_INFO_DATA", {"attrs": data}))
    wanted: list[tuple[str, object]] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": info})]
    if mac:
        wanted.append(("IFLA_ADDRESS", mac))
    if mtu:
        wanted.append(("IFLA_MTU", mtu))
    flags = _IFF_UP if up else 0
    body = pyroute2_light.encode(*_MESSAGE, {"flags": flags, "change": flags}, wanted)
    return NetlinkMessage(RTM_NEWLINK, CREATE | EXCL | ECHO, body)


def _set(ifindex: int, flags: int, mask: int, body: bytes) -> NetlinkMessage:
    return NetlinkMessage(RTM_SETLINK, 0, IFINFO.pack(0, 0, ifindex, flags & mask, mask) + body)


def _set_linklocal_learning(ifindex: int, *, wanted: bool) -> NetlinkMessage:
    # struct br_boolopt_multi: the values, and which of them count
    options = U32.pack(0 if wanted else _BR_BOOLOPT_NO_LL_LEARN) + U32.pack(_BR_BOOLOPT_NO_LL_LEARN)
    data = nested(_IFLA_INFO_DATA, attribute(_IFLA_BR_MULTI_BOOLOPT, options))
    info = nested(_IFLA_LINKINFO, string(_IFLA_INFO_KIND, "bridge"), data)
    return NetlinkMessage(RTM_NEWLINK, 0, IFINFO.pack(0, 0, ifindex, 0, 0) + info)


def _port_flags(wanted: ChangeLink) -> bytes:
    flags = (
        (_IFLA_BRPORT_MODE, wanted.hairpin),
        (_IFLA_BRPORT_LEARNING, wanted.learning),
        (_IFLA_BRPORT_ISOLATED, wanted.isolated),
    )
    return b"".join(attribute(kind, bytes([flag])) for kind, flag in flags if flag is not None)


def _basics(mac: str, mtu: int) -> bytes:
    packed = attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    return packed + attribute(_IFLA_MTU, U32.pack(mtu)) if mtu else packed


def _number(payload: bytes | None) -> int:
    return int.from_bytes(payload, sys.byteorder) if payload else 0


def _decode_bridge(data: bytes) -> Bridge:
    attrs = attributes(data, wanted=_OF_BRIDGE)
    return Bridge(
        vlan_filtering=bool(_number(attrs.get(_IFLA_BR_VLAN_FILTERING))),
        default_pvid=_number(attrs.get(_IFLA_BR_VLAN_DEFAULT_PVID)),
        linklocal_learning=not _number(attrs.get(_IFLA_BR_MULTI_BOOLOPT, b"")[:4]) & _BR_BOOLOPT_NO_LL_LEARN,
        # A kernel without it floods multicast anyway.
        multicast_snooping=bool(_number(attrs.get(_IFLA_BR_MCAST_SNOOPING))),
        group_fwd_mask=_number(attrs.get(_IFLA_BR_GROUP_FWD_MASK)),
    )


def _decode_port(data: bytes) -> BridgePort:
    attrs = attributes(data, wanted=_OF_PORT)
    return BridgePort(
        hairpin=bool(_number(attrs.get(_IFLA_BRPORT_MODE))),
        isolated=bool(_number(attrs.get(_IFLA_BRPORT_ISOLATED))),
        learning=bool(_number(attrs.get(_IFLA_BRPORT_LEARNING))),
    )


def _decode_tun(data: bytes) -> Tun:
    attrs = attributes(data)
    owner, group = (
        _number(attrs[kind]) if kind in attrs else None for kind in (_IFLA_TUN_OWNER, _IFLA_TUN_GROUP)
    )
    return Tun(owner, group, bool(_number(attrs.get(_IFLA_TUN_MULTI_QUEUE))))


# Without a link's counters, which no part reads: the kernel sums some of them over all processors.
_SKIP_STATS: Final = attribute(IFLA_EXT_MASK, U32.pack(_RTEXT_FILTER_SKIP_STATS))
# A veth uses one queue of each kind. Since Linux 5.15 the kernel makes one for each processor, in case that
# `ethtool -L` asks for more later, and removes all but one again, which is a third of a veth's creation with
# two processors.
_ONE_QUEUE: Final = attribute(_IFLA_NUM_TX_QUEUES, U32.pack(1)) + attribute(_IFLA_NUM_RX_QUEUES, U32.pack(1))
