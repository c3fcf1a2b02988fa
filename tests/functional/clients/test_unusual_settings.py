"""What clients make of settings that are out of the ordinary, from a packet loop without a plugin."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

import pytest

from cnvnet.guest.settings import Settings
from tests.functional.agent.own_agent import eventually
from tests.functional.clients.client_machine import BEHIND, MTU, POINT_TO_POINT, Lab
from tests.functional.clients.clients import CLIENTS, Client, Dhclient, Dhclient6, Dhcpcd, Networkd, Udhcpc
from tests.functional.masquerade.masquerade_pod import V4, V6, Answer, Side, who_answers

pytestmark = pytest.mark.alone

EACH_CLIENT = pytest.mark.parametrize("kind", CLIENTS, ids=[kind.name for kind in CLIENTS])


def addresses(settings: Settings) -> dict[Side, str]:
    """Those that the guest is given."""
    assert settings.v4 is not None
    assert settings.v6 is not None
    return {V4: str(settings.v4.address), V6: str(settings.v6.address)}


@EACH_CLIENT
def test_a_single_address_and_a_next_hop_that_answers_no_arp(lab: Lab, kind: type[Client]) -> None:
    hop = lab.serve(POINT_TO_POINT)
    client, machine = kind(lab.machine), lab.machine
    client.start()
    client.await_addresses(addresses(POINT_TO_POINT))
    for side in client.sides:
        assert machine.routes(side)["default"] == ("169.254.1.1" if side is V4 else "fe80::1")
        there = lab.listener(hop, side, 7000)
        own = addresses(POINT_TO_POINT)[side].partition("/")[0]
        assert who_answers(machine, side, BEHIND[side], 7000, there=there) == Answer("there", own)
        assert machine.mtu(side, BEHIND[side]) == MTU
    if isinstance(client, Udhcpc):
        # The script of its package leaves them aside, as it may: the default route says as much.
        routes = (
            "169.254.1.1/32 0.0.0.0 192.168.99.0/24 0.0.0.0 10.200.0.0/16 169.254.1.1 0.0.0.0/0 169.254.1.1"
        )
        assert client.reported()["staticroutes"] == routes
    elif V4 in client.sides:
        routes4 = machine.routes(V4)
        # dhcpcd takes whatever has no gateway for a single host.
        on_link = "192.168.99.0" if kind is Dhcpcd else "192.168.99.0/24"
        assert (routes4["169.254.1.1"], routes4[on_link]) == ("", "")
        assert routes4["10.200.0.0/16"] == "169.254.1.1"
        for host in ("10.200.0.1", "192.168.99.1"):
            there = lab.listener(hop, V4, 7001, host)
            assert who_answers(machine, V4, host, 7001, there=there).by == "there"


@EACH_CLIENT
def test_a_machine_that_comes_back_elsewhere_has_the_address_of_there(lab: Lab, kind: type[Client]) -> None:
    """A client that remembers its lease is refused, and gets its new address at once."""
    second = POINT_TO_POINT
    assert second.v4 is not None
    assert second.v6 is not None
    hop = lab.serve(second)
    client = kind(lab.machine)
    client.start()
    client.await_addresses(addresses(second))
    client.stop()
    here = second._replace(
        v4=second.v4._replace(address=IPv4Interface("192.168.22.7/32")),
        v6=second.v6._replace(address=IPv6Interface("fd00:22::7/128")),
    )
    hop.offer(here)
    client.start()
    client.await_addresses(addresses(here))
    remembers = {Dhclient: ("dhcp4", "nak"), Dhclient6: ("dhcp6", "confirm"), Dhcpcd: ("dhcp4", "nak")}
    if kind in remembers:
        assert hop.loop.counted(*remembers[kind]) == 1


# Nothing but the last label can be said with fewer bytes: 330 in all for DHCPv4.
LONG = tuple(f"n{number:02}.{letter * 20}.example" for number, letter in enumerate("abcdefghijkl"))


@pytest.mark.parametrize("kind", [Dhclient, Dhclient6, Dhcpcd, Networkd], ids=lambda kind: kind.name)
def test_a_search_list_that_is_longer_than_one_option(lab: Lab, kind: type[Client]) -> None:
    lab.serve(POINT_TO_POINT._replace(search=LONG))
    client = kind(lab.machine)
    client.start()
    # dhclient does not say that it takes more than 576 bytes.
    least = 6 if kind is Dhclient else len(LONG)
    assert eventually(lambda: len(client.learnt().search) >= least), lab.machine.report()
    found = client.learnt().search
    assert found == LONG[: len(found)]
