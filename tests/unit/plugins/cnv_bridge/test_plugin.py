"""The commands on a kernel in memory: what they do and undo, and what a killed one leaves to the next."""

from __future__ import annotations

import errno
import json
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.result import IP, Result, render
from cnvnet.kernel.fake import FakeKernel
from cnvnet.kernel.netns import LostNamespace
from cnvnet.kernel.vlans import VlanRange
from tests.unit.plugins.cnv_bridge.world import FULL, POD, World, links_of, outer
from tests.unit.plugins.mortal import MortalKernel


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def full(tmp_path: Path) -> World:
    return World(tmp_path, **FULL)


class TestAdd:
    def test_a_port_without_addresses_joins_both_sides(self, world: World) -> None:
        result = world.add()
        bridge, host, container = result.interfaces
        assert (bridge.name, container.name, container.sandbox) == ("br0", "eth0", POD)
        port, inside = world.host.by_name(host.name), world.pod.by_name("eth0")
        assert port is not None
        assert inside is not None
        assert (port.peer, port.master) == (inside, world.host.by_name("br0"))
        assert (port.operstate, inside.operstate) == ("UP", "UP")
        assert (host.mac, container.mac) == (port.mac, inside.mac)
        assert (result.ips, result.routes) == ((), ())
        assert world.ipam.calls == []

    def test_the_bridge_keeps_its_mac_whatever_ports_come(self, world: World) -> None:
        first = world.add()
        world.kernel.add_namespace("/run/netns/other")
        second = world.add(container_id="cid-2", netns="/run/netns/other")
        assert first.interfaces[0].mac == second.interfaces[0].mac

    def test_everything_the_keys_ask_for_is_done(self, full: World) -> None:
        result = full.add()
        port, inside = full.host.by_name(outer(result).name), full.pod.by_name("eth0")
        assert port is not None
        assert inside is not None
        assert port.port is not None
        assert (port.port.hairpin, port.port.isolated, port.mtu, inside.mtu) == (True, True, 1400, 1400)
        with full.kernel.stack() as host:
            assert host.vlans(port.ifindex) == [
                VlanRange(100, 100, pvid=True, untagged=True),
                VlanRange(200, 210),
            ]
        assert [i.name for i in result.interfaces] == ["br0", port.name, "eth0", "br0.100"]
        gateway = full.host.by_name("br0.100")
        assert gateway is not None
        own = {str(a.address) for a in full.host.addresses if a.ifindex == gateway.ifindex}
        assert {"10.0.0.1/24", "fd00::1/64"} <= own
        inner = {str(a.address) for a in full.pod.addresses if a.ifindex == inside.ifindex}
        assert {"10.0.0.2/24", "fd00::2/64"} <= inner
        routes = {(str(r.dst), str(r.gw)) for r in full.pod.routes if r.gw}
        assert routes == {("198.51.100.0/24", "10.0.0.1"), ("0.0.0.0/0", "10.0.0.1"), ("::/0", "fd00::1")}
        assert f"cnv_bridge macs {port.name} . {inside.mac}" in full.elements
        assert f"cnv_bridge ipv4 {port.name} . 10.0.0.2" in full.elements
        assert "cnv_masquerade pods4 10.0.0.2" in full.elements
        assert full.host.sysctls["net/ipv4/ip_forward"] == "1"

    def test_guards_are_there_before_the_port(self, tmp_path: Path) -> None:
        deaths = (killed_add(tmp_path / str(step), step) for step in range(1, 100))
        world = next(world for world in deaths if world.pod_links != ["lo"])
        (port,) = {element.split()[2] for element in world.elements if " macs " in element}
        assert port in world.ports

    def test_the_record_names_the_port_before_there_is_one(self, tmp_path: Path) -> None:
        kernel = MortalKernel()
        world = World(tmp_path, kernel)
        kernel.deadly = 1
        with pytest.raises(LostNamespace):
            world.add()
        (record,) = world.records
        assert record["state"] == "adding"
        assert record["undo"]["host"].startswith("veth")
        assert record["netns"] == {"path": POD, "inode": world.pod.inode}

    def test_the_record_says_what_was_made(self, full: World) -> None:
        result = full.add()
        (record,) = full.records
        port = full.host.by_name(outer(result).name)
        assert port is not None
        assert record["state"] == "added"
        assert record["undo"] | {"elements": ()} == {
            "host": port.name,
            "host_mac": port.mac,
            "host_ifindex": port.ifindex,
            "container_mac": result.interfaces[2].mac,
            "ipam_type": "fake",
            "ipam": {"type": "fake"},
            "elements": (),
            "masqueraded": ["10.0.0.2/24", "fd00::2/64"],
        }

    def test_the_mac_asked_for_beats_that_of_the_lease(self, tmp_path: Path) -> None:
        world = World(tmp_path, ipam={"type": "fake"})
        world.ipam.mac = "02:00:00:00:00:02"
        assert world.add().interfaces[2].mac == "02:00:00:00:00:02"
        world.delete()
        result = world.add(config={"runtimeConfig": {"mac": "02:00:00:00:00:03"}})
        assert result.interfaces[2].mac == "02:00:00:00:00:03"

    def test_a_larger_mtu_than_the_bridges_is_reported(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.host.add_bridge("br0", mac="", mtu=1500, vlan_filtering=False).mtu_is_pinned = True
        result = world.add(config={"mtu": 9000})
        assert [i.mtu for i in result.interfaces] == [1500, 9000, 9000]
        assert "mtu 9000: bridge br0 keeps 1500" in capsys.readouterr().err

    def test_a_bridge_that_follows_its_smallest_port_is_reported(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.add()
        assert capsys.readouterr().err == ""
        world.host.add_bridge("br1", mac="", mtu=9000, vlan_filtering=False)
        world.kernel.add_namespace("/run/netns/other")
        world.add(container_id="cid-2", netns="/run/netns/other", config={"bridge": "br1"})
        remedy = '"mtu": 9000, or ip link set br1 mtu 9000'
        assert f"bridge br1 has come down from mtu 9000 to 1500 ({remedy})" in capsys.readouterr().err

    def test_a_bridge_that_comes_down_to_the_mtu_asked_for_is_no_news(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.host.add_bridge("br0", mac="", mtu=1500, vlan_filtering=False)
        world.add(config={"mtu": 1400})
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("ifname", ["all", "default", "eth%d", "%"])
    def test_a_name_no_interface_can_have_is_refused_before_anything_is_done(
        self, world: World, ifname: str
    ) -> None:
        with pytest.raises(CNIError, match=f'^CNI_IFNAME: "{ifname}"') as caught:
            world.add(ifname=ifname)
        assert caught.value.code == 4
        assert world.kernel.steps == 0
        assert not world.rundir.exists()
        world.delete(ifname=ifname)

    def test_with_the_containers_end_left_down_nobody_waits(self, world: World) -> None:
        world.add(config={"disableContainerInterface": True})
        inside = world.pod.by_name("eth0")
        assert inside is not None
        assert inside.up is False

    @pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
    def test_a_result_that_cannot_be_told_is_refused_before_anything_is_done(
        self, world: World, version: str
    ) -> None:
        with pytest.raises(InvalidConfig, match="cannot convert: no valid IP addresses"):
            world.add(cni_version=version)
        assert world.kernel.steps == 0
        assert not world.rundir.exists()

    def test_a_name_the_container_has_is_refused_before_anything_is_done(self, full: World) -> None:
        full.pod.add_link("eth0", "dummy")
        with pytest.raises(CNIError, match=r'^container veth name \("eth0"\) peer provided \("veth'):
            full.add()
        assert (full.kernel.steps, full.records, full.ipam.calls) == (0, [], [])

    def test_a_second_add_does_not_harm_the_first(self, full: World) -> None:
        full.add()
        before = (full.ports, full.elements, full.records, set(full.ipam.holders))
        with pytest.raises(CNIError, match="already exists"):
            full.add()
        assert (full.ports, full.elements, full.records, set(full.ipam.holders)) == before

    def test_no_namespace_is_an_error_before_anything_is_done(self, world: World) -> None:
        world.kernel.add_file("/etc/passwd")
        for path in ("/none", "/etc/passwd"):
            with pytest.raises(CNIError, match=f'^failed to open netns "{path}": ') as caught:
                world.add(netns=path)
            assert caught.value.code == 8
        assert world.kernel.steps == 0
        assert world.records == []

    def test_without_a_place_for_records_nothing_is_done(self, world: World) -> None:
        world.rundir.write_text("")
        with pytest.raises(CNIError, match=str(world.rundir)) as caught:
            world.add()
        assert caught.value.code == 5
        assert world.kernel.steps == 0

    def test_a_refusal_of_ipam_is_passed_on_and_leaves_nothing(self, full: World) -> None:
        full.ipam.refuses["ADD"] = CNIError(123, "the pool is closed", "come back on Monday")
        with pytest.raises(CNIError, match="the pool is closed") as caught:
            full.add()
        assert (caught.value.code, caught.value.details) == (123, "come back on Monday")
        full.assert_nothing_of_an_attachment()

    def test_a_port_that_does_not_come_up_is_an_error(self, world: World, monkeypatch: Any) -> None:
        monkeypatch.setattr("cnvnet.plugins.cnv_bridge.port._PORT_SECONDS", 0)
        monkeypatch.setattr("cnvnet.kernel.fake_namespace.FakeLink.operstate", "LOWERLAYERDOWN")
        with pytest.raises(CNIError, match=r"^bridge port in error state: lower-layer-down$"):
            world.add()
        world.assert_nothing_of_an_attachment()

    def test_two_addresses_on_one_gateway_are_refused_and_leave_nothing(self, full: World) -> None:
        full.ipam.result = Result(ips=(IP(ip_interface("10.0.0.2/24")), IP(ip_interface("10.1.0.2/24"))))
        with pytest.raises(InvalidConfig, match=r"different from 10\.1\.0\.1/24"):
            full.add()
        full.assert_nothing_of_an_attachment()


def killed_add(folder: Path, step: int) -> World:
    """The world after an ADD that was killed at this step."""
    kernel = MortalKernel()
    world = World(folder, kernel, **FULL)
    kernel.deadly = step
    with pytest.raises(LostNamespace):
        world.add()
    return world


def steps_of_add(folder: Path) -> int:
    world = World(folder, **FULL)
    world.add()
    return world.kernel.steps


def refusal(world: World) -> str:
    """What an ADD says that fails, "" for one that does not."""
    try:
        world.add()
    except (CNIError, OSError) as e:
        return str(e)
    return ""


def test_whichever_step_fails_nothing_of_the_attachment_stays(tmp_path: Path) -> None:
    total = steps_of_add(tmp_path / "count")
    failed = 0
    for step in range(1, total + 1):
        world = World(tmp_path / str(step), **FULL)
        world.kernel.fail_at(step, errno.ENOMEM)
        problem = refusal(world)
        if problem:
            failed += 1
            assert "cannot allocate memory" in problem
            world.assert_nothing_of_an_attachment()
            world.add()
        # A sysctl that may be missing may fail as well.
        assert world.pod_links == ["lo", "eth0"]
        assert [record["state"] for record in world.records] == ["added"]
    assert failed > total / 2


@pytest.mark.parametrize("nth", [1, 2, 3], ids=["before-all", "before-guards", "after-all"])
def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: Any, nth: int) -> None:
    world = World(tmp_path, **FULL)
    calls: list[object] = []

    def full_disk(_fd: int) -> None:
        calls.append(_fd)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    # One record is fsync of the file and of the folder.
    nth = 2 * nth - 1
    with pytest.raises(CNIError, match="no space left on device") as caught:
        world.add()
    assert caught.value.code == 5
    world.assert_nothing_of_an_attachment()
    assert len(calls) == nth


def test_whichever_step_is_the_last_of_a_killed_add_the_next_one_repairs(tmp_path: Path) -> None:
    total = steps_of_add(tmp_path / "count")
    for step in range(1, total + 1):
        world = killed_add(tmp_path / str(step), step)
        result = world.add()
        world.check(result)
        assert world.ports.count(outer(result).name) == 1
        assert len(world.ports) == 2  # ours and that of the VLAN's gateway
        assert len(world.records) == 1
        world.delete()
        world.assert_nothing_of_an_attachment()


def test_whichever_step_is_the_last_of_a_killed_add_del_cleans_up(tmp_path: Path) -> None:
    total = steps_of_add(tmp_path / "count")
    for step in range(1, total + 1):
        world = killed_add(tmp_path / str(step), step)
        # The runtime may have removed the sandbox first.
        world.delete(netns="" if step % 2 else POD)
        world.assert_nothing_of_an_attachment()


def test_whichever_step_is_the_last_of_a_killed_del_the_next_one_finishes(tmp_path: Path) -> None:
    counted = World(tmp_path / "count", **FULL)
    counted.add()
    before = counted.kernel.steps
    counted.delete()
    for step in range(1, counted.kernel.steps - before + 1):
        kernel = MortalKernel()
        world = World(tmp_path / str(step), kernel, **FULL)
        world.add()
        kernel.deadly = kernel.steps + step
        with pytest.raises(LostNamespace):
            world.delete()
        assert [record["state"] for record in world.records] == ["deleting"]
        if step % 2:
            world.delete()
            world.assert_nothing_of_an_attachment()
        else:
            world.add()
            assert world.pod_links == ["lo", "eth0"]


def test_a_failed_undo_is_reported_and_keeps_the_record(
    full: World, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def refuse(_stack: object, _ifindex: int) -> None:
        raise CNIError(999, "no deleting today")

    with monkeypatch.context() as patched:
        patched.setattr("cnvnet.plugins.cnv_bridge.port.delete", refuse)
        patched.setattr("cnvnet.plugins.cnv_bridge.port._PORT_SECONDS", 0)
        patched.setattr("cnvnet.kernel.fake_namespace.FakeLink.operstate", "DOWN")
        with pytest.raises(CNIError, match="bridge port in error state: down"):
            full.add()
    assert "no deleting today" in capsys.readouterr().err
    assert [record["state"] for record in full.records] == ["adding"]
    assert full.ipam.holders == set()
    full.delete()
    full.assert_nothing_of_an_attachment()


class TestDelete:
    def test_it_takes_everything_of_the_attachment_and_nothing_shared(self, full: World) -> None:
        full.add()
        full.delete()
        full.assert_nothing_of_an_attachment()
        assert {"br0", "br0.100"} <= set(links_of(full.host))

    def test_it_may_be_repeated_and_needs_no_add(self, full: World) -> None:
        full.delete()
        full.add()
        full.delete()
        full.delete()
        full.assert_nothing_of_an_attachment()

    @pytest.mark.parametrize("gone", ["none", "missing", "file", "another"])
    def test_without_its_namespace_everything_else_is_cleaned(self, full: World, gone: str) -> None:
        full.add()
        if gone == "none":
            full.delete(netns="")
        elif gone == "missing":
            full.kernel.remove_namespace(POD)
            full.pod = full.kernel.add_namespace("/elsewhere")
            full.delete()
        elif gone == "file":
            full.kernel.remove_namespace(POD)
            full.pod = full.kernel.add_namespace("/elsewhere")
            full.kernel.add_file(POD)
            full.delete()
        else:
            other = full.kernel.add_namespace("/run/netns/other")
            other.add_link("eth1", "dummy")
            full.delete(netns="/run/netns/other")
            assert links_of(other) == ["lo", "eth1"]
        full.assert_nothing_of_an_attachment()

    def test_a_link_of_the_name_in_another_namespace_is_not_ours(self, world: World) -> None:
        world.add()
        other = world.kernel.add_namespace("/run/netns/other")
        world.add(container_id="cid-2", netns="/run/netns/other")
        world.delete(netns="/run/netns/other")
        assert links_of(other) == ["lo", "eth0"]
        assert world.pod_links == ["lo"]

    def test_a_link_that_took_the_ports_name_is_not_ours(self, world: World) -> None:
        name = outer(world.add()).name
        world.kernel.remove_namespace(POD)
        world.pod = world.kernel.add_namespace(POD)
        world.host.add_link(name, "veth")
        world.delete()
        assert name in links_of(world.host)
        assert world.records == []

    def test_without_a_record_the_containers_veth_goes(self, full: World) -> None:
        result = full.add()
        for path in (full.rundir / "attachments").iterdir():
            path.unlink()
        full.delete(config={"prevResult": render(result, "1.1.0")})
        assert full.pod_links == ["lo"]
        assert full.ipam.holders == set()

    def test_without_a_record_something_else_of_the_name_stays(self, world: World) -> None:
        world.pod.add_link("eth0", "dummy")
        world.delete()
        assert world.pod_links == ["lo", "eth0"]

    @pytest.mark.parametrize("bridge", ["br1", "br0"], ids=["another-bridge", "the-same-bridge"])
    def test_the_clean_up_of_a_refused_add_leaves_whose_name_it_was(self, full: World, bridge: str) -> None:
        result = full.add()
        before = (full.ports, full.elements, full.records, set(full.ipam.holders))
        rival = {"container_id": "cid-2", "name": "net2"}
        with pytest.raises(CNIError, match="already exists"):
            full.add(**rival, config={"bridge": bridge})
        full.delete(**rival, config={"bridge": bridge})
        assert (full.ports, full.elements, full.records, set(full.ipam.holders)) == before
        full.delete(**rival, config={"prevResult": render(result, "1.1.0")})
        assert (full.ports, full.elements, full.records, set(full.ipam.holders)) == before
        full.check(result)

    @pytest.mark.parametrize("told", ["mac", "name", "bridge"])
    def test_without_a_record_a_veth_that_prev_result_does_not_tell_of_stays(
        self, world: World, told: str
    ) -> None:
        bridge, host, container = world.add().interfaces
        for path in (world.rundir / "attachments").iterdir():
            path.unlink()
        other = {
            "mac": (bridge, host._replace(mac=""), container._replace(mac="02:00:00:00:00:99")),
            "name": (bridge, host._replace(name="vethother"), container),
            "bridge": (bridge._replace(name="br1"), host, container),
        }[told]
        world.delete(config={"prevResult": render(Result(interfaces=other), "1.1.0")})
        assert world.pod_links == ["lo", "eth0"]

    def test_without_a_record_a_veth_that_is_no_port_of_the_bridge_stays(self, world: World) -> None:
        world.pod.add_link("eth0", "veth")
        world.delete()
        assert world.pod_links == ["lo", "eth0"]

    def test_without_record_and_namespace_prev_result_tells_of_the_port(self, world: World) -> None:
        result = world.add()
        for path in (world.rundir / "attachments").iterdir():
            path.unlink()
        world.delete(netns="", config={"prevResult": render(result, "1.1.0")})
        assert world.ports == []

    def test_a_prev_result_that_is_none_does_not_matter(self, full: World) -> None:
        full.add()
        full.delete(config={"prevResult": {"ips": "x"}})
        full.assert_nothing_of_an_attachment()

    def test_a_key_that_add_refuses_does_not_matter(self, full: World) -> None:
        full.add()
        full.delete(config={"vlan": 9999, "mtu": "x", "bridge": 7}, args="FOO")
        full.assert_nothing_of_an_attachment()

    def test_when_ipam_refuses_the_rest_is_cleaned_and_del_can_be_repeated(self, full: World) -> None:
        full.add()
        full.ipam.refuses["DEL"] = CNIError(11, "the store is busy")
        with pytest.raises(CNIError, match="the store is busy") as caught:
            full.delete()
        assert caught.value.code == 11
        assert (full.pod_links, full.elements, full.markers) == (["lo"], [], [])
        assert len(full.records) == 1
        full.ipam.refuses.clear()
        full.delete()
        full.assert_nothing_of_an_attachment()

    @pytest.mark.parametrize(
        "ipam",
        [None, "x", {}, {"type": 7}, {"type": "another"}, {"type": "fake", "dataDir": "/elsewhere"}],
        ids=["none", "text", "empty", "bad-type", "another", "another-folder"],
    )
    def test_addresses_go_back_where_the_record_says_that_they_are_from(
        self, tmp_path: Path, ipam: Any
    ) -> None:
        written = {"type": "fake", "dataDir": "/leases", "subnet": "10.0.0.0/24"}
        world = World(tmp_path, ipam=written)
        world.add()
        world.chosen.clear()
        world.delete(config={"ipam": ipam})
        assert (world.chosen, world.ipam.releases) == (["fake"], [written])
        world.assert_nothing_of_an_attachment()

    def test_an_ipam_object_that_changed_otherwise_is_used_as_it_is_now(self, tmp_path: Path) -> None:
        world = World(tmp_path, ipam={"type": "fake", "token": "old"})
        world.add()
        world.delete(config={"ipam": {"type": "fake", "token": "new"}})
        assert world.ipam.releases == [{"type": "fake", "token": "new"}]

    def test_an_ipam_that_came_with_a_later_configuration_is_not_asked(self, world: World) -> None:
        world.add()
        world.delete(config={"ipam": {"type": "fake"}})
        assert world.ipam.calls == []
        world.assert_nothing_of_an_attachment()

    def test_an_ipam_that_is_not_there_has_nothing_to_give_back(
        self, full: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        full.ipam.missing = "failed to find plugin"
        full.delete()
        assert full.ipam.calls == []
        assert capsys.readouterr().err.count("\n") == 1

    def test_an_ipam_that_is_not_there_any_more_is_an_error(self, full: World) -> None:
        full.add()
        full.ipam.missing = "failed to find plugin"
        full.ipam.refuses["DEL"] = InvalidConfig("failed to find plugin")
        with pytest.raises(CNIError, match="failed to find plugin"):
            full.delete()
        assert (full.pod_links, full.elements, len(full.records)) == (["lo"], [], 1)

    def test_a_record_of_a_newer_program_is_left_and_the_rest_goes(
        self, full: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        full.add()
        (path,) = (full.rundir / "attachments").iterdir()
        newer = json.dumps(json.loads(path.read_text()) | {"v": 2})
        path.write_text(newer)
        full.delete()
        assert path.read_text() == newer
        assert "is newer than 1" in capsys.readouterr().err
        assert (full.pod_links, full.ipam.holders) == (["lo"], set())
        with pytest.raises(CNIError, match="is newer than 1"):
            full.add()

    @pytest.mark.parametrize("content", ["{", '{"v": 1, "plugin": 3}', "\0" * 4096])
    def test_a_damaged_record_goes_with_its_attachment(self, full: World, content: str) -> None:
        full.add()
        (path,) = (full.rundir / "attachments").iterdir()
        path.write_text(content)
        with pytest.raises(CNIError, match="a DEL of the attachment removes it") as caught:
            full.add()
        assert caught.value.code == 5
        full.delete()
        full.assert_nothing_of_an_attachment()

    def test_a_damaged_record_is_kept_while_anything_cannot_be_deleted(self, full: World) -> None:
        full.add()
        (path,) = (full.rundir / "attachments").iterdir()
        path.write_text("{")
        full.ipam.refuses["DEL"] = CNIError(11, "the store is busy")
        with pytest.raises(CNIError, match="the store is busy"):
            full.delete()
        assert path.read_text() == "{"

    def test_it_works_where_no_records_can_be_written(self, full: World) -> None:
        full.rundir.write_text("")
        full.delete()
        assert full.ipam.calls == ["DEL"]


class TestRepair:
    def test_a_port_that_somebody_deleted_is_made_anew(self, full: World) -> None:
        first = full.add()
        inside = full.pod.by_name("eth0")
        assert inside is not None
        full.pod.delete(inside.ifindex)
        second = full.add()
        assert outer(first).name != outer(second).name
        assert not any(outer(first).name in element for element in full.elements)
        full.check(second)

    def test_a_record_of_another_boot_is_a_leftover(self, full: World) -> None:
        full.add()
        (path,) = (full.rundir / "attachments").iterdir()
        path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "another"}))
        full.kernel.remove_namespace(POD)
        full.pod = full.kernel.add_namespace(POD)
        result = full.add()
        full.check(result)
        assert len(full.records) == 1


class TestGc:
    def test_attachments_that_are_not_listed_go(self, full: World) -> None:
        full.add()
        other = full.kernel.add_namespace("/run/netns/other")
        full.ipam.result = full.ipam.result._replace(ips=(IP(ip_interface("10.0.0.3/24")),))
        kept = full.add(container_id="cid-2", netns="/run/netns/other")
        full.gc(("cid-2", "eth0"))
        assert full.pod_links == ["lo"]
        assert links_of(other) == ["lo", "eth0"]
        assert full.ipam.holders == {("cid-2", "eth0")}
        assert [record["containerid"] for record in full.records] == ["cid-2"]
        assert not any("10.0.0.2" in element.split() for element in full.elements)
        assert any(outer(kept).name in element for element in full.elements)
        assert full.ipam.calls[-1] == "GC"

    def test_an_empty_list_means_that_none_is_left(self, full: World) -> None:
        full.add()
        full.gc()
        full.assert_nothing_of_an_attachment()

    def test_no_list_means_that_nothing_is_known(self, full: World) -> None:
        full.add()
        full.plugin.gc(full.request())
        assert full.pod_links == ["lo", "eth0"]
        assert full.ipam.calls == ["ADD"]

    def test_another_networks_attachments_are_not_touched(self, full: World) -> None:
        full.add(name="net2")
        full.gc()
        assert full.pod_links == ["lo", "eth0"]

    def test_one_that_cannot_be_removed_does_not_keep_the_others(self, full: World) -> None:
        full.add()
        full.ipam.refuses["DEL"] = CNIError(11, "the store is busy")
        with pytest.raises(CNIError, match="the store is busy"):
            full.gc()
        assert full.ipam.calls[-1] == "GC"


class TestStatus:
    def test_it_asks_ipam_when_there_is_one(self, full: World, world: World) -> None:
        world.plugin.status(world.request())
        assert world.ipam.calls == []
        full.plugin.status(full.request())
        assert full.ipam.calls == ["STATUS"]

    def test_a_place_for_records_is_needed(self, world: World) -> None:
        world.rundir.write_text("")
        with pytest.raises(CNIError, match=str(world.rundir)) as caught:
            world.plugin.status(world.request())
        assert caught.value.code == 50

    def test_guards_need_nftables(self, full: World) -> None:
        full.kernel.fail_at(1, errno.EOPNOTSUPP)
        with pytest.raises(CNIError) as caught:
            full.plugin.status(full.request())
        assert caught.value.code == 50


@pytest.mark.parametrize("asked", ["vlan 100", "vlanTrunk", "vlanTrunk 7"])
def test_the_kernel_without_vlans_says_so_and_nothing_stays(tmp_path: Path, asked: str) -> None:
    empty: dict[str, int] = {}
    keys = {"vlan 100": FULL, "vlanTrunk": {"vlanTrunk": [empty]}, "vlanTrunk 7": {"vlanTrunk": [{"id": 7}]}}
    world = World(tmp_path, FakeKernel(vlans=False), **keys[asked])
    with pytest.raises(InvalidConfig, match=f"^{asked}: .*CONFIG_BRIDGE_VLAN_FILTERING"):
        world.add()
    world.assert_nothing_of_an_attachment()
