"""Many processes at once on one store: no collision, no "database is locked", whichever is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from tests.functional.static_ip.lease_network import NOWHERE, Addresses
from tests.harness import Node, Outcome, executable

pytestmark = pytest.mark.every_way


def at_once(network: Addresses, command: str, containers: list[str]) -> dict[str, Outcome]:
    """The same call for many containers, all started together; a VM of its own for each."""
    with ThreadPoolExecutor(len(containers)) as pool:
        calls = {each: pool.submit(network.call, command, each, f"vm-{each}") for each in containers}
        return {each: call.result() for each, call in calls.items()}


def consistent(network: Addresses) -> None:
    """Nothing is broken, nothing contradicts itself, and the next call goes through."""
    assert network.rows("PRAGMA integrity_check") == [("ok",)]
    orphans = "SELECT count(*) FROM addresses WHERE lease NOT IN (SELECT id FROM leases)"
    assert network.rows(orphans) == [(0,)]
    assert network.rows("SELECT count(*) FROM holders WHERE lease NOT IN (SELECT id FROM leases)") == [(0,)]
    runs: list[str] = []
    for first, last in network.rows("SELECT first, last FROM runs"):
        begin, size = ip_address(first[1:]), int.from_bytes(last, "big") - int.from_bytes(first, "big")
        runs.extend(str(begin + offset) for offset in range(size + 1))
    assert sorted(runs) == sorted(network.taken())


def test_sixteen_processes_on_a_store_that_does_not_exist_yet(node: Node) -> None:
    network = Addresses(node)
    containers = [f"c{number}" for number in range(16)]
    answers = at_once(network, "ADD", containers)
    given = [outcome.ok()["ips"][0]["address"] for outcome in answers.values()]
    assert len(set(given)) == 16
    assert len(network.taken()) == 16
    consistent(network)
    for outcome in at_once(network, "DEL", containers).values():
        assert outcome.ok() is None
    assert network.rows("SELECT * FROM holders") == []
    assert len(network.taken()) == 16


def test_sixteen_processes_on_the_last_ten_addresses(node: Node) -> None:
    network = Addresses(node, subnet="10.1.0.0/24", rangeStart="10.1.0.11", rangeEnd="10.1.0.20")
    answers = at_once(network, "ADD", [f"c{number}" for number in range(16)])
    given = [outcome.ok()["ips"][0]["address"] for outcome in answers.values() if outcome.code == 0]
    refusals = [outcome.error()["msg"] for outcome in answers.values() if outcome.code]
    assert len(given) == len(set(given)) == 10
    text = "network blue: all 10 addresses of 10.1.0.11-10.1.0.20 are taken: 10 in use"
    assert refusals == [f"{text}: give the network a wider range"] * 6
    consistent(network)


def test_the_same_vm_from_sixteen_pods_has_one_address(node: Node) -> None:
    network = Addresses(node)
    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(network.add, f"c{number}", "vm1") for number in range(16)]
    assert len({tuple(call.result()) for call in calls}) == 1
    roles = [role for (role,) in network.rows("SELECT role FROM holders")]
    assert sorted(roles) == ["active"] + ["leaving"] * 15


@pytest.mark.parametrize("seed", range(3))
def test_killed_processes_leave_nothing_that_harms(node: Node, seed: int) -> None:
    network = Addresses(node, subnet="10.1.0.0/27")
    chance = random.Random(seed)
    containers = [f"c{number}" for number in range(24)]
    started = [start(node, network, each) for each in containers]
    killed = set(chance.sample(range(24), 10))
    for index in killed:
        time.sleep(chance.random() * 0.02)
        started[index].send_signal(signal.SIGKILL)
    answers = [each.communicate()[0] for each in started]
    given: dict[str, str] = {}
    for index, (container, process, answer) in enumerate(zip(containers, started, answers, strict=True)):
        if index not in killed:
            assert process.returncode == 0, answer
        if process.returncode == 0:
            given[container] = json.loads(answer)["ips"][0]["address"].partition("/")[0]
    assert len(set(given.values())) == len(given)
    assert set(given.values()) <= set(network.taken())
    consistent(network)
    # The killed calls are made again, as a runtime does, and each container has an address of its own.
    for container in containers:
        given[container] = network.add(container, f"vm-{container}")[0]
    assert len(set(given.values())) == 24
    assert set(network.taken()) == set(given.values())
    consistent(network)


def start(node: Node, network: Addresses, container: str) -> subprocess.Popen[str]:
    environment = node.environment(
        CNI_COMMAND="ADD",
        CNI_CONTAINERID=container,
        CNI_NETNS=NOWHERE,
        CNI_IFNAME="eth0",
        CNI_PATH="/nowhere",
        CNI_ARGS=f"VM_NAME=vm-{container}",
    )
    # In the node's namespace an agent hears it.
    process = node.popen(
        executable("static-ip"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(network.config))
    process.stdin.close()
    process.stdin = None
    return process
