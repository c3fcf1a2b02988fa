"""Eight clients attach and detach all the time while the agent, its packet loop or nftables are lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.concurrent_clients import CLIENTS, TRY_AGAIN, ConcurrentClients
from tests.faults.conftest import TIMES
from tests.functional.agent.own_agent import RunningAgent, running_agent
from tests.functional.bridge.bridge_network import ruleset
from tests.harness import Node

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300 + 120 * TIMES)]

ROUNDS = 5 * TIMES
# Beyond what one fault takes: a call that waits for an agent or a lock that never comes takes a minute.
PATIENCE = 30.0


def assert_sound(clients: ConcurrentClients) -> None:
    assert clients.wrong == []
    assert sum(clients.codes["ADD", code] for code in (0, TRY_AGAIN)) == CLIENTS * ROUNDS
    assert clients.codes["ADD", 0] > CLIENTS * ROUNDS / 4, clients.codes
    assert clients.slowest < PATIENCE
    clients.assert_nothing_is_left()


def test_the_agent_is_killed(node: Node) -> None:
    with running_agent(node, "--metrics-address", "") as agent:
        clients = ConcurrentClients(node, agent="auto")

        def fault() -> None:
            time.sleep(0.5)
            agent.kill()
            time.sleep(0.1)  # executables run the calls themselves meanwhile
            agent.start()

        clients.work(ROUNDS, fault)
        assert_sound(clients)


def test_the_packet_loop_is_killed(node: Node) -> None:
    with running_agent(node, "--metrics-address", "") as agent:
        clients = ConcurrentClients(node, agent="auto", allowed=())
        clients.work(ROUNDS, agent.kill_loop)
        assert_sound(clients)


def test_the_agent_stands_still(node: Node) -> None:
    with running_agent(node, "--metrics-address", "") as agent:
        clients = ConcurrentClients(node, agent="auto")
        clients.work(ROUNDS, lambda: _stopped(agent))
        assert_sound(clients)


def _stopped(agent: RunningAgent) -> None:
    time.sleep(0.2)
    os.kill(agent.pid, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(agent.pid, signal.SIGCONT)


@pytest.mark.parametrize("way", ["auto", "off"])
def test_the_ruleset_is_flushed(node: Node, way: str) -> None:
    def fault() -> None:
        time.sleep(0.07)
        node.run("nft", "flush", "ruleset")

    with running_agent(node, "--metrics-address", ""):
        clients = ConcurrentClients(node, agent=way)
        clients.work(ROUNDS, fault)
        assert_sound(clients)
        # An attachment that comes afterwards is guarded, whatever the last flush has taken along.
        pod = node.pod()
        outcome = clients.add(pod, "last")
        port = outcome.ok()["interfaces"][1]["name"]
        assert port in ruleset(node)
        clients.delete(pod, "last")


def test_no_agent_at_all(node: Node) -> None:
    clients = ConcurrentClients(node, agent="off", allowed=())
    clients.work(ROUNDS, lambda: time.sleep(0.1))
    assert_sound(clients)


def test_an_error_of_another_kind_is_noticed(node: Node) -> None:
    """That the clients would see what the other tests say does not happen."""
    clients = ConcurrentClients(node, agent="off")
    assert clients.add(node.pod(), "not/valid").code == 1
    assert len(clients.wrong) == 1
