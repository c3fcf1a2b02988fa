"""Leases that are lost: no address that is attached is given out again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.functional.static_ip.lease_network import Addresses
from tests.harness import Node


def remove_log(folder: Path) -> None:
    (folder / "leases.db-wal").unlink()


def remove_all(folder: Path) -> None:
    for path in folder.glob("leases.db*"):
        path.unlink()


def remove_database(folder: Path) -> None:
    (folder / "leases.db").unlink()


def empty_database(folder: Path) -> None:
    os.truncate(folder / "leases.db", 0)


def empty_both(folder: Path) -> None:
    os.truncate(folder / "leases.db-wal", 0)
    os.truncate(folder / "leases.db", 0)


@pytest.mark.every_way
@pytest.mark.parametrize("lose", [remove_log, remove_all, remove_database, empty_database, empty_both])
def test_whatever_is_lost_no_address_is_given_out_twice(node: Node, lose: Callable[[Path], None]) -> None:
    network = Addresses(node, subnet="10.9.0.0/28")
    attached = {ip for number in range(5) for ip in network.add(f"a{number}", f"vm{number}")}
    assert len(attached) == 5
    lose(node.statedir)
    answers = [network.call("ADD", f"b{number}", f"new{number}") for number in range(8)]
    given = [ip["address"].partition("/")[0] for each in answers if not each.code for ip in each.ok()["ips"]]
    assert not attached & set(given)
    assert len(given) == len(set(given))
    refused = [each.error() for each in answers if each.code]
    assert {error["code"] for error in refused} <= {5}
    # An agent that has the log open still has what is in it.
    assert refused or lose is remove_log
    assert all("restore it, or cnvctl leases init --network blue" in error["msg"] for error in refused)
    # A pod that ends is not kept for it.
    assert network.call("DEL", "a0").code == 0


def test_an_add_syncs_what_it_did_before_there_was_a_mark(node: Node) -> None:
    network = Addresses(node)
    network.add("c1", "vm1")
    log = node.folder / "strace"
    watched = ("strace", "-f", "-y", "-e", "trace=fsync,fdatasync,sync_file_range", "-o", str(log))
    network.add("c2", "vm2", within=watched)
    # SQLite syncs the folder once for each connection.
    synced = re.findall(r"sync\(\d+<(.*?)>", log.read_text())
    assert synced == [f"{node.statedir}/leases.db-wal", str(node.statedir)]
