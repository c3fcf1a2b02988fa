"""What every functional test stands on: private nodes and pods, and executables run as a runtime runs them.

A node is a network namespace that plays a Kubernetes host, with folders of its own for records and leases; a
pod is a network namespace that plays a sandbox. Each is held by a process that ends when its standard input
closes, so that even a killed test run leaves nothing behind.

Calls of our programs go to an agent of the node's own with CNV_THROUGH in the environment: `agent` by the C
launcher, `python` by the Python one that each executable is. Without it, and in tests marked `alone`, the
executables do all by themselves.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnvnet.kernel.links import RETIRED_GROUP

# "", "agent" or "python"; tests/functional/conftest.py clears it for tests marked `alone`.
through = os.environ.get("CNV_THROUGH", "")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The peers that take long to build, which scripts/peers does.
KUBERNETES = frozenset(
    {
        *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"),
        *("crictl", "multus", "multus-daemon", "multus-shim", "whereabouts"),
    }
)
CHECKABLE = ("0.4.0", "1.0.0", "1.1.0")


def peer(program: str) -> str:
    """The path of a program we test against; the test is skipped, or failed in CI, where it is missing."""
    # On PATH, `bridge` is iproute2's.
    elsewhere = "/opt/cni/bin" if program == "bridge" else None
    peers = os.environ.get("CNV_PEERS")
    found = (peers and shutil.which(program, path=peers)) or shutil.which(program, path=elsewhere)
    if found is None:
        reason = f"{program} is not here: {_bringer(program)}, or CNV_PEERS=FOLDER has it"
        if os.environ.get("CNV_REQUIRE_PEERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _bringer(program: str) -> str:
    """What brings a program we test against, in words."""
    return f"scripts/peers {program} builds it" if program in KUBERNETES else "scripts/setup test brings it"


def executable(name: str) -> str:
    """The path of one of our own executables as a runtime finds it: installed, or its launcher."""
    if through == "agent" and name in NAMES:
        return str(launchers() / name)
    return installed(name)


@cache
def launchers() -> Path:
    """A folder with the C launcher under the plugins' names; it finds the installed ones.

    Whatever they run is noted in a file beside the records (`alone`): the tests mean to test the agent.
    """
    # Its end is the end of the process: a whole test run needs it.
    folder = Path(_kept.enter_context(tempfile.TemporaryDirectory(prefix="launchers-")))
    source = Path(__file__).resolve().parents[1] / "launcher"
    made = folder / "cnvnet/cnv-launch"
    (folder / "cnvnet/bin").mkdir(parents=True)
    subprocess.run(["make", "-s", "-C", source, f"OUT={made}", str(made)], check=True)
    for name in NAMES:
        shutil.copy(made, folder / name)
        alone = folder / "cnvnet/bin" / name
        note = '[ -z "$CNVNET_RUNDIR" ] || echo "$0 $CNI_COMMAND" >>"$CNVNET_RUNDIR.alone"'
        alone.write_text(f"#!/bin/sh\n{note}\nexec {installed(name)}\n")
        alone.chmod(0o755)
    return folder


def installed(name: str) -> str:
    """The path of one of our own installed executables."""
    path = Path(os.environ.get("CNV_BIN") or Path(sys.executable).parent) / name
    assert path.exists(), f"{path} is missing: pip install -e ."
    return str(path)


@contextmanager
def namespace() -> Generator[str]:
    """The path of a new network namespace with its loopback up."""
    script = "ip link set lo up; echo; exec cat"
    command = ["unshare", "-n", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()  # the shell speaks only once it is inside
        yield f"/proc/{holder.pid}/ns/net"


class Outcome(NamedTuple):
    """What a runtime sees of one call."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.stdout)
        except ValueError as e:
            raise AssertionError(f"not one JSON document: {self.stdout!r} {self.stderr}") from e

    def ok(self) -> Any:
        """The printed document (None when nothing was printed) of a call that must have succeeded."""
        assert self.code == 0, f"exit {self.code}: {self.stdout}{self.stderr}"
        return self.json if self.stdout.strip() else None

    def error(self) -> dict[str, Any]:
        """The error object of a call that must have failed."""
        assert self.code == 1, f"exit {self.code}: {self.stdout}{self.stderr}"
        document: dict[str, Any] = self.json
        assert "Traceback" not in self.stderr, self.stderr
        return document


class Sandbox:
    """A namespace and what one does in it."""

    def __init__(self, netns: str) -> None:
        self.netns = netns

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("capture_output", True)
        done = subprocess.run(["nsenter", f"--net={self.netns}", *argv], text=True, check=False, **options)
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(["nsenter", f"--net={self.netns}", *argv], text=True, **options)

    def ip(self, *args: str) -> list[dict[str, Any]]:
        """`ip -d -j ARGS` decoded."""
        out = self.run("ip", "-d", "-j", *args).stdout
        # strict: iproute2 prints control characters in names as they are.
        return [item for item in json.loads(out or "[]", strict=False) if item]

    def link(self, name: str) -> dict[str, Any] | None:
        done = self.run("ip", "-d", "-j", "link", "show", "dev", name, check=False)
        return json.loads(done.stdout)[0] if done.returncode == 0 else None

    def links(self) -> dict[str, dict[str, Any]]:
        return {item["ifname"]: item for item in self.ip("link")}

    def addresses(self, name: str, *, family: str = "inet") -> list[str]:
        """Addresses with prefix lengths, link-local IPv6 ones left out."""
        shown = self.ip("addr", "show", "dev", name)
        return [
            f"{a['local']}/{a['prefixlen']}"
            for item in shown
            for a in item["addr_info"]
            if a["family"] == family and not a["local"].startswith("fe80:")
        ]


