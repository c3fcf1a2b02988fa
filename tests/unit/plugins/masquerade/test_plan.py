"""The plan of an ADD, as values."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.result import DNS
from cnvnet.kernel.links import CreateBridge, Link
from cnvnet.kernel.routes import Route
from cnvnet.kernel.sysctl import Setting
from cnvnet.kernel.tap import CreateTap
from cnvnet.plugins.masquerade import plan
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.plan import MasqueradePlan, Observed
from tests.unit.plugins.masquerade.masquerade_fake_pod import a_request


def observed(
    *addresses: str, name: str = "eth0", mtu: int = 1500, advertised: tuple[str, ...] = ()
) -> Observed:
    link = Link(2, name, "veth", "0a:58:0a:f4:00:05", mtu, up=True, operstate="UP")
    return Observed(link, tuple(map(ip_interface, addresses)), advertised)


def wanted(seen: Observed, /, **keys: Any) -> MasqueradePlan:
    return plan.plan(Config.parse(a_request(keys)), seen)


def test_bridge_and_tap_are_kubevirts() -> None:
    found = wanted(observed("10.244.0.5/24", mtu=8950), queues=4, owner=0)
    assert found.bridge == CreateBridge("k6t-eth0", mac="02:00:00:00:00:00", mtu=8950, up=False)
    assert found.tap == CreateTap("tap0", 0, 107, multi_queue=True)


@pytest.mark.parametrize(
    ("addresses", "gateways", "guests"),
    [
        (["10.244.0.5/24"], ["10.0.2.1/24"], ["10.0.2.2/24"]),
        (["fd99::5/64"], ["fd10:0:2::1/120"], ["fd10:0:2::2/120"]),
        (
            ["fd99::5/64", "10.244.0.5/24"],
            ["10.0.2.1/24", "fd10:0:2::1/120"],
            ["10.0.2.2/24", "fd10:0:2::2/120"],
        ),
    ],
    ids=["IPv4", "IPv6", "both"],
)
def test_a_guest_has_the_families_of_its_pod(
    addresses: list[str], gateways: list[str], guests: list[str]
) -> None:
    found = wanted(observed(*addresses))
    assert [str(family.gateway) for family in found.families] == gateways
    assert [str(family.guest) for family in found.families] == guests
    assert found.tables == tuple("ip6" if ":" in gateway else "ip" for gateway in gateways)


def test_a_network_of_ones_own_gives_its_first_two_addresses() -> None:
    keys = {"vmNetworkCIDR": "10.11.12.13/29", "vmIPv6NetworkCIDR": "fd10:10:10::2/126"}
    found = wanted(observed("10.244.0.5/24", "fd99::5/64"), **keys)
    assert [str(family.gateway) for family in found.families] == ["10.11.12.9/29", "fd10:10:10::1/126"]
    assert [str(family.guest) for family in found.families] == ["10.11.12.10/29", "fd10:10:10::2/126"]


@pytest.mark.parametrize(
    ("seen", "keys", "message"),
    [
        (observed(), {}, "eth0 has no address that a VM could be masqueraded behind"),
        (observed("10.0.2.15/24"), {}, "vmNetworkCIDR: 10.0.2.0/24 overlaps 10.0.2.15/24 of eth0"),
        (observed("10.1.2.3/8"), {}, "vmNetworkCIDR: 10.0.2.0/24 overlaps 10.1.2.3/8 of eth0"),
        (observed("10.0.2.2/32"), {}, "vmNetworkCIDR: 10.0.2.0/24 overlaps 10.0.2.2/32 of eth0"),
        (observed("fd10:0:2::9/64"), {}, "vmIPv6NetworkCIDR: fd10:0:2::/120 overlaps fd10:0:2::9/64"),
        (observed("10.244.0.5/24"), {"mtu": 1501}, "mtu: 1501 is more than the 1500 of eth0"),
        (observed("fd99::5/64"), {"mtu": 1279}, "mtu: IPv6 needs 1280 at least, not 1279"),
        (observed("fd99::5/64", mtu=1000), {}, "the MTU of eth0: IPv6 needs 1280 at least, not 1000"),
    ],
    ids=["no address", "same network", "wider network", "guest's address", "IPv6", "mtu", "mtu 6", "link 6"],
)
def test_what_does_not_fit_the_pod_is_refused(seen: Observed, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{message}"):
        wanted(seen, **keys)


def test_a_single_address_among_the_guests_is_accepted() -> None:
    assert wanted(observed("10.0.2.77/32")).tables == ("ip",)


def test_a_link_wider_than_a_tap_gives_what_a_tap_can_have() -> None:
    assert wanted(observed("10.244.0.5/24", mtu=65535)).mtu == 65521


def test_an_ipv4_pod_gets_the_sysctls_of_ipv4_only() -> None:
    found = wanted(observed("10.244.0.5/24"))
    assert Setting("net/ipv4/ip_forward", "1") in found.global_
    assert Setting("net/ipv4/conf/k6t-eth0/route_localnet", "1") in found.on_links
    assert Setting("net/ipv4/conf/k6t-eth0/send_redirects", "0") in found.on_links
    assert Setting("net/ipv6/conf/k6t-eth0/disable_ipv6", "1", required=False) in found.on_links
    assert not any(setting.key.startswith("net/ipv6") for setting in found.global_)


def test_an_ipv6_pod_gets_the_sysctls_of_ipv6_only() -> None:
    found = wanted(observed("fd99::5/64", advertised=("eth0",)))
    # The routes of a router's advertisements are kept before the pod becomes one.
    assert found.global_[-3:] == (
        Setting("net/ipv6/conf/eth0/accept_ra", "2"),
        Setting("net/ipv6/conf/all/forwarding", "1"),
        Setting("net/ipv6/conf/k6t-eth0/forwarding", "1"),
    )
    assert not any(setting.key.startswith("net/ipv4") for setting in (*found.global_, *found.on_links))


def test_a_default_route_that_went_all_the_same_comes_back_to_stay() -> None:
    default = Route(ip_network("::/0"), 2, ip_address("fe80::1"), priority=1024, scope=0, protocol=9)
    other = default._replace(gw=ip_address("fe80::2"))
    assert plan.lost_routes((default, other), (other,)) == (default._replace(protocol=0, scope=None),)
    assert plan.came_from_an_advertisement(default)
    assert plan.default_routes([default, Route(ip_network("0.0.0.0/0"), 2)]) == (default,)


def test_the_guest_learns_where_it_is() -> None:
    config = Config.parse(a_request({"args": {"cni": {"vm": {"name": "vm1"}}}}))
    found = plan.plan(config, observed("10.244.0.5/24", "fd99::5/64", mtu=1400))
    settings = plan.guest_settings(config, found, DNS(nameservers=("10.96.0.10",)))
    assert (settings.server_mac, settings.guest_mac, settings.mtu) == ("02:00:00:00:00:00", "", 1400)
    assert settings.hostname == "vm1"
    assert settings.nameservers == (ip_address("10.96.0.10"),)
    assert settings.v4 is not None
    assert settings.v6 is not None
    assert (str(settings.v4.address), str(settings.v4.gateway)) == ("10.0.2.2/24", "10.0.2.1")
    # The link-local address that the kernel gives the bridge by its MAC.
    assert (str(settings.v6.address), str(settings.v6.router)) == ("fd10:0:2::2/120", "fe80::ff:fe00:0")


def test_an_mtu_of_the_default_route_is_its_familys() -> None:
    config = Config.parse(a_request({}))
    routes = (
        Route(ip_network("0.0.0.0/0"), 2, ip_address("10.244.0.1"), mtu=1450),
        Route(ip_network("::/0"), 2, ip_address("fd99::1"), mtu=1400),
    )
    both = observed("10.244.0.5/24", "fd99::5/64")._replace(routes=routes)
    found = plan.plan(config, both)
    settings = plan.guest_settings(config, found, DNS())
    assert found.bridge is not None
    assert (found.mtu, found.bridge.mtu, settings.ipv4_mtu, settings.ipv6_mtu) == (1450, 1450, 1450, 1400)
    # The tap is large enough for both.
    only6 = plan.plan(config, both._replace(routes=routes[1:]))
    settings = plan.guest_settings(config, only6, DNS())
    assert (only6.mtu, settings.ipv4_mtu, settings.ipv6_mtu) == (1500, 1500, 1400)
    assert wanted(both, mtu=1420).mtu == 1420
