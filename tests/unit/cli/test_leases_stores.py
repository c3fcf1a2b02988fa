"""cnvctl leases and status on stores that are damaged, lost, or named by a dataDir."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.ref import StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from tests.unit.cli.lease_node import Node


def lose(folder: Path) -> None:
    """The database and its log are gone, as after a disk's loss or a careless rm."""
    for path in folder.glob("leases.db*"):
        path.unlink()


def test_lost_leases_are_said_and_begun_anew_by_command_only(node: Node) -> None:
    node.add("vm-a")
    lose(node.statedir)
    for args in (["list"], ["show", "default/vm-a"], ["release", "default/vm-a", "--network", "many"]):
        assert "restore it, or cnvctl leases init" in node.cnvctl("leases", *args, code=3).stderr
    assert "pools" in node.cnvctl("status", code=3).stdout
    done = node.cnvctl("leases", "init", "--network", "many")
    empty = "it is empty, nothing on this node has an address of it"
    assert (done.stdout, done.stderr) == (f"{node.statedir}/leases.db is in use again: {empty}\n", "")
    assert node.rows() == []
    node.add("vm-b")
    assert len(node.rows()) == 1


def test_a_store_that_has_lost_nothing_is_not_begun_anew(node: Node) -> None:
    node.add("vm-a")
    before = node.leases()
    assert "has lost nothing" in node.cnvctl("leases", "init", "--network", "many", code=2).stderr
    assert node.leases() == before


def test_a_network_with_a_folder_of_its_own_is_begun_anew_there(node: Node, tmp_path: Path) -> None:
    own = tmp_path / "own"
    node.add("vm-a")
    node.add("vm-b", "own", folder=own)
    node.record("own", dataDir=str(own))
    lose(own)
    assert node.cnvctl("leases", "init", "--network", "own").stdout.startswith(f"{own}/leases.db is in use")
    assert [row[0] for row in node.rows()] == ["many"]


def test_a_record_that_cannot_be_read_is_a_problem_of_what_is_begun_anew(node: Node) -> None:
    node.add("vm-a")
    node.record("many")
    broken = node.rundir / "attachments/cnv-bridge-0.json"
    broken.write_text("{")
    lose(node.statedir)
    done = node.cnvctl("leases", "init", code=1)
    assert done.stdout.startswith(f"{node.statedir}/leases.db is in use again")
    assert done.stderr.startswith(f"cnvctl: record {broken}: not a record")


@pytest.fixture
def two_places(node: Node, tmp_path: Path) -> Node:
    """One network in the usual folder, and one in a folder that the list alone names."""
    node.add("vm-a", "usual")
    node.add("vm-b", "own", folder=tmp_path / "own")
    data_dirs.add(str(node.statedir), str(tmp_path / "own"))
    return node


def test_a_listed_folder_is_looked_into(two_places: Node, tmp_path: Path) -> None:
    assert [row[0] for row in two_places.rows()] == ["own", "usual"]
    assert two_places.cnvctl("leases", "show", "default/vm-b").stdout.startswith("vm")
    status = json.loads(two_places.cnvctl("status", "-o", "json").stdout)
    assert [each["network"] for each in status["pools"]["networks"]] == ["usual", "own"]
    done = two_places.cnvctl("leases", "reserve", "default/new", "--network", "own", "--ip", "10.60.0.4")
    assert done.stderr == ""
    assert Sqlite(str(tmp_path / "own")).look(lambda ledger: len(list(ledger.leases("own")))) == 2
    two_places.cnvctl("leases", "release", "default/new", "--network", "own")
    # By another path it is the same folder.
    data_dirs.add(str(two_places.statedir), f"{tmp_path}/own/../own")
    assert len(two_places.rows()) == 2


def test_a_folder_in_which_something_is_reserved_is_listed(node: Node, tmp_path: Path) -> None:
    own = str(tmp_path / "own")
    reserve = ("leases", "reserve", "default/vm-c", "--network", "own", "--ip", "10.60.0.4")
    node.cnvctl(*reserve, "--data-dir", own)
    assert [row[3] for row in node.rows()] == ["10.60.0.4"]
    assert data_dirs.read(str(node.statedir)).folders == (own,)


def test_a_listed_folder_that_is_gone_is_passed_over_and_said(two_places: Node, tmp_path: Path) -> None:
    data_dirs.add(str(two_places.statedir), str(tmp_path / "gone"))
    done = two_places.cnvctl("leases", "list")
    listed = data_dirs.path(str(two_places.statedir))
    text = f"{tmp_path}/gone has no leases any more: passed over (its line in {listed} can be removed)"
    assert done.stderr == f"cnvctl: {text}\n"
    assert len(done.stdout.splitlines()) == 3
    assert not (tmp_path / "gone").exists()


def test_a_damaged_list_is_said_and_hides_nothing_else(two_places: Node) -> None:
    listed = Path(data_dirs.path(str(two_places.statedir)))
    listed.write_bytes(b"no/path\n" + listed.read_bytes())
    before = listed.read_bytes()
    done = two_places.cnvctl("leases", "list", code=3)
    assert done.stderr.startswith(f"cnvctl: {listed}: 'no/path' is no absolute path: ")
    assert len(done.stdout.splitlines()) == 3
    assert json.loads(two_places.cnvctl("status", "-o", "json", code=3).stdout)["pools"]["networks"]
    two_places.cnvctl("leases", "reserve", "default/new", "--network", "own", "--ip", "10.60.0.4")
    assert listed.read_bytes() == before


def test_a_listed_store_that_cannot_be_read_hides_no_other(two_places: Node, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "leases.db").write_text("not a database")
    data_dirs.add(str(two_places.statedir), str(forged))
    done = two_places.cnvctl("leases", "list", code=3)
    assert f"cnvctl: {forged}/leases.db: damaged" in done.stderr
    assert len(done.stdout.splitlines()) == 3
    status = two_places.cnvctl("status", code=3)
    assert f"{forged}/leases.db: damaged" in status.stdout
    assert "usual" in status.stdout.splitlines()[-2]
    assert (forged / "leases.db").read_text() == "not a database"


def test_a_recorded_store_of_a_newer_version_is_said_and_hides_no_other(two_places: Node) -> None:
    two_places.record("green", StoreRef("of-tomorrow", "there"))
    text = "store 'of-tomorrow': this version knows sqlite and kubernetes only"
    done = two_places.cnvctl("leases", "list", code=3)
    assert done.stderr.startswith(f"cnvctl: {text}")
    assert len(done.stdout.splitlines()) == 3
    status = two_places.cnvctl("status", code=3).stdout
    assert text in status
    assert "usual" in status
