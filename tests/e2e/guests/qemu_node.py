"""A node whose pods are attached through cnitool and have a QEMU guest behind their tap, and its agent.

The node's own bridge address is the host outside that talks to the guests.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cnvnet.kernel import netns
from scripts.guest.machine import PATIENCE, Nic, QemuGuest
from tests.functional.agent.own_agent import running_agent
from tests.functional.bridge.test_cnitool import Cnitool
from tests.harness import Node, Sandbox, a_node

# The same size for every transfer: thousands of packets, and below a second without KVM.
CONTENT = bytes(range(256)) * 32768
# What the kernel counts when packets are cut, cannot be cut, or come in pieces.
FRAGMENTS = ("FragFails", "FragCreates", "ReasmReqds")


class Side(NamedTuple):
    """One IP family: the host outside, and the guest and its gateway behind the masquerade."""

    family: socket.AddressFamily
    outside: str
    guest: str
    gateway: str


V4 = Side(socket.AF_INET, "10.244.0.1", "10.0.2.2", "10.0.2.1")
V6 = Side(socket.AF_INET6, "fd99::1", "fd10:0:2::2", "fd10:0:2::1")
SIDES = (V4, V6)


class Pod(Sandbox):
    """A pod that is attached to the network, with the addresses that it got there."""

    def __init__(self, sandbox: Sandbox, network: Cnitool) -> None:
        super().__init__(sandbox.netns)
        self._network = network
        self.attach()

    def attach(self) -> None:
        self.result: dict[str, Any] = self._network.run("add", self).ok()

    def check(self) -> None:
        self._network.run("check", self).ok()

    def detach(self) -> None:
        self._network.run("del", self).ok()

    def address(self, side: Side) -> str:
        (found,) = (ip["address"] for ip in self.result["ips"] if (":" in ip["address"]) == (side is V6))
        return str(found.partition("/")[0])

    @property
    def mac(self) -> str:
        """Also that of the guest, as in KubeVirt: no other host's packets show it."""
        (found,) = (each["mac"] for each in self.result["interfaces"] if each.get("sandbox"))
        return str(found)

    @property
    def mtu(self) -> int:
        return int(self.ip("link", "show", "dev", "eth0")[0]["mtu"])

    def fragments(self) -> dict[str, int]:
        """What has happened to packets that were too long, by the kernel's names; nothing is left out."""
        names, values = (
            line.split()[1:]
            for line in self.run("cat", "/proc/net/snmp").stdout.splitlines()
            if line.startswith("Ip:")
        )
        counts = dict(zip(names, values, strict=True))
        counts6 = dict(line.split() for line in self.run("cat", "/proc/net/snmp6").stdout.splitlines())
        return {
            **{name: int(counts[name]) for name in FRAGMENTS},
            **{f"Ip6{name}": int(counts6[f"Ip6{name}"]) for name in FRAGMENTS},
        }


class Lab:
    """The node and its one network: a bridge with addresses, and a binding behind it.

    The bridge is the reference's with its host-local, unless `instead` names another plugin and its `ipam`.
    """

    def __init__(
        self, node: Node, undo: ExitStack, binding: dict[str, Any], mtu: int, instead: dict[str, Any]
    ) -> None:
        self.node = node
        self._undo = undo
        self.agent = undo.enter_context(running_agent(node))
        ranges = [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd99::/64"}]]
        bridge = {
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "mtu": mtu,
            "ipam": {
                "type": "host-local",
                "dataDir": str(node.folder / "ipam"),
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
            **instead,
        }
        self._network = Cnitool(node, "pods", bridge, binding)

    def pod(self) -> Pod:
        pod = Pod(self.node.pod(), self._network)
        self._undo.callback(pod.detach)
        return pod

    def guest(self, pod: Pod, *, queues: int = 1) -> QemuGuest:
        """A guest on the pod's tap with the pod's MAC. The device says nothing of the MTU: DHCP has to."""
        return self._undo.enter_context(QemuGuest(pod.netns, Nic("tap0", pod.mac, queues=queues)))


@contextmanager
def a_lab(folder: Path, binding: dict[str, Any], mtu: int = 1500, **instead: Any) -> Generator[Lab]:
    with ExitStack() as undo:
        yield Lab(undo.enter_context(a_node(folder)), undo, binding, mtu, instead)


def socket_in(sandbox: Sandbox, side: Side) -> socket.socket:
    """A TCP socket of a namespace; it stays there wherever it is used."""
    with netns.opened(sandbox.netns) as inside, netns.entered(inside):
        made = socket.socket(side.family, socket.SOCK_STREAM)
    made.settimeout(PATIENCE)
    return made


def fetch(caller: Sandbox, side: Side, host: str, port: int, path: str) -> bytes:
    """What a web server answers with; OSError if there is none."""
    with socket_in(caller, side) as client:
        client.connect((host, port))
        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(1 << 20), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], head
    return body


class Server(threading.Thread):
    """A web server on a host: gives CONTENT to everyone, and remembers their addresses."""

    def __init__(self, sandbox: Sandbox, side: Side, port: int) -> None:
        super().__init__(daemon=True)
        self.callers: list[str] = []
        self._socket = socket_in(sandbox, side)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.settimeout(None)
        self._socket.bind((side.outside, port))
        self._socket.listen()
        self.start()

    def run(self) -> None:
        while True:
            try:
                taken, peer = self._socket.accept()
            except OSError:
                return  # closed
            with taken:
                self.callers.append(peer[0])
                taken.recv(65536)
                taken.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._socket.close()


@contextmanager
def serving(sandbox: Sandbox, side: Side, port: int) -> Generator[Server]:
    with closing(Server(sandbox, side, port)) as server:
        yield server


def url(host: str, port: int, path: str = "/") -> str:
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"


def serve(guest: QemuGuest, *ports: int) -> None:
    """Web servers in the guest, which say `guest` when asked for their name."""
    listen = "".join(f"httpd -p {port} -h /www; " for port in ports)
    guest.run(f"mkdir -p /www; echo -n guest >/www/name; {listen}").ok()


def renew_lease(guest: QemuGuest) -> None:
    """The guest's DHCP client asks its server directly until it is answered."""
    guest.run("""
        rm /run/lease.eth0 /run/lease6.eth0
        until [ -e /run/lease.eth0 ]; do kill -USR1 $(cat /run/udhcpc.eth0); sleep 1; done
    """).ok()


def assert_both_ways(lab: Lab, pod: Pod, guest: QemuGuest, side: Side) -> None:
    """The guest takes a lot from a host outside, and the host gets it back from the guest."""
    with serving(lab.node, side, 8080) as server:
        guest.run(f"wget -q -O /www/content '{url(side.outside, 8080)}'").ok()
    assert server.callers == [pod.address(side)]
    assert fetch(lab.node, side, pod.address(side), 80, "/content") == CONTENT
