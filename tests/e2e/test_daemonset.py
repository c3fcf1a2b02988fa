"""The agent as pods of the base's DaemonSet, from its image, under real kubelets and thick Multus."""

from __future__ import annotations

import copy
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnvnet.kube import bound_token
from cnvnet.kube.credentials import from_kubeconfig
from tests import harness
from tests.e2e import deployed
from tests.e2e.cnvnet_objects import LEASES, RESERVATIONS, SYSTEM, lease
from tests.e2e.deployed import AGENT
from tests.e2e.machine import eventually
from tests.e2e.testbed import NETWORK_STATUS, NETWORKS, Node, Testbed, running_testbed
from tests.e2e.thick_multus import CNI_BIN
from tests.functional.crash.node_state import AttachmentState, attachment_state
from tests.harness import NAMES, Outcome

pytestmark = pytest.mark.xdist_group("image")

DAEMON_SET = f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/cnvnet-agent"
AGENT_PODS = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app.kubernetes.io/name=cnvnet-agent"
EVENTS = "/api/v1/namespaces/default/events?fieldSelector=reason=FailedCreatePodSandBox"
# Changes the specification of the agent's pods.
Change = Callable[[dict[str, Any]], None]
BRIDGE: dict[str, Any] = {
    "type": "cnv-bridge",
    "bridge": "br1",
    "macspoofchk": True,
    "ipam": {"type": "static-ip", "nodeLocal": True, "subnet": "10.9.0.0/24"},
}
GUEST: dict[str, Any] = {"type": "vm-bridge", "guestServices": {}}
# A network with its leases in the cluster, for the executables themselves.
SHARED = {
    "cniVersion": "1.1.0",
    "name": "shared",
    "type": "macvlan",
    "ipam": {"type": "static-ip", "store": "kubernetes", "subnet": "10.12.0.0/24"},
}


class Deployment:
    """A cluster of one node, with the base applied and its agent running."""

    def __init__(self, testbed: Testbed, overlay: Path) -> None:
        self.testbed = testbed
        (self.node,) = testbed.nodes
        self._overlay = overlay
        rendered = yaml.safe_load_all(self.kubectl("kustomize", str(overlay)))
        (daemon_set,) = (each for each in rendered if each["kind"] == "DaemonSet")
        self._pod: dict[str, Any] = daemon_set["spec"]["template"]["spec"]

    def kubectl(self, *args: str) -> str:
        return self.testbed.control_plane.kubectl(*args).stdout

    def apply(self) -> None:
        self.kubectl("apply", "-k", str(self._overlay))

    def rolled_out(self) -> None:
        self.kubectl("-n", SYSTEM, "rollout", "status", AGENT, "--timeout=60s")

    def replace_agents(self, change: Change) -> None:
        """Lets agents take the place of those there are whose pods differ by `change` from the base's."""
        before = self.agents()
        pod = copy.deepcopy(self._pod)
        change(pod)
        # A JSON merge patch replaces lists as a whole.
        self.testbed.api.patch(DAEMON_SET, {"spec": {"minReadySeconds": 0, "template": {"spec": pod}}})
        self.rolled_out()
        eventually(lambda: not {*before} & {*self.agents()}, "the agents before are gone")

    def keep_agents_away(self) -> None:
        """Returns when the node has none, and gets none."""
        self._select({"agents": "elsewhere"})
        eventually(lambda: not self.agents(), "the agents' pods are gone")

    def let_agents_come(self) -> None:
        """Takes `keep_agents_away` back."""
        self._select({"agents": None})
        eventually(self.agents, "there is an agent's pod")
        self.rolled_out()

    def _select(self, labels: dict[str, str | None]) -> None:
        self.testbed.api.patch(DAEMON_SET, {"spec": {"template": {"spec": {"nodeSelector": labels}}}})

    def uninstall(self) -> None:
        """As docs/kubernetes.md has it."""
        self.kubectl("delete", "-k", str(self._overlay / "kustomize/base/system"))

    def agents(self) -> list[str]:
        return [each["metadata"]["name"] for each in self.testbed.api.get(AGENT_PODS)["items"]]

    def metrics(self) -> dict[str, float]:
        """Those of the node's agent, as a scraper on the node sees them."""
        script = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9440/metrics').read().decode())"
        )
        lines = self.node.machine.run(sys.executable, "-c", script).stdout.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def metrics_or_none(self) -> dict[str, float]:
        """The same; {} between two agents."""
        try:
            return self.metrics()
        except AssertionError:
            return {}

    def guests(self) -> float:
        """How many are served; none between two agents."""
        return self.metrics_or_none().get('cnvnet_guests{network="vms",state="served"}', 0)

    def create(self, name: str, network: str) -> None:
        self.testbed.create_pod(name, self.node, {NETWORKS: network})

    def refusal(self, name: str) -> str:
        """What the pod's event says of why it has no sandbox."""

        def seen() -> str | None:
            events = self.testbed.events(name)
            return next((each for each in events if each.startswith("FailedCreatePodSandBox")), None)

        return eventually(seen, f"pod {name} is refused")


