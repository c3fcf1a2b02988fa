"""A machine of one's own: a process tree in private namespaces, of which nothing stays when it ends.

Its network, its processes, its mounts, /run, /var/lib and /var/log are its own, and its /etc is a copy; the
rest of the file system is the host's. It lives as long as the standard input of its first process is open,
so it ends with a killed test run, too, and then the kernel kills what runs in it and takes its mounts and
network with it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TypeVar

from tests import harness

T = TypeVar("T")

# The host's are hidden, so that programs may use their usual paths.
_OWN_FOLDERS = ("run", "var/lib", "var/log")
# Read by all programs, and written by some.
_COPIED_FOLDER = "etc"
# Where containerd has a folder for each container.
CONTAINERS = "run/containerd/io.containerd.runtime.v2.task/k8s.io"
# What a kubelet writes if it finds anything else. It finds this, and the host's kernel keeps its settings.
_WRITTEN_BY_KUBELET = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}
# The first process. It ignores SIGCHLD, so that orphans it inherits leave no zombies.
_FIRST = r"""
set -eu
for own in $OWN_FOLDERS; do mount --bind "$FOLDER/$own" "/$own"; done
cd "$FOLDER/sys"
find . -type f | while read -r setting; do mount --bind "$setting" "/proc/sys/$setting"; done
cd /
# As on a node: a container may ask to see what is mounted later. The host's mounts stay apart.
mount --make-rshared /
ip link set lo up
echo
trap '' CHLD
exec cat
"""
# Outside, and the last to go: cgroups stay when all processes in them have ended. Those of containers are
# called like the containers.
_SUPERVISOR = r"""
unshare --net --mount --pid --fork --kill-child --mount-proc sh -c "$1"
for container in "$CONTAINERS"/*; do
    for cgroup in /sys/fs/cgroup/k8s.io /sys/fs/cgroup/*/k8s.io; do
        [ ! -d "$cgroup/${container##*/}" ] || rmdir "$cgroup/${container##*/}"
        [ ! -d "$cgroup" ] || rmdir --ignore-fail-on-non-empty "$cgroup"
    done
done
exit 0
"""


def eventually(look: Callable[[], T | None], what: str, *, seconds: float = 60) -> T:
    """The first true value that `look` returns; fails with `what` (and the last value) if none comes."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}; last seen: {seen!r}"
        time.sleep(0.05)


