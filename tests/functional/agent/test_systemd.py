"""The units of conf/systemd under a real systemd, the first process of namespaces that end with the test.

Only the units of the test are there. Where the agent is installed is a file that becomes the one we test.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.own_agent import ask, children, eventually
from tests.functional.agent.udhcpc import lease
from tests.functional.masquerade.masquerade_pod import V4, Lab
from tests.harness import Outcome, Sandbox, executable, peer

pytestmark = pytest.mark.alone

CHECKOUT = Path(__file__).resolve().parents[3]
CONF = CHECKOUT / "conf/systemd"
UNITS = ("cnvnet-agent.socket", "cnvnet-agent.service")
# What the units stand on; a distribution's own would do things to this machine.
TARGETS = ("default", "sysinit", "basic", "sockets", "multi-user", "shutdown")

# argv: systemd, the folder with its units, RUNDIR, the agent's executable.
BOOT = """
set -e
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/cnvnet
mount --bind "$3" /run/cnvnet
mount --bind "$2" /etc/systemd/system
while umount /sys/fs/cgroup/* /sys/fs/cgroup 2>/dev/null; do :; done
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs opt /opt
mkdir -p /opt/cnvnet/bin
printf '#!/bin/sh\\nexec "%s" "$@"\\n' "$4" >/opt/cnvnet/bin/cnvnet-agent
chmod 755 /opt/cnvnet/bin/cnvnet-agent
export container=podman SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nowhere
exec "$1" --system --log-target=console --default-standard-output=inherit --default-standard-error=inherit
"""


class Systemd:
    """A node that systemd runs, and its agent's units."""

    def __init__(self, lab: Lab, pid: int, units: Path) -> None:
        self._lab = lab
        self.units = units
        self._outside = ("nsenter", f"--target={pid}", "--mount", "--pid", "--uts", "--ipc", "--")
        self._enter = ("nsenter", f"--target={pid}", "--net", "--mount", "--pid", "--uts", "--ipc", "--")
        self.socket = lab.node.rundir / "agent.sock"

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"],
            "SYSTEMD_UNIT_PATH": "/etc/systemd/system",
            **options.pop("env", {}),
        }
        command = [*self._enter, *argv]
        done = subprocess.run(command, env=env, text=True, capture_output=True, check=False, **options)
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def install(self, *options: str) -> str:
        """What scripts/install-cni says on this node, but in the host's network: pip needs its index."""
        command = [*self._outside, str(CHECKOUT / "scripts/install-cni"), *options]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    def systemctl(self, *argv: str) -> str:
        return self.run("systemctl", *argv).stdout.strip()

    def state(self, unit: str) -> str:
        return self.systemctl("show", "--property=ActiveState", "--value", unit)

    def main_pid(self) -> str:
        """As it is called inside; "0": none."""
        return self.systemctl("show", "--property=MainPID", "--value", UNITS[1])

    def answers(self) -> bool:
        try:
            return bool(ask(self.socket, {"v": 1, "status": True}) == {"v": 1, "ok": True})
        except OSError:
            return False

    def adopt(self, pod: Sandbox) -> None:
        """Gives the pod's namespace a path that is one inside, too."""
        fd = os.open(pod.netns, os.O_RDONLY)
        try:
            script = f"touch /run/netns/pod; mount --bind /proc/self/fd/{fd} /run/netns/pod"
            self.run("sh", "-ec", script, pass_fds=[fd])
        finally:
            os.close(fd)

    def cni(self, command: str) -> Outcome:
        """A call for the pod as a runtime makes it on this node."""
        call = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/pod"}
        config = '{"cniVersion": "1.1.0", "name": "masq", "type": "masquerade", "guestServices": {}}'
        env = {**call, "CNI_IFNAME": "net1", "CNI_PATH": "/nowhere", "CNVNET_AGENT": "off"}
        done = self.run(executable("masquerade"), input=config, check=False, env=env)
        return Outcome(done.returncode, done.stdout, done.stderr)


@contextmanager
def own_cgroup(name: str) -> Generator[Path]:
    """A folder of the unified hierarchy, which goes with all that was made below it."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    root = next(Path(mount[1]) for mount in mounts if mount[2] == "cgroup2")
    made = root / name
    made.mkdir()
    try:
        yield made
    finally:
        for folder, _, _ in os.walk(made, topdown=False):
            assert eventually(partial(is_removed, folder)), folder


def is_removed(cgroup: str) -> bool:
    try:
        os.rmdir(cgroup)
    except OSError:
        return False  # a process in it has not ended quite yet
    return True


@pytest.fixture
def systemd(lab: Lab, tmp_path: Path) -> Iterator[Systemd]:
    units = tmp_path / "units"
    units.mkdir()
    for target in TARGETS:
        (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n")
    for unit in UNITS:
        (units / unit).write_text((CONF / unit).read_text())
    lab.node.rundir.mkdir()
    program = peer("/lib/systemd/systemd")
    argv = (program, str(units), str(lab.node.rundir), executable("cnvnet-agent"))
    with own_cgroup(f"cnvnet-{os.getpid()}") as cgroup, (tmp_path / "systemd.log").open("w") as log:
        into = f'echo $$ >{cgroup}/cgroup.procs; exec "$@"'
        namespaces = (
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--cgroup",
            "--uts",
            "--ipc",
        )
        command = ["sh", "-c", into, "sh", "unshare", *namespaces, "sh", "-c", BOOT, "sh", *argv]
        with lab.node.popen(*command, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as outer:
            try:
                (first,) = eventually(lambda: children(outer.pid))
                made = Systemd(lab, first, units)
                assert eventually(lambda: is_booted(made)), (tmp_path / "systemd.log").read_text()
                yield made
            finally:
                outer.kill()


def is_booted(systemd: Systemd) -> bool:
    done = systemd.run("systemctl", "is-active", "default.target", check=False)
    return done.stdout.strip() == "active"


def enable(systemd: Systemd) -> None:
    """As scripts/install-cni --with-agent does."""
    systemd.systemctl("enable", "--now", *UNITS)
    assert eventually(systemd.answers)


def test_the_units_have_no_mistake(tmp_path: Path) -> None:
    program = peer("systemd-analyze")
    for unit in UNITS:
        text = (CONF / unit).read_text().replace("/opt/cnvnet/bin/cnvnet-agent", executable("cnvnet-agent"))
        (tmp_path / unit).write_text(text)
    command = [program, "verify", "--man=no", *(str(tmp_path / unit) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_guest_is_served_as_long_as_systemd_keeps_the_agent(
    lab: Lab, systemd: Systemd, tmp_path: Path
) -> None:
    enable(systemd)
    pod = lab.pod()
    systemd.adopt(pod)
    systemd.cni("ADD").ok()
    lab.plug(pod)
    assert lease(lab.guest, tmp_path)["ip"] == V4.guest
    # More often than systemd lets a service die by default, before it gives it up, and its socket.
    for _ in range(7):
        before = systemd.main_pid()
        systemd.run("kill", "-KILL", before)
        assert eventually(systemd.answers)
        assert systemd.main_pid() not in ("0", before)
    systemd.cni("CHECK").ok()
    systemd.systemctl("restart", UNITS[1])
    assert lease(lab.guest, tmp_path)["ip"] == V4.guest
    systemd.cni("DEL").ok()
    assert set(pod.links()) == {"lo", "eth0"}


def test_stopped_the_agent_leaves_no_process_and_is_started_by_a_call(systemd: Systemd) -> None:
    enable(systemd)
    systemd.systemctl("stop", UNITS[1])
    assert systemd.run("pgrep", "-f", "cnvnet", check=False).stdout == ""
    assert systemd.socket.exists()
    assert systemd.answers()
    systemd.systemctl("stop", *UNITS)
    assert [systemd.state(unit) for unit in UNITS] == ["inactive", "inactive"]


def test_it_may_do_what_the_unit_says_and_no_more(systemd: Systemd) -> None:
    enable(systemd)
    status = systemd.run("cat", f"/proc/{systemd.main_pid()}/status").stdout
    effective, bounding = (
        re.search(f"^{name}:\\s*(.*)$", status, re.MULTILINE) for name in ("CapEff", "CapBnd")
    )
    assert effective is not None
    assert bounding is not None
    assert effective[1] == bounding[1]
    assert int(effective[1], 16).bit_count() == 6
    # With it SELinux would let no process start a program in another context (`selinuxContext`).
    assert re.search("^NoNewPrivs:\\s*0$", status, re.MULTILINE)


def property_of(systemd: Systemd, name: str) -> str:
    return systemd.systemctl("show", f"--property={name}", "--value", UNITS[1])


def test_it_is_started_when_the_agent_says_so(systemd: Systemd) -> None:
    enable(systemd)
    assert (systemd.state(UNITS[1]), property_of(systemd, "Type")) == ("active", "notify")
    systemd.systemctl("stop", *UNITS)
    # A program that runs and never says it.
    systemd.run("sh", "-c", "printf '#!/bin/sh\\nexec sleep 60\\n' >/opt/cnvnet/bin/cnvnet-agent")
    systemd.systemctl("start", "--no-block", UNITS[1])
    assert eventually(lambda: systemd.main_pid() != "0")
    assert systemd.state(UNITS[1]) == "activating"


def test_an_agent_that_hangs_is_replaced(systemd: Systemd) -> None:
    service = systemd.units / UNITS[1]
    patient, impatient = "WatchdogSec=30\n", "WatchdogSec=4\n"
    assert patient in service.read_text()
    service.write_text(service.read_text().replace(patient, impatient))
    systemd.systemctl("daemon-reload")
    enable(systemd)
    before = systemd.main_pid()
    # It goes on for longer than that,
    assert not eventually(lambda: systemd.main_pid() != before, seconds=8)
    systemd.run("kill", "-STOP", before)
    # and hangs for no longer.
    assert eventually(lambda: systemd.main_pid() not in ("0", before))
    assert eventually(systemd.answers)
    assert property_of(systemd, "NRestarts") == "1"


def test_installed_upgraded_and_uninstalled_by_the_script(systemd: Systemd, tmp_path: Path) -> None:
    folders = (f"--prefix={tmp_path}/prefix", f"--cni-bin={tmp_path}/bin")
    for unit in UNITS:
        (systemd.units / unit).unlink()
    output = systemd.install(*folders, "--with-agent")
    assert "the agent's units are in /etc/systemd/system, enabled and started" in output
    assert systemd.state(UNITS[1]) == "active"
    assert f"{tmp_path}/prefix/bin/cnvnet-agent" in property_of(systemd, "ExecStart")
    assert systemd.systemctl("is-enabled", *UNITS).split() == ["enabled", "enabled"]
    assert systemd.answers()
    pid = systemd.main_pid()
    output = systemd.install(*folders)
    assert f"(pid {pid}) still runs the files from before: systemctl restart cnvnet-agent" in output
    systemd.systemctl("restart", UNITS[1])
    assert eventually(systemd.answers)
    output = systemd.install(*folders, "--uninstall")
    assert "what stays: leases" in output
    assert systemd.run("pgrep", "-f", "cnvnet-agent", check=False).stdout == ""
    assert not [path for path in systemd.units.iterdir() if "cnvnet" in path.name]
    assert list((tmp_path / "bin").iterdir()) == []
