"""Links as values: what one looks like, and the operations that make, change and delete one."""

from __future__ import annotations

from typing import NamedTuple


class Port(NamedTuple):
    """The flags of a bridge port (IFLA_BRPORT_*)."""

    hairpin: bool
    isolated: bool
    learning: bool


class Bridge(NamedTuple):
    """What only a bridge has (IFLA_BR_*)."""

    vlan_filtering: bool
    default_pvid: int


class Link(NamedTuple):
    """A link as the kernel reports it.

    `kind` is IFLA_INFO_KIND ("veth", "bridge", "tun", "vlan", ...; "" for a real device or the loopback), `mac` is
    lower case with colons, `operstate` a kernel word in capitals ("UP", "DOWN", "LOWERLAYERDOWN", "UNKNOWN", ...).
    `master` and `peer` are ifindexes, 0 for none; `peer` (IFLA_LINK) counts in the peer's own namespace.
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


class CreateBridge(NamedTuple):
    """A new bridge; EEXIST when the name is taken. `mtu` 0 leaves the kernel's default, which then follows ports."""

    name: str
    mac: str = ""
    mtu: int = 0
    vlan_filtering: bool = False
    up: bool = True


class VethPeer(NamedTuple):
    """The far end of a veth, made directly in the namespace `netns_fd` refers to (None: the same namespace)."""

    name: str
    mac: str = ""
    mtu: int = 0
    netns_fd: int | None = None


class CreateVeth(NamedTuple):
    """Both ends of a veth in one message. The near end may be enslaved and up at once, the peer is always down.

    The kernel answers ENOTCONN and spends 16 ms on its rollback when the peer is asked to be up here.
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
    """What is not None is changed; `master` 0 detaches, `netns_fd` moves the link there."""

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


class DeleteLink(NamedTuple):
    """ENODEV when it is gone already."""

    ifindex: int
