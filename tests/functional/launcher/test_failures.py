"""An agent that fails in the middle of a call: it is never run a second time, and the error says so."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnvnet.launch.protocol import (
    ANSWER_LIMIT,
    MalformedMessage,
    decode_response,
    encode_response,
    encode_unsupported,
    framed,
)
from tests.functional.launcher.conftest import CONFIG, GOOD, Called, Launcher, install
from tests.functional.launcher.fake_agent import Received, agent

pytestmark = pytest.mark.alone

# What an agent sends before it hangs up.
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "half a length": b"\0\0",
    "a length only": b"\0\0\0\2",
    "half an answer": framed(encode_response(GOOD))[:-1],
    "an empty answer": framed(b""),
    "an answer of 4 GiB": b"\xff" * 100,
    "an answer too long": (ANSWER_LIMIT + 1).to_bytes(4, "big") + b"{",
    "no JSON": framed(b"hello"),
    "half a document": framed(b'{"v":1,"exit":0,"stdout":"","stderr":""'),
    "two documents": framed(encode_response(GOOD) * 2),
    "a list": framed(b"[1]"),
    "an empty object": framed(b"{}"),
    "an error of another kind": framed(b'{"v":1,"error":{"code":5,"msg":"x"}}'),
    "another version": framed(encode_response(GOOD).replace(b'"v":1', b'"v":2')),
    "no exit": framed(b'{"v":1,"stdout":"","stderr":""}'),
    "an exit too large": framed(b'{"v":1,"exit":256,"stdout":"","stderr":""}'),
    "an exit that is text": framed(b'{"v":1,"exit":"0","stdout":"","stderr":""}'),
    "an exit that is none": framed(b'{"v":1,"exit":-1,"stdout":"","stderr":""}'),
    "no base64": framed(b'{"v":1,"exit":0,"stdout":"e30","stderr":""}'),
    "padding in the middle": framed(b'{"v":1,"exit":0,"stdout":"e3==e30=","stderr":""}'),
    "a zero byte": framed(b'{"v":1,"exit":0,"stdout":"e3\x000","stderr":""}'),
    "unsupported as text": framed(b'{"v":1,"unsupported":"true"}'),
    "open brackets": framed(b"[" * 100_000),
    "open strings": framed(b'{"v":1,"exit":"\\'),
}


@pytest.fixture
def run_log(launcher: Launcher) -> Path:
    """A file that is there once an executable was run in the agent's place."""
    return launcher.put_recorders_beside() if launcher.kind != "python" else launcher.folder / "never"


def assert_told_to_try_again(called: Called, launcher: Launcher) -> str:
    error = called.error()
    assert (error["cniVersion"], error["code"], called.stderr) == ("1.0.0", 11, b"")
    message: str = error["msg"]
    assert message.startswith(f"the agent at {launcher.socket} ")
    return message


def sending(raw: bytes) -> Callable[[Received, socket.socket], bytes]:
    return lambda received, connection: raw


@pytest.mark.parametrize("raw", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_answer_is_not_made_up_for(launcher: Launcher, run_log: Path, raw: bytes) -> None:
    with agent(launcher.socket, sending(raw)) as failing:
        assert_told_to_try_again(launcher.call(), launcher)
        assert len(failing.received) == 1
    assert not run_log.exists()


@pytest.mark.parametrize("padding", [0, 10_000_000], ids=["small", "large"])
def test_an_agent_that_hangs_up_on_a_request_may_have_run_it(
    launcher: Launcher, run_log: Path, padding: int
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(launcher.socket))
        listening.listen()
        stdin = json.dumps({**CONFIG, "padding": "x" * padding}).encode()
        process = subprocess.Popen(
            [launcher.path()], env=launcher.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        connection, _ = listening.accept()
        connection.recv(1)
        connection.close()
        assert process.stdout is not None
        out = process.stdout.read()
        process.stdout.close()
        assert_told_to_try_again(Called(process.wait(60), out, b""), launcher)
    assert not run_log.exists()


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (b'{"name": "n", "cniVersion": "0.4.0"}', "0.4.0"),
        (b' {"a": {"cniVersion": "9.9.9"}, "b": "\\"cniVersion\\"", "cniVersion" : "1.1.0" } ', "1.1.0"),
        (b'{"cniVersion": "0.3.1", "cniVersion": "1.0.0"}', "1.0.0"),
        (b"{}", None),
        (b'{"cniVersion": 3}', None),
        (b'{"cniVersion": "\\u0031.0.0"', None),
        (b'{"cniVersion": "one"}', None),
        (b"", None),
        (b"[]", None),
    ],
    ids=ascii,
)
def test_the_error_is_in_the_version_of_the_configuration(
    launcher: Launcher, config: bytes, version: str | None
) -> None:
    with agent(launcher.socket, sending(b"")):
        assert launcher.call(stdin=config).error().get("cniVersion") == version


