"""The guest on its LAN: what passes, what does not, and what no other host may hear, on real kernels."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.dhcp6 import DHCP6_Advertise, DHCP6_Solicit
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from tests.functional.datapath.frames import tagged
from tests.functional.masquerade.masquerade_pod import (
    PATIENCE,
    Answer,
    Side,
    socket_in,
    who_answers,
    who_hears,
)
from tests.functional.vm_bridge.vm_bridge_pod import (
    LAN_MAC,
    POD_MAC,
    PORT,
    WORLD,
    WORLD6,
    Lab,
    difference,
    frames,
    settle,
    snapshot,
)
from tests.unit.guest import scapy_packets

V4 = Side(socket.AF_INET, "10.1.0.1", "10.1.0.5", "10.1.0.5", "10.1.0.1", "ip")
V6 = Side(socket.AF_INET6, "fd99::1", "fd99::5", "fd99::5", "fd99::1", "ip6")
ADDRESSES = ("addr add 10.1.0.5/24 dev eth0", "addr add fd99::5/64 dev eth0 nodad")
SENTINEL = b"that was all"
BROADCAST = "ff:ff:ff:ff:ff:ff"


def listener(lab: Lab, sandbox: Any, side: Side, host: str) -> socket.socket:
    made = socket_in(sandbox, side.family, socket.SOCK_STREAM)
    lab.undo.callback(made.close)
    made.bind((host, 80))
    made.listen()
    return made


@pytest.mark.parametrize("side", [V4, V6], ids=["IPv4", "IPv6"])
def test_the_guest_has_the_addresses_of_its_pod(lab: Lab, side: Side) -> None:
    lab.network()
    in_pod = listener(lab, lab.pod, side, side.pod)
    lab.pod.cni("ADD").ok()
    lab.plug(*ADDRESSES)
    in_guest = listener(lab, lab.guest, side, side.guest)
    outside = listener(lab, lab.node, side, side.outside)
    # The pod's kernel has the address as well, and a listener on it, which no caller reaches any more.
    assert who_answers(lab.node, side, side.pod, 80, pod=in_pod, guest=in_guest) == Answer(
        "guest", side.outside
    )
    assert who_answers(lab.guest, side, side.outside, 80, lan=outside) == Answer("lan", side.guest)


@pytest.mark.parametrize("side", [V4, V6], ids=["IPv4", "IPv6"])
def test_what_no_rule_drops_passes_the_bridge_by(lab: Lab, side: Side) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    lab.plug(*ADDRESSES)
    in_guest = listener(lab, lab.guest, side, side.guest)
    outside = listener(lab, lab.node, side, side.outside)
    datagrams = socket_in(lab.guest, side.family, socket.SOCK_DGRAM)
    lab.undo.callback(datagrams.close)
    datagrams.bind((side.guest, 53))
    # Both know the other's MAC address: what asks for it takes the bridge.
    assert who_hears(lab.node, side, side.pod, 53, guest=datagrams).by == "guest"
    lab.pod.run("ip", "link", "set", "k6t-eth0", "down")
    assert who_answers(lab.node, side, side.pod, 80, guest=in_guest).by == "guest"
    assert who_answers(lab.guest, side, side.outside, 80, lan=outside).by == "lan"
    assert who_hears(lab.node, side, side.pod, 53, guest=datagrams).by == "guest"
    # All else meets the bridge and its rules, which is down.
    assert lab.node.run("ping", "-c", "1", "-W", "1", side.pod, check=False).returncode != 0
    lab.pod.run("ip", "link", "set", "k6t-eth0", "up")


def test_a_pod_of_an_older_version_has_its_frames_pass_the_bridge(lab: Lab) -> None:
    lab.network()
    settle(lab)
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    lab.pod.run("nft", "delete", "table", "netdev", "cnv_wire_tap0")
    (path,) = (lab.node.rundir / "attachments").iterdir()
    record = json.loads(path.read_text())
    del record["undo"]["contents"]["table netdev cnv_wire_tap0"]
    path.write_text(json.dumps(record))
    lab.pod.cni("CHECK").ok()
    lab.plug(*ADDRESSES)
    in_guest = listener(lab, lab.guest, V4, V4.guest)
    assert who_answers(lab.node, V4, V4.pod, 80, guest=in_guest).by == "guest"
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""


@pytest.mark.alone  # an agent answers ARP for the DHCP server
def test_the_pods_kernel_says_nothing_on_either_side(lab: Lab) -> None:
    lab.network()
    lan = lab.packets(lab.node, PORT)
    lab.pod.cni("ADD").ok()
    lab.plug(*ADDRESSES)
    guest = lab.packets(lab.guest, "eth0")
    own = [frame for frame in frames_until(lan, guest) if frame[6:12] != mac(POD_MAC)]
    assert own == []
    # A request for the guest's address is answered by the guest alone, one for the server's not at all.
    for asked in ("10.1.0.5", "169.254.75.10"):
        request = ARP(op=1, hwsrc=LAN_MAC, psrc="10.1.0.1", pdst=asked)
        lan.send(bytes(Ether(src=LAN_MAC, dst="ff:ff:ff:ff:ff:ff") / request))
        probe = ARP(op=1, hwsrc=POD_MAC, psrc="0.0.0.0", pdst=asked)
        guest.send(bytes(Ether(src=POD_MAC, dst="ff:ff:ff:ff:ff:ff") / probe))
    lab.node.run("ping", "-c", "1", "-w", "20", "10.1.0.5")
    arrived = [Ether(frame) for frame in frames_until(lan, guest)]
    replies = [packet for packet in arrived if ARP in packet and packet[ARP].op == 2]
    assert {packet[ARP].hwsrc for packet in replies} == {POD_MAC}
    back = [Ether(frame) for frame in frames_until(guest, lan)]
    assert [p.summary() for p in back if ARP in p and p[ARP].op == 2 and p[ARP].hwsrc != LAN_MAC] == []


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frames_until(ear: socket.socket, mouth: socket.socket) -> list[bytes]:
    """What `ear` hears until a frame from `mouth`, at the other end of the wire, has come through."""
    source = POD_MAC if ear.getsockname()[0] == PORT else LAN_MAC
    frame = Ether(src=source, dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / Raw(SENTINEL.rjust(46, b"\0"))
    mouth.send(bytes(frame))
    return list(frames(ear, SENTINEL))


def wrapped(source: str, group: str, tags: list[Packet], what: Packet | Raw, kind: int) -> bytes:
    packet: Packet = Ether(src=source, dst=group)
    for tag in tags:
        packet /= tag
    packet.lastlayer().type = kind
    return bytes(packet / what)


FOREIGN: dict[str, Callable[[str], bytes]] = {
    "VLAN": lambda source: wrapped(
        source, "ff:ff:ff:ff:ff:ff", [Dot1Q(vlan=33)], Raw(b"tagged" + bytes(40)), 0x88B5
    ),
    "two VLANs": lambda source: wrapped(
        source, "ff:ff:ff:ff:ff:ff", [Dot1AD(vlan=7), Dot1Q(vlan=33)], Raw(b"twice" + bytes(41)), 0x88B5
    ),
    "IPv4 group": lambda source: bytes(
        Ether(src=source, dst="01:00:5e:01:02:03")
        / IP(src="10.1.0.9", dst="239.1.2.3")
        / UDP(dport=5000)
        / Raw(bytes(40))
    ),
    "IPv6 group": lambda source: bytes(
        Ether(src=source, dst="33:33:00:01:02:03") / IPv6(src="fd99::9", dst="ff15::1:203") / UDP(dport=5000)
    ),
    "LLDP": lambda source: wrapped(source, "01:80:c2:00:00:0e", [], Raw(b"lldp" + bytes(50)), 0x88CC),
    "802.1X": lambda source: wrapped(source, "01:80:c2:00:00:03", [], Raw(b"eapol" + bytes(50)), 0x888E),
    "BPDU": lambda source: bytes.fromhex("0180c2000000") + mac(source) + b"\x00\x26\x42\x42\x03" + bytes(43),
    "other protocol": lambda source: wrapped(source, LAN_MAC, [], Raw(b"other" + bytes(50)), 0x88B6),
}


def test_what_is_neither_ip_nor_ours_passes_both_ways(lab: Lab) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    lab.plug()
    lan, guest = lab.packets(lab.node, PORT), lab.packets(lab.guest, "eth0")
    for mouth, ear, source in ((guest, lan, POD_MAC), (lan, guest, LAN_MAC)):
        sent = {name: frame(source) for name, frame in FOREIGN.items()}
        for frame in sent.values():
            mouth.send(frame)
        arrived = frames_until(ear, mouth)
        assert [name for name, frame in sent.items() if frame not in arrived] == []


def from_guest(tags: list[Packet]) -> dict[str, bytes]:
    dhcp = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(bytes(240))
    renew = IP(src="10.1.0.5", dst="169.254.75.10") / UDP(sport=68, dport=67) / Raw(bytes(240))
    dhcp6 = IPv6(src="fe80::5", dst="ff02::1:2") / UDP(sport=546, dport=547) / DHCP6_Solicit()
    router = IPv6(src="fe80::5", dst="ff02::2", hlim=255) / ICMPv6ND_RS()
    arp = ARP(op=1, hwsrc=POD_MAC, psrc="10.1.0.5", pdst="169.254.75.10")
    # The link-local address that the gateway's MAC address makes is announced as the router's.
    solicitation = IPv6(src="fe80::5", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(
        tgt="fe80::800:ff:fe00:1"
    )
    return {
        "DHCP": wrapped(POD_MAC, BROADCAST, tags, dhcp, 0x0800),
        "renewal": wrapped(POD_MAC, LAN_MAC, tags, renew, 0x0800),
        "ARP": wrapped(POD_MAC, BROADCAST, tags, arp, 0x0806),
        "DHCPv6": wrapped(POD_MAC, "33:33:00:01:00:02", tags, dhcp6, 0x86DD),
        "RS": wrapped(POD_MAC, "33:33:00:00:00:02", tags, router, 0x86DD),
        "NS": wrapped(POD_MAC, "33:33:ff:00:00:01", tags, solicitation, 0x86DD),
    }


def from_lan(tags: list[Packet]) -> dict[str, bytes]:
    dhcp = IP(src="10.1.0.1", dst="255.255.255.255") / UDP(sport=67, dport=68) / Raw(bytes(240))
    relayed = IP(src="10.1.0.1", dst="10.1.0.5") / UDP(sport=4000, dport=68) / Raw(bytes(240))
    dhcp6 = IPv6(src="fe80::1", dst="fe80::5") / UDP(sport=547, dport=546) / DHCP6_Advertise()
    router = IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA()
    return {
        "DHCP": wrapped(LAN_MAC, "ff:ff:ff:ff:ff:ff", tags, dhcp, 0x0800),
        "DHCP unicast": wrapped(LAN_MAC, POD_MAC, tags, relayed, 0x0800),
        "DHCPv6": wrapped(LAN_MAC, POD_MAC, tags, dhcp6, 0x86DD),
        "RA": wrapped(LAN_MAC, "33:33:00:00:00:01", tags, router, 0x86DD),
    }


def passed(lab: Lab, tags: list[Packet]) -> dict[str, list[str]]:
    """Which of these frames come out at the other end, by direction."""
    lan, guest = lab.packets(lab.node, PORT), lab.packets(lab.guest, "eth0")
    found: dict[str, list[str]] = {}
    for mouth, ear, sent in ((guest, lan, from_guest(tags)), (lan, guest, from_lan(tags))):
        for frame in sent.values():
            mouth.send(frame)
        arrived = frames_until(ear, mouth)
        found["guest" if mouth is guest else "LAN"] = [
            name for name, frame in sent.items() if frame in arrived
        ]
    return found


ALL = {"guest": list(from_guest([])), "LAN": list(from_lan([]))}
NONE: dict[str, list[str]] = {"guest": [], "LAN": []}


@pytest.mark.parametrize(
    ("keys", "tags", "expected"),
    [
        ({}, [], NONE),
        ({}, [Dot1Q(vlan=0, prio=5)], NONE),
        ({}, [Dot1AD(vlan=0)], NONE),
        ({}, [Dot1Q(vlan=0), Dot1Q(vlan=0)], NONE),
        ({}, [Dot1AD(vlan=0), Dot1Q(vlan=0)], NONE),
        ({}, [Dot1AD(vlan=7), Dot1Q(vlan=0)], ALL),
        ({"lanDHCP": True}, [Dot1Q(vlan=0), Dot1Q(vlan=0)], ALL),
        ({}, [Dot1Q(vlan=33)], ALL),
        ({}, [Dot1AD(vlan=7), Dot1Q(vlan=33)], ALL),
        ({"lanDHCP": True}, [], ALL),
        ({"guestServices": {"enabled": False}}, [], ALL),
    ],
    ids=[
        "served",
        "priority tag",
        "priority S-tag",
        "two priority tags",
        "priority tags of both kinds",
        "S-tag and priority tag",
        "lanDHCP behind priority tags",
        "VLAN",
        "two VLANs",
        "lanDHCP",
        "not served",
    ],
)
def test_guest_services_and_the_lan_do_not_hear_each_other(
    lab: Lab, keys: dict[str, Any], tags: list[Packet], expected: dict[str, list[str]]
) -> None:
    lab.network()
    lab.pod.cni("ADD", **keys).ok()
    lab.plug()
    assert passed(lab, tags) == expected


ADVERTISEMENT: dict[str, Any] = {"src": "fe80::1", "dst": "ff02::1", "hlim": 255}


def authentication(next_header: int) -> Packet:
    """An authentication header (RFC 4302) of 24 bytes."""
    return Raw(bytes((next_header, 4)) + bytes(22))


def snap(oui: int, kind: int, packet: Packet) -> bytes:
    """A frame whose length is where others have their type."""
    head = LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=oui, code=kind)
    return bytes(Dot3(src=LAN_MAC, dst=BROADCAST) / head / packet)


def hidden_from_nft() -> dict[str, bytes]:
    """What a receiver may take for a router's or a DHCP server's, and nft does not see."""
    router = IPv6(**ADVERTISEMENT) / ICMPv6ND_RA()
    dhcp = IP(src="10.1.0.1", dst="255.255.255.255") / UDP(sport=67, dport=68) / Raw(bytes(240))
    dhcp6 = UDP(sport=547, dport=546) / DHCP6_Advertise()
    packets: dict[str, Packet] = {
        "RA behind AH": IPv6(**ADVERTISEMENT, nh=51) / authentication(58) / ICMPv6ND_RA(),
        "RA behind AH twice": IPv6(**ADVERTISEMENT, nh=51)
        / authentication(51)
        / authentication(58)
        / ICMPv6ND_RA(),
        "RA behind AH and options": IPv6(**ADVERTISEMENT, nh=51)
        / authentication(60)
        / IPv6ExtHdrDestOpt(nh=58)
        / ICMPv6ND_RA(),
        "DHCPv6 behind AH": IPv6(src="fe80::1", dst="fe80::5", nh=51) / authentication(17) / dhcp6,
        "DHCP behind AH": IP(src="10.1.0.1", dst="10.1.0.5", proto=51) / authentication(17) / dhcp[UDP],
        # An options header of 16 bytes, half of which is in the next fragment, with the RA behind it.
        "RA cut off": IPv6(**ADVERTISEMENT)
        / IPv6ExtHdrFragment(nh=60, m=1, id=7)
        / Raw(bytes((58, 1, 1, 4)) + bytes(4)),
        "nothing of it": IPv6(**ADVERTISEMENT) / IPv6ExtHdrFragment(nh=58, m=1, id=7),
    }
    snaps = {
        "RA in SNAP": snap(0, 0x86DD, router),
        "RA in SNAP of bridges": snap(0xF8, 0x86DD, router),
        "DHCP in SNAP": snap(0, 0x0800, dhcp),
    }
    return snaps | {
        name: bytes(Ether(src=LAN_MAC, dst=BROADCAST) / packet) for name, packet in packets.items()
    }


def like_hidden_ones() -> dict[str, bytes]:
    """Their honest neighbours."""
    echo = ICMPv6EchoRequest(data=b"x" * 40)
    later = IPv6(src="fd99::9", dst="fd99::10") / IPv6ExtHdrFragment(nh=60, offset=3, m=0, id=8)
    packets: dict[str, Packet] = {
        "TCP behind AH": IPv6(src="fd99::9", dst="fd99::10", nh=51) / authentication(6) / TCP(dport=80),
        "TCP behind AH of IPv4": IP(src="10.1.0.9", dst="10.1.0.5", proto=51) / authentication(6) / TCP(),
        "echo behind options": IPv6(src="fd99::9", dst="fd99::10") / IPv6ExtHdrDestOpt() / echo,
        "first fragment": IPv6(src="fd99::9", dst="fd99::10") / IPv6ExtHdrFragment(m=1, id=8) / echo,
        "later fragment": later / Raw(b"data" * 10),
    }
    cdp = {"CDP": snap(0x00000C, 0x2000, Raw(bytes(40)))}
    return cdp | {
        name: bytes(Ether(src=LAN_MAC, dst=BROADCAST) / packet) for name, packet in packets.items()
    }


@pytest.mark.parametrize("tag", [None, 0], ids=["untagged", "priority tag"])
def test_what_the_lan_hides_from_nft_does_not_reach_a_guest_that_is_served(
    lab: Lab, tag: int | None
) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    lab.plug()
    lan, guest = lab.packets(lab.node, PORT), lab.packets(lab.guest, "eth0")
    hidden, honest = (
        {name: frame if tag is None else tagged(frame, tag) for name, frame in frames_of().items()}
        for frames_of in (hidden_from_nft, like_hidden_ones)
    )
    for frame in [*hidden.values(), *honest.values()]:
        lan.send(frame)
    arrived = frames_until(guest, lan)
    assert [name for name, frame in hidden.items() if frame in arrived] == []
    assert [name for name, frame in honest.items() if frame not in arrived] == []


LOOKS_LIKE_DHCP = {port: port.to_bytes(2) * 600 for port in (67, 68, 546, 547)}


def later_fragments(source: str) -> dict[str, bytes]:
    """Parts of large datagrams whose data, or whose flow label, are where a whole one has its ports."""
    v4 = IP(src="10.1.0.9", dst="10.1.0.10", proto=17, frag=185)
    part = IPv6ExtHdrFragment(nh=17, offset=181, m=0, id=7)
    named: dict[str, Packet] = {}
    for port, data in LOOKS_LIKE_DHCP.items():
        named[f"IPv4 {port}"] = v4 / Raw(data)
        named[f"IPv6 {port}"] = IPv6(src="fd99::9", dst="fd99::10") / part / Raw(data)
        named[f"flow {port}"] = IPv6(src="fd99::9", dst="fd99::10", fl=0x40000 + port) / part / Raw(b"x")
    return {name: bytes(Ether(src=source, dst=BROADCAST) / packet) for name, packet in named.items()}


def first_fragments(source: str, ports: tuple[int, int]) -> dict[str, bytes]:
    """What begins a datagram to these ports: of DHCP and of DHCPv6."""
    v4 = IP(src="10.1.0.9", dst="10.1.0.10", flags="MF") / UDP(dport=ports[0])
    v6 = IPv6(src="fd99::9", dst="fd99::10") / IPv6ExtHdrFragment(nh=17, m=1, id=7) / UDP(dport=ports[1])
    named = {"DHCP": v4, "DHCPv6": v6}
    return {
        name: bytes(Ether(src=source, dst=BROADCAST) / packet / Raw(bytes(240)))
        for name, packet in named.items()
    }


def test_only_a_datagrams_first_fragment_is_taken_for_dhcp(lab: Lab) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    lab.plug()
    lan, guest = lab.packets(lab.node, PORT), lab.packets(lab.guest, "eth0")
    for mouth, ear, source, ports in (
        (guest, lan, POD_MAC, (67, 547)),
        (lan, guest, LAN_MAC, (68, 546)),
    ):
        honest, refused = later_fragments(source), first_fragments(source, ports)
        for frame in [*honest.values(), *refused.values()]:
            mouth.send(frame)
        arrived = frames_until(ear, mouth)
        assert [name for name, frame in honest.items() if frame not in arrived] == []
        assert [name for name, frame in refused.items() if frame in arrived] == []


@pytest.mark.parametrize("side", [V4, V6], ids=["IPv4", "IPv6"])
def test_datagrams_arrive_whatever_is_in_them(lab: Lab, side: Side) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    lab.plug(*ADDRESSES)
    outside, inside = (
        socket_in(sandbox, side.family, socket.SOCK_DGRAM) for sandbox in (lab.node, lab.guest)
    )
    for each, address in ((outside, side.outside), (inside, side.guest)):
        lab.undo.callback(each.close)
        each.bind((address, 7777))
    lab.guest.run("ping", "-c", "1", "-w", "20", side.outside)
    for sender, receiver, address in ((outside, inside, side.guest), (inside, outside, side.outside)):
        for port in LOOKS_LIKE_DHCP:
            data = port.to_bytes(2) * 4000
            for _ in range(20):
                sender.sendto(data, (address, 7777))
                assert receiver.recv(9000) == data


def is_guest_service(frame: bytes) -> bool:
    """Whether it is of DHCP, DHCPv6, of router discovery, or about the DHCP server's address."""
    packet = Ether(frame)
    if UDP in packet:
        return bool({packet[UDP].sport, packet[UDP].dport} & {67, 68, 546, 547})
    if ARP in packet:
        return "169.254.75.10" in (packet[ARP].psrc, packet[ARP].pdst)
    return ICMPv6ND_RS in packet or ICMPv6ND_RA in packet


