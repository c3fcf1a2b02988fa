"""A VM's addresses from its first pod to its deletion: real agents, the controller, KubeVirt's objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnvnet.ipam.store.holds import RELEASING, Hold, Holds
from cnvnet.vm import names
from tests import harness
from tests.e2e.agent_nodes import IPAM, AgentNode, running_node
from tests.e2e.agent_stores import reserved
from tests.e2e.api import ApiError
from tests.e2e.cnvnet_objects import CONTROLLER, LEASES, SYSTEM
from tests.e2e.control_plane import ControlPlane
from tests.e2e.controller_process import Process, running_controller
from tests.e2e.kubevirt_objects import INSTANCES, LAUNCHERS, MACHINES, STAGES, KubeVirt, Running
from tests.e2e.machine import eventually
from tests.functional.bridge.bridge_network import ruleset
from tests.harness import Outcome, Sandbox

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

LAN, MORE = names.hashed("lan"), names.hashed("more")
MAC = "02:00:00:00:02:01"
NODES = "/api/v1/nodes"
NOT_FOUND = 404
# Of a network: a range of one address, which the next pod gets as well.
ONE: Document = {"ipam": {**IPAM, "rangeStart": "10.7.0.200", "rangeEnd": "10.7.0.200"}}
# Seconds for what two sweeps and the grace period find.
SWEPT = 30.0


class Attached(NamedTuple):
    """A pod's interface, as its runtime knows it."""

    node: AgentNode
    pod: Document
    sandbox: Sandbox
    ifname: str
    network: str
    # What its ADD has answered.
    ip: str
    port: str

    @property
    def container_id(self) -> str:
        return f"{self.pod['metadata']['uid']}-sandbox"

    def delete(self) -> None:
        """The DEL, whatever has become of the pod."""
        self.node.call(
            "DEL",
            self.pod,
            self.sandbox,
            container_id=self.container_id,
            network=self.network,
            ifname=self.ifname,
        ).ok()

    @property
    def hold(self) -> Hold | None:
        return Holds(str(self.node.host.statedir)).get(self.network, self.container_id, self.ifname)

    @property
    def is_fenced(self) -> bool:
        """Whether the kernel of the node drops its port's frames."""
        return "cnv_fence" in (shown := ruleset(self.node.host)) and f'"{self.port}"' in shown


