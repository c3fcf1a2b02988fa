"""A link in memory, and what the kernel does to a bridge when its ports change."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING, Final, NoReturn

from cnvnet.kernel.links import Bridge, BridgePort, ChangeLink, Link, Tun
from cnvnet.kernel.vlans import VlanRange

if TYPE_CHECKING:
    from tests.fakes.namespace import FakeNamespace

NO_MAC: Final = "00:00:00:00:00:00"
_numbers = itertools.count(1)


class FakeLink:
    """A link and all that belongs to it."""

    def __init__(self, namespace: FakeNamespace, ifindex: int, name: str, kind: str) -> None:
        self.namespace = namespace
        self.ifindex = ifindex
        self.name = name
        self.kind = kind
        self.mac = "0e:00:00:" + next(_numbers).to_bytes(3, "big").hex(":")
        self.mtu = 1500
        self.up = False
        self.master: FakeLink | None = None
        self.peer: FakeLink | None = None
        self.promisc = False
        self.allmulti = False
        self.txqlen = 1000
        self.group = 0
        self.alias = ""
        self.bridge: Bridge | None = None
        self.port: BridgePort | None = None
        self.tun: Tun | None = None
        self.vlans: dict[int, VlanRange] = {}
        self.mac_is_pinned = False
        self.mtu_is_pinned = False

    @property
    def ports(self) -> list[FakeLink]:
        return [link for link in self.namespace.links.values() if link.master is self]

    @property
    def operstate(self) -> str:
        if not self.up:
            return "DOWN"
        if self.kind == "veth":
            return "UP" if self.peer is not None and self.peer.up else "LOWERLAYERDOWN"
        if self.kind == "bridge":
            return "UP" if any(port.operstate == "UP" for port in self.ports) else "DOWN"
        return "DOWN" if self.kind == "tun" else "UNKNOWN"

    def shown(self) -> Link:
        return Link(
            ifindex=self.ifindex,
            name=self.name,
            kind=self.kind,
            mac=self.mac,
            mtu=self.mtu,
            up=self.up,
            operstate=self.operstate,
            master=self.master.ifindex if self.master else 0,
            peer=self.peer.ifindex if self.peer else 0,
            promisc=self.promisc,
            allmulti=self.allmulti,
            txqlen=self.txqlen,
            group=self.group,
            alias=self.alias,
            bridge=self.bridge,
            port=self.port,
            tun=self.tun,
        )


def set_port_flags(link: FakeLink, wanted: ChangeLink) -> None:
    flags = {"hairpin": wanted.hairpin, "isolated": wanted.isolated, "learning": wanted.learning}
    asked = {name: flag for name, flag in flags.items() if flag is not None}
    if not asked:
        return
    if link.port is None:
        refuse(errno.EOPNOTSUPP)
    link.port = link.port._replace(**asked)


def follow_ports(bridge: FakeLink) -> None:
    """A bridge takes the lowest MAC and the smallest MTU of its ports unless it was given its own."""
    ports = bridge.ports
    if not bridge.mac_is_pinned:
        bridge.mac = min((port.mac for port in ports), default=NO_MAC)
    if not bridge.mtu_is_pinned:
        bridge.mtu = min((port.mtu for port in ports), default=1500)


def refuse(number: int) -> NoReturn:
    """What the kernel says to a bad request."""
    raise OSError(number, "")
