"""The agent as a process: its socket, its numbers, its health, its log, its end."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cnvnet.agent.calls.scheduler import MAX_RUNNING
from tests.functional.agent.launcher_calls import cni
from tests.functional.agent.own_agent import (
    PATIENCE,
    ask,
    capabilities_of_the_unit,
    eventually,
    is_there,
    process_of,
    received,
    running_agent,
    within_capabilities,
)
from tests.functional.agent.test_dns import container
from tests.functional.agent.udhcpc import lease
from tests.functional.masquerade.masquerade_pod import Lab
from tests.harness import Node, executable

pytestmark = pytest.mark.alone

DOCS = Path(__file__).parents[3] / "docs/agent.md"


def test_only_root_reaches_it(node: Node) -> None:
    with running_agent(node) as agent:
        assert agent.socket.stat().st_mode & 0o777 == 0o600
        # Another user who reaches it all the same is not heard.
        agent.socket.chmod(0o666)
        for folder in (node.folder, node.rundir):
            folder.chmod(0o755)
        reading, writing = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                connection = socket.socket(socket.AF_UNIX)
                os.chdir(node.rundir)
                os.setuid(65534)
                connection.connect("agent.sock")
                content = b'{"v": 1, "status": true}'
                connection.sendall(len(content).to_bytes(4, "big") + content)
                writing.send(b"answer:" + connection.recv(1000))
            except OSError as e:
                writing.send(f"error: {type(e).__name__}".encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        received = reading.recv(1000)
        assert received in (b"answer:", b"error: ConnectionResetError", b"error: BrokenPipeError")
        assert [event["uid"] for event in agent.events() if "not root" in event["msg"]] == [65534]
        reading.close()
        writing.close()


UNKNOWN: list[dict[str, Any]] = [
    {"v": 2, "guest": "serve", "record": "a.json"},
    {"v": "1", "status": True},
    {"status": True},
    {"v": 1},
    {"v": 1, "guest": "restart", "record": "a.json"},
    {"v": 1, "guest": ["serve"], "record": "a.json"},
    {"v": 1, "argv0": "bandwidth", "fds": [], "env": {}, "stdin": ""},
    {"v": 2, "argv0": "cnv-bridge", "options": "new ones"},
]


def test_whatever_comes_is_answered(node: Node) -> None:
    with running_agent(node) as agent:
        for request in UNKNOWN:
            assert ask(agent.socket, request) == {"v": 1, "unsupported": True}, request
        for content in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000):
            assert ask(agent.socket, content)["error"]["code"] == 6, content[:10]
        names: list[Any] = ["../agent.sock", "a/b.json", "", None, 5, "x" * 300 + ".json", "a.json\n"]
        for name in names:
            error = agent.ask(guest="serve", record=name)["error"]
            assert error["code"] == 7, name
        error = agent.ask(guest="serve", record="masquerade-0.json")["error"]
        assert (error["code"], "no such record" in error["msg"]) == (50, True)
        assert agent.ask(guest="forget", record="masquerade-0.json") == {"v": 1, "ok": True}
        with socket.socket(socket.AF_UNIX) as connection:  # more than it reads
            connection.connect(str(agent.socket))
            connection.sendall((1 << 25 | 1).to_bytes(4, "big"))
            assert b"33554432 at most" in received(connection)
        with socket.socket(socket.AF_UNIX) as connection:  # a caller that sends half a request and leaves
            connection.connect(str(agent.socket))
            connection.sendall(b"\0\0\1\0half")
        assert agent.ask(status=True) == {"v": 1, "ok": True}


def test_callers_that_say_nothing_keep_others_waiting_for_seconds_only(node: Node) -> None:
    with running_agent(node) as agent:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(6)]
        for each in silent:
            each.connect(str(agent.socket))
        assert agent.ask(status=True) == {"v": 1, "ok": True}
        for each in silent:
            each.close()


def test_metrics_and_health(lab: Lab, tmp_path: Path) -> None:
    with running_agent(lab.node) as agent:
        assert agent.http("/healthz") == (200, "ok\n")
        assert agent.http("/readyz") == (200, "ok\n")
        assert "calls: 0 running, 0 waiting\n" in agent.http("/healthz?verbose")[1]
        assert agent.http("/elsewhere")[0] == 404
        pod = lab.pod()
        pod.cni("ADD", guestServices={"nameservers": ["10.96.0.10"], "search": ["a.b"]}).ok()
        lab.plug(pod)
        lease(lab.guest, tmp_path)
        agent.ask(guest="check", record="masquerade-0.json")
        agent.ask(guest="restart", record="masquerade-0.json")
        text = agent.http("/metrics")[1]
        assert {family.name for family in text_string_to_metric_families(text)} >= {
            "cnvnet_guest_events",
            "cnvnet_guests",
            "cnvnet_guest_frames_dropped",
            "cnvnet_guest_throttled",
            "cnvnet_packet_loop_restarts",
            "cnvnet_agent_requests",
            "cnvnet_agent_build_info",
            "process_resident_memory_bytes",
        }
        numbers = agent.metrics()
        described = DOCS.read_text()
        for name in numbers:
            stem = name.partition("{")[0].removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
            assert stem.startswith("process_") or f"`{stem}" in described, name
        assert numbers['cnvnet_guest_events_total{event="ack",service="dhcp4"}'] == 1
        assert agent.serves() == 1
        assert numbers['cnvnet_agent_requests_total{code="0",kind="serve"}'] == 1
        assert numbers['cnvnet_agent_requests_total{code="50",kind="check"}'] == 1
        assert numbers['cnvnet_agent_requests_total{code="501",kind="unknown"}'] == 1
        agent.kill_loop()
        assert eventually(lambda: agent.http("/healthz")[0] == 200)
        assert agent.metrics()["cnvnet_packet_loop_restarts_total"] == 1


def test_health_says_what_is_missing(node: Node, tmp_path: Path) -> None:
    # A packet loop that ends at once, whenever it is started.
    script = (
        "import subprocess, sys\n"
        "start = subprocess.Popen\n"
        "subprocess.Popen = lambda command, **rest: start(['false'], **rest)\n"
        "from cnvnet.agent import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "--rundir", str(node.rundir)]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        agent = node.popen(*command, stderr=stderr)
        try:
            assert eventually(lambda: "agent ready" in log.read_text())
            get = "import urllib.request as u; u.urlopen('http://127.0.0.1:9440/healthz')"
            unhealthy = eventually(lambda: "503" in node.run("python3", "-c", get, check=False).stderr)
            assert unhealthy
            # There is one for a moment whenever it has been started.
            asked = (node.rundir / "agent.sock", {"v": 1, "status": True})
            assert eventually(lambda: ask(*asked).get("error", {}).get("code") == 50)
        finally:
            agent.terminate()
            assert agent.wait(PATIENCE) == 0


TAKEN = "127.0.0.1:9440 is in use: no /metrics and no /healthz"


def elsewhere(node: Node) -> Node:
    other = node.other(folder=node.folder / "other")
    other.folder.mkdir()
    return other


def test_an_agent_whose_port_is_taken_ends_and_says_how_to_go_on(node: Node) -> None:
    other = elsewhere(node)
    with running_agent(node):
        program = [executable("cnvnet-agent"), "--rundir", str(other.rundir)]
        ended = node.run(*program, check=False, timeout=PATIENCE)
        (line,) = [json.loads(line) for line in ended.stderr.splitlines()]
        assert (ended.returncode, line["msg"]) == (1, "cannot start")
        assert line["error"] == f'{TAKEN} (--metrics-address HOST:PORT, or "" for none)'
        assert not (other.rundir / "agent.sock").exists()
        for none in ("--metrics-address=", "--metrics-address=off"):
            with running_agent(other, none) as agent:
                assert agent.answers()


def test_an_agent_on_demand_serves_without_the_port(node: Node) -> None:
    with running_agent(node), running_agent(elsewhere(node), "--idle-exit", "60") as other:
        assert other.answers()
        (warning,) = [event for event in other.events() if event["level"] == "warning"]
        assert warning["msg"] == TAKEN


def test_options_are_taken_from_the_environment(node: Node) -> None:
    variables = ("CNVNET_AGENT_METRICS_ADDRESS=off", "CNVNET_AGENT_LOG_FORMAT=text", "CNVNET_AGENT=off")
    with running_agent(node, within=("env", *variables)) as agent:
        assert "info    agent ready version=" in agent.log()
        assert agent.log().rstrip().endswith('metrics=""')
    shown = node.run(executable("cnvnet-agent"), "--help").stdout
    for option in ("RUNDIR", "AGENT_SOCKET", "AGENT_METRICS_ADDRESS", "AGENT_IDLE_EXIT", "AGENT_LOG_LEVEL"):
        assert f"env var: CNVNET_{option}" in " ".join(shown.split())


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_the_address_of_the_metrics(node: Node, address: str) -> None:
    with running_agent(node, "--metrics-address", address) as agent:
        (ready,) = [event for event in agent.events() if event["msg"] == "agent ready"]
        get = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read())"
        assert "ok" in node.run("python3", "-c", get, f"http://{ready['metrics']}/healthz").stdout


def test_without_metrics_no_tcp_port_is_open(node: Node) -> None:
    with running_agent(node, "--metrics-address", ""):
        assert node.run("ss", "-Hltn").stdout == ""


def test_every_line_of_the_log_is_an_object(node: Node) -> None:
    with running_agent(node, "--log-level", "debug") as agent:
        agent.ask(guest="serve", record="masquerade-0.json")
        agent.terminate()
        events = agent.events()
    assert all({"ts", "level", "msg"} <= event.keys() for event in events)
    assert events[-1]["msg"] == "agent ended"


# Callers that reset their connections, whatever has been answered by then, and others that say nothing.
RUDE = """
import socket, struct
def connect():
    return socket.create_connection(("127.0.0.1", 9440), timeout=30)
