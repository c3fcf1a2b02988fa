"""A pod behind which a guest sits on the tap that masquerade made, and a host outside that talks to both.

The guest is a network namespace whose only interface is a tap as well; a thread carries frames from the one
tap to the other, in the place of QEMU.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cnvnet.kernel import netns
from tests.harness import Node, Outcome, Sandbox, a_node

TUNSETIFF = 0x400454CA
TAP_NO_PI = 0x0002 | 0x1000
MULTI_QUEUE = 0x0100
GUEST_MAC = "02:00:00:00:00:22"
BRIDGE_MAC = "02:00:00:00:00:00"
# Longer than any answer takes on a busy machine: one that has not come by then is not going to.
PATIENCE = 20.0


class Side(NamedTuple):
    """The addresses of one IP family."""

    family: int
    outside: str
    pod: str
    guest: str
    gateway: str
    nft: str


V4 = Side(socket.AF_INET, "10.244.0.1", "10.244.0.5", "10.0.2.2", "10.0.2.1", "ip")
V6 = Side(socket.AF_INET6, "fd99::1", "fd99::5", "fd10:0:2::2", "fd10:0:2::1", "ip6")
SIDES = (V4, V6)


def open_tap(sandbox: Sandbox, name: str, flags: int = TAP_NO_PI) -> int:
    """A tap as a program would open it; one that is not there is made, and gone when it is closed."""
    with netns.opened(sandbox.netns) as inside, netns.entered(inside):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
        except OSError:
            os.close(fd)
            raise
    return fd


class Wire(threading.Thread):
    """Frames between two taps, until it is cut."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(daemon=True)
        self._ends = {one: other, other: one}
        self._scissors = os.eventfd(0, os.EFD_CLOEXEC)
        self.start()

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([*self._ends, self._scissors], [], [])
            if self._scissors in ready:
                return
            for end in ready:
                try:
                    os.write(self._ends[end], os.read(end, 70000))
                except OSError:
                    pass  # the other end is down, or has no room: a wire loses what it cannot carry

    def cut(self) -> None:
        os.eventfd_write(self._scissors, 1)
        self.join()
        os.close(self._scissors)


class Pod(Sandbox):
    """A pod with its interface, which `attach` puts a guest behind."""

    def __init__(self, netns: str, lab: Lab) -> None:
        super().__init__(netns)
        self._lab = lab

    @property
    def pid(self) -> str:
        """That of the process that holds the namespace."""
        return self.netns.split("/")[2]

    def cni(self, command: str, ifname: str = "net1", **keys: Any) -> Outcome:
        config = {"cniVersion": "1.1.0", "name": "masq", "type": "masquerade", **self._lab.keys, **keys}
        return self._lab.node.cni("masquerade", command, config, self, ifname=ifname, container_id=self.pid)

    def counted(self, comment: str, family: str = "ip") -> int:
        """How many packets a rule has seen."""
        shown = self.run("nft", "list", "table", family, "cnv_masquerade").stdout
        (line,) = [line for line in shown.splitlines() if f'comment "{comment}' in line]
        return int(line.partition("packets ")[2].split()[0])


