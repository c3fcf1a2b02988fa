"""ADD, DEL, CHECK, GC and STATUS of the installed executable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.functional.static_ip.lease_network import NOWHERE, Addresses
from tests.harness import CHECKABLE, VERSIONS, Node


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_is_what_host_local_prints(node: Node, version: str) -> None:
    # One free address of each family, so that both must choose the same ones.
    ipam = {
        "ranges": [
            [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9"}],
            [{"subnet": "fd00::/64", "rangeStart": "fd00::9", "rangeEnd": "fd00::9", "gateway": "fd00::ff"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/64", "gw": "fd00::5"}],
    }
    config = {"cniVersion": version, "name": "blue", "type": "bridge"}
    host_local = {**ipam, "type": "host-local", "dataDir": str(node.folder / "host-local")}
    reference = node.cni("host-local", "ADD", {**config, "ipam": host_local}, NOWHERE)
    ours = node.cni("static-ip", "ADD", {**config, "ipam": {**ipam, "type": "static-ip"}}, NOWHERE)
    assert ours.ok() == reference.ok()


@pytest.mark.every_way
def test_a_vm_has_its_address_again_after_a_restart(node: Node) -> None:
    network = Addresses(node, ranges=[[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]])
    first = network.add("c1", "vm1", args="VM_UID=uid1;VM_NAMESPACE=tenant")
    network.delete("c1")
    assert network.add("c2", "vm1", args="VM_UID=uid1;VM_NAMESPACE=tenant") == first
    assert network.add("c3", "vm1", args="VM_NAMESPACE=other") != first


def test_the_identity_may_come_in_args(node: Node) -> None:
    network = Addresses(node)
    in_args = {"args": {"cni": {"vm": {"name": "vm1", "interface": "eth0"}}}}
    assert network.add("c1", config=in_args) == network.add("c2", "vm1")


def test_a_requested_address_is_given(node: Node) -> None:
    network = Addresses(node, ranges=[[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]])
    assert network.add("c1", "vm1", args="IP=fd00::77,10.1.0.77/24") == ["10.1.0.77", "fd00::77"]
    requested = {"runtimeConfig": {"ips": ["10.1.0.78"]}, "args": {"cni": {"ips": ["10.1.0.79"]}}}
    assert network.add("c2", "vm2", config=requested)[0] == "10.1.0.78"


@pytest.mark.every_way
def test_a_refused_address_names_its_key_and_its_holder(node: Node) -> None:
    network = Addresses(node)
    network.add("c1", "vm1", args="IP=10.1.0.77")
    requested = {"runtimeConfig": {"ips": ["10.1.0.77"]}}
    assert network.call("ADD", "c2", "vm2", config=requested).error() == {
        "cniVersion": "1.1.0",
        "code": 7,
        "msg": "runtimeConfig.ips[0]: 10.1.0.77 is held by VM default/vm1 (eth0) in container c1",
    }
    assert set(network.taken()) == {"10.1.0.77"}


@pytest.mark.every_way
def test_a_container_that_is_no_vm_gives_its_address_back(node: Node) -> None:
    network = Addresses(node)
    network.add("c1")
    network.delete("c1")
    assert network.taken() == {}


@pytest.mark.parametrize(
    "ipam", [None, 7, {}, {"subnet": "x"}, {"subnet": "10.1.0.0/24", "store": "kubernetes"}]
)
def test_delete_needs_no_valid_configuration(node: Node, ipam: Any) -> None:
    network = Addresses(node)
    network.add("c1")
    network.add("c2", "vm1")
    for container in ("c1", "c2"):
        args = "what is this;IP=x;VM_ROLE=boss"
        done = network.call("DEL", container, args=args, config={"ipam": ipam})
        assert (done.code, done.stdout) == (0, "")
    assert network.rows("SELECT * FROM holders") == []
    assert len(network.taken()) == 1


def test_delete_without_a_database_makes_none(node: Node) -> None:
    network = Addresses(node)
    network.delete("c1")
    network.delete("c1")
    assert not node.statedir.exists()


def test_delete_twice_and_of_strangers_succeeds(node: Node) -> None:
    network = Addresses(node)
    network.add("c1")
    for container in ("c1", "c1", "stranger"):
        network.delete(container)


def test_leases_go_where_data_dir_says(node: Node) -> None:
    network = Addresses(node, subnet="10.1.0.0/24", dataDir=str(node.folder / "elsewhere"))
    network.add("c1")
    # Only the list of such folders is in the usual one.
    assert [path.name for path in node.statedir.iterdir()] == ["leases.folders"]
    assert (node.folder / "elsewhere" / "leases.db").exists()
    network.delete("c1")


def test_an_interface_whose_name_is_no_text_is_refused_and_its_del_succeeds(node: Node) -> None:
    config = {"cniVersion": "1.1.0", "name": "blue", "ipam": {"subnet": "10.1.0.0/24"}}
    name = {"CNI_IFNAME": "caf\udce9"}  # codespell:ignore caf
    error = node.cni("static-ip", "ADD", config, NOWHERE, env=name).error()
    assert (error["code"], error["msg"]) == (4, "interface name is not UTF-8")
    assert node.cni("static-ip", "DEL", config, NOWHERE, env=name).code == 0
    assert not node.statedir.exists()


# -- CHECK


@pytest.mark.parametrize("version", CHECKABLE)
def test_check_accepts_what_add_printed(node: Node, version: str) -> None:
    network = Addresses(node, version)
    result = network.call("ADD", "c1", "vm1").ok()
    assert network.call("CHECK", "c1", "vm1", config={"prevResult": result}).ok() is None


def test_check_says_what_is_different(node: Node) -> None:
    network = Addresses(node)
    result = network.call("ADD", "c1", "vm1", args="IP=10.1.0.7").ok()
    other = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.8/24"}]}
    cases: list[tuple[str, str, dict[str, Any], tuple[int, str]]] = [
        ("c1", "vm1", {}, (7, "prevResult: required by CHECK")),
        ("c2", "vm1", {"prevResult": result}, (100, "network blue: no lease for container c2")),
        ("c1", "vm2", {"prevResult": result}, (100, "network blue: no lease for container c1")),
        (
            "c1",
            "vm1",
            {"prevResult": other},
            (100, "prevResult.ips: VM default/vm1 (eth0) has 10.1.0.7, not 10.1.0.8"),
        ),
    ]
    for container, vm, config, expected in cases:
        error = network.call("CHECK", container, vm, config=config).error()
        assert (error["code"], error["msg"]) == expected


def test_check_without_a_database_fails_and_makes_none(node: Node) -> None:
    result = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.8/24"}]}
    error = Addresses(node).call("CHECK", "c1", config={"prevResult": result}).error()
    assert error["code"] == 100
    assert not node.statedir.exists()


# -- GC


@pytest.mark.every_way
@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_ends_containers_that_are_gone_but_no_reservation_of_a_vm(node: Node, key: str) -> None:
    network = Addresses(node)
    network.add("dead")
    network.add("alive")
    (kept,) = network.add("deadvm", "vm1")
    valid = {key: [{"containerID": "alive", "ifname": "eth0"}]}
    assert network.call("GC", "", config=valid).ok() is None
    assert network.rows("SELECT container_id FROM holders") == [("alive",)]
    assert kept in network.taken()
    assert len(network.taken()) == 2


def test_gc_without_a_list_collects_nothing_and_an_empty_list_everything(node: Node) -> None:
    network = Addresses(node)
    network.add("c1")
    network.call("GC", "").ok()
    assert len(network.taken()) == 1
    network.call("GC", "", config={"name": "red", "cni.dev/valid-attachments": []}).ok()
    assert len(network.taken()) == 1
    network.call("GC", "", config={"cni.dev/valid-attachments": []}).ok()
    assert network.taken() == {}


def test_gc_with_a_list_it_cannot_read_collects_nothing(node: Node) -> None:
    network = Addresses(node)
    network.add("c1")
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1"}]}
    assert network.call("GC", "", config=valid).error()["code"] == 7
    assert len(network.taken()) == 1


def test_gc_without_a_database_makes_none(node: Node) -> None:
    Addresses(node).call("GC", "", config={"cni.dev/valid-attachments": []}).ok()
    assert not node.statedir.exists()


# -- STATUS


def test_status_is_silent_when_an_add_would_succeed(node: Node) -> None:
    network = Addresses(node)
    assert network.call("STATUS", "").ok() is None
    assert not node.statedir.exists()
    network.add("c1")
    assert network.call("STATUS", "").ok() is None


@pytest.mark.every_way
def test_a_full_pool_is_the_adds_error_and_not_the_nodes(node: Node) -> None:
    network = Addresses(node, subnet="10.1.0.0/29")
    for number in range(4):
        network.add(f"c{number}", f"vm{number}")
        network.delete(f"c{number}")
    network.add("c4")
    error = network.call("ADD", "c5").error()
    assert (error["code"], error["details"]) == (
        11,
        "no IP addresses available in range set: 10.1.0.1-10.1.0.6",
    )
    assert re.fullmatch(
        r"network blue: all 5 addresses of 10\.1\.0\.1-10\.1\.0\.6 are taken: 1 in use, "
        r"4 kept for stopped VMs \(default/vm0 since \d+ s, default/vm1 since \d+ s, "
        r"default/vm2 since \d+ s, …\): "
        r"cnvctl leases release default/vm0 --network blue frees one, or give the network a wider range",
        error["msg"],
    )
    # containerd asks every 5 s, and the kubelet would call the node NotReady.
    assert network.call("STATUS", "").ok() is None


def test_status_says_that_the_store_cannot_be_made(node: Node) -> None:
    node.statedir.write_text("a file")
    error = Addresses(node).call("STATUS", "").error()
    text = f"{node.statedir}/leases.db: not a directory: set ipam.dataDir to a folder that can be written"
    assert (error["code"], error["msg"]) == (50, text)


def test_status_says_that_the_file_system_is_read_only_before_there_is_a_database(node: Node) -> None:
    node.statedir.mkdir()
    read_only = mounted(f"--bind -o ro {node.statedir}", node.statedir)
    network = Addresses(node)
    for command, code in (("STATUS", 50), ("ADD", 5)):
        error = network.call(command, "c1", within=read_only).error()
        assert (error["code"], error["msg"]) == (
            code,
            f"{node.statedir}/leases.db: the file system is read-only: remount it, or set ipam.dataDir to a "
            "folder that can be written",
        )


# -- trouble


def mounted(options: str, folder: Path) -> tuple[str, ...]:
    """Run the executable where the folder is a file system of its own."""
    return ("unshare", "-m", "sh", "-ec", f'mount {options} {folder}; exec "$0"')


def test_a_read_only_folder_is_named_with_the_remedy(node: Node) -> None:
    network = Addresses(node)
    network.add("c1")
    read_only = mounted(f"--bind -o ro {node.statedir}", node.statedir)
    for command, code in (("ADD", 5), ("DEL", 5), ("STATUS", 50)):
        error = network.call(command, "c1", within=read_only).error()
        assert (error["code"], error["msg"]) == (
            code,
            f"{node.statedir}/leases.db: the file system is read-only: remount it, or set ipam.dataDir to a "
            "folder that can be written",
        )
    assert len(network.taken()) == 1


@pytest.mark.parametrize("state", ["closed", "killed", "empty"])
def test_delete_of_a_container_that_holds_nothing_needs_no_write(node: Node, state: str) -> None:
    network = Addresses(node)
    network.add("c1")
    log = node.statedir / "leases.db-wal"
    assert log.stat().st_size  # the lease is nowhere else yet
    if state == "closed":
        network.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        for path in (log, node.statedir / "leases.db-shm"):
            path.unlink(missing_ok=True)
    elif state == "empty":
        for path in node.statedir.iterdir():
            path.unlink()
        (node.statedir / "leases.db").touch()
    read_only = mounted(f"--bind -o ro {node.statedir}", node.statedir)
    assert network.call("DEL", "stranger", within=read_only).ok() is None
    done = network.call("DEL", "c1", within=read_only)
    if state == "empty":
        assert done.ok() is None
    else:
        assert done.error()["code"] == 5
        assert done.error()["msg"].startswith(f"{node.statedir}/leases.db: the file system is read-only")
        assert len(network.taken()) == 1


def test_a_log_that_cannot_be_read_on_a_read_only_disk_is_explained(node: Node) -> None:
    network = Addresses(node)
    network.add("c1")
    (node.statedir / "leases.db-shm").unlink()
    read_only = mounted(f"--bind -o ro {node.statedir}", node.statedir)
    error = network.call("DEL", "stranger", within=read_only).error()
    text = "the file system is read-only, and without leases.db-shm so is leases.db-wal unreadable"
    assert (error["code"], error["msg"]) == (5, f"{node.statedir}/leases.db: {text}: remount it")


def test_check_works_on_a_read_only_disk(node: Node) -> None:
    network = Addresses(node)
    config = {"prevResult": network.call("ADD", "c1").ok()}
    read_only = mounted(f"--bind -o ro {node.statedir}", node.statedir)
    assert network.call("CHECK", "c1", config=config, within=read_only).ok() is None
    assert network.call("CHECK", "c2", config=config, within=read_only).error()["code"] == 100


def test_a_full_disk_is_named_and_loses_nothing(node: Node) -> None:
    node.statedir.mkdir()
    network = Addresses(node)
    fill = f"-t tmpfs -o size=64k tmpfs {node.statedir}; head -c 70000 /dev/zero > {node.statedir}/x || :; :"
    full = ("unshare", "-m", "sh", "-ec", f'mount {fill}; exec "$0"')
    for command, code in (("ADD", 5), ("STATUS", 50)):
        error = network.call(command, "c1", within=full).error()
        assert error["code"] == code
        assert error["msg"].startswith(f"{node.statedir}/leases.db: the disk is full: make room")


@pytest.mark.every_way
def test_a_damaged_database_is_named_and_not_touched(node: Node) -> None:
    node.statedir.mkdir()
    database = node.statedir / "leases.db"
    database.write_bytes(b"garbage" * 1000)
    network = Addresses(node)
    for command, code in (("ADD", 5), ("DEL", 5), ("STATUS", 50)):
        error = network.call(command, "c1").error()
        assert error["code"] == code
        assert error["msg"].startswith(
            f"{database}: damaged (file is not a database): restore it from a backup"
        )
    assert database.read_bytes() == b"garbage" * 1000


@pytest.mark.every_way
def test_a_newer_schema_is_refused(node: Node) -> None:
    network = Addresses(node)
    network.add("c1")
    network.rows("PRAGMA user_version=99")
    error = network.call("ADD", "c2").error()
    assert error["code"] == 11
    assert "written by a newer version (schema 99, this one knows 2)" in error["msg"]


def test_kubernetes_needs_a_store_of_its_own_or_a_key_that_says_otherwise(node: Node) -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=uid"
    error = Addresses(node).call("ADD", "c1", args=args).error()
    assert error["code"] == 7
    assert error["msg"].startswith("ipam.store: sqlite knows the leases of one node only")
    assert not node.statedir.exists()
    local = Addresses(node, subnet="10.1.0.0/24", nodeLocal=True)
    assert local.add("c1", args=args)
    error = local.call("ADD", "c2", "vm1", args=args).error()
    assert error["msg"].startswith("CNI_ARGS VM_NAME: a Kubernetes pod cannot say which VM it is")


@pytest.mark.every_way
def test_nothing_is_left_by_a_configuration_that_is_refused(node: Node) -> None:
    error = Addresses(node, subnet="10.1.0.0/24", cooldown="soon").call("ADD", "c1").error()
    assert error["msg"] == 'ipam.cooldown: "soon" is no time such as 90, "10m", "1h" or "1d"'
    assert not node.statedir.exists()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_refuse_two_addresses_of_a_family_but_delete(node: Node, version: str) -> None:
    network = Addresses(node, version, ranges=[[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]])
    error = network.call("ADD", "c1").error()
    text = f"CNI version {version} does not support more than 1 address per family"
    assert (error["code"], error["msg"]) == (7, text)
    network.delete("c1")


def test_the_version_is_answered_as_by_all_plugins(node: Node) -> None:
    done = node.cni("static-ip", "VERSION", "")
    assert json.loads(done.stdout)["supportedVersions"] == list(VERSIONS)
