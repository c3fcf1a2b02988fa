"""Concurrent calls: those for one attachment are serialised, many on a new bridge all succeed."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.functional.crash.call_service import Service, addresses, serving
from tests.functional.crash.node_state import attachment_state, held, leases
from tests.functional.crash.test_bridge_killed import ROUTED, VM
from tests.harness import Node, Outcome, Sandbox, executable

pytestmark = pytest.mark.alone

COUNT = 50


@pytest.fixture
def service(node: Node) -> Generator[Service]:
    with serving(node, "cnv-bridge", ROUTED) as made:
        yield made


def at_once(*calls: Callable[[], Outcome]) -> list[Outcome]:
    with ThreadPoolExecutor(16) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_fifty_adds_and_fifty_deletes_on_a_bridge_and_a_database_that_are_not_there_yet(
    node: Node, service: Service
) -> None:
    pods = [node.pod() for _ in range(COUNT)]

    def call(command: str, number: int) -> Outcome:
        return service.process(command, f"c{number}", pods[number], f"VM_NAME=vm-{number}")

    added = at_once(*(lambda n=n: call("ADD", n) for n in range(COUNT)))
    given = [ip for outcome in added for ip in addresses(outcome)]
    macs = [outcome.json["interfaces"][2]["mac"] for outcome in added]
    assert (len(set(given)), len(set(macs))) == (2 * COUNT, COUNT)
    assert len({outcome.json["interfaces"][0]["mac"] for outcome in added}) == 1, "one bridge has one MAC"
    assert len(attachment_state(node).links) == COUNT
    for outcome in at_once(*(lambda n=n: call("DEL", n) for n in range(COUNT))):
        outcome.ok()
    assert attachment_state(node, *pods[:2])[:4] == ((), (), (), ())
    assert held(node) == []
    assert len(leases(node)) == COUNT


def test_an_add_and_a_del_of_one_attachment_are_serialised(node: Node, service: Service) -> None:
    pod = node.pod()
    for _ in range(4):
        added, deleted, second = at_once(
            lambda: service.process("ADD", "c1", pod, VM),
            lambda: service.process("DEL", "c1", pod, VM),
            lambda: service.process("ADD", "c1", pod, VM),
        )
        deleted.ok()
        refused = [outcome.error()["msg"] for outcome in (added, second) if outcome.code]
        assert all("already exists" in message for message in refused)
        assert len(refused) < 2
        state = attachment_state(node, pod)
        assert len(state.links) == len(state.inside) <= 1
        assert len(held(node)) == len(state.links)
        for outcome in at_once(*[lambda: service.process("DEL", "c1", pod, VM)] * 3):
            outcome.ok()
        assert attachment_state(node, pod)[:4] == ((), (), (), ())
        assert held(node) == []


def test_a_del_waits_for_the_call_that_holds_the_record(node: Node, service: Service) -> None:
    pod = node.pod()
    service.process("ADD", "c1", pod, VM).ok()
    with ThreadPoolExecutor(1) as pool:
        with working_on_the_record(node):
            waiting = pool.submit(service.process, "DEL", "c1", pod, VM)
            time.sleep(1)
            assert not waiting.done()
            assert len(attachment_state(node, pod).inside) == 1
        waiting.result().ok()
    assert attachment_state(node, pod)[:4] == ((), (), (), ())


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_call_that_waits_too_long_asks_for_another_try_and_changes_nothing(
    node: Node, service: Service, command: str
) -> None:
    pod = node.pod()
    service.process("ADD", "c1", pod, VM).ok()
    before = attachment_state(node, pod)
    with working_on_the_record(node):
        error = service.process(command, "c1", pod, VM).error()
    assert error["code"] == 11
    assert "eth0 of container c1 in network blue" in error["msg"]
    assert attachment_state(node, pod) == before
    service.process("DEL", "c1", pod, VM).ok()


@contextmanager
def working_on_the_record(node: Node) -> Generator[None]:
    """Holds the lock of the only record, as a call does that works on the attachment."""
    (path,) = node.rundir.glob("attachments/*.json")
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def test_gc_of_one_network_touches_nothing_of_another(node: Node) -> None:
    """They share containers, bridge, database and even the addresses, which both masquerade."""
    both = [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.11", "rangeEnd": "10.1.0.12"}]
    config = {**ROUTED, "ipam": {"type": "static-ip", "ranges": [both]}}
    pods = [node.pod() for _ in range(2)]

    def add(service: Service, ifname: str) -> None:
        for number, pod in enumerate(pods):
            container = f"c{number}"
            node.cni("cnv-bridge", "ADD", service.config, pod, container_id=container, ifname=ifname).ok()

    def collect(service: Service, *valid: str) -> None:
        listed = [{"containerID": container, "ifname": "eth0"} for container in valid]
        service.call("GC", pod="", more={"cni.dev/valid-attachments": listed}).ok()

    with (
        serving(node, "cnv-bridge", config) as blue,
        serving(node, "cnv-bridge", {**config, "name": "green"}) as green,
    ):
        add(blue, "eth0")
        before = attachment_state(node, *pods)
        add(green, "eth1")
        assert len(attachment_state(node, *pods).links) == 4
        collect(green, "c0")  # which names an attachment of the other network
        assert attachment_state(node, *pods) == before
        collect(blue, "c1")
        assert len(attachment_state(node, *pods).links) == 1
        collect(blue)
    assert attachment_state(node, *pods) == ((), (), (), (), ())


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_time_among_others_they_leave_nothing(node: Node, service: Service, seed: int) -> None:
    """At no system call in particular, while others are at work on the same bridge and database."""
    chance = random.Random(seed)
    pods = {f"c{number}": node.pod() for number in range(16)}

    for command in ("ADD", "DEL", "ADD"):
        processes = {container: start(service, command, container, pod) for container, pod in pods.items()}
        doomed = chance.sample(sorted(pods), 8)
        for container in doomed:
            try:
                processes[container].wait(chance.random() * 0.2)
            except subprocess.TimeoutExpired:
                processes[container].send_signal(signal.SIGKILL)
        answers = {container: process.communicate()[0] for container, process in processes.items()}
        for container, process in processes.items():
            assert process.returncode in ((0, -9) if container in doomed else (0,)), answers[container]
        given = [ip for lease in leases(node) for ip in lease.ips]
        assert len(given) == len(set(given))
        if command == "DEL":
            for container in doomed:
                service.call("DEL", container).ok()
            assert attachment_state(node, *pods.values())[:4] == ((), (), (), ())
    for container, pod in pods.items():
        service.call("DEL", container, pod).ok()
    assert attachment_state(node, *pods.values())[:4] == ((), (), (), ())
    assert held(node) == []


def start(service: Service, command: str, container: str, pod: Sandbox) -> subprocess.Popen[str]:
    environment = service.node.environment(
        CNI_COMMAND=command,
        CNI_CONTAINERID=container,
        CNI_NETNS=pod.netns,
        CNI_IFNAME="eth0",
        CNI_PATH="/nowhere",
    )
    pipe = subprocess.PIPE
    program = executable(service.program)
    process = service.node.popen(program, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    process.stdin.write(json.dumps(service.config))
    process.stdin.close()
    process.stdin = None
    return process
