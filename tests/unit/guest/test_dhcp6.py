from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.guest import dhcp6
from cnvnet.guest.frames import Reply
from cnvnet.guest.settings import FOREVER, Settings, checked
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT, SERVER_MAC
from tests.unit.guest.scapy_packets import GUEST_LINK_LOCAL, GUEST_MAC, UDP, IPv6, client6, layers
from tests.unit.guest.scapy_packets import dhcp6 as d

OURS = "fd10:0:2::2"
XID = 0x0A0B0C
CLIENT = d.DHCP6OptClientId(duid=d.DUID_LLT(lladdr=GUEST_MAC, timeval=0x252A3B4C))
SERVER = d.DHCP6OptServerId(duid=d.DUID_LL(lladdr=SERVER_MAC))
OTHER_SERVER = d.DHCP6OptServerId(duid=d.DUID_LL(lladdr="02:00:00:00:00:63"))


def ia(*addresses: str, iaid: int = 7) -> Any:
    return d.DHCP6OptIA_NA(iaid=iaid, ianaopts=[d.DHCP6OptIAAddress(addr=address) for address in addresses])


def wanting(*codes: int) -> Any:
    return d.DHCP6OptOptReq(reqopts=list(codes))


def ask(frame: bytes, settings: Settings = MASQUERADE) -> Reply:
    offer = dhcp6.prepare(checked(settings))
    assert offer is not None
    return dhcp6.reply(offer, frame)


def answered(frame: bytes, event: str, kind: Any, settings: Settings = MASQUERADE) -> Any:
    """The answer as scapy reads it, with the checks that hold for every one."""
    reply = ask(frame, settings)
    assert reply.event == event
    (answer,) = reply.frames
    packet = scapy_packets.recomputed(answer)
    assert (packet.src, packet.dst) == (settings.server_mac, GUEST_MAC)
    assert (packet[IPv6].dst, packet[UDP].sport, packet[UDP].dport) == (GUEST_LINK_LOCAL, 547, 546)
    assert IPv6Address(packet[IPv6].src).is_link_local
    assert packet[kind].trid == XID
    assert bytes(packet[d.DHCP6OptServerId].duid) == b"\0\3\0\1" + scapy_packets.packed(settings.server_mac)
    return packet


def ignored(frame: bytes, settings: Settings = MASQUERADE) -> str:
    reply = ask(frame, settings)
    assert reply.frames == ()
    return reply.event


def leases(packet: Any, index: int = 0) -> list[tuple[str, int, int]]:
    """Addresses with their lifetimes in one IA_NA."""
    association = layers(packet, d.DHCP6OptIA_NA)[index]
    return [
        (item.addr, item.preflft, item.validlft)
        for item in association.ianaopts
        if isinstance(item, d.DHCP6OptIAAddress)
    ]


def refusal(association: Any) -> int:
    """The status code in an IA that has nothing else."""
    options = getattr(association, "ianaopts", None) or getattr(association, "iataopts", None)
    (status,) = options or association.iapdopt
    code: int = status.statuscode
    return code


def test_a_solicit_is_advertised_the_guests_address() -> None:
    packet = answered(client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia()), "advertise", d.DHCP6_Advertise)
    assert leases(packet) == [(OURS, 999 * 86400, 999 * 86400)]
    association = packet[d.DHCP6OptIA_NA]
    assert (association.iaid, association.T1, association.T2) == (7, 999 * 86400 // 2, 999 * 86400 * 4 // 5)
    assert bytes(packet[d.DHCP6OptClientId].duid) == bytes(CLIENT.duid)
    assert packet[d.DHCP6OptPref].prefval == 255
    assert packet[d.DHCP6OptDNSServers].dnsservers == ["fd00:10:96::a"]
    assert packet[d.DHCP6OptDNSDomains].dnsdomains == [f"{name}." for name in MASQUERADE.search]


def test_rapid_commit_saves_the_client_two_messages() -> None:
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), d.DHCP6OptRapidCommit())
    packet = answered(frame, "rapid_reply", d.DHCP6_Reply)
    assert packet.haslayer(d.DHCP6OptRapidCommit)
    assert leases(packet) == [(OURS, 999 * 86400, 999 * 86400)]


