"""Leases from files and from other address managers, imported by an administrator under all policies."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam.lease import LeaseKey
from tests.bench.cluster import whereabouts
from tests.e2e.agent_stores import AgentDesk, reserved
from tests.e2e.cnvnet_objects import LEASES, user
from tests.e2e.control_plane import DEFINITIONS, ControlPlane
from tests.e2e.kubevirt_objects import LAUNCHERS, KubeVirt, Running
from tests.e2e.machine import eventually
from tests.e2e.test_cnvctl import Operator
from tests.harness import peer

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")


@pytest.fixture
def operator(control_plane: ControlPlane, tmp_path: Path, tenant: str) -> Operator:
    token = user(control_plane, tenant, "operator", "cnvnet-admin").token
    return Operator(control_plane, tmp_path / "desk", token)


@pytest.fixture
def running(kubevirt: KubeVirt, tenant: str) -> Iterator[Running]:
    machine = kubevirt.create_machine(tenant, "web")
    made = kubevirt.start(machine, "node-1")
    yield made
    kubevirt.stop(made)
    kubevirt.delete(machine)


@pytest.fixture
def whereabouts_token(control_plane: ControlPlane) -> Iterator[str]:
    """whereabouts is installed, for one test."""
    yield whereabouts.install(control_plane)
    for kind in ("ippools", "overlappingrangeipreservations", "nodeslicepools"):
        control_plane.api.delete(f"{DEFINITIONS}/{kind}.whereabouts.cni.cncf.io")


def given(program: str, network: str, container: str, ipam: dict[str, Any], args: str = "") -> str:
    """The address that another address manager gives to a container's eth0."""
    done = subprocess.run(
        [peer(program)],
        env={
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/run/netns/nowhere",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/nowhere",
            "CNI_ARGS": args,
        },
        input=json.dumps({"cniVersion": "1.0.0", "name": network, "type": "bridge", "ipam": ipam}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done
    (ip,) = json.loads(done.stdout)["ips"]
    return str(ip["address"]).partition("/")[0]


def test_pools_of_whereabouts_become_leases_of_vms(
    control_plane: ControlPlane,
    tmp_path: Path,
    tenant: str,
    operator: Operator,
    running: Running,
    whereabouts_token: str,
) -> None:
    access = {"kubernetes": {"kubeconfig": str(control_plane.kubeconfig(whereabouts_token))}}
    file = tmp_path / "whereabouts.conf"
    file.write_text(json.dumps(access))
    ranges = {"range": "10.0.0.0/29", "range_start": "10.0.0.2"}
    ipam = {"type": "whereabouts", **ranges, "configuration_path": str(file), **access}
    metadata = running.pod["metadata"]
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={tenant};K8S_POD_NAME={metadata['name']}"
    ip = given("whereabouts", tenant, "c0", ipam, args)
    plain = control_plane.create_pod(tenant, "plain", "node-1")["metadata"]["name"]
    other = given("whereabouts", tenant, "c1", ipam, f"K8S_POD_NAMESPACE={tenant};K8S_POD_NAME={plain}")
    into = ("leases", "import", "--from", "whereabouts", "--network", tenant)
    dry = operator.cnvctl(*into, "--dry-run", code=1)
    assert f"would import {tenant}/{tenant}/web eth0: {ip}" in dry.stdout
    assert f"{other} of pod {tenant}/plain is left out: pod {tenant}/plain is no VM" in dry.stderr
    assert control_plane.api.get(LEASES.format(tenant))["items"] == []
    operator.cnvctl(*into, code=1)
    (lease,) = control_plane.api.get(LEASES.format(tenant))["items"]
    assert (lease["spec"]["ips"], lease["spec"]["vmUID"]) == ([ip], running.machine["metadata"]["uid"])
    assert reserved(control_plane, tenant) == {ip: ""}
    # What kubectl prints is the same.
    pools = operator.folder / "pools.yaml"
    operator.folder.mkdir(exist_ok=True)
    pools.write_text(control_plane.kubectl("get", "ippools", "-A", "-o", "yaml").stdout)
    again = operator.cnvctl("leases", "import", str(pools), "--network", tenant, code=1)
    assert again.stdout == f"network {tenant}: imported 0, there already 1\n"
    # The VM's next start gets it.
    uid = running.machine["metadata"]["uid"]
    key = LeaseKey(tenant, tenant, "web", "eth0")
    desk = AgentDesk(control_plane, tmp_path, "node-1", tenant)
    moved = desk.add("web", "c9", uid, key=key, node="node-1", pod=f"{tenant}/launcher").lease
    assert [str(each) for each in moved.ips] == [ip]


def test_a_folder_of_host_local_becomes_leases_of_vms(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tmp_path: Path,
    tenant: str,
    operator: Operator,
    running: Running,
) -> None:
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "networks"), "subnet": "10.0.0.0/24"}
    ip, stray = (given("host-local", tenant, container, ipam) for container in ("c0", "c1"))
    path = f"{LAUNCHERS.format(tenant)}/{running.pod['metadata']['name']}"
    status = json.dumps([{"interface": "eth0", "ips": [ip], "mac": "0a:58:00:00:00:09", "default": True}])
    kubevirt.api.patch(path, {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/network-status": status}}})
    done = operator.cnvctl("leases", "import", str(tmp_path / "networks" / tenant), code=1)
    assert f"imported {tenant}/{tenant}/web eth0: {ip}, 0a:58:00:00:00:09" in done.stdout
    assert f"{stray} of container c1 is left out" in done.stderr
    assert set(reserved(control_plane, tenant)) == {ip, "0a:58:00:00:00:09"}


def test_leases_of_the_cluster_are_exported_and_imported_again(
    control_plane: ControlPlane, tmp_path: Path, tenant: str, operator: Operator
) -> None:
    desk = AgentDesk(control_plane, tmp_path, "node-1", tenant)
    for number in range(3):
        desk.attach(f"vm{number}", f"c{number}")
        desk.detach(f"c{number}")
    exported = operator.cnvctl("leases", "export", "--network", tenant).stdout
    before = reserved(control_plane, tenant)
    for number in range(3):
        operator.cnvctl("leases", "release", f"{tenant}/vm{number}", "--network", tenant)
    eventually(lambda: not control_plane.api.get(LEASES.format(tenant))["items"], "they are released")
    file = tmp_path / "leases.jsonl"
    file.write_text(exported)
    assert f"network {tenant}: imported 3" in operator.cnvctl("leases", "import", str(file)).stdout
    assert set(reserved(control_plane, tenant)) == set(before)
    # Into the files of a node, and a second time into the cluster: nothing is there twice.
    local = operator.cnvctl("leases", "import", str(file), "--store", "sqlite").stdout
    assert f"network {tenant}: imported 3, there already 0" in local
    again = operator.cnvctl("leases", "import", str(file), "--store", "kubernetes").stdout
    assert again == f"network {tenant}: imported 0, there already 3\n"
