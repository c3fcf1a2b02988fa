"""Without an agent, or where the agent does not run the call: the launcher becomes the executable."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cnvnet.launch.protocol import encode_response, encode_unsupported, framed
from tests.functional.launcher.conftest import CONFIG, GOOD, Called, Launcher, nothing, plain_file, where
from tests.functional.launcher.fake_agent import Agent, agent, responding, saying

pytestmark = pytest.mark.alone


UNNAMED = {"cniVersion": "1.0.0", "name": ""}  # refused by every plugin before anything is done


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


def test_without_executables_it_waits_for_an_agent_that_is_being_replaced(c_launcher: Launcher) -> None:
    (c_launcher.rundir / "agent.lock").touch()
    with ExitStack() as undo:
        back = threading.Timer(0.7, lambda: undo.enter_context(agent(c_launcher.socket, responding(GOOD))))
        back.start()
        assert c_launcher.call() == (0, GOOD.stdout, GOOD.stderr)
        back.join()
    # One that is about to end runs nothing any more.
    answers = iter([framed(encode_unsupported()), framed(encode_response(GOOD))])
    with agent(c_launcher.socket, lambda received, connection: next(answers)) as answering:
        assert c_launcher.call() == (0, GOOD.stdout, GOOD.stderr)
        assert len(answering.received) == 2


def test_without_executables_it_waits_for_two_seconds_at_most(c_launcher: Launcher) -> None:
    (c_launcher.rundir / "agent.lock").touch()
    begun = time.monotonic()
    error = c_launcher.call().error()
    assert 1 <= time.monotonic() - begun < 10
    missing = "is not there (no such file or directory), and none came back within 2 s, and "
    assert (error["code"], missing in error["msg"]) == (11, True)


def test_with_an_executable_it_waits_for_no_agent(c_launcher: Launcher) -> None:
    (c_launcher.rundir / "agent.lock").touch()
    ran = c_launcher.put_recorders_beside()
    begun = time.monotonic()
    assert c_launcher.call().code == 0
    assert time.monotonic() - begun < 1
    assert ran.read_text().endswith("/cnvnet/bin/cnv-bridge\n")


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