class Alone:
    """static-ip as an executable of the node, run for a pod without any agent."""

    def __init__(self, deployment: Deployment, pod: dict[str, Any]) -> None:
        self._deployment = deployment
        self._machine = deployment.node.machine
        self._args = ";".join(
            f"K8S_POD_{key.upper()}={pod['metadata'][key]}" for key in ("namespace", "name", "uid")
        )
        self.kubeconfig = self._machine.folder / "etc/cnvnet/kubeconfig"

    def call(self, command: str) -> Outcome:
        return self._machine.cni(
            "static-ip",
            command,
            SHARED,
            "/run/netns/nowhere",
            ifname="net9",
            args=f"IgnoreUnknown=1;{self._args}",
            within=self._machine.entrance(),
        )

    def agent(self) -> str:
        """The agent's pod, once the one before is gone and the file is its own."""

        def only() -> str | None:
            names = self._deployment.agents()
            given = from_kubeconfig(str(self.kubeconfig)).token.content
            claims = bound_token.claims(given)
            return claims.pod if claims is not None and names == [claims.pod] else None

        return eventually(only, "one agent's pod is there, and has written the kubeconfig")

    def assert_works(self) -> None:
        """An ADD and a DEL, which are reservations in the API and no more."""
        address = self.call("ADD").ok()["ips"][0]["address"]
        assert re.fullmatch(r"10\.12\.0\.\d+/24", address)
        assert self.reserved() == [address.removesuffix("/24")]
        self.call("DEL").ok()
        assert self.reserved() == []

    def reserved(self) -> list[str]:
        path = f"{RESERVATIONS}?labelSelector=cnvnet.io/network=shared"
        return [each["spec"]["address"] for each in self._deployment.testbed.api.get(path)["items"]]

    def refusal(self) -> str | None:
        """What an ADD says that may work later; None for one that works, which is taken back."""
        outcome = self.call("ADD")
        if not outcome.code:
            self.call("DEL").ok()
            return None
        error = outcome.error()
        assert error["code"] == 11
        return str(error["msg"])


def state(node: Node) -> AttachmentState:
    return attachment_state(node.machine)


