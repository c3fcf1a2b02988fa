"""A guest behind masquerade, served by an agent: from ADD to DEL, and over every kind of death."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.own_agent import RunningAgent, eventually, is_there, running_agent
from tests.functional.agent.udhcpc import asking, lease, settings
from tests.functional.masquerade.masquerade_pod import V4, Lab, Pod
from tests.harness import namespace

pytestmark = pytest.mark.alone

SERVED: dict[str, Any] = {
    "guestServices": {"hostname": "vm1", "nameservers": ["10.96.0.10"], "search": ["cluster.local"]}
}


def attached(lab: Lab) -> Pod:
    """A pod with the guest behind it, which has to be served."""
    pod = lab.pod()
    pod.cni("ADD", **SERVED).ok()
    lab.plug(pod)
    return pod


def record(lab: Lab) -> Path:
    (path,) = (lab.node.rundir / "attachments").glob("*.json")
    return path


def is_served(lab: Lab, agent: RunningAgent) -> bool:
    return bool(agent.ask(guest="check", record=record(lab).name).get("ok"))


@pytest.mark.parametrize("bridge", [True, False], ids=["bridge", "no bridge"])
def test_a_guest_is_served_from_add_to_del(lab: Lab, tmp_path: Path, *, bridge: bool) -> None:
    lab.keys = {"bridge": bridge}
    with running_agent(lab.node) as agent:
        pod = attached(lab)
        answer = lease(lab.guest, tmp_path)
        assert (answer["ip"], answer["router"], answer["mask"]) == (V4.guest, V4.gateway, "24")
        assert (answer["hostname"], answer["dns"], answer["search"]) == (
            "vm1",
            "10.96.0.10",
            "cluster.local",
        )
        pod.cni("CHECK", **SERVED).ok()
        name = record(lab).name
        # An operator sees what it has asked for.
        (configured,) = [event for event in agent.events() if event["msg"] == "guest configured"]
        assert (configured["ip"], configured["mac"]) == (V4.guest, lab.guest_mac)
        assert (configured["container"], configured["network"]) == (pod.pid, "masq")
        assert configured["after"] >= 0
        events = agent.ask(guest="events", record=name)["events"]
        logged = [(event["service"], event["event"], event["mac"]) for event in events]
        assert [each for each in logged if each[0] == "dhcp4"] == [
            ("dhcp4", "offer", lab.guest_mac),
            ("dhcp4", "ack", lab.guest_mac),
        ]
        pod.cni("DEL", **SERVED).ok()
        # Its sockets are closed when DEL returns, not some time later.
        assert "no such record" in agent.ask(guest="check", record=name)["error"]["msg"]
        assert agent.serves() == 0


def test_without_the_key_a_guest_is_served_if_there_is_an_agent(lab: Lab, tmp_path: Path) -> None:
    pod = lab.pod()
    pod.cni("ADD").ok()
    lab.plug(pod)
    with running_agent(lab.node) as agent:
        assert agent.serves() == 1  # of a record that is older than the agent
        assert lease(lab.guest, tmp_path)["ip"] == V4.guest
        pod.cni("DEL").ok()
        pod.cni("ADD").ok()
        lab.plug(pod)
        assert agent.serves() == 1
        assert lease(lab.guest, tmp_path)["ip"] == V4.guest


def test_check_says_when_a_guest_is_not_served(lab: Lab) -> None:
    with running_agent(lab.node) as agent:
        pod = attached(lab)
        assert agent.ask(guest="forget", record=record(lab).name) == {"v": 1, "ok": True}
        error = pod.cni("CHECK", **SERVED).error()
        assert (error["code"], "not served" in error["msg"]) == (50, True)
        pod.cni("CHECK").ok()
    error = pod.cni("CHECK", **SERVED).error()
    assert error["code"] == 50
    assert "no agent at" in error["msg"]


def test_an_add_whose_guest_cannot_be_served_leaves_nothing(lab: Lab) -> None:
    with running_agent(lab.node, "--metrics-address", "") as agent:
        pod = lab.pod()
        os.kill(agent.loop_pid, signal.SIGSTOP)
        error = pod.cni("ADD", **SERVED).error()
        assert error["code"] == 50
        assert list(pod.links()) == ["lo", "eth0"]
        assert not list((lab.node.rundir / "attachments").iterdir())
        # The loop that did not answer was replaced.
        assert eventually(lambda: pod.cni("ADD", **SERVED).code == 0)


def test_an_agent_that_is_killed_is_not_missed(lab: Lab, tmp_path: Path) -> None:
    with running_agent(lab.node) as agent:
        pod = attached(lab)
        ear = lab.packets(pod, "tap0")
        loop = agent.loop_pid
        os.kill(loop, signal.SIGSTOP)  # the exchange begins and is not answered
        with asking(lab.guest, tmp_path) as client:
            while b"\x63\x82\x53\x63\x35\x01\x01" not in ear.recv(2000):
                pass
            agent.process.kill()
            agent.process.wait()
            os.kill(loop, signal.SIGCONT)
            assert eventually(lambda: not is_there(loop))
            agent.start()
            assert settings(client)["ip"] == V4.guest
        assert is_served(lab, agent)
        pod.cni("DEL", **SERVED).ok()


def test_a_packet_loop_that_is_killed_is_replaced(lab: Lab, tmp_path: Path) -> None:
    with running_agent(lab.node) as agent:
        attached(lab)
        assert lease(lab.guest, tmp_path)["ip"] == V4.guest
        for number in (1, 2):
            # What was counted before does not go.
            assert agent.metrics()['cnvnet_guest_events_total{event="offer",service="dhcp4"}'] == number
            agent.kill_loop()
            assert eventually(lambda: is_served(lab, agent))
            assert lease(lab.guest, tmp_path)["ip"] == V4.guest
            assert agent.metrics()["cnvnet_packet_loop_restarts_total"] == number


def test_an_add_outlives_the_packet_loop_that_it_asked(lab: Lab, tmp_path: Path) -> None:
    with running_agent(lab.node) as agent, ThreadPoolExecutor(1) as pool:
        pod, loop = lab.pod(), agent.loop_pid
        os.kill(loop, signal.SIGSTOP)
        adding = pool.submit(partial(pod.cni, "ADD", **SERVED))
        # Its socket is on the way to a loop that does not look.
        assert eventually(lambda: len(pod.run("cat", "/proc/net/packet").stdout.splitlines()) > 1)
        os.kill(loop, signal.SIGKILL)
        adding.result().ok()
        lab.plug(pod)
        assert lease(lab.guest, tmp_path)["ip"] == V4.guest


def test_del_without_the_agent_that_served(lab: Lab) -> None:
    with running_agent(lab.node) as agent:
        pod = attached(lab)
        agent.kill()
        pod.cni("DEL", **SERVED).ok()
        assert list(pod.links()) == ["lo", "eth0"]
        agent.start()
        assert agent.serves() == 0


def test_the_agent_stops_serving_a_namespace_that_goes_without_del(lab: Lab) -> None:
    node = lab.node
    with running_agent(node) as agent:
        with namespace() as path:
            pod = Pod(path, lab)
            peer = ("peer", "name", "eth0", "netns", pod.pid)
            node.run("ip", "link", "add", "host0", "type", "veth", *peer)
            node.run("ip", "link", "set", "host0", "up")
            pod.run("ip", "link", "set", "eth0", "up")
            pod.run("ip", "addr", "add", "10.244.0.7/24", "dev", "eth0")
            pod.cni("ADD", **SERVED).ok()
            assert agent.serves() == 1
        # An open packet socket would keep the namespace and, with it, the node's end of the veth.
        assert eventually(lambda: node.link("host0") is None, seconds=5)
        assert agent.serves() == 0
        assert record(lab).exists()  # DEL's to remove
        pod.cni("DEL", **SERVED).ok()
        assert agent.guests("waiting") == 0


def test_a_tap_that_comes_back_is_served_again(lab: Lab) -> None:
    with running_agent(lab.node) as agent:
        pod = attached(lab)
        lab.unplug()
        pod.run("ip", "link", "set", "tap0", "name", "away0")
        pod.run("ip", "link", "set", "away0", "name", "tap0")
        assert eventually(lambda: is_served(lab, agent))


def test_a_tap_that_is_made_anew_is_served_again(lab: Lab) -> None:
    with running_agent(lab.node) as agent:
        pod = attached(lab)
        lab.unplug()
        pod.run("ip", "link", "del", "tap0")
        # It says so, and is not taken for one that is served.
        assert eventually(lambda: not is_served(lab, agent))
        assert agent.guests("waiting") == 1
        # One line says why, though it is tried again and again, and an operator can ask.
        time.sleep(1.5)
        (line,) = [event for event in agent.events() if event["level"] == "warning"]
        reason = "there is no tap tap0 in the pod: it was deleted or renamed"
        assert (line["msg"], line["reason"]) == ("guest cannot be served", reason)
        status, text = agent.http("/healthz?verbose")
        assert (status, text.splitlines()[0]) == (200, "ok")
        assert f"net1 in network masq ({record(lab).name}) is not served: {reason}" in text
        pod.run("ip", "tuntap", "add", "tap0", "mode", "tap")
        assert eventually(lambda: is_served(lab, agent))


def test_records_that_are_not_to_be_served(lab: Lab) -> None:
    pod = attached_without_agent(lab)
    path = record(lab)
    good = json.loads(path.read_text())
    cases = {
        "adding": {**good, "state": "adding"},
        "guestless": {key: value for key, value in good.items() if key != "guest"},
        "of another boot": {**good, "boot_id": "another"},
        "of another namespace": {**good, "netns": {**good["netns"], "inode": 1}},
        "of a newer program": {**good, "v": 2},
        "of a strange tap": {**good, "guest": {**good["guest"], "ifname": "x" * 16}},
        "without settings": {**good, "guest": {"ifname": "tap0"}},
        "of strange settings": {**good, "guest": {**good["guest"], "settings": {"mtu": "x"}}},
    }
    with running_agent(lab.node) as agent:
        assert agent.serves() == 1
        for case, document in cases.items():
            replace(path, json.dumps(document))
            assert eventually(lambda: agent.serves() == 0), case
            assert not is_served(lab, agent), case
            assert "error" in agent.ask(guest="serve", record=path.name), case
            replace(path, json.dumps(good))
            assert eventually(lambda: agent.serves() == 1), case
        replace(path, "{")
        assert eventually(lambda: agent.serves() == 0)
        path.unlink()
        assert pod.cni("DEL").code == 0


def attached_without_agent(lab: Lab) -> Pod:
    pod = lab.pod()
    pod.cni("ADD").ok()
    return pod


def replace(path: Path, content: str) -> None:
    fresh = path.with_suffix(".json.new")
    fresh.write_text(content)
    fresh.rename(path)
