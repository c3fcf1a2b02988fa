"""The hold files of a node: what is in them, and who may change them when."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store import objects
from cnvnet.ipam.store.holds import ADDING, HELD, RELEASING, Hold, Holds
from tests.unit.ipam.store.conformance import LEASE

HOLD = Hold(ADDING, "c1", "eth0", LEASE, holder_key="c1.eth0", addresses=("10.0.0.5",))
DONE = HOLD._replace(state=HELD, lease_uid="u", addresses=(), reservations={"net-1": "r"})


@pytest.fixture
def held(tmp_path: Path) -> Holds:
    return Holds(str(tmp_path))


def only_file(held: Holds) -> Path:
    (path,) = Path(held.folder).glob("*.json")
    return path


def test_a_hold_is_read_as_it_was_written(held: Holds) -> None:
    held.finish(held.begin(HOLD), DONE)
    assert Holds(held.statedir).get("net", "c1", "eth0") == DONE
    assert held.all() == held.all("net") == [DONE]
    assert held.all("other") == []
    assert held.get("net", "c1", "eth1") is None
    assert only_file(held).stat().st_mode & 0o777 == 0o600


def test_a_hold_that_is_being_made_differs_from_one_that_was_left(held: Holds) -> None:
    intent = held.begin(HOLD)
    assert Holds(held.statedir).is_in_use(HOLD)
    intent.close()
    assert not held.is_in_use(HOLD)


def test_an_add_that_comes_to_nothing_leaves_the_file_as_it_was(held: Holds) -> None:
    held.withdraw(held.begin(HOLD))
    assert held.all() == []
    held.write(DONE)
    held.withdraw(held.begin(HOLD))
    assert held.all() == [DONE]


def test_a_delete_during_an_add_fails_the_add(held: Holds) -> None:
    intent = held.begin(HOLD)
    held.write(HOLD._replace(state=RELEASING))
    with pytest.raises(CNIError, match="container c1: was deleted while it was added") as caught:
        held.finish(intent, DONE)
    assert caught.value.code == 11
    held.withdraw(intent)
    assert [each.state for each in held.all()] == [RELEASING]


def test_a_hold_that_is_another_one_by_now_is_not_removed(held: Holds) -> None:
    held.write(DONE)
    held.remove(DONE._replace(state=RELEASING))
    assert held.all() == [DONE]
    held.remove(DONE)
    held.remove(DONE)
    assert held.all() == []


def changed(**fields: object) -> bytes:
    """The file of DONE with other fields."""
    lease = objects.lease_document(LEASE)
    return json.dumps(DONE._asdict() | {"v": 1, "lease": lease} | fields).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 60_000,
        b"0" * 70_000,
        b'{"v": 2}',
        b'{"v": 1}',
        b'{"v": 1, "state": "held", "lease": []}',
        b'{"v": 1, "lease": {}, "state": "held"}',
        changed(state=["held"]),
        changed(container_id=None),
        changed(ifname=7),
        changed(lease_uid={}),
        changed(holder_key=[]),
        changed(addresses=5),
        changed(addresses=["no address"]),
        changed(reservations=[1]),
        changed(reservations={"a": 1}),
        changed(ends="no"),
        changed(until="soon"),
        changed(lease=objects.lease_document(LEASE) | {"status": {"holders": [1]}}),
        changed(lease=objects.lease_document(LEASE) | {"status": {"roles": [1]}}),
    ],
)
def test_a_damaged_file_is_reported_and_ignored(
    held: Holds, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    held.write(DONE)
    path = only_file(held)
    held.write(DONE._replace(container_id="c2"))
    path.write_bytes(content)
    assert held.get("net", "c1", "eth0") is None
    assert [each.container_id for each in held.all()] == ["c2"]
    assert f"{path}: " in capsys.readouterr().err


def test_what_is_no_file_of_ours_keeps_no_other_hold_from_being_found(held: Holds) -> None:
    held.write(DONE)
    os.mkfifo(os.path.join(held.folder, "fifo.json"))
    os.mkdir(os.path.join(held.folder, "folder.json"))
    assert held.all() == [DONE]


def test_a_full_disk_leaves_the_file_as_it_was(held: Holds, monkeypatch: pytest.MonkeyPatch) -> None:
    held.write(DONE)
    write = os.write
    rooms = [100, 0]

    def write_a_part(fd: int, content: bytes) -> int:
        room = rooms.pop(0)
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, content[:room])

    monkeypatch.setattr(os, "write", write_a_part)
    with pytest.raises(CNIError, match="no space left"):
        held.write(HOLD)
    assert held.all() == [DONE]


def test_a_folder_that_cannot_be_written_is_named(held: Holds, tmp_path: Path) -> None:
    (tmp_path / "kubernetes").write_text("")
    with pytest.raises(CNIError, match=str(tmp_path / "kubernetes")) as caught:
        held.begin(HOLD)
    assert caught.value.code == 5
    with pytest.raises(CNIError, match="cannot be written") as caught:
        held.ensure_writable()
    assert caught.value.code == 50
    assert os.listdir(tmp_path) == ["kubernetes"]
