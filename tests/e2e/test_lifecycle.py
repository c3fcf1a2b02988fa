"""Leases from installation to purge: what ends with what, and what no careless command takes away."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cnvnet_objects import (
    CONTROLLER,
    LEASES,
    PLURALS,
    RESERVATIONS,
    SYSTEM,
    agent,
    holder,
    lease,
    network,
    refusal,
    reservation,
    wait_for_policies,
)
from tests.e2e.control_plane import DEFINITIONS, ControlPlane
from tests.e2e.kubevirt_objects import KubeVirt
from tests.e2e.machine import eventually

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

CHECKOUT = Path(__file__).resolve().parents[2]
NAMESPACES = "/api/v1/namespaces"
ACCOUNTS = f"{NAMESPACES}/{SYSTEM}/serviceaccounts"
KEPT = (
    "denied request: deleting vmleases.cnvnet.io takes the address of every VM: to delete the system alone, "
    "kubectl delete -k conf/kustomize/base/system; to lose all addresses, first kubectl annotate crd "
    "vmleases.cnvnet.io cnvnet.io/delete-leases=true"
)


def documented(section: str) -> str:
    """The commands of a section of docs/kubernetes.md."""
    text = (CHECKOUT / "docs/kubernetes.md").read_text()
    text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (commands,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(commands)


@pytest.fixture
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """cnvnet is installed, and is again at the end, whatever has become of it."""
    end_agents(control_plane)
    yield control_plane
    install_again(control_plane)


def install_again(control_plane: ControlPlane) -> None:
    """By the documented commands, once what was there has ended."""
    eventually(lambda: _has_ended(control_plane), "the namespace has ended")
    done = shell(control_plane, f"set -e\n{documented('Install')}")
    assert done.returncode == 0, done
    eventually(lambda: control_plane.api.find(f"{ACCOUNTS}/default"), "pods can be created")
    wait_for_policies(control_plane)


def _has_ended(control_plane: ControlPlane) -> bool:
    """Whether the namespace is not in deletion any more."""
    found = control_plane.api.find(f"{NAMESPACES}/{SYSTEM}")
    return found is None or "deletionTimestamp" not in found["metadata"]


def end_agents(control_plane: ControlPlane) -> None:
    """Their pods end, which a namespace in deletion waits for: no kubelet does it here."""
    pods = f"{NAMESPACES}/{SYSTEM}/pods"
    for pod in control_plane.api.get(pods)["items"]:
        control_plane.api.delete(f"{pods}/{pod['metadata']['name']}", gracePeriodSeconds=0)


@pytest.fixture
def leased(control_plane: ControlPlane, tenant: str) -> list[str]:
    """The paths of a lease with a holder and of its reservations."""
    api = agent(control_plane, "node-1")
    made = api.create(LEASES.format(tenant), lease(tenant, "web", "10.9.0.5", a_eth0=holder("node-1")))
    of = {"namespace": tenant, "name": made["metadata"]["name"], "uid": made["metadata"]["uid"]}
    paths = [f"{LEASES.format(tenant)}/{made['metadata']['name']}"]
    for address in ("10.9.0.5", "0a:58:0a:09:00:05"):
        reserved = api.create(RESERVATIONS, reservation(tenant, address, "node-1", lease=of))
        paths.append(f"{RESERVATIONS}/{reserved['metadata']['name']}")
    return paths


def seen(control_plane: ControlPlane, paths: list[str]) -> list[Document]:
    return [control_plane.api.get(path) for path in paths]


def free(control_plane: ControlPlane, paths: list[str]) -> None:
    """What the controller does with a lease that is marked: its reservations go, then its finalizer."""
    controller = control_plane.api.of(control_plane.token(SYSTEM, CONTROLLER))
    for path in paths[1:]:
        controller.delete(path)
    controller.patch(paths[0], {"metadata": {"finalizers": None}})


def is_marked(control_plane: ControlPlane, path: str) -> bool:
    return "deletionTimestamp" in control_plane.api.get(path)["metadata"]


def set_owner(control_plane: ControlPlane, path: str, machine: dict[str, Any]) -> None:
    """Makes the VM the owner of the lease at that path, as an agent does."""
    owner = {key: machine[key] for key in ("apiVersion", "kind")}
    owner |= {key: machine["metadata"][key] for key in ("name", "uid")}
    agent(control_plane, "node-1").patch(path, {"metadata": {"ownerReferences": [owner]}})


def shell(control_plane: ControlPlane, commands: str) -> subprocess.CompletedProcess[str]:
    """Commands as an administrator types them in the checkout, to the end whatever fails."""
    return control_plane.shell(commands, CHECKOUT)


def test_a_lease_that_is_deleted_stays_until_its_addresses_are_free(
    control_plane: ControlPlane, tenant: str, leased: list[str]
) -> None:
    name = leased[0].rpartition("/")[2]
    control_plane.kubectl("delete", "vmlease", name, "-n", tenant, "--wait=false")
    assert is_marked(control_plane, leased[0])
    # Its pod still ends, and leaves it; no pod can be added, and no lease of that name.
    api = agent(control_plane, "node-1")
    api.patch(leased[0], {"status": {"holders": {"a.eth0": None}}})
    again = lease(tenant, "web", "10.9.0.5")
    assert again["metadata"]["name"] == name
    with pytest.raises(Exception, match="object is being deleted"):
        api.create(LEASES.format(tenant), again)
    free(control_plane, leased)
    assert [control_plane.api.find(path) for path in leased] == [None, None, None]
    api.create(LEASES.format(tenant), again)


def test_a_lease_ends_with_its_vm_once_its_addresses_are_free(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, leased: list[str]
) -> None:
    machine = kubevirt.create_machine(tenant, "web")
    set_owner(control_plane, leased[0], machine)
    kubevirt.delete(machine)
    eventually(lambda: is_marked(control_plane, leased[0]), "the garbage collector has seen it")
    free(control_plane, leased)
    assert control_plane.api.find(leased[0]) is None


def test_a_vm_that_is_deleted_as_an_orphan_leaves_its_lease(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, leased: list[str]
) -> None:
    """The garbage collector takes the owner from it by an UPDATE, which no policy stops."""
    machine = kubevirt.create_machine(tenant, "web")
    set_owner(control_plane, leased[0], machine)
    path = f"/apis/kubevirt.io/v1/namespaces/{tenant}/virtualmachines/web"
    control_plane.api.patch(path, {"metadata": {"finalizers": None}})
    control_plane.api.delete(path, propagationPolicy="Orphan")
    eventually(
        lambda: "ownerReferences" not in control_plane.api.get(leased[0])["metadata"], "the owner is gone"
    )
    assert not is_marked(control_plane, leased[0])


def test_a_namespace_ends_once_the_addresses_of_its_leases_are_free(
    control_plane: ControlPlane, tenant: str, leased: list[str]
) -> None:
    control_plane.api.delete(f"{NAMESPACES}/{tenant}")
    eventually(lambda: is_marked(control_plane, leased[0]), "the lease is marked")
    assert seen(control_plane, leased[1:])
    free(control_plane, leased)
    eventually(lambda: control_plane.api.find(leased[0]) is None, "the lease is gone")


def test_definitions_are_kept_from_everyone(control_plane: ControlPlane, leased: list[str]) -> None:
    """From the cluster's administrator, by name and as a collection."""
    one = f"{DEFINITIONS}/vmleases.cnvnet.io"
    assert KEPT in refusal(lambda: control_plane.api.delete(one))
    all_of_them = f"{DEFINITIONS}?labelSelector=app.kubernetes.io/part-of=cnvnet"
    assert "takes the address of every VM" in refusal(lambda: control_plane.api.delete(all_of_them))
    for plural in PLURALS:
        assert not is_marked(control_plane, f"{DEFINITIONS}/{plural}.cnvnet.io")
    assert len(seen(control_plane, leased)) == 3


