"""scripts/install-cni into folders of its own: what it puts there works in the worst of environments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from cnvnet import VERSION
from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, Key, Record
from cnvnet.ipam.lease import Holder, Lease, LeaseKey
from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.ipam.store.sqlite_ledger import SqliteLedger
from cnvnet.kernel.boot import boot_id
from cnvnet.kube import node_kubeconfig
from cnvnet.kube.settings import Credentials, Secret
from tests.functional.agent.own_agent import eventually, is_there
from tests.harness import NAMES, launchers, peer

pytestmark = pytest.mark.alone

CHECKOUT = Path(__file__).resolve().parents[3]
# Variables that end or mislead any Python that listens to them.
HOSTILE = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere", "LC_ALL": "C"}
# Another program, as far as its content tells.
FOREIGN = b'#!/bin/sh\necho \'{"cniVersion": "1.0.0"}\'\n'


class Target:
    """The folders of an installation below one, and the script that is run for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = folder / "opt"
        self.cni_bin = folder / "cni/bin"
        self.units = folder / "units"
        self.rundir = folder / "run"
        self.statedir = folder / "state"

    def run(
        self, *options: str | Path, within: Sequence[str] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        """`within` is a command that runs it."""
        folders = ("--prefix", self.prefix, f"--cni-bin={self.cni_bin}", "--systemd-dir", self.units)
        own = {"CNVNET_RUNDIR": str(self.rundir), "CNVNET_STATEDIR": str(self.statedir)}
        return subprocess.run(
            [*within, CHECKOUT / "scripts/install-cni", *folders, *options],
            env={**os.environ, **own, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def install(self, *options: str, **env: str) -> str:
        """What it says; it must have succeeded."""
        done = self.run(*options, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    def refused(self, *options: str | Path, within: Sequence[str] = ()) -> str:
        """Why it refuses; nothing may have been changed by it."""
        before = self.state()
        done = self.run(*options, within=within)
        assert done.returncode == 2, done.stdout + done.stderr
        assert self.state() == before
        return done.stderr

    def state(self) -> dict[str, bytes]:
        """All files and links outside the environment, and whether that is there."""
        found = {
            str(path): _content(path) for path in self.folder.rglob("*") if self.prefix not in path.parents
        }
        return {path: content for path, content in found.items() if not path.startswith(str(self.rundir))}

    def put(self, name: str, content: bytes | str) -> Path:
        """A file of another program in the runtime's folder; a string is where a link leads."""
        self.cni_bin.mkdir(parents=True, exist_ok=True)
        path = self.cni_bin / name
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
            path.chmod(0o755)
        return path

    def attach(self, container_id: str, boot: str) -> None:
        key = Key("cnv-bridge", "vms", container_id, "eth0")
        with AttachmentFiles(str(self.rundir)).locked(key) as slot:
            slot.write(Record(key, "/run/netns/pod", 1, boot, ADDED, {}))

    @contextmanager
    def agent(self) -> Generator[subprocess.Popen[str]]:
        """The agent of this installation."""
        self.rundir.mkdir(exist_ok=True)
        program, rundir = str(self.prefix / "bin/cnvnet-agent"), str(self.rundir)
        command = [program, "--rundir", rundir, "--metrics-address", ""]
        with (self.folder / "agent.log").open("w") as log:
            process = subprocess.Popen(command, stderr=log, text=True)
        try:
            assert eventually(lambda: "agent ready" in self.log())
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()


def _content(path: Path) -> bytes:
    if path.is_symlink():
        return os.readlink(path).encode()
    return path.read_bytes() if path.is_file() else b""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


def call(program: Path, folder: Path, command: str, stdin: bytes) -> tuple[int, object]:
    env = {**HOSTILE, "CNI_COMMAND": command, "CNI_PATH": "/x", "CNVNET_RUNDIR": str(folder)}
    done = subprocess.run([program], env=env, input=stdin, capture_output=True, check=False, timeout=60)
    assert b"Traceback" not in done.stderr, done
    return done.returncode, json.loads(done.stdout)


def assert_works(program: Path, folder: Path) -> None:
    code, versions = call(program, folder, "VERSION", b"")
    assert (code, str(versions).count("1.1.0")) == (0, 2)
    code, error = call(program, folder, "STATUS", b'{"cniVersion": "1.1.0", "name": ""}')
    assert (code, error) == (1, {"code": 7, "msg": "missing network name"})


def assert_all_work(folder: Path) -> None:
    for name in NAMES:
        for program in (folder / "cni/bin" / name, folder / "opt/bin" / name):
            assert_works(program, folder)


def test_installed_upgraded_prebuilt_and_without_a_compiler(target: Target) -> None:
    output = target.install()
    assert_all_work(target.folder)
    assert f"cnvnet {VERSION} is in {target.prefix}" in output
    installed = sorted(target.cni_bin.iterdir())
    assert {path.name for path in installed} == set(NAMES)
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in installed), output
    programs = {path.name for path in (target.prefix / "bin").iterdir()}
    assert {*NAMES, "cnvctl", "cnvnet-agent"} <= programs
    for name in ("cnvctl", "cnvnet-agent"):
        done = subprocess.run(
            [target.prefix / "bin" / name, "--help"], env=HOSTILE, capture_output=True, check=True
        )
        assert b"Usage" in done.stdout
    # What libraries bring is no program of ours.
    assert not {name for name in programs if name.startswith(("pyroute2", "ss2", "dhcp"))}
    assert (target.prefix / "share/doc/cnvnet/cnv-bridge.md").exists()
    output = target.install(MAKEFLAGS="CC=/nowhere/cc", LAUNCHER=str(launchers() / "cnv-bridge"))
    assert "the launcher cannot be built" in output
    assert_all_work(target.folder)
    # Built for another prefix, it finds the executables of this one.
    assert (target.cni_bin / "cnvnet").resolve() == target.prefix
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in installed), output
    output = target.install(MAKEFLAGS="CC=/nowhere/cc", LAUNCHER="/nowhere")
    assert "the launcher cannot be built" in output
    assert_all_work(target.folder)
    assert sorted(target.cni_bin.iterdir()) == installed
    assert all(path.read_bytes().startswith(b"#!") for path in installed)
    # All three kinds are known to be ours: nothing was refused above, and all of it goes.
    target.install("--uninstall")
    assert list(target.cni_bin.iterdir()) == []
    assert not target.prefix.exists()


# ---- what is in the way ----


@pytest.mark.parametrize("name", NAMES)
def test_another_programs_file_is_not_overwritten(target: Target, name: str) -> None:
    target.put(name, FOREIGN)
    output = target.refused()
    assert f"{target.cni_bin / name} is another program's" in output
    assert "--replace takes it over, --skip-foreign leaves it" in output
    second = {"cnv-bridge": "cnvnet-bridge", "cnv-tuning": "cnvnet-tuning"}.get(name)
    assert ("is ours beside it" in output) == (second is not None)
    assert second is None or f"the type {second} is ours beside it" in output


def test_the_reference_plugin_is_another_program(target: Target) -> None:
    target.put("cnv-bridge", Path(peer("bridge")).read_bytes())
    assert "cnv-bridge is another program's (CNAO's?): --replace takes it over" in target.refused()


def test_nor_is_what_bridge_leads_to(target: Target) -> None:
    """As CNAO leaves a node that had no `bridge`."""
    target.put("cnv-bridge", FOREIGN)
    target.put("bridge", "cnv-bridge")
    output = target.refused()
    assert (
        "(CNAO's?) and bridge is a link to it: --replace takes both over, --skip-foreign leaves them"
        in output
    )


def test_nor_a_link_to_another_program(target: Target) -> None:
    """As CNAO leaves a node that had a `bridge`."""
    target.put("bridge", FOREIGN)
    target.put("cnv-bridge", "bridge")
    target.put("masquerade", "/nowhere")
    output = target.refused()
    assert "cnv-bridge is a link to bridge, another program's (CNAO's?): --replace takes it over" in output
    assert "masquerade is a link to /nowhere, another program's: --replace" in output


def test_a_node_with_anothers_bridge_before_and_after(target: Target) -> None:
    foreign = target.put("cnv-bridge", FOREIGN)
    bridge = target.put("bridge", "cnv-bridge")
    # Beside it.
    output = target.install("--skip-foreign")
    assert f"{foreign} is another program's, and left alone" in output
    assert foreign.read_bytes() == bridge.read_bytes() == FOREIGN
    assert_works(target.cni_bin / "cnvnet-bridge", target.folder)
    # In its place, with an agent that goes on with the files from before.
    with target.agent() as agent:
        output = target.install("--replace")
        assert f"what was {foreign} is kept as cnv-bridge.before-cnvnet" in output
        assert f"{bridge} is a link to cnv-bridge: ours serves it" in output
        assert (
            f"agent {VERSION} (pid {agent.pid}) still runs the files from before: kill {agent.pid}" in output
        )
        assert_works(bridge, target.folder)
        assert eventually(lambda: "the agent's files were replaced" in target.log())
        # Another installation's agent is not ended; this one's ends, and the runtime has what it had.
        target.install(
            "--uninstall", f"--prefix={target.folder}/elsewhere", f"--cni-bin={target.folder}/other"
        )
        assert is_there(agent.pid)
        target.install("--uninstall", f"--prefix={target.prefix}/")
        assert eventually(lambda: not is_there(agent.pid))
    assert foreign.read_bytes() == bridge.read_bytes() == FOREIGN
    assert sorted(path.name for path in target.cni_bin.iterdir()) == ["bridge", "cnv-bridge"]
    assert not target.prefix.exists()


def test_what_cannot_be_installed_into_is_refused(target: Target) -> None:
    for prefix in ("relative", f"{target.folder}/a b", ""):
        assert "is no absolute path" in target.refused("--prefix", prefix)
        assert "is no absolute path" in target.refused(f"--cni-bin={prefix}")
    assert "is where the executables are" in target.refused("--cni-bin", target.folder / "x/../opt/bin")
    assert list(target.folder.iterdir()) == []
    target.put("masquerade", b"").unlink()
    (target.cni_bin / "masquerade").mkdir()
    assert "is a folder" in target.refused()


def test_a_folder_with_other_things_becomes_no_environment(target: Target) -> None:
    """Making one begins with clearing the folder."""
    (target.folder / "usr").mkdir()
    (target.folder / "usr/precious").touch()
    assert "is in use for other things" in target.refused("--prefix", target.folder / "usr")
    target.install("--uninstall", "--prefix", str(target.folder / "usr"))
    assert (target.folder / "usr/precious").exists()


@pytest.mark.parametrize("options", [[], ["--uninstall"]])
def test_an_environment_of_others_is_left_alone(target: Target, options: list[str]) -> None:
    """One of another version of Python was cleared, and --uninstall removed any."""
    theirs = target.folder / "venv"
    (theirs / "lib/python3.9/site-packages/flask").mkdir(parents=True)
    (theirs / "pyvenv.cfg").write_text("version = 3.9.2\n")
    if options:
        target.install(*options, "--prefix", str(theirs))
    else:
        assert "is in use for other things" in target.refused("--prefix", theirs)
    assert (theirs / "pyvenv.cfg").exists()
    assert (theirs / "lib/python3.9/site-packages/flask").exists()


def test_an_installation_that_was_cut_short_is_made_again_or_removed(target: Target) -> None:
    target.prefix.mkdir()
    (target.prefix / ".install-cni").touch()
    (target.prefix / "half").touch()
    target.install("--skip-foreign")
    assert not (target.prefix / "half").exists()
    assert_works(target.prefix / "bin/static-ip", target.folder)
    # As an older version leaves it, without a mark.
    (target.prefix / ".install-cni").unlink()
    assert f"cnvctl is {target.prefix}/bin/cnvctl (--link-into /usr/local/bin " in target.install()
    target.install("--uninstall")
    assert not target.prefix.exists()


def test_what_cannot_be_written_is_refused_before_anything_is_changed(target: Target) -> None:
    target.put("masquerade", launchers().joinpath("masquerade").read_bytes())
    mount = f'mount --bind -o ro {target.cni_bin} {target.cni_bin}; exec "$0" "$@"'
    read_only = ("unshare", "-m", "sh", "-ec", mount)
    for options in ((), ("--uninstall",)):
        output = target.refused(*options, within=read_only)
        assert f"{target.cni_bin} cannot be written: run this as root" in output
    assert not target.prefix.exists()
    target.prefix.symlink_to(target.folder / "large")
    assert f"--prefix {target.folder}/large" in target.refused()
    target.prefix.unlink()
    (target.folder / "file").touch()
    output = target.refused("--with-agent", "--systemd-dir", target.folder / "file/units")
    assert f"units cannot be made: {target.folder / 'file'} is no folder" in output
    assert not target.prefix.exists()


def test_a_folder_that_a_unit_cannot_name_is_refused(target: Target) -> None:
    for name in ("CNVNET_RUNDIR", "CNVNET_STATEDIR"):
        done = target.run("--with-agent", **{name: "/run/a b%n"})
        assert done.returncode == 2
        assert "'/run/a b%n' is no absolute path of letters" in done.stderr
    assert list(target.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--frobnicate"], "--frobnicate: no such option"),
        (["--prefix"], "--prefix needs a folder"),
        (["--replace", "--skip-foreign"], "exclude each other"),
        (["--purge"], "--purge goes with --uninstall"),
        (["install"], "install: no such option"),
    ],
)
def test_what_was_typed_wrongly_is_named(target: Target, options: list[str], reason: str) -> None:
    assert reason in target.refused(*options)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_option_and_does_nothing(target: Target, option: str) -> None:
    done = target.run(option)
    assert (done.returncode, done.stderr) == (0, "")
    for each in ("prefix", "cni-bin", "replace", "skip-foreign", "with-agent", "uninstall", "purge"):
        assert f"--{each} " in done.stdout
    assert "set -euo" not in done.stdout
    assert list(target.folder.iterdir()) == []


# ---- the agent's units ----


def test_the_agents_units_follow_the_prefix(target: Target) -> None:
    (target.folder / "bin").mkdir()
    output = target.install("--with-agent", f"--link-into={target.folder / 'bin'}")
    service = (target.units / "cnvnet-agent.service").read_text()
    assert f"ExecStart={target.prefix}/bin/cnvnet-agent\n" in service
    assert "/opt/cnvnet" not in service
    assert (target.units / "cnvnet-agent.socket").exists()
    assert f"Environment=CNVNET_RUNDIR={target.rundir} CNVNET_STATEDIR={target.statedir}\n" in service
    socket = (target.units / "cnvnet-agent.socket").read_text()
    assert f"ListenStream={target.rundir}/agent.sock\n" in socket
    assert f"environment: CNVNET_RUNDIR={target.rundir} CNVNET_STATEDIR={target.statedir}\n" in output
    # Another folder than systemd's: nothing is started on this machine.
    assert "to start them: systemctl daemon-reload; systemctl enable --now cnvnet-agent.socket" in output
    assert os.readlink(target.folder / "bin/cnvctl") == f"{target.prefix}/bin/cnvctl"
    (target.units / "cnvnet-agent.service").write_text("[Service]\n")
    output = target.install()
    assert (
        f"{target.units}/cnvnet-agent.service is not this version's: --with-agent writes it anew" in output
    )
    # Without such variables the units are those of conf/, but for the prefix.
    output = target.install("--with-agent", CNVNET_RUNDIR="", CNVNET_STATEDIR="")
    assert "environment:" not in output
    for unit in ("cnvnet-agent.service", "cnvnet-agent.socket"):
        content = (CHECKOUT / "conf/systemd" / unit).read_text().replace("/opt/cnvnet", str(target.prefix))
        assert (target.units / unit).read_text() == content
    target.install("--uninstall", f"--link-into={target.folder / 'bin'}")
    assert list(target.units.iterdir()) == []
    assert not (target.folder / "bin/cnvctl").is_symlink()


# ---- uninstalling ----


def test_a_node_with_attachments_is_not_uninstalled(target: Target) -> None:
    target.attach("pod-1", boot_id())
    target.attach("of-another-boot", "another")
    (target.rundir / "attachments/broken.json").write_text("{")
    (target.rundir / "attachments/empty.json").touch()
    os.mkfifo(target.rundir / "attachments/fifo.json")
    output = target.refused("--uninstall", "--purge")
    assert "there are attachments" in output
    lines = output.splitlines()[1:]
    assert lines == [
        f"{target.rundir}/attachments/broken.json cannot be read",
        "vms: pod-1 eth0 (cnv-bridge)",
    ]


def test_a_pod_of_another_plugin_with_our_addresses_is_an_attachment(target: Target) -> None:
    """Its DEL would find no static-ip, and the pod would not end."""
    netns = target.folder / "netns"
    netns.touch()
    target.rundir.mkdir()
    of_this_boot = (str(netns), netns.stat().st_ino, boot_id())
    holders = {
        "c0": of_this_boot,
        "gone": (str(target.folder / "gone"), 1, boot_id()),
        "another-boot": (*of_this_boot[:2], "another"),
    }
    store = Sqlite(str(target.statedir))
    leases = [
        Lease(
            LeaseKey("blue", "default", f"vm{number}", "eth0"),
            (ip_address(f"10.0.0.{number + 1}"),),
            holders=(Holder(container, "eth0", "active", path, inode, boot, 1),),
        )
        for number, (container, (path, inode, boot)) in enumerate(holders.items())
    ]
    for each in leases:
        store.run(partial(SqliteLedger.change, before=None, after=each, until=0))
    store.close()
    assert target.refused("--uninstall").splitlines()[1:] == ["blue: c0 eth0 (static-ip)"]
    # So is one of a network with a dataDir.
    own = target.folder / "own"
    target.statedir.rename(own)
    data_dirs.add(str(target.statedir), str(own))
    assert target.refused("--uninstall").splitlines()[1:] == ["blue: c0 eth0 (static-ip)"]
    # A record and a lease are one attachment.
    key = Key("cnv-bridge", "blue", "c0", "eth0")
    with AttachmentFiles(str(target.rundir)).locked(key) as slot:
        slot.write(Record(key, *of_this_boot, ADDED, {}))
    assert target.refused("--uninstall").splitlines()[1:] == ["blue: c0 eth0 (cnv-bridge)"]
    with AttachmentFiles(str(target.rundir)).locked(key) as slot:
        slot.remove()
    netns.unlink()
    target.install("--uninstall")


def test_a_bridge_that_leads_to_ours_is_not_left_dangling(target: Target) -> None:
    shutil.copy(launchers() / "cnv-bridge", target.put("cnv-bridge", b""))
    link = target.put("bridge", "cnv-bridge")
    assert f"{link} is a link to cnv-bridge" in target.refused("--uninstall")
    link.unlink()
    target.install("--uninstall")
    assert list(target.cni_bin.iterdir()) == []


def test_what_was_taken_over_comes_back_and_what_came_later_stays(target: Target) -> None:
    target.put("cnv-bridge.before-cnvnet", FOREIGN)
    later = target.put("masquerade", b"another program")
    target.install("--uninstall")
    assert (target.cni_bin / "cnv-bridge").read_bytes() == FOREIGN
    assert later.read_bytes() == b"another program"
    assert len(list(target.cni_bin.iterdir())) == 2


def test_the_way_to_the_api_that_an_agents_pod_has_left_goes_and_an_administrators_stays(
    target: Target,
) -> None:
    path = target.folder / "etc/kubeconfig"
    path.parent.mkdir()
    pod = Credentials("https://10.96.0.1", "pod", lambda: pod, token=Secret(content=b"token"))
    path.write_bytes(node_kubeconfig.content(pod))
    target.install("--uninstall", CNVNET_KUBECONFIG=str(path))
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_text("apiVersion: v1\ncurrent-context: admin\n")
    target.install("--uninstall", CNVNET_KUBECONFIG=str(path))
    assert path.exists()


@pytest.mark.parametrize("folder", ["/", "/srv", "/var/lib", "/var/lib/cnvnet/..", "/run"])
def test_a_folder_of_all_programs_is_not_purged(target: Target, folder: str) -> None:
    harmless = target.put("rm", b"#!/bin/sh\nexit 1\n").parent
    env = {"PATH": f"{harmless}:/usr/bin:/bin", "TMPDIR": str(target.folder)}
    for name in ("CNVNET_STATEDIR", "CNVNET_RUNDIR"):
        done = target.run("--uninstall", "--purge", **{**env, name: folder})
        assert done.returncode == 2
        assert f"--purge removes all of {folder}, " in done.stderr


def test_leases_and_records_stay_unless_purged(target: Target) -> None:
    target.attach("of-another-boot", "another")
    leases = target.statedir / "vms/leases.db"
    leases.parent.mkdir(parents=True)
    leases.touch()
    (target.statedir / ".a-mark").touch()
    output = target.install("--uninstall")
    assert f"what stays: leases in {target.statedir}, records in {target.rundir}" in output
    assert "bridges" in output
    assert leases.exists()
    output = target.install("--uninstall", "--purge")
    assert not target.statedir.exists()
    assert not target.rundir.exists()
    assert "removed with all leases" in output


def test_leases_of_networks_with_a_data_dir_stay_unless_purged(target: Target) -> None:
    own = target.folder / "shared/own"
    store = Sqlite(str(own))
    store.run(
        lambda ledger: ledger.change(
            None, Lease(LeaseKey("own", "default", "vm", "eth0"), (ip_address("10.0.0.2"),)), until=0
        )
    )
    store.close()
    others = own / "of-another-program"
    others.touch()
    for folder in (own, target.folder / "gone"):
        data_dirs.add(str(target.statedir), str(folder))
    output = target.install("--uninstall")
    assert f"what stays: leases in {target.statedir}, {own}, records in {target.rundir}" in output
    assert (own / "leases.db").exists()
    output = target.install("--uninstall", "--purge")
    assert f"the leases in {own} are removed" in output
    assert list(own.iterdir()) == [others]
    assert not target.statedir.exists()


@pytest.mark.parametrize("content", [b"relative\n", None])
def test_a_list_of_folders_that_is_damaged_is_refused(target: Target, content: bytes | None) -> None:
    target.statedir.mkdir()
    listed = Path(data_dirs.path(str(target.statedir)))
    if content is None:
        os.mkfifo(listed)
    else:
        listed.write_bytes(content)
    done = target.run("--uninstall", "--purge")
    assert done.returncode == 2
    assert f"{listed}" in done.stderr
    assert "put it right or remove it" in done.stderr
    assert listed.exists()
