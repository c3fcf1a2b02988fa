"""Agents of many nodes at once, on the real API server: no address twice, in the API or on interfaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.ipam.lease import Lease
from cnvnet.kube.client import Client
from cnvnet.kube.credentials import from_kubeconfig
from cnvnet.kube.resources import Resource
from tests import harness
from tests.e2e.agent_nodes import IFNAME, AgentNode, running_node
from tests.e2e.agent_stores import AgentDesk, remove_leases, reserved
from tests.e2e.cnvnet_objects import LEASES, SYSTEM
from tests.e2e.control_plane import ControlPlane
from tests.fakes.kubernetes_store import disagreements
from tests.faults.conftest import TIMES
from tests.harness import Outcome
from tests.unit.ipam.store.conformance import a_pool

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

NODES = [f"crowd-{number}" for number in range(20)]
# The thousand that a cluster may start with: CNV_FAULTS=3.
MANY = min(1000, 400 * TIMES)
# How often a runtime is patient.
RETRIES = 20


class Crowd:
    """The stores of twenty nodes, each behind its agent's token, in a network of their own."""

    def __init__(self, control_plane: ControlPlane, folder: Path, network: str) -> None:
        self.control_plane = control_plane
        self.network = network
        self.desks = [AgentDesk(control_plane, folder, node, network) for node in NODES]
        self._admin = Client(from_kubeconfig(str(control_plane.kubeconfig())))

    def documents(self, resource: Resource) -> list[dict[str, Any]]:
        return list(self._admin.list(resource).items)

    def at_once(
        self, count: int, call: Callable[[AgentDesk, int], Lease], *, last: str = ""
    ) -> tuple[list[Lease], list[CNIError]]:
        """What so many calls get that begin together; one that may work later is repeated.

        `last` is in the text of those that are not: nothing is left to be had.
        """

        def attempt(number: int) -> Lease | CNIError:
            for left in reversed(range(RETRIES)):
                try:
                    return call(self.desks[number % len(self.desks)], number)
                except CNIError as e:
                    if e.code != TRY_AGAIN_LATER or (last and last in e.msg) or not left:
                        return e
            raise AssertionError("it is tried at least once")

        with ThreadPoolExecutor(len(self.desks)) as threads:
            answers = list(threads.map(attempt, range(count)))
        assert disagreements(self) == []
        return (
            [each for each in answers if isinstance(each, Lease)],
            [each for each in answers if isinstance(each, CNIError)],
        )

    def leases(self) -> list[dict[str, Any]]:
        return list(self.control_plane.api.get(LEASES.format(self.network))["items"])

    def close(self) -> None:
        self._admin.close()
        for each in self.desks:
            each.store.close()


@pytest.fixture(scope="module")
def nodes(control_plane: ControlPlane) -> Iterator[None]:
    for node in NODES:
        control_plane.add_node(node)
    yield
    for node in NODES:
        path = f"/api/v1/namespaces/{SYSTEM}/pods/agent-{node}"
        if control_plane.api.find(path):
            control_plane.api.delete(path, gracePeriodSeconds=0)
        control_plane.api.delete(f"/api/v1/nodes/{node}")


@pytest.fixture
def crowd(control_plane: ControlPlane, nodes: None, tenant: str, tmp_path: Path) -> Iterator[Crowd]:
    remove_leases(control_plane)
    made = Crowd(control_plane, tmp_path, tenant)
    yield made
    made.close()
    remove_leases(control_plane)


def test_many_vms_that_start_at_once_on_twenty_nodes_have_addresses_of_their_own(crowd: Crowd) -> None:
    wide = a_pool("10.0.0.0/21")
    got, errors = crowd.at_once(MANY, lambda desk, n: desk.attach(f"vm{n}", f"c{n}", given=wide))
    assert errors == []
    assert len({each.ips for each in got}) == len({each.mac for each in got}) == MANY
    given = {str(ip) for each in got for ip in each.ips} | {each.mac for each in got}
    assert set(reserved(crowd.control_plane, crowd.network)) == given


