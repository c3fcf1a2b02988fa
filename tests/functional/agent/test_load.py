"""Many calls at once: none is lost, none acts in the wrong place, and a stuck one holds up no other."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from cnvnet.agent.calls.scheduler import MAX_RUNNING, MAX_SHARED
from cnvnet.kernel.stack import LinuxKernel
from tests.functional.agent.launcher_calls import CONFIG, Ipam, Started, Wire, start
from tests.functional.agent.own_agent import RunningAgent, eventually, first_worker, running_agent, straced
from tests.functional.guest.test_flood import Flood
from tests.functional.masquerade.masquerade_pod import Lab, open_tap
from tests.harness import Node, Sandbox
from tests.unit.guest.scapy_packets import discover4

pytestmark = pytest.mark.alone

THREADS = 16
CALLS = 10_000


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    made = Wire(node)
    yield made
    made.close()


def resident_kilobytes(agent: RunningAgent) -> int:
    for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


class Attachment:
    """An interface in a namespace of its own, whose name tells whose it is."""

    def __init__(self, wire: Wire, netns: str, number: int) -> None:
        self._wire = wire
        self._netns = netns
        self._env = {"CNI_CONTAINERID": f"c{number}", "CNI_IFNAME": f"if{number}", "CNI_PATH": "/nowhere"}
        self._number = number
        self._added: dict[str, Any] | None = None

    def step(self) -> None:
        """One call, and a look at the namespace: it has this interface, as the result says, and no other."""
        command = "ADD" if self._added is None else random.choice(("CHECK", "DEL"))
        config = {**CONFIG, "macspoofchk": self._number % 2 == 0, "prevResult": self._added}
        response = self._wire.call("cnv-bridge", config, self._netns, CNI_COMMAND=command, **self._env)
        assert response is not None
        assert (response.exit, response.stderr) == (0, b""), response
        if command == "ADD":
            self._added = json.loads(response.stdout)
        elif command == "DEL":
            self._added = None
        assert self._seen() == self._expected()

    def _expected(self) -> dict[str, str]:
        interfaces: list[dict[str, str]] = self._added["interfaces"] if self._added is not None else []
        return {each["name"]: each["mac"] for each in interfaces if each.get("sandbox")}

    def _seen(self) -> dict[str, str]:
        kernel = LinuxKernel()
        with kernel.netns(self._netns) as netns, kernel.stack(netns) as stack:
            return {link.name: link.mac for link in stack.links() if link.name != "lo"}


def test_no_call_ever_acts_in_anothers_namespace(node: Node, wire: Wire) -> None:
    with running_agent(node) as agent:
        pods = [node.pod() for _ in range(THREADS)]
        # The one of each thread, and one that all of them have: calls of one namespace by many workers.
        attachments = [Attachment(wire, pod.netns, number) for number, pod in enumerate(pods)]

        def work(attachment: Attachment) -> None:
            for _ in range(CALLS // THREADS):
                attachment.step()

        descriptors = len(os.listdir(f"/proc/{agent.pid}/fd"))
        with ThreadPoolExecutor(THREADS) as threads:
            for done in [threads.submit(work, each) for each in attachments]:
                done.result()
        numbers = agent.metrics()
        calls = sum(v for name, v in numbers.items() if name.startswith("cnvnet_cni_calls_total"))
        assert calls == CALLS // THREADS * THREADS
        # Sockets to the host's nftables are kept, one for each worker at most.
        assert len(os.listdir(f"/proc/{agent.pid}/fd")) <= descriptors + THREADS
        assert resident_kilobytes(agent) < 100_000
        assert not [event for event in agent.events() if event["level"] == "error"]


def test_two_hundred_at_once_wait_and_none_is_lost(node: Node, tmp_path: Path) -> None:
    pods = [node.pod() for _ in range(8)]

    def all_at_once(command: str) -> None:
        started = [
            start(node, command, pods[n % 8], {}, CNI_CONTAINERID=f"c{n}", CNI_IFNAME=f"if{n}")
            for n in range(200)
        ]
        for each in started:
            each.outcome().ok()

    with running_agent(node) as agent:
        all_at_once("ADD")
        assert [len(pod.links()) for pod in pods] == [26] * 8
        all_at_once("DEL")
        assert eventually(lambda: all(set(pod.links()) == {"lo"} for pod in pods))
        assert agent.metrics()['cnvnet_cni_calls_total{code="0",command="ADD",plugin="cnv-bridge"}'] == 200
        assert resident_kilobytes(agent) < 100_000


def seconds_at_work(agent: RunningAgent) -> float:
    """Processor time of the agent itself, without its packet loop."""
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_guest_that_floods_costs_calls_nothing(lab: Lab) -> None:
    """It is answered by another process: whatever it sends, the agent works for its calls only."""

    def calls_of(wire: Wire, agent: RunningAgent) -> float:
        begun = seconds_at_work(agent)
        for number in range(300):
            for command in ("ADD", "DEL"):
                env = {"CNI_CONTAINERID": f"c{number}", "CNI_IFNAME": "if0", "CNI_PATH": "/nowhere"}
                response = wire.call("cnv-bridge", CONFIG, other.netns, CNI_COMMAND=command, **env)
                assert response is not None
                assert response.exit == 0, response
        return seconds_at_work(agent) - begun

    pod, other = lab.pod(), lab.node.pod()
    with running_agent(lab.node) as agent, closing(Wire(lab.node)) as wire:
        pod.cni("ADD", guestServices={}).ok()
        calls_of(wire, agent)  # the first ones load what the others find
        alone = calls_of(wire, agent)
        tap = open_tap(pod, "tap0")
        flood = Flood(tap, discover4())
        try:
            assert eventually(lambda: agent.metrics()["cnvnet_guest_throttled_total"] > 0)
            beside = calls_of(wire, agent)
        finally:
            flood.end()
            os.close(tap)
    assert beside < 2 * alone + 0.2


def adds_of(ipam: Ipam, node: Node, pod: Sandbox, count: int, *, networks: int) -> list[Started]:
    """So many ADDs of different interfaces, dealt out to so many networks with this address manager."""
    return [
        start(
            node,
            "ADD",
            pod,
            {**ipam.keys, "name": f"stuck{number % networks}"},
            CNI_CONTAINERID=f"s{number}",
            CNI_IFNAME=f"if{number}",
            **ipam.path,
        )
        for number in range(count)
    ]


def test_a_stuck_address_manager_holds_up_its_own_network_only(node: Node, tmp_path: Path) -> None:
    stuck = Ipam(tmp_path, "stuck-ipam")
    stuck.hold.touch()
    pod, other = node.pod(), node.pod()
    with running_agent(node) as agent:
        waiting = adds_of(stuck, node, pod, 45, networks=5)
        # Six places for each of the five networks, or more.
        assert eventually(lambda: len(stuck.calls()) >= 30)
        for n in range(10):
            for command in ("ADD", "DEL"):
                start(node, command, other, {}, CNI_CONTAINERID=f"o{n}").outcome().ok()
        assert agent.ask(status=True)["ok"]
        assert len(stuck.calls()) < 45
        stuck.hold.unlink()
        codes = [each.outcome().code for each in waiting]
        assert codes == [0] * 45
        assert len(pod.links()) == 46


def test_a_slow_address_manager_serves_many_at_a_time(node: Node, tmp_path: Path) -> None:
    """Or the last of a hundred would wait for longer than its launcher does."""
    slow = Ipam(tmp_path)
    slow.hold.touch()
    pod = node.pod()
    with running_agent(node):
        waiting = adds_of(slow, node, pod, 30, networks=1)
        assert eventually(lambda: len(slow.calls()) == MAX_SHARED)
        slow.hold.unlink()
        assert [each.outcome().code for each in waiting] == [0] * 30


def test_large_configurations_do_not_fill_the_memory(node: Node, tmp_path: Path) -> None:
    stuck = Ipam(tmp_path)
    stuck.hold.touch()
    pod = node.pod()
    config = {**stuck.keys, "args": {"ballast": "x" * 3_000_000}}
    with running_agent(node) as agent:
        waiting = [
            start(node, "ADD", pod, config, CNI_CONTAINERID=f"s{n}", CNI_IFNAME=f"if{n}", **stuck.path)
            for n in range(20)
        ]
        assert eventually(lambda: len(stuck.calls()) == 2)
        # What waits are 60 MB.
        assert resident_kilobytes(agent) < 250_000
        stuck.hold.unlink()
        assert [each.outcome().code for each in waiting] == [0] * 20
        assert resident_kilobytes(agent) < 250_000


def test_a_call_that_is_stuck_in_the_kernel_holds_up_no_other(node: Node, wire: Wire) -> None:
    pod, other = node.pod(), node.pod()

    def calls() -> None:
        for command in ("ADD", "DEL"):
            env = {"CNI_CONTAINERID": "other", "CNI_IFNAME": "if0", "CNI_PATH": "/nowhere"}
            response = wire.call("cnv-bridge", CONFIG, other.netns, CNI_COMMAND=command, **env)
            assert response is not None
            assert response.exit == 0, response

    with running_agent(node) as agent:
        for _ in range(10):
            calls()
        worker = first_worker(agent)
        with stuck_once(worker):
            stuck = start(node, "ADD", pod, {}, CNI_CONTAINERID="stuck")
            assert eventually(lambda: "State:\tt" in Path(f"/proc/{worker}/status").read_text())
            for _ in range(10):
                calls()
            assert stuck.process.poll() is None
        stuck.outcome().ok()
        assert "eth0" in pod.links()


def stuck_once(thread: int) -> AbstractContextManager[None]:
    """This thread's next message to the kernel is not sent before the end of the block."""
    inject = "--inject=sendto:delay_enter=600s:when=1"
    return straced([thread], "-o", "/dev/null", "--trace=sendto", inject)


