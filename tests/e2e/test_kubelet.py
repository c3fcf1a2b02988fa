"""The plugins as a kubelet has them called: by containerd and Multus, for pods of a real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cnvnet.vm import names
from scripts.guest.machine import Nic, QemuGuest
from tests import kubevirt
from tests.e2e.control_plane import DEFINITIONS, NADS, SERVER
from tests.e2e.guests.qemu_node import CONTENT, V4, fetch, serving
from tests.e2e.kubevirt_objects import INSTANCES, definitions
from tests.e2e.machine import eventually
from tests.e2e.testbed import NETWORK_STATUS, NETWORKS, PODS, Node, Testbed, default_network
from tests.functional.crash.node_state import AttachmentState, attachment_state, leases
from tests.harness import Sandbox, executable

# One cluster for all of them.
pytestmark = pytest.mark.xdist_group("testbed")

CONF = Path(__file__).resolve().parents[2] / "conf"
DEFAULT = "v1.multus-cni.io/default-network"
LAN = names.hashed("lan")
MAC = "02:00:00:00:00:0a"
KUBECONFIG = "/var/lib/kubeconfig"


class Pod(NamedTuple):
    """A pod that runs: its name and address, its sandbox, and what the API says of its networks, by name."""

    name: str
    address: str
    container_id: str
    sandbox: Sandbox
    networks: dict[str, dict[str, Any]]

    @property
    def mac(self) -> str:
        """That of its default network, which its virtual machine has, too."""
        return str(self.networks["pods"]["mac"])


class Cluster:
    """The test bed as one test uses it: its pods and networks are gone at the end."""

    def __init__(self, testbed: Testbed, undo: ExitStack) -> None:
        self.testbed = testbed
        self.node: Node = testbed.nodes[0]
        self._undo = undo

    def define(self, name: str, config: dict[str, Any]) -> None:
        self.testbed.define(name, config)
        self._undo.callback(self.testbed.api.delete, f"{NADS}/{name}")

    def create(self, name: str, *networks: str, **annotations: str) -> None:
        asked = {NETWORKS: ",".join(networks)} if networks else {}
        self.testbed.create_pod(name, self.node, {**asked, **annotations})
        self._undo.callback(self._gone, name)

    def create_owned(self, name: str, annotations: dict[str, str], owner: dict[str, Any]) -> None:
        self.testbed.create_pod(name, self.node, annotations, owner)
        self._undo.callback(self._gone, name)

    def run(self, name: str, *networks: str, **annotations: str) -> Pod:
        self.create(name, *networks, **annotations)
        return self.running(name)

    def running(self, name: str) -> Pod:
        seen = self.testbed.wait_until_running(name)
        status = json.loads(seen["metadata"]["annotations"][NETWORK_STATUS])
        container_id = self.node.container_id(name)
        assert container_id
        sandbox = self.node.sandbox(container_id)
        networks = {network["name"]: network for network in status}
        return Pod(name, seen["status"]["podIP"], container_id, sandbox, networks)

    def replaced(self, pod: Pod) -> Pod | None:
        """The pod as it runs in another sandbox, once it does."""
        if self.node.container_id(pod.name) in (None, pod.container_id):
            return None
        now = self.running(pod.name)
        # What the API says is of the sandbox before for a while.
        return now if now.sandbox.addresses("eth0") == [f"{now.address}/24"] else None

    def refusal(self, name: str) -> str | None:
        """Why a pod has no sandbox, once that is known."""
        events = self.testbed.events(name)
        return next((event for event in events if event.startswith("FailedCreatePodSandBox: ")), None)

    def delete(self, pod: Pod) -> None:
        self.testbed.delete_pod(pod.name)

    def _gone(self, name: str) -> None:
        if self.testbed.api.find(f"{PODS}/{name}"):
            self.testbed.delete_pod(name)


class PodState(NamedTuple):
    """What pods have on a node, by the part that keeps it."""

    ours: AttachmentState
    namespaces: list[str]
    host_local: list[str]
    caches: list[str]
    programs: list[str]


def pod_state(node: Node) -> PodState:
    machine = node.machine
    cni = machine.folder / "var/lib/cni"
    caches = [*cni.glob("results/*"), *cni.glob("multus/**/*")]
    return PodState(
        ours=attachment_state(machine),
        namespaces=[mount for mount in machine.mounts() if mount.startswith("/run/netns/")],
        host_local=sorted(path.name for path in cni.glob("networks/*/*.*.*.*")),
        caches=sorted(path.name for path in caches if path.is_file()),
        programs=[name for name in machine.programs() if name not in ("kubelet", "containerd", "cat")],
    )


@pytest.fixture
def cluster(testbed: Testbed) -> Iterator[Cluster]:
    (node,) = testbed.nodes
    before = pod_state(node)
    with ExitStack() as undo:
        yield Cluster(testbed, undo)
    assert_like(before, node)


def assert_like(before: PodState, node: Node) -> None:
    """The node is as it was; containerd takes a moment longer than the API tells."""
    try:
        eventually(lambda: pod_state(node) == before, "nothing is left", seconds=30)
    except AssertionError:
        assert pod_state(node) == before


def sample(name: str) -> dict[str, Any]:
    """The configuration of a network in the sample of conf/."""
    nads = yaml.safe_load_all((CONF / "vms-nad.yaml").read_text())
    (config,) = (nad["spec"]["config"] for nad in nads if nad["metadata"]["name"] == name)
    loaded: dict[str, Any] = json.loads(config)
    return loaded


def address_of(pod: Pod, network: str) -> str:
    (address,) = pod.networks[network]["ips"]
    return str(address)


def assert_masqueraded(pod: Pod) -> None:
    """The pod has its interface, and a guest's tap behind it."""
    links = pod.sandbox.links()
    assert {"eth0", "k6t-eth0", "tap0"} <= set(links)
    assert links["tap0"]["master"] == "k6t-eth0"
    assert pod.sandbox.addresses("eth0") == [f"{pod.address}/24"]
    assert pod.sandbox.addresses("k6t-eth0") == ["10.0.2.1/24"]