@pytest.mark.parametrize(
    ("kind", "server"),
    [(d.DHCP6_Request, [SERVER]), (d.DHCP6_Renew, [SERVER]), (d.DHCP6_Rebind, [])],
    ids=["request", "renew", "rebind"],
)
def test_a_client_that_has_our_address_keeps_it(kind: Any, server: list[Any]) -> None:
    packet = answered(client6(kind(trid=XID), CLIENT, *server, ia(OURS)), "reply", d.DHCP6_Reply)
    assert leases(packet) == [(OURS, 999 * 86400, 999 * 86400)]


def test_a_request_for_another_address_is_not_for_this_link() -> None:
    frame = client6(d.DHCP6_Request(trid=XID), CLIENT, SERVER, ia("fd10:0:2::3"))
    packet = answered(frame, "reply", d.DHCP6_Reply)
    assert refusal(packet[d.DHCP6OptIA_NA]) == 4


@pytest.mark.parametrize(
    ("kind", "server", "event", "answer"),
    [
        (d.DHCP6_Solicit, [], "advertise", d.DHCP6_Advertise),
        (d.DHCP6_Request, [SERVER], "reply", d.DHCP6_Reply),
        (d.DHCP6_Renew, [SERVER], "reply", d.DHCP6_Reply),
    ],
    ids=["solicit", "request", "renew"],
)
def test_no_address_is_none_that_is_asked_for(kind: Any, server: list[Any], event: str, answer: Any) -> None:
    packet = answered(client6(kind(trid=XID), CLIENT, *server, ia("::")), event, answer)
    assert leases(packet) == [(OURS, 999 * 86400, 999 * 86400)]


@pytest.mark.parametrize(("kind", "server"), [(d.DHCP6_Renew, [SERVER]), (d.DHCP6_Rebind, [])])
def test_another_address_is_taken_back_and_ours_given_in_its_place(kind: Any, server: list[Any]) -> None:
    frame = client6(kind(trid=XID), CLIENT, *server, ia("fd99::1", OURS, "fd99::1"))
    packet = answered(frame, "reply", d.DHCP6_Reply)
    assert leases(packet) == [(OURS, 999 * 86400, 999 * 86400), ("fd99::1", 0, 0)]


def test_a_lease_for_ever_is_never_renewed() -> None:
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia())
    packet = answered(frame, "advertise", d.DHCP6_Advertise, MASQUERADE._replace(lease_seconds=FOREVER))
    assert leases(packet) == [(OURS, FOREVER, FOREVER)]
    assert (packet[d.DHCP6OptIA_NA].T1, packet[d.DHCP6OptIA_NA].T2) == (FOREVER, FOREVER)


def test_what_else_is_asked_for_is_refused_by_name() -> None:
    more = (ia(iaid=8), d.DHCP6OptIA_TA(iaid=9), d.DHCP6OptIA_PD(iaid=10))
    packet = answered(
        client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), *more), "advertise", d.DHCP6_Advertise
    )
    assert leases(packet)[0][0] == OURS
    assert refusal(layers(packet, d.DHCP6OptIA_NA)[1]) == 2
    assert (packet[d.DHCP6OptIA_TA].iaid, refusal(packet[d.DHCP6OptIA_TA])) == (9, 2)
    assert (packet[d.DHCP6OptIA_PD].iaid, refusal(packet[d.DHCP6OptIA_PD])) == (10, 6)


@pytest.mark.parametrize(
    ("addresses", "status"), [((OURS,), 0), (("fd10:0:2::3",), 4), ((OURS, "fd99::1"), 4)], ids=str
)
def test_confirm_says_whether_all_addresses_are_this_links(addresses: tuple[str, ...], status: int) -> None:
    frame = client6(d.DHCP6_Confirm(trid=XID), CLIENT, ia(*addresses))
    packet = answered(frame, "confirm", d.DHCP6_Reply)
    assert packet[d.DHCP6OptStatusCode].statuscode == status
    assert not packet.haslayer(d.DHCP6OptIA_NA)


