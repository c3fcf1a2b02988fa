"""Whatever stands on stdin: one error object of CNI or success, never a traceback, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnvnet.cni import skel
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.plugins.cnv_bridge.config import Config, DeleteConfig
from tests.functional.bridge.bridge_network import OURS, ruleset
from tests.harness import VERSIONS, Node

WORDS = (
    "name cniVersion bridge isGateway isDefaultGateway forceAddress ipMasq ipMasqBackend mtu hairpinMode "
    "promiscMode vlan vlanTrunk preserveDefaultVlan compat macspoofchk ipspoofchk dhcpGuard raGuard "
    "enabledad disableContainerInterface portIsolation ipam dns args runtimeConfig prevResult capabilities "
    "type cni mac id minID maxID nameservers domain search options interfaces ips routes address gateway "
    "dst gw sandbox cni.dev/valid-attachments cni.dev/attachments containerID ifname subnet ranges"
)
KEYS = WORDS.split()
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-5, 5000),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [*VERSIONS, "static-ip", "v1.5", "nftables", "10.0.0.1/24", "02:00:00:00:00:01", "eth0"]
    ),
)
keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS).map(str.upper), st.text(max_size=6))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
changes = st.dictionaries(keys, values, max_size=5)
commands = st.sampled_from(["ADD", "ADD", "CHECK", "DEL", "GC", "STATUS"])
BASE = {"cniVersion": "1.1.0", "name": "net", "type": OURS, "bridge": "bridge0"}
documents = st.one_of(
    changes.map(lambda change: json.dumps(BASE | change).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
)


class Parser:
    """The plugin reduced to what reads its configuration."""

    name = OURS

    def add(self, request: Request) -> Result:
        Config.parse(request)
        return Result()

    def check(self, request: Request) -> None:
        Config.parse(request)

    def status(self, request: Request) -> None:
        Config.parse(request)

    def delete(self, request: Request) -> None:
        DeleteConfig.parse(request)

    def gc(self, request: Request) -> None:
        DeleteConfig.parse(request)

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        return ()


def parser(_env: Mapping[str, str]) -> Parser:
    return Parser()


def assert_well_formed(code: int, stdout: str, stderr: str) -> None:
    """An exit status, an output and diagnostics as the spec has them."""
    assert "Traceback" not in stderr
    assert all(line.startswith(f"{OURS}: ") for line in stderr.splitlines()), stderr
    if code == 0:
        return
    assert code == 1
    error: dict[str, Any] = json.loads(stdout)
    assert isinstance(error["code"], int)
    assert error["code"] > 0
    assert error["msg"]
    assert "\n" not in error["msg"]
    assert "internal error" not in error["msg"]
    assert set(error) <= {"cniVersion", "code", "msg", "details"}


@settings(max_examples=600, deadline=None)
@given(
    commands, documents, st.sampled_from(["", "MAC=02:00:00:00:00:01", "IgnoreUnknown=1;A=B", "A", "=;="])
)
def test_the_parser_accepts_or_refuses_anything(command: str, document: bytes, args: str) -> None:
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "dummy-0",
        "CNI_NETNS": "/no/such/netns",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": args,
        "CNI_PATH": "/no/such/folder",
    }
    response = skel.run(OURS, parser, env, lambda: document)
    assert_well_formed(response.exit, response.stdout.decode(), response.stderr.decode())


@settings(max_examples=200, deadline=None)
@given(changes)
def test_what_the_parser_accepts_is_within_its_limits(change: dict[str, Any]) -> None:
    request = Request(
        command="ADD",
        container_id="dummy-0",
        netns="/no/such/netns",
        ifname="eth0",
        args="",
        path="",
        env={},
        fields=Fields(BASE | change),
        raw=b"",
        cni_version="1.1.0",
        name="net",
    )
    try:
        config = Config.parse(request)
    except CNIError:
        return
    assert 0 <= config.vlan <= 4094
    assert config.mtu == 0 or 68 <= config.mtu <= 65535
    assert 0 < len(config.bridge.encode()) < 16
    assert "/" not in config.bridge
    for first, last in config.trunk or ():
        assert 1 <= first <= last <= 4094
    assert not (config.hairpin_mode and config.promisc_mode)
    assert not (config.ipam_type and config.disable_container_interface)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands, documents)
def test_the_executable_does_the_same_and_changes_nothing(
    node: Node, tmp_path: Path, command: str, document: bytes
) -> None:
    # There is no namespace to attach to and no address manager, so nothing can come of any of it.
    outcome = node.cni(
        OURS, command, document, "/no/such/netns", cni_path=str(tmp_path / "nothing"), unknown_keys=True
    )
    assert_well_formed(outcome.code, outcome.stdout, outcome.stderr)
    if command in ("ADD", "CHECK"):
        assert outcome.code == 1
    assert list(node.links()) == ["lo"]
    assert ruleset(node) == ""
    assert list(node.rundir.rglob("attachments/*.json")) == []
