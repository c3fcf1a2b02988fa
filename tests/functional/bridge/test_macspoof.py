"""`macspoofchk`: a port passes frames from its own MAC only.

The guards beyond the MAC, and what crafted frames do, are the data path's tests; here it is the objects and
one honest look at the frames.
"""

from __future__ import annotations

import sys

import pytest

from tests.functional.bridge.bridge_network import OURS, REFERENCE, Network, host_local, ports, ruleset
from tests.harness import VERSIONS, Node, Sandbox

# Sends COUNT copies of a frame; hears those of one sender; both inside a pod.
SEND = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
link.send(bytes.fromhex(sys.argv[1]))
"""
HEAR = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 0))
print("listening", flush=True)
marks = [mark.encode() for mark in sys.argv[1:]]
while True:
    frame = link.recv(2000)
    for mark in marks:
        if mark in frame:
            print(mark.decode(), flush=True)
"""
HONEST = "02:00:00:00:00:0a"
FOREIGN = "02:00:00:00:00:ee"


def frame(source: str, payload: str, *, tags: tuple[int, ...] = ()) -> str:
    """A broadcast of an experimental EtherType (IEEE 802: 0x88b5) as hexadecimal digits."""
    tagged = "".join(f"8100{vid:04x}" for vid in tags)
    return "ff" * 6 + source.replace(":", "") + tagged + "88b5" + payload.encode().hex().ljust(92, "0")


def heard(listener: Sandbox, sender: Sandbox, frames: dict[str, str]) -> list[str]:
    """Which of the payloads arrive; the last one must, and tells that the others are through or lost."""
    with listener.popen(sys.executable, "-c", HEAR, *frames, stdout=-1) as ear:
        assert ear.stdout is not None
        ear.stdout.readline()
        for hexadecimal in frames.values():
            sender.run(sys.executable, "-c", SEND, hexadecimal)
        arrived: list[str] = []
        while not arrived or arrived[-1] != list(frames)[-1]:
            arrived.append(ear.stdout.readline().strip())
        ear.kill()
    return arrived


@pytest.fixture
def sender_and_listener(node: Node, program: str) -> tuple[Sandbox, Sandbox]:
    sender, listener = node.pod(), node.pod()
    network = Network(node, program, macspoofchk=True)
    network.add(sender, container_id="sender", args=f"MAC={HONEST}").ok()
    network.with_(macspoofchk=False).add(listener, container_id="listener").ok()
    return sender, listener


def test_spoofed_frames_are_dropped_and_honest_ones_pass(
    sender_and_listener: tuple[Sandbox, Sandbox],
) -> None:
    sender, listener = sender_and_listener
    frames = {
        "spoofed": frame(FOREIGN, "spoofed"),
        "tagged-spoof": frame(FOREIGN, "tagged-spoof", tags=(7,)),
        "tagged-honest": frame(HONEST, "tagged-honest", tags=(7,)),
        "honest": frame(HONEST, "honest"),
    }
    assert heard(listener, sender, frames) == ["tagged-honest", "honest"]


def test_a_pod_that_changes_its_mac_is_heard_no_more(sender_and_listener: tuple[Sandbox, Sandbox]) -> None:
    sender, listener = sender_and_listener
    sender.run("ip", "link", "set", "eth0", "address", FOREIGN)
    frames = {"changed": frame(FOREIGN, "changed"), "honest": frame(HONEST, "honest")}
    assert heard(listener, sender, frames) == ["honest"]


def test_without_the_check_any_mac_is_heard(node: Node, program: str) -> None:
    sender, listener = node.pod(), node.pod()
    network = Network(node, program)
    network.add(sender, container_id="sender", args=f"MAC={HONEST}").ok()
    network.add(listener, container_id="listener").ok()
    frames = {"spoofed": frame(FOREIGN, "spoofed"), "honest": frame(HONEST, "honest")}
    assert heard(listener, sender, frames) == ["spoofed", "honest"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_check_names_port_and_mac_until_the_delete(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    ipam = host_local(node, "10.1.2.0/24")
    network = Network(node, program, version, isGateway=True, macspoofchk=True, ipam=ipam)
    network.add(pod).ok()
    port, mac = ports(node)[0], (pod.link("eth0") or {})["address"]
    assert port in ruleset(node)
    assert mac in ruleset(node)
    network.delete(pod).ok()
    assert port not in ruleset(node)
    assert mac not in ruleset(node)


def test_the_references_chains_are_those_of_the_list(node: Node, pod: Sandbox) -> None:
    network = Network(node, REFERENCE, macspoofchk=True)
    network.add(pod).ok()
    comment = 'comment "macspoofchk-dummy-0-eth0"'
    for chain, rules in (
        ("PREROUTING", 1),
        ("cni-br-iface-dummy-0-eth0", 1),
        ("cni-br-iface-dummy-0-eth0-mac", 2),
    ):
        shown = node.run("nft", "list", "chain", "bridge", "nat", chain).stdout
        assert shown.count(comment) == rules
    network.delete(pod).ok()
    assert "dummy-0" not in ruleset(node)


def test_our_chain_is_the_same_for_any_number_of_ports(node: Node) -> None:
    network = Network(node, OURS, macspoofchk=True)
    rules: list[str] = []
    for number in range(3):
        network.add(node.pod(), container_id=f"vm-{number}").ok()
        rules.append(node.run("nft", "-s", "-t", "list", "table", "bridge", "cnv_bridge").stdout)
    assert rules[0] == rules[1] == rules[2]
    assert "veth" not in rules[0]


def test_one_pod_of_two_keeps_its_guard_when_the_other_goes(node: Node, program: str) -> None:
    network = Network(node, program, macspoofchk=True)
    pods = [node.pod(), node.pod()]
    for number, pod in enumerate(pods):
        network.add(pod, container_id=f"vm-{number}", args=f"MAC=02:00:00:00:00:0{number}").ok()
    network.delete(pods[0], container_id="vm-0").ok()
    assert "02:00:00:00:00:00" not in ruleset(node)
    assert "02:00:00:00:00:01" in ruleset(node)
    listener = node.pod()
    network.add(listener, container_id="listener").ok()
    frames = {
        "spoofed": frame(FOREIGN, "spoofed"),
        "honest": frame("02:00:00:00:00:01", "honest"),
    }
    assert heard(listener, pods[1], frames) == ["honest"]