def test_thirty_pods_of_one_vm_share_its_addresses(crowd: Crowd) -> None:
    got, errors = crowd.at_once(30, lambda desk, n: desk.attach("vm", f"c{n}"))
    assert errors == []
    ((ips, mac),) = {(each.ips, each.mac) for each in got}
    (lease,) = crowd.leases()
    assert (lease["spec"]["ips"], lease["spec"]["mac"]) == ([str(ip) for ip in ips], mac)
    assert len(lease["status"]["holders"]) == 30
    assert set(reserved(crowd.control_plane, crowd.network)) == {str(ips[0]), mac}


def test_of_thirty_vms_that_ask_for_one_address_one_gets_it_and_is_named(crowd: Crowd) -> None:
    got, errors = crowd.at_once(30, lambda desk, n: desk.attach(f"vm{n}", f"c{n}", ips=("10.0.0.5",)))
    (winner,) = got
    vm, pod = winner.key.vm, winner.holders[0].pod
    text = f"args.cni.ips[0]: 10.0.0.5 is held by VM {crowd.network}/{vm} (eth0) in pod {pod}"
    assert {(each.code, each.msg) for each in errors} == {(7, text)}
    assert len(errors) == 29
    assert [each["spec"]["vm"] for each in crowd.leases()] == [vm]


def test_a_network_is_filled_to_its_last_address(crowd: Crowd) -> None:
    small = a_pool("10.0.0.0/28")
    text = f"network {crowd.network}: all 13 addresses of 10.0.0.1-10.0.0.15 are taken: 13 in use"
    got, errors = crowd.at_once(20, lambda desk, n: desk.attach(f"vm{n}", f"c{n}", given=small), last=text)
    assert len({each.ips for each in got}) == len(got) == 13
    assert {(each.code, each.msg) for each in errors} == {(11, f"{text}: give the network a wider range")}
    assert len(crowd.leases()) == 13


def test_no_two_interfaces_of_two_nodes_have_one_address(
    control_plane: ControlPlane, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind launchers and agents, in the pods' namespaces: some ask for the same address, most for none."""
    # The agents of this test have credentials; the harness' own would have none.
    monkeypatch.setattr(harness, "through", "")
    remove_leases(control_plane)
    with (
        running_node(control_plane, "node-1", tmp_path / "node-1") as one,
        running_node(control_plane, "node-2", tmp_path / "node-2") as two,
    ):
        pods = [
            control_plane.create_pod(tenant, f"pod-{number}", f"node-{number % 2 + 1}")
            for number in range(24)
        ]
        places = [(one, two)[number % 2].host.pod() for number in range(24)]

        def add(number: int) -> Outcome:
            node: AgentNode = (one, two)[number % 2]
            wanted = {"ips": ["10.7.0.77"]} if number < 8 else {}
            call = partial(node.call, "ADD", pods[number], places[number], container_id=f"c{number}")
            outcome = call(network=tenant, args={"cni": wanted})
            for _ in range(RETRIES):
                if outcome.code == 0 or outcome.error()["code"] != TRY_AGAIN_LATER:
                    break
                outcome = call(network=tenant, args={"cni": wanted})
            return outcome

        with ThreadPoolExecutor(8) as threads:
            outcomes = list(threads.map(add, range(24)))
        losers = [each.error() for each in outcomes[:8] if each.code]
        assert [each["code"] for each in losers] == [7] * 7
        (winner,) = (number for number, each in enumerate(outcomes[:8]) if not each.code)
        held = f"10.7.0.77 is held by container c{winner} ({IFNAME}) of pod {tenant}/pod-{winner}"
        assert {each["msg"] for each in losers} == {f"args.cni.ips[0]: {held}"}
        assert [each.code for each in outcomes[8:]] == [0] * 16
        seen = [
            address.partition("/")[0]
            for place, outcome in zip(places, outcomes, strict=True)
            if not outcome.code
            for address in place.addresses(IFNAME)
        ]
        assert len(seen) == len(set(seen)) == 17
        assert "10.7.0.77" in seen
        assert set(reserved(control_plane, tenant)) == set(seen)
        for number, (pod, place) in enumerate(zip(pods, places, strict=True)):
            node = (one, two)[number % 2]
            node.call("DEL", pod, place, container_id=f"c{number}", network=tenant).ok()
    assert reserved(control_plane, tenant) == {}
