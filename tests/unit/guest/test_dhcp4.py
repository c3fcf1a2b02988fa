from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.guest import dhcp4, dhcp4_message
from cnvnet.guest.dhcp4 import classless_routes
from cnvnet.guest.frames import Reply
from cnvnet.guest.settings import FOREVER, V4, GuestRoute, Settings, checked
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT, SERVER_MAC
from tests.unit.guest.scapy_packets import (
    BOOTP,
    BROADCAST_MAC,
    DHCP,
    GUEST_MAC,
    IP,
    UDP,
    Ether,
    Seen4,
    client4,
    discover4,
)

RENEWED = {"ciaddr": "10.0.2.2", "source": "10.0.2.2"}


def wanting(*codes: int) -> tuple[str, list[int]]:
    return "param_req_list", list(codes)


def routes_of(seen: Seen4) -> list[str]:
    """Option 121 as scapy reads it."""
    found: dict[str, list[str]] = dict(item[:2] for item in seen.packet[DHCP].options if item != "end")
    return found["classless_static_routes"]


def ask(frame: bytes, settings: Settings = MASQUERADE) -> Reply:
    offer = dhcp4.prepare(checked(settings))
    assert offer is not None
    return dhcp4.reply(offer, frame)


def answered(frame: bytes, event: str, settings: Settings = MASQUERADE) -> Seen4:
    reply = ask(frame, settings)
    assert reply.event == event
    (answer,) = reply.frames
    return Seen4(answer)


def ignored(frame: bytes, settings: Settings = MASQUERADE) -> str:
    reply = ask(frame, settings)
    assert reply.frames == ()
    return reply.event


def test_a_discover_is_offered_the_guests_address_and_all_that_is_known() -> None:
    seen = answered(discover4(), "offer")
    assert seen.bootp.yiaddr == "10.0.2.2"
    assert seen.packet[DHCP].options == [
        ("message-type", 2),
        ("server_id", "10.0.2.1"),
        ("lease_time", 999 * 86400),
        ("subnet_mask", "255.255.255.0"),
        ("router", "10.0.2.1"),
        ("name_server", "10.96.0.10", "10.96.0.11"),
        ("hostname", b"vm1"),
        ("domain", b"default.svc.cluster.local"),
        ("interface-mtu", 1400),
        (119, b"\x07default\x03svc\x07cluster\x05local\0\xc0\x08\xc0\x0c"),
        "end",
    ]
    assert scapy_packets.names(seen.options[119]) == list(MASQUERADE.search)


def test_an_answer_goes_to_the_address_it_gives_unless_broadcast_is_asked_for() -> None:
    plain = answered(discover4(), "offer").packet
    assert (plain.src, plain.dst) == (SERVER_MAC, GUEST_MAC)
    assert (plain[IP].src, plain[IP].dst, plain[UDP].dport) == ("10.0.2.1", "10.0.2.2", 68)
    broadcast = answered(discover4(flags=0x8000), "offer").packet
    assert (broadcast.dst, broadcast[IP].dst, broadcast[BOOTP].flags) == (
        BROADCAST_MAC,
        "255.255.255.255",
        0x8000,
    )


def test_a_request_for_the_offered_address_is_acknowledged() -> None:
    seen = answered(client4("request", ("requested_addr", "10.0.2.2"), ("server_id", "10.0.2.1")), "ack")
    assert (seen.kind, seen.bootp.yiaddr, seen.bootp.ciaddr) == (5, "10.0.2.2", "0.0.0.0")


def test_a_renewal_is_answered_to_the_address_it_comes_from() -> None:
    seen = answered(client4("request", **RENEWED, destination="10.0.2.1"), "ack")
    assert (seen.packet[IP].dst, seen.packet.dst, seen.bootp.ciaddr) == ("10.0.2.2", GUEST_MAC, "10.0.2.2")


def test_a_client_that_reboots_keeps_its_address() -> None:
    assert answered(client4("request", ("requested_addr", "10.0.2.2")), "ack").bootp.yiaddr == "10.0.2.2"


