"""Which listener gets what: from outside, from the guest and from the pod itself, on real kernels."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.masquerade.masquerade_pod import (
    BRIDGE_MAC,
    SIDES,
    V4,
    V6,
    Answer,
    Lab,
    Pod,
    Side,
    a_lab,
    echoes,
    frames,
    who_answers,
    who_hears,
)
from tests.functional.masquerade.test_calls import snapshot

BOTH = pytest.mark.parametrize("side", SIDES, ids=["IPv4", "IPv6"])
LISTED: dict[str, Any] = {
    "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
    "portRanges": [{"start": 8000, "end": 8010, "protocol": "TCP"}],
}
SENTINEL = b"that was all"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path) as made:
        yield made


def attached(lab: Lab, **keys: Any) -> Pod:
    """A pod with the guest behind it."""
    pod = lab.pod()
    pod.cni("ADD", **keys).ok()
    lab.plug(pod)
    return pod


def both_listen(lab: Lab, pod: Pod, side: Side, port: int) -> dict[str, socket.socket]:
    return {"pod": lab.listener(pod, side, port), "guest": lab.listener(lab.guest, side, port)}


def both_hear(lab: Lab, pod: Pod, side: Side, port: int) -> dict[str, socket.socket]:
    # Bound to one address, so that answers come from it.
    return {
        "pod": lab.datagrams(pod, side, port, side.pod),
        "guest": lab.datagrams(lab.guest, side, port, side.guest),
    }


@BOTH
def test_without_a_list_all_but_reserved_ports_lead_to_the_guest(lab: Lab, side: Side) -> None:
    pod = attached(lab)
    for port, owner in ((80, "guest"), (65535, "guest"), (49152, "pod"), (49153, "pod")):
        listeners = both_listen(lab, pod, side, port)
        # The guest sees its caller's own address.
        assert who_answers(lab.node, side, side.pod, port, **listeners) == Answer(owner, side.outside), port
    assert who_hears(lab.node, side, side.pod, 49152, **both_hear(lab, pod, side, 49152)).by == "guest"
    before = echoes(lab.guest, side)
    lab.node.run("ping", "-c", "1", "-w", "20", side.pod)
    assert echoes(lab.guest, side) == before + 1


@BOTH
def test_with_a_list_the_others_lead_to_the_pod(lab: Lab, side: Side) -> None:
    pod = attached(lab, **LISTED)
    for port, owner in (
        (80, "guest"),
        (8000, "guest"),
        (8010, "guest"),
        (8011, "pod"),
        (53, "pod"),
        (22, "pod"),
    ):
        listeners = both_listen(lab, pod, side, port)
        assert who_answers(lab.node, side, side.pod, port, **listeners).by == owner, port
    for port, owner in ((53, "guest"), (80, "pod")):
        assert who_hears(lab.node, side, side.pod, port, **both_hear(lab, pod, side, port)).by == owner, port
    assert who_answers(lab.node, side, side.pod, 9, **both_listen(lab, pod, side, 10)).by == "refused"
    before = echoes(lab.guest, side)
    lab.node.run("ping", "-c", "1", "-w", "20", side.pod)
    assert echoes(lab.guest, side) == before


@BOTH
def test_a_guest_of_one_family_is_reached_and_reaches_others(lab: Lab, side: Side) -> None:
    pod = lab.pod(sides=(side,))
    pod.cni("ADD", **LISTED).ok()
    lab.plug(pod)
    assert who_answers(lab.node, side, side.pod, 80, **both_listen(lab, pod, side, 80)).by == "guest"
    assert who_answers(lab.node, side, side.pod, 81, **both_listen(lab, pod, side, 81)).by == "pod"
    outside = lab.listener(lab.node, side, 82)
    assert who_answers(lab.guest, side, side.outside, 82, outside=outside) == Answer("outside", side.pod)


def test_a_guest_network_of_ones_own_with_host_bits(lab: Lab) -> None:
    """Gateway and guest are the network's first two, whichever of its addresses configures it."""
    pod = lab.pod()
    pod.cni("ADD", vmNetworkCIDR="192.168.66.77/26", vmIPv6NetworkCIDR="fd55::1234/112").ok()
    lab.plug(pod)
    own4 = V4._replace(guest="192.168.66.66", gateway="192.168.66.65")
    own6 = V6._replace(guest="fd55::2", gateway="fd55::1")
    lab.guest.run("ip", "-4", "addr", "flush", "dev", "eth0")
    lab.guest.run("ip", "addr", "add", f"{own4.guest}/26", "dev", "eth0")
    lab.guest.run("ip", "-4", "route", "add", "default", "via", own4.gateway)
    lab.guest.run("ip", "-6", "addr", "del", f"{V6.guest}/120", "dev", "eth0")
    lab.guest.run("ip", "addr", "add", f"{own6.guest}/112", "dev", "eth0", "nodad")
    for side in (own4, own6):
        assert who_answers(lab.node, side, side.pod, 80, **both_listen(lab, pod, side, 80)).by == "guest"
        outside = lab.listener(lab.node, side, 82)
        assert who_answers(lab.guest, side, side.outside, 82, outside=outside) == Answer("outside", side.pod)
        hairpin = who_answers(lab.guest, side, side.pod, 83, **both_listen(lab, pod, side, 83))
        assert hairpin == Answer("guest", side.gateway)


