"""Which VM a pod is, and its role: over the objects that a real KubeVirt has written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cnvnet.attachment.record import RecordedVM
from cnvnet.cni.errors import CNIError
from cnvnet.guest import domains
from cnvnet.vm import launcher, names
from cnvnet.vm.identity import ACTIVE, TARGET, TEMP, VM
from cnvnet.vm.launcher import MacSource, Subject, subject
from tests.kubevirt import MACHINES, captured, migration, started

Document = dict[str, Any]
MIGRATION = "kubevirt.io/migrationJobUID"


def found(pod: Document, vmi: Document, ifname: str = "eth0", network: str = "") -> Subject:
    result = subject(pod, vmi, ifname, network)
    assert result is not None
    return result


def of(machine: str, ifname: str = "eth0", network: str = "") -> Subject:
    return found(*started(machine), ifname, network)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_launcher_is_the_vm_that_owns_its_instance(machine: str) -> None:
    pod, vmi = started(machine)
    (owner,) = vmi["metadata"]["ownerReferences"]
    result = found(pod, vmi)
    assert result.vm == VM("default", machine, owner["uid"], "eth0", ACTIVE)
    assert (result.vmi, result.vmi_uid) == (machine, vmi["metadata"]["uid"])
    assert (result.pod_uid, result.node) == (pod["metadata"]["uid"], pod["spec"]["nodeName"])
    assert result.migration == ""


def test_the_names_of_owners_count_and_no_label_which_is_cut() -> None:
    pod, vmi = started("vm-a")
    long = "a" * 70 + ".example"
    pod["metadata"]["ownerReferences"][0]["name"] = vmi["metadata"]["name"] = long
    vmi["metadata"]["ownerReferences"][0]["name"] = long
    pod["metadata"]["labels"] |= {"vm.kubevirt.io/name": "a" * 63, "kubevirt.io/domain": "another"}
    pod["metadata"]["annotations"]["kubevirt.io/domain"] = "another"
    result = found(pod, vmi)
    assert (result.vm.name, result.vmi, result.hostname) == (long, long, "a" * 63)


def test_an_instance_that_has_lost_its_vm_is_known_by_its_pods() -> None:
    pod, vmi = started("vm-a")
    assert found(pod, vmi).pods == frozenset()
    # As a deletion with --cascade=orphan leaves it.
    del vmi["metadata"]["ownerReferences"]
    vmi["status"]["activePods"] = {"pod-uid": "node1"}
    assert found(pod, vmi).pods == {"pod-uid"}


def test_an_instance_of_its_own_is_its_own_vm() -> None:
    pod, vmi = started("vmi-alone")
    uid = vmi["metadata"]["uid"]
    assert found(pod, vmi).vm == VM("default", "vmi-alone", uid, "eth0", ACTIVE)
    # Those of a replica set as well: the set is not the VM.
    reference: Document = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceReplicaSet"}
    reference |= {"name": "set", "uid": "u", "controller": True}
    vmi["metadata"]["ownerReferences"] = [reference]
    assert found(pod, vmi).vm.name == "vmi-alone"


def foreign_owner(**changes: Any) -> Document:
    pod = captured("pod-source-vm-a")
    pod["metadata"]["ownerReferences"][0] |= changes
    return pod


def mirror() -> Document:
    pod = captured("pod-source-vm-a")
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "0b8a"
    return pod


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(captured("pod-hotplug-volume"), id="hp-volume"),
        pytest.param({"metadata": {"name": "web", "namespace": "default", "uid": "u"}}, id="plain"),
        pytest.param(foreign_owner(apiVersion="apps/v1", kind="StatefulSet"), id="stateful set"),
        pytest.param(foreign_owner(controller=False), id="owner that is no controller"),
        pytest.param(foreign_owner(apiVersion="kubevirt.io.example.org/v1"), id="other group"),
        pytest.param(foreign_owner(apiVersion="v1"), id="core group"),
        pytest.param(foreign_owner(kind="VirtualMachine"), id="other kind"),
        pytest.param(mirror(), id="mirror"),
    ],
)
def test_any_other_pod_is_no_vm(pod: Document) -> None:
    assert launcher.owner(pod) is None
    assert subject(pod, captured("vmi-vm-a"), "eth0") is None


def test_an_instance_with_another_uid_is_not_the_pods() -> None:
    pod, vmi = started("vm-a")
    vmi["metadata"]["uid"] = "new"
    with pytest.raises(CNIError) as caught:
        subject(pod, vmi, "eth0")
    assert caught.value.code == 11
    assert caught.value.msg == (
        "pod default/virt-launcher-vm-a-ckmh4 belongs to VirtualMachineInstance vm-a with the UID "
        "91cab18b-9bfc-4f20-9359-5552755a545a, and the Kubernetes API has one with the UID new"
    )


# -- the role


def source() -> Document:
    return captured("pod-source-vm-a")


def target() -> Document:
    return captured("pod-migration-target-vm-a")


def on(node: str, pod: Document, **labels: str) -> Document:
    pod["spec"]["nodeName"] = node
    pod["metadata"]["labels"] |= labels
    return pod


def running_on(node: str, **state: Any) -> Document:
    vmi = migration("vm-a", "4-running")
    vmi["status"]["nodeName"] = node
    vmi["status"]["migrationState"] |= state
    return vmi


def provisioning(pod: Document, value: str = "true") -> Document:
    pod["metadata"]["annotations"]["kubevirt.io/ephemeral-provisioning"] = value
    return pod


COMPLETED: Document = {"completed": True, "endTimestamp": "2026-11-28T15:50:00Z"}
LATER = {MIGRATION: "m2"}


@pytest.mark.parametrize(
    ("pod", "vmi", "role"),
    [
        pytest.param(source(), captured("vmi-vm-a"), ACTIVE, id="first start, on no node yet"),
        pytest.param(source(), migration("vm-a", "1-scheduling"), ACTIVE, id="source, scheduling"),
        pytest.param(target(), migration("vm-a", "1-scheduling"), TARGET, id="target, no migrationState"),
        pytest.param(target(), migration("vm-a", "2-target-running"), TARGET, id="target running"),
        pytest.param(target(), migration("vm-a", "3-target-ready"), TARGET, id="target ready"),
        pytest.param(target(), migration("vm-a", "4-running"), TARGET, id="migration running"),
        pytest.param(source(), migration("vm-a", "4-running"), ACTIVE, id="source, running"),
        pytest.param(target(), migration("vm-a", "5-end"), ACTIVE, id="target, succeeded"),
        pytest.param(
            on("node3", target(), **LATER),
            running_on("node2", **COMPLETED, migrationUid="m1"),
            TARGET,
            id="the former migration's state is still there",
        ),
        pytest.param(
            target(),
            running_on("node1", **COMPLETED, failed=True),
            TARGET,
            id="failed, which completes as well",
        ),
        pytest.param(
            target(),
            running_on("node1", mode="PostCopy", targetNodeDomainReadyTimestamp="2026-11-28T15:50:00Z"),
            TARGET,
            id="post-copy: on the target, and its node is still the source",
        ),
        pytest.param(
            on("node1", target(), **LATER),
            running_on("node2", **COMPLETED),
            TARGET,
            id="back to the first node",
        ),
        pytest.param(
            on("node1", target(), **LATER), running_on("node1", **COMPLETED), ACTIVE, id="back, succeeded"
        ),
        pytest.param(
            on("node3", target(), **LATER),
            running_on("node2", **COMPLETED),
            TARGET,
            id="the second target, while the first source still ends",
        ),
        pytest.param(
            target(), running_on("node2", **COMPLETED), ACTIVE, id="the first target, now a source"
        ),
        pytest.param(
            on("node2", source()), captured("vmi-vm-a"), ACTIVE, id="restart while the old pod still ends"
        ),
        pytest.param(
            target(), captured("vmi-vm-a"), TARGET, id="decentralised: the instance has been on no node here"
        ),
        pytest.param(provisioning(source()), captured("vmi-vm-a"), TEMP, id="storage that waits for a pod"),
        pytest.param(provisioning(source(), "false"), captured("vmi-vm-a"), ACTIVE, id="no such storage"),
        pytest.param(
            provisioning(target()),
            migration("vm-a", "1-scheduling"),
            TARGET,
            id="a template may claim anything",
        ),
    ],
)
def test_a_target_is_a_migrations_pod_while_the_vm_is_on_another_node(
    pod: Document, vmi: Document, role: str
) -> None:
    result = found(pod, vmi)
    assert result.role == role
    assert result.migration == (pod["metadata"]["labels"][MIGRATION] if role == TARGET else "")


def test_the_source_nodes_name_on_the_target_counts_for_nothing() -> None:
    pod = target()
    assert pod["metadata"]["labels"]["kubevirt.io/nodeName"] == "node1"
    assert found(pod, migration("vm-a", "1-scheduling")).node == "node2"


def test_no_annotation_makes_a_target() -> None:
    pod = source()
    pod["metadata"]["annotations"]["kubevirt.io/migrationJobName"] = "own"
    assert found(pod, migration("vm-a", "1-scheduling") | {"status": {"nodeName": "node9"}}).role == ACTIVE


# -- the interface


@pytest.mark.parametrize(
    ("machine", "ifname", "network"),
    [
        ("vm-a", "eth0", "default"),
        ("vm-a", "pod094a367b026", "lan"),
        ("vm-a", "net1", "lan"),
        ("vm-a", "net2", ""),
        ("vm-a", "pod000000000000", ""),
        ("vm-twice", names.hashed("x"), "x"),
        ("vm-twice", names.hashed("y"), "y"),
        ("vm-twice", "net2", "y"),
        ("vm-primary", "eth0", "prim"),
        ("vm-primary-br", "eth0", "prim"),
        ("vm-primary-br", "net1", "lan"),
        ("vm-primary-br", names.hashed("lan"), "lan"),
        ("vm-plugin", names.hashed("served"), "served"),
        ("vm-plugin", names.hashed("di"), "di"),
    ],
)
def test_an_interface_is_that_of_a_network_of_the_spec(machine: str, ifname: str, network: str) -> None:
    result = of(machine, ifname)
    assert (result.vm.interface, result.network) == (ifname, network)


def test_every_element_of_the_annotation_is_a_network_of_the_spec() -> None:
    assert of("vm-twice", "pod2d711642b72").network == "x"
    assert of("vm-twice", "poda1fce436385").network == "y"


def test_a_binding_says_which_network_it_is_for() -> None:
    assert of("vm-plugin", "net1", "default").network == "default"
    assert of("vm-plugin", "net1", "unknown").network == "served"


def test_a_nic_that_was_plugged_in_has_its_network() -> None:
    vmi = migration("vm-a", "5-end")
    vmi["spec"]["networks"].append({"multus": {"networkName": "plain"}, "name": "hot"})
    pod = captured("pod-after-nic-hotplug")
    assert found(pod, vmi, names.hashed("hot")).network == "hot"


def changed(machine: str, edit: Callable[[Document], None]) -> tuple[Document, Document]:
    pod, vmi = started(machine)
    edit(vmi)
    return pod, vmi


def sets_mac(vmi: Document) -> None:
    vmi["spec"]["domain"]["devices"]["interfaces"][0]["macAddress"] = "02:00:00:00:00:99"


def reports(infosource: str) -> Callable[[Document], None]:
    def edit(vmi: Document) -> None:
        reported = {"name": "x", "mac": "02:00:00:00:00:98", "infoSource": infosource}
        vmi["status"]["interfaces"] = [reported, {"mac": "02:00:00:00:00:97", "infoSource": "guest-agent"}]

    return edit


@pytest.mark.parametrize(
    ("objects", "ifname", "macs"),
    [
        pytest.param(started("vm-a"), "pod094a367b026", ["02:00:00:00:00:0a"], id="bridge"),
        pytest.param(started("vm-a"), "eth0", [], id="none"),
        pytest.param(changed("vm-a", sets_mac), "eth0", [], id="masquerade: it never leaves the pod"),
        pytest.param(changed("vm-br", sets_mac), "eth0", ["02:00:00:00:00:99"], id="bridge, pod network"),
        pytest.param(started("vm-primary-br"), "eth0", ["02:00:00:00:00:0d"], id="Multus' default network"),
        pytest.param(started("vm-plugin"), "eth0", ["02:00:00:00:00:0b"], id="binding plugin"),
        pytest.param(
            changed("vm-twice", reports("domain")), names.hashed("x"), ["02:00:00:00:00:98"], id="reported"
        ),
        pytest.param(
            changed("vm-twice", reports("domain, guest-agent")),
            names.hashed("x"),
            ["02:00:00:00:00:98"],
            id="reported by both",
        ),
        pytest.param(
            changed("vm-twice", reports("guest-agent")), names.hashed("x"), [], id="the guest's word alone"
        ),
        pytest.param(changed("vm-twice", reports("domain")), names.hashed("y"), [], id="another's"),
    ],
)
def test_the_mac_is_the_specs_then_the_one_reported(
    objects: tuple[Document, Document], ifname: str, macs: list[str]
) -> None:
    assert [each.mac for each in found(*objects, ifname).macs] == macs


def test_a_mac_says_where_it_comes_from() -> None:
    pod, vmi = started("vm-a")
    vmi["status"]["interfaces"] = [{"name": "lan", "mac": "02:00:00:00:00:98", "infoSource": "domain"}]
    where = "VirtualMachineInstance default/vm-a"
    assert found(pod, vmi, "pod094a367b026").macs == (
        MacSource("02:00:00:00:00:0a", f"{where}: macAddress of interface lan"),
        MacSource("02:00:00:00:00:98", f"{where}: status of interface lan"),
    )


@pytest.mark.parametrize(("machine", "yields"), [("vm-a", False), ("vm-plugin", True), ("vm-br", False)])
def test_a_binding_plugins_mac_may_yield(machine: str, yields: bool) -> None:
    assert of(machine).mac_yields is yields


@pytest.mark.parametrize(
    ("machine", "hostname"), [("vm-a", "vm-a"), ("dotted.vm.name", "my-host"), ("vmi-alone", "vmi-alone")]
)
def test_the_guest_is_called_as_the_spec_says_or_by_the_first_label(machine: str, hostname: str) -> None:
    assert of(machine).hostname == hostname
    assert domains.cleaned(hostname) == hostname
    # KubeVirt gives the pod the same name.
    assert captured(f"pod-source-{machine}")["spec"]["hostname"] == hostname


def test_a_record_keeps_who_it_was_and_the_role() -> None:
    result = found(target(), migration("vm-a", "1-scheduling"))
    assert result.recorded() == RecordedVM(
        namespace="default",
        name="vm-a",
        uid="6872abbb-50f2-46d8-a9ab-06adb435f608",
        vmi="vm-a",
        vmi_uid="91cab18b-9bfc-4f20-9359-5552755a545a",
        pod_uid="bf128f52-7b4d-41c6-ba5d-7b3227ca1a60",
        role=TARGET,
        migration="d8977b59-3967-4e23-aa47-b890a9b1745f",
    )


def test_outside_kubernetes_the_subject_is_what_the_caller_says() -> None:
    vm = VM("prod", "web.example", "u", "net1", TARGET)
    result = launcher.explicit(vm)
    assert (result.vm, result.role, result.hostname, result.macs) == (vm, TARGET, "web", ())
    assert result.recorded() == RecordedVM("prod", "web.example", "u", role=TARGET)


@pytest.mark.parametrize("document", [{}, {"metadata": {"ownerReferences": None}}, {"metadata": []}])
def test_a_pod_without_metadata_is_no_vm(document: Document) -> None:
    assert launcher.owner(document) is None
