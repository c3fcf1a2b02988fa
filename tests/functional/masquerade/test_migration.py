"""A VM that moves to another pod with the same addresses keeps its connections; no other host gets in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.masquerade.masquerade_pod import SIDES, Lab, Pod, Side, a_lab, frames

BOTH = pytest.mark.parametrize("side", SIDES, ids=["IPv4", "IPv6"])
LISTED = [{"port": 7777}]
SENTINEL = b"that was all"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path) as made:
        yield made


def role(which: str) -> dict[str, Any]:
    return {"args": {"cni": {"vm": {"name": "vm1", "role": which}}}}


def move(lab: Lab, source: Pod, target: Pod) -> None:
    """The VM runs in the target from now on, which has the pod's addresses; announces itself at once."""
    source.run("ip", "link", "set", "eth0", "down")
    target.run("ip", "link", "set", "eth0", "up")
    lab.plug(target)
    lab.node.run("ip", "neigh", "flush", "all")


def exchange(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.send(b"are you there?")
        assert receiver.recv(2000) == b"are you there?"


@BOTH
@pytest.mark.parametrize("keys", [{}, {"ports": LISTED}], ids=["all ports", "listed ports"])
def test_connections_live_on_in_both_directions(lab: Lab, side: Side, keys: dict[str, Any]) -> None:
    source, target = lab.pod(), lab.pod(up=False)
    source.cni("ADD", **keys, **role("active")).ok()
    lab.plug(source)
    listening = lab.listener(lab.guest, side, 7777)
    inbound = lab.unbound(lab.node, side)
    inbound.connect((side.pod, 7777))
    served, _ = listening.accept()
    served.settimeout(20)
    outside = lab.listener(lab.node, side, 80)
    outbound = lab.unbound(lab.guest, side)
    outbound.connect((side.outside, 80))
    called, _ = outside.accept()
    called.settimeout(20)
    exchange(inbound, served)
    exchange(outbound, called)
    target.cni("ADD", **keys, **role("target")).ok()
    target.cni("CHECK", **keys, **role("target")).ok()
    move(lab, source, target)
    with served, called:
        # Each side speaks first once: either packet has to make the flow known to the new pod.
        exchange(inbound, served)
        exchange(called, outbound)


@BOTH
def test_an_ack_before_the_syn_opens_no_port_that_is_not_listed(lab: Lab, side: Side) -> None:
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    pod = lab.pod()
    pod.cni("ADD", ports=[*LISTED, {"port": 53, "protocol": "UDP"}], **role("target")).ok()
    lab.plug(pod)
    family = "ip" if side.family == socket.AF_INET else "ip6"
    # A guest that keeps silent, so that its RST does not end the flow before the SYN comes.
    mute = "type filter hook output priority 0; policy accept; tcp flags rst drop;"
    lab.guest.run("nft", f"add table {family} mute; add chain {family} mute out {{ {mute} }}")
    lab.node.run("ping", "-c", "1", "-w", "20", side.pod)
    source = (lab.node.link("br0") or {})["address"]
    pod_mac = (pod.link("eth0") or {})["address"]
    ear, mouth = lab.packets(lab.guest), lab.packets(lab.node, "br0")
    layer = IP if family == "ip" else IPv6

    def send(what: Any) -> None:
        mouth.send(bytes(Ether(src=source, dst=pod_mac) / layer(src=side.outside, dst=side.pod) / what))

    for port in (2222, 49152):
        for flags in ("A", "S", "SF", "SP"):
            send(TCP(sport=5555, dport=port, flags=flags) / f"{port} {flags}".encode())
    send(UDP(sport=5555, dport=53) / SENTINEL)
    arrived = [frame.rpartition(b"\x00")[2] for frame in frames(ear, SENTINEL)]
    arrived = [data for data in arrived if data[:4].isdigit()]
    # The first is of a flow that might have moved here; none begins one. Reserved ports are the pod's alone.
    assert arrived == [b"2222 A"]
    assert pod.counted("a new connection to a port not listed", family) > 0


@BOTH
def test_a_pod_that_is_no_target_takes_nothing_up(lab: Lab, side: Side) -> None:
    pod = lab.pod()
    pod.cni("ADD", ports=LISTED).ok()
    rules = pod.run("nft", "list", "ruleset").stdout
    assert "moved with the VM" not in rules
    assert "a new connection" not in rules
