"""Programs that print credentials."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cnvnet.kube.api import ApiError, deadline
from cnvnet.kube.client import Client
from cnvnet.kube.resources import NODES
from cnvnet.kube.settings import CredentialPlugin, Secret, Tls
from tests.fakes.api_server import ApiServer, drop, running_api_server
from tests.fakes.certificates import Authority

V1 = "client.authentication.k8s.io/v1"


def plugin(folder: Path, script: str, **fields: Any) -> CredentialPlugin:
    program = folder / "login"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return CredentialPlugin(str(program), (), (("FOLDER", str(folder)),), V1, "", "")._replace(**fields)


def printing(folder: Path, version: str = V1, **status: str) -> str:
    """A script that prints this, and counts how often it does."""
    (folder / "printed").write_text(json.dumps({"apiVersion": version, "status": status}))
    return 'echo run >>"$FOLDER/runs"; cat "$FOLDER/printed"'


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def client_of(server: ApiServer, used: CredentialPlugin) -> Client:
    return Client(server.credentials(plugin=used))


def test_the_printed_token_is_used_until_it_expires(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"t"}
    client = client_of(
        server, plugin(tmp_path, printing(tmp_path, token="t", expirationTimestamp="2999-01-01T00:00:00Z"))
    )
    client.list(NODES)
    client.list(NODES)
    assert runs(tmp_path) == 1
    client = client_of(
        server, plugin(tmp_path, printing(tmp_path, token="t", expirationTimestamp="2001-01-01T00:00:00Z"))
    )
    client.list(NODES)
    client.list(NODES)
    assert runs(tmp_path) == 3


def test_the_program_runs_again_when_the_server_does_not_know_the_token(
    server: ApiServer, tmp_path: Path
) -> None:
    server.tokens = {"t"}
    client = client_of(server, plugin(tmp_path, printing(tmp_path, token="t")))
    client.list(NODES)
    server.tokens = {"u"}
    printing(tmp_path, token="u")
    client.list(NODES)
    assert runs(tmp_path) == 2


def test_the_program_does_not_run_again_for_a_broken_connection(server: ApiServer, tmp_path: Path) -> None:
    client = client_of(server, plugin(tmp_path, printing(tmp_path, token="t")))
    server.inject(drop)
    client.list(NODES)
    assert runs(tmp_path) == 1


def test_the_program_reads_what_it_is_asked_for(server: ApiServer, tmp_path: Path) -> None:
    script = 'echo "$KUBERNETES_EXEC_INFO" >"$FOLDER/info"; ' + printing(tmp_path, token="t")
    client_of(server, plugin(tmp_path, script, cluster='{"server": "s"}')).list(NODES)
    assert json.loads((tmp_path / "info").read_text()) == {
        "apiVersion": V1,
        "kind": "ExecCredential",
        "spec": {"interactive": False, "cluster": {"server": "s"}},
    }


def test_the_printed_certificate_is_presented(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    certificate, key = (Path(path).read_text() for path in authority.issue("client"))
    used = plugin(tmp_path, printing(tmp_path, clientCertificateData=certificate, clientKeyData=key))
    with running_api_server(authority.issue("server"), clients=authority.certificate) as server:
        tls = Tls(Secret(authority.certificate))
        Client(server.credentials(tls=tls, plugin=used)).list(NODES)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo hush; echo no account >&2; exit 3", "exit status 3: no account"),
        ("exit 1", "exit status 1"),
        ("echo hush", "printed no ExecCredential"),
        ("echo '[]'", "printed an ExecCredential of another version (None)"),
        (f"""echo '{{"apiVersion": "{V1}"}}'""", "printed neither a token nor a certificate with its key"),
        (
            f"""echo '{{"apiVersion": "{V1}", "status": {{"token": "t", "expirationTimestamp": "x"}}}}'""",
            "printed an expirationTimestamp that is none",
        ),
    ],
)
def test_a_program_that_gives_no_credentials_is_named(
    server: ApiServer, tmp_path: Path, script: str, complaint: str
) -> None:
    with pytest.raises(ApiError) as caught:
        client_of(server, plugin(tmp_path, script)).list(NODES)
    assert (
        str(caught.value) == f"Kubernetes API {server.url}: list nodes: credential plugin login: {complaint}"
    )


def test_a_program_that_is_not_there_is_named_with_its_hint(server: ApiServer, tmp_path: Path) -> None:
    used = plugin(tmp_path, "", command="/none/login", install_hint="apt-get\ninstall login")
    with pytest.raises(ApiError, match=r"login: no such file or directory \(apt-get install login\)$"):
        client_of(server, used).list(NODES)


def test_a_program_that_does_not_end_is_ended_with_what_it_started(
    server: ApiServer, tmp_path: Path
) -> None:
    used = plugin(tmp_path, "sleep 60 & sleep 60")
    begun = time.monotonic()
    with deadline(0.3), pytest.raises(ApiError, match=r"credential plugin login: not done after 0\.3 s$"):
        client_of(server, used).list(NODES)
    assert time.monotonic() - begun < 5