class Cluster:
    """Two nodes, and one tenant, whose namespace the network is called after."""

    def __init__(self, control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str) -> None:
        self.control_plane = control_plane
        self.kubevirt = kubevirt
        self.api = control_plane.api
        self.tenant = tenant

    def call(
        self, node: AgentNode, pod: Document, ifname: str = LAN, **more: Any
    ) -> tuple[Outcome, Sandbox]:
        sandbox = node.host.pod()
        container_id = f"{pod['metadata']['uid']}-sandbox"
        network = more.pop("network", self.tenant)
        return node.call(
            "ADD", pod, sandbox, container_id=container_id, network=network, ifname=ifname, **more
        ), sandbox

    def add(self, node: AgentNode, pod: Document, ifname: str = LAN, **more: Any) -> Attached:
        """An ADD that has to succeed."""
        network = more.get("network", self.tenant)
        outcome, sandbox = self.call(node, pod, ifname, **more)
        result = outcome.ok()
        (ip,) = (each["address"].partition("/")[0] for each in result["ips"])
        return Attached(node, pod, sandbox, ifname, network, ip, result["interfaces"][1]["name"])

    def refusal(self, node: AgentNode, pod: Document, **more: Any) -> tuple[int, str]:
        """The code and the words of an ADD that fails, and of the DEL that a runtime sends then."""
        network = more.get("network", self.tenant)
        outcome, sandbox = self.call(node, pod, **more)
        error = outcome.error()
        container_id = f"{pod['metadata']['uid']}-sandbox"
        node.call("DEL", pod, sandbox, container_id=container_id, network=network, ifname=LAN).ok()
        return error["code"], error["msg"]

    def start(self, node: AgentNode, name: str = "web", **options: Any) -> Running:
        machine = self.kubevirt.create_machine(self.tenant, name, mac=options.pop("mac", MAC), **options)
        return self.kubevirt.start(machine, node.name)

    def start_again(self, running: Running, node: AgentNode) -> Running:
        """The instance is another one; the old pod still ends."""
        self.end_instance(running)
        return self.kubevirt.start(running.machine, node.name)

    def end_instance(self, running: Running) -> None:
        path = f"{INSTANCES.format(self.tenant)}/{running.name}"
        self.api.patch(path, {"metadata": {"finalizers": None}})
        self.api.delete(path)
        eventually(lambda: self.api.find(path) is None, "the instance is gone")

    def delete_machine(self, running: Running, **options: Any) -> None:
        """The VirtualMachine alone, whatever runs."""
        path = f"{MACHINES.format(self.tenant)}/{running.name}"
        self.api.patch(path, {"metadata": {"finalizers": None}})
        self.api.delete(path, **options)
        eventually(lambda: self.api.find(path) is None, "the VM is gone")

    def end_pod(self, pod: Document) -> None:
        """As `kubectl delete --force` does it; the garbage collector may have been faster."""
        path = f"{LAUNCHERS.format(self.tenant)}/{pod['metadata']['name']}"
        try:
            self.api.delete(path, gracePeriodSeconds=0)
        except ApiError as e:
            if e.code != NOT_FOUND:
                raise

    def leases(self) -> list[Document]:
        listed: list[Document] = self.api.get(LEASES.format(self.tenant))["items"]
        return listed

    def holders(self) -> dict[str, str]:
        """The pods' nodes and roles by the names of the pods."""
        found: dict[str, str] = {}
        for status in (document["status"] for document in self.leases()):
            holders: Document = status.get("holders") or {}
            for key, each in holders.items():
                found[str(each["pod"]).partition("/")[2]] = f"{each['node']} {status['roles'][key]}"
        return found

    def reserved(self) -> set[str]:
        """The addresses of IP."""
        return {each for each in reserved(self.control_plane, self.tenant) if each.count(":") != 5}

    def wait_until_free(self) -> None:
        eventually(lambda: (self.leases(), self.reserved()) == ([], set()), "all is free", seconds=SWEPT)


@pytest.fixture(scope="module")
def through_own_agents() -> Iterator[None]:
    # The agents of these tests have credentials; the harness' own would have none.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(harness, "through", "")
        yield


@pytest.fixture(scope="module")
def nodes(
    control_plane: ControlPlane, through_own_agents: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[AgentNode, AgentNode]]:
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as undo:
        one, two = (
            undo.enter_context(running_node(control_plane, name, folder / name))
            for name in ("node-1", "node-2")
        )
        yield one, two


@pytest.fixture
def cluster(control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str) -> Cluster:
    return Cluster(control_plane, kubevirt, tenant)


@pytest.fixture(scope="module")
def kubeconfig(control_plane: ControlPlane) -> Iterator[Path]:
    """The controller's, as a cluster gives it one."""
    pod = control_plane.create_pod(SYSTEM, "controller-of-life-cycles", "node-1", CONTROLLER)
    yield control_plane.kubeconfig(control_plane.token(SYSTEM, CONTROLLER, pod))
    path = f"/api/v1/namespaces/{SYSTEM}/pods/{pod['metadata']['name']}"
    control_plane.api.delete(path, gracePeriodSeconds=0)


@pytest.fixture
def controller(kubeconfig: Path, tmp_path: Path) -> Iterator[Process]:
    with running_controller(kubeconfig, tmp_path / "controller.log") as running:
        yield running


Nodes = tuple[AgentNode, AgentNode]


