"""Links as values: what one looks like, the operations that make, change and delete one, and their messages.

What every ADD and DEL sends and reads (one link, a veth, a change, a deletion) is packed here by hand:
pyroute2's classes take 0.3 ms to encode a veth and 17 ms to import. The tests hold each such message
against pyroute2's.
"""

from __future__ import annotations

import struct
import sys
from typing import Final, NamedTuple

from cnvnet.kernel import pyroute2_light
from cnvnet.kernel.netlink import (
    CREATE,
    ECHO,
    EXCL,
    HEADER_SIZE,
    Message,
    attribute,
    attributes,
    nested,
    text,
)

# include/uapi/linux/{rtnetlink,if,if_link,veth}.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
_IFF_UP: Final = 0x1
_IFF_PROMISC: Final = 0x100
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_OPERSTATE: Final = 16
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_GROUP: Final = 27
_IFLA_NET_NS_FD: Final = 28
_IFLA_EXT_MASK: Final = 29
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
_BR_BOOLOPT_NO_LL_LEARN: Final = 1 << 0
_IFLA_TUN_OWNER: Final = 1
_IFLA_TUN_GROUP: Final = 2
_IFLA_TUN_MULTI_QUEUE: Final = 7
_IFLA_BRPORT_MODE: Final = 4
_IFLA_BRPORT_LEARNING: Final = 8
_IFLA_BRPORT_ISOLATED: Final = 33
# Counters are half of a link's message and nobody here reads them.
_RTEXT_FILTER_SKIP_STATS: Final = 8
# IF_OPER_*, RFC 2863
_OPERSTATES: Final = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")
_NAME_SIZE: Final = 16  # IFNAMSIZ, with its NUL
# The link group of retired links (cnvnet.kernel.retired): "cnvx", a number nobody takes by chance.
RETIRED_GROUP: Final = 0x636E7678

