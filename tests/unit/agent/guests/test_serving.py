"""Which guests are served, where the order of what happens cannot be had from outside."""

from __future__ import annotations

import os
from pathlib import Path

from cnvnet.agent.guests.packet_loop_process import PacketLoopProcess
from cnvnet.agent.guests.pod_dns import PodDns
from cnvnet.agent.guests.serving import ServedGuests
from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, Key, Record, file_name
from cnvnet.guest import settings_json
from cnvnet.kernel.boot import boot_id
from tests.unit.guest.guests import MASQUERADE


class Forgetful(PodDns):
    """Looks for nothing."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.forgotten: list[int] = []

    def forget(self, inode: int) -> None:
        self.forgotten.append(inode)


def recorded(rundir: Path, container: str, path: Path) -> str:
    """The name of a record with a guest; a file plays the namespace."""
    key = Key("masquerade", "net", container, "net1")
    settings = settings_json.encode(MASQUERADE._replace(nameservers=(), search=()))
    guest = {"ifname": "tap0", "settings": settings}
    record = Record(key, str(path), path.stat().st_ino, boot_id(), ADDED, {}, guest)
    with AttachmentFiles(str(rundir)).locked(key) as slot:
        slot.write(record)
    return file_name(key)


def test_a_pod_whose_namespace_has_the_number_of_one_that_has_gone_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    dns = Forgetful()
    guests = ServedGuests(str(tmp_path), PacketLoopProcess(lambda: None), dns)
    first, second = tmp_path / "first", tmp_path / "second"
    first.touch()
    inode = first.stat().st_ino
    guests.refresh(recorded(tmp_path, "a", first))
    # Another interface of the same pod.
    guests.refresh(recorded(tmp_path, "b", first))
    assert dns.forgotten == []
    os.link(first, second)
    first.unlink()
    # Before the agent has noticed that the first has gone.
    guests.refresh(recorded(tmp_path, "c", second))
    assert dns.forgotten == [inode]


def test_a_guest_whose_del_is_at_work_is_not_taken_up_again(tmp_path: Path) -> None:
    guests = ServedGuests(str(tmp_path), PacketLoopProcess(lambda: None), Forgetful())
    path = tmp_path / "netns"
    path.touch()
    name = recorded(tmp_path, "a", path)
    guests.refresh(name)
    guests.forget(name)
    # The look at the folder that was due because ADD has written the record.
    guests.refresh(name)
    assert guests.waiting() == 0
    other = tmp_path / "other"
    other.touch()
    recorded(tmp_path, "a", other)
    guests.refresh(name)
    assert guests.waiting() == 1
    assert "guest of container a, net1 in network net" in guests.problems()[0]


def test_a_record_that_has_gone_is_forgotten(tmp_path: Path) -> None:
    guests = ServedGuests(str(tmp_path), PacketLoopProcess(lambda: None), Forgetful())
    path = tmp_path / "netns"
    path.touch()
    name = recorded(tmp_path, "a", path)
    file = tmp_path / "attachments" / name
    content = file.read_bytes()
    guests.refresh(name)
    guests.forget(name)
    file.unlink()
    guests.refresh(name)
    file.write_bytes(content)
    guests.refresh(name)
    assert guests.counts() == {("waiting", "net"): 1}
