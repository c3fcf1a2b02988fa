"""In any environment, a call works or answers with one error object that says why not."""

from __future__ import annotations

import sys

import pytest

from tests.functional.bridge.bridge_network import OURS, Network, host_local, ports
from tests.harness import Node, Outcome, Sandbox, executable

pytestmark = pytest.mark.alone

UNSET = "\0"


def shell(script: str, *arguments: str) -> tuple[str, ...]:
    """Runs a script whose arguments are $1, $2, ..., and then the executable in its place."""
    return ("sh", "-ec", f'{script}\nshift {len(arguments)}\nexec "$@"', "sh", *arguments)


def python(script: str, *arguments: str) -> tuple[str, ...]:
    """Prepares the process by a script, which sees its arguments as `given`, and becomes the executable."""
    lines = ["import os, sys", f"given = sys.argv[1:{len(arguments) + 1}]", script]
    lines.append(f"rest = sys.argv[{len(arguments) + 1}:]")
    return (sys.executable, "-c", "\n".join([*lines, "os.execv(rest[0], rest)"]), *arguments)


def works(
    network: Network, pod: Sandbox, within: tuple[str, ...], env: dict[str, str] | None = None
) -> None:
    """A whole life of an attachment in these circumstances."""
    result = network.add(pod, within=within, env=env).ok()
    assert (pod.link("eth0") or {})["operstate"] == "UP"
    network.check(pod, result, within=within, env=env).ok()
    network.delete(pod, within=within, env=env).ok()
    assert pod.link("eth0") is None
    assert ports(network.node) == []


@pytest.fixture
def network(node: Node, program: str) -> Network:
    return Network(node, program, ipam={"type": "static", "addresses": [{"address": "10.1.2.3/24"}]})


def guarded(node: Node) -> Network:
    """One of ours with everything that could need a file, a library or a program."""
    ipam = host_local(node, "10.1.2.0/24", "fd00::/64")
    return Network(node, OURS, isGateway=True, ipMasq=True, macspoofchk=True, ipam=ipam)


DELETED = 'mkdir "$1/cwd"; cd "$1/cwd"; rmdir "$1/cwd"'


def test_a_working_directory_that_was_deleted(network: Network, pod: Sandbox) -> None:
    works(network, pod, shell(DELETED, str(network.node.folder)))


# Multus' daemon changes the root of the plugins it runs and not their working directory.
def test_a_working_directory_outside_the_root(network: Network, pod: Sandbox) -> None:
    new_root = network.node.folder / "root"
    new_root.mkdir()
    prepare = 'mount --make-rprivate /; mount --rbind / "$1"; cd /'
    within = (
        "unshare",
        "--mount",
        *shell(prepare, str(new_root)),
        *python("os.chroot(given[0])", str(new_root)),
    )
    works(network, pod, within)


@pytest.mark.parametrize(
    "names",
    [
        ("HOME",),
        ("LANG", "LC_ALL"),
        ("TMPDIR",),
        ("PATH",),
        ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER"),
    ],
    ids="+".join,
)
def test_variables_that_are_not_set(network: Network, pod: Sandbox, names: tuple[str, ...]) -> None:
    works(network, pod, (), dict.fromkeys(names, UNSET))