# Of the fifty attributes of a link, forty of a bridge and forty of its port.
_OF_LINK: Final = frozenset(
    (
        _IFLA_ADDRESS,
        _IFLA_IFNAME,
        _IFLA_MTU,
        _IFLA_LINK,
        _IFLA_MASTER,
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

_IFINFO: Final = struct.Struct("=BxHiII")
_U32: Final = struct.Struct("=I")
_MESSAGE: Final = ("netlink.rtnl.ifinfmsg", "ifinfmsg")


class Port(NamedTuple):
    """The flags of a bridge port (IFLA_BRPORT_*)."""

    hairpin: bool
    isolated: bool
    learning: bool


class Bridge(NamedTuple):
    """What only a bridge has (IFLA_BR_*).

    `linklocal_learning`: it learns the sources of frames to 01:80:c2:00:00:0X as well, which no filter sees.
    `group_fwd_mask` has a bit for each X that is forwarded all the same.
    """

    vlan_filtering: bool
    default_pvid: int
    linklocal_learning: bool = True
    multicast_snooping: bool = True
    group_fwd_mask: int = 0


class Tun(NamedTuple):
    """What only a tap has (IFLA_TUN_*): who may open it, None for nobody but root, and how."""

    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False


class Link(NamedTuple):
    """A link as the kernel reports it.

    `kind` is IFLA_INFO_KIND ("veth", "bridge", "tun", "vlan", ...; "" for a real device or the loopback),
    `mac` is lower case with colons, `operstate` a kernel word in capitals ("UP", "DOWN", "LOWERLAYERDOWN",
    "UNKNOWN", ...). `master` and `peer` are ifindexes, 0 for none; `peer` (IFLA_LINK) counts in the peer's
    own namespace.
    """

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    operstate: str
    master: int = 0
    peer: int = 0
    promisc: bool = False
    group: int = 0
    alias: str = ""
    bridge: Bridge | None = None
    port: Port | None = None
    tun: Tun | None = None


class CreateBridge(NamedTuple):
    """A new bridge; EEXIST when the name is taken. A given `mac` stays, whatever ports come and go.

    `mtu` (0: 1500) is only what it starts with: with ports it has the smallest of theirs, until ChangeLink
    sets it. `group_fwd_mask` is refused (EINVAL) with any of its lowest three bits.
    """

    name: str
    mac: str = ""
    mtu: int = 0
    vlan_filtering: bool = False
    up: bool = True
    multicast_snooping: bool = True
    group_fwd_mask: int = 0


class VethPeer(NamedTuple):
    """The far end of a veth, made directly in the namespace `netns_fd` refers to (None: the same
    namespace).
    """

    name: str
    mac: str = ""
    mtu: int = 0
    netns_fd: int | None = None


class CreateVeth(NamedTuple):
    """Both ends of a veth in one message. The near end may be enslaved and up at once, the peer is always
    down.

    EEXIST when either name is taken in its namespace, ENODEV when there is no such master; nothing is left
    then. The kernel answers ENOTCONN and spends 16 ms on its rollback when the peer is asked to be up
    here.
    """

    name: str
    peer: VethPeer
    mac: str = ""
    mtu: int = 0
    master: int = 0
    up: bool = True


class CreateDummy(NamedTuple):
    """A new dummy link; EOPNOTSUPP where the kernel has none."""

    name: str
    mac: str = ""
    mtu: int = 0


class ChangeLink(NamedTuple):
    """What is not None is changed; `master` 0 detaches, `netns_fd` moves the link there (which sets it
    down).

    Down comes first, then everything else with a move before it, up last of these; then the flags of the
    bridge port (EOPNOTSUPP when the link is no port), and what only a bridge has. ENODEV when there is no
    such link; an old kernel's EBUSY when one that is up is renamed. A change refused half-way leaves the
    steps before it done.
    """

    ifindex: int
    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    up: bool | None = None
    master: int | None = None
    promisc: bool | None = None
    group: int | None = None
    alias: str | None = None
    netns_fd: int | None = None
    hairpin: bool | None = None
    isolated: bool | None = None
    learning: bool | None = None
    linklocal_learning: bool | None = None


class DeleteLink(NamedTuple):
    """ENODEV when it is gone already."""

    ifindex: int


class DeleteGroup(NamedTuple):
    """All links of a group in one go, which costs little more than one; ENODEV when it is empty.

    Group 0, where every link is born, is refused with EPERM.
    """

    group: int


def query(link: str | int) -> Message:
    """Asks for one link by name or ifindex."""
    ifindex, name = (link, b"") if isinstance(link, int) else (0, _string(_IFLA_IFNAME, link))
    return Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, ifindex, 0, 0) + name + _SKIP_STATS)


def query_all() -> Message:
    """Asks for all links of the namespace."""
    return Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _SKIP_STATS)


def can_exist(name: str) -> bool:
    """Whether a link can have this name at all; the kernel answers a query for another with ERANGE or
    EINVAL.
    """
    return 0 < len(name.encode()) < _NAME_SIZE and "/" not in name


def decode(raw: bytes) -> Link:
    """The link in an RTM_NEWLINK message, header included."""
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(raw, HEADER_SIZE)
    found = attributes(raw, HEADER_SIZE + _IFINFO.size, _OF_LINK)
    info = attributes(found[_IFLA_LINKINFO]) if _IFLA_LINKINFO in found else {}
    kind = text(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else ""
    is_port = info.get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"bridge"
    operstate = _number(found.get(_IFLA_OPERSTATE))
    return Link(
        ifindex=ifindex,
        name=text(found[_IFLA_IFNAME]),
        kind=kind,
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else str(operstate),
        master=_number(found.get(_IFLA_MASTER)),
        peer=_number(found.get(_IFLA_LINK)),
        promisc=bool(flags & _IFF_PROMISC),  # as somebody set it; a port's own promiscuity is not shown here
        group=_number(found.get(_IFLA_GROUP)),
        alias=text(found.get(_IFLA_IFALIAS, b"")),
        bridge=_decode_bridge(info.get(_IFLA_INFO_DATA, b"")) if kind == "bridge" else None,
        port=_decode_port(info.get(_IFLA_INFO_SLAVE_DATA, b"")) if is_port else None,
        tun=_decode_tun(info.get(_IFLA_INFO_DATA, b"")) if kind == "tun" else None,
    )


def encode_veth(wanted: CreateVeth) -> Message:
    """Both ends in one RTM_NEWLINK."""
    peer = wanted.peer
    far = _IFINFO.pack(0, 0, 0, 0, 0) + _string(_IFLA_IFNAME, peer.name) + _basics(peer.mac, peer.mtu)
    far += _ONE_QUEUE
    if peer.netns_fd is not None:
        far += attribute(_IFLA_NET_NS_FD, _U32.pack(peer.netns_fd))
    flags = _IFF_UP if wanted.up else 0
    body = _IFINFO.pack(0, 0, 0, flags, flags) + _string(_IFLA_IFNAME, wanted.name)
    body += _basics(wanted.mac, wanted.mtu) + _ONE_QUEUE
    if wanted.master:
        body += attribute(_IFLA_MASTER, _U32.pack(wanted.master))
    kind = attribute(_IFLA_INFO_KIND, b"veth")
    body += nested(_IFLA_LINKINFO, kind, nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER | 0x8000, far)))
    return Message(RTM_NEWLINK, CREATE | EXCL | ECHO, body)


