"""Honest guests with all guards on: their own network stacks at work, through the installed executable."""

from __future__ import annotations

import itertools
import re
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, NamedTuple

import pytest

from cnvnet.kernel import netns
from tests.functional.bridge.bridge_network import OURS, Network, host_local
from tests.harness import Node, Sandbox, peer

# include/uapi/asm-generic/socket.h
SO_RCVBUFFORCE = 33
FOREIGN = "02:00:00:00:00:ee"
SERVE = """
import socket, sys
server = socket.create_server((sys.argv[1], 7777), family=int(sys.argv[2]))
print("listening", flush=True)
connection, _ = server.accept()
while data := connection.recv(65536):
    connection.sendall(data)
"""
CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], 7777), timeout=10) as connection:
    sent = b"x" * 300_000
    import threading
    threading.Thread(target=connection.sendall, args=(sent,)).start()
    got = 0
    while got < len(sent):
        got += len(connection.recv(65536))
print(got)
"""


class Guest(NamedTuple):
    pod: Sandbox
    network: Network
    result: dict[str, Any]
    container_id: str

    @property
    def ipv4(self) -> str:
        return str(self.result["ips"][0]["address"]).partition("/")[0]

    @property
    def ipv6(self) -> str:
        return str(self.result["ips"][1]["address"]).partition("/")[0]

    @property
    def mac(self) -> str:
        return str(self.result["interfaces"][2]["mac"])

    def check(self) -> Any:
        return self.network.check(self.pod, self.result, container_id=self.container_id)


@pytest.fixture
def guests(node: Node) -> list[Guest]:
    peer("host-local")
    ipam = host_local(node, "10.1.2.0/24", "fd00::/64")
    network = Network(
        node, OURS, isGateway=True, macspoofchk=True, ipspoofchk=True, enabledad=True, ipam=ipam
    )
    made: list[Guest] = []
    for number in range(2):
        pod, container_id = node.pod(), f"vm-{number}"
        made.append(Guest(pod, network, network.add(pod, container_id=container_id).ok(), container_id))
    return made


def pings(guest: Guest, address: str, *more: str) -> bool:
    return guest.pod.run("ping", "-qc1", "-w2", *more, address, check=False).returncode == 0


def reports(node: Node) -> str:
    return node.run("nft", "list", "counters", "table", "bridge", "cnv_bridge").stdout


def test_guests_reach_each_other_and_the_gateway(guests: list[Guest]) -> None:
    one, other = guests
    for address in (other.ipv4, other.ipv6, "10.1.2.1", "fd00::1"):
        assert pings(one, address)
        assert pings(one, address, "-s", "4000"), "fragments pass"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_connection_works_both_ways(guests: list[Guest], family: str) -> None:
    one, other = guests
    address, number = getattr(other, family), "2" if family == "ipv4" else "10"
    with other.pod.popen(sys.executable, "-c", SERVE, address, number, stdout=-1) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert one.pod.run(sys.executable, "-c", CALL, address).stdout == "300000\n"
        server.wait(timeout=10)


@pytest.mark.parametrize("pattern", ["05", "09", "43", "86"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_large_echoes_come_back_whatever_is_in_them(guests: list[Guest], family: str, pattern: str) -> None:
    """5 and 9 are the types of ICMP redirects and router advertisements."""
    one, other = guests
    address = getattr(other, family)
    assert pings(one, address)
    output = one.pod.run("ping", "-qc20", "-i0.01", "-W2", "-s3000", f"-p{pattern}", address).stdout
    assert " 0% packet loss" in output


@contextmanager
def datagrams(one: Guest, other: Guest, family: str) -> Generator[Callable[[bytes], bytes]]:
    """Sends one from the one guest to the other, and returns what arrives."""
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        for guest in (one, other):
            with netns.opened(guest.pod.netns) as inside, netns.entered(inside):
                kind = socket.AF_INET if family == "ipv4" else socket.AF_INET6
                made = opened.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
            made.settimeout(2)
            made.bind((getattr(guest, family), 7777))
            sockets.append(made)
        mouth, ear = sockets

        def carry(data: bytes) -> bytes:
            mouth.sendto(data, (getattr(other, family), 7777))
            return ear.recv(65536)

        yield carry


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_datagrams_arrive_whatever_is_in_them(guests: list[Guest], family: str) -> None:
    """Of 8,000 bytes that look like the ports of DHCP and DHCPv6 wherever they are cut; and random ones."""
    one, other = guests
    assert pings(one, getattr(other, family))
    random = Random(1)
    with datagrams(one, other, family) as carry:
        for first, second in itertools.product((67, 68, 546, 547), repeat=2):
            data = (first.to_bytes(2) + second.to_bytes(2)) * 2000
            for _ in range(20):
                assert carry(data) == data
        for _ in range(3000):
            data = random.randbytes(60_000)
            assert carry(data) == data
    assert not dropped(one.network.node)


def dropped(node: Node) -> dict[str, int]:
    """What is counted, but for `passed_other`."""
    found = re.findall(r"counter (\w+) \{\s+packets (\d+)", reports(node))
    return {name: int(number) for name, number in found if int(number) and name != "passed_other"}


def test_duplicate_detection_ends_well_and_link_local_addresses_work(guests: list[Guest]) -> None:
    one, other = guests
    deadline = time.monotonic() + 10
    while any(_tentative(guest) for guest in guests):
        assert time.monotonic() < deadline, "duplicate detection never ends"
        time.sleep(0.05)
    own = next(a for a in _addresses(other) if a["local"].startswith("fe80:"))["local"]
    assert pings(one, f"{own}%eth0")


def _addresses(guest: Guest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = guest.pod.ip("-6", "addr", "show", "dev", "eth0")[0]["addr_info"]
    assert not any(address.get("dadfailed") for address in found)
    return found


def _tentative(guest: Guest) -> bool:
    return any(address.get("tentative") for address in _addresses(guest))


def test_a_guest_with_another_mac_is_silent_until_it_has_its_own_again(guests: list[Guest]) -> None:
    one, other = guests
    assert pings(one, other.ipv4)
    one.pod.run("ip", "link", "set", "eth0", "address", FOREIGN)
    assert not pings(one, other.ipv4)
    assert not pings(one, "10.1.2.1")
    one.pod.run("ip", "link", "set", "eth0", "address", one.mac)
    assert pings(one, other.ipv4)


def test_a_guest_that_takes_anothers_address_takes_nothing(node: Node, guests: list[Guest]) -> None:
    one, other = guests
    assert pings(other, "10.1.2.1")
    one.pod.run("ip", "addr", "add", f"{other.ipv4}/24", "dev", "eth0")
    assert not pings(one, "10.1.2.1", "-I", other.ipv4)
    known = node.ip("neigh", "show", "10.1.2.3", "dev", "bridge0")
    assert [entry.get("lladdr") for entry in known] == [other.mac]
    assert pings(other, "10.1.2.1")


@pytest.mark.alone  # which would load the table itself
@pytest.mark.parametrize("command", ["flush ruleset", "flush table bridge cnv_bridge"])
def test_check_notices_a_flush_and_the_next_add_loads_the_table_again(
    node: Node, guests: list[Guest], command: str
) -> None:
    assert guests[0].check().ok() is None
    node.run("nft", *command.split())
    assert "spoof" in guests[0].check().error()["msg"] or "cnv_bridge" in guests[0].check().error()["msg"]
    pod = node.pod()
    guests[0].network.add(pod, container_id="vm-2").ok()
    assert "spoofed_ipv4" in reports(node)