class Daemon:
    """A program that runs in a machine; its output goes to a file."""

    def __init__(self, entrance: list[str], argv: tuple[str, ...], log: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as out:
            self._entrance = subprocess.Popen(
                [*entrance, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )
        self.name = Path(argv[0]).name
        self.pid = eventually(self._child, f"{self.name} started")

    def _child(self) -> int | None:
        self.assert_running()
        return _child_of(self._entrance.pid)

    def assert_running(self) -> None:
        if (code := self._entrance.poll()) is not None:
            raise AssertionError(f"{self.name} ended with {code}: {self.log.read_text()[-3000:]}")

    def children(self) -> list[int]:
        """The processes that it has started."""
        return _children(self.pid)

    def kill(self) -> None:
        """SIGKILL, and it is gone when this returns."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """SIGTERM, and it has ended when this returns."""
        os.kill(self.pid, signal.SIGTERM)
        self.wait()

    def wait(self) -> None:
        self._entrance.wait(30)


class Machine(harness.Node):
    """A machine that runs. `folder` has its files: `folder/run` is its /run, and so on."""

    def __init__(self, name: str, folder: Path, first: int, undo: ExitStack) -> None:
        """`first` is the process id of its first process as seen from here."""
        super().__init__(f"/proc/{first}/ns/net", folder, undo)
        self.name = name
        self.first = first
        self.rundir = folder / "run/cnvnet"
        self.statedir = folder / "var/lib/cnvnet"
        self._daemons: list[Daemon] = []

    def path(self, path: str) -> str:
        """How a path of the machine is called outside, mounts included."""
        # An absolute symlink on the way would lead to the host's.
        return f"/proc/{self.first}/root{re.sub('^/var/run/', '/run/', path)}"

    def entrance(self) -> list[str]:
        """A command that runs the rest of its arguments in all of the machine's namespaces."""
        return ["nsenter", f"--target={self.first}", "--net", "--mount", "--pid", "--"]

    def start(self, *argv: str, env: dict[str, str] | None = None) -> Daemon:
        """Runs a program until the machine ends. Its log is named after it."""
        log = self.folder / f"{Path(argv[0]).name}.log"
        daemon = Daemon(self.entrance(), argv, log, {**_bare_environment(), **(env or {})})
        self._daemons.append(daemon)
        return daemon

    def inside(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program in all of the machine's namespaces; `run` enters only the network's."""
        done = subprocess.run(
            [*self.entrance(), *argv], text=True, check=False, capture_output=True, env=_bare_environment()
        )
        assert done.returncode == 0 or not check, f"{self.name}: {argv}: {done.stdout}{done.stderr}"
        return done

    def mounts(self) -> list[str]:
        """The places where something is mounted."""
        table = Path(f"/proc/{self.first}/mountinfo").read_text()
        return [line.split()[4] for line in table.splitlines()]

    def processes(self) -> list[int]:
        """All that runs in it and in its containers, by the ids it has outside."""
        own = os.readlink(f"/proc/{self.first}/ns/pid")
        found = [pid for pid in _all_processes() if _pid_namespace(pid) == own]
        # A container's processes have a namespace of their own; their parents are in this one.
        for pid in found:
            found += [child for child in _children(pid) if child not in found]
        return found

    def programs(self) -> list[str]:
        """The names of all that runs in it, sorted."""
        return sorted(name for pid in self.processes() if (name := _name(pid)))

    def cgroups(self) -> list[str]:
        """Those of its containers that are there, in whatever hierarchies there are."""
        containers = [path.name for path in self.folder.glob(f"{CONTAINERS}/*")]
        parents = [Path("/sys/fs/cgroup/k8s.io"), *Path("/sys/fs/cgroup").glob("*/k8s.io")]
        return [str(parent / name) for parent in parents for name in containers if (parent / name).exists()]

    def kill_all(self, argument: str) -> None:
        """SIGKILL to all that runs with this word on its command line, and they are gone."""
        for pid in self.processes():
            if argument in _command_line(pid):
                os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: not any(argument in _command_line(pid) for pid in self.processes()),
            f"{argument} is gone",
        )

    def wait(self) -> None:
        for daemon in self._daemons:
            daemon.wait()


@contextmanager
def running_machine(name: str, folder: Path) -> Generator[Machine]:
    """A machine that ends with the block, all that runs in it killed."""
    for each in (*_OWN_FOLDERS, "sys"):
        (folder / each).mkdir(parents=True)
    # Whatever a package leaves there, such as a link to nowhere.
    subprocess.run(["cp", "--archive", f"/{_COPIED_FOLDER}", folder], check=True)
    for setting, value in _WRITTEN_BY_KUBELET.items():
        file = folder / "sys" / setting
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    environment = {
        **_bare_environment(),
        "FOLDER": str(folder),
        "OWN_FOLDERS": " ".join((*_OWN_FOLDERS, _COPIED_FOLDER)),
        "CONTAINERS": str(folder / CONTAINERS),
    }
    with ExitStack() as undo:
        supervisor = subprocess.Popen(
            ["sh", "-c", _SUPERVISOR, "sh", _FIRST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # A Ctrl-C at the terminal is for pytest; the machine ends when pytest says so.
            start_new_session=True,
        )
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        undo.callback(supervisor.wait, 60)
        undo.callback(supervisor.stdout.close)
        undo.callback(supervisor.stdin.close)
        _assert_speaks(supervisor.stdout, name)
        unshare = _child_of(supervisor.pid)
        first = unshare and _child_of(unshare)
        assert first
        machine = Machine(name, folder, first, undo)
        try:
            yield machine
        finally:
            undo.close()
            machine.wait()


def _assert_speaks(stdout: IO[bytes], name: str) -> None:
    # An empty line: the first process is inside and everything is mounted. Nothing: it has failed.
    assert stdout.readline(), f"{name}: no private namespaces here"


def _bare_environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def _child_of(pid: int) -> int | None:
    children = _children(pid)
    return children[0] if children else None


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []  # gone meanwhile


def _all_processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _pid_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None  # gone meanwhile, or a zombie


def _name(pid: int) -> str | None:
    """The program's name, cut off after 15 characters; None when it has ended."""
    try:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return None
    return status["Name"] if not status["State"].startswith("Z") else None


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []  # gone meanwhile