def test_what_is_uninstalled_as_documented_leaves_leases_and_goes_on_with_them(
    leased: list[str], installed: ControlPlane
) -> None:
    before = seen(installed, leased)
    command = documented("Uninstall")
    first = shell(installed, command)
    assert (first.returncode, "customresourcedefinition" in first.stdout) == (0, False), first
    assert 'clusterrole.rbac.authorization.k8s.io "cnvnet-agent" deleted' in first.stdout
    for _ in range(2):
        again = shell(installed, command)
        assert "deleted" not in again.stdout, again
    assert seen(installed, leased) == before
    install_again(installed)
    agent(installed, "node-1").patch(leased[0], {"status": {"holders": {"a.eth0": {"role": "temp"}}}})
    again = shell(installed, documented("Install"))
    assert [line for line in again.stdout.splitlines() if not line.endswith(" unchanged")] == []
    after = seen(installed, leased)
    assert [each["metadata"]["uid"] for each in after] == [each["metadata"]["uid"] for each in before]
    end_agents(installed)


def test_a_careless_deletion_of_everything_loses_no_lease_however_often_it_is_run(
    leased: list[str], installed: ControlPlane
) -> None:
    before = seen(installed, leased)
    for _ in range(2):
        done = shell(installed, "kubectl delete -k conf/kustomize/base")
        assert done.returncode != 0
        assert KEPT in done.stderr
        for plural in PLURALS:
            assert (
                f'customresourcedefinitions.apiextensions.k8s.io "{plural}.cnvnet.io" is forbidden'
                in done.stderr
            )
            assert not is_marked(installed, f"{DEFINITIONS}/{plural}.cnvnet.io")
        assert seen(installed, leased) == before


def test_a_purge_as_documented_takes_everything(
    leased: list[str], installed: ControlPlane, tenant: str
) -> None:
    installed.api.create("/apis/cnvnet.io/v1alpha1/ipnetworks", network(tenant, "*"))
    done = shell(installed, f"set -e\n{documented('Purge')}")
    assert done.returncode == 0, done
    listed = shell(installed, "kubectl get crd,clusterroles,validatingadmissionpolicies -o name").stdout
    assert "cnvnet" not in listed
    # Nothing of it comes back with a new installation.
    install_again(installed)
    assert installed.api.get("/apis/cnvnet.io/v1alpha1/vmleases")["items"] == []
