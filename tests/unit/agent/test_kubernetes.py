"""The agent's way to the Kubernetes API: one for all calls, found when it is there."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from cnvnet.agent.kubernetes import SharedDirectory
from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import ApiError, FinishedRequest
from cnvnet.kube.resources import PODS
from cnvnet.resident import log
from tests.fakes.api_server import ApiServer, drop, refuse
from tests.fakes.launchers import Launchers


def write_kubeconfig(path: Path, server: ApiServer) -> None:
    path.write_text(
        "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a}}], "
        f"clusters: [{{name: a, cluster: {{server: '{server.url}'}}}}]}}"
    )


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a kubeconfig is looked for when none is named."""
    path = tmp_path / "kubeconfig"
    monkeypatch.setattr("cnvnet.kube.credentials.DEFAULT_KUBECONFIG", str(path))
    return path


def test_all_calls_share_one_client(server: ApiServer, launchers: Launchers, default: Path) -> None:
    write_kubeconfig(default, server)
    shared = SharedDirectory({})
    directories: list[object] = []
    threads = [threading.Thread(target=lambda: directories.append(shared())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in directories}) == 1
    pod, directory = launchers.start("vm-a"), shared()
    assert directory is not None
    for container in ("c1", "c2"):
        directory.subject(pod, "eth0", container_id=container)
    assert server.connections == 1


def test_credentials_that_come_later_are_found(server: ApiServer, default: Path) -> None:
    shared = SharedDirectory({"CNVNET_KUBECONFIG": ""})
    assert shared() is None
    write_kubeconfig(default, server)
    assert shared() is not None


def test_an_agent_says_which_api_it_asks_and_why_it_asks_none(
    server: ApiServer, default: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str]] = []

    def note(text: str, *, server: str = "", error: str = "") -> None:
        said.append((text, server or error))

    monkeypatch.setattr(log, "info", note)
    monkeypatch.setattr(log, "error", note)
    SharedDirectory({}).announce()
    assert said == []
    missing = SharedDirectory({"CNVNET_KUBECONFIG": str(tmp_path / "missing")})
    missing.announce()
    with pytest.raises(CNIError) as caught:
        missing()
    write_kubeconfig(default, server)
    SharedDirectory({}).announce()
    assert said == [
        ("no way to the Kubernetes API", caught.value.msg),
        ("Kubernetes API", server.url),
    ]


@pytest.mark.parametrize(
    ("status", "reason"), [(0, "the connection broke off"), (401, "it answers 401"), (503, "it answers 503")]
)
def test_an_api_that_fails_two_requests_in_a_row_cannot_be_asked(
    server: ApiServer, default: Path, status: int, reason: str
) -> None:
    write_kubeconfig(default, server)
    seen: list[FinishedRequest] = []
    shared = SharedDirectory({}, seen.append)
    api = shared.api()
    assert api is not None
    problems: list[str] = []
    while len(seen) < 2:
        server.inject(refuse(status) if status else drop, times=2)
        with suppress(ApiError):
            api.list(PODS)
        problems.append(shared.problem())
    assert [each.status for each in seen] == [status, status]
    text = f"the Kubernetes API at {server.url} cannot be asked: {reason}"
    # 401 and a broken connection are tried again at once.
    assert problems == ([text] if status != 503 else ["", text])
    server.clear_faults()
    with suppress(ApiError):
        api.get(PODS, "none", "default")
    assert shared.problem() == ""


def test_credentials_that_cannot_be_used_are_a_problem_and_none_are_not(default: Path) -> None:
    shared = SharedDirectory({})
    assert shared.problem() == ""
    default.write_text("{}")
    assert shared.problem().startswith(f"no way to the Kubernetes API: {default}")