@BOTH
def test_the_guest_goes_out_as_its_pod(lab: Lab, side: Side) -> None:
    attached(lab)
    listeners = {"outside": lab.listener(lab.node, side, 80)}
    assert who_answers(lab.guest, side, side.outside, 80, **listeners) == Answer("outside", side.pod)
    bound = {"outside": lab.datagrams(lab.node, side, 53, side.outside)}
    assert who_hears(lab.guest, side, side.outside, 53, **bound) == Answer("outside", side.pod)
    lab.guest.run("ping", "-c", "1", "-w", "20", side.outside)


@BOTH
@pytest.mark.parametrize("keys", [{}, LISTED], ids=["all ports", "listed ports"])
def test_the_guest_reaches_itself_by_its_pods_address(lab: Lab, side: Side, keys: dict[str, Any]) -> None:
    pod = attached(lab, **keys)
    listeners = both_listen(lab, pod, side, 80)
    gateway = lab.gateway(pod, side)
    assert who_answers(lab.guest, side, side.pod, 80, **listeners) == Answer("guest", gateway)
    assert who_hears(lab.guest, side, side.pod, 53, **both_hear(lab, pod, side, 53)).by == "guest"
    before = echoes(lab.guest, side)
    lab.guest.run("ping", "-c", "1", "-w", "20", side.pod)
    # With a list ICMP is the pod's, from wherever it comes.
    assert echoes(lab.guest, side) == before + (0 if keys else 1)


@BOTH
def test_hairpins_do_not_depend_on_what_bridges_hand_to_iptables(lab: Lab, side: Side) -> None:
    pod = lab.pod()
    key = f"net/bridge/bridge-nf-call-{'iptables' if side is V4 else 'ip6tables'}"
    if pod.run("test", "-e", f"/proc/sys/{key}", check=False).returncode:
        pytest.skip("this kernel has no br_netfilter")
    # As on every node of a cluster.
    pod.run("sysctl", "-qw", f"{key}=1")
    pod.cni("ADD").ok()
    lab.plug(pod)
    assert who_answers(lab.guest, side, side.pod, 80, **both_listen(lab, pod, side, 80)).by == "guest"


@BOTH
def test_without_hairpin_the_pod_answers_there(lab: Lab, side: Side) -> None:
    pod = attached(lab, hairpin=False)
    assert who_answers(lab.guest, side, side.pod, 80, **both_listen(lab, pod, side, 80)).by == "pod"


@pytest.mark.parametrize("keys", [{}, LISTED], ids=["all ports", "listed ports"])
def test_the_loopback_of_the_pod_leads_to_the_guest(lab: Lab, keys: dict[str, Any]) -> None:
    pod = attached(lab, **keys)
    listeners = both_listen(lab, pod, V4, 80)
    assert who_answers(pod, V4, "127.0.0.1", 80, **listeners) == Answer("guest", V4.gateway)
    kept = both_listen(lab, pod, V4, 49152)
    assert who_answers(pod, V4, "127.0.0.1", 49152, **kept).by == "pod"
    # The pod's other loopback addresses are its own, and so is ::1: at once, and not after a timeout.
    assert who_answers(pod, V4, "127.0.0.2", 80, **listeners).by == "pod"
    assert who_answers(pod, V6, "::1", 80, **both_listen(lab, pod, V6, 80)).by == "pod"


