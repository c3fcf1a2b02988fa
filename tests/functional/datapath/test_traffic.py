"""Honest guests with all guards on: their own network stacks at work, through the installed executable."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

import pytest

from tests.functional.bridge.network import OURS, Network, host_local
from tests.harness import Node, Sandbox, peer

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
