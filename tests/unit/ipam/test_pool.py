"""Pools give out every address they should, no other, and cost the same at any size."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPRange, IPSet

from cnvnet.cni.fields import Address
from cnvnet.ipam.pool import Pool, Range, pool, probing_order


def a_range(subnet: str, first: str = "", last: str = "", gateway: str = "") -> Range:
    network = ip_network(subnet)
    return Range(
        network,
        ip_address(first) if first else network.network_address + 1,
        ip_address(last) if last else network.broadcast_address,
        ip_address(gateway) if gateway else None,
    )


def addresses(found: Pool, seed: bytes = b"", index: int = 0) -> list[Address]:
    """All addresses of a small set in the order they are probed."""
    order: list[Address] = []
    for first, last in probing_order(found.sets[index], seed):
        order.extend(first + offset for offset in range(int(last) - int(first) + 1))
    return order


def test_a_subnet_gives_its_hosts_without_gateway_network_and_broadcast() -> None:
    found = pool([(a_range("10.0.0.0/29", first="10.0.0.0", last="10.0.0.7", gateway="10.0.0.1"),)], [])
    assert sorted(addresses(found), key=int) == [IPv4Address(f"10.0.0.{last}") for last in range(2, 7)]


def test_an_ipv6_subnet_gives_its_last_address_but_not_the_routers_anycast_one() -> None:
    found = pool([(a_range("fd00::/125", first="fd00::", gateway="fd00::1"),)], [])
    assert sorted(addresses(found), key=int) == [IPv6Address(f"fd00::{last}") for last in range(2, 8)]


def test_a_gateway_of_one_range_is_given_by_no_other() -> None:
    parts = (
        a_range("10.0.0.0/24", "10.0.0.2", "10.0.0.4"),
        a_range("10.0.0.0/24", "10.0.0.9", "10.0.0.9", gateway="10.0.0.3"),
    )
    found = pool([parts], [])
    assert sorted(map(str, addresses(found))) == ["10.0.0.2", "10.0.0.4", "10.0.0.9"]


def test_exclusions_may_overlap_and_reach_beyond_the_range() -> None:
    holes = [
        ("10.0.0.0", "10.0.0.9"),
        ("10.0.0.8", "10.0.0.11"),
        ("10.0.0.13", "10.0.9.9"),
        ("fd00::", "fd00::9"),
    ]
    excluded = [(ip_address(first), ip_address(last)) for first, last in holes]
    found = pool([(a_range("10.0.0.0/24"),)], excluded)
    assert [str(ip) for ip in addresses(found)] == ["10.0.0.12"]


def test_the_start_depends_on_the_seed_alone_and_spreads() -> None:
    found = pool([(a_range("10.0.0.0/16"),)], [])
    starts = [addresses_start(found, f"vm{number}") for number in range(200)]
    assert starts == [addresses_start(found, f"vm{number}") for number in range(200)]
    # 200 of 65,534 places: by chance a single pair meets, never a tenth of them.
    assert len(set(starts)) > 190


def addresses_start(found: Pool, seed: str) -> Address:
    return next(probing_order(found.sets[0], seed.encode()))[0]


def test_another_process_starts_at_the_same_place() -> None:
    program = (
        "from ipaddress import ip_network as n\n"
        "from cnvnet.ipam.pool import Range, pool, probing_order\n"
        "s = n('10.0.0.0/16')\n"
        "print(next(probing_order(pool([(Range(s, s[1], s[-2]),)], []).sets[0], b'vm1'))[0])\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=env
        ).stdout
        for env in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    }
    assert len(found) == 1


@pytest.mark.parametrize("subnet", ["fd00::/64", "fd00::/48", "fc00::/8", "::/0"])
def test_a_large_ipv6_prefix_is_no_more_work_than_a_small_one(subnet: str) -> None:
    found = pool([(a_range(subnet),)], [(ip_address("fd00::10"), ip_address("fd00::ff"))])
    order = list(probing_order(found.sets[0], b"vm1"))
    assert len(order) <= len(found.sets[0].spans) + 1 <= 3
    assert all(first in ip_network(subnet) and last in ip_network(subnet) for first, last in order)


def test_what_no_vm_can_have_says_what_it_is_for() -> None:
    found = pool(
        [(a_range("10.0.0.0/24", gateway="10.0.0.1"),), (a_range("fd00::/64", gateway="fd00::1"),)], []
    )
    purposes = {
        "10.0.0.1": "the gateway",
        "10.0.0.0": "the network address",
        "10.0.0.255": "the broadcast address",
        "fd00::1": "the gateway",
        "fd00::": "the network address",
        "10.0.0.2": "",
        "fd00::ffff:ffff:ffff:ffff": "",
    }
    assert {ip: found.purpose_of(ip_address(ip)) for ip in purposes} == purposes


def test_an_address_outside_narrowed_ranges_still_belongs_to_its_subnet() -> None:
    parts = (
        a_range("10.0.0.0/24", "10.0.0.10", "10.0.0.20"),
        a_range("10.0.1.0/24", "10.0.1.10", "10.0.1.20"),
    )
    found = pool([parts], [])
    assert found.range_of(ip_address("10.0.1.99")) == parts[1]
    assert found.range_of(ip_address("10.0.2.1")) is None
    assert found.set_of(ip_address("10.0.1.99")) is None
    assert found.set_of(ip_address("10.0.1.11")) == 0


class Small(NamedTuple):
    """A pool small enough to enumerate, and what it was made of."""

    found: Pool
    parts: tuple[Range, ...]
    excluded: list[tuple[Address, Address]]


@st.composite
def small_pools(draw: st.DrawFn) -> Small:
    base, bits = draw(st.sampled_from([("10.0.0.0/26", 64), ("fd00::/122", 64)]))
    network = ip_network(base)
    ends = sorted(draw(st.sets(st.integers(0, bits - 1), min_size=4, max_size=4)))
    gateways = [
        network.network_address + draw(st.integers(1, bits - 2)) if draw(st.booleans()) else None
    ] * 2
    parts = tuple(
        Range(network, network.network_address + first, network.network_address + last, gateway)
        for first, last, gateway in zip(ends[::2], ends[1::2], gateways, strict=True)
    )
    holes = draw(st.lists(st.tuples(st.integers(0, bits - 1), st.integers(0, 8)), max_size=4))
    excluded = [
        (network.network_address + first, network.network_address + min(first + size, bits - 1))
        for first, size in holes
    ]
    return Small(pool([parts], excluded), parts, excluded)


@given(small_pools(), st.binary(max_size=8))
def test_every_allowed_address_is_a_candidate_exactly_once(small: Small, seed: bytes) -> None:
    network = small.parts[0].subnet
    kept = {ip for first, last in small.excluded for ip in network if int(first) <= int(ip) <= int(last)}
    kept |= {each.gateway for each in small.parts if each.gateway} | {network.network_address}
    if network.version == 4:
        kept.add(network.broadcast_address)
    allowed = {ip for ip in network if any(each.holds(ip) for each in small.parts)} - kept
    given_out = addresses(small.found, seed) if small.found.sets[0].spans else []
    assert len(given_out) == len(set(given_out)) == small.found.sets[0].size
    assert set(given_out) == allowed
    assert all(small.found.sets[0].gives(ip) == (ip in allowed) for ip in network)


@given(st.data())
def test_netaddr_finds_the_same_addresses_in_subnets_of_any_size(data: st.DataObject) -> None:
    bits, network = data.draw(st.sampled_from([(32, "10.0.0.0/16"), (128, "fd00::/48")]))
    subnet = ip_network(network)
    low = st.integers(int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1)
    span = st.tuples(low, low).map(lambda ends: (as_address(bits, min(ends)), as_address(bits, max(ends))))
    first, last = data.draw(span)
    holes = data.draw(st.lists(span, max_size=5))
    found = pool([(Range(subnet, first, last),)], holes)
    wanted = IPSet(IPRange(str(first), str(last)))
    for low_end, high_end in holes:
        wanted -= IPSet(IPRange(str(low_end), str(high_end)))
    given_out = [(int(part.first), int(part.last)) for part in wanted.iter_ipranges()]
    assert [(part.first, part.last) for part in found.sets[0].spans] == given_out


def as_address(bits: int, value: int) -> Address:
    return IPv4Address(value) if bits == 32 else IPv6Address(value)