def answered(frame: bytes) -> str:
    """Which question of the guest's this is the answer to, "" for any other frame."""
    packet = Ether(frame)
    if UDP in packet:
        return {67: "DHCP", 547: "DHCPv6"}.get(packet[UDP].sport, "")
    if ARP in packet:
        return "ARP" if packet[ARP].op == 2 else ""
    return "RS" if ICMPv6ND_RA in packet else ""


def test_what_the_agent_answers_the_lan_does_not_hear(lab: Lab) -> None:
    lab.network()
    lab.node.agent()
    lan = lab.packets(lab.node, PORT)
    lab.pod.cni("ADD", guestServices={}).ok()
    lab.plug()
    guest = lab.packets(lab.guest, "eth0")
    sent = from_guest([])
    solicit = (
        scapy_packets.dhcp6.DHCP6_Solicit(),
        scapy_packets.dhcp6.DHCP6OptClientId(duid=b"\0\4" + bytes(16)),
    )
    sent["DHCP"] = scapy_packets.discover4(mac=POD_MAC)
    sent["DHCPv6"] = scapy_packets.client6(*solicit, scapy_packets.dhcp6.DHCP6OptIA_NA(iaid=1), mac=POD_MAC)
    guest.settimeout(PATIENCE)
    for name in ("DHCP", "ARP", "DHCPv6", "RS"):
        guest.send(sent[name])
        while answered(guest.recv(70000)) != name:
            pass
    assert [Ether(f).summary() for f in frames_until(lan, guest) if is_guest_service(f)] == []


