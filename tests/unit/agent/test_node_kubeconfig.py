"""The kubeconfig for executables that run without the agent: who writes it, and who removes it when."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cnvnet.agent.node_kubeconfig import NodeKubeconfig
from cnvnet.kube import node_kubeconfig
from cnvnet.kube.credentials import from_kubeconfig
from cnvnet.kube.resources import DAEMON_SETS, NAMESPACES, PODS
from tests.fakes.api_server import ApiServer, black_hole, refuse, running_api_server
from tests.fakes.certificates import Authority
from tests.fakes.tokens import bound_token

SYSTEM = "cnvnet-system"


class Pods:
    """Agents' pods on one node, before an API server that knows their pods."""

    def __init__(self, server: ApiServer, authority: str, folder: Path) -> None:
        self.server = server
        self.objects = server.objects
        self.path = folder / "etc/cnvnet/kubeconfig"
        self._authority = Path(authority).read_text()
        self._folder = folder
        url = urlsplit(server.url)
        self._env = {
            "KUBERNETES_SERVICE_HOST": str(url.hostname),
            "KUBERNETES_SERVICE_PORT": str(url.port),
        }
        self.objects.create(NAMESPACES, "", {"metadata": {"name": SYSTEM, "finalizers": ["kubernetes"]}})
        self.objects.create(DAEMON_SETS, SYSTEM, {"metadata": {"name": "cnvnet-agent"}})

    def start(self, name: str, monkeypatch: pytest.MonkeyPatch) -> NodeKubeconfig:
        """The agent of a pod of this name. The mount of its token is the only one that this process has."""
        owner = {"kind": "DaemonSet", "name": "cnvnet-agent"}
        # A real one is there until its containers have ended.
        metadata = {"name": name, "ownerReferences": [owner], "finalizers": ["kubelet"]}
        made = self.objects.create(PODS, SYSTEM, {"metadata": metadata})
        folder = self._folder / name
        folder.mkdir()
        self.give(name, bound_token(name, made["metadata"]["uid"]))
        (folder / "ca.crt").write_text(self._authority)
        (folder / "namespace").write_text(SYSTEM)
        monkeypatch.setattr("cnvnet.kube.credentials.SERVICE_ACCOUNT", str(folder))
        return self.agent()

    def agent(self, period: float = 3600) -> NodeKubeconfig:
        """An agent in the pod that was started last."""
        return NodeKubeconfig(str(self.path), self._env, period)

    def give(self, name: str, token: str) -> str:
        """The kubelet gives the pod a token."""
        (self._folder / name / "token").write_text(token)
        return token

    def delete(self, name: str) -> None:
        """The pod is being deleted: its container is asked to end."""
        self.objects.delete(PODS, SYSTEM, name, {})

    def uid(self, name: str) -> str:
        return str(self.objects.get(PODS, SYSTEM, name)["metadata"]["uid"])

    def uninstall(self) -> None:
        self.objects.delete(DAEMON_SETS, SYSTEM, "cnvnet-agent", {})

    def token(self) -> str:
        return from_kubeconfig(str(self.path)).token.content.decode()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    authority = Authority(tmp_path, "authority")
    with running_api_server(authority.issue("server")) as server:
        yield Pods(server, authority.certificate, tmp_path)