for said in (b"", b"GET /metrics HTTP/1.0\\r\\n\\r\\n", b"\\xff" * 70000) * 5:
    with connect() as connection:
        connection.sendall(said)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
silent = [connect() for _ in range(200)]
print("held", flush=True)
input()
"""


def test_a_log_without_a_reader_stops_no_call(node: Node) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 8192)
    try:
        with running_agent(node, stderr=writing) as agent:
            pod = node.pod()
            for number in range(MAX_RUNNING + 40):
                cni(node, "DEL", pod, container_id=f"c{number}").ok()
            status, text = agent.http("/healthz?verbose")
            assert status == 200
            assert re.search(r"^log: \d+ lines are lost, nothing reads it$", text, re.MULTILINE)
            assert agent.terminate() == 0
    finally:
        os.close(writing)
        os.close(reading)


def test_it_works_with_stderr_closed(node: Node) -> None:
    closed = ("sh", "-c", 'exec "$@" 2>&-', "sh")
    with running_agent(node, "--idle-exit", "60", within=closed, stderr=subprocess.DEVNULL) as agent:
        # Longer than it takes to look at the size of its log.
        assert not eventually(lambda: agent.process.poll() is not None, seconds=2)
        assert agent.http("/healthz") == (200, "ok\n")


def test_rude_callers_of_the_metrics_leave_no_trace(node: Node) -> None:
    with running_agent(node) as agent:
        threads = Path(f"/proc/{agent.pid}/task")
        rude = node.popen(sys.executable, "-c", RUDE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert rude.stdout is not None
        assert rude.stdout.readline() == "held\n"
        # Some 90 are the agent's own; 200 silent connections have 32 more at most.
        assert len(list(threads.iterdir())) < 150
        # They are still there, and keep none from asking.
        assert agent.http("/healthz") == (200, "ok\n")
        assert "cnvnet_calls_waiting 0.0" in agent.http("/metrics")[1]
        rude.communicate("\n")
        assert eventually(lambda: agent.http("/healthz")) == (200, "ok\n")
        assert {event["level"] for event in agent.events()} == {"info"}


def test_text_for_people(node: Node) -> None:
    with running_agent(node, "--log-format", "text") as agent:
        assert "info    agent ready version=" in agent.log()


def test_sigterm_ends_it_and_sighup_does_not(node: Node) -> None:
    with running_agent(node) as agent:
        loop = agent.loop_pid
        agent.process.send_signal(signal.SIGHUP)
        assert agent.answers()
        assert agent.terminate() == 0
        assert not agent.socket.exists()
        assert not is_there(loop)


def test_it_does_not_begin_what_it_could_not_serve(node: Node) -> None:
    command = ("prlimit", "--nofile=200:200", executable("cnvnet-agent"), "--rundir", str(node.rundir))
    done = node.run(*command, check=False)
    assert done.returncode == 1
    event = json.loads(done.stderr.splitlines()[-1])
    assert (event["error"], event["remedy"]) == ("200 open files are too few", "ulimit -n 65536")


def test_it_replaces_a_dead_ones_socket(node: Node) -> None:
    with running_agent(node) as agent:
        agent.kill()
        assert agent.socket.exists()
        agent.start()


def test_a_second_one_waits_says_so_and_takes_over(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "second"
    with running_agent(node) as agent, log.open("w") as stderr:
        command = [executable("cnvnet-agent"), "--rundir", str(node.rundir)]
        second = node.popen(*command, stderr=stderr, stdin=subprocess.DEVNULL)
        try:
            assert eventually(log.read_text)
            waits = json.loads(log.read_text())
            assert waits["msg"] == "waiting for another agent to end"
            assert f"another agent serves {node.rundir}" in waits["error"]
            assert waits["answer"] == "it is no agent on demand (--idle-exit) and goes on"
            assert agent.answers()
            assert second.poll() is None
            assert agent.terminate() == 0
            assert eventually(lambda: "agent ready" in log.read_text())
            assert process_of(agent.socket) == second.pid
        finally:
            second.terminate()
            assert second.wait(PATIENCE) == 0


def test_a_second_one_on_demand_ends(node: Node) -> None:
    with running_agent(node) as agent:
        command = [executable("cnvnet-agent"), "--rundir", str(node.rundir), "--idle-exit", "60"]
        second = node.run(*command, check=False)
        assert second.returncode == 1
        assert "another agent serves" in json.loads(second.stderr.splitlines()[-1])["error"]
        assert agent.answers()


# What systemd does for a socket unit (sd_listen_fds(3)): argv is the socket's path and the program.
ACTIVATE = """
import os, socket, sys
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[1])
made.listen()
os.dup2(made.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_systemds_stays(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "activated.sock"
    command = [sys.executable, "-c", ACTIVATE, str(path), executable("cnvnet-agent")]
    options = ["--rundir", str(node.rundir), "--metrics-address", ""]
    with (tmp_path / "log").open("w") as log:
        agent = node.popen(*command, *options, stderr=log, stdin=subprocess.DEVNULL)
        try:
            assert eventually(path.exists)
            # A call that comes before the agent is ready waits for it.
            assert eventually(lambda: ask_if_there(path) == {"v": 1, "ok": True})
            assert not (node.rundir / "agent.sock").exists()
        finally:
            agent.terminate()
            assert agent.wait(PATIENCE) == 0
        assert path.exists()


def ask_if_there(path: Path) -> Any:
    try:
        return ask(path, {"v": 1, "status": True})
    except ConnectionRefusedError:
        return None  # bound and not listening yet


def test_the_capabilities_of_the_unit_are_enough(lab: Lab, tmp_path: Path) -> None:
    names = capabilities_of_the_unit()
    with running_agent(lab.node, within=within_capabilities(names)) as agent:
        status = Path(f"/proc/{agent.pid}/status").read_text()
        (effective,) = (line for line in status.splitlines() if line.startswith("CapEff:"))
        assert int(effective.split()[1], 16).bit_count() == len(names)
        pod = lab.pod()
        pod.cni("ADD", guestServices={}).ok()
        lab.plug(pod)
        with container(pod, "nameserver 10.96.0.10\n", tmp_path):
            assert eventually(lambda: lease(lab.guest, tmp_path).get("dns") == "10.96.0.10")
        pod.cni("DEL").ok()


def test_wrong_options_are_explained() -> None:
    done = subprocess.run(
        [executable("cnvnet-agent"), "--metrics-address", "9440"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "'9440' is not HOST:PORT" in done.stderr
    version = subprocess.run([executable("cnvnet-agent"), "--version"], capture_output=True, check=True)
    assert version.stdout.startswith(b"cnvnet-agent, version ")
