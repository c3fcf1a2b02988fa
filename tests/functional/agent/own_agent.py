"""An agent of one's own, for any functional test.

    with running_agent(node) as agent:
        node.cni("masquerade", "ADD", {..., "guestServices": {}}, pod).ok()
        agent.ask(guest="check", record=...)
        agent.metrics()["cnvnet_calls_waiting"]

It runs in the node's network namespace on the node's RUNDIR, answers when the block begins, and has ended,
with its packet loop, when the block has ended. `agent.kill()` is kill -9, `agent.start()` the next one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnvnet.agent.server import WORKERS
from tests.harness import Node, executable, peer

# Longer than anything takes on a busy machine: what has not happened by then is not going to.
PATIENCE = 30.0


def eventually(what: Callable[[], object], seconds: float = PATIENCE) -> Any:
    """The first true value of `what`, asked again and again; the last one, should none come in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def ask(path: Path | str, request: dict[str, Any] | bytes, timeout: float = PATIENCE) -> Any:
    """One request on an agent's socket; bytes go as they are, with their length before them."""
    content = request if isinstance(request, bytes) else json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(len(content).to_bytes(4, "big") + content)
        return json.loads(received(connection)[4:])


def received(connection: socket.socket) -> bytes:
    """All that comes until the other end hangs up."""
    content = b""
    while chunk := connection.recv(65536):
        content += chunk
    return content


def process_of(path: Path | str) -> int:
    """The process that listens at a socket, as it says itself by listening."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")


def is_there(pid: int) -> bool:
    """Whether a process runs. One that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started, whichever of its threads did."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread that has just ended
    return [child for child in found if is_there(child)]


