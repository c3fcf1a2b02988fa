"""What a stack promises, asserted on the real kernel and on the fake alike."""

from __future__ import annotations

import errno

import pytest

from cnvnet.kernel.addresses import AddAddress, DeleteAddress
from cnvnet.kernel.links import (
    Bridge,
    BridgePort,
    ChangeLink,
    CreateBridge,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
    Tun,
    VethPeer,
)
from cnvnet.kernel.neighbours import AddNeighbour, Neighbour
from cnvnet.kernel.netns import NotANamespace
from cnvnet.kernel.operations import Operation
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.stack import KernelError
from cnvnet.kernel.tap import CreateTap
from cnvnet.kernel.vlans import AddVlans, VlanRange
from cnvnet.kernel.wait import wait_for_link
from tests.fakes.kernel import FakeKernel
from tests.functional.kernel.conftest import ADDRESS, ADDRESS6, DEFAULT, DEFAULT6, World, refused, seen

# links


def test_a_veth_comes_with_master_peer_macs_and_mtu_in_one_operation(world: World) -> None:
    bridge = world.bridge()
    peer = VethPeer("eth0", mac="02:00:00:00:00:02", mtu=1400, netns_fd=world.pod_netns.fd)
    wanted = CreateVeth("veth0", peer, mac="02:00:00:00:00:01", mtu=1400, master=bridge.ifindex)
    [made] = world.host.apply(wanted)
    near, far = seen(world.host, "veth0"), seen(world.pod, "eth0")
    assert (made.name, made.mac, made.mtu, made.kind) == ("veth0", "02:00:00:00:00:01", 1400, "veth")
    assert (made.ifindex, made.master, made.peer) == (near.ifindex, bridge.ifindex, far.ifindex)
    assert (near.master, near.up, near.port) == (bridge.ifindex, True, BridgePort(False, False, True))
    assert (far.mac, far.mtu, far.up, far.peer, far.master) == (
        "02:00:00:00:00:02",
        1400,
        False,
        near.ifindex,
        0,
    )


def test_a_veth_within_one_namespace_has_both_ends_there(world: World) -> None:
    [near] = world.host.apply(CreateVeth("veth0", VethPeer("veth1"), up=False))
    far = seen(world.host, "veth1")
    assert (near.peer, far.peer, near.up) == (far.ifindex, near.ifindex, False)


def test_a_port_is_up_when_its_peer_is(world: World) -> None:
    bridge = world.bridge()
    port = world.port(master=bridge.ifindex)
    waited = wait_for_link(world.host, port.ifindex, seconds=0.2)
    assert waited is not None
    assert waited.operstate != "UP"
    world.pod.apply(ChangeLink(seen(world.pod, "eth0").ifindex, up=True))
    for link in (port, bridge):
        waited = wait_for_link(world.host, link.ifindex, seconds=10)
        assert waited is not None
        assert waited.operstate == "UP"


def test_waiting_for_a_link_that_is_gone_ends_at_once(world: World) -> None:
    assert wait_for_link(world.host, 4711, seconds=60) is None


def test_a_bridge_has_the_mac_and_mtu_it_was_given(world: World) -> None:
    [bridge] = world.host.apply(CreateBridge("br0", mac="02:00:00:00:00:FE", mtu=1300))
    assert (bridge.kind, bridge.mtu, bridge.up) == ("bridge", 1300, True)
    world.port(master=bridge.ifindex)
    found = seen(world.host, "br0")
    assert (found.mac, found.mtu) == ("02:00:00:00:00:fe", 1500)
    world.host.apply(ChangeLink(bridge.ifindex, mtu=1300))
    world.port("veth1", peer="eth1", master=bridge.ifindex)
    assert seen(world.host, "br0").mtu == 1300
    assert found.bridge is not None
    assert found.bridge.vlan_filtering is False


def test_a_bridge_without_a_mac_takes_its_ports(world: World) -> None:
    bridge = world.bridge()
    [port] = world.host.apply(
        CreateVeth("veth0", VethPeer("veth1"), mac="02:00:00:00:00:01", mtu=1400, master=bridge.ifindex)
    )
    found = seen(world.host, "br0")
    assert (found.mac, found.mtu) == (port.mac, 1400)
    world.host.apply(ChangeLink(port.ifindex, master=0))
    assert seen(world.host, "br0").mac == "00:00:00:00:00:00"


def test_port_flags_belong_to_ports_only(world: World) -> None:
    bridge = world.bridge()
    port = world.port(master=bridge.ifindex)
    world.host.apply(ChangeLink(port.ifindex, hairpin=True, isolated=True, learning=False))
    assert seen(world.host, "veth0").port == BridgePort(hairpin=True, isolated=True, learning=False)
    world.host.apply(ChangeLink(port.ifindex, hairpin=False))
    assert seen(world.host, "veth0").port == BridgePort(hairpin=False, isolated=True, learning=False)
    world.host.apply(ChangeLink(port.ifindex, master=0))
    assert seen(world.host, "veth0").port is None
    assert refused(world.host, ChangeLink(port.ifindex, hairpin=True)).errno == errno.EOPNOTSUPP


