"""Configuration lists and what each plugin gets of them."""

from __future__ import annotations

import json
from ipaddress import IPv4Interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.netconflist import NetConfList, parse, plugin_config
from cnvnet.cni.result import IP, Result
from tests.unit.cni.test_fields import JSON

BRIDGE = {"type": "cnv-bridge", "bridge": "br1", "capabilities": {"mac": True, "ips": False}}
LIST: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "plugins": [BRIDGE, {"type": "tuning"}]}


def of(**changed: Any) -> NetConfList:
    return parse(json.dumps({**LIST, **changed}).encode())


def test_a_list_is_read() -> None:
    network = of()
    assert (network.name, network.cni_version) == ("net", "1.0.0")
    assert [plugin["type"] for plugin in network.plugins] == ["cnv-bridge", "tuning"]
    assert (network.disable_check, network.disable_gc, network.load_only_inlined_plugins) == (False,) * 3


@pytest.mark.parametrize("value", [True, "true", "TRUE", "True"])
def test_switches_may_be_strings(value: object) -> None:
    network = of(disableCheck=value, disableGC=value, loadOnlyInlinedPlugins=value)
    assert (network.disable_check, network.disable_gc, network.load_only_inlined_plugins) == (True,) * 3
    assert of(disableCheck="false").disable_check is False


@pytest.mark.parametrize(
    ("single", "several", "expected"),
    [
        ("0.4.0", ["0.3.1", "1.0.0"], "1.0.0"),
        ("1.1.0", ["0.3.1", "1.0.0"], "1.1.0"),
        ("1.0.0", ["9.0.0", "0.4.0"], "1.0.0"),
        ("", ["9.0.0", "1.1.0"], "1.1.0"),
        ("", ["9.0.0"], "0.1.0"),
        ("", [], "0.1.0"),
        ("0.4.0", [], "0.4.0"),
    ],
)
def test_the_highest_version_that_we_speak_is_taken(single: str, several: list[str], expected: str) -> None:
    assert of(cniVersion=single, cniVersions=several).cni_version == expected


def test_a_single_plugins_file_is_a_list_of_one() -> None:
    network = parse(b'{"cniVersion": "0.3.1", "name": "net", "type": "cnv-bridge", "bridge": "br1"}')
    assert len(network.plugins) == 1
    assert json.loads(plugin_config(network, network.plugins[0]))["bridge"] == "br1"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "no name"),
    ({"name": 5}, "invalid name: an integer"),
    ({"plugins": []}, "no plugins in list"),
    ({"plugins": None}, "no plugins in list"),
    ({"plugins": {}}, "plugins: expected a list of objects, got an object"),
    ({"plugins": [{}]}, "plugins[0].type: required"),
    ({"plugins": [{"type": 1}]}, "plugins[0].type: expected a string, got an integer"),
    ({"disableGC": 1}, "disableGC: expected true or false, got an integer"),
    ({"disableGC": "yes"}, "disableGC: expected true or false, got a string"),
    ({"cniVersion": 1}, "cniVersion: expected a string, got an integer"),
    ({"cniVersions": "1.0.0"}, "cniVersions: expected a list of strings, got a string"),
    ({"cniVersions": ["x"]}, 'invalid cniVersions entry: failed to convert major version part "x"'),
]


@pytest.mark.parametrize(("changed", "msg"), REFUSED)
def test_what_is_no_list_is_refused(changed: dict[str, Any], msg: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        of(**changed)
    assert msg in caught.value.msg


def test_inlined_plugins_only_and_none_of_them_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"`loadOnlyInlinedPlugins` is true, and no 'plugins' key"):
        parse(b'{"name": "net", "loadOnlyInlinedPlugins": true}')
    assert parse(b'{"name": "net"}').plugins == ()


def test_a_plugin_gets_name_version_result_and_its_capabilities() -> None:
    previous = Result(ips=(IP(IPv4Interface("10.0.0.5/24")),))
    network = of()
    raw = plugin_config(
        network,
        network.plugins[0],
        previous=previous,
        capability_args={"mac": "02:00:00:00:00:01", "ips": ["10.0.0.9/24"], "other": 1},
    )
    assert json.loads(raw) == {
        **BRIDGE,
        "name": "net",
        "cniVersion": "1.0.0",
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]},
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
    }


def test_nothing_is_added_that_was_not_given() -> None:
    network = of()
    assert json.loads(plugin_config(network, network.plugins[1], capability_args={"mac": "x"})) == {
        "type": "tuning",
        "name": "net",
        "cniVersion": "1.0.0",
    }


def test_gc_gets_the_list_under_both_keys_and_an_empty_one_too() -> None:
    network = of()
    listed = [{"containerID": "a", "ifname": "eth0"}]
    document = json.loads(plugin_config(network, network.plugins[1], valid_attachments=[("a", "eth0")]))
    assert document["cni.dev/valid-attachments"] == document["cni.dev/attachments"] == listed
    document = json.loads(plugin_config(network, network.plugins[1], valid_attachments=[]))
    assert document["cni.dev/valid-attachments"] == document["cni.dev/attachments"] == []


KEYS = (*LIST, "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "type")


@given(document=st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda changed: {**LIST, **changed}) | JSON)
def test_any_json_is_a_list_or_refused(document: object) -> None:
    code = 7
    try:
        network = parse(json.dumps(document).encode())
    except InvalidConfig as e:
        code = e.code
    else:
        for plugin in network.plugins:
            plugin_config(network, plugin, capability_args={"mac": "x"})
    assert code == 7
