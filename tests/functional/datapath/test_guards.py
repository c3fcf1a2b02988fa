"""Crafted frames through a guarded port: the table alone, and the port the installed executable makes."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.nft.tables import open_nft
from cnvnet.plugins.cnv_bridge import guards
from cnvnet.plugins.cnv_bridge.guards import Guards
from tests.functional.datapath.frames import HONEST, IP, LYING, MAC, STACKED, Case, Raw, ether, tagged
from tests.functional.datapath.guarded_bridge import (
    ALL,
    SENTINEL,
    Lab,
    bare_lab,
    frame_mac,
    installed_lab,
    packet_socket,
)
from tests.guard_versions import NUMBER, text_of

# include/uapi/asm-generic/socket.h: as much as one likes
SO_RCVBUFFORCE = 33


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="module", params=["table", "executable"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    make = bare_lab if request.param == "table" else installed_lab
    with make(tmp_path_factory.mktemp("lab"), ALL) as made:
        yield made


@pytest.fixture(params=[None, 7, 0], ids=["untagged", "tagged", "priority-tagged"])
def vid(request: pytest.FixtureRequest) -> int | None:
    found: int | None = request.param
    return found


def frame(lab: Lab, case: Case, vid: int | None = None) -> bytes:
    built = bytes(case.build(lab.guest))
    return built if vid is None else tagged(built, vid)


@each(HONEST)
def test_honest_frames_pass(lab: Lab, case: Case, vid: int | None) -> None:
    assert lab.verdict(frame(lab, case, vid)) == "passed"


@each(LYING)
def test_lies_are_dropped_for_their_own_reason(lab: Lab, case: Case, vid: int | None) -> None:
    assert lab.verdict(frame(lab, case, vid)) == case.verdict


@each(STACKED)
def test_tags_below_the_first_are_dropped(lab: Lab, case: Case) -> None:
    assert lab.verdict(frame(lab, case)) == case.verdict


# The bridge takes such frames for itself, and would learn where they come from.
@pytest.mark.parametrize("destination", ["01:80:c2:00:00:00", "01:80:c2:00:00:0e", "01:80:c2:00:00:03"])
def test_the_bridge_learns_no_foreign_mac_from_frames_to_itself(lab: Lab, destination: str) -> None:
    lie = frame_mac(destination) + frame_mac(MAC) + b"\x88\xcc" + b"lldp" * 12
    assert not lab.passes(lie)
    assert not lab.passes(tagged(lie))
    known = lab.host.run("bridge", "fdb", "show", "br", "bridge0").stdout
    assert MAC not in known
    assert lab.guest.mac in known


def multicast_routers(lab: Lab) -> str:
    return lab.host.run("bridge", "-d", "mdb", "show").stdout.partition("router ports")[2]


def test_the_bridge_takes_no_guarded_port_for_a_multicast_routers(lab: Lab) -> None:
    sent = [NAMED[name] for name in ("igmp-query", "pim-hello", "mld-query", "multicast-router")]
    guest = ether(lab.guest, dst="01:00:5e:00:00:01") / IP(
        src=lab.guest.ipv4, dst="224.0.0.1", ttl=1, proto=2
    )
    query = bytes(guest / IGMP_QUERY)
    for frame_of_router in [query, *(frame(lab, case) for case in sent)]:
        assert not lab.passes(frame_of_router)
    assert multicast_routers(lab) == ""
    with closing(packet_socket(lab.ear)) as unguarded:
        unguarded.send(query)
        deadline = time.monotonic() + 5
        while not multicast_routers(lab):
            assert time.monotonic() < deadline, "a query makes no port a router's"
            time.sleep(0.02)


NAMED = {case.name: case for case in LYING}
# With its checksum, or the bridge does not believe it.
IGMP_QUERY = Raw(b"\x11\x64\xee\x9b\0\0\0\0")
SEPARATE: dict[str, tuple[Guards, dict[str, str]]] = {
    "mac": (Guards(macspoofchk=True), {"mac": "spoofed_mac", "rarp-sender": "spoofed_rarp"}),
    "ip": (
        Guards(ipspoofchk=True),
        {
            "arp-reply": "spoofed_arp",
            "arp-sender-mac": "spoofed_arp",
            "ipv4": "spoofed_ipv4",
            "ipv6": "spoofed_ipv6",
            "na": "spoofed_nd",
            "rarp-sender": "spoofed_rarp",
            "mac-of-rarp": "spoofed_rarp",
            "fragmented-ra": "fragmented_nd",
            "ah6-of-58": "hidden",
            "ah6-of-60": "hidden",
            "snap": "snap",
            "snap-abab": "snap",
        },
    ),
    "dhcp": (
        Guards(dhcp_guard=True),
        {
            "dhcp-offer": "dhcp_server",
            "dhcp6-advertise": "dhcp_server",
            "dhcp-relayed": "dhcp_server",
            "dhcp-fragmented": "hidden",
            "ah-of-17": "hidden",
            "ah6-of-17": "hidden",
            "ah6-of-60": "hidden",
            "snap-abab": "snap",
            "rarp-sender": "spoofed_rarp",
            "mac-of-rarp": "spoofed_rarp",
            "fragmented-ra": "fragmented_nd",
            "snap": "snap",
        },
    ),
    "ra": (
        Guards(ra_guard=True),
        {
            "ra": "router",
            "redirect": "router",
            "icmp-redirect": "router",
            "igmp-query": "router",
            "mld-query": "router",
            "pim-hello": "router",
            "switch-0": "switch",
            "ah-of-1": "hidden",
            "ah6-of-58": "hidden",
            "ah6-of-60": "hidden",
            "snap-abab": "snap",
            "rarp-sender": "spoofed_rarp",
            "mac-of-rarp": "spoofed_rarp",
            "fragmented-ra": "fragmented_nd",
            "snap": "snap",
        },
    ),
    # Only where a port has a MAC of its own is DHCP about that one.
    "mac-and-dhcp": (
        Guards(macspoofchk=True, dhcp_guard=True),
        {
            "mac": "spoofed_mac",
            "dhcp-offer": "dhcp_server",
            "dhcp6-advertise": "dhcp_server",
            "dhcp-relayed": "dhcp_server",
            "dhcp-discover-of-another": "spoofed_dhcp",
            "dhcp-fragmented": "hidden",
            "ah-of-17": "hidden",
            "ah6-of-17": "hidden",
            "ah6-of-60": "hidden",
            "rarp-sender": "spoofed_rarp",
            "fragmented-ra": "fragmented_nd",
            "snap": "snap",
            "snap-abab": "snap",
        },
    ),
    "none": (Guards(), {}),
}
PROBES = sorted({name for _, expected in SEPARATE.values() for name in expected})


@pytest.mark.parametrize("which", SEPARATE)
def test_each_guard_drops_its_own_lies_and_no_others(which: str, tmp_path: Path) -> None:
    wanted, expected = SEPARATE[which]
    # Every frame of a foreign MAC is the MAC guard's.
    expected = {**expected, **({"mac-of-rarp": "spoofed_mac"} if wanted.macspoofchk else {})}
    with bare_lab(tmp_path, wanted) as lab:
        for vid in (None, 7):
            found = {name: lab.verdict(frame(lab, NAMED[name], vid)) for name in PROBES}
            assert {name: verdict for name, verdict in found.items() if verdict != "passed"} == expected


ACCEPTING = """
table bridge nat {
	chain PREROUTING {
		type filter hook prerouting priority -350; policy accept;
		accept
	}
}
table bridge late {
	chain PREROUTING {
		type filter hook prerouting priority -300; policy accept;
		accept
	}
}
"""


def test_rules_of_others_let_nothing_by(lab: Lab) -> None:
    lab.host.run("nft", "-f", "-", input=ACCEPTING)
    try:
        found = {case.name: lab.verdict(frame(lab, case)) for case in LYING}
    finally:
        lab.host.run("nft", "delete", "table", "bridge", "nat")
        lab.host.run("nft", "delete", "table", "bridge", "late")
    assert found == {case.name: case.verdict for case in LYING}


def test_lies_are_dropped_on_the_way_to_the_host_too(lab: Lab) -> None:
    mac = (lab.host.link("bridge0") or {})["address"]
    for name in ("ipv4-gateway", "arp-reply", "na"):
        lie = frame(lab, NAMED[name])
        assert lab.verdict(frame_mac(mac) + lie[6:]) == NAMED[name].verdict


def test_a_flushed_table_loaded_again_knows_its_ports(tmp_path: Path) -> None:
    with bare_lab(tmp_path, ALL) as lab:
        lie = frame(lab, NAMED["ipv4"])
        assert lab.verdict(lie) == "spoofed_ipv4"
        lab.host.run("nft", "flush", "table", "bridge", "cnv_bridge")
        assert lab.passes(lie)
        with netns.opened(lab.host.netns) as inside, open_nft(inside) as nft:
            assert not guards.loaded(nft)
            guards.ensure(nft)
        assert lab.verdict(lie) == "spoofed_ipv4"


def test_no_lie_passes_and_no_honest_frame_is_lost_while_newer_versions_come(tmp_path: Path) -> None:
    """Frames as fast as they go; each version's chain takes the next priority, as guards.py asks for."""
    with bare_lab(tmp_path, ALL) as lab:
        lie, honest = (frame(lab, case) for case in (NAMED["mac"], HONEST[0]))
        over = threading.Event()
        sent = 0

        def send() -> None:
            nonlocal sent
            with closing(packet_socket(lab.pod)) as mouth:
                while not over.is_set():
                    mouth.send(lie)
                    mouth.send(honest)
                    sent += 1

        lab.passes(honest)
        ear = packet_socket(lab.ear)
        ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
        arrived: Counter[bytes] = Counter()

        def hear() -> None:
            while (received := ear.recv(4000))[12:] != SENTINEL:
                arrived[received] += 1

        threads = [threading.Thread(target=target) for target in (send, hear)]
        for thread in threads:
            thread.start()
        with netns.opened(lab.host.netns) as inside, open_nft(inside) as nft:
            for number in range(NUMBER + 1, NUMBER + 21):
                chain = f"guard_v{number}"
                nft.ensure(guards.FAMILY, guards.TABLE, chain, text_of(chain))
                assert nft.chain(guards.FAMILY, guards.TABLE, f"guard_v{number - 1}") is None
        over.set()
        threads[0].join()
        with closing(packet_socket(lab.pod)) as mouth:
            mouth.send(b"\xff" * 6 + frame_mac(lab.guest.mac) + SENTINEL)
        threads[1].join()
        ear.close()
        assert arrived[lie] == 0
        assert arrived[honest] == sent
