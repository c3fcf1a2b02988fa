"""kill -9 of an agent, and of the API server, between any two requests of a runtime's calls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam.store.holds import HELD, RELEASING, Hold, Holds
from cnvnet.vm import names
from tests import harness
from tests.e2e.agent_nodes import AgentNode, running_node
from tests.e2e.agent_stores import remove_leases, reserved
from tests.e2e.cnvnet_objects import LEASES, wait_for_policies
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import KubeVirt, Running
from tests.e2e.machine import eventually
from tests.faults.conftest import TIMES
from tests.functional.crash.node_state import attachment_state
from tests.harness import Outcome, Sandbox, namespace

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

LAN = names.hashed("lan")
MAC = "02:00:00:00:01:01"


class Setting:
    """A VM on a node whose agent is killed, as a runtime and an administrator see it."""

    def __init__(self, control_plane: ControlPlane, node: AgentNode, running: Running) -> None:
        self.control_plane = control_plane
        self.node = node
        self.pod = running.pod
        self.network = running.namespace
        self.sandbox = node.host.pod()

    def call(self, command: str, container_id: str) -> Outcome:
        return self.node.call(
            command,
            self.pod,
            self.sandbox,
            container_id=container_id,
            network=self.network,
            ifname=LAN,
        )

    def holds(self) -> list[Hold]:
        return Holds(str(self.node.host.statedir)).all()

    def holders(self) -> set[str]:
        """The containers that leases name."""
        documents = self.control_plane.api.get(LEASES.format(self.network))["items"]
        return {
            each["container"] for document in documents for each in document["status"]["holders"].values()
        }

    def ensure_one_holder(self, container_id: str, result: dict[str, Any]) -> None:
        """The API has what the ADD has answered, and nothing else."""
        (address,) = (each["address"].partition("/")[0] for each in result["ips"])
        (document,) = self.control_plane.api.get(LEASES.format(self.network))["items"]
        assert (document["spec"]["ips"], document["spec"]["mac"]) == ([address], MAC)
        assert self.holders() == {container_id}
        assert reserved(self.control_plane, self.network) == {address: self.node.name, MAC: self.node.name}
        assert self.sandbox.addresses(LAN) == [f"{address}/24"]
        assert [each.state for each in self.holds()] == [HELD]

    def settle(self) -> None:
        """The agent has taken back by itself what a killed one has left."""
        eventually(
            lambda: {each.state for each in self.holds()} <= {HELD}, "the agent has settled its holds"
        )


@pytest.fixture
def setting(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Setting]:
    # The agent of this test has credentials; the harness' own would have none.
    monkeypatch.setattr(harness, "through", "")
    machine = kubevirt.create_machine(tenant, "web", mac=MAC)
    running = kubevirt.start(machine, "node-1")
    with running_node(control_plane, "node-1", tmp_path / "node-1") as node:
        yield Setting(control_plane, node, running)
    kubevirt.stop(running)
    kubevirt.delete(machine)
    remove_leases(control_plane)


def test_an_agent_that_is_killed_at_any_request_leaves_nothing(
    control_plane: ControlPlane, setting: Setting
) -> None:
    node = setting.node
    # Of a network's first ADD an agent asks more.
    setting.call("ADD", "first").ok()
    setting.call("DEL", "first").ok()
    remove_leases(control_plane)
    node.proxy.clear_trap()
    setting.call("ADD", "usual").ok()
    # Its first ADD has also made the network's object, and the agent asks for these by itself.
    adding = [each for each in node.proxy.seen if not each.endswith("ipnetworks")]
    # An instance is asked for beside its pod.
    assert sorted(adding[:2]) == ["get pods", "get virtualmachineinstances"]
    assert adding[2] == "get vmleases"
    node.proxy.clear_trap()
    setting.call("DEL", "usual").ok()
    ending = list(node.proxy.seen)
    assert ending == ["patch vmleases"]
    remove_leases(control_plane)
    before = attachment_state(node.host)
    for number, request in enumerate(adding):
        for after in (False, True) if TIMES > 1 or number == len(adding) - 1 else (False,):
            where = f"{'after' if after else 'before'} {request} ({number})"
            node.proxy.set_trap(number, node.agent.kill, after=after)
            assert setting.call("ADD", f"add{number}").error()["code"] == 11, where
            node.proxy.clear_trap()
            node.agent.start()
            setting.settle()
            assert setting.holders() == set(), where
            # The runtime ends the sandbox, and makes another one.
            setting.call("DEL", f"add{number}").ok()
            assert attachment_state(node.host) == before, where
            setting.ensure_one_holder(f"again{number}", setting.call("ADD", f"again{number}").ok())
            setting.call("DEL", f"again{number}").ok()
            assert (setting.holders(), attachment_state(node.host)) == (set(), before), where
            remove_leases(control_plane)


@pytest.mark.parametrize("after", [False, True])
def test_an_agent_that_is_killed_while_a_pod_ends_leaves_no_holder(setting: Setting, after: bool) -> None:
    node = setting.node
    setting.call("ADD", "c1").ok()
    node.proxy.set_trap(0, node.agent.kill, after=after)
    assert setting.call("DEL", "c1").error()["code"] == 11
    node.agent.start()
    setting.settle()
    assert setting.holders() == set()
    setting.call("DEL", "c1").ok()
    assert setting.holds() == []
    setting.ensure_one_holder("c2", setting.call("ADD", "c2").ok())
    setting.call("DEL", "c2").ok()


def test_an_api_server_that_is_killed_during_calls_is_caught_up_with(
    control_plane: ControlPlane, setting: Setting
) -> None:
    """SIGKILL, between the lease and its reservations, and while another sandbox ends."""
    node = setting.node
    plain = control_plane.create_pod(setting.network, "plain", "node-1")
    other = node.host.pod()
    plain_call = partial(node.call, pod=plain, sandbox=other, container_id="other", network=setting.network)
    (given,) = plain_call("ADD").ok()["ips"]
    taken = given["address"].partition("/")[0]
    assert set(reserved(control_plane, setting.network)) == {taken}
    # The fourth: pod, instance and lease are read before.
    node.proxy.set_trap(3, control_plane.kill_server, after=True)
    error = setting.call("ADD", "c1").error()
    assert (error["code"], node.proxy.url in error["msg"]) == (11, True)
    assert node.proxy.seen[3] == "create vmleases"
    plain_call("DEL").ok()
    # The agent's queue may be at it already.
    assert {each.state for each in setting.holds() if each.container_id == "other"} == {RELEASING}
    control_plane.start_server()
    control_plane.wait_until_answers()
    wait_for_policies(control_plane)
    setting.call("DEL", "c1").ok()
    assert setting.holders() == set()
    # Its queue is looked at every few seconds, and at an agent's start.
    node.agent.kill()
    node.agent.start()
    setting.settle()
    assert reserved(control_plane, setting.network) == {}
    setting.ensure_one_holder("c2", setting.call("ADD", "c2").ok())
    setting.call("DEL", "c2").ok()


def test_a_pod_that_is_replaced_without_a_del_leaves_nothing(
    control_plane: ControlPlane, setting: Setting
) -> None:
    """As where Multus' cache of the sandbox is damaged: no runtime ever asks for its end."""
    node, network = setting.node, setting.network
    path = f"/api/v1/namespaces/{network}/pods/plain"
    plain = control_plane.create_pod(network, "plain", "node-1")
    with namespace() as netns:
        node.call("ADD", plain, Sandbox(netns), container_id="c1", network=network).ok()
    (former,) = reserved(control_plane, network)
    control_plane.api.delete(path, gracePeriodSeconds=0)
    plain = control_plane.create_pod(network, "plain", "node-1")
    sandbox = node.host.pod()
    result = node.call("ADD", plain, sandbox, container_id="c2", network=network).ok()
    kept = result["ips"][0]["address"].partition("/")[0]
    assert kept != former
    eventually(lambda: set(reserved(control_plane, network)) == {kept}, "what the old pod had is free")
    eventually(lambda: [each.container_id for each in setting.holds()] == ["c2"], "its hold is gone")
    node.call("DEL", plain, sandbox, container_id="c2", network=network).ok()
    assert (reserved(control_plane, network), setting.holds()) == ({}, [])