def guest_in(pod: Pod) -> QemuGuest:
    return QemuGuest(pod.sandbox.netns, Nic("tap0", pod.mac, 1500))


def assert_talks(guest: QemuGuest, cluster: Cluster, pod: Pod) -> None:
    """The virtual machine in the pod reaches a host beyond the node, and is reached from there."""
    outside = cluster.testbed.control_plane.machine
    side = V4._replace(outside=SERVER)
    with serving(outside, side, 8080) as server:
        guest.run(f"mkdir -p /www; wget -q -O /www/content http://{SERVER}:8080/").ok()
    assert server.callers == [pod.address]
    guest.run("httpd -p 80 -h /www").ok()
    assert fetch(outside, side, pod.address, 80, "/content") == CONTENT


def test_a_pod_on_a_network_of_virtual_machines(cluster: Cluster) -> None:
    """Its address and MAC are those of its lease, in the kernel and in what the API tells."""
    cluster.define("vms", sample("vms"))
    pods = [cluster.run(name, "vms") for name in ("one", "two")]
    for pod in pods:
        status = pod.networks["default/vms"]
        (lease,) = (each for each in leases(cluster.node.machine) if pod.container_id in each.key)
        assert lease.key == f"vms//{pod.container_id}/net1"
        assert lease.holders == ((pod.container_id, "active"),)
        assert (status["interface"], tuple(status["ips"]), status["mac"]) == ("net1", lease.ips, lease.mac)
        assert pod.sandbox.addresses("net1") == [f"{lease.ips[0]}/24"]
        link = pod.sandbox.links()["net1"]
        assert (link["address"], link["mtu"], status["mtu"]) == (lease.mac, 1400, 1400)
        assert pod.networks["pods"]["ips"] == [pod.address]
    one, two = pods
    assert address_of(one, "default/vms") != address_of(two, "default/vms")
    one.sandbox.run("ping", "-c", "1", "-w", "20", "-I", "net1", address_of(two, "default/vms"))


