from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cnvnet.controller.election import NAME, Election, Seat, Timing
from cnvnet.controller.metrics import ControllerMetrics
from cnvnet.controller.sweep import Limits
from cnvnet.controller.worker import CleanupWorker
from cnvnet.kube.events import EventWriter
from cnvnet.kube.resources import (
    COORDINATION_LEASES,
    EVENTS,
    IP_RESERVATIONS,
    NODES,
    PODS,
    VIRTUAL_MACHINES,
    VM_LEASES,
)
from tests.fakes.api_server import ApiServer, delay, refuse, running_api_server
from tests.unit.controller.cluster import NAMESPACE, Cluster, holder

# Seconds.
SOON = 5.0
NEVER = 3600.0


def eventually(holds: Callable[[], bool], seconds: float = SOON) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


class Replica:
    """A running controller without its process."""

    def __init__(self, server: ApiServer, name: str, interval: float, grace: float) -> None:
        api = server.client()
        timing = Timing(duration=1.5, renewal=1.0, retry=0.1)
        self.election = Election(api, Seat("cnvnet-system", name), self._notify, timing)
        self.metrics = ControllerMetrics(self.election.is_leader)
        self.events = EventWriter(lambda: api, NAME, lambda _: self.metrics.observe_dropped())
        self.worker = CleanupWorker(
            api, self.election, self.metrics, self.events, interval=interval, limits=Limits(grace)
        )
        self.threads = [threading.Thread(target=each) for each in (self.election.run, self.worker.run)]

    def _notify(self) -> None:
        self.worker.notify()

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def die(self) -> None:
        self.election.attempt = lambda: None  # type: ignore[method-assign]  # as if killed: it renews nothing
        self.worker.stop()

    def stop(self) -> None:
        self.worker.stop()
        self.threads[1].join(20)
        self.election.stop()
        self.threads[0].join(20)
        self.events.stop(1)


@contextmanager
def running_replica(
    server: ApiServer, name: str = "one", *, interval: float = NEVER, grace: float = 0.2
) -> Generator[Replica]:
    replica = Replica(server, name, interval, grace)
    replica.events.start()
    for each in replica.threads:
        each.start()
    try:
        yield replica
    finally:
        replica.stop()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        yield running


def count(server: ApiServer, resource: Any) -> int:
    return len(server.client().list(resource).items)


def test_a_lease_that_is_deleted_is_finished_at_once_not_by_the_next_sweep(server: ApiServer) -> None:
    cluster = Cluster()
    cluster.add_machine("web")
    stored = cluster.add_lease("web")
    cluster.load(server)
    with running_replica(server) as replica:
        assert eventually(lambda: replica.value("cnvnet_controller_sweeps_total", result="done") == 1)
        server.client().delete(VM_LEASES, stored.name, NAMESPACE)
        assert eventually(lambda: count(server, VM_LEASES) == 0, 2)
        assert count(server, IP_RESERVATIONS) == 0
        assert replica.value("cnvnet_controller_steps_total", action="finish lease", result="done") == 1
        assert replica.value("cnvnet_controller_sweeps_total", result="done") == 1
    events = {each["involvedObject"]["kind"]: each for each in server.client().list(EVENTS).items}
    assert {kind: each["involvedObject"]["name"] for kind, each in events.items()} == {
        "VMLease": stored.name,
        "VirtualMachine": "web",
    }
    for event in events.values():
        assert event["reason"] == "Released"
        about = "(network lan, 0a:58:0a:00:00:05, 10.0.0.5)"
        assert event["message"] == f"addresses released {about}: it is deleted and no pod holds it"
    assert stored.lease is not None
    assert events["VirtualMachine"]["involvedObject"]["uid"] == stored.lease.vm_uid


def test_a_deleted_lease_waits_for_its_holders_and_not_longer(server: ApiServer) -> None:
    cluster = Cluster()
    stored = cluster.add_running("web")
    cluster.load(server)
    client = server.client()
    with running_replica(server):
        client.delete(VM_LEASES, stored.name, NAMESPACE)
        time.sleep(0.5)
        assert (count(server, VM_LEASES), count(server, IP_RESERVATIONS)) == (1, 2)
        # As an agent's DEL does it.
        (key,) = stored.holder_keys.values()
        client.patch(VM_LEASES, stored.name, {"status": {"holders": {key: None}}}, NAMESPACE)
        assert eventually(lambda: count(server, VM_LEASES) == 0, 2)
        assert count(server, IP_RESERVATIONS) == 0


def test_what_is_missing_is_freed_after_two_sweeps_and_the_grace_period(server: ApiServer) -> None:
    cluster = Cluster()
    cluster.add_running("web", node="n3")
    cluster.remove(PODS, "web-pod")
    cluster.remove(VIRTUAL_MACHINES, "web")
    cluster.objects = {
        key: each for key, each in cluster.objects.items() if "virtualmachineinst" not in str(key)
    }
    cluster.load(server)
    with running_replica(server, interval=0.1, grace=0.5) as replica:
        assert eventually(lambda: replica.value("cnvnet_controller_waiting_steps", action="end holder") == 1)
        assert count(server, IP_RESERVATIONS) == 2
        assert eventually(lambda: count(server, VM_LEASES) == 0)
        assert count(server, IP_RESERVATIONS) == 0
    reasons = {each["reason"] for each in server.client().list(EVENTS).items}
    assert reasons == {"HolderEnded", "LeaseDeleted", "Released"}


