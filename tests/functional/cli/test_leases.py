"""cnvctl leases between real ADDs, with an agent that holds the store open or without one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.functional.cli.installed_cnvctl import cnvctl
from tests.functional.static_ip.lease_network import Addresses
from tests.harness import Node

NETWORK = ("--network", "blue")


def full(node: Node, **ipam: Any) -> Addresses:
    """A network whose five addresses are kept for VMs that do not run."""
    network = Addresses(node, subnet="10.60.0.0/29", **ipam)
    for number in range(5):
        network.add(f"c{number}", f"vm{number}")
        network.delete(f"c{number}")
    return network


def on_a_bridge(subnet: str) -> dict[str, Any]:
    """A network whose addresses are those of a bridge's ports."""
    ipam = {"type": "static-ip", "subnet": subnet}
    return {"cniVersion": "1.0.0", "name": "blue", "type": "cnv-bridge", "bridge": "br0", "ipam": ipam}


def leases(node: Node, *args: str) -> dict[str, list[str]]:
    """The lines of `leases list` by their VMs."""
    return {row[1]: row for row in cnvctl(node, "leases", "list", *args).rows}


@pytest.mark.every_way
def test_a_full_pool_is_made_room_in_by_a_command_alone(node: Node) -> None:
    network = full(node)
    refused = network.call("ADD", "new", "vm-new").error()
    assert "all 5 addresses of 10.60.0.1-10.60.0.6 are taken" in refused["msg"]
    # The command that the message names.
    _, _, command = refused["msg"].partition("cnvctl ")
    args = command.partition(" frees")[0].split()
    released = cnvctl(node, *args).stdout
    (ip,) = network.add("new", "vm-new")
    assert released.startswith(f"released blue/default/vm0 eth0: {ip}, ")
    assert set(leases(node)) == {f"default/vm{number}" for number in (1, 2, 3, 4)} | {"default/vm-new"}
    assert leases(node)["default/vm-new"][5] == "active"


@pytest.mark.every_way
def test_the_command_finds_the_folder_that_no_record_names_any_more(node: Node) -> None:
    folder = node.statedir / "own"
    network = full(node, dataDir=str(folder))
    assert set(leases(node)) == {f"default/vm{number}" for number in range(5)}
    assert cnvctl(node, "status", code=1).rows[-1][0] == "blue"
    refused = network.call("ADD", "new", "vm-new").error()
    _, _, command = refused["msg"].partition("cnvctl ")
    args = command.partition(" frees")[0].split()
    assert args[-2:] == ["--data-dir", str(folder)]
    assert cnvctl(node, *args).stdout.startswith("released blue/default/vm0 eth0: ")
    assert len(network.add("new", "vm-new")) == 1
    # So does the one for an address that is asked for.
    other = cnvctl(node, "leases", "list", "--stopped", "--data-dir", str(folder)).rows[0]
    refused = network.call("ADD", "c", "vm-c", args=f"IP={other[3]}").error()
    assert (
        f"(cnvctl leases release {other[1]} --network blue --data-dir {folder} frees it)" in refused["msg"]
    )


def test_releases_and_adds_at_once_lose_and_double_nothing(node: Node) -> None:
    network = full(node)
    with ThreadPoolExecutor(4) as threads:
        adds = [threads.submit(_add_when_there_is_room, network, f"n{number}") for number in range(5)]
        for number in range(5):
            cnvctl(node, "leases", "release", f"default/vm{number}", *NETWORK)
        ips = [add.result() for add in adds]
    assert sorted(ips) == [f"10.60.0.{number}" for number in range(2, 7)]
    found = leases(node)
    assert {vm: row[3] for vm, row in found.items()} == {
        f"default/n{number}": ip for number, ip in enumerate(ips)
    }
    assert cnvctl(node, "status", code=1).rows[-1][2:7] == ["5", "5", "0", "0", "0"]