def test_the_error_looks_like_any_other(launcher: Launcher) -> None:
    with agent(launcher.socket, sending(b"")):
        lines = launcher.call().stdout.decode().split("\n")
    assert (lines[0], lines[1], lines[2], lines[-1]) == (
        "{",
        '    "cniVersion": "1.0.0",',
        '    "code": 11,',
        "}",
    )


def test_an_agent_that_never_answers_is_given_up(c_launcher: Launcher) -> None:
    run_log = c_launcher.put_recorders_beside()

    def never(received: Received, connection: socket.socket) -> None:
        connection.recv(1)

    with agent(c_launcher.socket, never):
        message = assert_told_to_try_again(c_launcher.call(), c_launcher)
    assert message.endswith(" was lost before its answer (timed out)")
    assert not run_log.exists()


def test_an_agent_that_never_reads_is_given_up(c_launcher: Launcher) -> None:
    run_log = c_launcher.put_recorders_beside()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(c_launcher.socket))
        listening.listen()
        message = assert_told_to_try_again(
            c_launcher.call(stdin={**CONFIG, "p": "x" * 5_000_000}), c_launcher
        )
    assert message.endswith(" was lost while the call was sent (timed out)")
    assert not run_log.exists()


def test_a_full_backlog_is_waited_for_and_then_given_up(c_launcher: Launcher) -> None:
    run_log = c_launcher.put_recorders_beside()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(c_launcher.socket))
        listening.listen(0)
        first.connect(str(c_launcher.socket))
        message = assert_told_to_try_again(c_launcher.call(), c_launcher)
        assert message.endswith(" is too busy to take the call")
        # Room before its patience is over: then the call is taken.
        process = subprocess.Popen(
            [c_launcher.path()],
            env=c_launcher.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        time.sleep(0.3)
        listening.accept()[0].close()
        connection, _ = listening.accept()
        with connection:
            connection.sendall(framed(encode_response(GOOD)))
            assert process.communicate(timeout=60)[0] == GOOD.stdout
    assert not run_log.exists()


WHOLE = (
    encode_response(GOOD),
    b'{"v": 1, "x": [{"y": "\\""}, 1e5], "exit": 7, "stdout": "AAECAw==", "stderr": ""}',
    encode_unsupported(),
)


def damaged(seed: int) -> Iterator[bytes]:
    """Answers with something wrong here and there, and some that are right."""
    chance = random.Random(seed)
    while True:
        message = bytearray(chance.choice(WHOLE))
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            at = chance.randrange(len(message) or 1)
            match chance.randrange(4):
                case 0:
                    message[at : at + 1] = chance.choice(
                        (b"\\", b'"', b"}", b":", b"=", b"\0", b"\xff", b"9")
                    )
                case 1:
                    del message[at : at + chance.choice((1, 4, 100))]
                case 2:
                    message[at:at] = message[at // 2 :][:20]
                case _:
                    message[at:at] = chance.choice((b'"', b"\\", b"{", b"]", b"\x80", b"  ", b"null"))
        yield bytes(message)


@pytest.mark.parametrize("seed", range(4))
def test_no_answer_upsets_it(tmp_path: Path, built: dict[str, Path], seed: int) -> None:
    launcher = install(tmp_path, "asan", built)
    run_log = launcher.put_recorders_beside()
    answers = damaged(seed)
    sent: list[bytes] = []

    def next_one(received: Received, connection: socket.socket) -> bytes:
        sent.append(next(answers))
        return framed(sent[-1])

    with agent(launcher.socket, next_one):
        for _ in range(60):
            called = launcher.call()
            ran = run_log.exists()
            run_log.unlink(missing_ok=True)
            assert b"Sanitizer" not in called.stderr
            assert b"runtime error" not in called.stderr
            try:
                expected = decode_response(sent[-1])
            except MalformedMessage:
                continue  # what the C launcher does not need of an answer it does not judge
            understood = ran if expected is None else called == Called(*expected[:3])
            # Where it is stricter than Python, about escapes, it says so and does nothing.
            refused = not ran and called.code == 1 and b'"code": 11' in called.stdout
            assert understood or (refused and sent[-1] not in WHOLE), (sent[-1], called, ran)


# Another user's process, which has got a socket into RUNDIR (argv): it says how many bytes it was sent.
ALIEN = """
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
os.setgid(65534), os.setuid(65534)
listening.listen()
print("listens", flush=True)
connection, _ = listening.accept()
print(len(connection.recv(1)), flush=True)
"""


def test_another_users_socket_is_sent_nothing(launcher: Launcher) -> None:
    if launcher.kind != "python":
        launcher.put_python_beside()
    command = [sys.executable, "-c", ALIEN, str(launcher.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as alien:
        assert alien.stdout is not None
        assert alien.stdout.readline() == "listens\n"
        called = launcher.call(env={"CNI_COMMAND": "DEL"})
        assert alien.stdout.readline() == "0\n"
    assert called.code == 0, called
    refused = f"{launcher.socket} belongs to a process of user 65534, not of root: it is not asked\n"
    assert called.stderr.endswith(refused.encode()), called
