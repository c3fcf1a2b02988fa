"""A VM that runs on another node: nothing that happens on this one takes its lease or its address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cnvnet.vm import names
from tests import harness
from tests.e2e.agent_nodes import AgentNode, running_node
from tests.e2e.agent_stores import remove_leases
from tests.e2e.cnvnet_objects import LEASES, RESERVATIONS
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import KubeVirt, Running
from tests.harness import Outcome, Sandbox

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

LAN = names.hashed("lan")
MAC = "02:00:00:00:01:01"
# Five addresses for pods.
SMALL = {"type": "static-ip", "subnet": "10.7.0.0/29"}


class Neighbours:
    """Two nodes. The VM `web` runs on the second; it was on the first, which has not heard of its end."""

    def __init__(
        self, control_plane: ControlPlane, kubevirt: KubeVirt, network: str, one: AgentNode, two: AgentNode
    ) -> None:
        self.control_plane = control_plane
        self.kubevirt = kubevirt
        self.network = network
        self.one, self.two = one, two
        self.machine = kubevirt.create_machine(network, "web", mac=MAC)
        former = kubevirt.start(self.machine, one.name)
        self.ask(one, "ADD", former.pod, "former").ok()
        kubevirt.stop(former)
        self.running: Running = kubevirt.start(self.machine, two.name)
        self.sandbox = two.host.pod()
        result = self.ask(two, "ADD", self.running.pod, "running", self.sandbox).ok()
        self.address: str = result["ips"][0]["address"].partition("/")[0]
        self.before = self.seen()

    def ask(
        self,
        node: AgentNode,
        command: str,
        pod: dict[str, Any],
        container_id: str,
        sandbox: Sandbox | str | None = None,
    ) -> Outcome:
        return node.call(
            command,
            pod,
            sandbox if sandbox is not None else node.host.pod(),
            container_id=container_id,
            network=self.network,
            ifname=LAN,
            ipam=SMALL,
            # For GC alone: nothing is attached.
            **{"cni.dev/valid-attachments": list[object]()},
        )

    def plain(self, name: str) -> dict[str, Any]:
        """A pod on the first node."""
        return self.control_plane.create_pod(self.network, name, self.one.name)

    def seen(self) -> list[str]:
        """What the VM has: addresses, holder and reservations in the API, and its pod's interface."""
        api = self.control_plane.api
        (lease,) = (
            each for each in api.get(LEASES.format(self.network))["items"] if each["spec"]["vm"] == "web"
        )
        listed = api.get(f"{RESERVATIONS}?labelSelector=cnvnet.io/network={self.network}")["items"]
        own = [
            each for each in listed if each["spec"].get("lease", {}).get("uid") == lease["metadata"]["uid"]
        ]
        holders = [each for each in lease["status"]["holders"].values() if each["node"] == self.two.name]
        assert (len(own), len(holders)) == (2, 1)
        spec = {key: lease["spec"][key] for key in ("ips", "mac", "vmUID")}
        parts = [spec, holders, sorted(each["metadata"]["uid"] for each in own)]
        link = self.sandbox.link(LAN)
        assert link is not None
        return [json.dumps(parts, sort_keys=True), *self.sandbox.addresses(LAN), link["address"]]

    def ensure_untouched(self) -> None:
        assert self.seen() == self.before


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def power() -> Iterator[ExitStack]:
    """With it the first node loses all that runs there."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def neighbours(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undo: ExitStack,
    power: ExitStack,
) -> Iterator[Neighbours]:
    # The agents of this test have credentials; the harness' own would have none.
    monkeypatch.setattr(harness, "through", "")
    one = power.enter_context(running_node(control_plane, "node-1", tmp_path / "node-1"))
    two = undo.enter_context(running_node(control_plane, "node-2", tmp_path / "node-2"))
    made = Neighbours(control_plane, kubevirt, tenant, one, two)
    yield made
    kubevirt.stop(made.running)
    kubevirt.delete(made.machine)
    remove_leases(control_plane)


def test_an_add_for_another_vm_leaves_it_its_address(neighbours: Neighbours) -> None:
    wanted = {"cnvnet.io/ip_address.lan": neighbours.address}
    machine = neighbours.kubevirt.create_machine(
        neighbours.network, "other", mac="02:00:00:00:01:02", annotations=wanted
    )
    other = neighbours.kubevirt.start(machine, "node-1")
    refused = neighbours.ask(neighbours.one, "ADD", other.pod, "other").error()
    held = f"{neighbours.address} is held by VM {neighbours.network}/web ({LAN}) in pod"
    assert (refused["code"], held in refused["msg"]) == (7, True)
    neighbours.ensure_untouched()
    result = neighbours.ask(neighbours.one, "ADD", neighbours.plain("plain"), "plain").ok()
    assert neighbours.address not in result["ips"][0]["address"]
    neighbours.ensure_untouched()
    neighbours.kubevirt.stop(other)
    neighbours.kubevirt.delete(machine)


def test_a_gc_with_an_empty_list_ends_its_own_nodes_holders_alone(neighbours: Neighbours) -> None:
    plain = neighbours.plain("plain")
    neighbours.ask(neighbours.one, "ADD", plain, "plain").ok()
    holders = neighbours.control_plane.api.get(LEASES.format(neighbours.network))["items"][0]["status"]
    assert {each["node"] for each in holders["holders"].values()} == {"node-1", "node-2"}
    neighbours.ask(neighbours.one, "GC", plain, "").ok()
    neighbours.ensure_untouched()
    holders = neighbours.control_plane.api.get(LEASES.format(neighbours.network))["items"][0]["status"]
    assert {each["node"] for each in holders["holders"].values()} == {"node-2"}
    assert len(reserved(neighbours)) == 2


def test_a_full_pool_takes_nothing_from_it(neighbours: Neighbours) -> None:
    outcomes = [
        neighbours.ask(neighbours.one, "ADD", neighbours.plain(f"plain-{number}"), f"plain-{number}")
        for number in range(5)
    ]
    assert [each.code for each in outcomes] == [0, 0, 0, 0, 1]
    error = outcomes[-1].error()
    assert (error["code"], "all 5 addresses of 10.7.0.1-10.7.0.6 are taken: 5 in use" in error["msg"]) == (
        11,
        True,
    )
    neighbours.ensure_untouched()


def test_a_reboot_of_the_node_that_it_was_on_leaves_it_all(
    neighbours: Neighbours, control_plane: ControlPlane, tmp_path: Path, undo: ExitStack, power: ExitStack
) -> None:
    """What the node still held of it died with the boot, and is ended when the pool is full."""
    for number in range(4):
        neighbours.ask(neighbours.one, "ADD", neighbours.plain(f"old-{number}"), f"old-{number}").ok()
    neighbours.one.agent.kill()
    power.close()
    again = undo.enter_context(
        running_node(control_plane, "node-1", tmp_path / "again", before=neighbours.one)
    )
    neighbours.ensure_untouched()
    result = neighbours.ask(again, "ADD", neighbours.plain("new"), "new").ok()
    assert neighbours.address not in result["ips"][0]["address"]
    neighbours.ensure_untouched()
    # The runtime ends what it knows of from before.
    for container in ("former", "old-0", "old-1", "old-2", "old-3"):
        neighbours.ask(again, "DEL", neighbours.plain(f"of-{container}"), container, "").ok()
    neighbours.ensure_untouched()
    assert len(reserved(neighbours)) == 3


def reserved(neighbours: Neighbours) -> list[Any]:
    """All addresses of the network that are not free."""
    path = f"{RESERVATIONS}?labelSelector=cnvnet.io/network={neighbours.network}"
    return list(neighbours.control_plane.api.get(path)["items"])