def test_master_and_port_flags_can_come_in_one_change(world: World) -> None:
    bridge, port = world.bridge(), world.port()
    world.host.apply(ChangeLink(port.ifindex, master=bridge.ifindex, isolated=True, up=True))
    found = seen(world.host, "veth0")
    assert (found.master, found.port) == (bridge.ifindex, BridgePort(False, True, True))


def test_promisc_is_what_was_asked_not_what_being_a_port_brings(world: World) -> None:
    bridge = world.bridge()
    port = world.port(master=bridge.ifindex)
    assert not seen(world.host, "veth0").promisc
    world.host.apply(ChangeLink(bridge.ifindex, promisc=True), ChangeLink(port.ifindex, promisc=True))
    assert seen(world.host, "br0").promisc
    assert seen(world.host, "veth0").promisc
    world.host.apply(ChangeLink(bridge.ifindex, promisc=False))
    assert not seen(world.host, "br0").promisc
    assert seen(world.host, "br0").up


def test_names_groups_aliases_macs_and_mtus_change(world: World) -> None:
    port = world.port()
    world.host.apply(
        ChangeLink(
            port.ifindex,
            name="cnvx1",
            up=False,
            mac="02:00:00:00:00:07",
            mtu=1280,
            group=77,
            alias="a guest's",
        )
    )
    found = seen(world.host, "cnvx1")
    assert (found.ifindex, found.up, found.mac, found.mtu) == (
        port.ifindex,
        False,
        "02:00:00:00:00:07",
        1280,
    )
    assert (found.group, found.alias) == (77, "a guest's")
    assert world.host.link("veth0") is None
    world.host.apply(ChangeLink(port.ifindex, alias="", group=0))
    assert (seen(world.host, "cnvx1").alias, seen(world.host, "cnvx1").group) == ("", 0)


def test_deleting_one_end_of_a_veth_takes_the_other_along(world: World) -> None:
    port = world.port()
    world.host.apply(DeleteLink(port.ifindex))
    assert world.host.link(port.ifindex) is None
    assert world.pod.link("eth0") is None
    assert refused(world.host, DeleteLink(port.ifindex)).errno == errno.ENODEV


def test_deleting_a_bridge_frees_its_ports(world: World) -> None:
    bridge = world.bridge()
    world.port(master=bridge.ifindex)
    world.host.apply(DeleteLink(bridge.ifindex))
    assert seen(world.host, "veth0").master == 0


def test_a_group_is_deleted_in_one_go_and_no_other_link(world: World) -> None:
    ports = [world.port(f"veth{i}", peer=f"eth{i}") for i in range(3)]
    world.host.apply(*(ChangeLink(port.ifindex, group=7733) for port in ports[:2]), DeleteGroup(7733))
    assert [link.name for link in world.host.links() if link.kind == "veth"] == ["veth2"]
    assert refused(world.host, DeleteGroup(7733)).errno == errno.ENODEV
    assert refused(world.host, DeleteGroup(0)).errno == errno.EPERM


def test_links_are_found_by_name_and_by_index(world: World) -> None:
    bridge = world.bridge()
    assert seen(world.host, bridge.ifindex).name == "br0"
    assert world.host.link("br1") is None
    assert world.host.link(4711) is None
    assert world.host.link("a-name-that-no-link-can-have") is None
    assert world.host.link("") is None
    assert {link.name for link in world.host.links()} >= {"lo", "br0"}


@pytest.mark.parametrize("end", ["near", "far"])
def test_a_veth_whose_name_is_taken_leaves_nothing(world: World, end: str) -> None:
    world.port()
    names = ("veth0", "eth1") if end == "near" else ("veth1", "eth0")
    wanted = CreateVeth(names[0], VethPeer(names[1], netns_fd=world.pod_netns.fd))
    assert refused(world.host, wanted).errno == errno.EEXIST
    assert [link.name for link in world.host.links() if link.kind == "veth"] == ["veth0"]
    assert [link.name for link in world.pod.links() if link.kind == "veth"] == ["eth0"]


def test_a_veth_for_a_bridge_that_is_gone_leaves_nothing(world: World) -> None:
    assert refused(world.host, CreateVeth("veth0", VethPeer("veth1"), master=4711)).errno == errno.EINVAL
    assert world.host.link("veth0") is None
    assert world.host.link("veth1") is None


