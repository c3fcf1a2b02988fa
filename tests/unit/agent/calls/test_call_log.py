"""The line about a call: read from documents of every shape, written at the level that is due."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.agent.calls import call_log
from cnvnet.agent.calls.call_log import FinishedCall
from cnvnet.cni.errors import CNIError
from cnvnet.cni.skel import Response
from cnvnet.resident import log

RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": "veth0", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/x"},
    ],
    "ips": [{"address": "10.1.0.5/24", "interface": 2}, {"address": "fd00::5/64"}],
}
ADDED = Response(0, json.dumps(RESULT).encode(), b"")
REFUSED = Response(1, b"{}", b"", error=CNIError(7, "bridge: required", "see docs"))
DONE = Response(0, b"", b"")
KUBERNETES = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=p;K8S_POD_UID=u"
CALL: Mapping[str, object] = {"plugin": "cnv-bridge", "network": "net1", "container": "c1", "ifname": "eth0"}


def a_call(response: Response = DONE, command: str = "ADD", args: str = "", **config: Any) -> FinishedCall:
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_ARGS": args}
    return FinishedCall("cnv-bridge", env, {"name": "net1", **config}, response, 0.0123, 0.0004)


def test_an_add_says_what_it_has_made() -> None:
    assert call_log.describe(a_call(ADDED, args=KUBERNETES)) == {
        **CALL,
        "command": "ADD",
        "pod": "prod/p",
        "ip": "10.1.0.5,fd00::5",
        "mac": "02:00:00:00:00:03",
    }


def test_the_vm_of_a_pod_is_the_one_that_the_plugin_knows() -> None:
    described = call_log.describe(a_call(ADDED._replace(vm="prod/vm-a"), args=KUBERNETES))
    assert (described["pod"], described["vm"]) == ("prod/p", "prod/vm-a")


def test_a_vm_is_named_and_a_del_knows_what_was_there() -> None:
    call = a_call(command="DEL", prevResult=RESULT, args="VM_NAMESPACE=a;VM_NAME=b")
    described = call_log.describe(call)
    assert (described["vm"], described["ip"]) == ("a/b", "10.1.0.5,fd00::5")
    assert described["mac"] == "02:00:00:00:00:03"


def test_a_result_of_the_oldest_version_is_read() -> None:
    old = {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/24"}, "ip6": {"ip": "fd00::5/64"}}
    described = call_log.describe(a_call(Response(0, json.dumps(old).encode(), b"")))
    assert described["ip"] == "10.1.0.5,fd00::5"


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b"\xff", b'{"ips": [[3]], "interfaces": {"a": 1}}'])
def test_an_odd_document_has_nothing_to_say(document: bytes) -> None:
    call = a_call(Response(0, document, b""))._replace(config={})
    assert call_log.describe(call) == {
        name: value for name, value in {**CALL, "command": "ADD"}.items() if name != "network"
    }


@given(
    document=st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["name", "ips", "args", "cni", "vm", "interfaces", "prevResult"]), inner
            )
        ),
    )
)
def test_any_document_is_described(document: Any) -> None:
    content = json.dumps(document).encode()
    config = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    described = call_log.describe(a_call(Response(0, content, b""))._replace(config=config))
    assert all(isinstance(value, str) and value for value in described.values())


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (DONE, (0, "")),
        (REFUSED, (7, "bridge: required; see docs")),
        # A delegate's error may have any number.
        (Response(1, b"{}", b"", error=CNIError(0, "x")), (999, "x")),
        (Response(1, b"{}", b"", error=CNIError(100000, "x")), (999, "x")),
    ],
)
def test_the_error_is_that_of_the_answer(response: Response, error: tuple[int, str]) -> None:
    call = a_call(response)
    assert (call.code, call.error) == error


@pytest.mark.parametrize(
    ("command", "response", "level", "written"),
    [
        ("ADD", ADDED, "info", ["info"]),
        ("GC", DONE, "info", ["info"]),
        ("STATUS", DONE, "info", []),
        ("STATUS", DONE, "debug", ["debug"]),
        ("ADD", ADDED, "warning", []),
        ("ADD", REFUSED, "error", ["warning"]),
        ("STATUS", REFUSED, "error", ["warning"]),
        ("ADD", ADDED._replace(stderr=b"cnv-bridge: macspoofcheck: no such key\n"), "warning", ["warning"]),
    ],
)
def test_a_failure_is_written_at_every_level(
    command: str, response: Response, level: str, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(level, "json")
    call_log.write(a_call(response, command))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == written
    if response is REFUSED:
        assert (lines[0]["msg"], lines[0]["code"]) == ("call", 7)
        assert lines[0]["error"] == "bridge: required; see docs"
    if response.stderr:
        assert (lines[0]["said"], lines[0]["network"]) == ("cnv-bridge: macspoofcheck: no such key", "net1")
