"""The client against a real API server: each verb, and what happens to tokens, certificates and servers."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from urllib3.util import connection

from cnvnet.kernel import netns
from cnvnet.kube import watch
from cnvnet.kube.api import ApiError, Document, NotFound
from cnvnet.kube.client import Client
from cnvnet.kube.credentials import from_kubeconfig, in_cluster
from cnvnet.kube.resources import COORDINATION_LEASES as LEASES
from cnvnet.kube.resources import VM_LEASES
from cnvnet.kube.watch import Change, Selection, Watcher
from tests.e2e.api import TOKEN
from tests.e2e.control_plane import PORT, SERVER, ControlPlane, kubeconfig, running_control_plane
from tests.e2e.machine import eventually
from tests.fakes.api_scenarios import SCENARIOS, create

URL = f"https://{SERVER}:{PORT}"
# One control plane for all, which some of them restart.
pytestmark = pytest.mark.xdist_group("kube")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with running_control_plane(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture(autouse=True)
def _in_the_servers_network(cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections begin there: a forwarder would accept those that the server refuses."""
    connect = connection.create_connection

    def connect_there(*args: Any, **options: Any) -> socket.socket:
        with netns.opened(cluster.machine.netns) as there, netns.entered(there):
            return connect(*args, **options)

    monkeypatch.setattr(connection, "create_connection", connect_there)


@pytest.fixture
def namespace(cluster: ControlPlane) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


class Access:
    """A kubeconfig whose token and authority are files beside it."""

    def __init__(self, folder: Path, cluster: ControlPlane, token: str = TOKEN) -> None:
        self.token, self.authority = folder / "token", folder / "ca.crt"
        self.token.write_text(token)
        self.authority.write_bytes(cluster.authority.read_bytes())
        document = kubeconfig(URL, "")
        document["clusters"][0]["cluster"] = {"server": URL, "certificate-authority": "ca.crt"}
        document["users"][0]["user"] = {"tokenFile": "token"}
        (folder / "kubeconfig").write_text(json.dumps(document))
        self.client = Client(from_kubeconfig(str(folder / "kubeconfig")))


@pytest.fixture
def access(tmp_path: Path, cluster: ControlPlane) -> Iterator[Access]:
    made = Access(tmp_path, cluster)
    yield made
    made.client.close()


def account(cluster: ControlPlane, namespace: str, name: str) -> str:
    """A ServiceAccount's token."""
    cluster.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
    return cluster.token(namespace, name)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_real_server(access: Access, namespace: str, scenario: str) -> None:
    SCENARIOS[scenario](access.client, namespace)


def test_a_kind_that_the_server_does_not_know_is_no_missing_object(access: Access, namespace: str) -> None:
    for request in (
        partial(access.client.get, VM_LEASES, "x", namespace),
        partial(access.client.list, VM_LEASES),
        partial(access.client.watch, VM_LEASES),
        partial(access.client.create, VM_LEASES, {"metadata": {"name": "x"}}, namespace),
    ):
        with pytest.raises(ApiError, match="404: the server does not know this kind of object") as caught:
            request()
        assert not isinstance(caught.value, NotFound)


def test_a_pods_files_are_enough(cluster: ControlPlane, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(account(cluster, namespace, "agent"))
    (tmp_path / "ca.crt").write_bytes(cluster.authority.read_bytes())
    env = {"KUBERNETES_SERVICE_HOST": SERVER, "KUBERNETES_SERVICE_PORT": str(PORT)}
    credentials = in_cluster(env, str(tmp_path))
    assert credentials is not None
    client = Client(credentials)
    with pytest.raises(ApiError, match=f'403 Forbidden: .*"system:serviceaccount:{namespace}:agent" cannot'):
        client.list(LEASES, namespace)
    client.close()


def test_pages_of_a_list_follow_each_other(
    access: Access, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.kube.client._PAGE", 2)
    for number in range(5):
        create(access.client, namespace, f"x{number}")
    listing = access.client.list(LEASES, namespace)
    assert [each["metadata"]["name"] for each in listing.items] == ["x0", "x1", "x2", "x3", "x4"]


def test_a_token_that_is_replaced_in_its_file_is_used_at_once(
    cluster: ControlPlane, access: Access, namespace: str
) -> None:
    poor, rich = account(cluster, namespace, "poor"), account(cluster, namespace, "rich")
    rights = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "list"]}]
    cluster.grant(namespace, "rich", rights)
    access.token.write_text(poor)
    with pytest.raises(ApiError) as caught:
        access.client.list(LEASES, namespace)
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    assert f'User "system:serviceaccount:{namespace}:poor" cannot list resource "leases"' in str(
        caught.value
    )
    access.token.write_text(rich)
    # Rights that were just granted may take a moment.
    eventually(lambda: not refusal(access.client, namespace), "the new token has its rights")


