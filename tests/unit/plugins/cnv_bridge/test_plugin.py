"""The commands on a kernel in memory: what they do and undo, and what a killed one leaves to the next."""

from __future__ import annotations

import errno
import json
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.result import IP, Result
from cnvnet.kernel.links import ChangeLink
from cnvnet.kernel.netns import LostNamespace
from cnvnet.kernel.vlans import VlanRange
from tests.fakes.kernel import FakeKernel
from tests.unit.plugins.cnv_bridge.fake_node import FULL, POD, World, killed_add, links_of, outer, set_up
from tests.unit.plugins.killing_kernel import KillingKernel


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

    def test_an_address_managers_absence_is_reported_before_anything_is_done(self, full: World) -> None:
        full.ipam.missing = 'failed to find plugin "fake"'
        with pytest.raises(InvalidConfig, match=r'^failed to find plugin "fake"$'):
            full.add()
        assert (full.kernel.steps, full.records, full.ipam.calls) == (0, [], [])

    @pytest.mark.parametrize(("ipam_type", "finds_it"), [("fake", True), ("static-ip", False)])
    def test_a_foreign_address_manager_finds_the_port(
        self, tmp_path: Path, ipam_type: str, *, finds_it: bool
    ) -> None:
        world = World(tmp_path, **FULL)
        world.keys["ipam"] = {"type": ipam_type}
        world.ipam.found = lambda: (world.ports != [], world.pod_links, len(world.elements) > 0)
        world.add()
        assert world.ipam.seen == [(True, ["lo", "eth0"], True) if finds_it else (False, ["lo"], False)]

    def test_a_link_that_the_address_manager_set_up_announces_its_addresses(self, tmp_path: Path) -> None:
        for raises in (True, False):
            world = World(tmp_path / str(raises), ipam={"type": "fake"})
            world.ipam.found = partial(set_up, world) if raises else None
            mac = world.add().interfaces[2].mac
            changes = [each for each in world.kernel.done if isinstance(each, ChangeLink) and each.up]
            assert changes[-1].mac == (mac if raises else None)

    def test_the_record_names_the_port_before_there_is_one(self, tmp_path: Path) -> None:
        kernel = KillingKernel()
        world = World(tmp_path, kernel)
        kernel.kill_at = 1
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
        world = World(tmp_path, ipam={"type": "static-ip"})
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

    def test_with_the_containers_end_left_down_add_does_not_wait(self, world: World) -> None:
        world.add(config={"disableContainerInterface": True})
        inside = world.pod.by_name("eth0")
        assert inside is not None
        assert inside.up is False

    @pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
    def test_a_result_that_cannot_be_written_is_refused_before_anything_is_done(
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
        monkeypatch.setattr("tests.fakes.namespace.FakeLink.operstate", "LOWERLAYERDOWN")
        with pytest.raises(CNIError, match=r"^bridge port in error state: lower-layer-down$"):
            world.add()
        world.assert_nothing_of_an_attachment()

    def test_two_addresses_on_one_gateway_are_refused_and_leave_nothing(self, full: World) -> None:
        full.ipam.result = Result(ips=(IP(ip_interface("10.0.0.2/24")), IP(ip_interface("10.1.0.2/24"))))
        with pytest.raises(InvalidConfig, match=r"different from 10\.1\.0\.1/24"):
            full.add()
        full.assert_nothing_of_an_attachment()


class TestRepair:
    def test_a_port_that_was_deleted_is_made_anew(self, full: World) -> None:
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
    none: list[dict[str, int]] = []
    keys = {"vlan 100": FULL, "vlanTrunk": {"vlanTrunk": none}, "vlanTrunk 7": {"vlanTrunk": [{"id": 7}]}}
    world = World(tmp_path, FakeKernel(vlans=False), **keys[asked])
    with pytest.raises(InvalidConfig, match=f"^{asked}: .*CONFIG_BRIDGE_VLAN_FILTERING"):
        world.add()
    world.assert_nothing_of_an_attachment()