class Node(Sandbox):
    """A host: its namespace, its folders and the calls a runtime makes on it."""

    def __init__(self, netns: str, folder: Path, undo: ExitStack) -> None:
        super().__init__(netns)
        self.folder = folder
        self.rundir = folder / "run"
        self.statedir = folder / "state"
        self._undo = undo
        self._has_agent = False
        self._starting = threading.RLock()
        # What launchers have run without an agent, line by line.
        self.alone = folder / "run.alone"

    def pod(self) -> Sandbox:
        """A new sandbox that ends with the test."""
        return Sandbox(self._undo.enter_context(namespace()))

    def other(self, *, netns: str = "", folder: Path | None = None) -> Node:
        """A host with the same folders in another namespace, or vice versa; it ends with this one."""
        return Node(netns or self.netns, folder or self.folder, self._undo)

    def agent(self) -> None:
        """Sees to it that the node has an agent, for its guests if not for its calls."""
        with self._starting:
            if not self._has_agent:
                self._undo.enter_context(_agent_of(self))
                self._has_agent = True

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a call that may come to a program of ours."""
        if through:
            self.agent()
        return self._variables(**more)

    def _variables(self, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "CNVNET_RUNDIR": str(self.rundir),
            "CNVNET_STATEDIR": str(self.statedir),
            "CNVNET_AGENT": "auto" if through else "off",
            **more,
        }

    def cni(
        self,
        program: str,
        command: str,
        config: Mapping[str, Any] | str | bytes,
        pod: Sandbox | str = "",
        *,
        container_id: str = "dummy-0",
        ifname: str = "eth0",
        args: str = "",
        cni_path: str | None = None,
        env: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        timeout: float = 60,
        unknown_keys: bool = False,
    ) -> Outcome:
        r"""One call of an executable (an absolute path, one of ours, or a peer) as a runtime makes it.

        `env` overrides variables; a value of "\0" removes one. `within` is a command that runs the
        executable, given as its last argument, in circumstances of its own, such as `prlimit --nofile=20`:
        then no agent runs it. That a key is unknown is said of no configuration, but with `unknown_keys`.
        """
        if within and program in NAMES:
            program, env = installed(program), {"CNVNET_AGENT": "off", **(env or {})}
        path = program if "/" in program else _resolve(program)
        stdin = config if isinstance(config, bytes) else _text(config).encode()
        # Most tests of a peer need no agent, which takes longer to start than they do.
        foreign = (
            program not in NAMES and "/" not in program and not any(our.encode() in stdin for our in NAMES)
        )
        environment = (self._variables if foreign else self.environment)(
            CNI_COMMAND=command,
            CNI_CONTAINERID=container_id,
            CNI_NETNS=pod if isinstance(pod, str) else pod.netns,
            CNI_IFNAME=ifname,
            CNI_ARGS=args,
            CNI_PATH=cni_path if cni_path is not None else cni_path_of_all(),
        )
        environment.update(env or {})
        environment = {key: value for key, value in environment.items() if value != "\0"}
        done = subprocess.run(
            ["nsenter", f"--net={self.netns}", *within, path],
            input=stdin,
            env=environment,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        if command in ("DEL", "GC"):
            self.await_reaper()
        assert unknown_keys or b"no such key" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    def await_reaper(self) -> None:
        """What an agent has deleted is out of the way at once, and gone a moment later."""
        deadline = time.monotonic() + 10
        retired = f"group {RETIRED_GROUP} "
        while (
            self._has_agent
            and retired in self.run("ip", "-o", "link").stdout
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)


OURS = ("cnv-bridge", "cnv-tuning", "masquerade", "static-ip", "vm-bridge")
# Under which they are installed: two have a second name, which no other program has.
NAMES = (*OURS, "cnvnet-bridge", "cnvnet-tuning")
_kept = ExitStack()
atexit.register(_kept.close)


@contextmanager
def _agent_of(node: Node) -> Generator[None]:
    """The agent of a node: it lives until the end and never stumbles."""
    # Not at the top: it stands on this module.
    from tests.functional.agent.own_agent import running_agent

    node.folder.mkdir(parents=True, exist_ok=True)
    with running_agent(node, "--metrics-address", "") as agent:
        yield
        assert agent.process.poll() is None, agent.log()
    assert not node.alone.exists(), node.alone.read_text()
    assert not [event for event in agent.events() if event["level"] == "error"], agent.log()


def _resolve(program: str) -> str:
    return executable(program) if program in NAMES else peer(program)


def _text(config: Mapping[str, Any] | str) -> str:
    return config if isinstance(config, str) else json.dumps(config)


def cni_path_of_all() -> str:
    """A CNI_PATH that finds our executables and the peers."""
    folders = [str(Path(executable(OURS[0])).parent)]
    folders.append(os.environ.get("CNV_PEERS") or "/opt/cni/bin")
    return ":".join(folders)


@contextmanager
def a_node(folder: Path) -> Generator[Node]:
    """A host of its own, gone with its pods at the end."""
    with ExitStack() as undo:
        yield Node(undo.enter_context(namespace()), folder, undo)
