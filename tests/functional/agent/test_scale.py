"""One agent and five hundred guests: all are answered, and it costs next to nothing."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, Key, Record
from cnvnet.guest import settings_json
from cnvnet.guest.settings import V4, Settings
from cnvnet.kernel.boot import boot_id
from tests.functional.agent.own_agent import RunningAgent, children, eventually, running_agent
from tests.functional.masquerade.masquerade_pod import open_tap
from tests.harness import Node, Sandbox, a_node

pytestmark = pytest.mark.alone

PODS = 20
PER_POD = 25
GUESTS = PODS * PER_POD
SERVER_MAC = "02:00:00:00:00:00"


class Guest(NamedTuple):
    """A guest by its open tap, in the place of QEMU."""

    number: int
    tap: int

    @property
    def mac(self) -> bytes:
        return bytes((2, 0, 0, 1, self.number >> 8, self.number & 255))

    @property
    def address(self) -> IPv4Address:
        return IPv4Address("10.0.0.0") + self.number + 10

    def renew(self) -> None:
        """A REQUEST as of a client that has its address, and asks its server directly."""
        source = str(self.address)
        request = (
            Ether(src=self.mac.hex(":"), dst=SERVER_MAC)
            / IP(src=source, dst="10.0.0.1")
            / UDP(sport=68, dport=67)
            / BOOTP(op=1, xid=self.number, chaddr=self.mac, ciaddr=source)
            / DHCP(options=[("message-type", "request"), "end"])
        )
        os.write(self.tap, bytes(request))

    def is_acked(self, frame: bytes) -> bool:
        answer = Ether(frame)
        if DHCP not in answer:
            return False
        kinds = [option for option in answer[DHCP].options if option[0] == "message-type"]
        return kinds == [("message-type", 5)] and answer[BOOTP].yiaddr == str(self.address)


class Node500(NamedTuple):
    """All of it."""

    node: Node
    guests: list[Guest]
    names: list[str]


def settings(guest: Guest) -> dict[str, object]:
    v4 = V4(IPv4Interface(f"{guest.address}/16"), IPv4Address("10.0.0.1"), IPv4Address("10.0.0.1"))
    servers = (IPv4Address("10.96.0.10"),)
    base = Settings(SERVER_MAC, 1500, hostname=f"vm{guest.number}", nameservers=servers, v4=v4)
    return settings_json.encode(base._replace(search=("cluster.local",)))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node500]:
    folder: Path = tmp_path_factory.mktemp("crowd")
    with a_node(folder) as node, ExitStack() as opened:
        guests = [guest for index in range(PODS) for guest in guests_of(node.pod(), index, node, opened)]
        names = sorted(path.name for path in (node.rundir / "attachments").iterdir())
        assert len(names) == GUESTS
        yield Node500(node, guests, names)


def guests_of(pod: Sandbox, index: int, node: Node, opened: ExitStack) -> Iterator[Guest]:
    """Guests of one pod, with their records."""
    files = AttachmentFiles(str(node.rundir))
    inode = os.stat(pod.netns).st_ino
    for number in range(index * PER_POD, (index + 1) * PER_POD):
        name = f"tap{number}"
        guest = Guest(number, open_tap(pod, name))
        opened.callback(os.close, guest.tap)
        key = Key("masquerade", "net", f"container-{number}", "eth0")
        recorded = {"ifname": name, "settings": settings(guest)}
        with files.locked(key) as slot:
            slot.write(Record(key, pod.netns, inode, boot_id(), ADDED, {}, recorded))
        yield guest
    lines = [f"link set tap{number} up\n" for number in range(index * PER_POD, (index + 1) * PER_POD)]
    pod.run("ip", "-batch", "-", input="".join(lines))


def answered(guests: list[Guest], seconds: float) -> set[int]:
    """The guests whose ACK comes in time, all of which have asked."""
    by_fd = {guest.tap: guest for guest in guests}
    found: set[int] = set()
    poll = select.poll()
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while len(found) < len(guests) and time.monotonic() < deadline:
        for fd, _ in poll.poll(1000):
            if by_fd[fd].is_acked(os.read(fd, 70000)):
                found.add(by_fd[fd].number)
    return found


def processes(agent: RunningAgent) -> tuple[int, int]:
    return agent.pid, agent.loop_pid


def memory(pid: int) -> int:
    """Bytes of memory that a process has for itself, with its part of what it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def ticks(pid: int) -> int:
    """Processor time, user and system, in clock ticks (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_all_renew_within_a_minute(crowd: Node500) -> None:
    with running_agent(crowd.node) as agent:
        assert eventually(lambda: agent.serves() == GUESTS), agent.log()
        for _ in range(2):
            for guest in crowd.guests:
                guest.renew()
            assert answered(crowd.guests, 60) == set(range(GUESTS))
        assert (children(agent.pid), children(agent.loop_pid)) == ([agent.loop_pid], [])
        used = {pid: memory(pid) for pid in processes(agent)}
        assert sum(used.values()) < 150e6
        # Quiet now, for as long as it takes to see a hundredth.
        before = sum(map(ticks, processes(agent)))
        seconds = 10
        time.sleep(seconds)
        spent = (sum(map(ticks, processes(agent))) - before) / os.sysconf("SC_CLK_TCK")
        assert spent < 0.01 * seconds


def test_all_are_back_after_a_crash(crowd: Node500) -> None:
    with running_agent(crowd.node) as agent:
        agent.kill()
        agent.start()
        assert agent.serves() == GUESTS
        agent.kill_loop()
        assert eventually(lambda: agent.serves() == GUESTS)
        for guest in crowd.guests:
            guest.renew()
        assert answered(crowd.guests, 60) == set(range(GUESTS))


def test_forgotten_guests_leave_no_descriptors_open(crowd: Node500) -> None:
    with running_agent(crowd.node) as agent:
        assert len(os.listdir(f"/proc/{agent.loop_pid}/fd")) > GUESTS
        # What it handed over it does not keep.
        assert len(os.listdir(f"/proc/{agent.pid}/fd")) < GUESTS / 2
        for name in crowd.names:
            assert agent.ask(guest="forget", record=name)["ok"]
        assert len(os.listdir(f"/proc/{agent.loop_pid}/fd")) < 50