def encode_bridge(wanted: CreateBridge) -> Message:
    """A bridge, with its VLAN filtering set before it can have a port."""
    data: list[tuple[str, object]] = [("IFLA_BR_VLAN_FILTERING", 1)] if wanted.vlan_filtering else []
    if wanted.group_fwd_mask:
        data.append(("IFLA_BR_GROUP_FWD_MASK", wanted.group_fwd_mask))
    if not wanted.multicast_snooping:
        data.append(("IFLA_BR_MCAST_SNOOPING", 0))
    return _encode_new(wanted.name, wanted.mac, wanted.mtu, up=wanted.up, kind="bridge", data=data)


def encode_dummy(wanted: CreateDummy) -> Message:
    """A dummy link."""
    return _encode_new(wanted.name, wanted.mac, wanted.mtu, up=False, kind="dummy", data=[])


def encode_change(wanted: ChangeLink) -> list[Message]:
    """The one to three messages of a change."""
    messages: list[Message] = []
    body = b""
    if wanted.netns_fd is not None:
        body += attribute(_IFLA_NET_NS_FD, _U32.pack(wanted.netns_fd))
    body += _basics(wanted.mac or "", wanted.mtu or 0)
    if wanted.name is not None:
        body += _string(_IFLA_IFNAME, wanted.name)
    if wanted.alias is not None:
        # Without a NUL, so that an empty one clears it.
        body += attribute(_IFLA_IFALIAS, wanted.alias.encode())
    if wanted.group is not None:
        body += attribute(_IFLA_GROUP, _U32.pack(wanted.group))
    if wanted.master is not None:
        body += attribute(_IFLA_MASTER, _U32.pack(wanted.master))
    flags = (_IFF_UP if wanted.up else 0) | (_IFF_PROMISC if wanted.promisc else 0)
    mask = (_IFF_UP if wanted.up is not None else 0) | (_IFF_PROMISC if wanted.promisc is not None else 0)
    if wanted.up is False and body:
        # In one message the kernel would rename before it sets down, and old kernels rename no link that
        # is up.
        messages.append(_set(wanted.ifindex, 0, _IFF_UP, b""))
        mask &= ~_IFF_UP
    if body or mask:
        messages.append(_set(wanted.ifindex, flags, mask, body))
    if port := _port_flags(wanted):
        info = attribute(_IFLA_INFO_SLAVE_KIND, b"bridge") + nested(_IFLA_INFO_SLAVE_DATA, port)
        header = _IFINFO.pack(0, 0, wanted.ifindex, 0, 0)
        messages.append(Message(RTM_NEWLINK, 0, header + nested(_IFLA_LINKINFO, info)))
    if wanted.linklocal_learning is not None:
        messages.append(_set_linklocal_learning(wanted.ifindex, wanted=wanted.linklocal_learning))
    return messages


def encode_delete(wanted: DeleteLink) -> Message:
    """RTM_DELLINK of one link."""
    return Message(RTM_DELLINK, 0, _IFINFO.pack(0, 0, wanted.ifindex, 0, 0))