def test_it_is_there_when_the_agent_has_begun_and_root_alone_reads_it(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        written = pods.start("one", monkeypatch)
        written.start()
    finally:
        os.umask(before)
    assert written.problem == ""
    assert pods.path.stat().st_mode & 0o7777 == 0o600
    assert pods.path.parent.stat().st_mode & 0o022 == 0
    assert os.listdir(pods.path.parent) == ["kubeconfig"]
    # Executables reach the API with it.
    from cnvnet.kube.client import Client

    client = Client(from_kubeconfig(str(pods.path)))
    assert client.get(PODS, "one", SYSTEM)["metadata"]["name"] == "one"
    written.close()


def test_a_renewed_token_and_authority_are_written(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    written = pods.start("one", monkeypatch)
    written.start()
    inode = pods.path.stat().st_ino
    written.refresh()
    assert pods.path.stat().st_ino == inode
    renewed = pods.give("one", bound_token("one", pods.uid("one"), lifetime=7200))
    written.refresh()
    assert pods.token() == renewed
    # As a whole: the file before is still what it was for those who read it.
    assert pods.path.stat().st_ino != inode


def test_a_file_that_others_may_read_is_written_anew(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    written = pods.start("one", monkeypatch)
    written.start()
    pods.path.chmod(0o644)
    written.refresh()
    assert pods.path.stat().st_mode & 0o7777 == 0o600


def test_the_thread_looks_again_and_again_until_the_end(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    pods.start("one", monkeypatch)
    written = pods.agent(period=0.01)
    written.start()
    looked = threading.Event()
    monkeypatch.setattr(written, "refresh", looked.set)
    assert looked.wait(30)
    written.close()


def test_of_two_agents_the_one_that_serves_has_the_last_word(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pods.start("one", monkeypatch)
    one.start()
    one.serve()
    first = pods.token()
    two = pods.start("two", monkeypatch)
    # What it finds may be of an agent that is long gone.
    two.start()
    second = pods.token()
    assert second != first
    as_seen_by(pods, "one", monkeypatch)
    one.refresh()
    assert pods.token() == first
    as_seen_by(pods, "two", monkeypatch)
    two.refresh()
    assert pods.token() == first
    two.serve()
    assert pods.token() == second


def as_seen_by(pods: Pods, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnvnet.kube.credentials.SERVICE_ACCOUNT", str(pods.path.parents[2] / name))


def other_kubeconfig(path: Path) -> None:
    path.write_text("apiVersion: v1\n")


def link(path: Path) -> None:
    (path.parent / "target").write_text("")
    path.symlink_to(path.parent / "target")


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (other_kubeconfig, "was written by no agent and is left alone"),
        (link, "not a regular file"),
        (fifo, "not a regular file"),
    ],
)
def test_what_no_agent_has_written_is_left_alone(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, make: Any, said: str
) -> None:
    pods.path.parent.mkdir(parents=True)
    make(pods.path)
    before = os.lstat(pods.path)
    caplog.set_level(logging.ERROR, "cnvnet")
    written = pods.start("one", monkeypatch)
    written.start()
    written.refresh()
    written.close()
    after = os.lstat(pods.path)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert [*pods.path.parent.glob("target")] == [] or (pods.path.parent / "target").read_text() == ""
    assert written.problem == f"{pods.path}: {said}: executables without the agent reach no Kubernetes API"
    # Once, however often it looks.
    assert [each.message for each in caplog.records] == ["no kubeconfig for the node"]


def test_a_trap_beside_it_gets_no_token(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder belonged to another user, who has left a file where the next one is made."""
    pods.path.parent.mkdir(parents=True)
    pods.path.parent.chmod(0o777)
    trap = pods.path.parent / "kubeconfig.new"
    trap.touch()
    trap.chmod(0o666)
    with trap.open() as kept:
        pods.start("one", monkeypatch).start()
        assert kept.read() == ""
    assert pods.path.stat().st_mode & 0o7777 == 0o600
    assert pods.path.parent.stat().st_mode & 0o022 == 0


def test_a_link_beside_it_leads_nowhere(pods: Pods, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pods.path.parent.mkdir(parents=True)
    (tmp_path / "victim").write_text("as it was")
    (pods.path.parent / "kubeconfig.new").symlink_to(tmp_path / "victim")
    pods.start("one", monkeypatch).start()
    assert (tmp_path / "victim").read_text() == "as it was"
    assert json.loads(pods.path.read_text())["current-context"] == node_kubeconfig.MARK


def test_outside_of_a_pod_there_is_nothing_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnvnet.kube.credentials.SERVICE_ACCOUNT", str(tmp_path / "none"))
    written = NodeKubeconfig(str(tmp_path / "kubeconfig"), {})
    written.start()
    written.close()
    assert f"no pod's token in {tmp_path}/none" in written.problem
    assert not (tmp_path / "kubeconfig").exists()


def test_a_folder_that_cannot_be_written_is_a_problem_until_it_can(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods.path.parent.parent.mkdir(parents=True)
    pods.path.parent.touch()
    written = pods.start("one", monkeypatch)
    written.start()
    assert "not a directory" in written.problem
    pods.path.parent.unlink()
    written.refresh()
    assert written.problem == ""
    assert pods.path.exists()


class TestEnds:
    """What becomes of the file when the agent is asked to end."""

    def ended(self, pods: Pods, written: NodeKubeconfig) -> bool:
        written.close()
        return not pods.path.exists()

    def test_a_container_that_begins_anew_keeps_it(
        self, pods: Pods, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = pods.start("one", monkeypatch)
        written.start()
        assert not self.ended(pods, written)
        written.refresh()
        assert pods.path.exists()

    def test_a_pod_that_is_replaced_leaves_it_to_the_next(
        self, pods: Pods, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = pods.start("one", monkeypatch)
        written.start()
        pods.delete("one")
        assert not self.ended(pods, written)

    @pytest.mark.parametrize("what", ["daemonset", "namespace", "rights"])
    def test_with_the_agents_it_goes(self, pods: Pods, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        pods.start("one", monkeypatch).start()
        # A container that has begun anew finds it as it should be.
        written = pods.agent()
        written.start()
        pods.delete("one")
        if what == "daemonset":
            pods.uninstall()
        elif what == "namespace":
            pods.objects.delete(NAMESPACES, "", SYSTEM, {})
        else:
            pods.server.inject(refuse(403, "Forbidden"), verb="get", times=2)
        assert self.ended(pods, written)
        written.refresh()
        assert not pods.path.exists()

    def test_a_pod_that_the_api_has_no_more_leaves_it(
        self, pods: Pods, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = pods.start("one", monkeypatch)
        written.start()
        pods.delete("one")
        pods.objects.patch(PODS, SYSTEM, "one", {"metadata": {"finalizers": None}})
        assert not self.ended(pods, written)

    def test_the_next_agents_stays(self, pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
        one = pods.start("one", monkeypatch)
        one.start()
        two = pods.start("two", monkeypatch)
        two.start()
        as_seen_by(pods, "one", monkeypatch)
        pods.delete("one")
        pods.uninstall()
        assert not self.ended(pods, one)

    def test_in_doubt_it_stays(self, pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cnvnet.agent.node_kubeconfig._END_SECONDS", 0.3)
        written = pods.start("one", monkeypatch)
        written.start()
        pods.delete("one")
        pods.uninstall()
        pods.server.inject(black_hole, times=2)
        assert not self.ended(pods, written)