@pytest.mark.parametrize(
    "env",
    [
        {"PATH": UNSET, "HOME": UNSET, "LANG": UNSET},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LANG": "xx_YY.nonsense", "LC_ALL": "xx_YY.nonsense"},
        {"HOME": "/no/such/home", "TMPDIR": "/no/such/tmp"},
        {"TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    ],
    ids=["nothing", "C", "unknown-locale", "missing-folders", "traced"],
)
def test_all_features_in_odd_environments(node: Node, pod: Sandbox, env: dict[str, str]) -> None:
    works(guarded(node), pod, (), env)


def test_names_that_are_not_ascii_in_an_ascii_locale(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program, bridge="brücke0")
    network.add(pod, ifname="öth0", env={"LC_ALL": "C"}).ok()
    assert pod.link("öth0") is not None
    assert "brücke0" in node.links()
    network.delete(pod, ifname="öth0", env={"LC_ALL": "C"}).ok()
    assert pod.link("öth0") is None


def test_a_container_id_that_is_no_text_is_refused(node: Node, pod: Sandbox, program: str) -> None:
    within = python("os.environb[b'CNI_CONTAINERID'] = b'dummy\\xff'")
    error = Network(node, program).add(pod, within=within).error()
    assert (error["code"], error["msg"]) == (4, "invalid characters in containerID")


def test_standard_input_that_is_closed(network: Network, pod: Sandbox) -> None:
    error = network.add(pod, within=python("os.close(0)")).error()
    assert error["code"] in (5, 6)
    assert pod.link("eth0") is None


def test_standard_input_that_cannot_be_read(network: Network, pod: Sandbox) -> None:
    # Not a folder: at that the Python interpreter itself gives up before any of our code runs.
    error = network.add(pod, within=python("os.dup2(os.open('/dev/null', os.O_WRONLY), 0)")).error()
    assert (error["code"], error["msg"][:26]) == (5, "error reading from stdin: ")


@pytest.mark.parametrize("descriptor", [1, 2])
def test_an_output_that_is_closed_is_not_written_into_something_else(
    node: Node, pod: Sandbox, descriptor: int
) -> None:
    network = guarded(node)
    network.add(pod, within=python(f"os.close({descriptor})"))
    assert pod.link("eth0") is not None
    network.delete(pod, within=python("os.close(0); os.close(1); os.close(2)"))
    network.delete(pod).ok()
    assert ports(node) == []


CLOSED_PIPE = "reading, writing = os.pipe(); os.close(reading); os.dup2(writing, 1)"
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"


@pytest.mark.parametrize("script", [CLOSED_PIPE, FULL], ids=["closed-pipe", "full-disk"])
def test_a_result_that_cannot_be_written_is_a_failure(node: Node, pod: Sandbox, script: str) -> None:
    network = guarded(node)
    outcome = network.add(pod, within=python(script))
    assert outcome.code == 1
    assert "Traceback" not in outcome.stderr
    network.delete(pod).ok()
    assert ports(node) == []


def test_an_error_output_that_is_full_is_no_failure(network: Network, pod: Sandbox) -> None:
    works(network, pod, python("os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"))


def test_few_descriptors(network: Network, pod: Sandbox) -> None:
    works(network, pod, ("prlimit", "--nofile=20"))


@pytest.mark.parametrize(
    "limits",
    [
        ("--nofile=20", "--memlock=0", "--core=0", "--sigpending=0", "--msgqueue=0"),
        ("--fsize=65536",),
        ("--nice=0", "--rtprio=0", "--cpu=10"),
    ],
    ids=["kernel-objects", "file-size", "time"],
)
def test_all_features_within_small_limits(node: Node, pod: Sandbox, limits: tuple[str, ...]) -> None:
    works(guarded(node), pod, ("prlimit", *limits))


def test_little_memory(node: Node, pod: Sandbox) -> None:
    network = Network(node, OURS, macspoofchk=True)  # an address manager in Go wants more for itself
    works(network, pod, ("prlimit", "--as=134217728", "--data=67108864", "--stack=1048576"))


def test_too_few_descriptors_are_an_error_and_leave_nothing(node: Node, pod: Sandbox) -> None:
    network = guarded(node)
    for number in (6, 7, 8, 9, 10):
        outcome = network.add(pod, within=("prlimit", f"--nofile={number}"))
        assert "Traceback" not in outcome.stderr
        if outcome.code == 0:
            network.delete(pod).ok()
        assert pod.link("eth0") is None
        assert ports(node) == []


def read_only(node: Node, *, keep_records: bool) -> tuple[str, ...]:
    """A mount namespace in which nothing but, perhaps, the folder of the records can be written."""
    node.rundir.mkdir(parents=True, exist_ok=True)
    writable = 'mount --bind "$1" "$1"; ' if keep_records else ""
    remount = "mount -o remount,ro,bind"
    script = (
        f"mount --make-rprivate /; {writable}{remount} /; if mountpoint -q /tmp; then {remount} /tmp; fi"
    )
    return ("unshare", "--mount", *shell(script, str(node.rundir)))


def test_a_file_system_that_is_read_only(network: Network, pod: Sandbox) -> None:
    works(network, pod, read_only(network.node, keep_records=True))


def test_records_that_cannot_be_written_stop_an_add_before_it_starts(node: Node, pod: Sandbox) -> None:
    network = Network(node, OURS)
    within = read_only(node, keep_records=False)
    error = network.add(pod, within=within).error()
    assert error["code"] == 5
    assert str(node.rundir) in error["msg"]
    assert list(node.links()) == ["lo"]
    assert pod.link("eth0") is None


@pytest.mark.parametrize("command", ["ADD", "STATUS"])
def test_a_full_disk_is_reported_before_anything_is_made(node: Node, pod: Sandbox, command: str) -> None:
    script = (
        'mkdir -p "$1"; mount -t tmpfs -o size=64k none "$1"; head -c 99999 /dev/zero > "$1/full" || true'
    )
    within = ("unshare", "--mount", *shell(script, str(node.rundir)))
    network = Network(node, OURS)
    error = node.cni(OURS, command, network.config, pod, within=within).error()
    assert error["code"] == {"ADD": 5, "STATUS": 50}[command]
    assert "No space left on device" in error["msg"]
    assert list(node.links()) == ["lo"]


def test_records_that_cannot_be_written_do_not_stop_a_delete(node: Node, pod: Sandbox) -> None:
    network = Network(node, OURS, macspoofchk=True)
    network.add(pod).ok()
    network.delete(pod, within=read_only(node, keep_records=False)).ok()
    assert pod.link("eth0") is None
    assert ports(node) == []


def test_a_host_without_tmp(node: Node, pod: Sandbox) -> None:
    if executable(OURS).startswith("/tmp/"):
        pytest.skip("the executable would be gone as well")
    (node.folder / "run").mkdir()
    script = 'mount --make-rprivate /; mount --bind "$1" /srv; mount -t tmpfs -o ro none /tmp; cd /'
    within = ("unshare", "--mount", *shell(script, str(node.folder)))
    env = {"CNVNET_RUNDIR": "/srv/run", "CNVNET_STATEDIR": "/srv/state"}
    works(Network(node, OURS, macspoofchk=True), pod, within, env)


def version(node: Node, program: str, within: tuple[str, ...]) -> Outcome:
    return node.cni(program, "VERSION", {"cniVersion": "1.1.0"}, within=within)


def test_the_version_is_known_in_any_circumstances(node: Node, program: str) -> None:
    for within in (
        shell(DELETED, str(node.folder)),
        python("os.close(0)"),
        ("prlimit", "--nofile=20"),
        read_only(node, keep_records=False),
    ):
        assert version(node, program, within).ok()["cniVersion"] == "1.1.0"
