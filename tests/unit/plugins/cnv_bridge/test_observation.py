"""What the kernel has of recorded attachments: ports, their bridges, their guards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.record import Record
from cnvnet.kernel.links import ChangeLink, DeleteLink
from cnvnet.plugins.cnv_bridge import guards
from cnvnet.plugins.cnv_bridge.observation import DOWN, MISSING, NO_CARRIER, UP, ObservedPort, observe
from tests.unit.plugins.cnv_bridge.fake_node import POD, World

GUARDED: dict[str, Any] = {
    "macspoofchk": True,
    "ipspoofchk": True,
    "dhcpGuard": True,
    "raGuard": True,
    "ipam": {"type": "fake"},
}


def records(world: World) -> list[Record]:
    return list(world.attachments.records("cnv-bridge"))


def the_port(world: World) -> ObservedPort:
    (port,) = observe(world.kernel, records(world)).ports.values()
    return port


def test_a_port_is_as_add_has_left_it(tmp_path: Path) -> None:
    world = World(tmp_path, **GUARDED)
    result = world.add()
    port = the_port(world)
    assert (port.name, port.state, port.bridge) == (result.interfaces[1].name, UP, "br0")
    assert port.mac == result.interfaces[2].mac
    assert port.guards == ("macspoofchk", "ipspoofchk", "dhcpGuard", "raGuard")
    assert port.unguarded == ()
    table = observe(world.kernel, records(world)).table
    assert (table.loaded, table.newer) == (True, "")


def test_without_guards_a_port_has_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    assert the_port(world).guards == ()


@pytest.mark.parametrize(
    ("change", "state", "bridge"),
    [({"up": False}, DOWN, "br0"), ({"master": 0}, UP, "")],
)
def test_what_others_do_to_a_port_is_seen(
    tmp_path: Path, change: dict[str, int], state: str, bridge: str
) -> None:
    world = World(tmp_path)
    world.add()
    with world.kernel.stack() as host:
        link = host.link(the_port(world).name)
        assert link is not None
        host.apply(ChangeLink(link.ifindex, **change))  # type: ignore[arg-type]  # one of its flags
    assert the_port(world)[2:4] == (state, bridge)


def test_a_pod_that_sets_its_end_down_leaves_no_carrier(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    with world.kernel.netns(POD) as netns, world.kernel.stack(netns) as pod:
        link = pod.link("eth0")
        assert link is not None
        pod.apply(ChangeLink(link.ifindex, up=False))
    assert the_port(world).state == NO_CARRIER


def test_a_port_that_is_gone_is_missing_and_another_of_its_name_is_not_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    name = the_port(world).name
    with world.kernel.stack() as host:
        link = host.link(name)
        assert link is not None
        host.apply(DeleteLink(link.ifindex))
        assert the_port(world)[2:4] == (MISSING, "")
        world.host.add_link(name, "veth")
    assert the_port(world).state == MISSING


def test_elements_that_are_gone_are_named(tmp_path: Path) -> None:
    world = World(tmp_path, **GUARDED)
    world.add()
    port = the_port(world)
    with world.kernel.nft() as nft:
        lost = [
            element
            for element in guards.elements(port.name, port.mac, [], guards.Guards(True))
            if element.set == "macs"
        ]
        nft.change(delete=lost)
    assert the_port(world).unguarded == tuple(lost)


def test_nothing_is_changed(tmp_path: Path) -> None:
    world = World(tmp_path, **GUARDED)
    world.add()
    found = records(world)
    done = list(world.kernel.done)
    observe(world.kernel, found)
    assert world.kernel.done == done