def test_a_virtual_machine_behind_the_binding_of_the_default_network(cluster: Cluster) -> None:
    """As KubeVirt asks for a network binding: by a network of the pod that only masquerade is in."""
    cluster.define("vms", sample("vms"))
    cluster.define("masquerade", {"type": "masquerade"})
    pod = cluster.run("vm", "vms", "masquerade")
    # The binding reports nothing, so KubeVirt sees the pod's networks and no other.
    assert list(pod.networks) == ["pods", "default/vms"]
    assert sorted(pod.sandbox.links()) == ["eth0", "k6t-eth0", "lo", "net1", "tap0"]
    assert_masqueraded(pod)
    with guest_in(pod) as guest:
        guest.run("ip link set eth0 up; ip addr add 10.0.2.2/24 dev eth0").ok()
        guest.run("ip route add default via 10.0.2.1").ok()
        assert_talks(guest, cluster, pod)


@pytest.fixture
def resident_agent(testbed: Testbed) -> Iterator[None]:
    """The node's agent as systemd would have started it, before there is any pod and until there is none."""
    machine = testbed.nodes[0].machine
    agent = machine.start(executable("cnvnet-agent"))
    eventually(lambda: (machine.rundir / "agent.sock").exists(), "the agent listens")
    eventually(agent.children, "its packet loop runs")
    yield
    agent.terminate()


@pytest.fixture
def agent_on_demand(cluster: Cluster) -> Iterator[None]:
    """None, and whatever was started in the test is killed after it."""
    yield
    cluster.node.machine.kill_all("cnvnet.agent")


@pytest.mark.usefixtures("resident_agent")
def test_a_guest_gets_the_dns_that_kubelet_gave_its_pod(cluster: Cluster) -> None:
    cluster.define("masquerade", {"type": "masquerade", "guestServices": {}})
    pod = cluster.run("vm", "masquerade")
    with guest_in(pod) as guest:
        lease = guest.ask_dhcp()
        assert (lease["ip"], lease["mask"], lease["router"]) == ("10.0.2.2", "24", "10.0.2.1")
        assert lease["dns"] == "10.96.0.10"
        expected = ["default.svc.cluster.test", "svc.cluster.test", "cluster.test", "example.test"]
        assert lease["search"].split() == expected
        assert_talks(guest, cluster, pod)


@pytest.mark.usefixtures("agent_on_demand")
def test_an_agent_started_by_an_add_outlives_the_runtime_that_called(cluster: Cluster) -> None:
    """It is no child of containerd's, and serves the guest of a pod that goes on without containerd."""
    cluster.define("masquerade", {"type": "masquerade", "guestServices": {}})
    pod = cluster.run("vm", "masquerade")
    with guest_in(pod) as guest:
        cluster.node.restart()
        assert guest.ask_dhcp()["ip"] == "10.0.2.2"
        assert_talks(guest, cluster, pod)
    cluster.delete(pod)


def test_masquerade_in_the_list_of_the_default_network(cluster: Cluster) -> None:
    listed = [default_network(cluster.node.number), {"type": "masquerade"}]
    cluster.define("behind", {"name": "pods", "plugins": listed})
    pod = cluster.run("vm", **{DEFAULT: "behind"})
    assert sorted(pod.sandbox.links()) == ["eth0", "k6t-eth0", "lo", "tap0"]
    assert_masqueraded(pod)


def test_pods_outlive_kubelet_and_containerd_and_end_as_ever(cluster: Cluster) -> None:
    cluster.define("vms", sample("vms"))
    cluster.define("masquerade", {"type": "masquerade"})
    before = cluster.run("vm", "vms", "masquerade")
    cluster.node.restart()
    after = cluster.running("vm")
    assert (after.container_id, after.networks) == (before.container_id, before.networks)
    assert_masqueraded(after)
    other = cluster.run("other", "vms")
    assert address_of(other, "default/vms") != address_of(after, "default/vms")
    cluster.delete(after)
    other.sandbox.run("ping", "-c", "1", "-w", "20", SERVER)


