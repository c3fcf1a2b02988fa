"""DEL of cnv-bridge on a kernel in memory: whatever is left of an attachment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.result import Result, render
from cnvnet.kernel.nft.tables import Element
from tests.fakes.nft import FakeNft
from tests.unit.plugins.cnv_bridge.fake_node import FULL, POD, World, links_of, outer


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

    @pytest.mark.parametrize("field", ["mac", "name", "bridge"])
    def test_without_a_record_a_veth_that_prev_result_does_not_tell_of_stays(
        self, world: World, field: str
    ) -> None:
        bridge, host, container = world.add().interfaces
        for path in (world.rundir / "attachments").iterdir():
            path.unlink()
        other = {
            "mac": (bridge, host._replace(mac=""), container._replace(mac="02:00:00:00:00:99")),
            "name": (bridge, host._replace(name="vethother"), container),
            "bridge": (bridge._replace(name="br1"), host, container),
        }[field]
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

    @pytest.mark.parametrize(("ipam_type", "finds_it"), [("fake", True), ("static-ip", False)])
    def test_a_foreign_address_manager_finds_the_port_without_its_addresses(
        self, tmp_path: Path, ipam_type: str, *, finds_it: bool
    ) -> None:
        world = World(tmp_path, **FULL)
        world.keys["ipam"] = {"type": ipam_type}
        result = world.add()
        world.ipam.found = lambda: (
            world.pod_links,
            [str(each.address) for each in world.pod.addresses if each.address.version == 4],
            f"cnv_bridge mac_ports {outer(result).name}" in world.elements,
            any("10.0.0.2" in element for element in world.elements),
        )
        world.delete()
        links = ["lo", "eth0"] if finds_it else ["lo"]
        assert world.ipam.seen == [(links, [], finds_it, False)]
        world.assert_nothing_of_an_attachment()

    def test_no_element_is_deleted_twice(self, full: World, monkeypatch: pytest.MonkeyPatch) -> None:
        deleted: list[Element] = []
        change = FakeNft.change

        def recorded(nft: FakeNft, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None:
            deleted.extend(delete)
            change(nft, add=add, delete=delete)

        full.add()
        monkeypatch.setattr(FakeNft, "change", recorded)
        full.delete()
        assert deleted
        assert len(deleted) == len(set(deleted))

    def test_when_its_addresses_cannot_be_taken_off_the_port_goes_first(self, full: World) -> None:
        full.add()
        full.ipam.found = lambda: full.pod_links
        full.kernel.fail_at(1)
        full.delete()
        assert full.ipam.seen == [["lo"]]
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