@pytest.mark.parametrize(
    "frame",
    [
        client4("request", ("requested_addr", "192.168.1.20"), ("server_id", "10.0.2.1")),
        client4("request", ("requested_addr", "10.0.2.3")),
        client4("request", ciaddr="10.0.2.3", source="10.0.2.3"),
    ],
    ids=["selecting", "rebooting", "renewing"],
)
def test_a_request_for_another_address_is_refused_by_broadcast(frame: bytes) -> None:
    seen = answered(frame, "nak")
    assert seen.kind == 6
    assert (seen.packet.dst, seen.packet[IP].dst) == (BROADCAST_MAC, "255.255.255.255")
    assert (seen.bootp.yiaddr, seen.bootp.ciaddr, seen.bootp.siaddr) == ("0.0.0.0",) * 3
    # RFC 2131, table 3: nothing but these may be in a DHCPNAK.
    assert set(seen.options) <= {53, 54, 56, 61, 82}
    assert seen.address(54) == "10.0.2.1"


def test_a_discover_that_requests_another_address_is_offered_the_right_one() -> None:
    assert answered(discover4(("requested_addr", "192.168.1.20")), "offer").bootp.yiaddr == "10.0.2.2"


def test_a_client_that_chose_another_server_is_left_alone() -> None:
    chosen = ("server_id", "10.0.2.77")
    assert ignored(client4("request", ("requested_addr", "10.0.2.2"), chosen)) == "other_server"
    assert ignored(client4("release", chosen, **RENEWED)) == "other_server"
    assert ignored(discover4(destination="10.0.2.77")) == "other_server"


def test_inform_gets_options_and_no_lease() -> None:
    seen = answered(client4("inform", wanting(1, 3, 6, 51, 58, 59, 54), **RENEWED), "ack_inform")
    assert (seen.kind, seen.bootp.yiaddr, seen.bootp.ciaddr) == (5, "0.0.0.0", "10.0.2.2")
    assert (seen.packet[IP].dst, seen.packet.dst) == ("10.0.2.2", GUEST_MAC)
    assert {1, 3, 6, 54} <= set(seen.options)
    assert not {51, 58, 59} & set(seen.options)


def test_inform_without_an_address_in_it_is_answered_to_its_sender_or_to_all() -> None:
    assert answered(client4("inform", source="10.0.2.2"), "ack_inform").packet[IP].dst == "10.0.2.2"
    assert answered(client4("inform"), "ack_inform").packet[IP].dst == "255.255.255.255"
    assert ignored(client4("inform", source="224.0.0.1")) == "malformed"


def padded(*options: bytes) -> bytes:
    """A REQUEST for our address that says so behind padding, in the middle of its options."""
    frame = client4("request")
    return rewritten(frame, bytes(frame[42:282]) + b"\x35\1\3" + b"\0" * 3 + b"".join(options) + b"\xff")


def rewritten(frame: bytes, payload: bytes) -> bytes:
    """The frame with another message in it."""
    ends = Ether(frame[:14]) / IP(src="0.0.0.0", dst="255.255.255.255")
    return bytes(ends / UDP(sport=68, dport=67) / payload)


def test_padding_between_options_is_skipped() -> None:
    assert answered(padded(b"\x32\4\x0a\0\2\2"), "ack").kind == 5
    assert answered(padded(b"\x32\4\x0a\0\2\x03"), "nak").kind == 6


@pytest.mark.parametrize(("which", "place", "size"), [(1, 108, 128), (2, 44, 64)], ids=["file", "sname"])
def test_options_in_the_whole_of_a_text_field_are_read(which: int, place: int, size: int) -> None:
    message = bytearray(client4("request")[42:])
    # Its last bytes are the address.
    field = (b"\0" * size + b"\x32\4\x0a\0\2\x02\xff")[-size:]
    message[place : place + size] = field
    message[240:] = b"\x35\1\3\x34\1" + bytes([which]) + b"\xff"
    assert answered(rewritten(client4("request"), bytes(message)), "ack").kind == 5
    # Without option 52, which says that they are options, they are none.
    message[240:] = b"\x35\1\3\xff"
    assert ignored(rewritten(client4("request"), bytes(message))) == "malformed"


def test_release_and_decline_are_counted_and_not_answered() -> None:
    server = ("server_id", "10.0.2.1")
    assert ignored(client4("release", server, **RENEWED, destination="10.0.2.1")) == "release"
    assert ignored(client4("decline", server, ("requested_addr", "10.0.2.2"))) == "decline"


