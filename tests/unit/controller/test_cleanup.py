from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from cnvnet.controller import survey
from cnvnet.controller.cleanup import Cleaner, Done, Overtaken
from cnvnet.controller.election import LeadershipLost
from cnvnet.controller.snapshot import UnreadableObject
from cnvnet.controller.steps import CleanupStep
from cnvnet.controller.sweep import Limits, plan
from cnvnet.ipam.store.object_names import reservation_name
from cnvnet.ipam.store.objects import read_lease
from cnvnet.kube.api import ApiError
from cnvnet.kube.client import Client
from cnvnet.kube.resources import (
    INSTANCES,
    IP_RESERVATIONS,
    NODES,
    PODS,
    VIRTUAL_MACHINES,
    VM_LEASES,
)
from cnvnet.kube.transport import ApiRequest
from tests.fakes.api_objects import Objects
from tests.fakes.api_server import Action, ApiServer, drop, refuse, running_api_server
from tests.unit.controller.cluster import (
    CLOCK,
    NAMESPACE,
    NETWORK,
    Cluster,
    Document,
    cooling,
    holder,
    key,
)

NOW = 1000.0


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        yield running


class Killed(BaseException):
    """No handler of the product sees it."""


class MortalClient(Client):
    """Its process can be killed when so many requests more have been answered."""

    left = -1

    def _answer(self, request: ApiRequest) -> Document:
        try:
            return super()._answer(request)
        finally:
            self.left -= 1
            if not self.left:
                raise Killed


class Controller:
    """A controller without its loop: it sweeps when a test says so."""

    def __init__(self, server: ApiServer, cluster: Cluster | None = None) -> None:
        self.server = server
        self.client = MortalClient(server.credentials())
        self.done: list[Done] = []
        self.clock = CLOCK
        self.leads = True
        self.cleaner = Cleaner(self.client, self.ensure, self.done.append, lambda: self.clock)
        if cluster is not None:
            cluster.load(server)

    def ensure(self) -> float:
        if not self.leads:
            raise LeadershipLost
        return 10.0

    def plan(self) -> list[CleanupStep]:
        """What is due when everything has been missing for long enough."""
        limits = Limits(grace=60.0, pod_gone=600.0)
        taken = survey.take(self.client)
        made = plan(taken, {}, limits, now=NOW, clock=self.clock)
        made = plan(taken, made.memory, limits, now=NOW + 600, clock=self.clock)
        return list(made.steps)

    def sweep(self) -> None:
        """One that goes on whatever becomes of its steps, as the worker's."""
        self.try_all(self.plan())

    def try_all(self, planned: list[CleanupStep]) -> None:
        """Those that fail are planned again."""
        for step in planned:
            try:
                self.cleaner.run(step)
            except (Overtaken, ApiError):
                pass

    def settle(self) -> None:
        """Sweeps until nothing is left to do."""
        for _ in range(10):
            if not self.plan():
                return
            self.sweep()
        raise AssertionError(f"it never ends: {self.plan()}")

    @property
    def actions(self) -> list[str]:
        return [each.action for each in self.done]

    def names(self, resource: Any) -> list[str]:
        return [each["metadata"]["name"] for each in self.client.list(resource).items]


def state(server: ApiServer) -> dict[str, Any]:
    """What is left: the holders of leases, and what reservations say."""
    client = server.client()
    leases = {
        each["metadata"]["name"]: (
            sorted(each.get("status", {}).get("holders") or {}),
            each["spec"].get("cooling"),
            "deletionTimestamp" in each["metadata"],
        )
        for each in client.list(VM_LEASES).items
    }
    reservations = {
        each["metadata"]["name"]: each["spec"].get("cooling") for each in client.list(IP_RESERVATIONS).items
    }
    return {"leases": leases, "reservations": reservations}


# -- what is done


def lost_node(cluster: Cluster) -> None:
    """A VM whose node is gone for good, one that runs, and a plain pod on the lost node."""
    cluster.add_running("web", node="n3")
    cluster.remove(PODS, "web-pod")
    cluster.add_running("other", node="n2", ips=("10.0.0.6",), mac="0a:58:0a:00:00:06")
    cluster.reserve_for_pod("app", "n3")


def deleted(cluster: Cluster) -> None:
    """A lease that is deleted, with what it had before and what another lease has."""
    cluster.add_lease("web", ips=("10.0.0.5", "fd00::5"), is_deleted=True)
    cluster.add_machine("other")
    cluster.add_lease("other", ips=("10.0.0.6",), mac="0a:58:0a:00:00:06")


