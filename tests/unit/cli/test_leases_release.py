"""cnvctl leases release: what a stopped VM keeps becomes free."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cnvnet.ipam import allocator
from cnvnet.ipam.allocation import AllocationRequest, Policy
from cnvnet.ipam.lease import Holder, LeaseKey
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.vm.identity import ACTIVE
from tests.unit.cli.lease_node import SMALL, Node


def test_a_stopped_vm_gives_its_address_to_the_next(full: Node) -> None:
    with pytest.raises(Exception, match="all 5 addresses"):
        full.add("new")
    (ip,) = [row[3] for row in full.rows("--vm", "default/vm2")]
    done = full.cnvctl("leases", "release", "default/vm2", "--network", "many")
    assert done.stdout.startswith(f"released many/default/vm2 eth0: {ip}, 0a:63:")
    assert full.add("new") == (ip_address(ip),)


def test_a_running_vm_keeps_its_address_unless_it_is_forced(full: Node) -> None:
    before = full.leases()
    done = full.cnvctl("leases", "release", "default/vm0", "--network", "many", code=2)
    assert done.stderr.startswith(
        "cnvctl: VM default/vm0 (eth0) is held by container vm0: stop it first (--force"
    )
    assert full.leases() == before
    full.cnvctl("leases", "release", "default/vm0", "--network", "many", "--force", "--dry-run")
    assert full.leases() == before
    full.cnvctl("leases", "release", "default/vm0", "--network", "many", "--force")
    assert full.leases() == before[1:]


def test_one_interface_that_is_held_keeps_all_of_them(node: Node) -> None:
    node.add("vm-a")
    node.delete("vm-a")
    key = LeaseKey("many", "default", "vm-a", "eth1")
    held = Holder("other", "eth1", ACTIVE, "", 0, "", 1)
    policy = Policy(b"", "vm-deleted", 0)
    Sqlite(str(node.statedir)).run(
        lambda ledger: allocator.acquire(
            ledger, AllocationRequest(key, "", held, SMALL, policy, (), "", "", 1), lambda _: False
        )
    )
    node.cnvctl("leases", "release", "default/vm-a", "--network", "many", code=2)
    assert len(node.rows()) == 2
    node.cnvctl("leases", "release", "default/vm-a", "--network", "many", "--interface", "eth0")
    assert [row[2] for row in node.rows()] == ["eth1"]


def test_all_that_were_stopped_for_long_are_released_together(full: Node) -> None:
    args = ("leases", "release", "--network", "many", "--stopped-for", "2d")
    dry = full.cnvctl(*args, "--dry-run").stdout.splitlines()
    assert [line.split()[:3] for line in dry] == [
        ["would", "release", f"many/default/vm{number}"] for number in (2, 3, 4)
    ]
    assert len(full.rows()) == 5
    assert full.cnvctl(*args).stdout.splitlines() == [
        line.replace("would release", "released") for line in dry
    ]
    assert [row[1] for row in full.rows()] == ["default/vm0", "default/vm1"]
    assert (
        full.cnvctl(*args).stdout == "no VM of network many has been stopped for 2d: nothing is released\n"
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--network", "many"], "Error: either VM or --stopped-for says what to release"),
        (["default/a", "--network", "many", "--stopped-for", "1d"], "either VM or --stopped-for"),
        (["default/a"], "Missing option '--network'"),
        (["default/a", "--network", "many"], "cnvctl: default/a has no lease in network many"),
    ],
)
def test_what_cannot_be_meant_is_refused(node: Node, args: list[str], text: str) -> None:
    assert text in node.cnvctl("leases", "release", *args, code=2).stderr


def test_a_time_that_is_none_is_refused(full: Node) -> None:
    done = full.cnvctl("leases", "release", "--network", "many", "--stopped-for", "long", code=2)
    assert done.stderr.startswith('cnvctl: --stopped-for: "long" is no time such as 90')


def test_a_time_that_is_none_is_refused_before_there_is_a_store(node: Node) -> None:
    done = node.cnvctl("leases", "release", "--network", "many", "--stopped-for", "long", code=2)
    assert done.stderr.startswith('cnvctl: --stopped-for: "long" is no time such as 90')


def test_an_interface_without_a_lease_is_named(full: Node) -> None:
    args = ("default/vm1", "--network", "many", "--interface", "eth9")
    done = full.cnvctl("leases", "release", *args, code=2)
    assert done.stderr == (
        "cnvctl: default/vm1 has no lease for its interface eth9 in network many "
        "(for a network with a dataDir: --data-dir)\n"
    )


def test_the_beginning_of_several_ids_is_refused(node: Node) -> None:
    for container in ("abc1", "abc2"):
        node.add("", container=container)
    done = node.cnvctl("leases", "release", "abc", "--network", "many", "--force", code=2)
    assert done.stderr == "cnvctl: abc is the beginning of several containers' ids: abc1, abc2\n"
    node.cnvctl("leases", "release", "abc1", "--network", "many", "--force")
    assert [row[1] for row in node.rows()] == ["abc2"]