def test_only_what_is_asked_for_is_given_with_the_mask_first() -> None:
    seen = answered(discover4(wanting(6, 3, 12, 43, 252)), "offer", MASQUERADE._replace(mtu=1500))
    assert list(seen.options) == [53, 54, 51, 1, 6, 3, 12]


def test_an_unusual_mtu_and_private_options_go_out_unasked() -> None:
    settings = MASQUERADE._replace(private_options=((224, "one"), (252, "http://wpad.example/")))
    seen = answered(discover4(wanting(3)), "offer", settings)
    assert list(seen.options) == [53, 54, 51, 1, 3, 224, 252, 26]
    assert seen.options[252] == b"http://wpad.example/"
    assert seen.number(26) == 1400


def test_an_mtu_of_ipv4_alone_is_given_unasked() -> None:
    assert MASQUERADE.v4 is not None
    settings = MASQUERADE._replace(mtu=1500, v4=MASQUERADE.v4._replace(mtu=1450))
    assert answered(discover4(wanting(3)), "offer", settings).number(26) == 1450


def test_renewal_times_and_the_broadcast_address_are_given_when_asked_for() -> None:
    seen = answered(discover4(wanting(28, 58, 59)), "offer", MASQUERADE._replace(lease_seconds=3600))
    assert (seen.number(51), seen.number(58), seen.number(59)) == (3600, 1800, 3150)
    assert seen.address(28) == "10.0.2.255"
    for_ever = answered(discover4(wanting(58, 59)), "offer", MASQUERADE._replace(lease_seconds=FOREVER))
    assert for_ever.options[51] == b"\xff" * 4
    assert not {58, 59} & set(for_ever.options)


def test_time_servers_are_addresses_of_the_right_family_only() -> None:
    settings = MASQUERADE._replace(ntp_servers=("10.0.0.9", "fd00::9", "time.example", "10.0.0.10"))
    seen = answered(discover4(wanting(42)), "offer", settings)
    assert seen.options[42] == IPv4Address("10.0.0.9").packed + IPv4Address("10.0.0.10").packed


