"""A pod on a LAN, and a guest that takes its place there by the tap that vm-bridge made.

The guest is a network namespace whose only interface is a tap as well; a thread carries frames from the one
tap to the other, in the place of QEMU. The LAN is the node's, seen at the far end of the pod's veth.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.functional.masquerade.masquerade_pod import PATIENCE, Wire, open_tap, socket_in
from tests.functional.masquerade.test_calls import snapshot as whole
from tests.harness import Node, Outcome, Sandbox, a_node

POD_MAC = "0a:00:00:00:00:05"
LAN_MAC = "0a:00:00:00:00:01"
WORLD, WORLD6 = "198.51.100.1", "2001:db8::1"
CONFIG = {"cniVersion": "1.1.0", "name": "wire", "type": "vm-bridge"}
PORT = "lan0"


class Pod(Sandbox):
    """A pod with its interface, which `cni` puts a guest in the place of."""

    def __init__(self, netns: str, node: Node) -> None:
        super().__init__(netns)
        self._node = node

    @property
    def pid(self) -> str:
        """That of the process that holds the namespace."""
        return self.netns.split("/")[2]

    def cni(self, command: str, ifname: str = "net1", **keys: Any) -> Outcome:
        config = json.dumps({**CONFIG, **keys})
        return self._node.cni("vm-bridge", command, config, self, ifname=ifname, container_id="c1")


class Lab:
    """One pod, the node whose veth it has, and a guest without any configuration yet."""

    def __init__(self, node: Node, undo: ExitStack) -> None:
        self.node = node
        self.undo = undo
        self.pod = Pod(node.pod().netns, node)
        self.guest = node.pod()
        peer = ("peer", "name", "eth0", "address", POD_MAC, "netns", self.pod.pid)
        node.run("ip", "link", "add", PORT, "address", LAN_MAC, "type", "veth", *peer)
        node.run("ip", "link", "set", PORT, "up")
        node.run("ip", "addr", "add", f"{WORLD}/32", "dev", "lo")
        node.run("ip", "addr", "add", f"{WORLD6}/128", "dev", "lo")
        self.pod.run("ip", "link", "set", "eth0", "up")

    def network(self) -> None:
        """As a bridge plugin leaves a pod: both families, with the node as their gateway."""
        self.node.run("ip", "addr", "add", "10.1.0.1/24", "dev", PORT)
        self.node.run("ip", "addr", "add", "fd99::1/64", "dev", PORT, "nodad")
        self.pod.run("ip", "addr", "add", "10.1.0.5/24", "dev", "eth0")
        self.pod.run("ip", "addr", "add", "fd99::5/64", "dev", "eth0", "nodad")
        self.pod.run("ip", "route", "add", "default", "via", "10.1.0.1")
        self.pod.run("ip", "route", "add", "default", "via", "fd99::1")

    def point_to_point(self, *, permanent: bool) -> None:
        """As AWS' VPC CNI leaves a pod, or, where nothing is permanent, Calico."""
        self.node.run("ip", "route", "add", "10.9.0.5/32", "dev", PORT)
        self.pod.run("ip", "addr", "add", "10.9.0.5/32", "dev", "eth0")
        self.pod.run("ip", "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
        self.pod.run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
        if permanent:
            for sandbox, address, mac, dev in (
                (self.pod, "169.254.1.1", LAN_MAC, "eth0"),
                (self.node, "10.9.0.5", POD_MAC, PORT),
            ):
                sandbox.run("ip", "neigh", "add", address, "lladdr", mac, "dev", dev, "nud", "permanent")
            return
        self.node.run("ip", "link", "add", "uplink", "type", "bridge")
        self.node.run("ip", "link", "set", "uplink", "up")
        self.node.run("ip", "route", "add", "default", "dev", "uplink")
        self.node.run(
            "sysctl",
            "-qw",
            f"net.ipv4.conf.{PORT}.proxy_arp=1",
            f"net.ipv4.neigh.{PORT}.proxy_delay=0",
            "net.ipv4.ip_forward=1",
        )

    def plug(self, *configuration: str) -> None:
        """The guest runs; `configuration` are `ip` commands inside it, without their "ip"."""
        guest_tap = open_tap(self.guest, "eth0")
        self.undo.callback(os.close, guest_tap)
        self.guest.run("ip", "link", "set", "eth0", "address", POD_MAC)
        theirs = open_tap(self.pod, "tap0")
        self.undo.callback(os.close, theirs)
        self.undo.callback(Wire(guest_tap, theirs).cut)
        self.guest.run("ip", "link", "set", "eth0", "up")
        deadline = time.monotonic() + PATIENCE
        while not self._forwards():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for command in configuration:
            self.guest.run("ip", *command.split())

    def _forwards(self) -> bool:
        """Whether frames pass: a port forwards once the kernel knows of its carrier, at either end."""
        links = self.pod.links()
        ports = [link for link in links.values() if "master" in link]
        return links["tap0"]["operstate"] == "UP" and all(port["operstate"] == "UP" for port in ports)

    def packets(self, sandbox: Sandbox, ifname: str) -> socket.socket:
        """A raw socket on a link, for frames in and out."""
        ear = socket_in(sandbox, socket.AF_PACKET, socket.SOCK_RAW)
        self.undo.callback(ear.close)
        ear.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
        ear.setsockopt(263, 8, 1)  # PACKET_AUXDATA
        ear.bind((ifname, 3))
        return ear


@contextmanager
def a_lab(folder: Path) -> Generator[Lab]:
    with ExitStack() as undo:
        node = undo.enter_context(a_node(folder))
        yield Lab(node, undo)


def snapshot(pod: Sandbox) -> dict[str, Any]:
    """Everything of a pod that a binding could have touched, and that neither time nor the LAN changes."""
    found = whole(pod)
    found["addresses"] = _lasting(pod.run("ip", "-d", "addr").stdout)
    for family in ("-4", "-6"):
        routes = _lasting(pod.run("ip", "-d", family, "route", "show", "table", "all").stdout)
        # Which of several IPv4 routes to one destination is used is a matter of order.
        found[f"routes {family}"] = routes if family == "-4" else sorted(routes)
        found[f"nexthops {family}"] = _lasting(pod.run("ip", "-d", family, "nexthop").stdout)
        shown = pod.run("ip", "-d", family, "neigh", "show", "nud", "all").stdout
        shown += pod.run("ip", "-d", family, "neigh", "show", "proxy").stdout
        static = filter(_STATIC.search, shown.splitlines())
        found[f"neighbours {family}"] = sorted(_AGEING.sub("", line) for line in static)
    del found["routes"]
    for what in ("maddr", "token"):
        found[what] = sorted(pod.run("ip", what).stdout.splitlines())
    return found


# The states that a neighbour which is no permanent one goes through by itself.
_AGEING: Final = re.compile(r" (REACHABLE|STALE|DELAY|PROBE)\b")
# What the kernel notes a while after it is so, and how much time is left.
_MOMENTARY: Final = re.compile(r" (tentative|linkdown|dead)\b|(?<=[a-z] )\d+sec\b")
# The kernel has entries without ARP for groups.
_STATIC: Final = re.compile(r"PERMANENT|extern_learn|managed|proxy|lladdr 02:.*NOARP")


def _lasting(shown: str) -> list[str]:
    return _MOMENTARY.sub("", shown).splitlines()


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What one snapshot has and the other has not, line by line."""
    found: list[str] = []
    for key, then in before.items():
        diff = difflib.unified_diff(lines(then), lines(after[key]), lineterm="", n=0)
        found += [f"{key}: {line}" for line in diff]
    return "\n".join(found)


def lines(shown: str | list[str]) -> list[str]:
    return shown if isinstance(shown, list) else shown.splitlines()


def difference(pod: Sandbox, before: dict[str, Any]) -> str:
    """What is different now, and stays so: the kernel notes a link's carrier only after a while."""
    deadline = time.monotonic() + PATIENCE
    while (found := changed(before, snapshot(pod))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def settle(lab: Lab) -> None:
    """Until the kernel has ended duplicate detection of its own addresses, and has their routes."""
    for each, name in ((lab.pod, "eth0"), (lab.node, PORT)):
        while not _settled(each, name):
            time.sleep(0.02)


def _settled(sandbox: Sandbox, name: str) -> bool:
    link = sandbox.link(name)
    assert link is not None
    if "UP" not in link["flags"] or "LOWER_UP" not in link["flags"]:
        return True
    off = sandbox.run("sysctl", "-n", f"net.ipv6.conf.{name}.disable_ipv6").stdout.strip() == "1"
    shown = sandbox.run("ip", "-6", "-o", "addr", "show", "scope", "link", "dev", name).stdout.splitlines()
    local = sandbox.run("ip", "-6", "route", "show", "table", "local").stdout
    settled = all("tentative" not in line and line.split()[3].split("/")[0] in local for line in shown)
    return link["operstate"] == "UP" and settled and (off or bool(shown))


def frames(ear: socket.socket, last: bytes) -> Iterator[bytes]:
    """What is heard before the frame that ends with `last`, each with the VLAN tag that it came with."""
    while True:
        data, aside, _, _ = ear.recvmsg(70000, 100)
        for _, kind, content in aside:
            status, tci = int.from_bytes(content[:4], sys.byteorder), content[16:18]
            if kind == 8 and status & (1 << 4):
                tag = int.from_bytes(tci, sys.byteorder).to_bytes(2, "big")
                data = data[:12] + content[18:20][::-1] + tag + data[12:]
        if data.endswith(last):
            return
        yield data
