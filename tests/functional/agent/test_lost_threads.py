"""Threads that cannot leave a pod's namespace: new threads replace them, and no other call notices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.functional.agent.launcher_calls import Ipam, cni, start
from tests.functional.agent.own_agent import RunningAgent, eventually, running_agent, straced, threads_of
from tests.functional.agent.test_calls import nothing_is_left
from tests.functional.masquerade.masquerade_pod import Lab
from tests.harness import Node

pytestmark = pytest.mark.alone


def stranded(threads: Sequence[int]) -> AbstractContextManager[None]:
    """Each of these threads can enter one namespace, and not come back."""
    # It is tried twice before a thread is given up.
    inject = "--inject=setns:error=ENOMEM:when=2..3"
    return straced(threads, "-o", "/dev/null", "--trace=setns", inject)


def workers(agent: RunningAgent) -> dict[int, bool]:
    """All threads but the first, and whether they wait for an address manager that they have started."""
    tasks = Path(f"/proc/{agent.pid}/task")
    return {
        thread: bool({*(tasks / str(thread) / "children").read_text().split()} - {str(agent.loop_pid)})
        for thread in threads_of(agent)[1:]
    }


def busy_threads(agent: RunningAgent) -> list[int]:
    return [thread for thread, busy in workers(agent).items() if busy]


def idle_threads(agent: RunningAgent) -> list[int]:
    return [thread for thread, busy in workers(agent).items() if not busy]


def losses(agent: RunningAgent) -> int:
    return sum("another one replaces it" in event["msg"] for event in agent.events())


def test_a_worker_that_is_lost_is_replaced_and_the_others_work_on(node: Node, tmp_path: Path) -> None:
    ipam = Ipam(tmp_path)
    ipam.hold.touch()
    pod, other = node.pod(), node.pod()
    with running_agent(node) as agent:
        waiting = start(node, "ADD", other, ipam.keys, CNI_CONTAINERID="waits", **ipam.path)
        assert eventually(ipam.calls)
        behind = start(node, "DEL", other, ipam.keys, CNI_CONTAINERID="waits", **ipam.path)
        count = len(workers(agent))
        with stranded(idle_threads(agent)):
            error = cni(node, "ADD", pod).error()
            assert error["code"] == 11
            assert f"cannot leave {pod.netns}: setns: cannot allocate memory" in error["msg"]
            # The other stranded threads get lost as well, one call each; those that replace them do not.
            calls = 1
            while cni(node, "ADD", pod).code:
                calls += 1
                assert calls <= count
        assert losses(agent) == calls
        assert agent.process.poll() is None
        assert eventually(lambda: len(workers(agent)) == count), (len(workers(agent)), count)
        assert agent.http("/healthz")[0] == 200
        cni(node, "CHECK", pod).error()  # without prevResult
        cni(node, "DEL", pod).ok()
        ipam.hold.unlink()
        result = waiting.outcome().ok()
        assert result["ips"][0]["address"] == "10.9.0.2/16"
        behind.outcome().ok()
        assert eventually(lambda: nothing_is_left(node, pod) and nothing_is_left(node, other))


def test_calls_that_wait_for_a_lost_one_are_run(node: Node, tmp_path: Path) -> None:
    """Its place is theirs, although the thread that would have taken them on is no more."""
    ipam = Ipam(tmp_path)
    ipam.hold.touch()
    pod = node.pod()
    with running_agent(node) as agent:
        lost = start(node, "ADD", pod, ipam.keys, **ipam.path)
        assert eventually(ipam.calls)
        (thread,) = busy_threads(agent)
        descriptors = f"/proc/{agent.pid}/fd"
        before = len(os.listdir(descriptors))
        waiting = [start(node, "DEL", pod, ipam.keys, **ipam.path) for _ in range(3)]
        # The connection, and what came along with the call.
        assert eventually(lambda: len(os.listdir(descriptors)) == before + 3 * 5)
        with stranded([thread]):
            ipam.hold.unlink()
            assert lost.outcome().error()["code"] == 11
            for each in waiting:
                each.outcome().ok()
        assert losses(agent) == 1
        assert eventually(lambda: nothing_is_left(node, pod))


def test_guests_are_served_again_although_the_reconcilers_thread_is_lost(lab: Lab) -> None:
    with running_agent(lab.node) as agent:
        for _ in range(3):
            lab.pod().cni("ADD", guestServices={}).ok()
        with stranded(idle_threads(agent)):
            # It opens new sockets in all of the pods.
            agent.kill_loop()
            assert eventually(lambda: losses(agent) == 1)
            assert eventually(lambda: agent.serves() == 3), agent.log()
        assert losses(agent) == 1
        assert agent.http("/healthz")[0] == 200
