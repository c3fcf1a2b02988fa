"""Starting over when leases were lost: what is attached is taken."""

from __future__ import annotations

from collections.abc import Generator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.record import ADDED, Key, Record, RecordedVM
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.static_ip.recovery import Recovered, start_over
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.boot import boot_id
from tests.fakes.kernel import FakeKernel

IPAM = {"type": "static-ip", "subnet": "10.1.0.0/24"}


class Lost:
    """A node whose store has lost its leases, and what is attached on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Sqlite(str(folder))
        self.store.run(lambda ledger: ledger.change(None, a_lease("gone", "10.1.0.99"), until=0))
        self.store.close()
        self.kernel = FakeKernel()
        self.records: list[Record] = []

    def attach(
        self, container: str, *addresses: str, vm: str = "", pod: PodRef | None = None, **changes: Any
    ) -> Record:
        """A pod with these addresses on net1 (written "…@other", on another interface), and its record."""
        path = f"/run/netns/{container}"
        namespace = self.kernel.add_namespace(path)
        link = namespace.add_link("net1", "veth", mac=f"0a:63:00:00:00:{len(self.records):02x}")
        other = namespace.add_link("other", "dummy")
        for each in (link, other):
            namespace.set_up(each)
        for address in addresses:
            text, _, where = address.partition("@")
            target = other if where else link
            namespace.add_address(AddAddress(target.ifindex, ip_interface(text)))
        namespace.finish_detection()
        undo = {"ipam_type": "static-ip", "ipam": IPAM}
        record = Record(
            Key("cnv-bridge", "blue", container, "net1"),
            path,
            namespace.inode,
            boot_id(),
            ADDED,
            undo,
            None,
            pod,
            RecordedVM(*vm.split("/")) if vm else None,
        )._replace(**changes)
        self.records.append(record)
        return record

    def lose(self) -> None:
        for path in self.folder.glob("leases.db*"):
            path.unlink()

    def start_over(self) -> Recovered:
        return start_over(
            self.store, self.records, self.kernel, statedir=str(self.folder), node="worker-1", now=50
        )

    def leases(self) -> dict[str, Lease]:
        return self.store.look(lambda ledger: {each.key.vm: each for each in ledger.leases()})


@pytest.fixture
def lost(tmp_path: Path) -> Generator[Lost]:
    made = Lost(tmp_path)
    yield made
    made.store.close()


def a_lease(vm: str, *ips: str) -> Lease:
    return Lease(LeaseKey("blue", "default", vm, "net1"), tuple(map(ip_address, ips)))


def test_what_is_attached_is_taken_and_counted(lost: Lost) -> None:
    lost.attach("c1", "10.1.0.5/24", "fd00::5/64", "fe80::5/64", vm="prod/vm1")
    lost.attach("c2", "10.1.0.6/24", pod=PodRef("prod", "web", "uid-2"))
    lost.lose()
    done = lost.start_over()
    assert (len(done.leases), done.addresses, done.problems) == (2, 3, ())
    vm1, web = lost.leases()["vm1"], lost.leases()["c2"]
    assert (vm1.key, vm1.ips, vm1.mac) == (
        LeaseKey("blue", "prod", "vm1", "net1"),
        (ip_address("10.1.0.5"), ip_address("fd00::5")),
        "0a:63:00:00:00:00",
    )
    assert [(each.container_id, each.role, each.node) for each in vm1.holders] == [("c1", "active", "")]
    assert [each[-3:] for each in web.holders] == [("worker-1", "prod/web", "uid-2")]
    assert web.key == LeaseKey("blue", "", "c2", "net1")


def test_a_pod_that_has_gone_and_a_record_of_another_boot_or_store_have_nothing(lost: Lost) -> None:
    lost.attach("c1", "10.1.0.5/24")
    lost.kernel.remove_namespace("/run/netns/c1")
    lost.attach("c2", "10.1.0.6/24", netns_inode=1)
    lost.attach("c3", "10.1.0.7/24", boot_id="another")
    lost.attach("c4", "10.1.0.8/24", undo={"ipam_type": "host-local", "ipam": IPAM})
    lost.attach("c5", "10.1.0.9/24", undo={"ipam_type": "static-ip", "ipam": {**IPAM, "dataDir": "/else"}})
    lost.attach("c6", "10.1.0.10/24", undo={})
    lost.attach("c7")
    lost.lose()
    assert lost.start_over() == Recovered((), ())
    assert lost.leases() == {}


def test_an_address_that_a_binding_has_moved_is_found_by_the_networks_ranges(lost: Lost) -> None:
    lost.attach("c1", "10.1.0.5/24@other", "10.9.0.5/24@other")
    lost.lose()
    assert lost.start_over().addresses == 1
    assert lost.leases()["c1"].ips == (ip_address("10.1.0.5"),)


def test_both_pods_of_a_vm_that_moves_hold_its_lease(lost: Lost) -> None:
    lost.attach("c1", "10.1.0.5/24", vm="default/vm1")
    lost.attach("c2", "10.1.0.5/24", vm="default/vm1")
    lost.lose()
    assert lost.start_over().addresses == 1
    assert [(each.container_id, each.role) for each in lost.leases()["vm1"].holders] == [
        ("c1", "leaving"),
        ("c2", "active"),
    ]


def test_what_the_store_still_knows_stays_and_a_contradiction_is_said(lost: Lost) -> None:
    lost.store.run(lambda ledger: ledger.change(None, a_lease("vm1", "10.1.0.5"), until=0))
    lost.store.close()
    known = (lost.folder / "leases.db").read_bytes()
    lost.store.run(lambda ledger: ledger.change(None, a_lease("vm2", "10.1.0.6"), until=0))
    lost.store.close()
    lost.attach("c2", "10.1.0.6/24", vm="default/vm2")
    lost.attach("c9", "10.1.0.5/24", vm="default/vm9")
    (lost.folder / "leases.db").write_bytes(known)
    assert lost.start_over().problems == (
        "network blue: 10.1.0.5 of VM default/vm9 (net1) is also leased to VM default/vm1 (net1)",
    )
    assert {name: each.ips[0] for name, each in lost.leases().items()} == {
        "gone": ip_address("10.1.0.99"),
        "vm1": ip_address("10.1.0.5"),
        "vm2": ip_address("10.1.0.6"),
    }


def test_a_pod_that_cannot_be_looked_at_is_named(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    lost.attach("c1", "10.1.0.5/24")
    lost.lose()

    def refused(path: str) -> None:
        raise PermissionError(1, "not permitted", path)

    monkeypatch.setattr(lost.kernel, "netns", refused)
    done = lost.start_over()
    assert done.leases == ()
    assert done.problems == ("network blue: container c1 (net1): [Errno 1] not permitted: '/run/netns/c1'",)


def test_a_store_that_has_lost_nothing_does_not_start_over(lost: Lost) -> None:
    with pytest.raises(CNIError, match="has lost nothing: nothing was changed") as caught:
        lost.start_over()
    assert caught.value.code == 7
    assert list(lost.leases()) == ["gone"]
