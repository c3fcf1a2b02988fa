"""The VLANs of bridge ports as values, and their messages; a range is one entry, as in the kernel's own."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from socket import AF_BRIDGE
from typing import Final, NamedTuple

from cnvnet.kernel import pyroute2_light
from cnvnet.kernel.link_messages import RTM_DELLINK, RTM_GETLINK, RTM_SETLINK
from cnvnet.kernel.netlink import NetlinkMessage, attribute
from cnvnet.kernel.rtnetlink import IFINFO, IFLA_EXT_MASK, U32

# From rtnetlink.h and if_bridge.h in include/uapi/linux.
_RTM_GETVLAN: Final = 114
_BRIDGE_FLAGS_SELF: Final = 2
_PVID: Final = 0x02
_UNTAGGED: Final = 0x04
_RANGE_BEGIN: Final = 0x08
_RANGE_END: Final = 0x10
_RTEXT_FILTER_BRVLAN_COMPRESSED: Final = 4

_BR_VLAN_MSG: Final = struct.Struct("=BxxxI")
_MESSAGE: Final = ("netlink.rtnl.ifinfmsg", "ifinfmsg")


class VlanRange(NamedTuple):
    """VIDs first..last (both included). `pvid`: untagged frames go in; for a single VID only."""

    first: int
    last: int
    pvid: bool = False
    untagged: bool = False


class AddVlans(NamedTuple):
    """Adds the ranges to a port (or, with `on_bridge`, to the bridge itself) in one message.

    A VID the port has keeps its place and takes the new flags; a new PVID replaces the old one. EINVAL for
    a PVID that is a range and for VIDs outside 1..4094, EOPNOTSUPP when the link is no port or the kernel
    knows no VLANs.
    """

    ifindex: int
    ranges: tuple[VlanRange, ...]
    on_bridge: bool = False


class DeleteVlans(NamedTuple):
    """Removes the ranges; VIDs the port does not have are no error."""

    ifindex: int
    ranges: tuple[VlanRange, ...]
    on_bridge: bool = False


def compress(vids: Iterable[int], *, untagged: bool = False) -> tuple[VlanRange, ...]:
    """The fewest ranges that hold exactly these VIDs, in order."""
    ranges: list[VlanRange] = []
    for vid in sorted(set(vids)):
        if ranges and ranges[-1].last == vid - 1:
            ranges[-1] = ranges[-1]._replace(last=vid)
        else:
            ranges.append(VlanRange(vid, vid, untagged=untagged))
    return tuple(ranges)


def query(ifindex: int) -> NetlinkMessage:
    """Asks for the VLANs of one port, or of one bridge itself (RTM_GETVLAN, Linux 5.6)."""
    return NetlinkMessage(_RTM_GETVLAN, 0, _BR_VLAN_MSG.pack(AF_BRIDGE, ifindex))


def query_all() -> NetlinkMessage:
    """Asks for the VLANs of all bridges and ports: older kernels cannot be asked for one."""
    mask = attribute(IFLA_EXT_MASK, U32.pack(_RTEXT_FILTER_BRVLAN_COMPRESSED))
    return NetlinkMessage(RTM_GETLINK, 0, IFINFO.pack(AF_BRIDGE, 0, 0, 0, 0) + mask)


def encode(wanted: AddVlans | DeleteVlans) -> NetlinkMessage:
    """RTM_SETLINK or RTM_DELLINK of the bridge family, all ranges in one attribute (at most 32 KiB)."""
    entries: list[tuple[str, object]] = []
    if wanted.on_bridge:
        # For the bridge itself; without the flag the kernel hands the message to the link's master.
        entries.append(("IFLA_BRIDGE_FLAGS", _BRIDGE_FLAGS_SELF))
    for one in wanted.ranges:
        flags = (_PVID if one.pvid else 0) | (_UNTAGGED if one.untagged else 0)
        if one.first == one.last:
            entries.append(_entry(flags, one.first))
        else:
            entries += [_entry(flags | _RANGE_BEGIN, one.first), _entry(flags | _RANGE_END, one.last)]
    header = {"family": AF_BRIDGE, "index": wanted.ifindex}
    body = pyroute2_light.encode(*_MESSAGE, header, [("IFLA_AF_SPEC", {"attrs": entries})])
    return NetlinkMessage(RTM_SETLINK if isinstance(wanted, AddVlans) else RTM_DELLINK, 0, body)


def decode(raw: bytes) -> list[VlanRange]:
    """The ranges in an RTM_NEWVLAN message."""
    message = pyroute2_light.decode("netlink.rtnl.br_vlan", "br_vlan_msg", raw)
    ranges: list[VlanRange] = []
    for entry in message.get_attrs("BRIDGE_VLANDB_ENTRY"):
        info = entry.get_attr("BRIDGE_VLANDB_ENTRY_INFO")
        # The kernel adds an end only to an entry of more than one VID.
        last = entry.get_attr("BRIDGE_VLANDB_ENTRY_RANGE") or info["vid"]
        ranges.append(_range(info["vid"], last, info["flags"]))
    return ranges


def decode_link(raw: bytes) -> tuple[int, list[VlanRange]]:
    """The ifindex and the ranges in an RTM_NEWLINK message of the bridge family."""
    message = pyroute2_light.decode(*_MESSAGE, raw)
    ranges: list[VlanRange] = []
    first = 0
    spec = message.get_attr("IFLA_AF_SPEC")
    # Compressed, a range is two entries, one with each flag, and a VID alone is one entry with neither.
    for info in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") if spec else ():
        if info["flags"] & _RANGE_BEGIN:
            first = info["vid"]
        else:
            ranges.append(_range(first or info["vid"], info["vid"], info["flags"]))
            first = 0
    return message["index"], ranges


def _entry(flags: int, vid: int) -> tuple[str, object]:
    return "IFLA_BRIDGE_VLAN_INFO", {"flags": flags, "vid": vid}


def _range(first: int, last: int, flags: int) -> VlanRange:
    return VlanRange(first, last, pvid=bool(flags & _PVID), untagged=bool(flags & _UNTAGGED))