def test_a_restart_keeps_the_address_while_the_old_pod_still_ends(
    cluster: Cluster, nodes: Nodes, controller: Process
) -> None:
    one, two = nodes
    running = cluster.start(one)
    first = cluster.add(one, running.pod)
    again = cluster.start_again(running, two)
    second = cluster.add(two, again.pod)
    assert second.ip == first.ip
    assert again.instance["metadata"]["uid"] != running.instance["metadata"]["uid"]
    ended, begun = (each["metadata"]["name"] for each in (running.pod, again.pod))
    assert cluster.holders() == {ended: "node-1 leaving", begun: "node-2 active"}
    first.delete()
    assert cluster.holders() == {begun: "node-2 active"}
    assert cluster.reserved() == {second.ip}
    second.delete()
    cluster.end_instance(again)
    # Stopped, its address is kept; and it goes with the VM.
    assert (cluster.holders(), cluster.reserved()) == ({}, {second.ip})
    cluster.end_pod(running.pod)
    cluster.end_pod(again.pod)
    cluster.delete_machine(again)
    cluster.wait_until_free()


def test_a_vm_that_is_made_anew_waits_for_the_last_pod_of_the_former_one(
    cluster: Cluster, nodes: Nodes, controller: Process
) -> None:
    one, two = nodes
    former = cluster.start(one)
    first = cluster.add(one, former.pod)
    cluster.end_instance(former)
    cluster.delete_machine(former)
    eventually(lambda: "deletionTimestamp" in cluster.leases()[0]["metadata"], "the lease is marked")
    anew = cluster.start(two)
    code, text = cluster.refusal(two, anew.pod)
    pod = f"{cluster.tenant}/{former.pod['metadata']['name']}"
    assert (code, f"still has {first.ip} in pod {pod}" in text) == (11, True), text
    (old,) = cluster.leases()
    # The pod leaves the API, and its namespace is still there.
    cluster.end_pod(former.pod)
    code, text = cluster.refusal(two, anew.pod)
    assert (code, f"still has {first.ip}" in text) == (11, True), text
    assert cluster.reserved() == {first.ip}
    first.delete()
    eventually(lambda: cluster.call(two, anew.pod)[0].code == 0, "the new VM has an address", seconds=SWEPT)
    (new,) = cluster.leases()
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["spec"]["vmUID"] == anew.machine["metadata"]["uid"]
    second = cluster.add(two, anew.pod)
    assert cluster.reserved() == {second.ip}
    second.delete()
    cluster.end_instance(anew)
    cluster.end_pod(anew.pod)
    cluster.delete_machine(anew)
    cluster.wait_until_free()


def test_a_vm_that_is_deleted_while_it_moves_is_freed_with_its_last_pod(
    cluster: Cluster, nodes: Nodes, controller: Process
) -> None:
    one, two = nodes
    running = cluster.start(one)
    source = cluster.add(one, running.pod)
    migrating = cluster.kubevirt.migrate(running, "node-2")
    target = cluster.add(two, migrating.target)
    assert target.ip == source.ip
    cluster.end_instance(running)
    cluster.delete_machine(running)
    for pod in (running.pod, migrating.target):
        cluster.end_pod(pod)
    source.delete()
    assert list(cluster.holders()) == [migrating.target["metadata"]["name"]]
    # Two sweeps and the grace period change nothing while the target's namespace is there.
    swept = len(controller.lines("holder ended"))
    eventually(lambda: "deletionTimestamp" in cluster.leases()[0]["metadata"], "the lease is marked")
    assert cluster.reserved() == {source.ip}
    assert len(controller.lines("holder ended")) == swept
    target.delete()
    cluster.wait_until_free()