def test_an_api_that_does_not_answer_delays_and_changes_nothing_else(server: ApiServer) -> None:
    cluster = Cluster()
    stored = cluster.add_lease("web")
    cluster.load(server)
    with running_replica(server, interval=0.1, grace=0.3) as replica:
        assert eventually(lambda: replica.value("cnvnet_controller_sweeps_total", result="done") >= 1)
        server.stop()
        assert eventually(lambda: replica.value("cnvnet_controller_sweeps_total", result="incomplete") >= 1)
        # It has lost the Lease meanwhile, and takes it again.
        assert eventually(lambda: not replica.election.is_leader())
        server.start()
        assert eventually(lambda: count(server, VM_LEASES) == 0, 15), stored.name


def test_a_step_that_fails_is_tried_again_and_holds_up_no_other(server: ApiServer) -> None:
    cluster = Cluster()
    stored = cluster.add_lease("web", is_deleted=True)
    cluster.reserve_for_pod("app", "n3")
    cluster.load(server)
    server.inject(refuse(403, "Forbidden"), verb="delete", times=2)
    with running_replica(server, interval=0.2, grace=0.0) as replica:
        assert eventually(lambda: count(server, IP_RESERVATIONS) == 0), stored.name
        assert eventually(lambda: count(server, VM_LEASES) == 0)
        failed = sum(
            replica.value("cnvnet_controller_steps_total", action=action, result="failed")
            for action in ("finish lease", "delete reservation")
        )
        assert failed == 2


def test_of_two_replicas_one_acts_and_the_other_goes_on_when_it_dies(server: ApiServer) -> None:
    cluster = Cluster()
    cluster.add_machine("web")
    stored = cluster.add_lease("web")
    cluster.load(server)
    with running_replica(server, "one") as one:
        assert eventually(one.election.is_leader)
        with running_replica(server, "two") as two:
            time.sleep(0.3)
            assert not two.election.is_leader()
            assert two.value("cnvnet_controller_sweeps_total", result="done") == 0
            # As after kill -9: it neither renews the Lease nor gives it back.
            one.die()
            server.client().delete(VM_LEASES, stored.name, NAMESPACE)
            assert eventually(lambda: count(server, VM_LEASES) == 0, 10)
            assert two.election.is_leader()


def test_a_leader_whose_lease_is_taken_between_two_writes_makes_no_other(server: ApiServer) -> None:
    cluster = Cluster()
    cluster.add_lease("web", is_deleted=True, ips=("10.0.0.5", "10.0.0.6"))
    cluster.load(server)
    # The first write of the cleanup takes so long that the Lease is lost before the second.
    server.inject(delay(2.5), verb="delete", plural="ipreservations", after=True)
    server.inject(refuse(500), verb="patch", plural="leases", times=1000)
    with running_replica(server) as replica:
        assert eventually(lambda: server.count("delete", "ipreservations") == 1)
        assert eventually(lambda: not replica.election.is_leader())
        time.sleep(2.5)
        assert server.count("delete", "ipreservations") == 1
        assert (count(server, VM_LEASES), count(server, IP_RESERVATIONS)) == (1, 2)
        assert server.client().get(COORDINATION_LEASES, "cnvnet-controller", "cnvnet-system")


def test_a_namespace_full_of_leases_ends_within_seconds(server: ApiServer) -> None:
    cluster = Cluster()
    for number in range(50):
        cluster.add_lease(f"vm{number}", ips=(f"10.0.1.{number}",), mac="", is_deleted=True)
    cluster.load(server)
    with running_replica(server):
        assert eventually(lambda: count(server, VM_LEASES) == 0, 20)
        assert count(server, IP_RESERVATIONS) == 0


def test_what_is_not_understood_is_said_once(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    from cnvnet.resident import log

    cluster = Cluster()
    stored = cluster.add_lease("web")
    cluster.get(VM_LEASES, stored.name)["spec"]["pinned"] = True
    cluster.add_node("n3")
    cluster.add_lease("db", ips=("10.0.0.9",), mac="", holders=[holder("db", "n9")._replace(pod_uid="")])
    cluster.load(server)
    log.configure("info", "text")
    with running_replica(server, interval=0.1, grace=0.0) as replica:
        assert eventually(lambda: replica.value("cnvnet_controller_sweeps_total", result="done") >= 3)
        assert replica.value("cnvnet_controller_doubtful_objects") == 2
        server.client().delete(NODES, "n3")
    lines = [line for line in capsys.readouterr().err.splitlines() if "left alone" in line]
    assert len(lines) == 2
    assert f'object="VMLease tenant/{stored.name}"' in " ".join(lines)
    assert "spec.pinned: a field that this version does not know" in " ".join(lines)
