"""Whether somebody on this node will serve the guests."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cnvnet.attachments import Key
from cnvnet.cni.errors import CNIError
from cnvnet.guest import provider
from cnvnet.guest.wishes import Wishes

REQUIRED = Wishes(required=True, autostart=False)
KEY = Key("masquerade", "net", "container", "eth0")


def test_without_one_the_error_names_the_remedy(tmp_path: Path) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path), "CNVNET_AGENT": "off"}
    for demand in (provider.ensure, provider.ensure_available):
        with pytest.raises(CNIError, match=r"^guestServices: no agent at .*/agent.sock \(no such") as caught:
            demand(env, REQUIRED)
        assert caught.value.code == 50
        assert "start cnvnet-agent" in caught.value.msg
    for ask in (provider.serve, provider.check):
        with pytest.raises(CNIError, match=r"^guestServices: no agent at") as caught:
            ask(env, REQUIRED, KEY)
        assert caught.value.code == 50


@pytest.mark.parametrize("wishes", [Wishes(), Wishes(enabled=False)], ids=["wanted", "refused"])
def test_nobody_has_to_be_there_unless_it_is_required(tmp_path: Path, wishes: Wishes) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path)}
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))  # and nobody listens
        provider.ensure(env, wishes)
        provider.ensure_available(env, wishes)
        provider.serve(env, wishes, KEY)
        provider.check(env, wishes, KEY)
        provider.forget(env, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.sock"]


def test_an_agent_that_died_does_not_serve(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))
    with pytest.raises(CNIError, match="connection refused"):
        provider.ensure({"CNVNET_RUNDIR": str(tmp_path)}, REQUIRED)


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
                connection.recv(4096)  # who closes with something unread resets the connection
                content = b'{"v": 1, "ok": true}'
                connection.sendall(len(content).to_bytes(4, "big") + content)

        helper = threading.Thread(target=answer)
        helper.start()
        opened.callback(helper.join)
        provider.ensure({"CNVNET_RUNDIR": str(tmp_path)}, REQUIRED)


def test_a_path_too_long_for_a_socket_is_no_agent() -> None:
    with pytest.raises(CNIError, match="no agent at"):
        provider.ensure({"CNVNET_RUNDIR": "/" + "x" * 200}, REQUIRED)


def test_one_that_somebody_named_is_not_replaced_by_one_of_our_own(tmp_path: Path) -> None:
    env = {"CNVNET_RUNDIR": str(tmp_path), "CNVNET_AGENT": str(tmp_path / "other.sock")}
    with pytest.raises(CNIError, match=r"other.sock .*CNVNET_AGENT names another's") as caught:
        provider.ensure(env, Wishes(required=True))
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
    assert provider.is_of_a_container(cgroups)


@pytest.mark.parametrize("cgroups", OUTSIDE)
def test_a_runtime_of_the_node_is_no_container(cgroups: str) -> None:
    assert not provider.is_of_a_container(cgroups)