def test_a_full_house_has_room_for_guests_and_for_what_is_not_a_call(node: Node, tmp_path: Path) -> None:
    stuck = Ipam(tmp_path, "stuck-ipam")
    stuck.hold.touch()
    pod = node.pod()
    with running_agent(node) as agent:
        waiting = adds_of(stuck, node, pod, 80, networks=12)
        assert eventually(lambda: len(stuck.calls()) == MAX_RUNNING)
        assert agent.ask(status=True)["ok"]
        assert agent.ask(guest="forget", record="masquerade-0.json")["ok"]
        assert "protocol versions supported" in start(node, "", pod, {}).outcome().stderr
        assert len(stuck.calls()) == MAX_RUNNING
        stuck.hold.unlink()
        assert [each.outcome().code for each in waiting] == [0] * 80


def test_what_waits_may_need_more_descriptors_than_a_process_begins_with(node: Node, tmp_path: Path) -> None:
    """An agent started on demand has its caller's limit, mostly 1,024, and each call that waits has five."""
    stuck = Ipam(tmp_path, "stuck-ipam")
    stuck.hold.touch()
    pod = node.pod()
    with running_agent(node, within=("prlimit", "--nofile=128:4096")) as agent:
        waiting = adds_of(stuck, node, pod, 40, networks=1)
        assert eventually(lambda: len(os.listdir(f"/proc/{agent.pid}/fd")) > 40 * 5 or ended(waiting))
        stuck.hold.unlink()
        assert [each.outcome().code for each in waiting] == [0] * 40


def test_a_call_that_finds_no_descriptors_left_runs_in_its_own_process(node: Node, tmp_path: Path) -> None:
    stuck = Ipam(tmp_path, "stuck-ipam")
    stuck.hold.touch()
    pod = node.pod()
    with running_agent(node, within=("prlimit", "--nofile=1024:1024")) as agent:
        waiting = adds_of(stuck, node, pod, 100, networks=1)
        assert eventually(lambda: "a call was turned away" in agent.log())
        stuck.hold.unlink()
        assert {each.outcome().code for each in waiting} == {0}
        assert len(pod.links()) == 101


def ended(launchers: list[Started]) -> bool:
    return any(each.process.poll() is not None for each in launchers)