class Lab:
    """Everything together. `outside` is the node, whose bridge the pods' interfaces are ports of."""

    def __init__(self, node: Node, undo: ExitStack, mtu: int = 1500) -> None:
        self.node = node
        self._undo = undo
        self._mtu = mtu
        # Of the configuration of all pods.
        self.keys: dict[str, Any] = {}
        node.run("ip", "link", "add", "br0", "type", "bridge")
        node.run("ip", "link", "set", "br0", "addrgenmode", "none", "up")
        for side in SIDES:
            node.run("ip", "addr", "add", f"{side.outside}/{_length(side)}", "dev", "br0", *_nodad(side))
        self.guest = self.node.pod()
        self._taps: list[int] = []
        self._wire: list[Wire] = []
        undo.callback(self._close_taps)
        undo.callback(self.unplug)
        self._guest_tap = self._open(self.guest, "eth0")
        self.guest.run("ip", "link", "set", "eth0", "address", GUEST_MAC, "mtu", str(mtu), "up")
        for side in SIDES:
            self._address_guest(side)

    def pod(self, *, up: bool = True, sides: tuple[Side, ...] = SIDES) -> Pod:
        """A pod with the addresses that all of the lab's pods have; only one should be up at a time."""
        pod = Pod(self.node.pod().netns, self)
        name, mtu = f"p{pod.pid}", ("mtu", str(self._mtu))
        peer = ("peer", "name", "eth0", *mtu, "netns", pod.pid)
        self.node.run("ip", "link", "add", name, *mtu, "type", "veth", *peer)
        self.node.run("ip", "link", "set", name, "master", "br0", "up")
        pod.run("ip", "link", "set", "eth0", "addrgenmode", "none", *(("up",) if up else ()))
        for side in sides:
            pod.run("ip", "addr", "add", f"{side.pod}/{_length(side)}", "dev", "eth0", *_nodad(side))
        deadline = time.monotonic() + PATIENCE
        # The kernel takes note of a carrier a while after it is there, and last makes a route for groups.
        groups = ("-6", "route", "show", "table", "local", "dev", "eth0", "type", "multicast")
        while up and not pod.ip(*groups):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return pod

    def plug(self, pod: Sandbox, tap: str = "tap0") -> None:
        """The guest runs in this pod from now on."""
        self.unplug()
        self._wire.append(Wire(self._open(pod, tap), self._guest_tap))
        deadline = time.monotonic() + PATIENCE
        # A port forwards once the kernel has taken note of its carrier; until then raw frames are lost.
        while not _forwards(pod, tap):
            assert time.monotonic() < deadline, f"{tap} gets no carrier"
            time.sleep(0.02)

    def unplug(self) -> None:
        while self._wire:
            self._wire.pop().cut()

    def unbound(self, sandbox: Sandbox, side: Side, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of a namespace, closed with the lab."""
        made = socket_in(sandbox, side.family, kind)
        self._undo.callback(made.close)
        return made

    def listener(self, sandbox: Sandbox, side: Side, port: int, host: str | None = None) -> socket.socket:
        listening = self.unbound(sandbox, side)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host or ("0.0.0.0" if side.family == socket.AF_INET else "::"), port))
        listening.listen()
        return listening

    def datagrams(self, sandbox: Sandbox, side: Side, port: int, host: str | None = None) -> socket.socket:
        bound = self.unbound(sandbox, side, socket.SOCK_DGRAM)
        bound.bind((host or ("0.0.0.0" if side.family == socket.AF_INET else "::"), port))
        return bound

    def packets(self, sandbox: Sandbox, ifname: str = "eth0") -> socket.socket:
        """A raw socket on a link, for frames in and out."""
        with netns.opened(sandbox.netns) as inside, netns.entered(inside):
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._undo.callback(made.close)
        made.bind((ifname, 0))
        made.settimeout(PATIENCE)
        return made

    @property
    def guest_mac(self) -> str:
        return GUEST_MAC

    def gateway(self, pod: Sandbox, side: Side) -> str:
        """The peer that the guest sees behind a hairpin: the kernel picks one of the bridge's addresses."""
        return side.gateway

    def _open(self, sandbox: Sandbox, name: str) -> int:
        self._taps.append(open_tap(sandbox, name))
        return self._taps[-1]

    def _close_taps(self) -> None:
        while self._taps:
            os.close(self._taps.pop())

    def _address_guest(self, side: Side) -> None:
        version, length = ("-4", 24) if side.family == socket.AF_INET else ("-6", 120)
        self.guest.run("ip", "addr", "add", f"{side.guest}/{length}", "dev", "eth0", *_nodad(side))
        # As a router advertisement has it: the bridge's link-local address follows from its MAC.
        gateway = side.gateway if side.family == socket.AF_INET else "fe80::ff:fe00:0"
        self.guest.run("ip", version, "route", "add", "default", "via", gateway, "dev", "eth0")


@contextmanager
def a_lab(folder: Path, mtu: int = 1500) -> Generator[Lab]:
    with ExitStack() as undo:
        node = undo.enter_context(a_node(folder))
        yield Lab(node, undo, mtu)


def socket_in(sandbox: Sandbox, family: int, kind: int) -> socket.socket:
    """A socket of a namespace; it stays there wherever it is used."""
    with netns.opened(sandbox.netns) as inside, netns.entered(inside):
        made = socket.socket(family, kind)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.settimeout(PATIENCE)
    return made


class Answer(NamedTuple):
    """The listener that took a connection, and the address that it saw as its peer."""

    by: str
    peer: str


def who_answers(caller: Sandbox, side: Side, host: str, port: int, **listeners: socket.socket) -> Answer:
    """A TCP connection to `host`, taken by one of the listeners or refused."""
    with socket_in(caller, side.family, socket.SOCK_STREAM) as client:
        try:
            client.connect((host, port))
        except ConnectionRefusedError:
            return Answer("refused", "")
        ready, _, _ = select.select(list(listeners.values()), [], [], PATIENCE)
        for name, listener in listeners.items():
            if listener in ready:
                taken, peer = listener.accept()
                taken.close()
                return Answer(name, peer[0])
    return Answer("none", "")


def who_hears(caller: Sandbox, side: Side, host: str, port: int, **bound: socket.socket) -> Answer:
    """A UDP datagram to `host`, answered by its receiver; the answer comes from where it was sent to."""
    with socket_in(caller, side.family, socket.SOCK_DGRAM) as client:
        client.connect((host, port))
        client.send(b"hello")
        ready, _, _ = select.select(list(bound.values()), [], [], PATIENCE)
        for name, each in bound.items():
            if each in ready:
                data, peer = each.recvfrom(2000)
                assert data == b"hello"
                each.sendto(b"and to you", peer)
                assert client.recv(2000) == b"and to you"
                return Answer(name, peer[0])
    return Answer("none", "")


def echoes(sandbox: Sandbox, side: Side) -> int:
    """How many echo requests a namespace's kernel has had."""
    if side.family == socket.AF_INET:
        lines = [
            line for line in sandbox.run("cat", "/proc/net/snmp").stdout.splitlines() if "Icmp:" in line
        ]
        names, values = (line.split() for line in lines[:2])
        return int(values[names.index("InEchos")])
    found = sandbox.run("cat", "/proc/net/snmp6").stdout.split()
    return int(found[found.index("Icmp6InEchos") + 1])


def frames(ear: socket.socket, last: bytes) -> Iterator[bytes]:
    """What is heard before the frame that ends with `last`."""
    while not (frame := ear.recv(70000)).endswith(last):
        yield frame


def _forwards(pod: Sandbox, tap: str) -> bool:
    """Whether the bridge passes on what comes from the tap; one that was set down never will."""
    link = pod.link(tap)
    assert link is not None
    return link["operstate"] == "UP" or "UP" not in link["flags"]


def _length(side: Side) -> int:
    return 24 if side.family == socket.AF_INET else 64


def _nodad(side: Side) -> tuple[str, ...]:
    return ("nodad",) if side is V6 else ()
