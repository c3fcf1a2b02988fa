"""Records and locks: what a killed, a late and an older program find."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.files import AttachmentFiles, read_all, rundir
from cnvnet.attachment.record import (
    ADDED,
    ADDING,
    FileVersion,
    Key,
    Record,
    RecordedVM,
    UnreadableRecord,
    chains,
    file_name,
)
from cnvnet.call_context import captured
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError
from cnvnet.kernel.boot import boot_id

KEY = Key("cnv-bridge", "net1", "cid-1", "eth0")


def a_record(key: Key = KEY, state: str = ADDING, **undo: Any) -> Record:
    return Record(key, "/run/netns/x", 4026531840, boot_id(), state, dict(undo))


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "attachments"))


def test_what_is_written_is_read_by_the_next_call(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        assert slot.read() is None
        slot.write(a_record(host="veth0"))
        assert slot.read() == a_record(host="veth0")
        slot.write(a_record(state=ADDED, host="veth0"))
    with AttachmentFiles(str(tmp_path)).locked(KEY) as slot:
        assert slot.read() == a_record(state=ADDED, host="veth0")


def test_the_file_is_named_and_written_as_the_design_says(tmp_path: Path) -> None:
    with AttachmentFiles(str(tmp_path)).locked(KEY) as slot:
        slot.write(a_record(host="veth0"))
    (name,) = files(tmp_path)
    # printf 'net1\\0cid-1\\0eth0' | sha256sum | cut -c1-32
    assert name == "cnv-bridge-24e8bc7d8b96505246f49f2d86607a2d.json"
    document = json.loads((tmp_path / "attachments" / name).read_text())
    assert document == {
        "v": 1,
        "plugin": "cnv-bridge",
        "network": "net1",
        "containerid": "cid-1",
        "ifname": "eth0",
        "netns": {"path": "/run/netns/x", "inode": 4026531840},
        "boot_id": boot_id(),
        "state": "adding",
        "undo": {"host": "veth0"},
    }


def test_the_settings_of_a_guest_are_kept_in_the_record(tmp_path: Path) -> None:
    record_of_guest = a_record()._replace(guest={"ifname": "tap0", "settings": {"mtu": 1400}})
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(record_of_guest)
        assert slot.read() == record_of_guest
        slot.write(record_of_guest._replace(guest=None))
        assert slot.read() == a_record()
    (name,) = files(tmp_path)
    path = tmp_path / "attachments" / name
    path.write_text(path.read_text().replace('"undo"', '"guest": [], "undo"'))
    with (
        attachments.locked(KEY) as slot,
        pytest.raises(UnreadableRecord, match="a field has the wrong type"),
    ):
        slot.read()


def test_whose_it_is_is_kept_with_it(tmp_path: Path) -> None:
    pod = PodRef("prod", "p" * 253, "0b8a")
    vm = RecordedVM("prod", "vm-a", "u1", "vm-a", "u2", "0b8a", "target", "m1")
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record()._replace(pod=pod, vm=vm))
        assert slot.read() == a_record()._replace(pod=pod, vm=vm)
    (name,) = files(tmp_path)
    document = json.loads((tmp_path / "attachments" / name).read_text())
    assert document["v"] == 1  # an older program reads it, and passes over what it does not know
    assert document["pod"] == {"namespace": "prod", "name": "p" * 253, "uid": "0b8a"}
    assert document["vm"] == vm._asdict()


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"pod": None, "vm": None}, (None, None)),
        ({"pod": ["prod"], "vm": 7}, (None, None)),
        ({"vm": "a"}, (None, None)),
        ({"vm": {"name": "a", "role": "target"}}, (None, None)),
        ({"vm": {"namespace": "a", "name": "b", "role": 7, "x": 1}}, (None, RecordedVM("a", "b"))),
        # As older programs have written it.
        (
            {"pod": {"name": "p", "uid": 3, "node": "n"}, "vm": "a/b"},
            (PodRef("", "p", ""), RecordedVM("a", "b")),
        ),
    ],
)
def test_nothing_depends_on_whose_it_is(tmp_path: Path, odd: Any, expected: Any) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record())
    (name,) = files(tmp_path)
    path = tmp_path / "attachments" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    with attachments.locked(KEY) as slot:
        record = slot.read()
        assert record is not None
        assert (record.pod, record.vm) == expected


def test_a_lock_alone_leaves_no_file(tmp_path: Path) -> None:
    with AttachmentFiles(str(tmp_path)).locked(KEY):
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []


def test_a_removed_record_is_gone_with_its_file(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record())
    with attachments.locked(KEY) as slot:
        slot.remove()
        assert slot.read() is None
        slot.remove()
    assert files(tmp_path) == []


def test_a_record_removed_and_written_again_in_one_call_stays(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record(host="old"))
        slot.remove()
        slot.write(a_record(host="new"))
    with attachments.locked(KEY) as slot:
        assert slot.read() == a_record(host="new")


def test_a_second_call_for_one_attachment_gets_try_again_later(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with (
        attachments.locked(KEY),
        pytest.raises(CNIError) as caught,
        attachments.locked(KEY, wait_seconds=0.05),
    ):
        pass
    assert caught.value.code == 11
    assert "eth0 of container cid-1 in network net1" in caught.value.msg


def test_another_attachment_does_not_wait(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY), attachments.locked(KEY._replace(ifname="net1"), wait_seconds=0):
        pass


def test_a_waiting_call_sees_what_the_first_one_wrote(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    seen: list[Record | None] = []

    def second() -> None:
        with AttachmentFiles(str(tmp_path)).locked(KEY) as slot:
            seen.append(slot.read())

    with attachments.locked(KEY) as slot:
        thread = threading.Thread(target=second)
        thread.start()
        slot.write(a_record(host="one"))
        slot.write(a_record(host="two"))
    thread.join()
    assert seen == [a_record(host="two")]


def _count(folder: str, rounds: int) -> None:
    attachments = AttachmentFiles(folder)
    for _ in range(rounds):
        with attachments.locked(KEY, wait_seconds=60) as slot:
            record = slot.read()
            count = record.undo["count"] if record else 0
            slot.write(a_record(count=count + 1))


def _flicker(folder: str, rounds: int) -> None:
    attachments = AttachmentFiles(folder)
    inside = Path(folder) / "inside"
    for _ in range(rounds):
        with attachments.locked(KEY, wait_seconds=60) as slot:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails when another one is inside
            if slot.read() is None:
                slot.write(a_record())
            else:
                slot.remove()
            inside.unlink()


@pytest.mark.parametrize("work", [_count, _flicker])
def test_processes_take_turns_while_the_file_is_replaced_and_removed(tmp_path: Path, work: Any) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(str(tmp_path), 60)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    if work is _count:
        with AttachmentFiles(str(tmp_path)).locked(KEY) as slot:
            record = slot.read()
        assert record is not None
        assert record.undo == {"count": 360}
    else:
        assert files(tmp_path) == []


def test_a_killed_call_holds_no_other_up_and_loses_no_record(tmp_path: Path) -> None:
    script = (
        "import sys, time; from cnvnet.attachment.files import *\n"
        "from cnvnet.attachment.record import *\n"
        "key = Key('cnv-bridge', 'net1', 'cid-1', 'eth0')\n"
        "with AttachmentFiles(sys.argv[1]).locked(key) as slot:\n"
        "    slot.write(Record(key, '', 0, '', 'adding', {'host': 'v'}))\n"
        "    print('written', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"written\n"
        victim.send_signal(signal.SIGKILL)
    with AttachmentFiles(str(tmp_path)).locked(KEY, wait_seconds=1) as slot:
        record = slot.read()
    assert record is not None
    assert record.undo == {"host": "v"}


def test_a_newer_record_is_reported_and_left_untouched(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record())
    path = tmp_path / "attachments" / files(tmp_path)[0]
    newer = path.read_text().replace('"v": 1', '"v": 2')
    path.write_text(newer)
    with attachments.locked(KEY) as slot, pytest.raises(UnreadableRecord, match="version 2 is") as caught:
        slot.read()
    assert (caught.value.code, caught.value.newer) == (11, True)
    assert path.read_text() == newer


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", "null", '{"v": 1}', '"text"', "\xff", '{"v": 1, "plugin": 3}', "[" * 100_000],
    ids=["cut", "list", "empty", "null", "fields", "text", "bytes", "types", "deep"],
)
def test_what_is_no_record_is_reported_and_left_untouched(tmp_path: Path, content: str) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record())
    path = tmp_path / "attachments" / files(tmp_path)[0]
    path.write_bytes(content.encode("latin-1"))
    with attachments.locked(KEY) as slot, pytest.raises(UnreadableRecord) as caught:
        slot.read()
    assert str(path) in caught.value.msg
    assert (caught.value.code, caught.value.newer, "DEL" in caught.value.msg) == (5, False, True)
    assert path.read_bytes() == content.encode("latin-1")
    assert list(attachments.of_network("cnv-bridge", "net1")) == []
    assert path.exists()


def test_gc_sees_the_attachments_of_one_plugin_and_network_only(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    others = [KEY._replace(network="net2"), KEY._replace(plugin="cnv"), KEY._replace(plugin="cnv-bridge-x")]
    own = [KEY, KEY._replace(container_id="cid-2"), KEY._replace(ifname="net1")]
    for key in others + own:
        with attachments.locked(key) as slot:
            slot.write(a_record(key))
    assert sorted(attachments.of_network("cnv-bridge", "net1")) == sorted(own)


def test_records_that_have_changed_since_the_last_look_are_returned(tmp_path: Path) -> None:
    attachments, seen = AttachmentFiles(str(tmp_path)), dict[str, FileVersion]()

    def changed() -> list[Record | None]:
        return [record for _, record in attachments.changed("cnv-bridge", seen)]

    other = KEY._replace(container_id="cid-2")
    for key in (KEY, other, KEY._replace(plugin="masquerade")):
        with attachments.locked(key) as slot:
            slot.write(a_record(key))
    assert sorted(changed(), key=str) == sorted([a_record(), a_record(other)], key=str)
    assert changed() == []
    with attachments.locked(KEY) as slot:
        assert slot.version() in seen.values()
        slot.write(a_record(state=ADDED))
        assert slot.version() not in seen.values()
    assert changed() == [a_record(state=ADDED)]
    with attachments.locked(other) as slot:
        slot.remove()
    assert changed() == [None]
    assert changed() == []
    [name] = seen
    (tmp_path / "attachments" / name).write_text("{")
    assert changed() == [None]
    assert changed() == [None]  # it may be readable by now


def test_no_folder_has_no_attachments(tmp_path: Path) -> None:
    assert list(AttachmentFiles(str(tmp_path / "none")).of_network("cnv-bridge", "net1")) == []


def test_the_empty_file_of_a_killed_call_is_swept_but_a_lock_in_use_is_not(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY):
        (name,) = files(tmp_path)
        assert list(attachments.of_network("cnv-bridge", "net1")) == []
        assert files(tmp_path) == [name]
    (tmp_path / "attachments" / name).touch()
    (tmp_path / "attachments" / f"{name}.new").touch()
    assert list(attachments.of_network("cnv-bridge", "net1")) == []
    assert files(tmp_path) == []


def test_an_unusable_rundir_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    attachments = AttachmentFiles(str(tmp_path / "file"))
    for attempt in (attachments.locked(KEY), attachments.shared("bridge-br0")):
        with pytest.raises(CNIError) as caught, attempt:
            pass
        assert caught.value.code == 5
        assert str(tmp_path / "file") in caught.value.msg
    with pytest.raises(CNIError, match="cannot be written"):
        attachments.ensure_writable()


def test_a_full_disk_is_one_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(CNIError, match=r"cannot be written: No space left on device"):
        AttachmentFiles(str(tmp_path)).ensure_writable()
    assert files(tmp_path) == []


def test_del_goes_on_without_records_where_rundir_is_unusable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with AttachmentFiles(str(tmp_path / "file")).locked(KEY, optional=True) as slot:
        assert slot.read() is None
        slot.write(a_record())
        slot.remove()
        assert slot.read() is None
    assert "going on without writing records" in capsys.readouterr().err


def test_an_unwritten_record_does_not_take_the_old_one_along(tmp_path: Path) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record(host="veth0"))
        name = files(tmp_path)[0]
        (tmp_path / "attachments" / f"{name}.new").mkdir()
        with pytest.raises(CNIError) as caught:
            slot.write(a_record(state=ADDED, host="veth0"))
        assert caught.value.code == 5
        (tmp_path / "attachments" / f"{name}.new").rmdir()
    with attachments.locked(KEY) as slot:
        assert slot.read() == a_record(host="veth0")


def test_a_writable_rundir_is_made_when_missing(tmp_path: Path) -> None:
    AttachmentFiles(str(tmp_path / "a" / "b")).ensure_writable()
    assert files(tmp_path / "a" / "b") == []


def _hold_shared(folder: str, rounds: int) -> None:
    for _ in range(rounds):
        with AttachmentFiles(folder).shared("bridge-br0"):
            inside = os.open(Path(folder) / "inside", os.O_CREAT | os.O_EXCL)
            os.close(inside)
            os.unlink(Path(folder) / "inside")


def test_a_shared_object_has_one_user_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hold_shared, args=(str(tmp_path), 50)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4


def test_the_callers_environment_says_where_the_records_are() -> None:
    assert rundir({}) == "/run/cnvnet"
    assert rundir({"CNVNET_RUNDIR": ""}) == "/run/cnvnet"
    assert rundir({"CNVNET_RUNDIR": "/x"}) == "/x"


def test_a_link_in_the_place_of_a_record_leads_nowhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    attachments = AttachmentFiles(str(tmp_path))
    path = tmp_path / "attachments" / file_name(KEY)
    path.parent.mkdir()
    path.symlink_to(precious)
    assert list(attachments.records(KEY.plugin)) == []  # GC
    with attachments.locked(KEY, optional=True) as slot:  # DEL
        assert slot.read() is None
        slot.remove()
    assert not path.is_symlink()
    path.with_name(f"{path.name}.new").symlink_to(precious)
    with attachments.locked(KEY) as slot, pytest.raises(CNIError, match=r"\.new cannot be written"):
        slot.write(a_record())
    assert precious.read_text() == "kept"


@pytest.mark.parametrize("make", [os.mkfifo, make_socket], ids=["fifo", "socket"])
def test_what_is_no_file_is_no_record(tmp_path: Path, make: Callable[[Path], None]) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    path = tmp_path / "attachments" / file_name(KEY)
    path.parent.mkdir()
    make(path)
    seen: dict[str, FileVersion] = {}
    with captured() as lines:
        assert list(attachments.changed(KEY.plugin, seen)) == [(path.name, None)]
    assert any(path.name in line and "DEL of the attachment removes it" in line for line in lines)
    with attachments.locked(KEY) as slot:
        slot.write(a_record())
        assert slot.read() == a_record()


@pytest.mark.parametrize("field", ["network", "ifname", "boot_id", "netns"])
def test_a_name_that_no_file_could_have_makes_it_unreadable(tmp_path: Path, field: str) -> None:
    attachments = AttachmentFiles(str(tmp_path))
    with attachments.locked(KEY) as slot:
        slot.write(a_record())
    path = tmp_path / "attachments" / file_name(KEY)
    document = json.loads(path.read_text())
    document[field] = {"path": "\ud800", "inode": 1} if field == "netns" else "\ud800"
    path.write_text(json.dumps(document))
    assert list(attachments.of_network(KEY.plugin, KEY.network)) == []
    with attachments.locked(KEY) as slot, pytest.raises(UnreadableRecord, match="not a record"):
        slot.read()


def test_all_records_are_read_whichever_plugin_wrote_them(tmp_path: Path) -> None:
    assert read_all(str(tmp_path)) == ([], [])
    kept = [a_record(KEY._replace(plugin=plugin)) for plugin in ("cnv-bridge", "masquerade")]
    for record in kept:
        with AttachmentFiles(str(tmp_path)).locked(record.key) as slot:
            slot.write(record)
    folder = tmp_path / "attachments"
    (folder / "vm-bridge-0.json").touch()  # the lock of a call that has recorded nothing yet
    (folder / "vm-bridge-1.json.new").write_text("{")
    (folder / "vm-bridge-2.json").write_text("{")
    records, unreadable = read_all(str(tmp_path))
    assert records == kept
    assert [str(error).startswith(f"record {folder}/vm-bridge-2.json: ") for error in unreadable] == [True]
    assert (folder / "vm-bridge-0.json").exists()


def test_records_of_one_interface_are_put_together() -> None:
    outer, inner = a_record(), a_record(KEY._replace(plugin="vm-bridge"))
    others = [
        a_record(KEY._replace(ifname="net1")),
        a_record(KEY._replace(network="net2")),
        a_record(KEY._replace(container_id="cid-0")),
    ]
    found = chains([inner, *others, outer])
    assert found == [(others[2],), (outer, inner), (others[0],), (others[1],)]
