"""The settings that the guest is given."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.result import DNS
from cnvnet.guest.settings import Settings
from cnvnet.kernel.addresses import Address
from cnvnet.kernel.links import Link
from cnvnet.kernel.neighbours import Neighbour
from cnvnet.kernel.routes import Route
from cnvnet.kernel.rtnetlink import PROTOCOL_RA
from cnvnet.plugins.vm_bridge import plan
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.original import KnownNetwork
from tests.unit.plugins.vm_bridge.vm_bridge_fake_pod import a_request

MAC, ROUTER = "0a:00:00:00:00:05", "0a:00:00:00:00:01"
DEFAULT4, DEFAULT6 = ip_network("0.0.0.0/0"), ip_network("::/0")
BOTH = KnownNetwork(
    "eth0",
    MAC,
    1450,
    addresses=(Address(2, ip_interface("10.1.0.5/24")), Address(2, ip_interface("fd99::5/64"))),
    routes=(Route(DEFAULT4, 2, ip_address("10.1.0.1")), Route(DEFAULT6, 2, ip_address("fd99::1"))),
)
AWS = KnownNetwork(
    "eth0",
    MAC,
    9001,
    addresses=(Address(2, ip_interface("10.9.0.5/32")), Address(2, ip_interface("fd99::5/128"))),
    routes=(
        Route(ip_network("169.254.1.1/32"), 2, scope=253),
        Route(DEFAULT4, 2, ip_address("169.254.1.1")),
        Route(DEFAULT6, 2, ip_address("fe80::1")),
    ),
    neighbours=(
        Neighbour(2, ip_address("169.254.1.1"), ROUTER),
        Neighbour(2, ip_address("fe80::1"), ROUTER),
        Neighbour(2, ip_address("10.9.0.9"), "0a:00:00:00:00:09"),
    ),
)


def planned_settings(
    pod: KnownNetwork, router_mac: str = "", taken: tuple[str, ...] = (), **keys: Any
) -> Settings | None:
    config = Config.parse(a_request(keys))
    addresses = map(ip_address, taken)
    return plan.plan(config, pod, taken=addresses, router_mac=router_mac, dns=DNS()).served


def test_a_next_hop_known_by_a_permanent_entry_is_answered_for() -> None:
    settings = planned_settings(AWS)
    assert settings is not None
    assert settings.v4 is not None
    assert settings.v6 is not None
    assert [str(each.address) for each in settings.neighbours] == ["169.254.1.1", "fe80::1"]
    assert (settings.v6.router, settings.v6.router_mac) == (ip_address("fe80::1"), ROUTER)
    assert (str(settings.v4.gateway), settings.guest_mac, settings.mtu) == ("169.254.1.1", MAC, 9001)


def test_a_link_local_router_is_asked_by_the_guest() -> None:
    settings = planned_settings(AWS._replace(neighbours=()))
    assert settings is not None
    assert settings.v6 is not None
    assert (settings.v6.router, settings.v6.router_mac) == (ip_address("fe80::1"), "")
    assert plan.unknown_router(AWS._replace(neighbours=())) is None


def test_a_router_known_by_a_global_address_is_announced_by_what_its_mac_makes() -> None:
    assert plan.unknown_router(BOTH) == ip_address("fd99::1")
    settings = planned_settings(BOTH, ROUTER)
    assert settings is not None
    assert settings.v6 is not None
    assert (settings.v6.router, settings.v6.router_mac) == (ip_address("fe80::800:ff:fe00:1"), ROUTER)


def test_a_router_that_does_not_answer_is_not_announced() -> None:
    settings = planned_settings(BOTH)
    assert settings is not None
    assert settings.v6 is not None
    assert settings.v6.default_route is False


def test_a_router_that_was_heard_of_is_announced() -> None:
    ra_routes = (Route(DEFAULT6, 2, ip_address("fe80::9"), protocol=PROTOCOL_RA),)
    settings = planned_settings(BOTH._replace(routes=BOTH.routes[:1], ra_routes=ra_routes))
    assert settings is not None
    assert settings.v6 is not None
    assert settings.v6.router == ip_address("fe80::9")


def test_the_server_has_an_address_of_its_own() -> None:
    settings = planned_settings(BOTH, taken=("169.254.75.10",))
    assert settings is not None
    assert settings.v4 is not None
    assert settings.v4.server == ip_address("169.254.75.11")


@pytest.mark.parametrize("keys", [{"lanDHCP": True}, {"guestServices": {"enabled": False}}], ids=str)
def test_nothing_is_configured_where_the_guest_is_not_served(keys: dict[str, Any]) -> None:
    assert planned_settings(BOTH, **keys) is None


def test_the_lan_and_we_exclude_each_other() -> None:
    with pytest.raises(InvalidConfig, match="lanDHCP: the LAN tells the guest everything"):
        planned_settings(BOTH, lanDHCP=True, guestServices={})


def test_a_small_mtu_is_not_for_ipv6() -> None:
    settings = planned_settings(BOTH._replace(mtu=1200))
    assert settings is not None
    assert settings.v6 is None


@pytest.mark.parametrize(
    ("mtu4", "mtu6", "tap", "told4", "told6"),
    [(0, 0, 1450, 1450, 1450), (1400, 1300, 1400, 1400, 1300), (1300, 0, 1450, 1300, 1450)],
)
def test_an_mtu_of_the_default_route_is_its_familys(
    mtu4: int, mtu6: int, tap: int, told4: int, told6: int
) -> None:
    ipv4, ipv6 = BOTH.routes
    pod = BOTH._replace(routes=(ipv4._replace(mtu=mtu4), ipv6._replace(mtu=mtu6)))
    wanted = plan.plan(Config.parse(a_request({})), pod, taken=(), router_mac=ROUTER, dns=DNS())
    assert (wanted.mtu, wanted.bridge.mtu) == (tap, tap)
    assert wanted.served is not None
    assert (wanted.served.mtu, wanted.served.ipv4_mtu, wanted.served.ipv6_mtu) == (tap, told4, told6)


@pytest.mark.parametrize("kind", ["macvlan", "macvtap", "ipvlan", "ipvtap"])
def test_what_shares_a_device_is_refused_with_a_remedy(kind: str) -> None:
    with pytest.raises(InvalidConfig, match=f"eth0 is a {kind}.*cnv-bridge.*masquerade"):
        plan.ensure_fit(Link(2, "eth0", kind, MAC, 1500, True, "UP"))