def test_a_family_without_guest_services_is_the_lans(lab: Lab) -> None:
    lab.pod.run("ip", "addr", "add", "10.1.0.5/24", "dev", "eth0")
    lab.pod.cni("ADD").ok()
    lab.plug()
    assert passed(lab, []) == {"guest": ["DHCPv6", "RS", "NS"], "LAN": ["DHCPv6", "RA"]}


# gateways


@pytest.mark.parametrize("permanent", [True, False], ids=["AWS", "Calico"])
def test_a_guest_with_a_single_address_reaches_the_world(lab: Lab, permanent: bool) -> None:
    lab.point_to_point(permanent=permanent)
    lab.node.agent()
    lab.pod.cni("ADD", guestServices={}).ok()
    lan = lab.packets(lab.node, PORT)
    lab.plug(
        "addr add 10.9.0.5/32 dev eth0",
        "route add 169.254.1.1 dev eth0",
        "route add default via 169.254.1.1",
    )
    lab.guest.run("ping", "-c", "1", "-w", "20", WORLD)
    shown = lab.guest.run("ip", "neigh", "show", "169.254.1.1").stdout
    assert LAN_MAC in shown
    lab.node.run("ping", "-c", "1", "-w", "20", "10.9.0.5")
    guest = lab.packets(lab.guest, "eth0")
    asked = [Ether(f)[ARP].pdst for f in frames_until(lan, guest) if f[12:14] == b"\x08\x06"]
    assert ("169.254.1.1" in asked) == (not permanent), "the LAN hears nothing of an adopted next hop"
    lab.pod.cni("CHECK", guestServices={}).ok()


