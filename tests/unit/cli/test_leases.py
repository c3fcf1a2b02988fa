"""cnvctl leases on a store that ADDs have written."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from cnvnet.cli.lease_rows import is_named
from cnvnet.ipam.lease import LeaseKey
from cnvnet.vm.identity import TARGET
from tests.unit.cli.lease_node import CONTAINER, Node, a_pool

# -- list and show


def test_before_the_first_add_there_is_nothing(node: Node) -> None:
    assert node.cnvctl("leases", "list").stdout == "NETWORK  VM  IF  IP  MAC  STATE  SINCE  HELD BY\n"
    assert json.loads(node.cnvctl("leases", "list", "-o", "json").stdout) == {"leases": []}
    assert not node.statedir.exists()


def test_each_lease_is_a_line_with_its_holder(node: Node) -> None:
    (a,) = node.add("vm-a", ago=3 * 86400 + 60, pod="prod/launcher-a")
    (b,) = node.add("vm-b", container=CONTAINER, ago=270)
    (c,) = node.add("", container="f00d" * 10, ago=3 * 3600 + 60)
    node.add("vm-d", ago=4 * 86400)
    node.delete("vm-d", ago=90 * 60 + 20)
    found = node.rows()
    assert [row[:4] for row in found[:3]] == [
        ["many", "f00df00df00df", "eth0", str(c)],
        ["many", "default/vm-a", "eth0", str(a)],
        ["many", "default/vm-b", "eth0", str(b)],
    ]
    assert [row[5:] for row in found] == [
        ["active", "3h", "f00df00df00df"],
        ["active", "3d", "prod/launcher-a"],
        ["active", "4m", "c0ffeec0ffeec"],
        ["stopped", "90m", "-"],
    ]
    assert node.rows("--stopped") == [found[3]]
    assert node.rows("--vm", "default/vm-b") == [found[2]]
    assert node.rows("--vm", "f00d") == [found[0]]
    assert node.rows("--vm", "default/vm") == []
    assert node.rows("--network", "other") == []


def test_a_target_is_distinguished_from_the_pod_it_migrates_from(node: Node) -> None:
    node.add("vm-a", container="source")
    node.add("vm-a", container="target", role=TARGET)
    assert node.rows()[0][-1] == "source,target(target)"


def test_what_cools_down_says_when_it_is_free(node: Node) -> None:
    node.add("vm-d", cooldown=60, ago=100)
    freed = node.cnvctl("leases", "release", "default/vm-d", "--network", "many", "--force").stdout
    (row,) = node.rows()
    assert row[5] == "cooling"
    seconds = int(row[-2])
    assert " ".join(row[7:]) == f"- (free in {seconds} s)"
    assert 50 < seconds <= 60
    assert freed.endswith(" (free in 60 s)\n")
    shown = node.cnvctl("leases", "show", "default/vm-d").stdout
    assert "state      cooling\n" in shown
    # Once more, and it is free at once.
    node.cnvctl("leases", "release", "default/vm-d", "--network", "many")
    assert node.rows() == []


def test_a_vm_is_shown_with_all_that_is_known(node: Node) -> None:
    (ip, ip6) = node.add(
        "vm-a", "dual", ranges=a_pool("10.61.0.0/29", "fd00::/125"), pod="prod/a", cooldown=5
    )
    shown = node.cnvctl("leases", "show", "default/vm-a").stdout.splitlines()
    assert shown[0] == "vm         default/vm-a"
    assert shown[4] == f"addresses  {ip}, {ip6}"
    assert shown[8].startswith("held by    pod prod/a, container vm-a, eth0, active since 20")
    assert shown[-1] == f"store      {node.statedir}/leases.db"
    document = json.loads(node.cnvctl("leases", "show", "default/vm-a", "-o", "json").stdout)["leases"][0]
    assert (document["ips"], document["state"]) == ([str(ip), str(ip6)], "active")
    assert (document["namespace"], document["vm"], document["container"]) == ("default", "vm-a", "")
    assert document["holders"][0]["pod"] == "prod/a"


def test_a_vm_without_a_lease_is_named(node: Node) -> None:
    done = node.cnvctl("leases", "show", "default/vm-z", "--network", "many", code=2)
    assert done.stderr == "cnvctl: default/vm-z has no lease in network many on this node\n"


def test_a_network_with_a_folder_of_its_own_is_found_by_its_record(node: Node, tmp_path: Path) -> None:
    node.add("vm-a")
    node.add("vm-b", "own", folder=tmp_path / "own")
    assert len(node.rows()) == 1
    assert [row[0] for row in node.rows("--data-dir", str(tmp_path / "own"))] == ["own"]
    node.record("own", dataDir=str(tmp_path / "own"))
    assert [row[0] for row in node.rows()] == ["many", "own"]
    missing = node.cnvctl("leases", "list", "--data-dir", "/nowhere", code=2)
    assert missing.stderr == "cnvctl: --data-dir: there is no /nowhere/leases.db\n"


def test_a_damaged_store_cannot_be_read(node: Node) -> None:
    node.statedir.mkdir()
    (node.statedir / "leases.db").write_bytes(b"no database" * 1000)
    done = node.cnvctl("leases", "list", code=3)
    assert done.stderr.startswith(f"cnvctl: {node.statedir}/leases.db: damaged")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("key", "name", "meant"),
    [
        (LeaseKey("n", "default", "a", "eth0"), "default/a", True),
        (LeaseKey("n", "default", "abc", "eth0"), "default/a", False),
        (LeaseKey("n", "", "abcdef", "eth0"), "abc", True),
        (LeaseKey("n", "", "abcdef", "eth0"), "", False),
        (LeaseKey("n", "default", "abcdef", "eth0"), "abc", False),
    ],
)
def test_a_vm_goes_by_its_name_and_a_container_by_the_beginning_of_its_id(
    key: LeaseKey, name: str, meant: bool
) -> None:
    assert is_named(key, name) == meant


def test_a_pods_name_is_shown_and_understood(node: Node) -> None:
    node.add("", container="c0ffee", pod="prod/web-0")
    node.add("", container="decade", pod="prod/web-1")
    assert [row[7] for row in node.rows("--vm", "prod/web-0")] == ["prod/web-0"]
    assert "container  c0ffee\n" in node.cnvctl("leases", "show", "prod/web-0").stdout
    assert node.rows("--vm", "prod/web") == []


# -- reserve


def test_a_reserved_address_is_the_vms_when_it_comes(node: Node) -> None:
    node.add("other")
    done = node.cnvctl(
        *("leases", "reserve", "default/new", "--network", "many"),
        *("--ip", "10.60.0.6", "--mac", "02:00:00:00:00:AA"),
    )
    assert done.stdout == "reserved many/default/new eth0: 10.60.0.6, 02:00:00:00:00:aa\n"
    assert done.stderr == ""
    row = node.rows("--vm", "default/new")[0]
    assert row[3:6] == ["10.60.0.6", "02:00:00:00:00:aa", "stopped"]
    assert node.add("new") == (ip_address("10.60.0.6"),)
    assert node.rows("--vm", "default/new")[0][4] == "02:00:00:00:00:aa"


def test_before_the_first_add_nothing_tells_the_ranges(node: Node) -> None:
    done = node.cnvctl("leases", "reserve", "default/new", "--network", "many", "--ip", "10.60.0.6")
    assert done.stdout == "reserved many/default/new eth0: 10.60.0.6\n"
    assert done.stderr == (
        f"cnvctl: no ADD in network many has recorded its ranges in {node.statedir}/leases.db yet: nothing "
        "says whether they have 10.60.0.6 (for a network with a dataDir: --data-dir)\n"
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["default/x", "--ip", "10.60.0.99"], "--ip: network many does not give out 10.60.0.99"),
        (["default/x", "--ip", "ten"], '--ip: "ten" is not an IP address'),
        (["default/x", "--ip", "10.60.0.2", "--ip", "10.60.0.2"], "--ip: 10.60.0.2 is asked for twice"),
        (["default/x", "--ip", "224.0.0.1"], "--ip: 224.0.0.1 cannot be the address of an interface"),
        (["default/x", "--ip", "fd00::1", "--ip", "::"], "--ip: :: cannot be the address of an interface"),
        (["default/x", "--ip", "10.60.0.2", "--mac", "01:00:00:00:00:00"], "--mac: "),
        (["x", "--ip", "10.60.0.2"], 'VM "x": write it as NAMESPACE/NAME'),
        (["default/X", "--ip", "10.60.0.2"], 'VM default/X: "X" is not a name of a VM'),
        (["default/x", "--ip", "10.60.0.2", "--interface", "a b"], 'interface: "a b" is not'),
        (["default/vm0", "--ip", "10.60.0.2"], "VM default/vm0 (eth0) has a lease in network many already"),
        (["default/x"], "Missing option '--ip'"),
    ],
)
def test_what_cannot_be_reserved_is_refused(full: Node, args: list[str], text: str) -> None:
    before = full.leases()
    assert text in full.cnvctl("leases", "reserve", *args, "--network", "many", code=2).stderr
    assert full.leases() == before


@pytest.mark.parametrize("name", ["", "a b", "../net", "a/b", "-x"])
def test_a_network_that_cannot_be_keeps_nothing(node: Node, name: str) -> None:
    done = node.cnvctl("leases", "reserve", "default/x", "--ip", "10.60.0.2", f"--network={name}", code=2)
    assert done.stderr.startswith(f'cnvctl: --network: "{name}" is no name of a network')
    assert not node.statedir.exists()


def test_an_address_of_a_stopped_vm_names_it(full: Node) -> None:
    (ip,) = [row[3] for row in full.rows("--vm", "default/vm1")]
    done = full.cnvctl("leases", "reserve", "default/x", "--network", "many", "--ip", ip, code=2)
    assert done.stderr.startswith(f"cnvctl: --ip: {ip} is held by VM default/vm1 (eth0), which is stopped")


def test_a_network_of_two_stores_has_to_be_distinguished(node: Node, tmp_path: Path) -> None:
    node.add("vm-a")
    node.add("vm-b", folder=tmp_path / "own")
    node.record("many", dataDir=str(tmp_path / "own"))
    args = ("leases", "reserve", "default/new", "--network", "many", "--ip", "10.60.0.6")
    done = node.cnvctl(*args, code=2)
    assert done.stderr == (
        f"cnvctl: network many has leases in {node.statedir}/leases.db, {tmp_path}/own/leases.db: "
        "say by --data-dir which is meant\n"
    )
    node.cnvctl(*args, "--data-dir", str(tmp_path / "own"))
    assert [row[1] for row in node.rows("--data-dir", str(tmp_path / "own"))] == [
        "default/new",
        "default/vm-b",
    ]


# -- status


def test_status_counts_what_networks_use_and_says_which_is_full(full: Node) -> None:
    full.add("vm-a", "dual", ranges=a_pool("10.61.0.0/24", "fd00::/120"))
    done = full.cnvctl("status", code=1)
    lines = done.stdout.splitlines()
    assert lines[7] == "pools        networks: 2, no address left in many: cnvctl leases list --network many"
    assert [line.split() for line in lines[9:]] == [
        ["NETWORK", "FAMILY", "TOTAL", "ACTIVE", "STOPPED", "COOLING", "FREE", "ADDRESSES"],
        ["dual", "IPv4", "253", "1", "0", "0", "252", "10.61.0.1-10.61.0.254"],
        ["dual", "IPv6", "254", "1", "0", "0", "253", "fd00::1-fd00::ff"],
        ["many", "IPv4", "5", "1", "4", "0", "0", "10.60.0.1-10.60.0.6", "FULL"],
    ]
    networks = json.loads(full.cnvctl("status", "-o", "json", code=1).stdout)["pools"]["networks"]
    assert networks[2] == {
        "network": "many",
        "family": 4,
        "pool": "10.60.0.1-10.60.0.6",
        "active": 1,
        "stopped": 4,
        "cooling": 0,
        "free": 0,
        "total": 5,
    }


def test_a_network_whose_ranges_are_not_known_has_no_total(node: Node) -> None:
    node.cnvctl("leases", "reserve", "default/new", "--network", "many", "--ip", "10.60.0.6")
    line = node.cnvctl("status").stdout.splitlines()[-1]
    assert line.split() == ["many", "IPv4", "?", "0", "1", "0", "?", "-"]


def test_a_damaged_store_leaves_the_rest_of_the_screen(node: Node) -> None:
    node.statedir.mkdir()
    (node.statedir / "leases.db").write_bytes(b"no database" * 1000)
    done = node.cnvctl("status", code=3)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("node", "cnvnet", "agent", "launcher", "attachments", "guards", "drops", "pools")
    ]
    assert "leases.db: damaged" in done.stdout.splitlines()[-1]
