"""How operations read in messages."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cnvnet.kernel import addresses
from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress
from cnvnet.kernel.links import (
    ChangeLink,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
    VethPeer,
)
from cnvnet.kernel.neighbours import AddNeighbour, Neighbour, ResolveNeighbour
from cnvnet.kernel.operations import Operation, describe
from cnvnet.kernel.replays import Replay
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.tap import CreateTap
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange

ADDRESS = ip_interface("10.0.0.1/24")
ROUTE = Route(ip_network("10.9.0.0/16"), 7, ip_address("10.0.0.9"))
NEIGHBOUR = Neighbour(7, ip_address("10.0.0.9"), "02:00:00:00:00:01")
RANGES = (VlanRange(33, 33), VlanRange(100, 199))
TEXTS: dict[str, Operation] = {
    "create bridge br0": CreateBridge("br0"),
    "create veth veth0 with peer eth0": CreateVeth("veth0", VethPeer("eth0")),
    "create dummy d0": CreateDummy("d0"),
    "create tap tap0": CreateTap("tap0"),
    "change eth0": ChangeLink(7, up=True),
    "delete eth0": DeleteLink(7),
    "delete link group 77": DeleteGroup(77),
    "add address 10.0.0.1/24 on eth0": AddAddress(7, ADDRESS),
    "restore address 10.0.0.2/24 on eth0": Replay(
        7, addresses.encode(Address(7, ip_interface("10.0.0.2/24")))
    ),
    "delete address 10.0.0.1/24 on eth0": DeleteAddress(7, ADDRESS),
    "add route 10.9.0.0/16 via 10.0.0.9 on eth0": AddRoute(ROUTE),
    "add route 10.9.0.0/16 on eth0": AddRoute(ROUTE._replace(gw=None)),
    "add neighbour 10.0.0.9 on eth0": AddNeighbour(NEIGHBOUR),
    "resolve neighbour 10.0.0.9 on eth0": ResolveNeighbour(7, ip_address("10.0.0.9")),
    "add vlans 33,100-199 on eth0": AddVlans(7, RANGES),
    "delete vlans 33,100-199 on eth0": DeleteVlans(7, RANGES),
}


@pytest.mark.parametrize(("text", "operation"), TEXTS.items(), ids=TEXTS)
def test_an_operation_reads_as_what_was_asked_of_which_link(text: str, operation: Operation) -> None:
    assert describe(operation, "eth0") == text


def test_every_operation_can_be_read() -> None:
    assert {type(operation) for operation in TEXTS.values()} == set(Operation.__args__)


def test_a_link_without_a_name_goes_by_its_index() -> None:
    assert describe(AddAddress(7, ADDRESS)) == "add address 10.0.0.1/24 on link 7"
