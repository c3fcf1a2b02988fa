"""Whole CNI calls through the agent: what their callers see, and what happens when either side goes."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.launcher_calls import CONFIG, Ipam, Wire, cni, launcher, start, without_python
from tests.functional.agent.own_agent import RunningAgent, eventually, running_agent, straced, threads_of
from tests.functional.masquerade.masquerade_pod import Lab
from tests.harness import Node, Sandbox, installed

pytestmark = pytest.mark.alone

L3 = {
    "isGateway": True,
    "ipMasq": True,
    "macspoofchk": True,
    "ipam": {"type": "static-ip", "subnet": "10.1.0.0/16"},
}


def ran(agent: RunningAgent) -> float:
    """How many calls the agent has run."""
    return sum(value for name, value in agent.metrics().items() if name.startswith("cnvnet_cni_calls_total"))


def nothing_is_left(node: Node, pod: Sandbox) -> bool:
    records = [path for path in (node.rundir / "attachments").glob("*.json") if path.stat().st_size]
    ports = [name for name in node.links() if name.startswith("veth")]
    return not records and not ports and set(pod.links()) == {"lo"}


def test_calls_start_no_program_and_load_no_module(node: Node, tmp_path: Path) -> None:
    pod, log = node.pod(), tmp_path / "trace"

    def come_and_go() -> None:
        for command in ("ADD", "DEL"):
            cni(node, command, pod, config=L3).ok()

    with running_agent(node) as agent:
        come_and_go()  # the first ones make the bridge and the rules
        with traced(agent, log, "execve,openat"):
            come_and_go()
    lines = log.read_text().splitlines()
    assert any("attachments/" in line for line in lines)
    assert not [line for line in lines if "execve" in line or ".py" in line]


@pytest.mark.parametrize("kind", ["c", "python"])
def test_a_call_with_a_relative_cni_path_is_its_launchers(node: Node, tmp_path: Path, kind: str) -> None:
    """The agent is in another folder."""
    ipam, pod = Ipam(tmp_path), node.pod()
    with running_agent(node) as agent:
        for command in ("ADD", "DEL"):
            within = ("env", f"--chdir={tmp_path}")
            cni(node, command, pod, kind, config=ipam.keys, cni_path="/nowhere:./bin", within=within).ok()
        assert ipam.calls()[-1] == "DEL dummy-0 end"
        assert ran(agent) == 0


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_call_syncs_its_leases_once(node: Node, tmp_path: Path, command: str) -> None:
    """SQLite does so for each transaction."""
    pod, log = node.pod(), tmp_path / "trace"
    with running_agent(node) as agent:
        # The first ones make the bridge, the rules and the store.
        for before in ("ADD", "DEL", "ADD")[: 2 if command == "ADD" else 3]:
            cni(node, before, pod, config=L3).ok()
        with traced(agent, log, "fsync,fdatasync"):
            cni(node, command, pod, config=L3).ok()
    synced = [line for line in log.read_text().splitlines() if f"{node.statedir}/" in line]
    assert len(synced) == 1
    assert "leases.db-wal" in synced[0]


def traced(agent: RunningAgent, log: Path, kinds: str) -> AbstractContextManager[None]:
    """System calls of these kinds which the agent makes in the block are lines of the log."""
    return straced(threads_of(agent), "-f", "-y", "-o", str(log), f"--trace={kinds}")


@pytest.mark.parametrize("kind", ["c", "python"])
def test_a_port_comes_is_checked_and_goes(node: Node, kind: str) -> None:
    pod = node.pod()
    with running_agent(node) as agent:
        result = cni(node, "ADD", pod, kind, config=L3).ok()
        assert pod.addresses("eth0") == [result["ips"][0]["address"]]
        added = {**L3, "prevResult": result}
        cni(node, "CHECK", pod, kind, config=added).ok()
        cni(node, "DEL", pod, kind, config=added).ok()
        cni(node, "DEL", pod, kind, config=added).ok()
        assert eventually(lambda: nothing_is_left(node, pod))
        numbers = agent.metrics()
        assert numbers['cnvnet_cni_calls_total{code="0",command="DEL",plugin="cnv-bridge"}'] == 2
        for command, count in (("ADD", 1), ("CHECK", 1), ("DEL", 2)):
            labels = f'command="{command}",plugin="cnv-bridge"'
            buckets = [
                numbers[
                    f'cnvnet_cni_call_duration_seconds_bucket{{command="{command}",le="{le}",plugin="cnv-bridge"}}'
                ]
                for le in ("0.001", "0.01", "0.1", "1.0", "100.0", "+Inf")
            ]
            assert buckets == sorted(buckets)
            assert buckets[-1] == numbers[f"cnvnet_cni_call_duration_seconds_count{{{labels}}}"] == count
            assert 0 < numbers[f"cnvnet_cni_call_duration_seconds_sum{{{labels}}}"] < 100 * count


def test_a_scrape_shows_what_the_node_has(node: Node) -> None:
    guarded = {
        "macspoofchk": True,
        "ipam": {"type": "static-ip", "subnet": "10.1.0.0/29", "gateway": "10.1.0.1"},
    }
    pods = [node.pod() for _ in range(2)]
    with running_agent(node) as agent:
        for number, pod in enumerate(pods):
            cni(node, "ADD", pod, config=guarded, container_id=f"c{number}", args=f"VM_NAME=vm{number}").ok()
        asked = {**guarded, "args": {"cni": {"ips": ["10.1.0.2"]}}}
        cni(node, "ADD", node.pod(), config=asked, container_id="c9").error()
        cni(node, "DEL", pods[1], config=guarded, container_id="c1").ok()
        # A guest that lies about its MAC.
        pods[0].run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
        pods[0].run("ping", "-c1", "-W1", "10.1.0.1", check=False)
        numbers = agent.metrics()
    assert numbers['cnvnet_attachments{network="net",plugin="cnv-bridge"}'] == 1
    states = {
        state: numbers.get(f'cnvnet_ipam_addresses{{network="net",state="{state}"}}') for state in STATES
    }
    assert states == {"active": 1, "stopped": 1, "cooling": 0, "free": 3}
    assert numbers['cnvnet_ipam_allocation_failures_total{network="net",reason="refused"}'] == 1
    assert numbers['cnvnet_guard_drops_total{reason="spoofed_mac"}'] > 0
    assert numbers["cnvnet_calls_waiting"] == 0


STATES = ("active", "stopped", "cooling", "free")


def calls_in(agent: RunningAgent, command: str) -> list[dict[str, Any]]:
    return [event for event in agent.events() if event["msg"] == "call" and event["command"] == command]


def test_each_call_is_one_line_of_the_log(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    config = {**L3, "ipam": {"type": "static-ip", "subnet": "10.1.0.0/16", "nodeLocal": True}}
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=virt-launcher-vm-a-x7k;K8S_POD_UID=u1"
    with running_agent(node) as agent:
        result = cni(node, "ADD", pod, config=config, args=args).ok()
        cni(
            node, "ADD", other, config={**config, "vlan": 5000}, container_id="c2", args="VM_NAME=vm-b"
        ).error()
        cni(node, "CHECK", pod, config={**config, "prevResult": result}, args=args).ok()
        cni(node, "STATUS", pod, config={**config, "cniVersion": "1.1.0"}).ok()
        cni(node, "DEL", pod, config={**config, "prevResult": result}, args=args).ok()
        (done,) = eventually(lambda: calls_in(agent, "DEL"))
        added, refused = calls_in(agent, "ADD")
        assert not calls_in(agent, "STATUS")  # a runtime asks that every few seconds
    address = result["ips"][0]["address"].partition("/")[0]
    mac = next(each["mac"] for each in result["interfaces"] if each["name"] == "eth0")
    known = {"plugin": "cnv-bridge", "network": "net", "pod": "prod/virt-launcher-vm-a-x7k", "ip": address}
    for line in (added, done, *calls_in(agent, "CHECK")):
        assert {**line, **known, "mac": mac, "level": "info", "code": 0} == line
        assert line["ms"] > 0
        assert line["waited"] >= 0
    assert {**refused, "level": "warning", "code": 7, "vm": "default/vm-b", "container": "c2"} == refused
    assert "5000" in refused["error"]


def test_unknown_keys_are_said_logged_and_counted(node: Node) -> None:
    ipam = {"type": "static-ip", "subnet": "10.1.0.0/16", "excludes": "10.1.0.0/24"}
    pod, mistyped = node.pod(), {**L3, "macspoofcheck": True, "ipam": ipam}
    warning = (
        'cnv-bridge: macspoofcheck: no such key, did you mean "macspoofchk"?; '
        'ipam.excludes: no such key, did you mean "exclude"?'
    )
    with running_agent(node) as agent:
        done = cni(node, "ADD", pod, config=mistyped, unknown_keys=True)
        done.ok()
        assert warning in done.stderr.splitlines()
        cni(node, "DEL", pod, config=mistyped).ok()
        cni(node, "ADD", pod, config={**L3, "name": "other"}).ok()
        cni(node, "DEL", pod, config={**L3, "name": "other"}).ok()
        assert eventually(lambda: calls_in(agent, "DEL")[1:])
        lines = [event["said"] for event in agent.events() if event["msg"] == "call said"]
        numbers = {name: value for name, value in agent.metrics().items() if "unknown_keys" in name}
    assert lines == [warning]
    assert numbers == {'cnvnet_config_unknown_keys_total{network="net"}': 2}


@pytest.mark.parametrize("kind", ["c", "python"])
def test_the_caller_sees_what_it_would_see_alone(node: Node, kind: str, tmp_path: Path) -> None:
    pod = node.pod()
    plain = tmp_path / "plain"
    plain.touch()
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("ADD", pod.netns, {"vlan": 5000}),
        ("ADD", "/nowhere/at/all", {}),
        ("ADD", str(plain), {}),
        ("ADD", "/proc/self/ns/mnt", {}),
        ("ADD", node.netns, {}),
        ("DEL", node.netns, {}),
        ("DEL", str(plain), {}),
        ("CHECK", pod.netns, {}),
        ("ADD", pod.netns, {"ipam": {"type": "no-such-ipam"}}),
        ("STATUS", pod.netns, {"cniVersion": "1.1.0"}),
        ("ADD", pod.netns, {"name": "two words"}),
    ]
    with running_agent(node) as agent:
        for command, netns, keys in calls:
            through = cni(node, command, netns, kind, config=keys)
            alone = node.cni(installed("cnv-bridge"), command, {**CONFIG, **keys}, netns)
            assert _without_paths(through) == _without_paths(alone), (command, netns, keys)
        assert ran(agent) == len(calls)


def _without_paths(outcome: object) -> str:
    # CNI_PATH is where the launcher is, or the executable.
    return (
        str(outcome)
        .replace(os.path.dirname(launcher("c")), "BIN")
        .replace(os.path.dirname(installed("cnv-bridge")), "BIN")
    )


@pytest.mark.parametrize("kind", ["c", "python"])
def test_a_caller_of_another_namespace_runs_its_call_itself(node: Node, tmp_path: Path, kind: str) -> None:
    elsewhere = node.other(netns=node.pod().netns)
    pod = node.pod()
    with running_agent(node) as agent:
        cni(elsewhere, "ADD", pod, kind).ok()
        assert "br0" in elsewhere.links()
        assert "br0" not in node.links()
        cni(elsewhere, "DEL", pod, kind, config={"padding": "x" * (3 << 20)}).ok()
        assert ran(agent) == 0
        assert agent.metrics()['cnvnet_agent_requests_total{code="501",kind="unknown"}'] == 2


def test_a_caller_with_other_records_runs_its_call_itself(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    with running_agent(node) as agent:
        env = {"CNVNET_AGENT": str(agent.socket), "CNVNET_RUNDIR": str(tmp_path / "other")}
        cni(node, "ADD", pod, env=env).ok()
        assert list((tmp_path / "other/attachments").iterdir())
        cni(node, "DEL", pod, env=env).ok()
        assert ran(agent) == 0


def test_no_agent_and_no_python_is_error_11(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    alone = without_python(tmp_path)
    with running_agent(node):
        node.cni(alone, "ADD", CONFIG, pod, env={"CNVNET_AGENT": "auto"}).ok()
    error = node.cni(alone, "DEL", CONFIG, pod, env={"CNVNET_AGENT": "auto"}).error()
    assert error["code"] == 11


@pytest.fixture
def ipam(tmp_path: Path) -> Ipam:
    made = Ipam(tmp_path)
    made.hold.touch()
    return made


def test_an_add_whose_caller_is_killed_is_undone_before_the_next_call(node: Node, ipam: Ipam) -> None:
    pod = node.pod()
    with running_agent(node) as agent:
        first = start(node, "ADD", pod, ipam.keys, **ipam.path)
        assert eventually(lambda: ipam.calls() == ["ADD dummy-0 begin"])
        first.kill()
        second = start(node, "ADD", pod, ipam.keys, **ipam.path)
        ipam.hold.unlink()
        second.outcome().ok()
        assert [line for line in ipam.calls() if line.endswith("begin")] == [
            "ADD dummy-0 begin",
            "DEL dummy-0 begin",
            "ADD dummy-0 begin",
        ]
        assert eventually(lambda: set(pod.links()) == {"lo", "eth0"})
        assert "the result of an ADD was not read" in agent.log()
        cni(node, "DEL", pod, config=ipam.keys, cni_path=str(ipam.folder)).ok()
        assert eventually(lambda: nothing_is_left(node, pod))


def test_an_add_that_waits_when_its_caller_is_killed_is_never_run(node: Node, ipam: Ipam) -> None:
    pod = node.pod()
    with running_agent(node, "--log-level", "debug") as agent:
        first = start(node, "ADD", pod, ipam.keys, **ipam.path)
        assert eventually(lambda: ipam.calls() == ["ADD dummy-0 begin"])
        second = start(node, "ADD", pod, ipam.keys, **ipam.path)
        # Whatever it is that it reads by then: the request is at the agent.
        assert eventually(lambda: Path(f"/proc/{second.process.pid}/wchan").read_text() != "0")
        second.kill()
        ipam.hold.unlink()
        first.outcome().ok()
        assert eventually(lambda: "was not run" in agent.log() or "a caller hung up" in agent.log())
        assert len(ipam.calls()) == 2


def test_an_agent_that_is_killed_leaves_a_call_to_be_tried_again(node: Node, ipam: Ipam) -> None:
    pod = node.pod()
    with running_agent(node) as agent:
        for retry in ("alone", "agent"):
            call = start(node, "ADD", pod, ipam.keys, **ipam.path)
            assert eventually(lambda: ipam.calls()[-1:] == ["ADD dummy-0 begin"])
            agent.kill()
            error = call.outcome().error()
            assert (error["code"], "was lost" in error["msg"]) == (11, True)
            ipam.hold.unlink()
            if retry == "agent":
                agent.start()
            cni(node, "ADD", pod, config=ipam.keys, cni_path=str(ipam.folder)).ok()
            assert set(pod.links()) == {"lo", "eth0"}
            cni(node, "DEL", pod, config=ipam.keys, cni_path=str(ipam.folder)).ok()
            assert eventually(lambda: nothing_is_left(node, pod))
            if retry == "alone":
                ipam.hold.touch()
                agent.start()


def test_calls_of_one_attachment_take_turns(node: Node, tmp_path: Path) -> None:
    ipam = Ipam(tmp_path)
    pods = [node.pod() for _ in range(3)]
    with running_agent(node):
        started = [
            start(node, command, pod, ipam.keys, CNI_CONTAINERID=f"c{number}", **ipam.path)
            for _ in range(6)
            for command in ("ADD", "DEL")
            for number, pod in enumerate(pods)
        ]
        # They come in any order: an ADD may find the port of the one before it.
        codes = {each.outcome().code for each in started}
        assert codes <= {0, 1}
        for number, pod in enumerate(pods):
            env = {"CNI_CONTAINERID": f"c{number}", **ipam.path}
            start(node, "DEL", pod, ipam.keys, **env).outcome().ok()
            events = [line.split()[2] for line in ipam.calls() if line.split()[1] == f"c{number}"]
            assert events == ["begin", "end"] * (len(events) // 2)
        assert all(eventually(partial(nothing_is_left, node, pod)) for pod in pods)


def test_sigterm_lets_running_calls_end_and_sends_the_others_home(node: Node, ipam: Ipam) -> None:
    pods = [node.pod() for _ in range(2)]
    with running_agent(node, "--log-level", "debug") as agent:
        running = start(node, "ADD", pods[0], ipam.keys, **ipam.path)
        assert eventually(lambda: ipam.calls() == ["ADD dummy-0 begin"])
        waiting = start(node, "DEL", pods[0], ipam.keys, **ipam.path)
        assert eventually(lambda: Path(f"/proc/{waiting.process.pid}/wchan").read_text() != "0")
        agent.process.terminate()
        assert eventually(lambda: not agent.socket.exists())
        # A call that comes now finds no agent, and needs none.
        start(node, "ADD", pods[1], {}, CNI_CONTAINERID="late").outcome().ok()
        assert running.process.poll() is None
        ipam.hold.unlink()
        running.outcome().ok()
        waiting.outcome().ok()
        assert agent.process.wait(60) == 0
    start(node, "DEL", pods[1], {}, CNI_CONTAINERID="late").outcome().ok()
    assert nothing_is_left(node, pods[0])
    assert nothing_is_left(node, pods[1])


def test_what_is_no_call_is_refused_and_not_run(node: Node) -> None:
    pod = node.pod()
    with running_agent(node) as agent:
        wire = Wire(node)
        try:
            assert wire.call("bandwidth", CONFIG, pod.netns, CNI_COMMAND="ADD") is None
            version = wire.call("masquerade", {}, pod.netns, CNI_COMMAND="VERSION")
            assert version is not None
            assert "1.1.0" in json.loads(version.stdout)["supportedVersions"]
        finally:
            wire.close()
        for broken in ({"env": 1}, {"stdin": "%"}, {"fds": ["netns"]}, {"fds": ["root", "mnt"]}):
            request: dict[str, Any] = {"v": 1, "argv0": "cnv-bridge", "fds": [], "env": {}, "stdin": ""}
            assert agent.ask(**{**request, **broken})["error"]["code"] == 6, broken
        assert ran(agent) == 1


def test_guests_are_served_by_the_agent_that_runs_the_call(lab: Lab) -> None:
    with running_agent(lab.node) as agent:
        pod = lab.pod()
        config: dict[str, Any] = {"type": "masquerade", "name": "masq", "guestServices": {}}
        cni(lab.node, "ADD", pod, config=config, ifname="net1").ok()
        assert agent.serves() == 1
        cni(lab.node, "CHECK", pod, config=config, ifname="net1").ok()
        cni(lab.node, "DEL", pod, config=config, ifname="net1").ok()
        assert agent.serves() == 0
        assert ran(agent) == 3