def test_a_bridge_whose_name_is_taken_is_refused_with_its_name(world: World) -> None:
    world.bridge()
    assert str(refused(world.host, CreateBridge("br0"))) == "create bridge br0: file exists"


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        (ChangeLink(4711, up=True), errno.ENODEV),
        (ChangeLink(4711, name="x"), errno.ENODEV),
        (DeleteLink(4711), errno.ENODEV),
        (AddAddress(4711, ADDRESS), errno.ENODEV),
        (AddAddress(4711, ADDRESS6), errno.ENODEV),
        (DeleteAddress(4711, ADDRESS), errno.ENODEV),
        (DeleteAddress(4711, ADDRESS6), errno.ENODEV),
        (AddRoute(Route(DEFAULT, 4711)), errno.ENODEV),
        (AddRoute(Route(DEFAULT6, 4711)), errno.ENODEV),
        (AddNeighbour(Neighbour(4711, ADDRESS.ip, "02:00:00:00:00:01")), errno.ENODEV),
        (AddVlans(4711, (VlanRange(1, 1),)), errno.ENODEV),
    ],
)
def test_a_link_that_is_gone_is_refused(world: World, operation: Operation, number: int) -> None:
    assert refused(world.host, operation).errno == number


def test_renaming_and_enslaving_are_refused_as_the_kernel_does(world: World) -> None:
    bridge, port = world.bridge(), world.port()
    # Kernels before 6.3 rename no link that is up (EBUSY).
    assert refused(world.host, ChangeLink(port.ifindex, name="br0", up=False)).errno == errno.EEXIST
    assert refused(world.host, ChangeLink(bridge.ifindex, master=port.ifindex)).errno == errno.EOPNOTSUPP
    other = world.bridge("br1")
    assert refused(world.host, ChangeLink(other.ifindex, master=bridge.ifindex)).errno == errno.ELOOP
    assert refused(world.host, ChangeLink(port.ifindex, master=4711)).errno == errno.EINVAL


def test_a_kernel_without_vlans_says_so(world: World) -> None:
    if world.host.apply(CreateBridge("br0"))[0].bridge != Bridge(vlan_filtering=False, default_pvid=0):
        pytest.skip("this kernel has bridge VLANs")
    port = world.port(master=seen(world.host, "br0").ifindex)
    wanted = CreateBridge("br1", vlan_filtering=True)
    assert refused(world.host, wanted).errno == errno.EOPNOTSUPP
    assert world.host.link("br1") is None
    assert refused(world.host, AddVlans(port.ifindex, (VlanRange(1, 1),))).errno == errno.EOPNOTSUPP
    assert world.host.vlans(port.ifindex) == []


def test_what_follows_a_refused_operation_is_not_done(world: World) -> None:
    bridge = world.bridge()
    operations: list[Operation] = [
        ChangeLink(bridge.ifindex, alias="before"),
        CreateBridge("br0"),
        ChangeLink(bridge.ifindex, alias="after"),
    ]
    with pytest.raises(KernelError) as caught:
        world.host.apply(*operations)
    assert caught.value.operation == operations[1]
    assert seen(world.host, "br0").alias == "before"


# taps


@pytest.mark.parametrize("multi_queue", [False, True], ids=["one queue", "multi-queue"])
def test_a_tap_stays_until_it_is_deleted(world: World, multi_queue: bool) -> None:
    [made] = world.pod.apply(CreateTap("tap0", owner=107, group=107, multi_queue=multi_queue))
    assert (made.name, made.kind, made.up, world.host.link("tap0")) == ("tap0", "tun", False, None)
    assert refused(world.pod, CreateTap("tap0", multi_queue=multi_queue)).errno == errno.EBUSY
    world.pod.apply(ChangeLink(made.ifindex, mtu=1400, up=True))
    assert (seen(world.pod, "tap0").mtu, seen(world.pod, "tap0").operstate) == (1400, "DOWN")
    world.pod.apply(DeleteLink(made.ifindex))
    assert world.pod.link("tap0") is None


# namespaces


def test_a_path_that_is_no_namespace_is_distinguished_from_one_that_is_missing(world: World) -> None:
    if isinstance(world.kernel, FakeKernel):
        world.kernel.add_file("/etc/passwd")
    with pytest.raises(NotANamespace, match="/etc/passwd"), world.kernel.netns("/etc/passwd"):
        pass
    with pytest.raises(FileNotFoundError), world.kernel.netns("/run/netns/none"):
        pass


# VLANs, and what else not every kernel has


def test_a_tap_says_who_may_open_it(world: World) -> None:
    world.pod.apply(CreateTap("tap0", owner=107, group=108), CreateTap("tap1", multi_queue=True))
    assert seen(world.pod, "tap0").tun == Tun(107, 108, multi_queue=False)
    assert seen(world.pod, "tap1").tun == Tun(0, 0, multi_queue=True)
    world.port()
    assert seen(world.pod, "eth0").tun is None
