from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from cnvnet.controller import election
from cnvnet.controller.election import Election, LeadershipLost, Seat, Timing
from cnvnet.kube.resources import COORDINATION_LEASES
from tests.fakes.api_server import ApiServer, drop, refuse, running_api_server

NAMESPACE = "cnvnet-system"
TIMING = Timing(duration=15.0, renewal=10.0, retry=2.0)


class Clock:
    """That of a replica's machine."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(election, "uptime", made)
    return made


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        yield running


def replica(server: ApiServer, name: str, timing: Timing = TIMING) -> Election:
    return Election(server.client(), Seat(NAMESPACE, name), lambda: None, timing)


def spec(server: ApiServer) -> dict[str, object]:
    document = server.client().get(COORDINATION_LEASES, election.NAME, NAMESPACE)
    found: dict[str, object] = document["spec"]
    return found


def test_the_first_replica_leads_and_the_second_does_not(server: ApiServer, clock: Clock) -> None:
    one, two = replica(server, "one"), replica(server, "two")
    one.attempt()
    two.attempt()
    assert (one.is_leader(), two.is_leader()) == (True, False)
    assert (one.holder, two.holder, one.problem, two.problem) == ("one", "one", "", "")
    held = spec(server)
    assert (held["leaseDurationSeconds"], held["leaseTransitions"]) == (15, 0)
    assert str(held["renewTime"]).endswith("Z")


def test_a_lease_that_is_renewed_is_never_taken_whatever_the_time_in_it_says(
    server: ApiServer, clock: Clock
) -> None:
    one, two = replica(server, "one"), replica(server, "two")
    one.attempt()
    for _ in range(30):
        clock.now += 2.0
        one.attempt()
        server.client().patch(
            COORDINATION_LEASES,
            election.NAME,
            {"spec": {"renewTime": "1999-01-01T00:00:00.000000Z"}},
            NAMESPACE,
        )
        two.attempt()
        one.attempt()
        assert (one.is_leader(), two.is_leader()) == (True, False)


def test_a_lease_that_does_not_change_is_taken_after_its_duration_and_not_before(
    server: ApiServer, clock: Clock
) -> None:
    one, two = replica(server, "one"), replica(server, "two")
    one.attempt()
    two.attempt()
    clock.now += TIMING.duration - 0.1
    two.attempt()
    assert not two.is_leader()
    # The former holder has ceased to act since.
    assert not one.is_leader()
    clock.now += 0.2
    two.attempt()
    assert (two.is_leader(), spec(server)["leaseTransitions"]) == (True, 1)
    one.attempt()
    assert (one.is_leader(), one.holder) == (False, "two")


def test_a_leader_that_cannot_renew_stops_before_another_replica_begins(
    server: ApiServer, clock: Clock
) -> None:
    one = replica(server, "one")
    one.attempt()
    assert one.ensure() == TIMING.duration
    server.inject(refuse(500), plural="leases", times=100)
    for _ in range(4):
        clock.now += 2.0
        one.attempt()
        assert one.is_leader()
    assert "500" in one.problem
    clock.now += 2.0
    one.attempt()
    assert not one.is_leader()
    with pytest.raises(LeadershipLost):
        one.ensure()
    # A write that began just before had to end while the Lease still counted.
    clock.now -= 0.01
    assert one.ensure() == pytest.approx(TIMING.duration - TIMING.renewal + 0.01)


def test_a_leader_whose_lease_was_taken_stops_at_once(server: ApiServer, clock: Clock) -> None:
    one = replica(server, "one")
    one.attempt()
    server.client().patch(COORDINATION_LEASES, election.NAME, {"spec": {"holderIdentity": "two"}}, NAMESPACE)
    clock.now += 2.0
    one.attempt()
    assert (one.is_leader(), one.holder) == (False, "two")


def test_of_two_replicas_that_take_an_expired_lease_one_gets_it(server: ApiServer, clock: Clock) -> None:
    replica(server, "old").attempt()
    two, three = replica(server, "two"), replica(server, "three")
    for each in (two, three):
        each.attempt()
    clock.now += TIMING.duration + 1

    def overtake(api: ApiServer, _: object) -> None:
        three.attempt()

    server.inject(overtake, verb="patch", plural="leases")
    two.attempt()
    assert (two.is_leader(), three.is_leader(), two.problem) == (False, True, "")
    two.attempt()
    assert two.holder == "three"


def test_an_answer_that_was_lost_makes_no_second_leader(server: ApiServer, clock: Clock) -> None:
    one = replica(server, "one")
    server.inject(drop, verb="create", plural="leases", after=True)
    one.attempt()
    # Its own object stands in its way: it reads whose it is.
    one.attempt()
    assert (one.is_leader(), spec(server)["holderIdentity"]) == (True, "one")


def test_a_lease_that_was_deleted_is_made_again(server: ApiServer, clock: Clock) -> None:
    one = replica(server, "one")
    one.attempt()
    server.client().delete(COORDINATION_LEASES, election.NAME, NAMESPACE)
    one.attempt()
    assert (one.is_leader(), spec(server)["holderIdentity"]) == (True, "one")


def test_a_replica_that_ends_gives_the_lease_back() -> None:
    timing = Timing(duration=15.0, renewal=10.0, retry=0.05)
    with running_api_server() as server:
        changes: list[bool] = []
        one = Election(server.client(), Seat(NAMESPACE, "one"), lambda: changes.append(True), timing)
        thread = threading.Thread(target=one.run)
        thread.start()
        end = time.monotonic() + 10
        while not one.is_leader() and time.monotonic() < end:
            time.sleep(0.01)
        one.stop()
        thread.join(10)
        assert (one.is_leader(), spec(server)["holderIdentity"], bool(changes)) == (False, "", True)
        two = replica(server, "two")
        two.attempt()
        assert two.is_leader()


def test_a_namespace_that_is_not_there_is_named(server: ApiServer, clock: Clock) -> None:
    server.inject(refuse(404, "NotFound", 'namespaces "x" not found'), verb="create", plural="leases")
    one = replica(server, "one")
    one.attempt()
    assert not one.is_leader()
    assert "is there a namespace cnvnet-system? --namespace" in one.problem
