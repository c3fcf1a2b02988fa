"""A bridge's forwarding table: the MAC addresses that are the bridge's own or its ports'."""

from __future__ import annotations

import struct
from typing import Final

from cnvnet.kernel.netlink import HEADER_SIZE, NetlinkMessage, attribute
from cnvnet.kernel.rtnetlink import NDMSG, NUD_PERMANENT, RTM_GETNEIGH

# From rtnetlink.h, neighbour.h and if_bridge.h in include/uapi/linux.
_PF_BRIDGE: Final = 7
_NDA_LLADDR: Final = 2
_NDA_MASTER: Final = 9


def query(bridge: int, mac: str) -> NetlinkMessage:
    """Asks for one entry (Linux 5.0). ENOENT, as an error, when there is none."""
    address = attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
    master = attribute(_NDA_MASTER, struct.pack("=I", bridge))
    return NetlinkMessage(RTM_GETNEIGH, 0, NDMSG.pack(_PF_BRIDGE, 0, 0, 0, 0) + address + master)


def decode_owner(raw: bytes) -> int:
    """The ifindex of the link whose own address it is; 0 for one that was learnt behind a port."""
    _, ifindex, state, _, _ = NDMSG.unpack_from(raw, HEADER_SIZE)
    return ifindex if state & NUD_PERMANENT else 0