@pytest.mark.parametrize("gateway", ["fd99::1", "fe80::1"], ids=["global", "link-local"])
def test_a_guest_learns_its_real_ipv6_router_from_us(lab: Lab, gateway: str) -> None:
    lab.node.run("ip", "addr", "add", f"{gateway}/64", "dev", PORT, "nodad")
    lab.node.run("ip", "-6", "route", "add", "fd99::/64", "dev", PORT, check=False)
    lab.pod.run("ip", "addr", "add", "fd99::5/64", "dev", "eth0", "nodad")
    lab.pod.run("ip", "route", "add", "default", "via", gateway, "dev", "eth0")
    lab.node.agent()
    lab.pod.cni("ADD", guestServices={}).ok()
    lab.plug("addr add fd99::5/128 dev eth0 nodad")
    route: list[dict[str, Any]] = []
    deadline = time.monotonic() + PATIENCE
    while not route:
        assert time.monotonic() < deadline
        route = lab.guest.ip("-6", "route", "show", "default")
    assert route[0]["gateway"] == ("fe80::1" if gateway == "fe80::1" else "fe80::800:ff:fe00:1")
    lab.guest.run("ping", "-c", "1", "-w", "20", WORLD6)
    assert LAN_MAC in lab.guest.run("ip", "neigh", "show", route[0]["gateway"]).stdout
