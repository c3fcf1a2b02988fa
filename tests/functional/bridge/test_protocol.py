"""A malformed call is refused as the reference refuses it: same code, same text, same fault first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import OURS, REFERENCE, Network, ports
from tests.harness import VERSIONS, Node, Outcome, Sandbox

UNSET = "\0"
IFNAME = {"code": 4, "msg": "interface name contains / or : or whitespace characters"}
TOO_LONG = {
    "code": 4,
    "msg": "interface name is too long",
    "details": "interface name should be less than 16 characters",
}


def refused(outcome: Outcome) -> dict[str, Any]:
    """The error object without the version, which the spec wants and the reference leaves out."""
    error = outcome.error()
    error.pop("cniVersion", None)
    return error


def call(node: Node, program: str, config: dict[str, Any] | str | bytes = "", **env: str) -> Outcome:
    command = env.pop("CNI_COMMAND", "ADD")
    return node.cni(program, command, config or Network(node, program).config, "/no/such/netns", env=env)


MISSING = [
    ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
    ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
    ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
    ("GC", ["CNI_PATH"]),
    ("STATUS", ["CNI_PATH"]),
]


@pytest.mark.parametrize("value", [UNSET, ""], ids=["unset", "empty"])
@pytest.mark.parametrize(("command", "names"), MISSING)
def test_missing_variables_are_listed(
    node: Node, program: str, command: str, names: list[str], value: str
) -> None:
    for missing in ([names[-1]], names):
        outcome = call(node, program, CNI_COMMAND=command, **dict.fromkeys(missing, value))
        assert refused(outcome) == {
            "code": 4,
            "msg": f"required env variables [{','.join(missing)}] missing",
        }


@pytest.mark.parametrize(
    "container_id", ["a/b", "../x", ".x", "-x", "_x", "a b", "a\n", "ä", "a:b"], ids=repr
)
def test_a_malformed_container_id(node: Node, program: str, container_id: str) -> None:
    expected = {"code": 4, "msg": "invalid characters in containerID", "details": container_id}
    assert refused(call(node, program, CNI_CONTAINERID=container_id)) == expected


@pytest.mark.parametrize(
    ("ifname", "expected"),
    [
        ("a" * 16, TOO_LONG),
        ("ä" * 8, TOO_LONG),
        (".", {"code": 4, "msg": "interface name is . or .."}),
        ("..", {"code": 4, "msg": "interface name is . or .."}),
        ("a/b", IFNAME),
        ("a:b", IFNAME),
        ("a b", IFNAME),
        ("eth0\n", IFNAME),
        ("a\u00a0b", IFNAME),
        ("a\u2003b", IFNAME),
    ],
    ids=lambda value: repr(value) if isinstance(value, str) else "",
)
def test_a_malformed_interface_name(node: Node, program: str, ifname: str, expected: dict[str, Any]) -> None:
    assert refused(call(node, program, CNI_IFNAME=ifname)) == expected


@pytest.mark.parametrize("ifname", ["all", "default", "eth%d"])
def test_interface_names_that_mean_something_else_are_refused(
    node: Node, pod: Sandbox, program: str, ifname: str
) -> None:
    network = Network(node, program)
    error = network.add(pod, ifname=ifname).error()
    if program == OURS:
        assert (error["code"], ifname in error["msg"], "CNI_IFNAME" in error["msg"]) == (4, True, True)
        assert list(node.links()) == ["lo"]
    assert pod.link(ifname) is None


@pytest.mark.parametrize("ifname", ["a", "a" * 15, "eth0.100", "-", "ä", "all-1"], ids=repr)
def test_interface_names_that_are_fine(node: Node, pod: Sandbox, program: str, ifname: str) -> None:
    network = Network(node, program)
    network.add(pod, ifname=ifname).ok()
    assert pod.link(ifname) is not None
    network.delete(pod, ifname=ifname).ok()
    assert pod.link(ifname) is None


@pytest.mark.parametrize("container_id", ["a" * 64, "A.b_c-d", "0", "a" * 200], ids=lambda text: text[:8])
def test_container_ids_that_are_fine(node: Node, pod: Sandbox, program: str, container_id: str) -> None:
    network = Network(node, program, macspoofchk=len(container_id) <= 64)
    network.add(pod, container_id=container_id).ok()
    network.delete(pod, container_id=container_id).ok()
    assert ports(node) == []


@pytest.mark.parametrize("name", ["a/b", "../x", ".x", "a b", "net\n", "ä", " "], ids=repr)
def test_a_malformed_network_name(node: Node, program: str, name: str) -> None:
    expected = {"code": 7, "msg": "invalid characters found in network name", "details": name}
    assert refused(call(node, program, Network(node, program, name=name).config)) == expected


@pytest.mark.parametrize("name", ["", None], ids=["empty", "null"])
def test_a_missing_network_name(node: Node, program: str, name: str | None) -> None:
    expected = {"code": 7, "msg": "missing network name"}
    assert refused(call(node, program, Network(node, program, name=name).config)) == expected


@pytest.mark.parametrize("command", ["FOO", "add", "ADD ", "VERSIONS"])
def test_an_unknown_command(node: Node, program: str, command: str) -> None:
    outcome = call(node, program, CNI_COMMAND=command)
    assert refused(outcome) == {"code": 4, "msg": f"unknown CNI_COMMAND: {command}"}


def test_a_bad_configuration_is_complained_about_before_an_unknown_command(node: Node, program: str) -> None:
    assert refused(call(node, program, "{", CNI_COMMAND="FOO"))["code"] == 6
    assert refused(call(node, program, {"cniVersion": "9"}, CNI_COMMAND="FOO"))["code"] == 7


def test_a_bad_interface_name_is_complained_about_before_what_is_missing(node: Node, program: str) -> None:
    outcome = call(node, program, CNI_IFNAME="a/b", CNI_CONTAINERID=UNSET)
    assert refused(outcome) == IFNAME


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        '{"name": "x"} x',
        '{"name": "x"}{}',
        "[]",
        '"text"',
        "5",
        "{'name': 'x'}",
        "\ufeff{}",
        "{,}",
    ],
    ids=repr,
)
def test_standard_input_that_is_no_json_object(node: Node, program: str, text: str) -> None:
    outcome = node.cni(program, "ADD", text.encode() or b" ", "/no/such/netns")
    error = refused(outcome)
    assert error["code"] == 6
    assert error["msg"].startswith("error unmarshall network config: ")


def test_standard_input_with_nothing_in_it(node: Node, program: str) -> None:
    error = refused(node.cni(program, "ADD", b"", "/no/such/netns"))
    assert error == {"code": 6, "msg": "error unmarshall network config: unexpected end of JSON input"}


@pytest.mark.parametrize("version", ["0.0.9", "0.5.0", "1.2.0", "2.0.0", "999.0.0"])
def test_an_unknown_version_is_refused(node: Node, program: str, version: str) -> None:
    error = refused(call(node, program, Network(node, program, version).config))
    supported = " ".join(f'"{known}"' for known in VERSIONS)
    details = f'config is "{version}", plugin supports [{supported}]'
    assert error == {"code": 1, "msg": "incompatible CNI versions", "details": details}


@pytest.mark.parametrize("command", ["CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("version", ["x", "1.x", "1.1.0.0.x"])
def test_a_version_that_is_none(node: Node, program: str, command: str, version: str) -> None:
    error = refused(call(node, program, Network(node, program, version).config, CNI_COMMAND=command))
    assert error["code"] == 6


def test_no_version_at_all_means_the_first(node: Node, pod: Sandbox, program: str) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.1.2.3/24"}]}
    network = Network(node, program, ipam=ipam)
    del network.config["cniVersion"]
    result = network.add(pod).ok()
    assert result["cniVersion"] == "0.1.0"
    assert result["ip4"]["ip"] == "10.1.2.3/24"


@pytest.mark.parametrize(
    "stdin", [b"", b"not json", b'{"cniVersion": "0.4.0"}'], ids=["none", "garbage", "old"]
)
def test_the_version_command_prints_the_references_very_bytes(node: Node, stdin: bytes) -> None:
    outcomes = [node.cni(program, "VERSION", stdin) for program in (REFERENCE, OURS)]
    assert outcomes[0] == outcomes[1]
    assert json.loads(outcomes[1].stdout)["supportedVersions"] == list(VERSIONS)


def test_without_a_command_it_says_what_it_is(node: Node, program: str) -> None:
    outcome = node.cni(program, "", "", env={"CNI_COMMAND": UNSET})
    assert (outcome.code, outcome.stdout) == (0, "")
    first, second = outcome.stderr.splitlines()
    assert first.startswith(f"CNI {program} plugin")
    assert second == f"CNI protocol versions supported: {', '.join(VERSIONS)}"


def test_a_refused_call_makes_nothing(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program)
    for container_id, ifname in (("a/b", "eth0"), ("dummy-0", "a/b"), ("", "eth0")):
        network.add(pod, container_id=container_id, ifname=ifname).error()
    assert list(node.links()) == ["lo"]
    assert list(pod.links()) == ["lo"]