def _add_when_there_is_room(network: Addresses, vm: str) -> str:
    for _ in range(200):
        done = network.call("ADD", f"pod-{vm}", vm)
        if done.code == 0:
            return str(done.json["ips"][0]["address"].partition("/")[0])
        assert done.error()["code"] == 11
    raise AssertionError("there never was room")


def test_a_reserved_address_and_mac_are_those_of_the_first_add(node: Node) -> None:
    bridge = on_a_bridge("10.60.0.0/24")
    mac = "02:00:00:00:00:77"
    cnvctl(node, "leases", "reserve", "default/new", *NETWORK, "--ip", "10.60.0.77", "--mac", mac)
    # No other VM gets it meanwhile.
    refused = Addresses(node, subnet="10.60.0.0/24").call("ADD", "o", "other", args="IP=10.60.0.77").error()
    assert "cnvctl leases release default/new --network blue" in refused["msg"]
    pod = node.pod()
    args = "VM_NAME=new;VM_UID=the-real-one"
    node.cni("cnv-bridge", "ADD", bridge, pod, args=args).ok()
    assert pod.addresses("eth0") == ["10.60.0.77/24"]
    assert pod.links()["eth0"]["address"] == mac
    shown = cnvctl(node, "leases", "show", "default/new").pairs
    assert (shown["uid"], shown["state"]) == ("the-real-one", "active")


def test_a_running_vm_is_refused_by_its_pods_name(node: Node) -> None:
    network = Addresses(node, subnet="10.60.0.0/24", nodeLocal=True)
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=cid-7"
    network.add("cid-7", args=args)
    assert leases(node)["cid-7"][7] == "prod/web-0"
    refused = cnvctl(node, "leases", "release", "cid-7", *NETWORK, code=2)
    assert "is held by pod prod/web-0: stop it first" in refused.stderr
    cnvctl(node, "leases", "release", "cid-7", *NETWORK, "--force")
    assert leases(node) == {}
    # Its DEL finds nothing to end, and succeeds.
    network.delete("cid-7")


def test_what_was_stopped_for_long_is_released_together(node: Node) -> None:
    full(node)
    nothing = cnvctl(node, "leases", "release", *NETWORK, "--stopped-for", "1h").stdout
    assert nothing == "no VM of network blue has been stopped for 1h: nothing is released\n"
    would = cnvctl(node, "leases", "release", *NETWORK, "--stopped-for", "0", "--dry-run").stdout
    assert len(leases(node, "--stopped")) == 5
    did = cnvctl(node, "leases", "release", *NETWORK, "--stopped-for", "0").stdout
    assert did == would.replace("would release", "released")
    assert leases(node) == {}


def test_lost_leases_are_taken_from_what_is_attached(node: Node) -> None:
    config = on_a_bridge("10.60.0.0/29")
    pods = {f"vm{number}": node.pod() for number in range(3)}
    for vm, pod in pods.items():
        node.cni("cnv-bridge", "ADD", config, pod, container_id=f"of-{vm}", args=f"VM_NAME={vm}").ok()
    before = {vm: row[2:6] for vm, row in leases(node).items()}
    for path in node.statedir.glob("leases.db*"):
        path.unlink()
    new = node.pod()
    refused = node.cni("cnv-bridge", "ADD", config, new, container_id="new", args="VM_NAME=new").error()
    command = refused["msg"].partition("cnvctl ")[2].split()[:4]
    assert command == ["leases", "init", *NETWORK]
    assert cnvctl(node, *command).stdout == (
        f"{node.statedir}/leases.db is in use again: "
        "addresses that are attached and therefore taken: 3, of 3 leases\n"
    )
    assert {vm: row[2:6] for vm, row in leases(node).items()} == before
    node.cni("cnv-bridge", "ADD", config, new, container_id="new", args="VM_NAME=new").ok()
    ips = [row[3] for row in leases(node).values()]
    assert len(set(ips)) == len(ips) == 4