@pytest.mark.parametrize(("kind", "event"), [(d.DHCP6_Release, "release"), (d.DHCP6_Decline, "decline")])
def test_what_is_given_back_is_taken_with_thanks(kind: Any, event: str) -> None:
    frame = client6(kind(trid=XID), CLIENT, SERVER, ia(OURS), ia("fd99::1", iaid=8))
    packet = answered(frame, event, d.DHCP6_Reply)
    assert packet[d.DHCP6OptStatusCode].statuscode == 0
    (foreign,) = layers(packet, d.DHCP6OptIA_NA)
    assert (foreign.iaid, refusal(foreign)) == (8, 3)


def test_information_is_given_to_a_client_without_an_id() -> None:
    packet = answered(client6(d.DHCP6_InfoRequest(trid=XID), wanting(23, 32)), "information", d.DHCP6_Reply)
    assert packet[d.DHCP6OptDNSServers].dnsservers == ["fd00:10:96::a"]
    assert packet[d.DHCP6OptInfoRefreshTime].reftime == 86400
    assert not packet.haslayer(d.DHCP6OptClientId)
    assert not packet.haslayer(d.DHCP6OptDNSDomains)


def test_information_with_an_id_echoes_it() -> None:
    frame = client6(d.DHCP6_InfoRequest(trid=XID), CLIENT, SERVER)
    packet = answered(frame, "information", d.DHCP6_Reply)
    assert bytes(packet[d.DHCP6OptClientId].duid) == bytes(CLIENT.duid)


def test_time_servers_are_an_option_each() -> None:
    settings = MASQUERADE._replace(ntp_servers=("fd00::9", "10.0.0.9", "time.example", "fd00::a"))
    frame = client6(d.DHCP6_InfoRequest(trid=XID), wanting(56, 31))
    packet = answered(frame, "information", d.DHCP6_Reply, settings)
    servers = [bytes(option)[4 : 4 + option.optlen] for option in layers(packet, d.DHCP6OptNTPServer)]
    assert servers == [
        b"\0\1\0\x10" + IPv6Address("fd00::9").packed,
        b"\0\3\0\x0e\x04time\x07example\0",
        b"\0\1\0\x10" + IPv6Address("fd00::a").packed,
    ]
    assert packet[d.DHCP6OptSNTPServers].sntpservers == ["fd00::9", "fd00::a"]


@pytest.mark.parametrize(
    ("theirs", "ours"), [(0, 0b100), (1, 0b110)], ids=["client updates", "server updates"]
)
def test_a_client_that_tells_its_name_and_asks_learns_its_name(theirs: int, ours: int) -> None:
    name = d.DHCP6OptClientFQDN(flags=theirs, fqdn="desktop.")
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), name, wanting(39))
    packet = answered(frame, "advertise", d.DHCP6_Advertise)
    option = bytes(packet[d.DHCP6OptClientFQDN])[4:]
    assert option[0] == ours
    assert option[1:].startswith(b"\x03vm1\x07default\x03svc\x07cluster\x05local\0")


@pytest.mark.parametrize(
    "options",
    [(wanting(39),), (d.DHCP6OptClientFQDN(fqdn="desktop."),)],
    ids=["asked without telling", "given without asking"],
)
def test_a_name_is_not_forced_on_a_client(options: tuple[Any, ...]) -> None:
    packet = answered(
        client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), *options), "advertise", d.DHCP6_Advertise
    )
    assert not packet.haslayer(d.DHCP6OptClientFQDN)


def test_a_message_to_our_own_address_is_sent_to_the_group_instead() -> None:
    frame = client6(d.DHCP6_Renew(trid=XID), CLIENT, SERVER, ia(OURS), destination="fe80::ff:fe00:0")
    packet = answered(frame, "use_multicast", d.DHCP6_Reply)
    assert packet[d.DHCP6OptStatusCode].statuscode == 5
    assert not packet.haslayer(d.DHCP6OptIA_NA)
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), destination="fe80::ff:fe00:0")
    assert ignored(frame) == "malformed"


