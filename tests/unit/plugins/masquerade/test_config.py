"""Every key of the configuration: what it becomes, and what is said about what it cannot be."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.guest.options import GuestOptions
from cnvnet.plugins.binding.tap_options import TapOptions
from cnvnet.plugins.masquerade.config import TCP, UDP, Config, PortRange, merged
from tests.unit.plugins.masquerade.masquerade_fake_pod import a_request


def parse(args: str = "", /, **config: Any) -> Config:
    return Config.parse(a_request(config, args=args))


def test_without_keys_the_defaults_are_kubevirts() -> None:
    assert parse() == Config(
        network=IPv4Network("10.0.2.0/24"),
        ipv6_network=IPv6Network("fd10:0:2::/120"),
        listed=(),
        reserved=(49152, 49153),
        istio=False,
        bridge=True,
        hairpin=True,
        mtu=0,
        tap=TapOptions(),
        claim=None,
        target=False,
        guest=GuestOptions(),
        hostname="",
    )


def test_host_bits_and_leading_zeros_of_a_network_are_ignored() -> None:
    config = parse(vmNetworkCIDR="010.010.010.002/24", vmIPv6NetworkCIDR="fd10:10:10::2/120")
    assert (str(config.network), str(config.ipv6_network)) == ("10.10.10.0/24", "fd10:10:10::/120")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vmNetworkCIDR": "10.0.2.0"}, 'vmNetworkCIDR: "10.0.2.0" is not in CIDR notation'),
    ({"vmNetworkCIDR": "fd00::/64"}, "vmNetworkCIDR: fd00::/64 is not an IPv4 network"),
    ({"vmNetworkCIDR": "10.0.2.0/31"}, "vmNetworkCIDR: 10.0.2.0/31 has no room"),
    ({"vmNetworkCIDR": "127.0.0.0/8"}, "vmNetworkCIDR: 127.0.0.1 cannot be the address of a host"),
    ({"vmNetworkCIDR": "0.0.0.0/0"}, "vmNetworkCIDR: 0.0.0.1 cannot be"),
    ({"vmNetworkCIDR": "224.0.0.0/24"}, "vmNetworkCIDR: 224.0.0.1 cannot be"),
    ({"vmNetworkCIDR": 10}, "vmNetworkCIDR: expected a string"),
    ({"vmIPv6NetworkCIDR": "10.0.2.0/24"}, "vmIPv6NetworkCIDR: 10.0.2.0/24 is not an IPv6 network"),
    ({"vmIPv6NetworkCIDR": "fd00::/127"}, "vmIPv6NetworkCIDR: fd00::/127 has no room"),
    ({"vmIPv6NetworkCIDR": "fe80::/64"}, "vmIPv6NetworkCIDR: fe80::1 cannot be"),
    ({"vmIPv6NetworkCIDR": "::/64"}, "vmIPv6NetworkCIDR: ::1 cannot be"),
    ({"ports": {"port": 80}}, "ports: expected a list of objects"),
    ({"ports": [80]}, r"ports\[0\]: expected an object"),
    ({"ports": [{}]}, r"ports\[0\].port: required"),
    ({"ports": [{"port": 0}]}, r"ports\[0\].port: 0 is not between 1 and 65535"),
    ({"ports": [{"port": "80"}]}, r"ports\[0\].port: expected an integer"),
    (
        {"ports": [{"port": 80, "protocol": "SCTP"}]},
        r'ports\[0\].protocol: "SCTP" is neither TCP nor UDP',
    ),
    ({"portRanges": [{"start": 1}]}, r"portRanges\[0\].end: required"),
    ({"portRanges": [{"start": 10, "end": 9}]}, r"portRanges\[0\].end: 9 is less than 10"),
    ({"portRanges": [{"start": 1, "end": 65536}]}, r"portRanges\[0\].end: 65536 is not between"),
    (
        {"portRanges": [{"start": 1, "end": 2, "protocol": 6}]},
        r"portRanges\[0\].protocol: expected a string",
    ),
    ({"reservedPorts": 1}, "reservedPorts: expected a list of integers"),
    ({"reservedPorts": ["1"]}, r"reservedPorts\[0\]: expected an integer"),
    ({"reservedPorts": [True]}, r"reservedPorts\[0\]: expected an integer"),
    ({"reservedPorts": [1, 65536]}, r"reservedPorts\[1\]: 65536 is not between"),
    (
        {"reservedPorts": [22, 80], "portRanges": [{"start": 70, "end": 90}]},
        "reservedPorts: 80 is among the VM's ports as well",
    ),
    ({"istio": "true"}, "istio: expected true or false"),
    ({"hairpin": 0}, "hairpin: expected true or false"),
    ({"mtu": 575}, "mtu: 575 is not between 576 and 65521"),
    ({"mtu": 65522}, "mtu: 65522 is not between"),
    ({"mtu": "1500"}, "mtu: expected an integer"),
    ({"owner": -1}, "owner: -1"),
    ({"guestServices": True}, "guestServices: expected an object"),
    ({"args": {"cni": {"vm": {"role": "target"}}}}, "args.cni.vm.name: required"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=str)
def test_what_cannot_be_is_refused_by_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{message}"):
        parse(**keys)


def test_ports_and_ranges_are_one_list() -> None:
    config = parse(
        ports=[
            {"port": 80},
            {"port": 81, "protocol": "TCP", "name": "web"},
            {"port": 53, "protocol": "udp"},
        ],
        portRanges=[{"start": 8000, "end": 8010, "protocol": "Udp"}, {"start": 75, "end": 80}],
    )
    assert config.listed == (PortRange(TCP, 75, 81), PortRange(UDP, 53, 53), PortRange(UDP, 8000, 8010))


@pytest.mark.parametrize("key", ["ports", "portRanges"])
def test_an_empty_list_is_no_list(key: str) -> None:
    assert parse(**{key: []}).listed == ()


def a_range(protocol: int, first: int, length: int) -> PortRange:
    return PortRange(protocol, first, min(first + length, 65535))


@given(st.lists(st.builds(a_range, st.sampled_from([TCP, UDP]), st.integers(1, 65535), st.integers(0, 50))))
def test_merged_ranges_are_the_same_ports_and_do_not_touch(ranges: list[PortRange]) -> None:
    def ports(of: list[PortRange] | tuple[PortRange, ...]) -> set[tuple[int, int]]:
        return {(each.protocol, port) for each in of for port in range(each.first, each.last + 1)}

    found = merged(ranges)
    assert ports(found) == ports(ranges)
    for one, other in pairwise(found):
        assert (one.protocol, one.last + 1) < (other.protocol, other.first)


def test_ports_that_are_listed_are_reserved_only_if_that_is_asked_for() -> None:
    assert parse(ports=[{"port": 49152}]).reserved == (49153,)
    assert parse(ports=[{"port": 49152, "protocol": "UDP"}]).reserved == (49152, 49153)
    assert parse(reservedPorts=[]).reserved == ()
    assert parse(reservedPorts=[22, 9, 22]).reserved == (9, 22)


def test_only_the_target_of_a_migration_takes_flows_up() -> None:
    assert parse("VM_NAME=vm1;VM_ROLE=target").target
    assert not parse("VM_NAME=vm1;VM_ROLE=active").target
    assert parse(args={"cni": {"vm": {"name": "vm1", "role": "target"}}}).hostname == "vm1"


def test_arguments_of_others_need_to_be_declared_ignorable() -> None:
    assert not parse("K8S_POD_NAME=p;K8S_POD_UID=u;FOO=1;IgnoreUnknown=1;MAC=02:00:00:00:00:09").target
    with pytest.raises(CNIError, match="unknown args") as caught:
        parse("FOO=1")
    assert caught.value.code == 4
