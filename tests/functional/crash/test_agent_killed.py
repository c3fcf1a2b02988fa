"""The agent killed before each change that a call makes: its caller tries again, and that is enough."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from tests.functional.agent.launcher_calls import cni
from tests.functional.agent.own_agent import RunningAgent, eventually, first_worker, running_agent, straced
from tests.functional.crash.node_state import AttachmentState, attachment_state
from tests.functional.crash.strace import Moment, moments, without_monotony
from tests.functional.crash.test_bridge_killed import ROUTED, VM
from tests.harness import Node, Sandbox

# There are many moments, and other tests beside this one.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("kind", ["c", "python"])
def test_killed_at_any_moment_of_a_call_it_leaves_nothing_that_is_not_repaired(
    node: Node, command: str, kind: str
) -> None:
    pod, neighbour = node.pod(), node.pod()
    missed = 0
    with running_agent(node) as agent:
        call(node, "ADD", neighbour, "c", "neighbour")
        come_and_go(node, pod)
        before = state(node, pod)
        found = moments_of(node, agent, command, pod)
        assert len(found) > 15
        for number, moment in enumerate(found[kind == "c" :: 2]):
            if command == "DEL":
                call(node, "ADD", pod)
            else:
                come_and_go(node, pod)  # where the worker is the first one again, and has its connections
            with killing(agent, moment):
                outcome = cni(node, command, pod, kind, config=ROUTED, args=VM, container_id="c1")
            if outcome.code == 0:
                missed += 1
            else:
                error = outcome.error()
                assert (error["code"], "was lost" in error["msg"]) == (11, True), moment
                agent.process.wait()
                agent.start()
            # Whatever the runtime does next; DEL is right in any case.
            if number % 2 or command == "DEL":
                call(node, "DEL", pod)
            assert_it_works(node, pod, again=command == "ADD" and number % 2 == 0)
            assert state(node, pod) == before, moment
    assert missed < len(found) / 10


def assert_it_works(node: Node, pod: Sandbox, *, again: bool) -> None:
    outcome = cni(node, "ADD", pod, config=ROUTED, args=VM, container_id="c1")
    if again and outcome.code:
        # Killed with everything done: the agent cannot tell that its caller does not know.
        assert "already exists" in outcome.error()["msg"]
        call(node, "DEL", pod)
        outcome = cni(node, "ADD", pod, config=ROUTED, args=VM, container_id="c1")
    added = {**ROUTED, "prevResult": outcome.ok()}
    cni(node, "CHECK", pod, config=added, args=VM, container_id="c1").ok()
    call(node, "DEL", pod)


def call(node: Node, command: str, pod: Sandbox, kind: str = "c", container: str = "c1") -> None:
    args = VM if container == "c1" else f"VM_NAME={container}"
    cni(node, command, pod, kind, config=ROUTED, args=args, container_id=container).ok()


def come_and_go(node: Node, pod: Sandbox) -> None:
    call(node, "ADD", pod)
    call(node, "DEL", pod)


def state(node: Node, pod: Sandbox) -> AttachmentState:
    """All that belongs to attachments, but for the time since when a VM is stopped."""
    assert eventually(lambda: all(link["group"] == "default" for link in node.links().values()))
    found = attachment_state(node, pod)
    return found._replace(leases=tuple(lease._replace(since=0) for lease in found.leases))


def moments_of(node: Node, agent: RunningAgent, command: str, pod: Sandbox) -> list[Moment]:
    log = node.folder / "trace"
    if command == "DEL":
        call(node, "ADD", pod)
    kinds = "write,pwrite64,fsync,fdatasync,ftruncate,openat,mkdir,rename,unlink,sendto,sendmsg,setns"
    with straced([first_worker(agent)], "-y", "-s", "16", "-o", str(log), f"--trace={kinds}"):
        call(node, command, pod)
    # Of one thread: strace does not say which.
    log.write_text("".join(f"1 {line}\n" for line in log.read_text().splitlines()))
    if command == "ADD":
        call(node, "DEL", pod)
    # The line about the call is written when its caller has the answer.
    changes = [moment for moment in moments(log, node.folder) if agent.log_file.name not in moment.text]
    return without_monotony(changes)


def killing(agent: RunningAgent, moment: Moment) -> AbstractContextManager[None]:
    inject = f"--inject={moment.name}:signal=KILL:when={moment.number}"
    return straced([first_worker(agent)], "-o", "/dev/null", f"--trace={moment.name}", inject)
