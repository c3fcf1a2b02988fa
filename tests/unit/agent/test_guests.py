"""Which guests are served, where the order of what happens cannot be had from outside."""

from __future__ import annotations

import os
from pathlib import Path

from cnvnet.agent.guests import Guests
from cnvnet.agent.loop_process import PacketLoop
from cnvnet.agent.pod_dns import PodDns
from cnvnet.attachments import ADDED, AttachmentFiles, Key, Record, file_name
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
    guests = Guests(str(tmp_path), PacketLoop(lambda: None), dns)
    first, second = tmp_path / "first", tmp_path / "second"
    first.touch()
    inode = first.stat().st_ino
    guests.refresh(recorded(tmp_path, "a", first))
    # Another interface of the same pod.
    guests.refresh(recorded(tmp_path, "b", first))
    assert dns.forgotten == []
    os.link(first, second)
    first.unlink()
    # Before anybody has noticed that the first has gone.
    guests.refresh(recorded(tmp_path, "c", second))
    assert dns.forgotten == [inode]