def test_an_expired_token_is_named_and_not_shown(
    cluster: ControlPlane, access: Access, namespace: str
) -> None:
    token = expired(cluster, account(cluster, namespace, "late"))
    access.token.write_text(token)
    with pytest.raises(ApiError) as caught:
        access.client.list(LEASES, namespace)
    named = re.escape(f"Kubernetes API {URL}: list leases of {namespace}: 401 Unauthorized: Unauthorized")
    reason = (
        rf"\(token {re.escape(str(access.token))}: the token has expired \(\d{{4}}-\d\d-\d\dT[\d:]+Z\)\)"
    )
    assert re.fullmatch(f"{named} {reason}", str(caught.value))


def expired(cluster: ControlPlane, token: str) -> str:
    """The same token as it would have been issued two hours ago, signed by the cluster's key."""
    header, payload, _ = token.split(".")
    claims: Document = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims |= {"exp": claims["exp"] - 7200, "iat": claims["iat"] - 7200, "nbf": claims["nbf"] - 7200}
    text = f"{header}.{encoded(json.dumps(claims).encode())}"
    key = cluster.machine.folder / "var/lib/service-accounts.key"
    der = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", key], input=text.encode(), capture_output=True, check=True
    ).stdout
    # A sequence of two integers; a token has both as 32 bytes each.
    first = 4 + der[3]
    numbers = (der[4:first], der[first + 2 :])
    return f"{text}.{encoded(b''.join(each[-32:].rjust(32, bytes(1)) for each in numbers))}"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@contextmanager
def following(client: Client, selection: Selection) -> Generator[tuple[Watcher, list[tuple[Change, str]]]]:
    """A watcher that runs, and what it has reported."""
    changes: list[tuple[Change, str]] = []
    watcher = Watcher(
        client, selection, lambda change, seen: changes.append((change, seen["metadata"]["name"]))
    )
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        yield watcher, changes
    finally:
        watcher.stop()
        thread.join(30)


def test_a_server_that_was_killed_and_is_back_with_another_certificate_is_asked_on(
    cluster: ControlPlane, access: Access, namespace: str
) -> None:
    client = access.client
    create(client, namespace, "before")
    with following(client, Selection(LEASES, namespace)) as (watcher, changes):
        eventually(lambda: changes == [("CHANGED", "before")], "the watcher follows")
        cluster.kill_server()
        eventually(lambda: watcher.problem, "the watcher has noticed")
        begun = time.monotonic()
        with pytest.raises(ApiError, match=f"{URL}: get leases {namespace}/before: connection refused"):
            client.get(LEASES, "before", namespace)
        assert time.monotonic() - begun < 1
        cluster.write_certificate()
        cluster.start_server()
        cluster.wait_until_answers()
        # The client's own file of the authority is the old one.
        eventually(
            lambda: "cannot be verified: self-signed" in refusal(client, namespace), "the server is back"
        )
        access.authority.write_bytes(cluster.authority.read_bytes())
        client.delete(LEASES, "before", namespace)
        create(client, namespace, "behind")
        eventually(lambda: len(changes) == 3, "the watcher follows again")
        assert changes[1:] == [("GONE", "before"), ("CHANGED", "behind")]
    # It knows nothing of what was before its own start.
    with pytest.raises(ApiError) as expired:
        next(client.watch(LEASES, namespace, resource_version="1"))
    assert (expired.value.status, expired.value.reason) == (410, "Expired")


def refusal(client: Client, namespace: str) -> str:
    try:
        client.list(LEASES, namespace)
    except ApiError as e:
        return str(e)
    return ""


def test_a_connection_whose_other_end_vanished_is_noticed_by_a_watch(
    cluster: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PROBE_AFTER", 1), ("PROBE_EVERY", 1), ("PROBES", 2)):
        monkeypatch.setattr(f"cnvnet.kube.transport.{name}", value)
    monkeypatch.setattr(watch, "_FIRST_PAUSE", 0.1)
    client = Access(tmp_path, cluster).client
    create(client, namespace, "before")
    with following(client, Selection(LEASES, namespace)) as (watcher, changes):
        eventually(lambda: len(changes) == 1, "the watcher follows")
        with silenced(cluster):
            create_elsewhere = {"metadata": {"name": "meanwhile"}, "spec": {"holderIdentity": "a"}}
            eventually(lambda: watcher.problem, "the watcher has noticed", seconds=15)
        client.create(LEASES, create_elsewhere, namespace)
        eventually(lambda: len(changes) == 2, "the watcher follows again")
    assert changes[1] == ("CHANGED", "meanwhile")


@contextmanager
def silenced(cluster: ControlPlane) -> Generator[None]:
    """Packets to the server are dropped, without a word."""
    rule = (
        f"table inet silent {{ chain in {{ type filter hook input priority 0; tcp dport {PORT} drop; }}; }}"
    )
    cluster.machine.run("nft", rule)
    try:
        yield
    finally:
        cluster.machine.run("nft", "delete table inet silent")
