"""A bridge with a guarded guest and a listener on it, and eyes on what the one's frames do."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import NamedTuple

from cnvnet.kernel import netns
from cnvnet.kernel.addresses import link_local
from cnvnet.kernel.nft.tables import open_nft
from cnvnet.plugins.cnv_bridge import guards
from cnvnet.plugins.cnv_bridge.guards import Guards
from tests.functional.bridge.bridge_network import OURS, Network, host_local
from tests.harness import Node, Sandbox, a_node, peer

ALL = Guards(macspoofchk=True, ipspoofchk=True, dhcp_guard=True, ra_guard=True)
# IEEE 802: an EtherType for experiments, and an end mark that no kernel sends by itself.
SENTINEL = b"\x88\xb5" + b"that was all" * 5


class Guest(NamedTuple):
    """The guest, as far as its guards are concerned."""

    mac: str
    ipv4: str
    ipv6: str

    @property
    def link_local(self) -> str:
        return str(link_local(bytes.fromhex(self.mac.replace(":", ""))))


class Lab:
    """Frames go out of the guest's interface as bytes, and come to the listener or not."""

    def __init__(self, host: Sandbox, pod: Sandbox, ear: Sandbox, guest: Guest) -> None:
        self.host = host
        self.pod = pod
        self.ear = ear
        self.guest = guest
        self._mouth = packet_socket(pod)
        self._ear = packet_socket(ear)
        self._ear.settimeout(5)
        self._counted: dict[str, int] = {}

    def close(self) -> None:
        self._mouth.close()
        self._ear.close()

    def passes(self, frame: bytes) -> bool:
        """Whether a frame comes through; the kernel shows a tagged one without its (outer) tag."""
        self._counted = {}
        self._mouth.send(frame)
        self._mouth.send(b"\xff" * 6 + frame_mac(self.guest.mac) + SENTINEL)
        wanted = frame[:12] + frame[16:] if frame[12:14] in (b"\x81\x00", b"\x88\xa8") else frame
        passed = False
        while (arrived := self._ear.recv(4000))[12:] != SENTINEL:
            passed = passed or arrived == wanted
        return passed

    def counters(self) -> dict[str, int]:
        """How many frames were dropped for each reason."""
        shown = self.host.run("nft", "-j", "list", "counters", "table", "bridge", "cnv_bridge").stdout
        objects = [item["counter"] for item in json.loads(shown)["nftables"] if "counter" in item]
        return {counter["name"]: counter["packets"] for counter in objects}

    def verdict(self, frame: bytes) -> str:
        """The word "passed", or the reason why not."""
        before = self._counted or self.counters()
        passed = self.passes(frame)
        after = self._counted = self.counters()  # for the next frame: a look costs more than all else
        reasons = [name for name in after if after[name] > before[name] and name != "passed_other"]
        assert passed or reasons, "lost for no reason"
        assert not (passed and reasons), f"counted as {reasons}, and passed"
        return "passed" if passed else "+".join(reasons)


def packet_socket(sandbox: Sandbox, ifname: str = "eth0") -> socket.socket:
    with netns.opened(sandbox.netns) as inside, netns.entered(inside):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((ifname, 0))
    return made


def frame_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@contextmanager
def bare_lab(folder: Path, wanted: Guards) -> Generator[Lab]:
    """The table and its elements alone, on links made by iproute2."""
    guest = Guest("02:00:00:00:00:05", "10.1.2.5", "fd00::5")
    with ExitStack() as undo:
        host = undo.enter_context(a_node(folder))
        host.run("ip", "link", "add", "bridge0", "type", "bridge", "no_linklocal_learn", "1")
        host.run("ip", "link", "set", "bridge0", "up")
        with netns.opened(host.netns) as inside, open_nft(inside) as nft:
            guards.ensure(nft)
            addresses = [ip_interface(f"{guest.ipv4}/24"), ip_interface(f"{guest.ipv6}/64")]
            nft.change(add=guards.elements("guest0", guest.mac, addresses, wanted))
        pod, ear = host.pod(), host.pod()
        for sandbox, port, mac in ((pod, "guest0", guest.mac), (ear, "ear0", "02:00:00:00:00:01")):
            _plug(host, sandbox, port, mac)
        lab = Lab(host, pod, ear, guest)
        undo.callback(lab.close)
        yield lab


@contextmanager
def installed_lab(folder: Path, wanted: Guards) -> Generator[Lab]:
    """The same through the installed executable."""
    peer("host-local")
    with ExitStack() as undo:
        node = undo.enter_context(a_node(folder))
        pod, ear = node.pod(), node.pod()
        mac = "02:00:00:00:00:05"
        network = Network(
            node,
            OURS,
            macspoofchk=wanted.macspoofchk,
            ipspoofchk=wanted.ipspoofchk,
            dhcpGuard=wanted.dhcp_guard,
            raGuard=wanted.ra_guard,
            ipam=host_local(node, "10.1.2.0/24", "fd00::/64"),
            args={"cni": {"mac": mac}},
        )
        result = network.add(pod, container_id="guest").ok()
        ipv4, ipv6 = (ip["address"].partition("/")[0] for ip in result["ips"])
        plain = network.with_(macspoofchk=False, ipspoofchk=False, dhcpGuard=False, raGuard=False, args={})
        plain.add(ear, container_id="ear").ok()
        lab = Lab(node, pod, ear, Guest(mac, ipv4, ipv6))
        undo.callback(lab.close)
        yield lab


def _plug(host: Node, sandbox: Sandbox, port: str, mac: str) -> None:
    pid = sandbox.netns.split("/")[2]
    host.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pid)
    sandbox.run("ip", "link", "set", "eth0", "address", mac, "addrgenmode", "none", "up")
    host.run("ip", "link", "set", port, "master", "bridge0", "up")
