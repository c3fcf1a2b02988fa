"""Records beside the kernel and the agent: what is wrong with an attachment, in words."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, ADDING, Key, Record, RecordedVM
from cnvnet.cli import survey
from cnvnet.cli.agent import AgentStatus
from cnvnet.cli.place import Place
from cnvnet.cli.survey import Survey
from cnvnet.cni.conventions import PodRef
from cnvnet.ipam.lease import Holder, Lease, LeaseKey
from cnvnet.ipam.store.holds import HELD, Hold, Holds
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kernel.links import ChangeLink, DeleteLink
from cnvnet.kernel.netns import Netns
from cnvnet.vm.identity import ACTIVE
from tests.fakes.kernel import FakeKernel
from tests.unit.plugins.cnv_bridge.fake_node import World

NO_AGENT = AgentStatus(absent="no such file or directory")


class Node:
    """A node in memory with one attachment, whose namespace is played by a file."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.place = Place(str(folder / "run"), str(folder / "state"), {})
        self.world = World(folder, **keys)
        self.netns = folder / "netns"
        self.netns.touch()
        self.world.add()
        (self.record,) = self.world.attachments.records("cnv-bridge")
        self.record = self.change(netns_path=str(self.netns), netns_inode=self.netns.stat().st_ino)

    def change(self, **changes: Any) -> Record:
        """The attachment's record from now on."""
        record = self.record._replace(**changes)
        write(self.place.rundir, record)
        return record

    def to_port(self, change: ChangeLink | DeleteLink) -> None:
        """Something that others do to the port."""
        with self.world.kernel.stack() as host:
            link = host.link(self.world.ports[0])
            assert link is not None
            host.apply(change._replace(ifindex=link.ifindex))

    def look(self) -> Survey:
        return survey.take(self.place, self.world.kernel, NO_AGENT, {})

    def problems(self) -> tuple[str, ...]:
        (found,) = self.look().attachments
        return found.problems


def write(rundir: str, record: Record) -> None:
    with AttachmentFiles(rundir).locked(record.key) as slot:
        slot.write(record)


def test_what_is_as_add_has_left_it_has_no_problems(tmp_path: Path) -> None:
    node = Node(tmp_path, macspoofchk=True)
    taken = node.look()
    (found,) = taken.attachments
    assert (found.problems, found.guest, found.state) == ((), "", ADDED)
    assert (found.network, found.container_id, found.ifname) == ("net1", "cid-1", "eth0")
    assert found.plugins == ("cnv-bridge",)
    assert found.guarded
    assert taken.table is not None
    assert taken.table.loaded
    assert taken.unreadable == ()


def test_pod_and_vm_are_those_of_the_record(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (found,) = node.look().attachments
    assert (found.pod, found.vm, found.ips) == ("", "", ())
    node.change(pod=PodRef("prod", "launcher", "uid"), vm=RecordedVM("default", "vm-a"))
    (found,) = node.look().attachments
    assert (found.pod, found.vm) == ("prod/launcher", "default/vm-a")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (DeleteLink(0), "the port {} is missing"),
        (ChangeLink(0, up=False), "the port {} is down (ip link set {} up)"),
        (ChangeLink(0, master=0), "the port {} is on no bridge"),
    ],
)
def test_what_others_did_to_the_port_is_a_problem(
    tmp_path: Path, change: ChangeLink | DeleteLink, problem: str
) -> None:
    node = Node(tmp_path)
    name = node.world.ports[0]
    node.to_port(change)
    assert node.problems() == (problem.replace("{}", name),)


def test_a_flushed_table_leaves_ports_unguarded(tmp_path: Path) -> None:
    node = Node(tmp_path, macspoofchk=True)
    with node.world.kernel.nft() as nft:
        nft.run("delete table bridge cnv_bridge\n")
    assert node.problems() == ("not guarded: the table bridge cnv_bridge is not loaded",)
    assert not node.look().attachments[0].guarded


def test_a_namespace_that_has_gone_is_the_only_problem(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.to_port(DeleteLink(0))
    os.unlink(node.netns)
    assert node.problems() == (f"the namespace {node.netns} has gone: a DEL or GC removes what is left",)


def test_a_record_of_another_boot_says_so(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.change(boot_id="another")
    assert node.problems() == ("recorded before the node was booted: a DEL or GC removes the record",)


def test_an_interface_whose_lease_has_gone_has_a_problem(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.change(undo={**node.record.undo, "ipam_type": "static-ip", "ipam": {"type": "static-ip"}})
    assert node.problems() == ("its lease has gone: others may get the addresses (restart the VM)",)
    holder = Holder("cid-1", "eth0", ACTIVE, "", 0, "", 1)
    lease = Lease(LeaseKey("net1", "default", "vm-a", "eth0"), (ip_address("10.0.0.5"),), holders=(holder,))
    Sqlite(node.place.statedir).run(lambda ledger: ledger.change(None, lease, until=0))
    assert node.problems() == ()
    # What cannot be read says nothing about the attachment.
    (Path(node.place.statedir) / "leases.db").write_bytes(b"no database" * 100)
    assert node.problems() == ()


def test_a_call_at_work_is_no_problem(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.to_port(DeleteLink(0))
    node.change(state=ADDING)
    (found,) = node.look().attachments
    assert (found.state, found.problems) == (ADDING, ())


def test_a_guest_without_an_agent_is_a_problem_of_the_chain(tmp_path: Path) -> None:
    node = Node(tmp_path)
    key = node.record.key._replace(plugin="vm-bridge")
    write(node.place.rundir, node.record._replace(key=key, undo={}, guest={"ifname": "tap0"}))
    (found,) = node.look().attachments
    assert found.plugins == ("cnv-bridge", "vm-bridge")
    assert found.port is not None
    assert (found.guest, found.problems) == (
        "no-agent",
        ("no agent serves the guest (systemctl start cnvnet-agent)",),
    )


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    node = Node(tmp_path)
    path = tmp_path / "run/attachments/vm-bridge-0.json"
    path.write_text("{")
    (tmp_path / "state").mkdir()
    (tmp_path / "state/leases.db").write_text("no database" * 100)
    taken = node.look()
    assert len(taken.attachments) == 1
    assert [text.partition(":")[0] for text in taken.unreadable] == [
        f"record {path}",
        f"{tmp_path}/state/leases.db",
    ]


def test_without_records_of_cnv_bridge_the_kernel_is_not_asked(tmp_path: Path) -> None:
    place = Place(str(tmp_path), str(tmp_path), {})
    key = Key("masquerade", "net", "cid", "eth0")
    write(place.rundir, Record(key, "/nowhere", 1, "boot", ADDED, {}))

    class NoKernel(FakeKernel):
        def nft(self, netns: Netns | None = None) -> Any:
            raise AssertionError

    assert len(survey.take(place, NoKernel(), NO_AGENT, {}).attachments) == 1


def test_an_address_that_is_anothers_is_a_problem(tmp_path: Path) -> None:
    node = Node(tmp_path)
    key = node.record.key
    lease = Lease(LeaseKey(key.network, "default", "web", key.ifname), (ip_address("10.0.0.5"),))
    hold = Hold(HELD, key.container_id, key.ifname, lease, dispute="it is VM default/db's, too", fenced=True)
    Holds(node.place.statedir).write(hold)
    assert node.problems() == ("fenced: it is VM default/db's, too",)
    assert node.look().disputes == (hold,)
    Holds(node.place.statedir).write(hold._replace(fenced=False))
    assert node.problems() == ("it is VM default/db's, too",)
