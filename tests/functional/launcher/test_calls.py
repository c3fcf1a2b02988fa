"""One call through each launcher: what the agent gets and what the caller gets back."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from cnvnet.cni import skel
from cnvnet.cni.forwarding import encode_response, encode_unsupported, framed
from cnvnet.cni.skel import Response
from tests.functional.launcher.conftest import CONFIG, GOOD, NAMES, Called, Launcher
from tests.functional.launcher.standin import Agent, Received, agent, responding, saying
from tests.functional.test_protocol import ENVIRONMENTS, REFUSED, UNREADABLE, with_
from tests.harness import Node

pytestmark = pytest.mark.alone

LIMIT = 16 * 1024 * 1024
UNNAMED = {"cniVersion": "1.0.0", "name": ""}  # refused by every plugin before anything is done


def where(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def never_loaded(env: object) -> skel.Plugin:
    raise AssertionError("the call was not refused")


def test_the_agent_gets_the_whole_call(launcher: Launcher, answering: Agent, node: Node) -> None:
    pod = node.pod()
    strange = os.fsdecode(
        b'\x01"\\\n\x7f \xc3\xa4 \xe2\x82\xac \xf0\x9f\x90\xa7 \xff\xed\xa0\x80\xc0\xaf \xe2\x82'
    )
    env = launcher.environment(
        CNI_NETNS=pod.netns, CNI_ARGS=strange, TRACEPARENT="00-1-2-00", SECRET="x", CNI="x", CNVNET="x"
    )
    stdin = random.Random(7).randbytes(100_001)
    done = subprocess.run(
        ["nsenter", f"--net={node.netns}", launcher.path()],
        env=env,
        input=stdin,
        capture_output=True,
        check=False,
    )
    assert Called(done.returncode, done.stdout, done.stderr) == (0, GOOD.stdout, GOOD.stderr)
    [received] = answering.received
    assert received.call.argv0 == "cnv-bridge"
    assert received.call.stdin == stdin
    assert received.call.env == {
        name: env[name] for name in env if name.startswith(("CNI_", "CNVNET_")) or name == "TRACEPARENT"
    }
    assert received.leads_to == {
        "netns": where(pod.netns),
        "self": where(node.netns),
        "mnt": where("/proc/self/ns/mnt"),
        "root": where("/"),
    }


def test_the_request_has_these_members_and_no_others(launcher: Launcher, answering: Agent) -> None:
    launcher.call()
    [received] = answering.received
    assert list(received.document) == ["v", "argv0", "fds", "env", "stdin"]
    assert received.document["v"] == 1
    assert received.document["fds"] == ["self", "mnt", "root"]
    assert base64.b64decode(str(received.document["stdin"])) == json.dumps(CONFIG).encode()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4095, 4096, 4097, 1_000_000, LIMIT])
def test_stdin_of_any_length_arrives(launcher: Launcher, answering: Agent, size: int) -> None:
    stdin = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    assert launcher.call(stdin=stdin).code == 0
    assert answering.received[0].call.stdin == stdin


def test_more_than_16_mib_are_an_error_and_nothing_is_sent(launcher: Launcher, answering: Agent) -> None:
    called = launcher.call(stdin=b" " * (LIMIT + 1))
    assert called.error() == {"code": 5, "msg": "error reading from stdin: more than 16777216 bytes"}
    assert answering.received == []


@pytest.mark.parametrize(
    "response",
    [
        Response(0, b"", b""),
        Response(0, b"\0\xff\n", b"\xfe\0"),
        Response(1, b'{"code": 7}', b"a\n"),
        Response(255, b"x", b"yz"),
        Response(0, bytes(range(256)) * 20_000, bytes(range(256)) * 100),
    ],
    ids=["nothing", "no text", "an error", "255", "large"],
)
def test_the_answer_is_printed_byte_for_byte(launcher: Launcher, response: Response) -> None:
    with agent(launcher.socket, responding(response)):
        assert launcher.call() == (response.exit, response.stdout, response.stderr)


def test_an_answer_may_come_in_pieces(launcher: Launcher) -> None:
    def in_pieces(received: Received, connection: socket.socket) -> None:
        for byte in framed(encode_response(GOOD)):
            connection.sendall(bytes([byte]))
            time.sleep(0.001)

    with agent(launcher.socket, in_pieces):
        assert launcher.call() == (0, GOOD.stdout, GOOD.stderr)


def test_an_answer_may_be_laid_out_in_any_way(launcher: Launcher) -> None:
    members = (
        b' { "news" : {"a": ["}", 1.5e+3, null, {"\\"": "\\\\"}]} ,\n\t"stderr": "" , "v": 1,"exit": 9,'
        b' "exit":3, "unsupported": false, "stdout":\r"+/8=" } \n'
    )
    with agent(launcher.socket, saying(members)):
        assert launcher.call() == (3, b"\xfb\xff", b"")


def test_the_skeleton_answers_through_the_agent_as_it_does_alone(launcher: Launcher) -> None:
    def run(received: Received, connection: socket.socket) -> bytes:
        call = received.call
        return framed(encode_response(skel.run(call.argv0, never_loaded, call.env, lambda: call.stdin)))

    calls = [
        *((env, b"{}") for env in [{}, *ENVIRONMENTS[::8]]),
        *((with_(CNI_COMMAND=command), raw) for command, raw in REFUSED[::12]),
        *((with_(), raw) for raw in UNREADABLE[::6]),
    ]
    with agent(launcher.socket, run):
        for env, raw in calls:
            expected = Called(*skel.run("cnv-bridge", never_loaded, env, partial(bytes, raw)))
            assert launcher.call(env={**dict.fromkeys(with_(), "\0"), **env}, stdin=raw) == expected, (
                env,
                raw,
            )


def silent(path: str, env: Mapping[str, str]) -> Called:
    """A call whose stdin nobody ever writes to nor closes."""
    reading, writing = os.pipe()
    done = subprocess.run([path], env=env, stdin=reading, capture_output=True, check=False, timeout=60)
    os.close(reading)
    os.close(writing)
    return Called(done.returncode, done.stdout, done.stderr)


def test_nobody_waits_for_a_stdin_that_is_not_needed(c_launcher: Launcher) -> None:
    with agent(c_launcher.socket, responding(GOOD)) as answering:
        called = silent(c_launcher.path(), c_launcher.environment(CNI_COMMAND="\0"))
        assert called == (0, GOOD.stdout, GOOD.stderr)
        assert answering.received[0].call.stdin == b""


@pytest.mark.parametrize("name", NAMES)
def test_each_plugin_is_asked_for_by_its_name(c_launcher: Launcher, name: str) -> None:
    with agent(c_launcher.socket, responding(GOOD)) as answering:
        assert c_launcher.call(name).code == 0
        assert answering.received[0].call.argv0 == name


def test_bridge_is_another_name_of_cnv_bridge(c_launcher: Launcher) -> None:
    with agent(c_launcher.socket, responding(GOOD)) as answering:
        assert c_launcher.call("bridge").code == 0
        assert answering.received[0].call.argv0 == "cnv-bridge"


@pytest.mark.parametrize("command", ["ADD", "VERSION"])
def test_under_any_other_name_it_says_how_it_wants_to_be_called(c_launcher: Launcher, command: str) -> None:
    (c_launcher.folder / "cnv-launch").symlink_to("cnv-bridge")
    error = c_launcher.call("cnv-launch", env={"CNI_COMMAND": command}).error()
    assert error["code"] == 50
    assert error["msg"].startswith("called as cnv-launch: this file must be called cnv-bridge, masquerade")


def test_of_a_variable_that_is_there_twice_the_first_one_counts(
    launcher: Launcher, answering: Agent, tmp_path: Path
) -> None:
    # No shell and no Python can make such an environment: execve does it.
    maker = tmp_path / "maker.c"
    maker.write_text(
        "#include <unistd.h>\nint main(int c, char **v) { (void)c; return execve(v[1], v + 1, v + 2); }\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "maker", maker], check=True)
    variables = [f"{name}={value}" for name, value in launcher.environment().items()]
    twice = [*variables, "CNI_ARGS=first", "CNI_IFNAME=second", "CNI_ARGS=second"]
    subprocess.run(
        [tmp_path / "maker", launcher.path(), *twice], input=b"{}", check=True, capture_output=True
    )
    env = answering.received[0].call.env
    assert (env["CNI_ARGS"], env["CNI_IFNAME"]) == ("first", "eth0")


def plain_file(path: Path) -> None:
    path.write_bytes(b"")


def nothing(path: Path) -> None: ...


@pytest.mark.parametrize("make", [nothing, plain_file, os.mkfifo, os.mkdir])
def test_what_is_no_namespace_is_not_sent(
    launcher: Launcher, answering: Agent, tmp_path: Path, make: object
) -> None:
    path = tmp_path / "netns"
    assert callable(make)
    make(path)
    assert launcher.call(env={"CNI_NETNS": str(path)}).code == 0
    assert answering.received[0].call.fds == ("self", "mnt", "root")


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_closed_standard_descriptor_is_not_used_for_something_else(
    launcher: Launcher, answering: Agent, descriptor: int
) -> None:
    command = ["sh", "-c", f'exec "$0" {descriptor}>&-', launcher.path()]
    done = subprocess.run(
        command, env=launcher.environment(), input=b"{}", capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout == (b"" if descriptor == 1 else GOOD.stdout)
    assert done.stderr == (b"" if descriptor == 2 else GOOD.stderr)
    assert answering.received[0].call.stdin == (b"" if descriptor == 0 else b"{}")
    assert answering.received[0].leads_to["self"] == where("/proc/self/ns/net")


def test_an_unreadable_stdin_is_an_io_failure(launcher: Launcher, answering: Agent) -> None:
    with open("/dev/null", "wb") as writable:
        done = subprocess.run(
            [launcher.path()], env=launcher.environment(), stdin=writable, capture_output=True, check=False
        )
    assert json.loads(done.stdout) == {
        "code": 5,
        "msg": "error reading from stdin: read /dev/stdin: bad file descriptor",
    }
    assert (done.returncode, answering.received) == (1, [])


def test_pipes_that_do_not_block_are_waited_for(launcher: Launcher) -> None:
    large = Response(0, b"x" * 1_000_000, b"")
    stdin_reading, stdin_writing = os.pipe()
    stdout_reading, stdout_writing = os.pipe()
    os.set_blocking(stdin_reading, False)
    os.set_blocking(stdout_writing, False)
    with agent(launcher.socket, responding(large)) as answering:
        process = subprocess.Popen(
            [launcher.path()], env=launcher.environment(), stdin=stdin_reading, stdout=stdout_writing
        )
        os.close(stdin_reading)
        os.close(stdout_writing)
        time.sleep(0.1)
        os.write(stdin_writing, b"{}")
        os.close(stdin_writing)
        time.sleep(0.2)
        with open(stdout_reading, "rb") as pipe:
            assert pipe.read() == large.stdout
        assert process.wait(60) == 0
        assert answering.received[0].call.stdin == b"{}"


def test_an_add_whose_result_nobody_takes_is_taken_back(launcher: Launcher) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with agent(launcher.socket, responding(GOOD)) as answering:
        done = subprocess.run(
            [launcher.path()],
            env=launcher.environment(),
            input=b"{}",
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writing)
        told = b"cnv-bridge: the result cannot be written: deleting what it tells of\n"
        assert (done.returncode, done.stderr) == (1, GOOD.stderr + told + GOOD.stderr)
        assert [received.call.env["CNI_COMMAND"] for received in answering.received] == ["ADD", "DEL"]
        first, second = (received.call for received in answering.received)
        assert second == first._replace(env={**first.env, "CNI_COMMAND": "DEL"})


@pytest.mark.parametrize(("command", "code"), [("DEL", 0), ("ADD", 1)])
def test_nothing_else_is_taken_back(launcher: Launcher, command: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with agent(launcher.socket, responding(Response(code, b"x", b""))) as answering:
        done = subprocess.run(
            [launcher.path()],
            env=launcher.environment(CNI_COMMAND=command),
            input=b"{}",
            stdout=writing,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, len(answering.received)) == (1, 1)


def test_a_working_directory_that_is_gone_is_not_needed(
    launcher: Launcher, answering: Agent, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    script = f'mkdir {gone}; cd {gone}; rmdir {gone}; exec "$0"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, launcher.path()],
        env=launcher.environment(),
        input=b"{}",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, GOOD.stdout)


def test_a_caller_that_is_killed_hangs_up(launcher: Launcher) -> None:
    seen: list[bytes] = []

    def wait(received: Received, connection: socket.socket) -> None:
        seen.append(b"a call")
        seen.append(connection.recv(1))

    with agent(launcher.socket, wait):
        process = subprocess.Popen([launcher.path()], env=launcher.environment(), stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        process.terminate()
        process.wait(60)
    assert seen == [b"a call", b""]


def test_the_socket_may_be_anywhere(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.sock"
    with agent(path, responding(GOOD)) as answering:
        assert launcher.call(env={"CNVNET_AGENT": str(path)}).code == 0
        assert len(answering.received) == 1


def test_two_hundred_at_once_each_get_their_own_answer(static: Launcher) -> None:
    def slowly(received: Received, connection: socket.socket) -> bytes:
        time.sleep(0.2)
        return framed(encode_response(Response(0, received.call.env["CNI_CONTAINERID"].encode(), b"")))

    with agent(static.socket, slowly) as answering:
        started = [
            subprocess.Popen(
                [static.path()],
                env=static.environment(CNI_CONTAINERID=f"c{i}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(200)
        ]
        assert [process.communicate(timeout=60)[0] for process in started] == [f"c{i}" for i in range(200)]
        assert all(process.returncode == 0 for process in started)
        assert len(answering.received) == 200


def test_it_is_small(static: Launcher) -> None:
    sizes: dict[str, int] = {}

    def measure(received: Received, connection: socket.socket) -> bytes:
        pid = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                sizes["peak"] = int(line.split()[1])
        return framed(encode_response(GOOD))

    with agent(static.socket, measure):
        static.call(stdin={**CONFIG, "padding": "x" * 5000})
    assert 0 < sizes["peak"] < 1024  # KiB
    assert os.stat(static.path()).st_size < 1024 * 1024
    linked = subprocess.run(["ldd", static.path()], capture_output=True, text=True, check=False)
    assert "not a dynamic executable" in linked.stderr + linked.stdout


# ---- VERSION ----

VERSION = Called(*skel.run("cnv-bridge", never_loaded, {"CNI_COMMAND": "VERSION"}, bytes))


@pytest.mark.parametrize("name", NAMES)
def test_the_version_is_known_with_neither_agent_nor_executables(launcher: Launcher, name: str) -> None:
    assert silent(launcher.path(name), launcher.environment(CNI_COMMAND="VERSION")) == VERSION
    # As little as a caller can say.
    assert silent(launcher.path(name), {"CNI_COMMAND": "VERSION"}) == VERSION


def test_for_the_version_nobody_is_asked(launcher: Launcher, answering: Agent) -> None:
    witness = launcher.put_witness_beside()
    for named in ("\0", "off", "auto", str(launcher.socket)):
        assert launcher.call(env={"CNI_COMMAND": "VERSION", "CNVNET_AGENT": named}) == VERSION
    assert answering.received == []
    assert not witness.exists()


@pytest.mark.parametrize("command", ["VERSION ", "VERSIONS", "VERSIO", "version"])
def test_what_only_looks_like_version_is_a_call(launcher: Launcher, answering: Agent, command: str) -> None:
    assert launcher.call(env={"CNI_COMMAND": command}) == (0, GOOD.stdout, GOOD.stderr)
    assert len(answering.received) == 1


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_the_version_with_a_standard_descriptor_closed(launcher: Launcher, descriptor: int) -> None:
    command = ["sh", "-c", f'exec "$0" {descriptor}>&-', launcher.path()]
    env = launcher.environment(CNI_COMMAND="VERSION")
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=60)
    stdout = b"" if descriptor == 1 else VERSION.stdout
    assert Called(done.returncode, done.stdout, done.stderr) == (0, stdout, b"")


def test_a_version_that_nobody_takes_is_a_failure(launcher: Launcher) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = launcher.environment(CNI_COMMAND="VERSION")
    done = subprocess.run(
        [launcher.path()], env=env, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_launcher_in_the_executables_place_says_so_for_the_version_too(c_launcher: Launcher) -> None:
    script = 'CNVNET_LAUNCHER_PID=$$ exec "$0"'
    done = subprocess.run(
        ["sh", "-c", script, c_launcher.path()],
        env=c_launcher.environment(CNI_COMMAND="VERSION"),
        capture_output=True,
        check=False,
        timeout=60,
    )
    error = Called(done.returncode, done.stdout, done.stderr).error()
    assert error["code"] == 11
    assert " is a launcher and not the plugin's executable: " in error["msg"]


# ---- no agent ----


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("make", [nothing, plain_file, stale, os.mkdir])
def test_without_an_agent_the_plugins_own_executable_runs(launcher: Launcher, make: object) -> None:
    launcher.put_python_beside()
    assert callable(make)
    make(launcher.socket)
    error = launcher.call(stdin=UNNAMED).error()
    assert error == {"code": 7, "msg": "missing network name"}


def test_off_means_that_no_agent_is_asked(launcher: Launcher, answering: Agent) -> None:
    launcher.put_python_beside()
    assert launcher.call(stdin=UNNAMED, env={"CNVNET_AGENT": "off"}).error()["code"] == 7
    assert answering.received == []


@pytest.mark.parametrize("message", [encode_unsupported(), b'{"v": 2, "unsupported": true}'])
def test_what_the_agent_does_not_do_is_done_here(launcher: Launcher, message: bytes) -> None:
    launcher.put_python_beside()
    with agent(launcher.socket, saying(message)) as answering:
        padded = {**UNNAMED, "padding": "x" * 1_000_000}
        assert launcher.call(stdin=padded).error()["msg"] == "missing network name"
        assert answering.received


def test_a_socket_whose_path_is_too_long_is_no_agent(launcher: Launcher) -> None:
    launcher.put_python_beside()
    path = "/" + "x/" * 100 + "agent.sock"
    assert launcher.call(stdin=UNNAMED, env={"CNVNET_AGENT": path}).error()["code"] == 7


def test_alone_it_is_the_plugin_in_all_that_can_be_seen(c_launcher: Launcher) -> None:
    c_launcher.put_python_beside()
    python = c_launcher.folder / "cnvnet/bin/static-ip"
    for env in (
        {"CNI_COMMAND": "VERSION"},
        {"CNI_COMMAND": "\0"},
        {"CNI_COMMAND": "STATUS"},
        {"CNI_PATH": ""},
    ):
        alone = subprocess.run(
            [python], env=c_launcher.environment(**env), input=b"{}", capture_output=True, check=False
        )
        expected = Called(alone.returncode, alone.stdout, alone.stderr)
        assert c_launcher.call("static-ip", stdin=b"{}", env=env) == expected


def test_with_neither_agent_nor_executables_it_names_both_remedies(c_launcher: Launcher) -> None:
    error = c_launcher.call().error()
    assert (error["cniVersion"], error["code"]) == ("1.0.0", 11)
    assert f"the agent at {c_launcher.socket} is not there (no such file or directory)" in error["msg"]
    assert "start cnvnet-agent on this node, or install cnvnet's executables in " in error["msg"]
    error = c_launcher.call(env={"CNVNET_AGENT": "off"}).error()
    assert error["msg"].startswith("CNVNET_AGENT=off, and ")


def test_it_does_not_take_itself_for_the_executable(c_launcher: Launcher) -> None:
    beside = c_launcher.folder / "cnvnet/bin"
    beside.mkdir(parents=True)
    (beside / "cnv-bridge").symlink_to(c_launcher.path())
    error = c_launcher.call().error()
    assert error["code"] == 11
    assert "/bin/cnv-bridge cannot be run (no such file or directory)" in error["msg"], "the next place"


def test_a_copy_of_it_is_not_taken_for_the_executable(c_launcher: Launcher) -> None:
    beside = c_launcher.folder / "cnvnet/bin"
    beside.mkdir(parents=True)
    shutil.copy(c_launcher.path(), beside)
    for env in ({}, {"CNVNET_AGENT": "off"}, {"CNVNET_AGENT": str(c_launcher.socket)}):
        error = c_launcher.call(env=env).error()
        assert (error["cniVersion"], error["code"]) == ("1.0.0", 11)
        assert f"{beside}/cnv-bridge is a launcher and not the plugin's executable: " in error["msg"]
        assert "install cnvnet's executables in " in error["msg"]


def test_a_copy_where_the_executable_belongs_does_not_run_itself(
    static: Launcher, built: dict[str, Path]
) -> None:
    place = static.folder / str(built["c"].parent / "nowhere/bin").lstrip("/")
    place.mkdir(parents=True)
    shutil.copy(static.path(), place)
    # Without /proc it cannot see whose file it is.
    command = ["chroot", str(static.folder), f"/{place.relative_to(static.folder)}/cnv-bridge"]
    env = static.environment(CNVNET_AGENT="off")
    done = subprocess.run(command, env=env, input=b"{}", capture_output=True, check=False, timeout=60)
    assert "/cnv-bridge is a launcher and not the plugin's executable: " in json.loads(done.stdout)["msg"]


def test_a_root_without_proc_is_left_to_the_executable(static: Launcher) -> None:
    root = static.folder
    env = static.environment(CNVNET_RUNDIR="/run")
    command = ["chroot", str(root), "/cnv-bridge"]
    with agent(static.socket, responding(GOOD)) as answering:
        done = subprocess.run(command, env=env, input=b"{}", capture_output=True, check=False)
        assert "own namespaces in /proc cannot be opened" in json.loads(done.stdout)["msg"]
        assert answering.received == []


def test_inside_another_root_it_sends_that_root(static: Launcher) -> None:
    root = static.folder
    (root / "proc").mkdir()
    env = static.environment(CNVNET_RUNDIR="/run")
    script = f"mount --bind /proc {root}/proc && exec chroot {root} /cnv-bridge"
    with agent(static.socket, responding(GOOD)) as answering:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env=env,
            input=b"{}",
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, GOOD.stdout, GOOD.stderr)
        [received] = answering.received
        assert received.leads_to["root"] == where(str(root))
        assert received.leads_to["mnt"] != where("/proc/self/ns/mnt")


def test_nothing_of_the_answer_is_left_open(static: Launcher) -> None:
    """The executable that runs alone inherits three descriptors and no more."""
    beside = static.folder / "cnvnet/bin"
    beside.mkdir(parents=True)
    (beside / "cnv-bridge").write_text("#!/bin/sh\nls /proc/$$/fd\n")
    (beside / "cnv-bridge").chmod(0o755)
    with agent(static.socket, saying(encode_unsupported())):
        # 10 is the shell's own, its script.
        assert static.call().stdout.split() == [b"0", b"1", b"10", b"2"]


def test_the_agent_is_not_asked_a_second_time_by_the_executable(static: Launcher) -> None:
    static.put_python_beside()
    with agent(static.socket, saying(encode_unsupported())) as answering:
        assert static.call(stdin=CONFIG, env={"CNI_COMMAND": "FOO"}).error()["code"] == 4
        assert len(answering.received) == 1
