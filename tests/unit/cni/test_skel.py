"""One call from start to end, with the environment and stdin given by the test."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet import call_context
from cnvnet.call_context import log
from cnvnet.cni import skel
from cnvnet.cni.document import LIMIT
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import as_interface_address
from cnvnet.cni.request import Request, parse
from cnvnet.cni.result import IP, Interface, Result
from cnvnet.cni.version import SUPPORTED
from tests.unit.cni.test_environment import COMPLETE
from tests.unit.cni.test_fields import JSON

LISTED = '["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]'


class Recorder:
    """A plugin that remembers its calls and then does what the test says."""

    name = "recorder"

    def __init__(self, step: Callable[[Request], Result] | None = None) -> None:
        self.calls: list[Request] = []
        self.step = step

    def add(self, request: Request) -> Result:
        self.calls.append(request)
        if self.step is not None:
            return self.step(request)
        address = as_interface_address("10.0.0.5/24", "")
        return Result((Interface("eth0", sandbox=request.netns),), (IP(address, interface=0),))

    def delete(self, request: Request) -> None:
        self.add(request)

    check = gc = status = delete

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        return ()

    def load(self, env: Mapping[str, str]) -> skel.Plugin:
        return self


def never(env: Mapping[str, str]) -> skel.Plugin:
    raise AssertionError("the plugin was loaded for a call that does not need it")


def unread() -> bytes:
    raise AssertionError("stdin was read")


def call(
    command: str,
    config: object,
    plugin: Recorder | None = None,
    **env: str,
) -> tuple[int, Any, str]:
    """Exit status, decoded stdout and stderr."""
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    plugin = plugin or Recorder()
    response = skel.run("test", plugin.load, {**COMPLETE, "CNI_COMMAND": command, **env}, lambda: raw)
    document = json.loads(response.stdout) if response.stdout else None
    return response.exit, document, response.stderr.decode()


def test_version_reads_nothing_and_loads_nothing() -> None:
    response = skel.run("test", never, {"CNI_COMMAND": "VERSION"}, unread)
    assert response.exit == 0
    assert response.stdout.endswith(b'"}\n') or response.stdout.endswith(b'"]}\n')
    assert json.loads(response.stdout) == {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED)}


def test_without_a_command_it_says_what_it_is_on_stderr() -> None:
    response = skel.run("test", never, {}, unread)
    assert (response.exit, response.stdout) == (0, b"")
    assert response.stderr.startswith(b"CNI test plugin ")
    assert response.stderr.endswith(
        b"CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
    )


def test_a_bad_environment_is_reported_before_stdin_is_read() -> None:
    response = skel.run("test", never, {"CNI_COMMAND": "ADD"}, unread)
    assert json.loads(response.stdout)["code"] == 4


REFUSED: list[tuple[str, bytes, tuple[int, str, str]]] = [
    ("ADD", b"", (6, "error unmarshall network config: unexpected end of JSON input", "")),
    ("ADD", b"[]", (6, "error unmarshall network config: expected an object, got a list", "")),
    (
        "ADD",
        b'{"name": 5}',
        (6, "error unmarshall network config: name: expected a string, got an integer", ""),
    ),
    ("ADD", b"null", (7, "missing network name", "")),
    ("ADD", b"{}", (7, "missing network name", "")),
    ("ADD", b'{"name": ""}', (7, "missing network name", "")),
    ("ADD", b'{"name": "a b"}', (7, "invalid characters found in network name", "a b")),
    ("ADD", b'{"name": "a\\n"}', (7, "invalid characters found in network name", "a\n")),
    ("ADD", b'{"name": "../x"}', (7, "invalid characters found in network name", "../x")),
    ("FOO", b"", (6, "error unmarshall network config: unexpected end of JSON input", "")),
    ("FOO", b"{}", (7, "missing network name", "")),
    ("FOO", b'{"name": "n", "cniVersion": 3}', (4, "unknown CNI_COMMAND: FOO", "")),
    (
        "ADD",
        b'{"name": "n", "cniVersion": 3}',
        (6, "decoding version from network config: cniVersion: expected a string, got an integer", ""),
    ),
    (
        "ADD",
        b'{"name": "n", "cniVersion": "7"}',
        (1, "incompatible CNI versions", f'config is "7", plugin supports {LISTED}'),
    ),
    ("CHECK", b'{"name": "n"}', (1, "config version does not allow CHECK", "")),
    ("GC", b'{"name": "n", "cniVersion": "1.0.0"}', (1, "config version does not allow GC", "")),
    ("STATUS", b'{"name": "n", "cniVersion": "1.0.0"}', (1, "config version does not allow STATUS", "")),
]


@pytest.mark.parametrize(("command", "raw", "expected"), REFUSED)
def test_malformed_calls_are_refused_in_the_references_order(
    command: str, raw: bytes, expected: tuple[int, str, str]
) -> None:
    response = skel.run("test", never, {**COMPLETE, "CNI_COMMAND": command}, lambda: raw)
    code, msg, details = expected
    assert response.exit == 1
    assert json.loads(response.stdout) == {
        "code": code,
        "msg": msg,
        **({"details": details} if details else {}),
    }


def test_too_much_stdin_is_refused() -> None:
    raw = b" " * (LIMIT + 1)
    code, document, _ = call("ADD", raw)
    assert code == 1
    assert document == {"code": 5, "msg": "error reading from stdin: more than 16777216 bytes"}


def test_unreadable_stdin_is_an_io_failure() -> None:
    def closed() -> bytes:
        raise OSError(9, "Bad file descriptor")

    response = skel.run("test", never, COMPLETE, closed)
    assert json.loads(response.stdout) == {
        "code": 5,
        "msg": "error reading from stdin: read /dev/stdin: bad file descriptor",
    }


@pytest.mark.parametrize("version", SUPPORTED)
def test_add_prints_its_result_in_the_configurations_version(version: str) -> None:
    code, document, stderr = call("ADD", {"name": "n", "cniVersion": version})
    assert (code, stderr) == (0, "")
    assert document["cniVersion"] == version
    assert ("ip4" in document) == (version in ("0.1.0", "0.2.0"))


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_the_other_commands_print_nothing(command: str) -> None:
    plugin = Recorder()
    assert call(command, {"name": "n", "cniVersion": "1.1.0"}, plugin) == (0, None, "")
    assert [request.command for request in plugin.calls] == [command]


def test_the_plugin_gets_the_whole_call() -> None:
    plugin = Recorder()
    raw = b'{"CniVersion": "0.4.0", "NAME": "n", "vlan": 3}'
    call("ADD", raw, plugin, CNI_ARGS="A=B", HOME="/root")
    request = plugin.calls[0]
    assert request.raw == raw
    assert (request.cni_version, request.name, request.config["vlan"]) == ("0.4.0", "n", 3)
    assert (request.container_id, request.ifname, request.netns) == ("dummy-0", "eth0", "/run/netns/x")
    assert (request.args, request.path, request.env["HOME"]) == ("A=B", "/opt/cni/bin", "/root")


def failing(error: Exception) -> Recorder:
    def step(request: Request) -> Result:
        raise error

    return Recorder(step)


CONFIG = {"name": "n", "cniVersion": "1.0.0"}


def test_a_plugins_error_is_printed_as_it_is() -> None:
    plugin = failing(CNIError(11, "<later>", "d"))
    response = skel.run("test", plugin.load, COMPLETE, json.dumps(CONFIG).encode)
    assert response.exit == 1
    assert response.stdout == (
        b'{\n    "cniVersion": "1.0.0",\n    "code": 11,\n'
        b'    "msg": "\\u003clater\\u003e",\n    "details": "d"\n}'
    )
    assert response.stderr == b""


@pytest.mark.parametrize(
    ("error", "code", "msg"),
    [
        (ValueError("one\ntwo"), 999, "internal error: ValueError: one two"),
        (KeyError(), 999, "internal error: KeyError:"),
        (RecursionError(), 999, "internal error: RecursionError:"),
        (PermissionError(13, "Permission denied", "/run/x"), 5, "/run/x: permission denied"),
        (OSError(28, "No space left on device"), 5, "no space left on device"),
        (TimeoutError(), 5, "timeouterror"),
    ],
)
def test_an_unexpected_error_is_one_line_on_each_side(error: Exception, code: int, msg: str) -> None:
    exit_code, document, stderr = call("ADD", CONFIG, failing(error))
    assert exit_code == 1
    assert document == {"cniVersion": "1.0.0", "code": code, "msg": msg}
    assert stderr.startswith(f"test: {msg}")
    assert stderr.endswith(")\n")
    assert stderr.count("\n") == 1
    assert "test_skel.py:" in stderr


def test_a_plugin_that_cannot_be_loaded_is_reported_too() -> None:
    def load(env: Mapping[str, str]) -> skel.Plugin:
        raise ImportError("no module named x")

    response = skel.run("test", load, COMPLETE, json.dumps(CONFIG).encode)
    assert json.loads(response.stdout)["code"] == 999


def test_diagnostics_go_to_stderr_a_line_each() -> None:
    def step(request: Request) -> Result:
        log("one\ntwo")
        log("three")
        return Result()

    assert call("ADD", CONFIG, Recorder(step))[2] == "test: one two\ntest: three\n"


OWN = call_context.OWN_NETNS


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_the_plugins_own_namespace_is_refused_before_anything_is_done(command: str) -> None:
    plugin = Recorder()
    code, document, _ = call(command, CONFIG, plugin, CNI_NETNS=OWN)
    assert (code, document["code"]) == (1, 8)
    assert document["msg"] == "plugin's netns and netns from CNI_NETNS should not be the same"
    assert plugin.calls == []


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_an_override_lets_the_own_namespace_through(value: str) -> None:
    plugin = Recorder()
    assert call("ADD", CONFIG, plugin, CNI_NETNS=OWN, CNI_NETNS_OVERRIDE=value)[0] == 0
    assert plugin.calls[0].netns == OWN


@pytest.mark.parametrize("name", [b"\xff", b"eth\xc3"])
def test_an_interface_name_that_is_no_text_is_refused_and_deleted(name: bytes) -> None:
    plugin = Recorder()
    for command in ("ADD", "CHECK"):
        env = {**COMPLETE, "CNI_COMMAND": command, "CNI_IFNAME": os.fsdecode(name)}
        response = skel.run("test", plugin.load, env, json.dumps(CONFIG).encode, own_netns="/nowhere")
        error = json.loads(response.stdout)
        assert (response.exit, error["code"], error["msg"]) == (1, 4, "interface name is not UTF-8")
    env = {**COMPLETE, "CNI_COMMAND": "DEL", "CNI_IFNAME": os.fsdecode(name)}
    response = skel.run("test", plugin.load, env, json.dumps(CONFIG).encode, own_netns="/nowhere")
    assert (response.exit, response.stdout) == (0, b"")
    assert b"nothing to delete" in response.stderr
    assert plugin.calls == []


def test_del_of_the_own_namespace_goes_on_without_one() -> None:
    plugin = Recorder()
    code, document, stderr = call("DEL", CONFIG, plugin, CNI_NETNS=OWN)
    assert (code, document) == (0, None)
    assert plugin.calls[0].netns == ""
    assert plugin.calls[0].env["CNI_NETNS"] == ""
    assert "own namespace" in stderr


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_a_namespace_that_cannot_be_opened_is_the_plugins_business(command: str) -> None:
    plugin = Recorder()
    assert call(command, CONFIG, plugin, CNI_NETNS="/nowhere/x")[0] == 0
    assert plugin.calls[0].netns == "/nowhere/x"


def test_the_own_namespace_is_the_callers_not_this_processes(tmp_path: Any) -> None:
    callers = str(tmp_path)
    plugin = Recorder()
    env = {**COMPLETE, "CNI_NETNS": callers}
    response = skel.run("test", plugin.load, env, json.dumps(CONFIG).encode, own_netns=callers)
    assert json.loads(response.stdout)["code"] == 8
    response = skel.run(
        "test", plugin.load, {**env, "CNI_NETNS": OWN}, json.dumps(CONFIG).encode, own_netns=callers
    )
    assert response.exit == 0


def test_without_knowing_its_own_namespace_only_del_goes_on() -> None:
    plugin = Recorder()
    raw = json.dumps(CONFIG).encode
    for command in ("ADD", "DEL"):
        env = {**COMPLETE, "CNI_COMMAND": command, "CNI_NETNS": OWN}
        response = skel.run("test", plugin.load, env, raw, own_netns="/nowhere")
        assert response.exit == (command == "ADD")
    assert [(request.command, request.netns) for request in plugin.calls] == [("DEL", "")]


def test_a_result_that_the_version_cannot_carry_is_an_error() -> None:
    code, document, _ = call("ADD", {"name": "n"}, Recorder(lambda request: Result()))
    assert code == 1
    assert document["msg"] == "cannot convert: no valid IP addresses"


ENVIRONMENTS = st.dictionaries(
    st.sampled_from([*COMPLETE, "CNI_ARGS", "CNI_NETNS_OVERRIDE", "HOME"]),
    st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
    | st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "eth0", OWN]),
)
NAMED = st.fixed_dictionaries(
    {"name": st.just("net")}, optional={"cniVersion": JSON | st.sampled_from(SUPPORTED), "prevResult": JSON}
)


@given(
    env=ENVIRONMENTS | ENVIRONMENTS.map(lambda env: {**COMPLETE, **env}),
    raw=st.binary(max_size=100) | (JSON | NAMED).map(lambda value: json.dumps(value).encode()),
)
def test_any_call_gets_a_result_or_an_error_object(env: dict[str, str], raw: bytes) -> None:
    response = skel.run("test", Recorder().load, env, lambda: raw)
    if response.exit == 0:
        if response.stdout:
            json.loads(response.stdout)
        return
    assert response.exit == 1
    document = json.loads(response.stdout)
    assert isinstance(document["code"], int)
    assert document["code"] not in (0, 999)
    assert document["msg"]
    assert set(document) <= {"cniVersion", "code", "msg", "details"}


def test_it_neither_reads_nor_changes_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_COMMAND", "VERSION")
    before = dict(os.environ)
    assert call("DEL", CONFIG)[0] == 0
    assert dict(os.environ) == before


@pytest.mark.parametrize(("command", "seconds"), [("ADD", 7), ("DEL", 1.5), ("CHECK", None)])
def test_a_call_asks_other_machines_for_as_long_as_it_may_from_its_arrival_on(
    command: str, seconds: float | None
) -> None:
    limits: list[float | None] = []

    def note(request: Request) -> Result:
        limits.append(call_context.request_limit())
        return Result()

    env = {**COMPLETE, "CNI_COMMAND": command}

    def read_request() -> Request:
        return parse(env, b'{"cniVersion": "1.0.0", "name": "net", "type": "recorder"}')

    before = time.monotonic()
    for arrived in (None, before - 5):
        skel.run_request("recorder", Recorder(note).load, env, read_request, arrived=arrived)
    assert call_context.request_limit() is None
    if seconds is None:
        assert limits == [None, None]
        return
    here, waited = limits
    assert here is not None
    assert before + seconds <= here <= time.monotonic() + seconds
    assert waited == before - 5 + seconds
