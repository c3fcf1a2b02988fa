"""A port's elements, and the table as nft reads it."""

from __future__ import annotations

from ipaddress import ip_interface
from pathlib import Path

import pytest

from cnvnet.kernel.addresses import link_local
from cnvnet.plugins.cnv_bridge import guards
from cnvnet.plugins.cnv_bridge.guards import Guards, elements
from tests.fakes.nft import FakeNft, render

GOLDEN = Path(__file__).parents[3] / "data" / "bridge_guards.nft"
ADDRESSES = [ip_interface("10.1.2.5/24"), ip_interface("2001:db8::5/64")]
MAC = "02:00:00:00:00:0A"


def sets(wanted: Guards) -> set[str]:
    return {element.set for element in elements("veth1", MAC, ADDRESSES, wanted)}


def test_the_table_with_one_fully_guarded_port_is_the_golden_one() -> None:
    port = elements("veth1", MAC, ADDRESSES, Guards(True, True, True, True))
    assert guards.TEXT + render(add=port) == GOLDEN.read_text()


def test_a_later_version_has_a_later_priority() -> None:
    """Or frames could pass while chains are exchanged: it must come after the older one, one by one."""
    number = int(guards.VERSION.removeprefix("guard_v"))
    chain = guards.TEXT.partition(f"chain {guards.VERSION} {{")[2].partition("}")[0]
    assert f"type filter hook prerouting priority {number - 311}; policy accept;" in chain


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Guards(), set[str]()),
        (Guards(macspoofchk=True), {"mac_ports", "macs", "raw_macs"}),
        (Guards(dhcp_guard=True), {"dhcp_ports", "inspected_ports", "macs", "raw_macs"}),
        (Guards(ra_guard=True), {"ra_ports", "inspected_ports", "macs", "raw_macs"}),
        (
            Guards(ipspoofchk=True),
            {"ip_ports", "inspected_ports", "macs", "raw_macs", "ipv4", "ipv6", "raw_ipv6"},
        ),
    ],
    ids=["none", "mac", "dhcp", "ra", "ip"],
)
def test_each_guard_has_its_sets(wanted: Guards, expected: set[str]) -> None:
    assert sets(wanted) == expected


def test_every_set_a_port_may_be_in_is_declared() -> None:
    nft = FakeNft()
    guards.ensure(nft)
    nft.change(add=elements("veth1", MAC, ADDRESSES, Guards(True, True, True, True)))
    assert all(nft.tables["bridge", "cnv_bridge"].sets.values()), "a set no port is ever in"


def test_every_address_is_allowed_once() -> None:
    own = link_local(bytes.fromhex(MAC.replace(":", "")))
    twice = [*ADDRESSES, ip_interface(f"{own}/64"), ip_interface("2001:db8::5/128")]
    found = elements("veth1", MAC, twice, Guards(ipspoofchk=True))
    assert [element.key[1] for element in found if element.set == "ipv6"] == [str(own), "2001:db8::5"]
    assert len(found) == len(set(found))


def test_the_table_is_loaded_only_while_it_has_its_rules() -> None:
    nft = FakeNft()
    assert not guards.loaded(nft)
    guards.ensure(nft)
    assert guards.loaded(nft)
    full = (
        nft.elements(),
        {name: len(rules) for name, rules in nft.tables["bridge", "cnv_bridge"].chains.items()},
    )
    for name in full[1]:
        nft.run(f"flush chain bridge cnv_bridge {name}")
        assert not guards.loaded(nft)
        guards.ensure(nft)
        assert guards.loaded(nft)
    chains = nft.tables["bridge", "cnv_bridge"].chains
    assert (nft.elements(), {name: len(rules) for name, rules in chains.items()}) == full
    nft.run("flush table bridge cnv_bridge")
    assert not guards.loaded(nft)
    guards.ensure(nft)
    assert guards.loaded(nft)
