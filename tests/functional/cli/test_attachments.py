"""cnvctl attachments and status beside real ADDs on a real kernel."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cnvnet import VERSION
from tests.functional.agent.own_agent import eventually, running_agent
from tests.functional.cli.installed_cnvctl import cnvctl
from tests.functional.masquerade.masquerade_pod import socket_in
from tests.harness import Node, Sandbox

LAUNCHER = Path(__file__).resolve().parents[3] / "launcher"
CONTAINER = "cnitool-77383ca0a0715733ca6f"
GUARDED: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "vms",
    "type": "cnv-bridge",
    "bridge": "br0",
    "macspoofchk": True,
    "ipspoofchk": True,
    "dhcpGuard": True,
    "raGuard": True,
    "ipam": {"type": "static-ip", "subnet": "10.10.0.0/24"},
}
PLAIN: dict[str, Any] = {"cniVersion": "1.0.0", "name": "plain", "type": "cnv-bridge", "bridge": "br0"}


def attach(node: Node) -> Sandbox:
    """A VM on a guarded port."""
    pod = node.pod()
    node.cni("cnv-bridge", "ADD", GUARDED, pod, container_id=CONTAINER, args="VM_NAME=vm-a").ok()
    return pod


def rows(node: Node, code: int = 0) -> list[list[str]]:
    return cnvctl(node, "attachments", "list", code=code).rows


def bind(node: Node, pod: Sandbox) -> None:
    """Puts a guest in the pod's place."""
    link = pod.ip("addr", "show", "dev", "eth0")[0]
    (ip,) = pod.addresses("eth0")
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": link["address"], "sandbox": pod.netns}],
        "ips": [{"address": ip, "interface": 0}],
    }
    config = {"cniVersion": "1.0.0", "name": "vms", "type": "vm-bridge", "prevResult": result}
    node.cni("vm-bridge", "ADD", config, pod, container_id=CONTAINER).ok()


def test_an_address_that_was_taken_from_a_running_vm_is_a_problem(node: Node) -> None:
    pod = attach(node)
    assert rows(node)[0][8:] == ["ok"]
    cnvctl(node, "leases", "release", "default/vm-a", "--network", "vms", "--force")
    assert " ".join(rows(node, code=1)[0][8:]).startswith("its lease has gone: ")
    node.cni("cnv-bridge", "DEL", GUARDED, pod, container_id=CONTAINER).ok()
    assert rows(node) == []


def test_ports_are_listed_with_their_guards(node: Node) -> None:
    attach(node)
    other = node.pod()
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1"
    node.cni("cnv-bridge", "ADD", PLAIN, other, container_id="c1", ifname="net1", args=args).ok()
    found = cnvctl(node, "attachments", "list")
    assert found.stdout.splitlines()[0].split() == [
        *("NETWORK", "POD", "IF", "PLUGINS", "PORT", "LINK", "GUARDS", "GUEST", "STATE")
    ]
    plain, guarded = found.rows
    assert plain[:4] == ["plain", "prod/web-0", "net1", "cnv-bridge"]
    assert plain[5:] == ["up", "-", "-", "ok"]
    assert guarded[:4] == ["vms", CONTAINER[:13], "eth0", "cnv-bridge"]
    assert guarded[5:] == ["up", "mac,ip,dhcp,ra", "-", "ok"]
    assert {plain[4], guarded[4]} <= set(node.links())
    assert cnvctl(node, "attachments", "list", "--network", "vms").rows == [guarded]
    wide = cnvctl(node, "attachments", "list", "-o", "wide", "--network", "vms").rows[0]
    assert wide[2:4] == ["default/vm-a", CONTAINER]
    assert wide[6].startswith("10.10.0.")
    assert wide[7].startswith("0a:63:")
    assert wide[10] == "br0"


def test_one_is_shown_by_its_vm_its_pod_and_its_container(node: Node) -> None:
    pod = attach(node)
    shown = cnvctl(node, "attachments", "show", "default/vm-a")
    mac = pod.links()["eth0"]["address"]
    assert shown.pairs["addresses"] == pod.addresses("eth0")[0].partition("/")[0]
    assert (shown.pairs["container"], shown.pairs["mac"], shown.pairs["bridge"]) == (CONTAINER, mac, "br0")
    assert cnvctl(node, "attachments", "show", "cnitool-77").stdout == shown.stdout
    (found,) = cnvctl(node, "attachments", "show", CONTAINER, "-o", "json").json["attachments"]
    assert (found["vm"], found["mac"], found["problems"]) == ("default/vm-a", mac, [])
    refused = cnvctl(node, "attachments", "show", "default/vm-z", code=2)
    assert refused.stderr == (
        "cnvctl: default/vm-z: no pod, VM or container of this name is attached on this node\n"
    )


@pytest.mark.alone
def test_what_is_taken_away_is_found(node: Node) -> None:
    attach(node)
    node.run("nft", "flush", "ruleset")
    row = cnvctl(node, "attachments", "list", code=1).rows[0]
    assert row[5:] == [
        "up",
        "missing",
        "-",
        *["not", "guarded:", "the", "table", "bridge", "cnv_bridge", "is", "not", "loaded"],
    ]
    status = cnvctl(node, "status", code=1).pairs
    assert status["guards"].startswith("none of 1 ports is guarded: table bridge cnv_bridge is not whole")
    node.run("ip", "link", "delete", row[4])
    row = cnvctl(node, "attachments", "list", code=1).rows[0]
    assert row[5:] == ["missing", "missing", "-", *f"the port {row[4]} is missing".split()]
    # DEL cleans up, and nothing is left to show.
    node.cni("cnv-bridge", "DEL", GUARDED, container_id=CONTAINER).ok()
    assert cnvctl(node, "attachments", "list").rows == []


