"""What a scrape reads of the node: from sources that may fail, and from records that come and go."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cnvnet.agent.guests.packet_loop_process import Totals
from cnvnet.agent.metrics import OTHER, Networks
from cnvnet.agent.node_metrics import Attached, NodeMetrics, Sources
from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, DELETING, Key, Record
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store.protocol import Usage
from cnvnet.kernel.boot import boot_id
from cnvnet.plugins.cnv_bridge import guards, observation
from cnvnet.resident import log
from tests.fakes.kernel import FakeKernel


class Doubles:
    """A store that answers as the test says."""

    restarts = 0

    def totals(self) -> Totals:
        return Totals({("dhcp4", "ack"): 3}, 0, 0)

    def counts(self) -> Counter[tuple[str, str]]:
        return Counter({("served", "vms"): 2, ("waiting", "vms"): 1})

    def running(self) -> int:
        return 1

    def waiting(self) -> int:
        return 4


def usage() -> Iterable[Usage]:
    yield Usage("vms", 4, "10.0.0.0/29", active=2, stopped=1, cooling=0, free=2)
    yield Usage("vms", 6, "", active=1, stopped=0, cooling=0, free=None)


def broken() -> Iterable[Usage]:
    raise CNIError(5, "leases.db: damaged")


def sources(**changed: object) -> Sources:
    doubles = Doubles()
    attached = Counter({("cnv-bridge", "vms"): 3, ("cnv-bridge", "other"): 1})
    disputes = Counter({("fenced", "vms"): 1})
    made = Sources(
        doubles, doubles, doubles, lambda: attached, usage, lambda: {"spoofed_mac": 7}, lambda: disputes
    )
    return made._replace(**changed)  # type: ignore[arg-type]  # whatever a test is about


def lines(of: Sources, networks: Networks | None = None) -> list[str]:
    registry = CollectorRegistry()
    registry.register(NodeMetrics(of, networks or Networks()))
    return generate_latest(registry).decode().splitlines()


def test_all_of_it() -> None:
    shown = lines(sources())
    for line in (
        'cnvnet_guest_events_total{event="ack",service="dhcp4"} 3.0',
        'cnvnet_guests{network="vms",state="served"} 2.0',
        'cnvnet_guests{network="vms",state="waiting"} 1.0',
        "cnvnet_calls_running 1.0",
        "cnvnet_calls_waiting 4.0",
        'cnvnet_attachments{network="vms",plugin="cnv-bridge"} 3.0',
        'cnvnet_ipam_addresses{network="vms",state="active"} 3.0',
        'cnvnet_disputed_interfaces{network="vms",state="fenced"} 1.0',
        'cnvnet_ipam_addresses{network="vms",state="free"} 2.0',
        'cnvnet_guard_drops_total{reason="spoofed_mac"} 7.0',
    ):
        assert line in shown


def test_networks_are_bounded() -> None:
    shown = lines(sources(), Networks(most=1))
    assert f'cnvnet_attachments{{network="{OTHER}",plugin="cnv-bridge"}} 1.0' in shown


def test_what_cannot_be_read_is_left_out_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    registry = CollectorRegistry()
    registry.register(NodeMetrics(sources(usage=broken), Networks()))
    for _ in range(3):
        shown = generate_latest(registry).decode()
        assert "cnvnet_ipam_addresses" not in shown
        assert 'cnvnet_guard_drops_total{reason="spoofed_mac"}' in shown
    (event,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (event["metric"], event["reason"]) == ("addresses", "leases.db: damaged")


def test_attachments_come_and_go(tmp_path: Path) -> None:
    attached = Attached(str(tmp_path))
    assert attached.count() == Counter()
    files = AttachmentFiles(str(tmp_path))
    record = Record(Key("cnv-bridge", "vms", "c1", "eth0"), "/x", 1, boot_id(), ADDED, {})
    other = record._replace(key=record.key._replace(container_id="c2"))
    before = record._replace(key=record.key._replace(container_id="c3"), boot_id="before")
    for each in (record, other, before):
        with files.locked(each.key) as slot:
            slot.write(each)
    assert attached.count() == Counter({("cnv-bridge", "vms"): 2})
    with files.locked(other.key) as slot:
        slot.write(other._replace(state=DELETING))
    (tmp_path / "attachments" / "odd.json").write_text("{")
    assert attached.count() == Counter({("cnv-bridge", "vms"): 1})
    with files.locked(record.key) as slot:
        slot.remove()
    assert attached.count() == Counter()


def test_drops_are_the_counters_of_the_guards() -> None:
    kernel = FakeKernel()
    assert observation.drops(kernel) == {}
    with kernel.nft() as nft:
        nft.ensure(guards.FAMILY, guards.TABLE, guards.VERSION, guards.TEXT)
    drops = observation.drops(kernel)
    assert {"spoofed_mac", "dhcp_server", "router"} <= drops.keys()
    assert "passed_other" not in drops


def test_what_can_be_read_beside_a_store_that_cannot_be_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")

    def half() -> Iterable[Usage]:
        yield from usage()
        yield from broken()

    assert 'cnvnet_ipam_addresses{network="vms",state="active"} 3.0' in lines(sources(usage=half))
    assert "leases.db: damaged" in capsys.readouterr().err


def test_each_source_that_fails_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")

    def no_counters() -> dict[str, int]:
        raise OSError("nftables: not permitted")

    registry = CollectorRegistry()
    registry.register(NodeMetrics(sources(usage=broken, drops=no_counters), Networks()))
    for _ in range(3):
        generate_latest(registry)
    logged = [json.loads(line)["metric"] for line in capsys.readouterr().err.splitlines()]
    assert logged == ["addresses", "drops"]
