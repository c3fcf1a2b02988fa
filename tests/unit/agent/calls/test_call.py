"""A call as one value."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from cnvnet.agent.calls.call import Call, has_absolute_paths
from cnvnet.agent.calls.remote_caller import AgentView, RemoteCaller
from cnvnet.agent.connection import CallerConnection
from cnvnet.cni.document import LIMIT
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request
from cnvnet.launch.protocol import decode_response

ENV = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/x"}
CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net1", "type": "cnv-bridge"}


@pytest.fixture
def ends() -> Iterator[tuple[CallerConnection, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = CallerConnection(ours)
        connection.descriptors += [
            os.open("/proc/self/ns/net", os.O_RDONLY),
            os.open("/proc/self/ns/mnt", os.O_RDONLY),
            os.open("/", os.O_PATH),
        ]
        yield connection, theirs
        connection.close()


@pytest.fixture
def call(ends: tuple[CallerConnection, socket.socket]) -> Call:
    connection, _ = ends
    own, mounts, root = connection.descriptors
    remote = RemoteCaller(AgentView(), "", {"self": own, "mnt": mounts, "root": root})
    return Call("cnv-bridge", ENV, json.dumps(CONFIG).encode(), remote, connection, 0.0)


def test_a_call_is_parsed_once(call: Call) -> None:
    parsed = call.parsed()
    assert call.request is None
    assert parsed.parsed() is parsed
    assert parsed.read_request() is parsed.read_request()
    assert (parsed.network, parsed.config) == ("net1", CONFIG)


def test_the_key_of_a_call_of_an_attachment_names_it(call: Call) -> None:
    assert call.parsed().key() == ("net1", ("c1", "eth0"), len(call.stdin), False)
    assert call.as_delete().parsed().key().is_delete


@pytest.mark.parametrize("env", [{**ENV, "CNI_COMMAND": "GC"}, {**ENV, "CNI_CONTAINERID": ""}])
def test_other_calls_are_of_no_attachment(call: Call, env: dict[str, str]) -> None:
    assert call._replace(env=env).parsed().key().attachment is None


def test_a_call_of_another_version_still_has_a_network(call: Call) -> None:
    parsed = call._replace(stdin=json.dumps({**CONFIG, "cniVersion": "9.0.0"}).encode()).parsed()
    assert parsed.network == "net1"
    with pytest.raises(CNIError) as error:
        parsed.read_request()
    assert error.value.code == 1


@pytest.mark.parametrize(("stdin", "code"), [(b"{", 6), (b"[]", 6), (b"", 6), (b"{}" + b" " * LIMIT, 5)])
def test_what_is_no_configuration_is_an_error_for_the_plugin_to_report(
    call: Call, stdin: bytes, code: int
) -> None:
    parsed = call._replace(stdin=stdin).parsed()
    assert (parsed.network, parsed.config) == ("", {})
    with pytest.raises(CNIError) as error:
        parsed.read_request()
    assert error.value.code == code


def test_the_delete_that_undoes_an_add_has_its_configuration(call: Call) -> None:
    delete = call.parsed().as_delete()
    assert isinstance(delete.request, Request)
    assert (delete.command, delete.request.command) == ("DEL", "DEL")
    assert delete.request.env["CNI_COMMAND"] == "DEL"
    assert delete.request.config is delete.config


def test_a_call_that_is_turned_away_is_its_launchers(
    call: Call, ends: tuple[CallerConnection, socket.socket]
) -> None:
    call.turn_away()
    message = ends[1].makefile("rb").read()
    assert decode_response(message[4:]) is None


@pytest.mark.parametrize(
    ("path", "absolute"), [("", True), ("/a:/b", True), ("/a::", True), ("bin", False), ("/a:bin", False)]
)
def test_a_relative_folder_of_programs_is_the_launchers_business(path: str, absolute: bool) -> None:
    assert has_absolute_paths({"CNI_PATH": path}) is absolute