def test_an_evicted_and_a_force_deleted_pod_keep_the_address_until_their_del(
    cluster: Cluster, nodes: Nodes, controller: Process
) -> None:
    one, two = nodes
    running = cluster.start(one)
    evicted = cluster.add(one, running.pod)
    path = f"{LAUNCHERS.format(cluster.tenant)}/{running.pod['metadata']['name']}"
    cluster.api.patch(f"{path}/status", {"status": {"phase": "Failed", "reason": "Evicted"}})
    assert list(cluster.holders().values()) == ["node-1 active"]
    evicted.delete()
    assert (cluster.holders(), cluster.reserved()) == ({}, {evicted.ip})
    again = cluster.start_again(running, two)
    forced = cluster.add(two, again.pod)
    assert forced.ip == evicted.ip
    cluster.end_pod(running.pod)
    cluster.end_pod(again.pod)
    # Its namespace is there: the VM may start elsewhere, and nothing else gets the address.
    third = cluster.start_again(again, one)
    last = cluster.add(one, third.pod)
    assert sorted(cluster.holders().values()) == ["node-1 active", "node-2 leaving"]
    assert last.ip == forced.ip
    forced.delete()
    last.delete()
    cluster.end_instance(third)
    cluster.end_pod(third.pod)
    cluster.delete_machine(third)
    cluster.wait_until_free()


def test_an_address_outlives_agents_and_controller_that_are_down_during_all_of_it(
    cluster: Cluster, nodes: Nodes, kubeconfig: Path, tmp_path: Path
) -> None:
    one, two = nodes
    running = cluster.start(one)
    first = cluster.add(one, running.pod)
    one.agent.kill()
    try:
        cluster.end_instance(running)
        cluster.delete_machine(running)
        cluster.end_pod(running.pod)
        eventually(lambda: "deletionTimestamp" in cluster.leases()[0]["metadata"], "the lease is marked")
        anew = cluster.start(two)
        assert cluster.refusal(two, anew.pod)[0] == 11
        # An executable without credentials: the DEL succeeds, and is queued.
        delete_alone(first)
        assert first.hold is not None
        assert first.hold.state == RELEASING
        assert cluster.reserved() == {first.ip}
    finally:
        one.agent.start()
    eventually(lambda: first.hold is None, "the agent has released it")
    assert (cluster.holders(), cluster.reserved()) == ({}, {first.ip})
    with running_controller(kubeconfig, tmp_path / "controller.log"):
        eventually(lambda: cluster.call(two, anew.pod)[0].code == 0, "the new VM has one", seconds=SWEPT)
        second = cluster.add(two, anew.pod)
        second.delete()
        cluster.end_instance(anew)
        cluster.end_pod(anew.pod)
        cluster.delete_machine(anew)
        cluster.wait_until_free()


def delete_alone(attached: Attached) -> None:
    """The DEL by the executable itself."""
    host = attached.node.host
    config = {"cniVersion": "1.1.0", "name": attached.network, "type": "cnv-bridge", "bridge": "br0"}
    done = host.cni(
        "cnv-bridge",
        "DEL",
        config | {"ipam": {"type": "static-ip", "subnet": "10.7.0.0/24"}},
        attached.sandbox,
        container_id=attached.container_id,
        ifname=attached.ifname,
        env={"CNVNET_AGENT": "off"},
    )
    assert done.code == 0, done


def test_an_interface_that_is_plugged_in_and_out_ends_alone(
    cluster: Cluster, nodes: Nodes, controller: Process
) -> None:
    one, _ = nodes
    running = cluster.start(one)
    first = cluster.add(one, running.pod)
    more = cluster.add(one, running.pod, MORE)
    assert cluster.reserved() == {first.ip, more.ip}
    more.delete()
    # Its address is the VM's, for when it is plugged in again.
    assert (len(cluster.holders()), cluster.reserved()) == (1, {first.ip, more.ip})
    again = cluster.add(one, running.pod, MORE)
    assert again.ip == more.ip
    again.delete()
    first.delete()
    cluster.end_instance(running)
    cluster.end_pod(running.pod)
    cluster.delete_machine(running)
    cluster.wait_until_free()


