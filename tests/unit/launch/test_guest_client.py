"""Whether an agent on this node will serve the guests."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cnvnet.attachment.record import Key
from cnvnet.cni.errors import CNIError
from cnvnet.guest.options import GuestOptions
from cnvnet.launch import guest_client

REQUIRED = GuestOptions(required=True, autostart=False)
KEY = Key("masquerade", "net", "container", "eth0")


def test_without_one_the_error_names_the_remedy(tmp_path: Path) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path), "CNVNET_AGENT": "off"}
    for demand in (guest_client.ensure_agent, guest_client.ensure_available):
        with pytest.raises(CNIError, match=r"^guestServices: no agent at .*/agent.sock \(no such") as caught:
            demand(env, REQUIRED)
        assert caught.value.code == 50
        assert "start cnvnet-agent" in caught.value.msg
    for ask in (guest_client.serve, guest_client.check):
        with pytest.raises(CNIError, match=r"^guestServices: no agent at") as caught:
            ask(env, REQUIRED, KEY)
        assert caught.value.code == 50


def test_an_agent_that_is_being_restarted_is_waited_for(tmp_path: Path) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path), "CNVNET_AGENT": "off"}
    (tmp_path / "agent.lock").touch()  # one has been here since boot

    def come_back() -> None:
        time.sleep(0.3)
        with socket.socket(socket.AF_UNIX) as agent:
            agent.bind(str(tmp_path / "agent.sock"))
            agent.listen()
            connection, _ = agent.accept()
            with connection:
                connection.recv(4096)
                content = b'{"v": 1, "ok": true}'
                connection.sendall(len(content).to_bytes(4, "big") + content)

    thread = threading.Thread(target=come_back)
    thread.start()
    guest_client.ensure_agent(env, REQUIRED)
    thread.join()


def test_an_agent_that_does_not_come_back_is_waited_for_for_20_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path), "CNVNET_AGENT": "off"}
    (tmp_path / "agent.lock").touch()
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(CNIError, match=r"none came back within 20 s\): start cnvnet-agent"):
        guest_client.ensure_agent(env, REQUIRED)
    assert now == pytest.approx(20, abs=0.1)
    with pytest.raises(CNIError, match=r"autostart is false\): start"):
        guest_client.ensure_available(env, REQUIRED)  # STATUS does not wait
    assert now == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("options", [GuestOptions(), GuestOptions(enabled=False)], ids=["wanted", "refused"])
def test_no_agent_is_needed_unless_guests_require_it(tmp_path: Path, options: GuestOptions) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path)}
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))  # and does not listen
        guest_client.ensure_agent(env, options)
        guest_client.ensure_available(env, options)
        guest_client.serve(env, options, KEY)
        guest_client.check(env, options, KEY)
        guest_client.forget(env, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.sock"]


def test_an_agent_that_died_does_not_serve(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))
    with pytest.raises(CNIError, match="connection refused"):
        guest_client.ensure_agent({"CNVNET_RUNDIR": str(tmp_path)}, REQUIRED)


def test_a_queue_that_is_full_is_waited_for(tmp_path: Path) -> None:
    with ExitStack() as opened:
        agent = opened.enter_context(socket.socket(socket.AF_UNIX))
        agent.bind(str(tmp_path / "agent.sock"))
        agent.listen(0)
        first = opened.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(tmp_path / "agent.sock"))

        def answer() -> None:
            time.sleep(0.3)  # the other thread finds the queue full
            agent.accept()[0].close()  # the first one's
            with agent.accept()[0] as connection:
                connection.recv(4096)  # closing with something unread resets the connection
                content = b'{"v": 1, "ok": true}'
                connection.sendall(len(content).to_bytes(4, "big") + content)

        helper = threading.Thread(target=answer)
        helper.start()
        opened.callback(helper.join)
        guest_client.ensure_agent({"CNVNET_RUNDIR": str(tmp_path)}, REQUIRED)


def test_a_path_too_long_for_a_socket_is_no_agent() -> None:
    with pytest.raises(CNIError, match="no agent at"):
        guest_client.ensure_agent({"CNVNET_RUNDIR": "/" + "x" * 200}, REQUIRED)


def test_an_agent_named_in_the_environment_is_not_replaced_by_our_own(tmp_path: Path) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path), "CNVNET_AGENT": str(tmp_path / "other.sock")}
    with pytest.raises(CNIError, match=r"other.sock .*CNVNET_AGENT names another's") as caught:
        guest_client.ensure_agent(env, GuestOptions(required=True))
    assert caught.value.code == 50
    assert list(tmp_path.iterdir()) == []


HEX = "0123456789abcdef" * 4
INSIDE = [
    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-"
    + HEX
    + ".scope",
    f"0::/kubepods/burstable/pod1/{HEX}",
    f"0::/system.slice/containerd.service/kubepods-besteffort-pod1.slice:cri-containerd:{HEX}",
    f"1:name=systemd:/docker/{HEX}\n0::/",
    f"0::/system.slice/docker-{HEX}.scope",
    f"0::/machine.slice/libpod-{HEX}.scope/container",
    f"0::/system.slice/crio-{HEX}.scope",
    f"0::/system.slice/cri-containerd-{HEX}.scope",
    f"1:name=systemd:/k8s.io/{HEX}\n0::/k8s.io/{HEX}",  # with cgroupsPerQOS: false
]
OUTSIDE = [
    "0::/",
    "0::/user.slice/user-0.slice/session-1.scope",
    "0::/system.slice/containerd.service",
    "0::/system.slice/cri-docker.service",
    "0::/system.slice/docker.service",
    "0::/system.slice/crio.service",
    "0::/system.slice/kubelet.service",
    f"0::/system.slice/crio-conmon-{HEX}.scope",
    "0::/podruntime.slice/containerd.service",
]


@pytest.mark.parametrize("cgroups", INSIDE)
def test_a_containers_cgroup(cgroups: str) -> None:
    assert guest_client.is_of_a_container(cgroups)


@pytest.mark.parametrize("cgroups", OUTSIDE)
def test_a_runtime_of_the_node_is_no_container(cgroups: str) -> None:
    assert not guest_client.is_of_a_container(cgroups)
