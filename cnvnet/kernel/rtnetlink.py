"""What several messages of rtnetlink have in common: numbers and structures of include/uapi/linux.

A number that one module alone sends or reads stands there.
"""

from __future__ import annotations

import struct
from typing import Final

# rtnetlink.h; what deletes a thing has the number behind that of what makes it
RTM_NEWADDR: Final = 20
RTM_NEWROUTE: Final = 24
RTM_NEWNEIGH: Final = 28
RTM_GETNEIGH: Final = 30
RTM_NEWNEXTHOP: Final = 104
RTM_GETNEXTHOP: Final = 106
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_PREFSRC: Final = 7
RTA_MULTIPATH: Final = 9
RTA_CACHEINFO: Final = 12
RTA_TABLE: Final = 15
RTA_VIA: Final = 18
RTA_EXPIRES: Final = 23
RTA_NH_ID: Final = 30
RTN_UNICAST: Final = 1
RTNH_F_ONLINK: Final = 4
# RT_SCOPE_*: the first one is RT_SCOPE_UNIVERSE, which `ip` calls global.
SCOPE_GLOBAL: Final = 0
SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254
# RTPROT_*, what made a route: the kernel with an address, an administrator's program, a router's
# advertisement.
PROTOCOL_KERNEL: Final = 2
PROTOCOL_BOOT: Final = 3
PROTOCOL_RA: Final = 9
# if_addr.h
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_CACHEINFO: Final = 6
IFA_FLAGS: Final = 8
IFA_PROTO: Final = 11
IFA_F_TEMPORARY: Final = 0x01
IFA_F_NODAD: Final = 0x02
IFA_F_DEPRECATED: Final = 0x20
IFAPROT_KERNEL_RA: Final = 2
# if_link.h
IFLA_EXT_MASK: Final = 29
# nexthop.h
NHA_ID: Final = 1
NHA_GROUP: Final = 2
NHA_OIF: Final = 5
NHA_RES_GROUP: Final = 12
# neighbour.h
NDA_DST: Final = 1
NDA_CACHEINFO: Final = 3
NDA_PROBES: Final = 4
NDA_FLAGS_EXT: Final = 15
NUD_NOARP: Final = 0x40
NUD_PERMANENT: Final = 0x80
NTF_PROXY: Final = 0x08
NTF_EXT_LEARNED: Final = 0x10
NTF_EXT_MANAGED: Final = 0x01

# struct ifinfomsg, ifaddrmsg, rtmsg, nhmsg, ndmsg
IFINFO: Final = struct.Struct("=BxHiII")
IFADDR: Final = struct.Struct("=BBBBI")
RTMSG: Final = struct.Struct("=BBBBBBBBI")
NHMSG: Final = struct.Struct("=BBBxI")
NDMSG: Final = struct.Struct("=BxxxiHBB")
# struct rtnexthop, nexthop_grp, ifa_cacheinfo, rta_cacheinfo (its first four numbers)
RTNEXTHOP: Final = struct.Struct("=HBBi")
GROUP_ENTRY: Final = struct.Struct("=IBBH")
LIFETIMES: Final = struct.Struct("=IIII")
ROUTE_TIMES: Final = struct.Struct("=IIiI")
# The value of most attributes.
U32: Final = struct.Struct("=I")