def test_nothing_is_sent_empty() -> None:
    bare = Settings(SERVER_MAC, 1500, v4=V4(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1")))
    wanted = wanting(*range(1, 255))
    assert list(answered(discover4(wanted), "offer", bare).options) == [53, 54, 51, 1, 26, 28, 58, 59]


def test_boot_settings_are_in_the_options_and_in_the_header() -> None:
    settings = MASQUERADE._replace(tftp_server="10.0.0.8", boot_file="pxelinux.0")
    seen = answered(discover4(wanting(66, 67)), "offer", settings)
    assert (seen.options[66], seen.options[67]) == (b"10.0.0.8", b"pxelinux.0")
    assert seen.bootp.siaddr == "10.0.0.8"
    assert (seen.bootp.sname.rstrip(b"\0"), seen.bootp.file.rstrip(b"\0")) == (b"10.0.0.8", b"pxelinux.0")
    long = settings._replace(tftp_server="boot.example", boot_file="x" * 200)
    named = answered(discover4(wanting(66, 67)), "offer", long)
    assert (named.bootp.siaddr, named.options[66], named.options[67]) == (
        "0.0.0.0",
        b"boot.example",
        b"x" * 200,
    )
    assert (named.bootp.sname.rstrip(b"\0"), named.bootp.file.rstrip(b"\0")) == (b"boot.example", b"")


@pytest.mark.parametrize(("key", "size"), [("tftp_server", 64), ("boot_file", 128)])
def test_a_text_field_of_the_header_always_ends_with_a_zero(key: str, size: int) -> None:
    field = {"tftp_server": "sname", "boot_file": "file"}[key]
    for length, expected in ((size - 1, b"x" * (size - 1)), (size, b"")):
        text: dict[str, Any] = {key: "x" * length}
        seen = answered(discover4(wanting(3)), "offer", MASQUERADE._replace(**text))
        assert bytes(getattr(seen.bootp, field)).rstrip(b"\0") == expected


def test_the_clients_id_comes_back() -> None:
    client_id = ("client_id", b"\xff\x12\x34\x56\x78\0\x02\0\0\xab\x11")
    requested = ("requested_addr", "10.9.9.9")
    for frame, event in ((discover4(client_id), "offer"), (client4("request", client_id, requested), "nak")):
        assert answered(frame, event).options[61] == client_id[1]


def test_classless_routes_have_the_default_one_last() -> None:
    routes = (
        GuestRoute(IPv4Network("0.0.0.0/0"), IPv4Address("10.0.2.1")),
        GuestRoute(IPv4Network("10.8.0.0/13"), IPv4Address("10.0.2.9")),
        GuestRoute(IPv4Network("10.0.2.0/24")),
        GuestRoute(IPv4Network("172.16.5.0/25")),
    )
    v4 = V4(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1"), None, routes)
    seen = answered(discover4(wanting(121, 249)), "offer", MASQUERADE._replace(v4=v4))
    assert routes_of(seen) == [
        "172.16.5.0/25:0.0.0.0",
        "10.8.0.0/13:10.0.2.9",
        "0.0.0.0/0:10.0.2.1",
    ]
    assert seen.options[249] == seen.options[121]


def test_a_gateway_outside_the_subnet_gets_a_route_to_itself_first() -> None:
    seen = answered(discover4(), "offer", POINT_TO_POINT)
    assert routes_of(seen) == [
        "169.254.1.1/32:0.0.0.0",
        "0.0.0.0/0:169.254.1.1",
    ]
    assert 249 not in seen.options


def test_a_default_route_among_the_others_is_the_router_too() -> None:
    routes = (GuestRoute(IPv4Network("0.0.0.0/0"), IPv4Address("10.0.2.9")),)
    v4 = V4(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1"), None, routes)
    seen = answered(discover4(), "offer", MASQUERADE._replace(v4=v4))
    assert seen.address(3) == "10.0.2.9"
    assert 121 not in seen.options


def test_a_default_route_without_a_gateway_puts_all_the_world_on_the_link() -> None:
    routes = (GuestRoute(IPv4Network("0.0.0.0/0")),)
    v4 = V4(IPv4Interface("10.0.2.2/32"), IPv4Address("169.254.75.10"), None, routes)
    seen = answered(discover4(), "offer", MASQUERADE._replace(v4=v4))
    assert routes_of(seen) == ["0.0.0.0/0:0.0.0.0"]
    assert 3 not in seen.options


def test_routes_that_mask_and_router_say_already_are_not_repeated() -> None:
    assert MASQUERADE.v4 is not None
    assert classless_routes(MASQUERADE.v4) == ()
    assert 121 not in answered(discover4(wanting(1, 3, 121, 249)), "offer").options


def network(number: int, length: int) -> IPv4Network:
    return IPv4Network((number, length), strict=False)


networks = st.builds(network, st.integers(0, 2**32 - 1), st.integers(1, 32))
addresses = st.builds(IPv4Address, st.integers(2**24, 2**31 - 1))


@given(st.lists(st.builds(GuestRoute, networks, st.none() | addresses), max_size=20), st.none() | addresses)
def test_every_gateway_is_reachable_by_an_earlier_route_or_the_subnet(
    routes: list[GuestRoute], gateway: IPv4Address | None
) -> None:
    v4 = V4(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1"), gateway, tuple(routes))
    reachable = [v4.address.network]
    found = classless_routes(v4)
    for route in found:
        assert route.gateway is None or any(route.gateway in network for network in reachable)
        if route.gateway is None:
            reachable.append(route.destination)
    assert [route.destination.prefixlen for route in found[:-1]].count(0) == 0
    if found and gateway is not None:
        assert found[-1] == GuestRoute(IPv4Network("0.0.0.0/0"), gateway)


@given(st.lists(st.builds(GuestRoute, networks, addresses), min_size=1, max_size=28))
def test_encoded_routes_are_what_scapy_reads(routes: list[GuestRoute]) -> None:
    read: list[Any] = DHCP(dhcp4_message.option(121, dhcp4_message.encode_routes(routes))).options
    assert read == [
        ("classless_static_routes", [f"{route.destination}:{route.gateway}" for route in routes])
    ]


LONG = tuple(f"{index}{'x' * 50}.team{index}{'y' * 40}.example" for index in range(8))


def test_a_search_list_of_more_than_255_bytes_is_split() -> None:
    frame = discover4(wanting(119), ("max_dhcp_size", 1500))
    seen = answered(frame, "offer", MASQUERADE._replace(search=LONG))
    assert len(seen.options[119]) > 510
    assert scapy_packets.names(seen.options[119]) == list(LONG)


def test_an_answer_stays_within_what_the_client_takes() -> None:
    settings = MASQUERADE._replace(search=LONG)
    for size in (0, 300, 576, 600, 900, 1400, 65535):
        options = [("max_dhcp_size", size)] if size else []
        frame = ask(discover4(*options), settings).frames[0]
        assert len(frame) - 14 <= min(max(size, 576), 1400)
        assert Seen4(frame).address(1) == "255.255.255.0"


def test_as_much_of_a_long_search_list_is_given_as_there_is_room_for() -> None:
    names = [f"n{index}.{letter * 20}.example" for index, letter in enumerate("abcdefghijkl")]
    settings = MASQUERADE._replace(search=tuple(names))
    seen = answered(discover4(wanting(119, 3, 15, 6, 12, 26, 42)), "offer", settings)  # ISC's dhclient
    assert len(seen.packet[IP]) <= 576
    given = scapy_packets.names(seen.options[119])
    assert 5 < len(given) < len(names)
    assert given == names[: len(given)]
    # It takes no room from what a guest needs more.
    assert {1, 3, 6, 12, 15, 26} <= seen.options.keys()


def test_what_does_not_fit_into_the_options_moves_into_unused_text_fields() -> None:
    private = tuple((code, "z" * 55) for code in range(224, 231))
    settings = MASQUERADE._replace(private_options=private)
    seen = answered(discover4(wanting(3)), "offer", settings)
    assert seen.number(52) == 3
    assert all(seen.options[code] == b"z" * 55 for code in range(224, 231))
    assert len(seen.packet[IP]) <= 576
    booting = answered(discover4(wanting(3)), "offer", settings._replace(boot_file="pxelinux.0"))
    assert booting.number(52) == 2
    assert booting.bootp.file.rstrip(b"\0") == b"pxelinux.0"


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=12),
    st.binary(max_size=200),
    st.integers(308, 1200),
    st.booleans(),
    st.booleans(),
)
def test_options_are_laid_out_whole_and_within_bounds(
    values: list[bytes], last: bytes, space: int, file: bool, name: bool
) -> None:
    first = dhcp4_message.option(53, b"\2")
    options = (dhcp4_message.option(100 + index, value) for index, value in enumerate(values))
    chosen: list[dhcp4_message.Forms] = [(option,) for option in options]
    tail = dhcp4_message.option(82, last)
    text = dhcp4_message.Layout(b"", b"file" if file else b"", b"name" if name else b"")
    layout = dhcp4_message.lay_out(first, chosen, tail, space, text)
    assert len(layout.options) <= space
    assert layout.options.endswith(tail + b"\xff")
    assert layout.file == b"file" or not file
    assert layout.name == b"name" or not name
    header = bytes(44) + layout.name.ljust(64, b"\0") + layout.file.ljust(128, b"\0") + bytes(4)
    found = scapy_packets.options4(header + layout.options)
    for index, value in enumerate(values):
        assert found.get(100 + index, value) == value
    if sum(len(item) for (item,) in chosen) + len(first) + len(tail) + 1 <= space:
        assert len([code for code in found if code >= 100]) == len(values)


RELAY: dict[str, Any] = {
    "giaddr": "10.0.2.7",
    "source": "10.0.2.7",
    "destination": "10.0.2.1",
    "mac": GUEST_MAC,
}
AGENT = ("relay_agent_information", b"\x01\x04eth0\x02\x03abc")


def test_a_relay_gets_the_answer_with_its_own_option_last() -> None:
    client = {**RELAY, "chaddr": scapy_packets.packed("52:54:00:00:00:99")}
    seen = answered(discover4(AGENT, **client), "offer")
    assert (seen.packet.dst, seen.packet[IP].dst, seen.packet[UDP].dport) == (GUEST_MAC, "10.0.2.7", 67)
    assert seen.bootp.giaddr == "10.0.2.7"
    assert seen.options[82] == AGENT[1]
    assert list(seen.options)[-1] == 82


def test_a_refusal_through_a_relay_has_the_broadcast_flag() -> None:
    seen = answered(client4("request", AGENT, ("requested_addr", "10.0.2.9"), **RELAY), "nak")
    assert (seen.packet[IP].dst, seen.bootp.flags) == ("10.0.2.7", 0x8000)
    assert seen.options[82] == AGENT[1]


def test_an_informs_answer_goes_past_the_relay() -> None:
    seen = answered(client4("inform", AGENT, ciaddr="10.0.2.2", **RELAY), "ack_inform")
    assert (seen.packet[IP].dst, seen.packet[UDP].dport, seen.packet.dst) == ("10.0.2.2", 68, GUEST_MAC)


def test_a_relay_of_a_subnet_we_have_no_address_for_is_ignored() -> None:
    assert ignored(discover4(**{**RELAY, "giaddr": "10.9.0.1"})) == "ignored_relay"


def test_an_echo_that_does_not_fit_is_left_out() -> None:
    client = ("client_id", b"c" * 200)
    agent = ("relay_agent_information", b"\x01\xc8" + b"a" * 200)
    seen = answered(discover4(client, agent, **RELAY), "offer")
    assert 82 not in seen.options
    assert seen.options[61] == client[1]
    assert len(seen.packet[IP]) <= 576


def test_only_the_guests_own_mac_is_served_where_it_is_known() -> None:
    nested = "52:54:00:ab:cd:ef"
    assert ignored(discover4(mac=nested), POINT_TO_POINT) == "other_client"
    assert ask(discover4(mac=nested)).event == "offer"


def test_a_guest_without_ipv4_has_no_offer() -> None:
    assert dhcp4.prepare(checked(MASQUERADE._replace(v4=None))) is None


def test_options_in_the_text_fields_are_read() -> None:
    field = bytes([50, 4, 10, 0, 2, 9, 255])
    assert answered(client4("request", ("dhcp-option-overload", 1), file=field), "nak").kind == 6
    assert answered(client4("request", ("dhcp-option-overload", 2), sname=field), "nak").kind == 6


def test_an_option_in_pieces_is_joined() -> None:
    halves = [(50, bytes([10, 0])), (50, bytes([2, 2]))]
    assert ask(client4("request", *halves)).event == "ack"


@pytest.mark.parametrize("name", ["discover", "request", "renew", "inform"])
def test_the_windows_10_fixtures_are_what_their_comments_say(name: str) -> None:
    comment, frame = scapy_packets.fixture(f"windows10-{name}.hex")
    payload = bytes(Ether(frame)[UDP].payload)
    found = scapy_packets.options4(payload)
    assert f"Options: {','.join(map(str, found))} " in comment
    assert f"list: {','.join(map(str, found[55]))} " in comment
    assert found[60] == b"MSFT 5.0"


WINDOWS = MASQUERADE._replace(
    v4=V4(
        *(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1"), IPv4Address("10.0.2.1")),
        (GuestRoute(IPv4Network("10.8.0.0/16"), IPv4Address("10.0.2.9")),),
    )
)


@pytest.mark.parametrize(
    ("name", "event"),
    [("discover", "offer"), ("request", "ack"), ("renew", "ack"), ("inform", "ack_inform")],
)
def test_windows_10_is_answered_as_it_needs(name: str, event: str) -> None:
    seen = answered(scapy_packets.fixture(f"windows10-{name}.hex")[1], event, WINDOWS)
    assert seen.address(54) == "10.0.2.1"  # four bytes: Windows takes no other
    assert seen.address(3) == "10.0.2.1"
    assert len(seen.options[6]) % 4 == 0
    assert seen.options[15] == b"default.svc.cluster.local"
    assert scapy_packets.names(seen.options[119]) == list(WINDOWS.search)
    assert seen.options[249] == seen.options[121] == bytes.fromhex("100a080a000209" + "000a000201")
    assert seen.options[61] == b"\x01" + scapy_packets.packed(GUEST_MAC)
    assert (51 in seen.options) == (event != "ack_inform")
    assert seen.packet[IP].dst == "10.0.2.2"