def test_a_copy_in_another_namespace_gets_neither_the_address_nor_the_mac(
    cluster: Cluster, nodes: Nodes, control_plane: ControlPlane
) -> None:
    """As Velero restores a VM into another namespace: the same MAC, and the same request for an address."""
    one, two = nodes
    wanted = {"cnvnet.io/ip_address.lan": "10.7.0.77"}
    running = cluster.start(one, annotations=wanted)
    first = cluster.add(one, running.pod)
    assert first.ip == "10.7.0.77"
    network = f"/apis/cnvnet.io/v1alpha1/ipnetworks/{cluster.tenant}"
    copied = Cluster(control_plane, cluster.kubevirt, f"{cluster.tenant}-copy")
    control_plane.add_namespace(copied.tenant)
    try:
        cluster.api.patch(network, {"spec": {"namespaces": [cluster.tenant, copied.tenant]}})
        holder = f"held by VM {cluster.tenant}/web ({LAN}) in pod {first.pod['metadata']['namespace']}/"

        def is_refused(pod: Document, what: str) -> bool:
            # The network's object may be the one before for half a minute: that is another refusal.
            code, text = copied.refusal(two, pod, network=cluster.tenant)
            return code == 7 and f"{what} is {holder}" in text

        for what, annotations in (("10.7.0.77", wanted), (MAC, {})):
            copy = copied.start(two, annotations=annotations)
            eventually(partial(is_refused, copy.pod, what), f"{what} is refused", seconds=90)
            copied.end_instance(copy)
            copied.end_pod(copy.pod)
            copied.delete_machine(copy)
        eventually(lambda: copied.leases() == [], "nothing is left of it", seconds=SWEPT)
    finally:
        control_plane.api.delete(f"/api/v1/namespaces/{copied.tenant}")
    first.delete()


class LostNode(NamedTuple):
    """A node that its cluster loses; its agent and its pods go on."""

    node: AgentNode
    folder: Path


@pytest.fixture
def lost(
    control_plane: ControlPlane, through_own_agents: None, tmp_path: Path, tenant: str
) -> Iterator[LostNode]:
    name = f"lost-{tenant[-8:]}"
    control_plane.add_node(name)
    with running_node(control_plane, name, tmp_path / name) as node:
        yield LostNode(node, tmp_path / name)
    path = f"/api/v1/namespaces/{SYSTEM}/pods/agent-{name}"
    if control_plane.api.find(path):
        control_plane.api.delete(path, gracePeriodSeconds=0)
    if control_plane.api.find(f"{NODES}/{name}"):
        control_plane.api.delete(f"{NODES}/{name}")


def lose(cluster: Cluster, lost: LostNode, *pods: Document) -> None:
    """The node hears of nothing any more; its Node is deleted, and then its pods are."""
    lost.node.proxy.stop()
    cluster.api.delete(f"{NODES}/{lost.node.name}")
    for pod in pods:
        cluster.end_pod(pod)