def capabilities_of_the_unit() -> list[str]:
    """What systemd's unit leaves to the agent, as setpriv calls it."""
    unit = Path(__file__).parents[3] / "conf/systemd/cnvnet-agent.service"
    (line,) = (line for line in unit.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    return [name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split()]


def within_capabilities(names: Sequence[str]) -> tuple[str, ...]:
    """A command that runs the agent with these capabilities, and with no way to get others."""
    bounding = ",".join(["-all", *(f"+{name}" for name in names)])
    return "setpriv", "--bounding-set", bounding


class RunningAgent:
    """The agent of a node."""

    def __init__(
        self, node: Node, *options: str, within: Sequence[str] = (), stderr: int | None = None
    ) -> None:
        self._node = node
        self._options = options
        self._within = within
        self._stderr = stderr
        self._process: subprocess.Popen[str] | None = None
        self.socket = node.rundir / "agent.sock"
        self.log_file = node.folder / "agent.log"

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def loop_pid(self) -> int:
        """The packet loop's process, once there is one."""
        found: list[int] = eventually(lambda: children(self.pid)) or [0]
        return found[0]

    def start(self) -> None:
        command = [
            *self._within,
            executable("cnvnet-agent"),
            "--rundir",
            str(self._node.rundir),
            *self._options,
        ]
        before = self._times_ready()
        # In the node's namespace no other program has the address of the metrics. nsenter becomes the agent.
        with self.log_file.open("a") as log:
            stderr = log if self._stderr is None else self._stderr
            self._process = self._node.popen(*command, stderr=stderr, stdin=subprocess.DEVNULL)
        # The first of its workers may answer before the last one has begun.
        if self._stderr is None:
            eventually(lambda: self._times_ready() > before or self.process.poll() is not None)
        else:
            eventually(self.answers)
        assert self.answers(), self.log()

    def _times_ready(self) -> int:
        return self.log().count("agent ready") if self.log_file.exists() else 0

    def answers(self) -> bool:
        try:
            return bool(self.ask(status=True).get("ok"))
        except OSError:
            return False

    def ask(self, **request: Any) -> Any:
        return ask(self.socket, {"v": 1, **request})

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """kill -9, and the packet loop has gone after it."""
        loop = self.loop_pid
        self.process.kill()
        self.process.wait()
        assert eventually(lambda: not is_there(loop)), "the packet loop outlives its agent"

    def end(self) -> None:
        """Whatever state it is in: nothing is left running."""
        if self._process is None:
            return
        loops = children(self.pid) if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired as e:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the agent does not end: {self.log()}") from e
        eventually(lambda: not any(is_there(loop) for loop in loops))
        assert not any(is_there(loop) for loop in loops), "the packet loop outlives its agent"

    def kill_loop(self) -> None:
        """kill -9 of the packet loop; on return the next one is there."""
        killed = self.loop_pid
        os.kill(killed, signal.SIGKILL)
        assert eventually(lambda: self.loop_pid not in (0, killed)), self.log()

    def log(self) -> str:
        return self.log_file.read_text()

    def events(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log().splitlines()]

    def http(self, path: str, port: int = 9440) -> tuple[int, str]:
        """Status and content of a GET, asked inside the node's namespace."""
        script = (
            "import sys, urllib.request, urllib.error\n"
            "try: answer = urllib.request.urlopen(sys.argv[1], timeout=30)\n"
            "except urllib.error.HTTPError as e: answer = e\n"
            "print(answer.status); print(answer.read().decode(), end='')"
        )
        url = f"http://127.0.0.1:{port}{path}"
        status, _, content = self._node.run("python3", "-c", script, url).stdout.partition("\n")
        return int(status), content

    def metrics(self) -> dict[str, float]:
        """Each sample by its name and labels as they are written: `cnvnet_x_total{reason="snap"}`."""
        lines = self.http("/metrics")[1].splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def serves(self) -> int:
        return self.guests("served")

    def guests(self, state: str) -> int:
        """How many are "served" or "waiting", in all networks."""
        label = f'state="{state}"'
        found = self.metrics().items()
        return int(
            sum(value for name, value in found if name.startswith("cnvnet_guests{") and label in name)
        )


def threads_of(agent: RunningAgent) -> list[int]:
    return sorted(int(name) for name in os.listdir(f"/proc/{agent.pid}/task"))


def first_worker(agent: RunningAgent) -> int:
    """The thread that takes the next connection while all workers wait: the one that answers us."""
    before = _work_of_all_workers(agent)
    assert agent.answers()
    after = _work_of_all_workers(agent)
    return max(after, key=lambda thread: after[thread] - before[thread])


def _work_of_all_workers(agent: RunningAgent) -> dict[int, int]:
    """Nanoseconds of each, when all of them wait."""

    def waiting() -> list[int]:
        return [each for each in threads_of(agent) if "epoll" in Path(f"/proc/{each}/wchan").read_text()]

    assert eventually(lambda: len(waiting()) == WORKERS)
    return {each: int(Path(f"/proc/{each}/schedstat").read_text().split()[0]) for each in waiting()}


@contextmanager
def straced(threads: Sequence[int], *options: str) -> Generator[None]:
    """strace at these threads, and none that comes later unless with -f, until the end of the block."""
    attach = [argument for thread in threads for argument in ("-p", str(thread))]
    with subprocess.Popen([peer("strace"), "-qq", *options, *attach]) as strace:
        try:
            assert eventually(lambda: all(_is_traced(thread) for thread in threads))
            yield
        finally:
            strace.terminate()


def _is_traced(thread: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{thread}/status").read_text()


@contextmanager
def running_agent(
    node: Node, *options: str, within: Sequence[str] = (), stderr: int | None = None
) -> Generator[RunningAgent]:
    """An agent that serves the guests of this node; `options` are the executable's.

    `within` is a command that becomes the executable, given as its last arguments, such as setpriv;
    `stderr` a descriptor that its log goes to, instead of the file that `log` and `events` read.
    """
    agent = RunningAgent(node, *options, within=within, stderr=stderr)
    try:
        agent.start()
        yield agent
    finally:
        agent.end()
