from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.guest.settings import V4, V6, GuestNeighbour, checked
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT

ADDRESS = IPv4Interface("10.0.2.2/24")
GATEWAY = IPv4Address("10.0.2.1")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"server_mac": "02:00"}, "server_mac '02:00': not a MAC address"),
        ({"server_mac": ""}, "server_mac '': not a MAC address"),
        (
            {"server_mac": "01:00:00:00:00:00"},
            "server_mac '01:00:00:00:00:00': not the address of one interface",
        ),
        ({"guest_mac": "zz:00:00:00:00:00"}, "guest_mac 'zz:00:00:00:00:00': not a MAC address"),
        ({"mtu": 500}, "mtu 500: not between 576 and 65535"),
        ({"mtu": 1279}, "mtu 1279: IPv6 needs 1280 at least"),
        ({"v4": V4(ADDRESS, GATEWAY, mtu=575)}, "v4.mtu 575: not between 576 and 65535"),
        ({"v6": V6(IPv6Interface("fd00::2/64"), mtu=1279)}, "v6.mtu 1279: IPv6 needs 1280 at least"),
        ({"lease_seconds": 1}, "lease_seconds 1: not between 60 and 4294967295"),
        ({"boot_file": "a\nb"}, "boot_file 'a\\nb': not up to 255 printable ASCII characters"),
        ({"tftp_server": "é"}, "tftp_server 'é': not up to 255 printable ASCII characters"),
        ({"private_options": ((100, "x"),)}, "private_options 100: not between 224 and 254"),
        ({"private_options": ((224, "x"), (224, "y"))}, "private_options 224: given twice"),
        ({"private_options": ((224, "\ud800"),)}, "private_options 224: half a character (a surrogate)"),
        ({"private_options": ((224, ""),)}, "private_options 224: not between 1 and 255 bytes long"),
        ({"v4": V4(ADDRESS, IPv4Address("0.0.0.0"))}, "v4.server 0.0.0.0: not the address of one host"),
        ({"v4": V4(ADDRESS, GATEWAY, IPv4Address("224.0.0.1"))}, "v4.gateway 224.0.0.1: not the address"),
        (
            {"v4": V4(IPv4Interface("127.0.0.1/8"), GATEWAY)},
            "v4.address 127.0.0.1: not the address of one host",
        ),
        (
            {"v4": V4(ADDRESS, ADDRESS.ip)},
            "v4.address 10.0.2.2: the guest cannot be its own server or gateway",
        ),
        ({"v6": V6(IPv6Interface("ff02::1/128"))}, "v6.address ff02::1: not the address of one host"),
        (
            {"v6": V6(IPv6Interface("fd00::2/64"), IPv6Address("fd00::1"))},
            "v6.router fd00::1: a router is known by a link-local address",
        ),
        ({"neighbours": (GuestNeighbour(GATEWAY, "x"),)}, "neighbours 'x': not a MAC address"),
        (
            {"neighbours": (GuestNeighbour(IPv4Address("224.0.0.1"), "02:00:00:00:00:01"),)},
            "neighbours 224.0.0.1: not the address of one host",
        ),
    ],
)
def test_what_an_operator_wrote_wrongly_is_an_error_that_names_it(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig) as raised:
        checked(MASQUERADE._replace(**wrong))
    assert raised.value.msg.startswith(message)


def test_what_comes_along_from_a_pod_is_left_out_when_odd() -> None:
    settings = checked(
        MASQUERADE._replace(
            search=("DHCP", "10.0.0.1", "Corp.Example"),
            nameservers=(IPv4Address("127.0.0.1"), IPv4Address("10.96.0.10")),
            hostname="not a name",
            ntp_servers=("10.0.0.9", "Time.Example", "-", "127.0.0.1"),
        )
    )
    assert settings.search == ("corp.example",)
    assert settings.nameservers == (IPv4Address("10.96.0.10"),)
    assert settings.hostname == ""
    assert settings.ntp_servers == ("10.0.0.9", "time.example")


def test_the_router_is_what_owns_the_servers_mac_unless_configured_otherwise() -> None:
    v6 = checked(MASQUERADE).v6
    assert v6 is not None
    assert (v6.router, v6.router_mac) == (IPv6Address("fe80::ff:fe00:0"), "02:00:00:00:00:00")


def test_a_routers_mac_gives_its_link_local_address() -> None:
    assert POINT_TO_POINT.v6 is not None
    v6 = checked(POINT_TO_POINT._replace(v6=POINT_TO_POINT.v6._replace(router=None))).v6
    assert v6 is not None
    assert v6.router == IPv6Address("fe80::858:a9ff:fefe:101")


@pytest.mark.parametrize("settings", [MASQUERADE, POINT_TO_POINT], ids=["masquerade", "point-to-point"])
def test_checking_twice_changes_nothing(settings: Any) -> None:
    assert checked(checked(settings)) == checked(settings)
