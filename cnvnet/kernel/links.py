"""Links as values: what one looks like, and the operations that make, change and delete one.

`link_messages` has their messages.
"""

from __future__ import annotations

from typing import Final, NamedTuple

IFNAMSIZ: Final = 16  # bytes of a name, with its closing NUL
# The link group of retired links (cnvnet.kernel.deferred.retired): "cnvx", which no other program uses.
RETIRED_GROUP: Final = 0x636E7678


class BridgePort(NamedTuple):
    """The flags of a bridge port (IFLA_BRPORT_*)."""

    hairpin: bool
    isolated: bool
    learning: bool


class Bridge(NamedTuple):
    """What only a bridge has (IFLA_BR_*)."""

    vlan_filtering: bool
    default_pvid: int
    # It learns the sources of frames to 01:80:c2:00:00:0X as well, which no filter sees.
    linklocal_learning: bool = True
    multicast_snooping: bool = True
    # A bit for each X of these addresses that is forwarded all the same.
    group_fwd_mask: int = 0


class Tun(NamedTuple):
    """What only a tap has (IFLA_TUN_*)."""

    # The user and the group that may open it; with neither, root alone.
    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False


class Link(NamedTuple):
    """A link as the kernel reports it.

    `master` and `peer` are ifindexes, 0 for none.
    """

    ifindex: int
    name: str
    # IFLA_INFO_KIND: "veth", "bridge", "tun", "vlan", ...; "" for a real device or the loopback.
    kind: str
    # Lower case with colons.
    mac: str
    mtu: int
    up: bool
    # The kernel's word in capitals: "UP", "DOWN", "LOWERLAYERDOWN", "UNKNOWN", ... (RFC 2863).
    operstate: str
    master: int = 0
    # IFLA_LINK: counts in the peer's own namespace.
    peer: int = 0
    promisc: bool = False
    allmulti: bool = False
    # How many frames its queueing discipline holds, where it has one.
    txqlen: int = 0
    group: int = 0
    alias: str = ""
    bridge: Bridge | None = None
    port: BridgePort | None = None
    tun: Tun | None = None


class CreateBridge(NamedTuple):
    """A new bridge; EEXIST when the name is taken."""

    name: str
    # Stays whatever ports come and go; "": the lowest of its ports' addresses.
    mac: str = ""
    # What it starts with, 0 for 1500: with ports it has the smallest of theirs, until ChangeLink sets it.
    mtu: int = 0
    vlan_filtering: bool = False
    up: bool = True
    multicast_snooping: bool = True
    # EINVAL with any of the lowest three bits.
    group_fwd_mask: int = 0


class VethPeer(NamedTuple):
    """The far end of a veth, made directly in another namespace.

    `netns_fd` refers to it; None is the same namespace.
    """

    name: str
    mac: str = ""
    mtu: int = 0
    netns_fd: int | None = None


class CreateVeth(NamedTuple):
    """Both ends of a veth in one message.

    The near end may be enslaved and up at once, the peer is always down. EEXIST when either name is taken in
    its namespace, ENODEV when there is no such master; nothing is left then. The kernel answers ENOTCONN and
    spends 16 ms on its rollback when the peer is asked to be up here.
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
    """What is not None is changed; `master` 0 detaches.

    Down comes first, then everything else, up last of these; then the flags of the
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
    allmulti: bool | None = None
    txqlen: int | None = None
    group: int | None = None
    alias: str | None = None
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


def can_exist(name: str) -> bool:
    """Whether a link can have this name at all.

    The kernel answers a query for another with ERANGE or EINVAL.
    """
    return 0 < len(name.encode()) < IFNAMSIZ and "/" not in name