def deleted_with_cooldown(cluster: Cluster) -> None:
    cluster.add_lease("web", is_deleted=True, cooldown=60, cooling=(cooling("web", "10.0.0.7", CLOCK + 5),))


def orphaned(cluster: Cluster) -> None:
    """A VM is gone, and left its lease."""
    cluster.add_lease("web")


def cooled(cluster: Cluster) -> None:
    cluster.add_machine("web")
    over, goes_on = cooling("web", "10.0.0.7", CLOCK), cooling("web", "10.0.0.8", CLOCK + 5)
    cluster.add_lease("web", cooling=(over, goes_on))


def stale(cluster: Cluster) -> None:
    """Reservations that no lease lists."""
    cluster.add_running("web")
    cluster.reserve(key("web"), "10.0.0.6", "lease-web")
    cluster.reserve(key("gone"), "10.0.0.7", "lease-gone")


SCENARIOS: list[Callable[[Cluster], None]] = [
    lost_node,
    deleted,
    deleted_with_cooldown,
    orphaned,
    cooled,
    stale,
]


class Expected(NamedTuple):
    actions: tuple[str, ...]
    leases: tuple[str, ...]
    # Addresses that stay reserved.
    reserved: tuple[str, ...]


EXPECTED: dict[Callable[[Cluster], None], Expected] = {
    lost_node: Expected(
        ("delete reservation", "end holder"), ("other", "web"), ("10.0.0.5", "10.0.0.6", "06", "05")
    ),
    deleted: Expected(("finish lease",), ("other",), ("10.0.0.6", "06")),
    deleted_with_cooldown: Expected(("finish lease",), (), ("10.0.0.5", "10.0.0.7")),
    orphaned: Expected(("delete lease", "finish lease"), (), ()),
    cooled: Expected(("end cooldown",), ("web",), ("10.0.0.5", "05", "10.0.0.8")),
    stale: Expected(("delete reservation", "delete reservation"), ("web",), ("10.0.0.5", "05")),
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_what_is_done_to_the_objects(server: ApiServer, scenario: Callable[[Cluster], None]) -> None:
    cluster = Cluster()
    scenario(cluster)
    controller = Controller(server, cluster)
    controller.settle()
    expected = EXPECTED[scenario]
    assert sorted(controller.actions) == list(expected.actions)
    assert sorted(name.rpartition("-")[0] for name in controller.names(VM_LEASES)) == list(expected.leases)
    addresses = {f"0a:58:0a:00:00:{each}" if len(each) == 2 else each for each in expected.reserved}
    left = {each["spec"]["address"] for each in controller.client.list(IP_RESERVATIONS).items}
    assert left == addresses


def test_the_last_holder_that_is_ended_leaves_the_time_at_which_the_lease_became_free(
    server: ApiServer,
) -> None:
    cluster = Cluster()
    cluster.add_machine("web")
    stored = cluster.add_lease("web", holders=[holder("a", "n3"), holder("b", "n3", role="target")])
    controller = Controller(server, cluster)
    (first, second) = controller.plan()
    controller.cleaner.run(first)
    status = controller.client.get(VM_LEASES, stored.name, NAMESPACE)["status"]
    assert list(status["holders"]) == [second.holder]
    assert "left" not in status
    with pytest.raises(Overtaken):
        controller.cleaner.run(second)  # of the version before
    controller.settle()
    status = controller.client.get(VM_LEASES, stored.name, NAMESPACE)["status"]
    assert (status["holders"], status["left"]) == ({}, CLOCK)


def test_the_pod_that_is_left_when_the_active_one_was_ended_is_active(server: ApiServer) -> None:
    cluster = Cluster()
    cluster.add_running("web", node="n3")
    cluster.remove(PODS, "web-pod")
    cluster.add_pod("web-target", instance="web", instance_uid="web-vmi")
    holders = [holder("web-pod", "n3"), holder("web-target", "n2", role="target")]
    stored = cluster.add_lease("web", holders=holders)
    controller = Controller(server, cluster)
    controller.settle()
    left = read_lease(controller.client.get(VM_LEASES, stored.name, NAMESPACE))
    assert left.lease is not None
    assert [(each.pod, each.role) for each in left.lease.holders] == [(f"{NAMESPACE}/web-target", "active")]


def test_an_address_with_a_cooldown_is_free_after_it_and_the_lease_is_gone_at_once(
    server: ApiServer,
) -> None:
    cluster = Cluster()
    deleted_with_cooldown(cluster)
    cluster.reserve_for_pod("app", "n3", cooldown=30)
    controller = Controller(server, cluster)
    controller.settle()
    assert controller.names(VM_LEASES) == []
    until = {
        each["spec"]["address"]: each["spec"]["cooling"]["until"] - CLOCK
        for each in controller.client.list(IP_RESERVATIONS).items
    }
    assert until == {"10.0.0.5": 60, "10.0.0.7": 5, "10.0.0.9": 30}
    controller.clock += 30
    controller.settle()
    assert controller.names(IP_RESERVATIONS) == [reservation_name(NETWORK, "10.0.0.5")]
    controller.clock += 30
    controller.settle()
    assert controller.names(IP_RESERVATIONS) == []


def test_a_lease_that_is_finished_leaves_what_has_become_anothers(server: ApiServer) -> None:
    cluster = Cluster()
    cluster.add_lease("web", is_deleted=True, is_reserved=False)
    cluster.reserve(key("other"), "10.0.0.5", "lease-other")
    controller = Controller(server, cluster)
    assert controller.cleaner.finish(NAMESPACE, controller.names(VM_LEASES)[0])
    assert controller.names(VM_LEASES) == []
    assert controller.names(IP_RESERVATIONS) == [reservation_name(NETWORK, "10.0.0.5")]


def test_a_lease_that_waits_for_what_is_no_address_is_left_alone(server: ApiServer) -> None:
    cluster = Cluster()
    stored = cluster.add_lease("web", is_deleted=True)
    cluster.get(VM_LEASES, stored.name)["spec"]["pending"] = ["10.0.0.300"]
    controller = Controller(server, cluster)
    controller.sweep()
    with pytest.raises(UnreadableObject, match=r"10\.0\.0\.300"):
        controller.cleaner.finish(NAMESPACE, stored.name)
    assert controller.names(VM_LEASES) == [stored.name]


def test_a_lease_keeps_the_finalizers_of_others(server: ApiServer) -> None:
    cluster = Cluster()
    stored = cluster.add_lease("web", is_deleted=True)
    cluster.get(VM_LEASES, stored.name)["metadata"]["finalizers"].append("example.com/backup")
    controller = Controller(server, cluster)
    controller.settle()
    left = controller.client.get(VM_LEASES, stored.name, NAMESPACE)
    assert left["metadata"]["finalizers"] == ["example.com/backup"]


def test_a_lease_that_pods_hold_or_that_is_not_deleted_is_not_finished(server: ApiServer) -> None:
    cluster = Cluster()
    held = cluster.add_lease("web", holders=[holder("web-pod")], is_deleted=True)
    cluster.add_machine("other")
    kept = cluster.add_lease("other", ips=("10.0.0.6",), mac="")
    controller = Controller(server, cluster)
    for name in (held.name, kept.name, "absent-0123456789abcdef"):
        assert not controller.cleaner.finish(NAMESPACE, name)
    assert len(controller.names(IP_RESERVATIONS)) == 3


# -- errors and ends in the middle


@pytest.fixture(scope="module")
def shared() -> Iterator[ApiServer]:
    """A server whose objects each user sets: starting one takes longer than what is done with it."""
    with running_api_server() as running:
        yield running


def controller_of(server: ApiServer, scenario: Callable[[Cluster], None]) -> Controller:
    """One of a scenario, and of nothing that was there before."""
    server.clear_faults()
    server.objects = Objects()
    cluster = Cluster()
    scenario(cluster)
    return Controller(server, cluster)


def outcome(server: ApiServer, scenario: Callable[[Cluster], None]) -> tuple[dict[str, Any], int]:
    """What is left in the end, and how many requests the first steps take."""
    controller = controller_of(server, scenario)
    planned, before = controller.plan(), server.count()
    controller.try_all(planned)
    number = server.count() - before
    controller.settle()
    return state(server), number


FAULTS: dict[str, Callable[[ApiServer, int], None]] = {
    "500": lambda server, number: server.inject(refuse(500), skip=number),
    # Both attempts of the client.
    "no answer": lambda server, number: server.inject(drop, skip=number, times=2),
    "conflict": lambda server, number: server.inject(refuse(409, "Conflict"), skip=number),
    "lost answer": lambda server, number: server.inject(drop, after=True, skip=number, times=2),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_an_error_at_any_request_changes_nothing_of_what_it_comes_to(
    shared: ApiServer, scenario: Callable[[Cluster], None], fault: str
) -> None:
    expected, number = outcome(shared, scenario)
    assert number
    for each in range(number):
        controller = controller_of(shared, scenario)
        planned = controller.plan()
        FAULTS[fault](shared, each)
        controller.try_all(planned)
        shared.clear_faults()
        controller.settle()
        assert state(shared) == expected, each


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_a_controller_that_is_killed_behind_any_request_leaves_a_state_from_which_another_goes_on(
    shared: ApiServer, scenario: Callable[[Cluster], None]
) -> None:
    expected, number = outcome(shared, scenario)
    for each in range(number):
        controller = controller_of(shared, scenario)
        planned = controller.plan()
        controller.client.left = each + 1
        with pytest.raises(Killed):
            controller.try_all(planned)
        # An address is never free while a lease that is not being deleted lists it.
        names = {item["metadata"]["name"] for item in shared.client().list(IP_RESERVATIONS).items}
        for lease in survey.take(shared.client()).leases:
            if not lease.stored.is_deleted:
                assert {reservation_name(NETWORK, a) for a in lease.stored.listed} <= names
        Controller(shared).settle()
        assert state(shared) == expected, each


# -- what has changed since


def change_behind_the_plan(
    server: ApiServer, scenario: Callable[[Cluster], None], change: Callable[[ApiServer], object]
) -> Controller:
    cluster = Cluster()
    scenario(cluster)
    controller = Controller(server, cluster)
    planned = controller.plan()
    assert planned
    change(server)
    before = state(server)
    for step in planned:
        with pytest.raises(Overtaken):
            controller.cleaner.run(step)
    assert (controller.done, state(server)) == ([], before)
    return controller


def put(resource: Any, name: str, uid: str, **more: Any) -> Callable[[ApiServer], object]:
    namespace = {"namespace": NAMESPACE} if resource.namespaced else {}
    document: Document = {"metadata": {"name": name, "uid": uid, **namespace}, **more}
    return lambda server: server.objects.put(resource, document)


def touch_leases(server: ApiServer) -> None:
    client = server.client()
    for each in client.list(VM_LEASES).items:
        client.patch(VM_LEASES, each["metadata"]["name"], {"spec": {"source": "args.cni.ips"}}, NAMESPACE)


def touch_reservations(server: ApiServer) -> None:
    client = server.client()
    for each in client.list(IP_RESERVATIONS).items:
        client.patch(IP_RESERVATIONS, each["metadata"]["name"], {"spec": {"nonce": "2"}})


def restore_lease(server: ApiServer) -> None:
    cluster = Cluster()
    cluster.objects.clear()
    cluster.add_lease("gone", ips=("10.0.0.7",), mac="", uid="lease-gone", is_reserved=False)
    cluster.load(server)


def reserved_for_a_lost_lease(cluster: Cluster) -> None:
    cluster.reserve(key("gone"), "10.0.0.7", "lease-gone")


def vm_on_lost_node(cluster: Cluster) -> None:
    cluster.add_running("web", node="n3")
    cluster.remove(PODS, "web-pod")


@pytest.mark.parametrize(
    ("scenario", "change"),
    [
        (orphaned, put(VIRTUAL_MACHINES, "web", "web-uid")),
        (orphaned, put(INSTANCES, "web", "any")),
        (orphaned, touch_leases),
        (vm_on_lost_node, put(PODS, "web-pod", "web-pod-uid")),
        (vm_on_lost_node, touch_leases),
        (cooled, touch_leases),
        (stale, touch_reservations),
        (reserved_for_a_lost_lease, restore_lease),
    ],
)
def test_a_step_is_overtaken_by_what_has_changed_since(
    server: ApiServer, scenario: Callable[[Cluster], None], change: Callable[[ApiServer], object]
) -> None:
    change_behind_the_plan(server, scenario, change)


def test_an_address_that_its_lease_lists_again_is_not_freed(server: ApiServer) -> None:
    cluster = Cluster()
    stored = cluster.add_running("web")
    cluster.reserve(key("web"), "10.0.0.6", "lease-web")
    controller = Controller(server, cluster)
    (step,) = controller.plan()
    patch = {"spec": {"ips": ["10.0.0.6"], "pending": ["10.0.0.6"]}}
    controller.client.patch(VM_LEASES, stored.name, patch, NAMESPACE)
    with pytest.raises(Overtaken, match=r"lists 10\.0\.0\.6 again"):
        controller.cleaner.run(step)
    assert controller.actions == []


def test_a_node_that_is_back_without_a_taint_overtakes_and_one_with_it_does_not(server: ApiServer) -> None:
    cluster = Cluster()
    vm_on_lost_node(cluster)
    cluster.add_node("n3", is_out_of_service=True)
    controller = Controller(server, cluster)
    (step,) = controller.plan()
    # It is a pod that has been gone for long enough, whatever its node says.
    assert [each.resource for each in step.absences] == [PODS]
    soon = plan(survey.take(controller.client), {}, Limits(0.0), now=0.0, clock=CLOCK)
    (step,) = plan(survey.take(controller.client), soon.memory, Limits(0.0), now=1.0, clock=CLOCK).steps
    controller.client.patch(NODES, "n3", {"spec": {"taints": None}})
    with pytest.raises(Overtaken, match="Node n3 is there"):
        controller.cleaner.run(step)
    controller.client.delete(NODES, "n3")
    controller.cleaner.run(step)
    assert controller.actions == ["end holder"]


def test_a_server_that_does_not_know_the_kind_says_nothing_of_a_vm(server: ApiServer) -> None:
    cluster = Cluster()
    orphaned(cluster)
    controller = Controller(server, cluster)
    (step,) = controller.plan()
    server.inject(refuse(404), verb="get", plural="virtualmachines")
    with pytest.raises(ApiError, match="404"):
        controller.cleaner.run(step)
    assert controller.actions == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_nothing_is_written_by_a_replica_that_does_not_lead(
    shared: ApiServer, scenario: Callable[[Cluster], None]
) -> None:
    controller = controller_of(shared, scenario)
    controller.leads = False
    before = state(shared)
    for step in controller.plan():
        with pytest.raises(LeadershipLost):
            controller.cleaner.run(step)
    assert (state(shared), controller.done) == (before, [])


def test_a_reservation_that_cannot_be_read_keeps_its_lease(server: ApiServer) -> None:
    cluster = Cluster()
    stored = cluster.add_lease("web", is_deleted=True)
    name = reservation_name(NETWORK, "10.0.0.5")
    cluster.get(IP_RESERVATIONS, name)["spec"]["shared"] = True
    controller = Controller(server, cluster)
    with pytest.raises(UnreadableObject, match=r"spec\.shared: a field that this version does not know"):
        controller.cleaner.finish(NAMESPACE, stored.name)
    assert name in controller.names(IP_RESERVATIONS)
    assert controller.names(VM_LEASES) == [stored.name]


@pytest.mark.parametrize("plural", ["vmleases", "ipreservations", "pods", "nodes", "virtualmachines"])
def test_a_list_that_is_not_complete_makes_no_snapshot(server: ApiServer, plural: str) -> None:
    cluster = Cluster()
    lost_node(cluster)
    controller = Controller(server, cluster)
    fault: Action = refuse(500)
    server.inject(fault, verb="list", plural=plural)
    with pytest.raises(ApiError):
        survey.take(controller.client)


@pytest.mark.parametrize("plural", ["virtualmachines", "virtualmachineinstances"])
def test_without_kubevirts_kinds_no_vm_is_known_to_be_gone(server: ApiServer, plural: str) -> None:
    cluster = Cluster()
    orphaned(cluster)
    cluster.reserve_for_pod("app", "n3")
    controller = Controller(server, cluster)
    server.inject(refuse(404), verb="list", plural=plural, times=2)
    assert [each.action for each in controller.plan()] == ["delete reservation"]


def test_an_owning_claim_keeps_the_lease_of_a_vm_that_is_gone(server: ApiServer) -> None:
    from cnvnet.kube.resources import IPAM_CLAIMS

    cluster = Cluster()
    stored = cluster.add_lease("web")
    owner = {"apiVersion": "k8s.cni.cncf.io/v1alpha1", "kind": "IPAMClaim", "name": "web.lan", "uid": "c"}
    cluster.get(VM_LEASES, stored.name)["metadata"]["ownerReferences"] = [owner]
    controller = Controller(server, cluster)
    put(IPAM_CLAIMS, "web.lan", "c")(server)
    assert controller.plan() == []
    controller.client.delete(IPAM_CLAIMS, "web.lan", NAMESPACE)
    assert [each.action for each in controller.plan()] == ["delete lease"]
