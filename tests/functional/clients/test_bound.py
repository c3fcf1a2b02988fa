"""Machines behind the two bindings, served by the node's agent.

What each client makes of it, and whether what it has configured works.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.functional.agent.own_agent import RunningAgent, eventually
from tests.functional.clients.client_machine import MASQUERADE, MTU, OPTIONS, VM_BRIDGE, Lab, Way
from tests.functional.clients.clients import (
    CLIENTS,
    Client,
    Dhclient,
    Dhclient6,
    Dhcpcd,
    Learnt,
    Udhcpc,
)
from tests.functional.masquerade.masquerade_pod import V4, V6, Answer, Side, who_answers

pytestmark = pytest.mark.alone

EACH_CLIENT = pytest.mark.parametrize("kind", CLIENTS, ids=[kind.name for kind in CLIENTS])
EACH_WAY = pytest.mark.parametrize("way", [MASQUERADE, VM_BRIDGE], ids=["masquerade", "vm-bridge"])


def expected(kind: type[Client]) -> Learnt:
    """All that this client asks for."""
    families = ["." if side is V4 else ":" for side in kind.sides]
    nameservers, time_servers = (
        tuple(address for mark in families for address in OPTIONS[key] if mark in address)
        for key in ("nameservers", "ntpServers")
    )
    return Learnt(
        nameservers,
        tuple(OPTIONS["search"]),
        "" if kind is Dhclient6 else "vm1",
        () if kind is Dhcpcd else time_servers,
    )


def talk(lab: Lab, side: Side) -> None:
    """Both ways through the pod."""
    outside = lab.listener(lab.node, side, 7000)
    answer = who_answers(lab.machine, side, side.outside, 7000, outside=outside)
    assert answer == Answer("outside", side.pod)
    guest = lab.listener(lab.machine, side, 7001)
    assert who_answers(lab.node, side, side.pod, 7001, guest=guest) == Answer("guest", side.outside)


@EACH_WAY
@EACH_CLIENT
def test_a_client_configures_its_machine(lab: Lab, way: Way, kind: type[Client]) -> None:
    lab.bind(way)
    client, machine = kind(lab.machine), lab.machine
    client.start()
    client.await_addresses(way.addresses)
    for side in client.sides:
        assert machine.mtu(side, side.outside) == MTU
    assert eventually(lambda: client.learnt() == expected(kind)), (client.learnt(), expected(kind))
    if V4 in client.sides:
        assert machine.routes(V4)["default"] == way.gateway
    if V6 in client.sides:
        assert machine.routes(V6)["default"].startswith("fe80::")
        assert machine.routes(V6)[way.link] == ""
    for side in client.sides:
        talk(lab, side)


# Of the default routes; the interface has more.
MTUS = {V4: 1350, V6: 1300}
# A guest whose interface gets another MTU by DHCP forgets its settings of IPv6 until it is given them again.
OF_ONE_FAMILY = [kind for kind in CLIENTS if len(kind.sides) == 1]


@EACH_WAY
@pytest.mark.parametrize("kind", OF_ONE_FAMILY, ids=[kind.name for kind in OF_ONE_FAMILY])
def test_a_client_learns_of_a_default_route_that_takes_less(lab: Lab, way: Way, kind: type[Client]) -> None:
    lab.bind(way, mtus=MTUS)
    client, machine = kind(lab.machine), lab.machine
    client.start()
    client.await_addresses(way.addresses)
    for side in client.sides:
        assert machine.mtu(side, side.outside) == MTUS[side]
        talk(lab, side)


def heard(agent: RunningAgent) -> Counter[str]:
    """How many of each message the agent has answered."""
    pattern = re.compile(r'cnvnet_guest_events_total{event="(.*)",service="dhcp[46]"}')
    found = ((pattern.fullmatch(name), number) for name, number in agent.metrics().items())
    return sum((Counter({match[1]: int(number)}) for match, number in found if match), Counter[str]())


# The answers to a client that has a lease and asks again. Those that are missing have no way to ask.
RENEWALS = (
    (Udhcpc, "ack"),  # by unicast
    (Dhclient, "ack"),  # after a reboot
    (Dhclient6, "confirm"),
    (Dhcpcd, "reply"),
)


@pytest.mark.parametrize(("kind", "event"), RENEWALS, ids=[kind.name for kind, _ in RENEWALS])
def test_a_client_keeps_its_lease_and_gives_it_back(lab: Lab, kind: type[Client], event: str) -> None:
    agent = lab.bind(MASQUERADE)
    client, machine = kind(lab.machine), lab.machine
    client.start()
    client.await_addresses(MASQUERADE.addresses)
    before = heard(agent)
    client.renew()
    assert eventually(lambda: heard(agent)[event] > before[event]), heard(agent) - before
    client.await_addresses(MASQUERADE.addresses)
    # No client began from the beginning.
    assert not (heard(agent) - before).keys() & {"offer", "advertise", "rapid_reply", "nak"}
    for side in client.sides:
        talk(lab, side)
    client.release()
    assert eventually(lambda: heard(agent)["release"] == len(client.sides)), heard(agent)
    assert eventually(lambda: not any(machine.settled(side) for side in client.sides))
    client.start()
    client.await_addresses(MASQUERADE.addresses)
