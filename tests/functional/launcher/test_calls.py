"""One call through each launcher: what the agent gets and what the caller gets back."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from cnvnet.cni import skel
from cnvnet.cni.skel import Response
from cnvnet.launch.protocol import encode_response, framed
from tests.functional.launcher.conftest import (
    CONFIG,
    GOOD,
    NAMES,
    Called,
    Launcher,
    never_loaded,
    nothing,
    plain_file,
    silent,
    where,
)
from tests.functional.launcher.fake_agent import Agent, Received, agent, responding, saying
from tests.functional.test_protocol import ENVIRONMENTS, REFUSED, UNREADABLE, with_
from tests.harness import Node

pytestmark = pytest.mark.alone

LIMIT = 16 * 1024 * 1024


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
            expected = Called(*skel.run("cnv-bridge", never_loaded, env, partial(bytes, raw))[:3])
            assert launcher.call(env={**dict.fromkeys(with_(), "\0"), **env}, stdin=raw) == expected, (
                env,
                raw,
            )


def test_a_stdin_that_is_not_needed_is_not_waited_for(c_launcher: Launcher) -> None:
    with agent(c_launcher.socket, responding(GOOD)) as answering:
        called = silent(c_launcher.path(), c_launcher.environment(CNI_COMMAND="\0"))
        assert called == (0, GOOD.stdout, GOOD.stderr)
        assert answering.received[0].call.stdin == b""


@pytest.mark.parametrize("name", NAMES)
def test_each_plugin_is_asked_for_by_its_name(c_launcher: Launcher, name: str) -> None:
    with agent(c_launcher.socket, responding(GOOD)) as answering:
        assert c_launcher.call(name).code == 0
        assert answering.received[0].call.argv0 == name


@pytest.mark.parametrize(
    ("name", "plugin"),
    [
        ("cnvnet-bridge", "cnv-bridge"),
        ("bridge", "cnv-bridge"),
        ("cnvnet-tuning", "cnv-tuning"),
        ("tuning", "cnv-tuning"),
    ],
)
def test_other_names_of_plugins(c_launcher: Launcher, name: str, plugin: str) -> None:
    with agent(c_launcher.socket, responding(GOOD)) as answering:
        assert c_launcher.call(name).code == 0
        assert answering.received[0].call.argv0 == plugin
    run_log = c_launcher.put_recorders_beside()
    assert c_launcher.call(name).code == 0
    assert run_log.read_text() == f"{c_launcher.folder}/cnvnet/bin/{plugin}\n"


@pytest.mark.parametrize("command", ["ADD", "VERSION"])
def test_under_any_other_name_it_says_how_it_wants_to_be_called(c_launcher: Launcher, command: str) -> None:
    (c_launcher.folder / "cnv-launch").symlink_to("cnv-bridge")
    error = c_launcher.call("cnv-launch", env={"CNI_COMMAND": command}).error()
    assert error["code"] == 50
    assert error["msg"].startswith("called as cnv-launch: this file must be called cnv-bridge, cnv-tuning")


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


def test_an_add_whose_result_cannot_be_written_is_undone(launcher: Launcher) -> None:
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
        line = b"cnv-bridge: the result cannot be written: undoing the ADD\n"
        assert (done.returncode, done.stderr) == (1, GOOD.stderr + line + GOOD.stderr)
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