def test_with_istio_all_comes_from_the_loopback_and_ssh_directly(lab: Lab) -> None:
    pod = attached(lab, istio=True)
    for port, owner in ((22, "guest"), (80, "pod"), (15001, "pod")):
        listeners = both_listen(lab, pod, V4, port)
        assert who_answers(lab.node, V4, V4.pod, port, **listeners).by == owner, port
    # Envoy hands what came in on to the pod's own address, from 127.0.0.6.
    listeners = both_listen(lab, pod, V4, 81)
    with lab.unbound(pod, V4) as envoy:
        envoy.bind(("127.0.0.6", 0))
        envoy.connect((V4.pod, 81))
        taken, peer = listeners["guest"].accept()
        taken.close()
    assert peer[0] == V4.gateway
    assert who_answers(pod, V4, "127.0.0.1", 15021, **both_listen(lab, pod, V4, 15021)).by == "pod"


@BOTH
@pytest.mark.parametrize(
    "sysctls",
    [
        ("net.ipv6.conf.default.addr_gen_mode=1",),
        ("net.ipv6.conf.default.stable_secret=2001:db8::1", "net.ipv6.conf.default.addr_gen_mode=2"),
        (
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            *(
                f"net.ipv{version}.conf.{name}.forwarding=0"
                for version in "46"
                for name in ("default", "eth0")
            ),
        ),
        ("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1"),
        ("net.ipv6.conf.default.disable_ipv6=1", "net.ipv6.conf.all.forwarding=1"),
    ],
    ids=["no link-local address", "a stable secret", "forwarding here and there", "rp_filter", "no IPv6"],
)
def test_what_new_links_get_by_default_makes_no_difference(
    lab: Lab, side: Side, sysctls: tuple[str, ...]
) -> None:
    pod = lab.pod()
    pod.run("sysctl", "-qw", *sysctls)
    before = snapshot(pod)
    pod.cni("ADD").ok()
    pod.cni("CHECK").ok()
    lab.plug(pod)
    outside = {"outside": lab.listener(lab.node, side, 80)}
    assert who_answers(lab.guest, side, side.outside, 80, **outside) == Answer("outside", side.pod)
    assert who_answers(lab.node, side, side.pod, 80, **both_listen(lab, pod, side, 80)).by == "guest"
    # A router that does not say that it is one is none any more (RFC 4861, 7.2.5).
    assert side is V4 or " router " in lab.guest.run("ip", "-6", "neigh").stdout
    pod.cni("CHECK").ok()
    pod.cni("DEL").ok()
    assert snapshot(pod) == before


# guards


@BOTH
def test_the_guest_does_not_reach_the_loopback_of_the_pod(lab: Lab, side: Side) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    pod = attached(lab)
    loopback = "127.0.0.1" if side is V4 else "::1"
    ear = lab.datagrams(pod, side, 9999)
    mouth = lab.packets(lab.guest)
    layer = IP if side is V4 else IPv6
    for target, data in ((loopback, b"secret"), (side.gateway, SENTINEL)):
        packet = layer(src=side.guest, dst=target) / UDP(sport=1024, dport=9999) / data
        mouth.send(bytes(Ether(src=lab.guest_mac, dst=BRIDGE_MAC) / packet))
    assert ear.recv(2000) == SENTINEL
    # What is sent to ::1 from elsewhere the kernel itself drops before any rule sees it.
    assert pod.counted("the guest to the loopback of the pod", side.nft) == (1 if side is V4 else 0)


@BOTH
@pytest.mark.parametrize("target", ["outside", "pod"])
def test_the_guest_sends_with_its_own_address_only(lab: Lab, side: Side, target: str) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    pod = attached(lab)
    receiver = lab.node if target == "outside" else pod
    address = side.outside if target == "outside" else side.gateway
    foreign = (
        ("192.0.2.7", "10.0.2.3", "127.0.0.1", V4.pod, V4.gateway)
        if side is V4
        else ("2001:db8::7", "fd10:0:2::3", V6.pod, V6.gateway, "::1")
    )
    ear = lab.datagrams(receiver, side, 9999)
    mouth = lab.packets(lab.guest)
    layer = IP if side is V4 else IPv6
    for source in (*foreign, side.guest):
        data = SENTINEL if source == side.guest else b"spoofed"
        packet = layer(src=source, dst=address) / UDP(sport=1024, dport=9999) / data
        mouth.send(bytes(Ether(src=lab.guest_mac, dst=BRIDGE_MAC) / packet))
    assert ear.recv(2000) == SENTINEL
    # The kernel itself drops what claims to come from ::1 before any rule sees it.
    expected = len(foreign) - (side is V6)
    assert pod.counted("the guest with a source that is not its own", side.nft) == expected


