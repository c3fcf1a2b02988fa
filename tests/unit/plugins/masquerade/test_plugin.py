"""The plugin on a kernel in memory: what each command does, whatever happened before it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.cni.result import IP, Interface, Result, render
from cnvnet.guest import settings_json
from cnvnet.kernel import tap
from cnvnet.kernel.addresses import AddAddress, DeleteAddress
from cnvnet.kernel.links import ChangeLink, CreateBridge
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.stack import Stack
from cnvnet.plugins.masquerade import ruleset
from cnvnet.plugins.masquerade.plugin import load
from tests.unit.plugins.fake_pod import ADDRESSES, POD, kill_adds, kill_deletes, refuse_adds
from tests.unit.plugins.killing_kernel import KillingKernel
from tests.unit.plugins.masquerade.masquerade_fake_pod import FULL, World

NO_BRIDGE: dict[str, Any] = {"bridge": False}
EITHER_WAY = pytest.mark.parametrize("keys", [FULL, NO_BRIDGE], ids=["bridge", "tap"])
CHAINED = Result(
    (Interface("br0"), Interface("eth0", sandbox=POD)), (IP(ip_interface(ADDRESSES[0]), None, 1),)
)


def chained(world: World, result: Result = CHAINED) -> dict[str, Any]:
    return {"ifname": "eth0", "config": {"prevResult": render(result, "1.1.0")}}


def test_an_add_of_its_own_reports_nothing_and_makes_no_net_link(tmp_path: Path) -> None:
    world = World(tmp_path, **FULL)
    assert world.add(config={"args": {"cni": {"logicNetworkName": "default"}}}) == Result()
    assert world.links == ["lo", "eth0", "k6t-eth0", "tap0"]
    bridge, tap0 = (world.pod.by_name(name) for name in ("k6t-eth0", "tap0"))
    assert bridge is not None
    assert tap0 is not None
    assert (bridge.mac, bridge.mtu, bridge.up) == ("02:00:00:00:00:00", 1400, True)
    assert (tap0.master, tap0.mtu, tap0.up) == (bridge, 1400, True)


def test_a_chained_add_passes_the_result_on_as_it_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.add(**chained(world)) == CHAINED
    world.check(CHAINED, ifname="eth0")


def test_the_interface_of_the_pod_stays_untouched(tmp_path: Path) -> None:
    world = World(tmp_path)

    def seen() -> tuple[object, ...]:
        link = world.pod.by_name("eth0")
        assert link is not None
        addresses = [each for each in world.pod.addresses if each.ifindex == link.ifindex]
        return link.shown(), addresses, [each for each in world.pod.routes if each.ifindex == link.ifindex]

    before = seen()
    world.add()
    assert seen() == before


@pytest.mark.parametrize("keys", [{}, FULL, NO_BRIDGE], ids=["defaults", "full", "without bridge"])
@pytest.mark.parametrize(
    "addresses", [ADDRESSES, ADDRESSES[:1], ADDRESSES[1:]], ids=["both", "IPv4", "IPv6"]
)
def test_del_leaves_the_pod_as_it_was(
    tmp_path: Path, keys: dict[str, Any], addresses: tuple[str, ...]
) -> None:
    world = World(tmp_path, addresses=addresses, **keys)
    before = world.snapshot()
    world.add()
    assert world.snapshot() != before
    world.check()
    world.delete()
    assert world.snapshot() == before
    world.delete()
    assert world.snapshot() == before


@EITHER_WAY
def test_an_add_refused_at_any_step_leaves_the_pod_as_it_was(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert refuse_adds(lambda step: World(tmp_path / str(step), **keys)) > 15


@EITHER_WAY
@pytest.mark.parametrize("then", ["delete", "add", "gc"])
def test_a_kill_at_any_step_is_repaired_by_the_next_call(
    tmp_path: Path, then: str, keys: dict[str, Any]
) -> None:
    assert kill_adds(lambda step: World(tmp_path / str(step), KillingKernel(), **keys), then) > 15


@EITHER_WAY
def test_a_del_killed_at_any_step_is_finished_by_the_next(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert kill_deletes(lambda step: World(tmp_path / str(step), KillingKernel(), **keys)) > 5


def test_a_del_that_is_refused_something_does_the_rest_and_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    before = world.snapshot()
    world.add()
    world.kernel.fail_at(1, errno.EBUSY)
    with pytest.raises(OSError, match="delete tap0"):
        world.delete()
    assert world.links == ["lo", "eth0", "tap0"]
    assert world.records[0]["state"] == "deleting"
    assert "guest" not in world.records[0]
    world.delete()
    assert world.snapshot() == before


def test_without_a_record_the_links_tell_whose_they_are(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    for path in (world.rundir / "attachments").iterdir():
        path.unlink()
    world.delete(container_id="other")
    assert "tap0" in world.links
    world.delete()
    assert world.links == ["lo", "eth0"]
    assert world.nft.tables == {}


def test_with_an_unreadable_record_the_links_tell_their_owner(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    (path,) = (world.rundir / "attachments").iterdir()
    path.write_text('{"v": 99}')
    world.delete()
    assert world.links == ["lo", "eth0"]
    assert path.read_text() == '{"v": 99}'


def test_a_damaged_record_goes_with_its_attachment(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    (path,) = (world.rundir / "attachments").iterdir()
    path.write_text("{")
    world.delete()
    assert world.links == ["lo", "eth0"]
    world.add()


def test_a_del_without_a_namespace_finds_it_by_the_record(tmp_path: Path) -> None:
    world = World(tmp_path)
    before = world.snapshot()
    world.add()
    world.delete(netns="")
    assert world.snapshot() == before


@pytest.mark.parametrize("how", ["gone", "a file", "another", "of another boot"])
def test_a_del_touches_only_the_namespace_of_its_record(tmp_path: Path, how: str) -> None:
    world = World(tmp_path)
    world.add()
    if how == "of another boot":
        (path,) = (world.rundir / "attachments").iterdir()
        path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "another"}))
    else:
        world.kernel.remove_namespace(POD)
    if how == "a file":
        world.kernel.add_file(POD)
    if how == "another":
        world.pod = world.kernel.add_namespace(POD)
        world.pod.add_link("tap0", "tun")
    world.delete()
    assert world.records == []
    assert how in ("gone", "a file") or "tap0" in world.links


def test_a_second_add_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    before = world.snapshot()
    with pytest.raises(CNIError, match=r"^net1 of container cid-1 has k6t-eth0 already") as caught:
        world.add()
    assert caught.value.code == 7
    assert world.snapshot() == before


def test_a_pod_has_one_masqueraded_interface(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add()
    link = world.pod.add_link("pod16477688c0e", "veth")
    with world.kernel.netns(POD) as netns, world.kernel.stack(netns) as stack:
        stack.apply(ChangeLink(link.ifindex, up=True))
        stack.apply(AddAddress(link.ifindex, ip_interface("10.99.0.5/24")))
    before = world.snapshot()
    name = {"args": {"cni": {"logicNetworkName": "blue"}}}
    with pytest.raises(CNIError, match="another interface of this pod is masqueraded"):
        world.add(ifname="net2", config=name)
    assert world.snapshot() == before


@pytest.mark.parametrize("name", ["k6t-eth0", "tap0"])
def test_foreign_links_stay(tmp_path: Path, name: str) -> None:
    world = World(tmp_path)
    world.pod.add_link(name, "dummy")
    before = world.snapshot()
    with pytest.raises(CNIError, match=f"^eth0: the pod has a link {name} already$"):
        world.add()
    assert world.snapshot() == before
    world.delete()
    assert world.snapshot() == before


def test_an_empty_result_in_a_version_without_one_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(CNIError, match="cannot convert"):
        world.add(cni_version="0.2.0")
    assert world.kernel.done == []
    assert world.records == []


def test_a_namespace_that_is_none_is_code_8(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(CNIError, match=r'^failed to open netns "/nowhere": no such file') as caught:
        world.add(netns="/nowhere")
    assert caught.value.code == 8


# IPv6 and router advertisements


@pytest.mark.parametrize(("accept_ra", "kept_as"), [("1", 9), ("2", 9), ("0", 3)])
def test_the_default_route_of_an_ipv6_pod_survives(tmp_path: Path, accept_ra: str, kept_as: int) -> None:
    world = World(tmp_path)
    _advertise(world)
    world.pod.sysctls["net/ipv6/conf/eth0/accept_ra"] = accept_ra
    before = world.snapshot()
    world.add()
    (default,) = (route for route in world.pod.routes if route.dst.prefixlen == 0)
    assert (str(default.gw), default.protocol) == ("fe80::1", kept_as)
    world.check()
    if accept_ra == "1":
        world.pod.sysctls["net/ipv6/conf/eth0/accept_ra"] = "1"
        with pytest.raises(CNIError, match=r"^sysctl net/ipv6/conf/eth0/accept_ra is 1, not 2"):
            world.check()
    world.delete()
    assert world.snapshot() | {"routes": 0} == before | {"routes": 0}


def _advertise(world: World) -> None:
    (default,) = (route for route in world.pod.routes if route.dst.prefixlen == 0)
    with world.kernel.netns(POD) as netns, world.kernel.stack(netns) as stack:
        learned = default._replace(gw=ip_interface("fe80::1/64").ip, protocol=9)
        world.pod.delete_route(default)
        stack.apply(AddRoute(Route(*learned)))


# guest services


def test_the_record_has_the_guests_settings(tmp_path: Path) -> None:
    world = World(tmp_path, **FULL)
    world.add()
    (record,) = world.records
    assert record["guest"]["ifname"] == "tap0"
    settings = settings_json.parse(record["guest"]["settings"])
    assert (settings.mtu, settings.hostname) == (1400, "vm1")
    assert settings.v4 is not None


def test_a_guest_that_is_not_to_be_served_is_not_in_the_record(tmp_path: Path) -> None:
    world = World(tmp_path, guestServices={"enabled": False})
    world.add()
    assert "guest" not in world.records[0]
    world.check()


@pytest.mark.parametrize("command", ["add", "status"])
def test_services_that_are_required_and_cannot_be_had_are_code_50(tmp_path: Path, command: str) -> None:
    world = World(tmp_path, guestServices={"autostart": False})
    before = world.snapshot()

    def call() -> None:
        if command == "add":
            world.add()
        else:
            world.plugin.status(world.request())

    with pytest.raises(CNIError, match=r"^guestServices: no agent at") as caught:
        call()
    assert caught.value.code == 50
    assert world.snapshot() == before


# CHECK


def _harm_link(**changes: Any) -> Callable[[Stack, World], None]:
    def harm(stack: Stack, world: World) -> None:
        link = stack.link(changes["of"])
        assert link is not None
        stack.apply(
            ChangeLink(link.ifindex, **{key: value for key, value in changes.items() if key != "of"})
        )

    return harm


def _harm_address(stack: Stack, world: World) -> None:
    link = stack.link("k6t-eth0")
    assert link is not None
    stack.apply(DeleteAddress(link.ifindex, ip_interface("10.0.2.1/24")))


def _harm_sysctl(key: str, value: str) -> Callable[[Stack, World], None]:
    return lambda stack, world: stack.sysctls.set(key, value)


def _harm_chain(family: str, name: str) -> Callable[[Stack, World], None]:
    return lambda stack, world: world.nft.tables[family, ruleset.TABLE].chains[name].clear()


def _harm_order(stack: Stack, world: World) -> None:
    world.nft.tables["ip", ruleset.TABLE].chains["prerouting"].reverse()


def _harm_element(stack: Stack, world: World) -> None:
    world.nft.tables["ip6", ruleset.TABLE].sets["listed"].popitem()


def _harm_record(stack: Stack, world: World) -> None:
    for path in (world.rundir / "attachments").iterdir():
        path.unlink()


def _harm_gateway(**changes: Any) -> Callable[[Stack, World], None]:
    return _harm_link(of="tap0", **changes)


def _join_bridge(stack: Stack, world: World) -> None:
    (bridge,) = stack.apply(CreateBridge("br9"))
    _harm_gateway(master=bridge.ifindex)(stack, world)


def _harm_address_of_tap(stack: Stack, world: World) -> None:
    link = stack.link("tap0")
    assert link is not None
    stack.apply(DeleteAddress(link.ifindex, ip_interface("fd10:0:2::1/120")))


HARM_WITHOUT_BRIDGE: dict[str, tuple[Callable[[Stack, World], None], str]] = {
    "MAC": (_harm_gateway(mac="02:00:00:00:00:01"), "the MAC of tap0 is 02:00:00:00:00:01"),
    "MTU": (_harm_gateway(mtu=1300), "mtu of tap0 is 1300, not 1500"),
    "down": (_harm_gateway(up=False), "tap0 is down"),
    "gone": (_harm_gateway(name="other"), "tap tap0 is missing"),
    "bridge": (_join_bridge, "tap0 is attached to link"),
    "address": (_harm_address_of_tap, "address fd10:0:2::1/120 is missing on tap0"),
    "route_localnet": (
        _harm_sysctl("net/ipv4/conf/tap0/route_localnet", "0"),
        "sysctl net/ipv4/conf/tap0/route_localnet is 0",
    ),
}


@pytest.mark.parametrize("what", HARM_WITHOUT_BRIDGE)
def test_without_a_bridge_check_looks_at_the_tap(tmp_path: Path, what: str) -> None:
    world = World(tmp_path, **NO_BRIDGE)
    world.add()
    world.check()
    harm, message = HARM_WITHOUT_BRIDGE[what]
    with world.kernel.netns(POD) as netns, world.kernel.stack(netns) as stack:
        harm(stack, world)
    with pytest.raises(CNIError, match=f"^{message}") as caught:
        world.check()
    assert caught.value.code == 100


def test_without_a_bridge_the_tap_is_the_gateway_and_nothing_else_is_made(tmp_path: Path) -> None:
    world = World(tmp_path, **NO_BRIDGE)
    world.add()
    assert world.links == ["lo", "eth0", "tap0"]
    gateway = world.pod.by_name("tap0")
    assert gateway is not None
    assert (gateway.mac, gateway.master, gateway.up) == ("02:00:00:00:00:00", None, True)
    held = {str(each.address) for each in world.pod.addresses if each.ifindex == gateway.ifindex}
    assert held >= {"10.0.2.1/24", "fd10:0:2::1/120", "fe80::ff:fe00:0/64"}
    assert "k6t-eth0" not in str(world.nft.tables)


def test_without_a_bridge_a_second_add_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, **NO_BRIDGE)
    world.add()
    before = world.snapshot()
    with pytest.raises(CNIError, match="tap0"):
        world.add()
    assert world.snapshot() == before
    world.check()


def test_istio_needs_the_bridge(tmp_path: Path) -> None:
    with pytest.raises(CNIError, match=r"^bridge: Istio's sidecar knows the guest by the bridge") as caught:
        World(tmp_path, istio=True, **NO_BRIDGE).add()
    assert caught.value.code == 7


HARM: dict[str, tuple[Callable[[Stack, World], None], str]] = {
    "bridge's MAC": (
        _harm_link(of="k6t-eth0", mac="02:00:00:00:00:01"),
        "the MAC of k6t-eth0 is 02:00:00:00:00:01",
    ),
    "bridge's MTU": (_harm_link(of="k6t-eth0", mtu=1300), "mtu of k6t-eth0 is 1300, not 1400"),
    "bridge down": (_harm_link(of="k6t-eth0", up=False), "k6t-eth0 is down"),
    "bridge gone": (_harm_link(of="k6t-eth0", name="other"), "bridge k6t-eth0 is missing"),
    "tap's MTU": (_harm_link(of="tap0", mtu=1300), "mtu of tap0 is 1300"),
    "tap down": (_harm_link(of="tap0", up=False), "tap0 is down"),
    "tap off": (_harm_link(of="tap0", master=0), "tap0 is not attached to k6t-eth0"),
    "tap gone": (_harm_link(of="tap0", name="other"), "tap tap0 is missing"),
    "address": (_harm_address, "address 10.0.2.1/24 is missing on k6t-eth0"),
    "forwarding": (_harm_sysctl("net/ipv4/ip_forward", "0"), "sysctl net/ipv4/ip_forward is 0, not 1"),
    "route_localnet": (
        _harm_sysctl("net/ipv4/conf/k6t-eth0/route_localnet", "0"),
        "sysctl net/ipv4/conf/k6t-eth0/route_localnet is 0",
    ),
    "guard": (
        _harm_chain("ip", "guard"),
        'table ip cnv_masquerade, chain guard: the rule "by the pod',
    ),
    "IPv6": (
        _harm_chain("ip6", "postrouting"),
        'table ip6 .*, chain postrouting: the rule "from the guest"',
    ),
    "order": (
        _harm_order,
        "table ip .*, chain prerouting: rules that .*, or in another order",
    ),
    "element": (_harm_element, "table ip6 cnv_masquerade: 17 . 53 is missing in set listed"),
    "record": (_harm_record, "the record of net1 has no settings for the guest"),
}


@pytest.mark.parametrize("what", HARM)
def test_check_finds_what_is_not_as_it_was(tmp_path: Path, what: str) -> None:
    world = World(tmp_path, **FULL)
    world.add()
    world.check()
    harm, message = HARM[what]
    with world.kernel.netns(POD) as netns, world.kernel.stack(netns) as stack:
        harm(stack, world)
    with pytest.raises(CNIError, match=f"^{message}") as caught:
        world.check()
    assert caught.value.code == 100


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"owner": 0}, "tap0 belongs to 107:107, not 0:107"),
        ({"queues": 1}, "tap0 was made for many queues"),
    ],
    ids=["owner", "queues"],
)
def test_check_goes_by_the_configuration(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    world = World(tmp_path, **FULL)
    world.add()
    world.keys |= keys
    with pytest.raises(CNIError, match=f"^{message}"):
        world.check()


# GC and STATUS


def test_gc_removes_what_is_not_valid_and_keeps_the_rest(tmp_path: Path) -> None:
    world = World(tmp_path)
    before = world.snapshot()
    world.add()
    world.gc(("cid-1", "net1"))
    assert len(world.records) == 1
    world.plugin.gc(world.request())  # nothing is known: nothing is collected
    assert len(world.records) == 1
    world.gc(("cid-1", "net2"))
    assert world.snapshot() == before


def test_status_is_code_50_where_no_record_can_be_written(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.plugin.status(world.request())
    file = tmp_path / "file"
    file.touch()
    plugin = load({"CNVNET_RUNDIR": str(file)}, world.kernel)
    with pytest.raises(CNIError, match="cannot be written") as caught:
        plugin.status(world.request())
    assert caught.value.code == 50


def test_status_says_that_there_can_be_no_tap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "_DEVICE", str(tmp_path / "none"))
    world = World(tmp_path)
    with pytest.raises(CNIError, match=r"none is missing .modprobe tun.") as caught:
        world.plugin.status(world.request())
    assert caught.value.code == 50


def test_status_says_that_selinux_does_not_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "_SELINUX", str(tmp_path / "none"))
    world = World(tmp_path, selinuxContext="system_u:system_r:container_t:s0")
    with pytest.raises(CNIError, match="SELinux does not run on this node"):
        world.plugin.status(world.request())
