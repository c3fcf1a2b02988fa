"""Whatever happens on the way to the API server and back, at each verb."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cnvnet.kube import transport
from cnvnet.kube.api import ApiError, Conflict, NotFound, WatchEvent, deadline
from cnvnet.kube.client import Client
from cnvnet.kube.resources import VM_LEASES
from cnvnet.kube.settings import Credentials, Secret, Tls
from tests.fakes.api_server import ApiServer, answer, black_hole, delay, drop, refuse, running_api_server
from tests.fakes.certificates import Authority
from tests.fakes.tokens import bound_token


def watched(client: Client) -> WatchEvent:
    watch = client.watch(VM_LEASES)
    try:
        return next(watch)
    finally:
        watch.close()


VERBS: dict[str, Callable[[Client], object]] = {
    "get": lambda client: client.get(VM_LEASES, "x", "default"),
    "create": lambda client: client.create(VM_LEASES, {"metadata": {"name": "new"}}, "default"),
    "patch": lambda client: client.patch(VM_LEASES, "x", {"spec": {"mac": "m"}}, "default"),
    "delete": lambda client: client.delete(VM_LEASES, "x", "default"),
    "list": lambda client: client.list(VM_LEASES),
    "watch": watched,
}
every_verb = pytest.mark.parametrize("verb", VERBS)


@pytest.fixture(autouse=True)
def _an_object(server: ApiServer) -> None:
    server.objects.create(VM_LEASES, "default", {"metadata": {"name": "x"}})


def attempts(server: ApiServer, verb: str) -> list[tuple[int, int]]:
    """Of each request of that verb the connection's number, from 0, and the answer's status."""
    asked = [each for each in server.requests if each.asked.verb == verb]
    peers = list(dict.fromkeys(each.asked.peer for each in asked))
    return [(peers.index(each.asked.peer), each.status) for each in asked]


@every_verb
def test_a_request_on_a_broken_connection_is_repeated_on_a_fresh_one(
    client: Client, server: ApiServer, verb: str
) -> None:
    server.inject(drop, verb=verb)
    VERBS[verb](client)
    assert attempts(server, verb) == [(0, 0), (1, 201 if verb == "create" else 200)]


@every_verb
def test_a_connection_that_breaks_twice_is_an_error(client: Client, server: ApiServer, verb: str) -> None:
    server.inject(drop, verb=verb, times=2)
    with pytest.raises(
        ApiError, match=rf"{server.url}: {verb} vmleases.*: the connection broke off$"
    ) as caught:
        VERBS[verb](client)
    assert (caught.value.status, caught.value.code) == (0, 11)
    assert len(attempts(server, verb)) == 2


@pytest.mark.parametrize(
    ("verb", "own"),
    [("get", None), ("list", None), ("patch", None), ("create", Conflict), ("delete", NotFound)],
)
def test_a_request_whose_answer_was_lost_meets_its_own_effect(
    client: Client, server: ApiServer, verb: str, own: type[ApiError] | None
) -> None:
    server.inject(drop, verb=verb, after=True)
    if own is None:
        VERBS[verb](client)
    else:
        with pytest.raises(own):
            VERBS[verb](client)
    assert len(attempts(server, verb)) == 2


@every_verb
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(
    client: Client, server: ApiServer, verb: str, status: int
) -> None:
    server.inject(refuse(status, retry_after=0), verb=verb, times=2)
    VERBS[verb](client)
    assert len(attempts(server, verb)) == 3


def test_a_busy_server_is_given_the_time_that_it_asks_for(client: Client, server: ApiServer) -> None:
    server.inject(refuse(429, retry_after=1))
    begun = time.monotonic()
    VERBS["get"](client)
    assert 1 <= time.monotonic() - begun < 5


@every_verb
@pytest.mark.parametrize("retry_after", [None, 60.0])
def test_a_busy_server_is_not_waited_for_beyond_the_deadline_or_without_its_word(
    client: Client, server: ApiServer, verb: str, retry_after: float | None
) -> None:
    server.inject(refuse(429, "TooManyRequests", "busy", retry_after=retry_after), verb=verb)
    with pytest.raises(ApiError, match=r"429 TooManyRequests: busy$") as caught:
        VERBS[verb](client)
    assert (caught.value.status, len(attempts(server, verb))) == (429, 1)


@every_verb
@pytest.mark.parametrize(
    ("status", "reason"), [(403, "Forbidden"), (422, "Invalid"), (500, "InternalError")]
)
def test_a_refusal_is_not_repeated(
    client: Client, server: ApiServer, verb: str, status: int, reason: str
) -> None:
    server.inject(refuse(status, reason, "because\nof this"), verb=verb)
    with pytest.raises(
        ApiError, match=rf"{server.url}: {verb} vmleases.*: {status} {reason}: because of this$"
    ):
        VERBS[verb](client)
    assert len(attempts(server, verb)) == 1


@every_verb
def test_an_unknown_token_is_sent_once_more_and_then_an_error(
    client: Client, server: ApiServer, verb: str
) -> None:
    server.inject(refuse(401, "Unauthorized", "Unauthorized"), verb=verb)
    VERBS[verb](client)
    server.inject(refuse(401, "Unauthorized", "Unauthorized"), verb=verb, times=2)
    with pytest.raises(ApiError) as caught:
        VERBS[verb](client)
    assert (caught.value.status, len(attempts(server, verb))) == (401, 4)


@every_verb
def test_a_black_hole_is_an_error_within_the_deadline(client: Client, server: ApiServer, verb: str) -> None:
    server.inject(black_hole, verb=verb, times=2)
    begun = time.monotonic()
    with deadline(0.4), pytest.raises(ApiError, match=r": no answer in time$"):
        VERBS[verb](client)
    assert 0.4 <= time.monotonic() - begun < 5


@every_verb
def test_a_connection_that_became_a_black_hole_is_replaced_within_the_deadline(
    client: Client, server: ApiServer, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_SHORTEST_ATTEMPT", 0.1)
    monkeypatch.setattr(transport, "_FIRST_SHARE", 0.0)
    server.inject(black_hole, verb=verb)
    with deadline(30):
        VERBS[verb](client)
    assert [connection for connection, _ in attempts(server, verb)] == [0, 1]


@every_verb
def test_an_absent_server_is_an_error_at_once(client: Client, server: ApiServer, verb: str) -> None:
    server.stop()
    begun = time.monotonic()
    with pytest.raises(ApiError, match=rf"{server.url}: {verb} vmleases.*: connection refused$"):
        VERBS[verb](client)
    assert time.monotonic() - begun < 3


def test_after_a_refused_connection_none_is_tried_for_a_second(client: Client, server: ApiServer) -> None:
    server.stop()
    with pytest.raises(ApiError, match=r"connection refused$"):
        VERBS["get"](client)
    refused_at = time.monotonic()
    server.start()
    connections = server.connections
    with pytest.raises(ApiError, match=r"connection refused \(less than a second ago\)$"):
        VERBS["get"](client)
    assert server.connections == connections
    time.sleep(refused_at + 1.05 - time.monotonic())
    VERBS["get"](client)


def test_a_server_that_was_restarted_is_asked_on_a_fresh_connection(
    client: Client, server: ApiServer
) -> None:
    VERBS["get"](client)
    server.stop()
    server.start()
    VERBS["get"](client)
    VERBS["list"](client)


def test_requests_share_a_deadline(client: Client, server: ApiServer) -> None:
    server.inject(delay(0.7), verb="get", times=2)
    begun = time.monotonic()
    with deadline(60), deadline(1), deadline(60):
        VERBS["get"](client)
        with pytest.raises(ApiError, match=r"no answer in time|no time was left to ask it"):
            VERBS["get"](client)
        with pytest.raises(ApiError, match=r"no time was left to ask it"):
            VERBS["get"](client)
    assert time.monotonic() - begun < 5
    VERBS["list"](client)


def test_an_answer_has_bounds(client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnvnet.kube.client._LONGEST_PAGE", 3 << 20)
    server.inject(answer(b"x" * (4 << 20)), verb="list")
    with pytest.raises(ApiError, match=r"list vmleases: an answer of more than 3 MiB$"):
        VERBS["list"](client)
    VERBS["list"](client)


def test_an_event_has_bounds(client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnvnet.kube.stream._LONGEST", 1 << 20)
    server.objects.patch(VM_LEASES, "default", "x", {"spec": {"mac": "m" * (2 << 20)}})
    with pytest.raises(ApiError, match=r"watch vmleases: an event of more than 1 MiB$"):
        VERBS["watch"](client)


def test_a_redirect_is_not_followed(client: Client, server: ApiServer) -> None:
    server.inject(refuse(307, "", "elsewhere"), verb="get")
    with pytest.raises(ApiError, match="307: elsewhere"):
        VERBS["get"](client)
    assert server.count() == 1


def test_idle_connections_are_kept(client: Client, server: ApiServer) -> None:
    for _ in range(3):
        VERBS["get"](client)
        VERBS["list"](client)
        VERBS["patch"](client)
    assert server.connections == 1


def test_a_watch_ends_with_an_error_when_its_server_does(client: Client, server: ApiServer) -> None:
    watch = client.watch(VM_LEASES)
    next(watch)
    server.stop()
    with pytest.raises(ApiError, match="watch vmleases: the connection broke off"):
        next(watch)
    with pytest.raises(StopIteration):
        next(watch)


class TestTokens:
    def test_a_token_that_was_replaced_in_its_file_is_used(self, server: ApiServer, tmp_path: Path) -> None:
        client = self.client(server, tmp_path, "one")
        server.tokens = {"one"}
        VERBS["get"](client)
        server.tokens = {"two"}
        (tmp_path / "token").write_text("two")
        VERBS["get"](client)
        assert [each.status for each in server.requests] == [200, 200]

    def test_a_token_that_was_replaced_in_the_kubeconfig_is_read_after_a_401(
        self, server: ApiServer
    ) -> None:
        tokens = ["two"]

        def read() -> Credentials:
            return Credentials(server.url, "k", read, token=Secret(content=tokens[-1].encode()))

        client = Client(read())
        tokens.append("three")
        server.tokens = {"three"}
        VERBS["get"](client)
        assert [each.status for each in server.requests] == [401, 200]

    def test_an_error_has_no_token(self, server: ApiServer, tmp_path: Path) -> None:
        server.tokens = {"another"}
        with pytest.raises(ApiError) as caught:
            VERBS["get"](self.client(server, tmp_path, "hush"))
        assert str(caught.value) == (
            f"Kubernetes API {server.url}: get vmleases default/x: 401 Unauthorized: Unauthorized"
            f" (token {tmp_path}/token)"
        )

    def test_an_error_names_the_pod_that_a_token_was_for_and_no_token(self, server: ApiServer) -> None:
        server.tokens = {"another"}
        given = bound_token("cnvnet-agent-x7k", "u1").encode()
        client = Client(server.credentials(token=Secret(content=given)))
        with pytest.raises(ApiError) as caught:
            VERBS["get"](client)
        reason = "the token's pod cnvnet-system/cnvnet-agent-x7k is gone, or its ServiceAccount"
        remedy = "the node's next agent writes the file anew"
        assert str(caught.value).endswith(f": 401 Unauthorized: Unauthorized (the test: {reason}; {remedy})")

    def test_an_error_says_that_a_token_has_expired(self, server: ApiServer, tmp_path: Path) -> None:
        server.tokens = {"another"}
        with pytest.raises(ApiError, match=rf"\(token {tmp_path}/token: the token has expired \(20.*Z\)\)$"):
            VERBS["get"](self.client(server, tmp_path, bound_token("x", "u1", lifetime=-1)))

    @pytest.mark.parametrize("content", ["", "hush\nhush", "hush hush", "hush\x00", "hüsh"])
    def test_what_is_no_token_is_not_sent_and_not_shown(
        self, server: ApiServer, tmp_path: Path, content: str
    ) -> None:
        with pytest.raises(ApiError, match=rf"token {tmp_path}/token: not a token$"):
            VERBS["get"](self.client(server, tmp_path, content))
        assert server.count() == 0

    def test_a_token_that_is_gone_is_named(self, server: ApiServer, tmp_path: Path) -> None:
        client = self.client(server, tmp_path, "one")
        (tmp_path / "token").unlink()
        with pytest.raises(ApiError, match=rf"token {tmp_path}/token: no such file or directory$"):
            VERBS["get"](client)

    def client(self, server: ApiServer, folder: Path, token: str) -> Client:
        (folder / "token").write_text(token)
        return Client(server.credentials(token=Secret(f"{folder}/token")))


class TestTls:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path, "authority")

    def test_the_server_is_verified(self, authority: Authority, tmp_path: Path) -> None:
        with running_api_server(authority.issue("server")) as server:
            assert client_of(server, authority.certificate).list(VM_LEASES).items == ()
            other = Authority(tmp_path, "other").certificate
            with pytest.raises(
                ApiError, match="TLS: the server's certificate cannot be verified: unable to get"
            ):
                client_of(server, other).list(VM_LEASES)
            with pytest.raises(ApiError, match="TLS: the server's certificate cannot be verified"):
                Client(server.credentials()).list(VM_LEASES)

    def test_the_servers_name_is_verified(self, authority: Authority) -> None:
        with running_api_server(authority.issue("server", "DNS:kubernetes.test")) as server:
            with pytest.raises(ApiError, match="cannot be verified: IP address mismatch"):
                client_of(server, authority.certificate).list(VM_LEASES)
            trusting = Tls(Secret(authority.certificate), "kubernetes.test")
            Client(server.credentials(tls=trusting)).list(VM_LEASES)
            Client(server.credentials(tls=Tls(verify=False))).list(VM_LEASES)

    def test_a_new_authority_is_read_when_the_server_has_its_certificate(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        trusted = tmp_path / "ca.crt"
        trusted.write_bytes(Path(authority.certificate).read_bytes())
        with running_api_server(authority.issue("server")) as server:
            client = client_of(server, str(trusted))
            client.list(VM_LEASES)
            other = Authority(tmp_path, "other")
            server.present(*other.issue("renewed"))
            server.hang_up()
            with pytest.raises(ApiError, match="cannot be verified"):
                client.list(VM_LEASES)
            trusted.write_bytes(Path(other.certificate).read_bytes())
            client.list(VM_LEASES)
            connections = server.connections
            client.list(VM_LEASES)
        assert server.connections == connections

    def test_a_handshake_is_paid_once(self, authority: Authority) -> None:
        with running_api_server(authority.issue("server")) as server:
            client = client_of(server, authority.certificate)
            for _ in range(5):
                client.list(VM_LEASES)
        assert server.connections == 1

    def test_a_client_certificate_is_presented(self, authority: Authority) -> None:
        with running_api_server(authority.issue("server"), clients=authority.certificate) as server:
            with pytest.raises(ApiError):
                client_of(server, authority.certificate).list(VM_LEASES)
            certificate, key = authority.issue("client")
            for pem in (
                (Secret(certificate), Secret(key)),
                (Secret(content=Path(certificate).read_bytes()), Secret(content=Path(key).read_bytes())),
            ):
                tls = Tls(Secret(authority.certificate), certificate=pem[0], key=pem[1])
                Client(server.credentials(tls=tls)).list(VM_LEASES)

    @pytest.mark.parametrize(
        ("tls", "complaint"),
        [
            (Tls(Secret("/none")), "certificate-authority /none: no such file or directory"),
            (Tls(Secret(content=b"x")), "certificate-authority: no certificates"),
            (
                Tls(verify=False, certificate=Secret(content=b"x"), key=Secret(content=b"y")),
                "client-certificate: certificate and key cannot be used",
            ),
        ],
    )
    def test_an_unusable_certificate_is_named(self, tls: Tls, complaint: str) -> None:
        credentials = Credentials("https://127.0.0.1:1", "k", lambda: credentials, tls=tls)
        with pytest.raises(ApiError, match=f"get vmleases default/x: {complaint}"):
            VERBS["get"](Client(credentials))


def client_of(server: ApiServer, authority: str) -> Client:
    return Client(server.credentials(tls=Tls(Secret(authority))))