def encode_delete_group(wanted: DeleteGroup) -> Message:
    """RTM_DELLINK of a group."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFLA_GROUP, _U32.pack(wanted.group))
    return Message(RTM_DELLINK, 0, body)


def _encode_new(
    name: str, mac: str, mtu: int, *, up: bool, kind: str, data: list[tuple[str, object]]
) -> Message:
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
    return Message(RTM_NEWLINK, CREATE | EXCL | ECHO, body)


def _set(ifindex: int, flags: int, mask: int, body: bytes) -> Message:
    return Message(RTM_SETLINK, 0, _IFINFO.pack(0, 0, ifindex, flags & mask, mask) + body)


def _set_linklocal_learning(ifindex: int, *, wanted: bool) -> Message:
    # struct br_boolopt_multi: the values, and which of them count
    options = _U32.pack(0 if wanted else _BR_BOOLOPT_NO_LL_LEARN) + _U32.pack(_BR_BOOLOPT_NO_LL_LEARN)
    data = nested(_IFLA_INFO_DATA, attribute(_IFLA_BR_MULTI_BOOLOPT, options))
    info = nested(_IFLA_LINKINFO, _string(_IFLA_INFO_KIND, "bridge"), data)
    return Message(RTM_NEWLINK, 0, _IFINFO.pack(0, 0, ifindex, 0, 0) + info)


def _port_flags(wanted: ChangeLink) -> bytes:
    flags = (
        (_IFLA_BRPORT_MODE, wanted.hairpin),
        (_IFLA_BRPORT_LEARNING, wanted.learning),
        (_IFLA_BRPORT_ISOLATED, wanted.isolated),
    )
    return b"".join(attribute(kind, bytes([flag])) for kind, flag in flags if flag is not None)


def _basics(mac: str, mtu: int) -> bytes:
    packed = attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    return packed + attribute(_IFLA_MTU, _U32.pack(mtu)) if mtu else packed


def _string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(payload: bytes | None) -> int:
    return int.from_bytes(payload, sys.byteorder) if payload else 0


def _decode_bridge(data: bytes) -> Bridge:
    found = attributes(data, wanted=_OF_BRIDGE)
    return Bridge(
        vlan_filtering=bool(_number(found.get(_IFLA_BR_VLAN_FILTERING))),
        default_pvid=_number(found.get(_IFLA_BR_VLAN_DEFAULT_PVID)),
        linklocal_learning=not _number(found.get(_IFLA_BR_MULTI_BOOLOPT, b"")[:4]) & _BR_BOOLOPT_NO_LL_LEARN,
        # A kernel without it floods multicast anyway.
        multicast_snooping=bool(_number(found.get(_IFLA_BR_MCAST_SNOOPING))),
        group_fwd_mask=_number(found.get(_IFLA_BR_GROUP_FWD_MASK)),
    )


def _decode_port(data: bytes) -> Port:
    found = attributes(data, wanted=_OF_PORT)
    return Port(
        hairpin=bool(_number(found.get(_IFLA_BRPORT_MODE))),
        isolated=bool(_number(found.get(_IFLA_BRPORT_ISOLATED))),
        learning=bool(_number(found.get(_IFLA_BRPORT_LEARNING))),
    )


def _decode_tun(data: bytes) -> Tun:
    found = attributes(data)
    owner, group = (
        _number(found[kind]) if kind in found else None for kind in (_IFLA_TUN_OWNER, _IFLA_TUN_GROUP)
    )
    return Tun(owner, group, bool(_number(found.get(_IFLA_TUN_MULTI_QUEUE))))


_SKIP_STATS: Final = attribute(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
# A veth uses one queue of each kind. Since Linux 5.15 it is made with one for each processor, in case that
# somebody wants more (ethtool -L), and all but one are taken away at once: a third of the time with two
# processors.
_ONE_QUEUE: Final = attribute(_IFLA_NUM_TX_QUEUES, _U32.pack(1)) + attribute(
    _IFLA_NUM_RX_QUEUES, _U32.pack(1)
)
