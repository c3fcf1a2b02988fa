from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cnvnet import VERSION
from cnvnet.controller.main import Controller, ControllerOptions, command
from cnvnet.controller.sweep import Limits
from cnvnet.controller.worker import CleanupWorker
from cnvnet.kube.client import Client
from cnvnet.kube.metrics import ApiMetrics
from cnvnet.kube.resources import COORDINATION_LEASES
from tests.fakes.api_server import ApiServer, refuse, running_api_server
from tests.unit.controller.cluster import Cluster, holder


def kubeconfig(server: ApiServer, path: Path) -> str:
    """A file with which a client reaches the server."""
    document: dict[str, Any] = {
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return str(path)


def test_a_dry_run_prints_the_plan_and_changes_nothing(tmp_path: Path) -> None:
    with running_api_server() as server:
        cluster = Cluster()
        cluster.add_lease("done", is_deleted=True)
        cluster.add_lease("gone", ips=("10.0.0.6",), mac="")
        cluster.add_lease("web", ips=("10.0.0.7",), mac="", holders=[holder("web")._replace(pod_uid="")])
        cluster.reserve_for_pod("app", "n3")
        cluster.load(server)
        options = ["--kubeconfig", kubeconfig(server, tmp_path / "config"), "--dry-run", "--grace", "40"]
        result = CliRunner().invoke(command, options)
        assert (result.exit_code, result.stderr) == (0, "")
        assert {each.asked.verb for each in server.requests} == {"list"}
    lines = [line.split("(")[0].rstrip() for line in result.stdout.splitlines()]
    assert [line.rpartition("-")[0] if "VMLease" in line else line for line in lines[:2]] == [
        "now: finish lease VMLease tenant/done",
        "in 40 s, if nothing changes: delete lease VMLease tenant/gone",
    ]
    assert "in 40 s, if nothing changes: delete reservation IPReservation lan-" in result.stdout
    assert ": pod tenant/app (app-uid) is gone, and its node n3 is gone" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("left alone: VMLease tenant/web-")
    assert result.stdout.endswith(": it names no pod with a UID\n")


def test_a_dry_run_of_a_cluster_in_order_says_so(tmp_path: Path) -> None:
    with running_api_server() as server:
        Cluster().load(server)
        options = ["--kubeconfig", kubeconfig(server, tmp_path / "config"), "--dry-run"]
        assert CliRunner().invoke(command, options).stdout == "nothing to do\n"


def test_a_dry_run_without_an_answer_says_what_is_missing(tmp_path: Path) -> None:
    with running_api_server() as server:
        server.inject(refuse(403, "Forbidden", "no"), verb="list", plural="pods")
        options = ["--kubeconfig", kubeconfig(server, tmp_path / "config"), "--dry-run"]
        result = CliRunner().invoke(command, options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "list pods: 403 Forbidden: no" in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "no credentials for the Kubernetes API (--kubeconfig FILE, or run as a pod)"),
        (["--kubeconfig", "/nowhere"], "/nowhere"),
    ],
)
def test_it_does_not_start_without_credentials(
    options: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CNVNET_KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 1
    assert text in result.stderr


def test_an_endpoint_that_cannot_be_had_ends_it(tmp_path: Path) -> None:
    with running_api_server() as server:
        port = server.url.rpartition(":")[2]
        options = ["--kubeconfig", kubeconfig(server, tmp_path / "c"), "--listen", f"127.0.0.1:{port}"]
        result = CliRunner().invoke(command, options)
    assert result.exit_code == 1
    assert f"127.0.0.1:{port} is in use (--listen HOST:PORT" in result.stderr


def test_an_address_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(command, ["--listen", "here"])
    assert result.exit_code == 2
    assert "'here' is not HOST:PORT" in result.stderr


def test_the_version_is_that_of_the_suite() -> None:
    assert CliRunner().invoke(command, ["--version"]).stdout == f"cnvnet-controller, version {VERSION}\n"


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


@contextmanager
def running(server: ApiServer, results: list[bool]) -> Generator[Controller]:
    options = ControllerOptions("cnvnet-system", 30.0, Limits(60.0), "127.0.0.1:0")
    requests = ApiMetrics()
    controller = Controller(options, Client(server.credentials(), requests.observe), requests)
    thread = threading.Thread(target=lambda: results.append(controller.run()))
    thread.start()
    try:
        yield controller
    finally:
        controller.stop()
        thread.join(20)


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 15
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_liveness_knows_nothing_of_the_api_and_readiness_does() -> None:
    results: list[bool] = []
    with running_api_server() as server, running(server, results) as controller:
        assert eventually(lambda: get(controller.address, "/readyz") == (200, "ok\n"))
        metrics = get(controller.address, "/metrics")[1]
        assert "cnvnet_controller_leader 1.0" in metrics
        labels = 'code="201",resource="leases",verb="create"'
        assert f"cnvnet_kubernetes_api_requests_total{{{labels}}} 1.0" in metrics
        assert "this replica leads" in get(controller.address, "/healthz?verbose")[1]
        server.stop()
        assert eventually(lambda: get(controller.address, "/readyz")[0] == 503)
        assert "connection refused" in get(controller.address, "/readyz")[1]
        assert get(controller.address, "/healthz") == (200, "ok\n")
        assert "connection refused" in get(controller.address, "/readyz?verbose")[1]
    assert results == [True]


def test_a_thread_that_fails_ends_the_process_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: CleanupWorker) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CleanupWorker, "run", fail)
    results: list[bool] = []
    with running_api_server() as server, running(server, results):
        assert eventually(lambda: results == [False])


def test_the_lease_is_given_back_at_the_end() -> None:
    with running_api_server() as server:
        with running(server, []) as controller:
            assert eventually(lambda: get(controller.address, "/readyz")[0] == 200)
            held = server.client().get(COORDINATION_LEASES, "cnvnet-controller", "cnvnet-system")
            assert held["spec"]["holderIdentity"]
        given = server.client().get(COORDINATION_LEASES, "cnvnet-controller", "cnvnet-system")
        assert given["spec"]["holderIdentity"] == ""