@pytest.fixture(scope="module")
def deployment(image_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("daemonset")
    with running_testbed(folder / "testbed", complete=True) as testbed:
        overlay = deployed.apply(testbed, image_archive, folder)
        testbed.define("cnv", BRIDGE)
        testbed.define("vms", {"plugins": [BRIDGE, GUEST]})
        yield Deployment(testbed, overlay)


def test_launchers_are_all_that_the_agent_writes_on_a_node(deployment: Deployment) -> None:
    folder = deployment.node.machine.folder / CNI_BIN.lstrip("/")
    assert {path.name for path in folder.iterdir() if path.name in NAMES} == set(NAMES)
    contents = {(folder / name).read_bytes() for name in NAMES}
    assert len(contents) == 1
    assert contents.pop().startswith(b"\x7fELF")
    assert not list(folder.glob("*.new"))
    # The reference plugins, which another program has put there, are what they were.
    assert (folder / "bridge").is_symlink()


def test_pods_with_our_networks_run_and_leave_nothing(deployment: Deployment) -> None:
    testbed, node = deployment.testbed, deployment.node
    before = state(node)
    deployment.create("plain", "cnv")
    deployment.create("guest", "vms")
    pods = [testbed.wait_until_running(name) for name in ("plain", "guest")]
    for pod in pods:
        status = json.loads(pod["metadata"]["annotations"][NETWORK_STATUS])
        assert re.fullmatch(r"10\.244\.1\.\d+", status[0]["ips"][0])
        assert re.fullmatch(r"10\.9\.0\.\d+", status[1]["ips"][0])
    # Launchers in the chroot of Multus' container have reached the agent: the node has no other executables.
    assert deployment.guests() == 1
    numbers = deployment.metrics()
    assert numbers['cnvnet_cni_calls_total{code="0",command="ADD",plugin="cnv-bridge"}'] >= 4
    assert numbers['cnvnet_cni_calls_total{code="0",command="ADD",plugin="vm-bridge"}'] >= 1
    # The default network is a file: Multus hands its DEL no key but type, name and ipam.type.
    for name in ("plain", "guest"):
        testbed.delete_pod(name)
    eventually(lambda: state(node) == before, f"nothing is left; before {before}, now {state(node)}")


def test_the_controller_frees_what_is_deleted(deployment: Deployment) -> None:
    """One replica runs on the one node, by its own token and not as root, and leads."""
    api = deployment.testbed.api
    path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/cnvnet-controller"
    eventually(lambda: api.get(path)["status"].get("readyReplicas") == 1, "a replica is ready")
    leases = LEASES.format("default")
    document = api.create(leases, lease("default", "gone", "10.0.0.5"))
    name = document["metadata"]["name"]
    api.delete(f"{leases}/{name}")
    eventually(lambda: api.find(f"{leases}/{name}") is None, "its finalizer is removed")


def test_a_rolling_restart_fails_no_pod(deployment: Deployment) -> None:
    assert_no_pod_fails(deployment, 20, "rollout", "restart", AGENT)


def test_nor_does_an_agent_that_is_away_for_seconds(deployment: Deployment) -> None:
    (agent,) = deployment.agents()
    assert_no_pod_fails(deployment, 6, "delete", "pod", agent, "--wait=false")


def assert_no_pod_fails(deployment: Deployment, number: int, *command: str) -> None:
    """Of those with guests that are created while another agent takes the place of the one there is."""
    testbed, path = deployment.testbed, "/api/v1/namespaces/default/pods"
    before, replaced = state(deployment.node), deployment.agents()
    deployment.kubectl("-n", SYSTEM, *command)
    names = [f"rolling-{each}" for each in range(number)]
    for name in names:
        deployment.create(name, "vms")
        # So that calls come all the time until the next agent is there, some five seconds.
        time.sleep(0.3)
    for name in names:
        testbed.wait_until_running(name)
    failed = [event["message"] for event in testbed.api.get(EVENTS)["items"]]
    assert failed == []
    deployment.rolled_out()
    eventually(lambda: not {*replaced} & {*deployment.agents()}, "the agent before is gone")
    # The next agent serves the guests of the one before.
    eventually(lambda: deployment.guests() == number, "all guests are served")
    for name in names:
        testbed.api.delete(f"{path}/{name}")
    eventually(lambda: state(deployment.node) == before, "nothing is left")
    eventually(lambda: not testbed.api.get(path)["items"], "the pods are gone")


# ---- what each mount is for: what a pod's event says without it ----


def without(volume: str) -> Change:
    def change(pod: dict[str, Any]) -> None:
        (container,) = pod["containers"]
        for where in (pod["volumes"], container["volumeMounts"]):
            where.remove(next(each for each in where if each["name"] == volume))

    return change


def not_propagated(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    next(each for each in container["volumeMounts"] if each["name"] == "netns")["mountPropagation"] = "None"


def test_without_a_mount_a_guest_is_refused_with_the_reason(deployment: Deployment) -> None:
    wanted: tuple[tuple[Change, str], ...] = (
        (without("tun"), "/dev/net/tun: no such file or directory"),
        (without("netns"), "an agent in a container needs the node's /proc and /run/netns"),
        (not_propagated, "the namespace that was at /var/run/netns/"),
    )
    for number, (change, said) in enumerate(wanted):
        deployment.replace_agents(change)
        deployment.create(f"refused-{number}", "vms")
        assert said in deployment.refusal(f"refused-{number}")
        deployment.testbed.delete_pod(f"refused-{number}")
    deployment.apply()
    deployment.rolled_out()


# ---- executables that run without the agent ----


@pytest.fixture(scope="module")
def alone(deployment: Deployment) -> Iterator[Alone]:
    deployment.create("alone", "cnv")
    made = Alone(deployment, deployment.testbed.wait_until_running("alone"))
    with pytest.MonkeyPatch.context() as patch:
        # The harness would start an agent of its own.
        patch.setattr(harness, "through", "")
        yield made


def test_an_executable_has_the_way_to_the_api_of_the_agents_pod(
    deployment: Deployment, alone: Alone
) -> None:
    agent = alone.agent()
    assert alone.kubeconfig.stat().st_mode & 0o7777 == 0o600
    alone.assert_works()
    # Also while the process is down; its container begins anew in the same pod.
    written = alone.kubeconfig.read_bytes()
    deployment.node.machine.kill_all("--node-kubeconfig=/host/cnvnet/kubeconfig")
    alone.assert_works()
    deployment.rolled_out()
    eventually(deployment.metrics_or_none, "the agent serves again")
    assert deployment.agents() == [agent]
    assert alone.kubeconfig.read_bytes() == written


def test_without_the_agents_pod_an_executable_says_so_until_there_is_another(
    deployment: Deployment, alone: Alone
) -> None:
    agent = alone.agent()
    deployment.keep_agents_away()
    # An API server remembers a token for ten seconds.
    said = eventually(alone.refusal, "the token of a pod that is gone is refused")
    assert f"the token's pod {SYSTEM}/{agent} is gone" in said
    assert "/etc/cnvnet/kubeconfig" in said
    assert "the node's next agent writes the file anew" in said
    deployment.let_agents_come()
    eventually(lambda: alone.refusal() is None, "the next agent has written another one")
    alone.assert_works()


def test_an_uninstalled_agent_leaves_no_way_to_the_api(deployment: Deployment, alone: Alone) -> None:
    """As documented. It is the end of the cluster's installation, and of this module."""
    deployment.uninstall()
    eventually(lambda: not alone.kubeconfig.exists(), "the agent has removed it")
    said = alone.refusal()
    missing = "CNVNET_KUBECONFIG, --kubeconfig of the agent, or /etc/cnvnet/kubeconfig"
    assert said == f"store kubernetes: no credentials for the Kubernetes API ({missing})"
    alone.call("DEL").ok()
