"""Each verb, against an API server in memory."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import Api, ApiError, Conflict, Document, FinishedRequest, NotFound
from cnvnet.kube.client import Client
from cnvnet.kube.resources import IP_RESERVATIONS, NODES, PODS, VM_LEASES
from cnvnet.kube.settings import Secret, Tls
from tests.fakes.api_server import ApiServer, answer, drop, refuse


def created(client: Api, name: str = "x", **metadata: object) -> Document:
    return client.create(
        VM_LEASES, {"metadata": {"name": name, **metadata}, "spec": {"vm": name}}, "default"
    )


def test_an_object_is_created_with_its_kind_and_read_again(client: Client) -> None:
    made = created(client)
    assert (made["apiVersion"], made["kind"]) == ("cnvnet.io/v1alpha1", "VMLease")
    assert client.get(VM_LEASES, "x", "default") == made


def test_a_missing_object_is_named(client: Client, server: ApiServer) -> None:
    with pytest.raises(NotFound) as caught:
        client.get(VM_LEASES, "x", "default")
    assert (caught.value.code, caught.value.status, caught.value.reason) == (11, 404, "NotFound")
    text = 'get vmleases default/x: 404 NotFound: vmleases.cnvnet.io "x" not found'
    assert str(caught.value) == f"Kubernetes API {server.url}: {text}"


def test_a_kind_that_the_server_does_not_know_is_no_missing_object(
    client: Client, server: ApiServer
) -> None:
    server.undefined.add(VM_LEASES)
    with pytest.raises(
        ApiError, match=r"404: the server does not know this kind of object \(is its Custom"
    ) as caught:
        client.get(VM_LEASES, "x", "default")
    assert caught.value.status == 404
    assert not isinstance(caught.value, NotFound)


def test_a_name_that_is_taken_is_a_conflict(client: Client) -> None:
    created(client)
    with pytest.raises(Conflict) as caught:
        created(client)
    assert (caught.value.status, caught.value.reason) == (409, "AlreadyExists")


def test_a_patch_of_an_older_version_is_a_conflict(client: Client) -> None:
    made = created(client)
    patched = client.patch(VM_LEASES, "x", {"spec": {"mac": "m", "vm": None}}, "default")
    assert patched["spec"] == {"mac": "m"}
    old = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "spec": {"mac": "n"}}
    with pytest.raises(Conflict) as caught:
        client.patch(VM_LEASES, "x", old, "default")
    assert caught.value.reason == "Conflict"
    assert client.get(VM_LEASES, "x", "default")["spec"] == {"mac": "m"}


def test_an_object_is_deleted_under_its_conditions_only(client: Client) -> None:
    made = client.create(IP_RESERVATIONS, {"metadata": {"name": "r"}})["metadata"]
    for wrong in (
        partial(client.delete, IP_RESERVATIONS, "r", uid="another"),
        partial(client.delete, IP_RESERVATIONS, "r", resource_version="1"),
    ):
        with pytest.raises(Conflict):
            wrong()
    client.delete(IP_RESERVATIONS, "r", uid=made["uid"], resource_version=made["resourceVersion"])
    with pytest.raises(NotFound):
        client.delete(IP_RESERVATIONS, "r")


def test_a_list_has_all_pages(client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnvnet.kube.client._PAGE", 2)
    for number in range(5):
        created(client, f"x{number}", labels={"parity": str(number % 2)})
    listing = client.list(VM_LEASES)
    assert [each["spec"]["vm"] for each in listing.items] == ["x0", "x1", "x2", "x3", "x4"]
    assert server.count("list") == 3
    assert client.get(VM_LEASES, "x4", "default")["metadata"]["resourceVersion"] == listing.resource_version


def test_a_list_leaves_out_which_program_has_written_which_field(client: Client, server: ApiServer) -> None:
    created(client, "x")
    record = [{"manager": "cnvnet", "operation": "Update"}]
    server.objects.patch(VM_LEASES, "default", "x", {"metadata": {"managedFields": record}})
    (listed,) = client.list(VM_LEASES).items
    read = client.get(VM_LEASES, "x", "default")
    assert read["metadata"].pop("managedFields") == record
    assert listed == read


def test_a_list_whose_version_was_forgotten_begins_anew(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.kube.client._PAGE", 2)
    for number in range(3):
        created(client, f"x{number}")
    server.inject(refuse(410, "Expired"), verb="list", skip=1)
    assert len(client.list(VM_LEASES).items) == 3
    server.inject(refuse(410, "Expired"), verb="list", skip=1)
    server.inject(refuse(410, "Expired"), verb="list", skip=2)
    with pytest.raises(ApiError) as caught:
        client.list(VM_LEASES)
    assert caught.value.status == 410


def test_a_list_selects_and_may_have_metadata_only(client: Client) -> None:
    created(client, "x", labels={"net": "a"})
    created(client, "y", labels={"net": "b"})
    (found,) = client.list(VM_LEASES, "default", labels="net=a", metadata_only=True).items
    assert found["metadata"]["name"] == "x"
    assert "spec" not in found
    assert [each["metadata"]["name"] for each in client.list(VM_LEASES, fields="metadata.name=y").items] == [
        "y"
    ]
    assert client.list(VM_LEASES, "other").items == ()
    assert len(client.list(VM_LEASES, resource_version="0").items) == 2


def test_a_watch_tells_what_happens_after_a_version(client: Client) -> None:
    created(client, "before")
    version = client.list(VM_LEASES).resource_version
    watch = client.watch(VM_LEASES, resource_version=version)
    created(client)
    client.patch(VM_LEASES, "x", {"spec": {"mac": "m"}}, "default")
    client.delete(VM_LEASES, "x", "default")
    seen = [next(watch) for _ in range(3)]
    watch.close()
    assert [each.type for each in seen] == ["ADDED", "MODIFIED", "DELETED"]
    assert {each.object["metadata"]["name"] for each in seen} == {"x"}


def test_a_watch_ends_with_a_bookmark_and_its_connection_serves_other_requests(
    client: Client, server: ApiServer
) -> None:
    version = created(client)["metadata"]["resourceVersion"]
    *_, last = client.watch(VM_LEASES, resource_version=version, seconds=1)
    assert last.type == "BOOKMARK"
    assert last.object["metadata"]["resourceVersion"] == str(server.objects.version)
    client.get(VM_LEASES, "x", "default")
    assert server.connections == 1


def test_a_watch_from_a_forgotten_version_says_so(client: Client, server: ApiServer) -> None:
    created(client)
    server.objects.forget()
    with pytest.raises(ApiError) as caught:
        next(client.watch(VM_LEASES, resource_version="1"))
    assert (caught.value.status, caught.value.reason) == (410, "Expired")


def test_a_watch_that_is_closed_ends_at_once(client: Client) -> None:
    watch = client.watch(PODS)
    threading.Timer(0.1, watch.close).start()
    begun = time.monotonic()
    assert list(watch) == []
    assert time.monotonic() - begun < 5
    watch.close()


def test_a_watch_that_was_never_read_is_closed(client: Client) -> None:
    watch = client.watch(PODS)
    watch.close()
    with pytest.raises(StopIteration):
        next(watch)


def test_a_watch_on_which_nothing_comes_is_given_up(client: Client, server: ApiServer) -> None:
    server.is_silent = True
    with pytest.raises(ApiError, match=r"watch nodes: no answer in time$"):
        next(client.watch(NODES, idle=0.1))


def test_a_watch_of_what_is_forbidden_is_refused(client: Client, server: ApiServer) -> None:
    server.inject(refuse(403, "Forbidden", "no such right"), verb="watch")
    with pytest.raises(ApiError, match="watch pods of kube-system: 403 Forbidden: no such right"):
        client.watch(PODS, "kube-system")


def test_a_server_that_is_no_kubernetes_is_recognised(client: Client, server: ApiServer) -> None:
    for content in (b"<html>hello</html>", b"[]", b"[" * 100_000, b"\xff"):
        server.inject(answer(content))
        with pytest.raises(ApiError, match="is this an API server"):
            client.get(NODES, "n")


def test_threads_share_a_client(client: Client, server: ApiServer) -> None:
    errors: list[CNIError] = []

    def work(number: int) -> None:
        try:
            for count in range(20):
                created(client, f"x{number}-{count}")
                assert client.get(VM_LEASES, f"x{number}-{count}", "default")["spec"] == {
                    "vm": f"x{number}-{count}"
                }
        except CNIError as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert server.connections <= 8
    assert len(client.list(VM_LEASES).items) == 160


def test_each_request_is_observed_repeated_ones_too(server: ApiServer) -> None:
    seen: list[FinishedRequest] = []
    client = Client(server.credentials(), seen.append)
    with pytest.raises(NotFound):
        client.get(VM_LEASES, "x", "default")
    server.inject(drop, verb="list")
    client.list(VM_LEASES)
    server.inject(refuse(429, retry_after=0), verb="create")
    client.create(VM_LEASES, {"metadata": {"name": "x"}}, "default")
    client.watch(VM_LEASES, resource_version="1").close()
    assert [(each.verb, each.resource, each.status) for each in seen] == [
        ("get", "vmleases", 404),
        ("list", "vmleases", 0),
        ("list", "vmleases", 200),
        ("create", "vmleases", 429),
        ("create", "vmleases", 201),
        ("watch", "vmleases", 200),
    ]
    assert "broke off" in seen[1].why
    assert all(0 < each.seconds < 10 for each in seen)


def test_requests_that_cannot_be_sent_are_observed_with_the_reason(server: ApiServer) -> None:
    seen: list[FinishedRequest] = []
    trusting = server.credentials(tls=Tls(Secret("/nowhere/ca.crt")))._replace(server="https://127.0.0.1:1")
    with pytest.raises(ApiError):
        Client(trusting, seen.append).list(VM_LEASES)
    assert {(each.status, each.why) for each in seen} == {
        (0, "certificate-authority /nowhere/ca.crt: no such file or directory")
    }
    server.stop()
    with pytest.raises(ApiError):
        Client(server.credentials(), seen.append).list(VM_LEASES)
    assert seen[-1].why == "connection refused"