def test_a_pod_whose_sandbox_dies_gets_another(cluster: Cluster) -> None:
    """kubelet deletes the attachments of the dead one and makes those of the new one."""
    cluster.define("vms", sample("vms"))
    cluster.define("masquerade", {"type": "masquerade"})
    first = cluster.run("vm", "vms", "masquerade")
    cluster.node.kill_sandbox(first.container_id)
    second = eventually(lambda: cluster.replaced(first), "another sandbox runs")
    assert_masqueraded(second)
    held = [lease.key for lease in leases(cluster.node.machine)]
    assert held == [f"vms//{second.container_id}/net1"]
    assert len(list(cluster.node.machine.rundir.glob("attachments/*.json"))) == 2


def test_many_pods_at_once(cluster: Cluster) -> None:
    cluster.define("vms", sample("vms"))
    cluster.define("masquerade", {"type": "masquerade"})
    names = [f"vm-{number}" for number in range(6)]
    for name in names:
        cluster.create(name, "vms", "masquerade")
    pods = [cluster.running(name) for name in names]
    for pod in pods:
        assert_masqueraded(pod)
    assert len({address_of(pod, "default/vms") for pod in pods}) == len(names)
    assert len({pod.networks["default/vms"]["mac"] for pod in pods}) == len(names)


def on_a_vlan() -> dict[str, Any]:
    # Whether bridges filter VLANs is the kernel's affair; this one does not.
    return {"type": "cnv-bridge", "bridge": "cni0", "vlan": 33}


def for_one_node() -> dict[str, Any]:
    return {"type": "cnv-bridge", "bridge": "br-vms", "ipam": {"type": "static-ip", "subnet": "10.1.0.0/24"}}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (on_a_vlan(), r"vlan 33: .* filter VLANs \(.*\)"),
        (for_one_node(), r"nodeLocal: .*"),
    ],
    ids=["vlan", "nodeLocal"],
)
def test_a_refusal_is_reported_by_the_pods_events(
    cluster: Cluster, config: dict[str, Any], reason: str
) -> None:
    """And what was made before the refusal is gone while kubelet tries again and again."""
    before = pod_state(cluster.node)
    cluster.define("refused", config)
    cluster.create("vm", "refused")
    event = eventually(lambda: cluster.refusal("vm"), "the pod has a failure")
    assert re.search(reason, event), event
    assert_like(before, cluster.node)


def test_a_pod_waits_for_an_address_until_there_is_one(cluster: Cluster) -> None:
    config = sample("vms")
    config["ipam"] |= {"rangeStart": "10.10.0.20", "rangeEnd": "10.10.0.20"}
    cluster.define("small", {**config, "name": "small"})
    first = cluster.run("first", "small")
    cluster.create("second", "small")
    event = eventually(lambda: cluster.refusal("second"), "there is no address for the second pod")
    assert "10.10.0.20" in event
    cluster.delete(first)
    second = cluster.running("second")
    assert address_of(second, "default/small") == "10.10.0.20"


@pytest.mark.usefixtures("resident_agent")
def test_a_virtual_machine_has_its_pods_own_address_with_vm_bridge(cluster: Cluster) -> None:
    cluster.define("bridge", {"type": "vm-bridge"})
    pod = cluster.run("vm", "bridge")
    assert list(pod.networks) == ["pods"]
    with guest_in(pod) as guest:
        lease = guest.ask_dhcp()
        assert (lease["ip"], lease["router"]) == (pod.address, "10.244.1.1")
        assert_talks(guest, cluster, pod)


@pytest.fixture
def instance(testbed: Testbed) -> Iterator[dict[str, Any]]:
    """A VirtualMachineInstance that KubeVirt has made, whose second network is `vms`."""
    _, vmi = kubevirt.started("vm-a")
    vmi["spec"]["networks"][1]["multus"]["networkName"] = "vms"
    with created(testbed, vmi) as made:
        yield made


@pytest.fixture
def primary_instance(testbed: Testbed) -> Iterator[dict[str, Any]]:
    """One that has a network of Multus in the place of the pod's own, with a MAC in its spec."""
    _, vmi = kubevirt.started("vm-primary-br")
    with created(testbed, vmi) as made:
        yield made