@pytest.mark.alone
def test_one_element_that_is_gone_is_named(node: Node) -> None:
    attach(node)
    port = cnvctl(node, "attachments", "list").rows[0][4]
    node.run("nft", "flush", "set", "bridge", "cnv_bridge", "ra_ports")
    assert cnvctl(node, "attachments", "list", code=1).rows[0][6] == "missing"
    shown = cnvctl(node, "attachments", "show", CONTAINER, code=1)
    assert shown.pairs["missing"] == f"ra_ports: {port}"
    assert (
        cnvctl(node, "status", code=1).pairs["guards"] == "1 of 1 ports lack some: cnvctl attachments list"
    )


@pytest.mark.alone
def test_a_guest_is_served_by_the_agent_that_is_asked(node: Node) -> None:
    pod = attach(node)
    bind(node, pod)
    row = cnvctl(node, "attachments", "list", code=1).rows[0]
    assert (row[3], row[7]) == ("cnv-bridge,vm-bridge", "no-agent")
    status = cnvctl(node, "status", code=1)
    assert status.pairs["agent"] == (
        f"absent ({node.rundir}/agent.sock: no such file or directory), "
        "guests that wait for it: 1 (systemctl start cnvnet-agent)"
    )
    with running_agent(node) as agent:
        assert eventually(lambda: agent.ask(about=True)["served"] == 1)
        assert rows(node)[0][7:] == ["served", "ok"]
        status = cnvctl(node, "status")
        assert status.pairs["agent"] == f"ok, {VERSION}, guests served: 1, waiting: 0"
        pod.run("ip", "link", "delete", "tap0")
        assert eventually(lambda: rows(node, code=1)[0][7] == "waiting")
        assert (
            cnvctl(node, "status", code=1).pairs["agent"] == f"ok, {VERSION}, guests served: 0, waiting: 1"
        )


def test_status_of_a_node_in_order(node: Node) -> None:
    attach(node)
    found = cnvctl(node, "status")
    assert found.pairs["cnvnet"].startswith(VERSION)
    assert found.pairs["drops"] == "none"
    assert found.pairs["attachments"] == "1"
    assert found.pairs["guards"] == "ok, ports: 1"
    document = cnvctl(node, "status", "-o", "json").json
    assert document["version"] == VERSION
    assert document["attachments"] == {"state": "ok", "text": "1", "total": 1, "wrong": 0}
    assert document["guards"] == {"state": "ok", "text": "ok, ports: 1", "ports": 1, "lacking": 0}


@pytest.mark.alone
def test_a_record_that_cannot_be_read_is_said_and_the_others_are_shown(node: Node) -> None:
    attach(node)
    broken = node.rundir / "attachments/vm-bridge-00000000000000000000000000000000.json"
    broken.write_text("{")
    found = cnvctl(node, "attachments", "list", code=3)
    assert len(found.rows) == 1
    assert found.stderr.startswith(f"cnvctl: record {broken}: not a record: ")
    assert cnvctl(node, "status", code=3).pairs["unreadable"].startswith(f"record {broken}: not a record: ")


@pytest.mark.alone
def test_without_rights_the_remedy_is_said(node: Node) -> None:
    attach(node)
    # Root without capabilities has no more rights in another user's folder than any user.
    os.chown(node.rundir / "attachments", 65534, 65534)
    found = cnvctl(node, "attachments", "list", within=("setpriv", "--bounding-set=-all"), code=3)
    assert found.stderr == f"cnvctl: {node.rundir}/attachments: permission denied (run cnvctl as root)\n"


@pytest.mark.alone
def test_what_the_guards_have_dropped_is_counted_by_reason(node: Node) -> None:
    pod = attach(node)
    with socket_in(pod, socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for _ in range(3):
            wire.send(b"\xff" * 6 + bytes.fromhex("0200000000ee") + b"\x08\x00" + bytes(46))
    assert cnvctl(node, "status").pairs["drops"] == "spoofed_mac 3"
    document = cnvctl(node, "status", "-o", "json").json["drops"]
    assert (document["state"], document["packets"]["spoofed_mac"]) == ("ok", 3)


@pytest.mark.alone
def test_launchers_of_another_version_are_named(node: Node) -> None:
    folder = node.folder / "bin"
    folder.mkdir()
    for name, release in (("cnv-bridge", VERSION), ("static-ip", "0.0.9")):
        made = folder / name
        make = ("make", "--silent", "-C", LAUNCHER, f"OUT={made}", f"RELEASE={release}", made)
        subprocess.run(make, check=True, timeout=120)
    status = cnvctl(node, "status", "--cni-bin", str(folder), code=1)
    assert status.pairs["cnvnet"] == f"{VERSION} (launcher {VERSION}, 0.0.9)"
    assert status.pairs["launcher"] == (
        f"not of version {VERSION} in {folder}: 0.0.9: static-ip "
        "(scripts/install-cni puts this version's there)"
    )
    found = cnvctl(node, "status", "--cni-bin", str(folder), "-o", "json", code=1).json["launcher"]
    assert found["versions"] == {"cnv-bridge": VERSION, "static-ip": "0.0.9"}
