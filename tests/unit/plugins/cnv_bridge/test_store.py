"""Where static-ip keeps an attachment's lease is in its record, and DEL, CHECK and GC go there."""

from __future__ import annotations

import json
from pathlib import Path

from cnvnet.attachment.record import ADDED, Key, Record
from cnvnet.cni.request import parse
from cnvnet.cni.result import Result
from cnvnet.ipam.store.ref import SQLITE, StoreRef
from cnvnet.plugins.cnv_bridge.ipam import plan_release
from cnvnet.plugins.cnv_bridge.state import PortState
from tests.unit.plugins.cnv_bridge.fake_node import World

IPAM = {"type": "static-ip", "subnet": "10.1.0.0/24"}
CONFIG = {"cniVersion": "1.1.0", "name": "blue", "type": "cnv-bridge", "ipam": IPAM}
ENV = {
    "CNI_COMMAND": "DEL",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nowhere",
    "CNVNET_STATEDIR": "/by/now",
}
STORE = StoreRef(SQLITE, "/when/added")


def recorded(**undo: object) -> PortState:
    written = json.loads(json.dumps(undo))
    return PortState.of(Record(Key("cnv-bridge", "blue", "c1", "eth0"), "", 1, "boot", ADDED, written))


def test_a_record_says_where_the_lease_is() -> None:
    left = PortState(ipam_type="static-ip", ipam=IPAM, store=STORE)
    assert recorded(**left.to_json()) == left
    planned = plan_release(parse(ENV, json.dumps(CONFIG).encode()), left)
    assert planned is not None
    assert planned.store == STORE


def test_a_record_of_an_older_version_leaves_it_to_the_configuration() -> None:
    left = recorded(ipam_type="static-ip", ipam=IPAM)
    assert left.store is None
    assert "store" not in left.to_json()
    planned = plan_release(parse(ENV, json.dumps(CONFIG).encode()), left)
    assert planned is not None
    assert (planned.store, planned.recorded) == (None, True)


def test_a_store_of_a_newer_version_is_not_taken_for_the_embedded_one() -> None:
    left = recorded(ipam_type="static-ip", store={"kind": "other", "location": "x"})
    assert left.store == StoreRef("other", "x")


def with_leases(folder: Path) -> tuple[World, Result]:
    """A node whose attachment `cid-1` has its lease in STORE; the configuration names another one by now."""
    world = World(folder, ipam={**IPAM, "dataDir": "/by/now"})
    world.ipam.store = STORE
    return world, world.add()


def test_a_check_looks_where_the_record_says(tmp_path: Path) -> None:
    world, result = with_leases(tmp_path)
    world.check(result)
    assert world.ipam.stores == [STORE]


def test_a_check_without_a_record_leaves_it_to_the_configuration(tmp_path: Path) -> None:
    world, result = with_leases(tmp_path)
    (path,) = (world.rundir / "attachments").iterdir()
    for content in (b"no record", None):
        path.unlink() if content is None else path.write_bytes(content)
        world.ipam.stores.clear()
        world.check(result)
        assert world.ipam.stores == [None]


def test_a_gc_collects_in_all_stores_that_records_or_the_configuration_name(tmp_path: Path) -> None:
    world, _ = with_leases(tmp_path)
    world.kernel.add_namespace("/run/netns/other")
    world.ipam.store = StoreRef("of-tomorrow", "there")
    world.add(container_id="cid-2", netns="/run/netns/other")
    world.gc()
    by_now = StoreRef(SQLITE, "/by/now")
    assert set(world.ipam.stores) == {by_now, STORE, StoreRef("of-tomorrow", "there")}
    assert world.ipam.calls[-3:] == ["GC"] * 3
    # Nothing is left that names another one.
    world.ipam.stores.clear()
    world.gc()
    assert world.ipam.stores == [by_now]


def test_a_gc_collects_the_leases_of_a_network_that_has_another_manager_by_now(tmp_path: Path) -> None:
    world, _ = with_leases(tmp_path)
    world.keys = {**world.keys, "ipam": {"type": "host-local"}}
    world.gc()
    assert (world.chosen[-2:], world.ipam.stores) == (["host-local", "static-ip"], [None, STORE])


def test_a_call_shares_the_folders_of_the_configuration_and_of_the_record(tmp_path: Path) -> None:
    world, _ = with_leases(tmp_path)
    assert world.plugin.shared_folders(world.request()) == ("/as/configured", "/when/added")
    assert world.plugin.shared_folders(world.request(container_id="cid-2")) == ("/as/configured",)
    bare = World(tmp_path / "bare")
    assert bare.plugin.shared_folders(bare.request()) == ()