@contextmanager
def created(testbed: Testbed, vmi: dict[str, Any]) -> Generator[dict[str, Any]]:
    """A recorded VirtualMachineInstance in the cluster, with its definition."""
    (definition,) = definitions("virtualmachineinstances")
    for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "finalizers"):
        vmi["metadata"].pop(key)
    with ExitStack() as undo:
        testbed.control_plane.define(definition)
        undo.callback(testbed.api.delete, f"{DEFINITIONS}/{definition['metadata']['name']}")
        yield testbed.api.create(INSTANCES.format("default"), vmi)


def owned_by(instance: dict[str, Any]) -> dict[str, Any]:
    """The owner that KubeVirt writes into a launcher pod."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "name": instance["metadata"]["name"],
        "uid": instance["metadata"]["uid"],
        "controller": True,
    }


@pytest.fixture
def agent_with_credentials(testbed: Testbed) -> Iterator[None]:
    """The node's agent, with the credentials of the node."""
    node = testbed.nodes[0]
    options = (f"--kubeconfig={KUBECONFIG}", f"--node-name={node.name}")
    agent = node.machine.start(executable("cnvnet-agent"), *options)
    eventually(lambda: (node.machine.rundir / "agent.sock").exists(), "the agent listens")
    eventually(agent.children, "its packet loop runs")
    yield
    agent.terminate()


@pytest.mark.usefixtures("agent_with_credentials")
def test_a_launchers_network_has_the_lease_and_the_mac_of_its_vm(
    cluster: Cluster, instance: dict[str, Any]
) -> None:
    cluster.define("vms", sample("vms"))
    # As KubeVirt asks Multus, but for the MAC, which it leaves out of the default network only.
    element = {"name": "vms", "namespace": "default", "interface": LAN}
    annotations = {NETWORKS: json.dumps([element]), "cnvnet.io/ip_address": "10.10.0.77"}
    cluster.create_owned("virt-launcher-vm-a-abcde", annotations, owned_by(instance))
    pod = cluster.running("virt-launcher-vm-a-abcde")
    status = pod.networks["default/vms"]
    assert (status["interface"], status["ips"], status["mac"]) == (LAN, ["10.10.0.77"], MAC)
    assert pod.sandbox.links()[LAN]["address"] == MAC
    (lease,) = leases(cluster.node.machine)
    assert (lease.key, lease.mac) == (f"vms/default/vm-a/{LAN}", MAC)
    cluster.delete(pod)
    eventually(lambda: not list(leases(cluster.node.machine)), "the lease has ended with the pod")


@pytest.mark.usefixtures("agent_with_credentials")
def test_a_guest_talks_on_the_default_network_with_the_mac_of_its_vm(
    cluster: Cluster, primary_instance: dict[str, Any]
) -> None:
    """Multus is asked for no MAC there, and the guard lets no other one pass than the port's."""
    interfaces = primary_instance["spec"]["domain"]["devices"]["interfaces"]
    mac = next(each["macAddress"] for each in interfaces if each["name"] == "prim")
    number = cluster.node.number
    subnet = {"subnet": f"10.244.{number}.0/24", "rangeStart": f"10.244.{number}.200", "nodeLocal": True}
    port = {"type": "cnv-bridge", "bridge": "cni0", "isDefaultGateway": True, "macspoofchk": True}
    plugins: list[dict[str, Any]] = [
        {**port, "ipam": {"type": "static-ip", **subnet}},
        {"type": "vm-bridge", "guestServices": {}},
    ]
    cluster.define("guarded", {"name": "pods", "plugins": plugins})
    cluster.create_owned("virt-launcher-primary", {DEFAULT: "guarded"}, owned_by(primary_instance))
    pod = cluster.running("virt-launcher-primary")
    # vm-bridge has given the guest what the pod's interface had.
    with QemuGuest(pod.sandbox.netns, Nic("tap0", mac, 1500)) as guest:
        assert guest.ask_dhcp()["ip"] == pod.address
        assert_talks(guest, cluster, pod)
    assert pod.networks["default/guarded"]["mac"] == mac
    cluster.delete(pod)
    eventually(lambda: not list(leases(cluster.node.machine)), "the lease has ended with the pod")