def test_messages_for_other_servers_are_left_alone() -> None:
    assert ignored(client6(d.DHCP6_Request(trid=XID), CLIENT, OTHER_SERVER, ia())) == "other_server"
    assert (
        ignored(client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), destination="fe80::99")) == "other_server"
    )


def test_only_the_guests_own_mac_is_served_where_it_is_known() -> None:
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), mac="52:54:00:ab:cd:ef")
    assert ignored(frame, POINT_TO_POINT) == "other_client"


def test_a_guest_without_ipv6_has_no_offer() -> None:
    assert dhcp6.prepare(checked(MASQUERADE._replace(v6=None))) is None


def test_nothing_is_sent_empty() -> None:
    bare = Settings(SERVER_MAC, 1500, v6=MASQUERADE.v6)
    frame = client6(d.DHCP6_InfoRequest(trid=XID), wanting(23, 24, 31, 39, 56))
    packet = answered(frame, "information", d.DHCP6_Reply, bare)
    assert bytes(packet[d.DHCP6_Reply])[4:] == bytes(SERVER)


def test_the_windows_solicit_is_what_its_comment_says_and_is_answered() -> None:
    comment, frame = scapy_packets.fixture("windows-solicit.hex")
    message = dhcp6.parse(frame[62:])
    asked = "24,23,17,39"
    assert message.wanted == set(map(int, asked.split(",")))
    assert f"Option request: {asked} " in comment
    assert "Options: 8,1,3,39,16,6 " in comment
    packet = answered(frame, "advertise", d.DHCP6_Advertise)
    assert leases(packet)[0][0] == OURS
    assert packet.haslayer(d.DHCP6OptClientFQDN)


# As many as a pod may have, and 2048 characters with their dots and blanks (Kubernetes' dnsConfig).
MANY = tuple(f"n{index:02}.{'y' * 52}.example" for index in range(32))


@pytest.mark.parametrize("mtu", [1280, 1400])
def test_a_search_list_that_does_not_fit_loses_its_end_and_no_client_an_address(mtu: int) -> None:
    settings = MASQUERADE._replace(mtu=mtu, search=MANY)
    name = d.DHCP6OptClientFQDN(fqdn="desktop.")
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), name, wanting(24, 23, 39))
    packet = answered(frame, "advertise", d.DHCP6_Advertise, settings)
    assert leases(packet)[0][0] == OURS
    # It takes no room from what a guest needs more.
    assert packet.haslayer(d.DHCP6OptDNSServers)
    assert packet.haslayer(d.DHCP6OptClientFQDN)
    found = packet[d.DHCP6OptDNSDomains].dnsdomains
    assert found == [f"{name}." for name in MANY[: len(found)]]
    # One more would have been too many.
    assert mtu - 67 < len(packet[IPv6]) <= mtu
    roomy = answered(frame, "advertise", d.DHCP6_Advertise, settings._replace(mtu=9000))
    assert roomy[d.DHCP6OptDNSDomains].dnsdomains == [f"{name}." for name in MANY]


def test_an_option_that_does_not_fit_is_left_out_whole() -> None:
    servers = tuple(f"{index:0>60}.{'y' * 60}.{'z' * 60}.example" for index in range(16))
    settings = MASQUERADE._replace(ntp_servers=servers)
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia(), wanting(56, 23, 24))
    packet = answered(frame, "advertise", d.DHCP6_Advertise, settings)
    assert leases(packet)[0][0] == OURS
    assert not packet.haslayer(d.DHCP6OptNTPServer)
    assert packet[d.DHCP6OptDNSDomains].dnsdomains == [f"{name}." for name in MASQUERADE.search]


@given(st.lists(st.tuples(st.integers(100, 65535), st.binary(max_size=50)), max_size=10))
def test_options_we_do_not_know_change_nothing(options: list[tuple[int, bytes]]) -> None:
    unknown = [d.DHCP6OptUnknown(optcode=code, optlen=len(data), data=data) for code, data in options]
    frame = client6(d.DHCP6_Solicit(trid=XID), CLIENT, *unknown, ia())
    assert ask(frame).frames == ask(client6(d.DHCP6_Solicit(trid=XID), CLIENT, ia())).frames