@BOTH
def test_the_inner_address_is_no_way_round_the_list_of_ports(lab: Lab, side: Side) -> None:
    pod = attached(lab, **LISTED)
    ear = lab.packets(lab.guest)
    inner = "10.0.2.0/24" if side is V4 else "fd10:0:2::/120"
    lab.node.run("ip", "route", "add", inner, "via", side.pod)
    with lab.unbound(lab.node, side, socket.SOCK_DGRAM) as mouth:
        mouth.sendto(b"not for you", (side.guest, 9999))
        mouth.sendto(SENTINEL, (side.pod, 53))
    assert not any(frame.endswith(b"not for you") for frame in frames(ear, SENTINEL))
    assert pod.counted("the inner address from outside", side.nft) == 1


@BOTH
def test_dhcp_of_the_guest_gets_no_answer_from_the_kernel(lab: Lab, side: Side) -> None:
    pod = attached(lab)
    port, client = (67, 68) if side is V4 else (547, 546)
    ear = lab.packets(lab.guest)
    # A renewal: there is no listener there, and yet the guest must get no error.
    with lab.datagrams(lab.guest, side, client, side.guest) as renewing:
        renewing.sendto(b"renew", (side.gateway, port))
        # The answer to a ping comes behind whatever the renewal was answered with.
        lab.guest.run("ping", "-c", "1", "-w", "20", side.gateway)
        renewing.sendto(SENTINEL, (side.pod, client))
        arrived = list(frames(ear, SENTINEL))
    assert not any(frame.endswith(b"renew") and b"\x03\x03" in frame for frame in arrived)
    assert pod.counted("DHCP", side.nft) == 1


@BOTH
def test_a_hairpin_brings_no_redirects(lab: Lab, side: Side) -> None:
    pod = attached(lab)
    ear = lab.packets(lab.guest)
    # Where the protocol and the ICMP type are in a frame, and what they are in a redirect.
    at, type_at, redirect = (23, 34, b"\x01\x05") if side is V4 else (20, 54, b"\x3a\x89")
    assert who_answers(lab.guest, side, side.pod, 80, **both_listen(lab, pod, side, 80)).by == "guest"
    lab.guest.run("ping", "-c", "3", "-i", "0.2", "-W", "20", side.pod)
    with lab.unbound(lab.node, side, socket.SOCK_DGRAM) as mouth:
        mouth.sendto(SENTINEL, (side.pod, 9))
    kinds = [frame[at : at + 1] + frame[type_at : type_at + 1] for frame in frames(ear, SENTINEL)]
    # IPv6 has no sysctl for it: the kernel would have sent some.
    assert side is V4 or pod.counted("redirects to the guest", "ip6") > 0
    assert redirect not in kinds
    assert kinds


# sizes


@pytest.mark.parametrize("mtu", [1400, 9000, 16000])
def test_packets_as_long_as_the_pods_interface_takes_pass_whole(tmp_path: Path, mtu: int) -> None:
    with a_lab(tmp_path, mtu) as lab:
        pod = attached(lab)
        assert {(pod.link(name) or {})["mtu"] for name in ("k6t-eth0", "tap0")} == {mtu}
        ear = lab.packets(lab.guest)
        for side, overhead in ((V4, 28), (V6, 48)):
            data = SENTINEL.rjust(mtu - overhead, b"x")
            bound = {"guest": lab.datagrams(lab.guest, side, 53, side.guest)}
            with lab.unbound(lab.node, side, socket.SOCK_DGRAM) as mouth:
                mouth.sendto(data, (side.pod, 53))
            received, _ = bound["guest"].recvfrom(70000)
            assert received == data
            while not (frame := ear.recv(70000)).endswith(data):
                pass
            assert len(frame) == mtu + 14