def test_a_node_that_was_lost_and_comes_back_fences_what_is_elsewhere(
    cluster: Cluster, nodes: Nodes, controller: Process, lost: LostNode
) -> None:
    """The Node is made anew under its name, and finds its old state folder."""
    _, two = nodes
    running = cluster.start(lost.node)
    first = cluster.add(lost.node, running.pod)
    plain = cluster.control_plane.create_pod(cluster.tenant, "db-0", lost.node.name)
    of_plain = cluster.add(lost.node, plain, "net1", **ONE)
    lose(cluster, lost, running.pod, plain)
    eventually(lambda: cluster.holders() == {}, "the holder has ended", seconds=SWEPT)
    eventually(lambda: cluster.reserved() == {first.ip}, "the pod's address is free", seconds=SWEPT)
    again = cluster.start_again(running, two)
    second = cluster.add(two, again.pod)
    assert second.ip == first.ip
    # A StatefulSet's new pod has the name of the one that was lost, and here its address.
    anew = cluster.control_plane.create_pod(cluster.tenant, "db-0", two.name)
    of_anew = cluster.add(two, anew, "net1", **ONE)
    assert of_anew.ip == of_plain.ip
    kept = reserved(cluster.control_plane, cluster.tenant)
    assert not first.is_fenced

    cluster.control_plane.add_node(lost.node.name)
    lost.node.proxy.start()
    eventually(lambda: first.is_fenced and of_plain.is_fenced, "the ports are fenced", seconds=60)
    assert first.hold is not None
    assert f"on node {two.name}, and pod" in first.hold.dispute
    assert of_plain.hold is not None
    assert f"{of_plain.ip} of container" in of_plain.hold.dispute
    # Nothing of what is elsewhere has changed.
    assert list(cluster.holders().values()) == ["node-2 active"]
    assert reserved(cluster.control_plane, cluster.tenant) == kept
    said = [event for event in lost.node.agent.events() if "the pod is fenced" in event["msg"]]
    assert {event["addresses"] for event in said} == {first.ip, of_plain.ip}
    shown = json.loads(cnvctl(lost.node, "status"))
    assert shown["disputes"]["fenced"] == 2

    # The kubelet ends what the API does not have: the fence goes with it.
    first.delete()
    of_plain.delete()
    eventually(lambda: "cnv_fence" not in ruleset(lost.node.host), "no fence is left", seconds=60)
    assert reserved(cluster.control_plane, cluster.tenant) == kept
    for attached in (second, of_anew):
        attached.delete()
        cluster.end_pod(attached.pod)
    cluster.end_instance(again)
    cluster.delete_machine(again)
    cluster.wait_until_free()


def cnvctl(node: AgentNode, *command: str) -> str:
    """What it prints on the node, whatever its exit code."""
    done = node.host.run(
        "env",
        f"CNVNET_RUNDIR={node.host.rundir}",
        f"CNVNET_STATEDIR={node.host.statedir}",
        harness.installed("cnvctl"),
        *command,
        "-o",
        "json",
        check=False,
    )
    return str(done.stdout)


def test_a_node_that_is_made_anew_with_an_empty_state_folder_begins_anew(
    cluster: Cluster, controller: Process, lost: LostNode, control_plane: ControlPlane
) -> None:
    running = cluster.start(lost.node)
    first = cluster.add(lost.node, running.pod)
    lose(cluster, lost, running.pod)
    eventually(lambda: cluster.holders() == {}, "the holder has ended", seconds=SWEPT)
    control_plane.add_node(lost.node.name)
    with running_node(control_plane, lost.node.name, lost.folder.with_name("anew")) as node:
        again = cluster.start_again(running, node)
        second = cluster.add(node, again.pod)
        assert second.ip == first.ip
        assert list(cluster.holders().values()) == [f"{node.name} active"]
        # A DEL of what an earlier life of the node had ends nothing of it.
        first._replace(node=node).delete()
        assert list(cluster.holders().values()) == [f"{node.name} active"]
        second.delete()
    cluster.end_instance(again)
    cluster.end_pod(again.pod)
    cluster.delete_machine(again)
    cluster.wait_until_free()


def test_a_move_of_an_orphaned_instance_keeps_its_address(
    cluster: Cluster, nodes: Nodes, controller: Process
) -> None:
    """The VM was deleted with --cascade=orphan: its instance runs on, and may move."""
    one, two = nodes
    running = cluster.start(one)
    source = cluster.add(one, running.pod)
    cluster.delete_machine(running, propagationPolicy="Orphan")
    path = f"{INSTANCES.format(cluster.tenant)}/{running.name}"
    eventually(lambda: not cluster.api.get(path)["metadata"].get("ownerReferences"), "it has no owner")
    migrating = cluster.kubevirt.migrate(running, "node-2")
    target = cluster.add(two, migrating.target)
    assert target.ip == source.ip
    cluster.kubevirt.advance(migrating, STAGES[-1])
    source.delete()
    assert list(cluster.holders()) == [migrating.target["metadata"]["name"]]
    assert cluster.reserved() == {target.ip}
    target.delete()
    for pod in (running.pod, migrating.target):
        cluster.end_pod(pod)
    cluster.end_instance(running)
    cluster.wait_until_free()
