"""Keys that no parser knows: found in every object, with what was meant; those of others are left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cnvnet.call_context import captured
from cnvnet.cni import unknown_keys
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request, parse
from cnvnet.ipam.static_ip.config import Config as AddressConfig
from cnvnet.plugins.cnv_bridge.config import Config as BridgeConfig
from cnvnet.plugins.masquerade.config import Config as MasqueradeConfig
from cnvnet.plugins.vm_bridge.config import Config as VMBridgeConfig

DOCS = Path(__file__).resolve().parents[3] / "docs"
BASE = {"cniVersion": "1.0.0", "name": "n"}
IPAM = {"type": "static-ip", "subnet": "10.1.0.0/24"}
PARSERS: dict[str, Callable[[Request], object]] = {
    "cnv-bridge": BridgeConfig.parse,
    "masquerade": MasqueradeConfig.parse,
    "vm-bridge": VMBridgeConfig.parse,
}


def said(plugin: str, config: dict[str, Any]) -> tuple[list[str], int]:
    """What an ADD of the plugin says, and how many keys it counts."""
    request = parse({"CNI_COMMAND": "ADD"}, json.dumps({**BASE, "type": plugin, **config}).encode())
    with captured() as lines:
        if plugin == "static-ip":
            AddressConfig.parse(request)
            unknown_keys.report_ipam(request.fields)
        else:
            PARSERS[plugin](request)
            own = plugin == "cnv-bridge" and request.fields.fields("ipam").text("type") == "static-ip"
            if own:
                AddressConfig.parse(request)
            unknown_keys.report(request.fields, own_ipam=own)
    return list(lines), lines.unknown_keys


def meant(path: str, key: str) -> str:
    return f'{path}: no such key, did you mean "{key}"?'


MISTYPED: list[tuple[str, dict[str, Any], str]] = [
    ("cnv-bridge", {"macspoofcheck": True}, meant("macspoofcheck", "macspoofchk")),
    ("cnv-bridge", {"vlanTrunks": []}, meant("vlanTrunks", "vlanTrunk")),
    (
        "cnv-bridge",
        {"vlanTrunk": [{"id": 3, "minId": 4, "maxID": 5, "max": 6}]},
        meant("vlanTrunk[0].max", "maxID"),
    ),
    ("cnv-bridge", {"dns": {"nameserver": []}}, meant("dns.nameserver", "nameservers")),
    ("cnv-bridge", {"ipm": IPAM}, meant("ipm", "ipam")),
    ("cnv-bridge", {"ipam": {"typ": "static-ip"}}, meant("ipam.typ", "type")),
    ("cnv-bridge", {"ipam": {"subnet": "10.1.0.0/24"}}, "ipam.subnet: no effect without ipam.type"),
    ("cnv-bridge", {"ipam": {**IPAM, "excludes": []}}, meant("ipam.excludes", "exclude")),
    ("cnv-bridge", {"frobnicate": 1}, "frobnicate: no such key"),
    ("cnv-bridge", {"strct": True}, meant("strct", "strict")),
    ("cnv-bridge", {"\x1b[2J": 1}, r"'\x1b[2J': no such key"),
    ("masquerade", {"port": [{"port": 80}]}, meant("port", "ports")),
    ("masquerade", {"ports": [{"port": 80, "proto": "UDP"}]}, meant("ports[0].proto", "protocol")),
    ("masquerade", {"portRanges": [{"start": 1, "end": 2, "frm": 3}]}, "portRanges[0].frm: no such key"),
    (
        "masquerade",
        {"guestServices": {"nameserver": ["10.0.0.1"]}},
        meant("guestServices.nameserver", "nameservers"),
    ),
    ("vm-bridge", {"lanDhpc": True}, meant("lanDhpc", "lanDHCP")),
    (
        "vm-bridge",
        {"guestServices": {"privateOptions": [{"option": 224, "value": "a", "val": 1}]}},
        meant("guestServices.privateOptions[0].val", "value"),
    ),
    (
        "static-ip",
        {"ipam": {"type": "static-ip", "range": "10.0.0.0/24", "range_strat": "10.0.0.9"}},
        meant("ipam.range_strat", "range_start"),
    ),
    (
        "static-ip",
        {"ipam": {**IPAM, "routes": [{"dst": "0.0.0.0/0", "gateway": "10.1.0.1"}]}},
        "ipam.routes[0].gateway: no such key",
    ),
    (
        "static-ip",
        {"ipam": {**IPAM, "mac": {"mode": "sticky", "prefx": "0a:63"}}},
        meant("ipam.mac.prefx", "prefix"),
    ),
    (
        "static-ip",
        {"ipam": {"type": "static-ip", "ranges": [[{"subnet": "10.1.0.0/24", "rangeStrat": "10.1.0.9"}]]}},
        meant("ipam.ranges[0][0].rangeStrat", "rangeStart"),
    ),
    (
        "static-ip",
        {"ipam": IPAM, "args": {"cni": {"vm": {"name": "a", "nmespace": "b"}}}},
        meant("args.cni.vm.nmespace", "namespace"),
    ),
    (
        "vm-bridge",
        {"args": {"cni": {"vm": {"name": "a", "rolle": "target"}}}},
        meant("args.cni.vm.rolle", "role"),
    ),
    (
        "static-ip",
        {"ipam": IPAM, "runtimeConfig": {"ipRanges": [[{"subnet": "10.2.0.0/24", "gatewy": "10.2.0.1"}]]}},
        meant("runtimeConfig.ipRanges[0][0].gatewy", "gateway"),
    ),
]


@pytest.mark.parametrize(("plugin", "config", "line"), MISTYPED, ids=lambda value: str(value)[:50])
def test_a_mistyped_key_is_said_with_what_was_meant(plugin: str, config: dict[str, Any], line: str) -> None:
    assert said(plugin, config) == ([line], 1)


def test_several_are_one_line() -> None:
    lines, count = said("cnv-bridge", {"macspoof": 1, "ipam": {**IPAM, "excludes": [], "rout": []}})
    assert lines == [
        'macspoof: no such key, did you mean "macspoofchk"?; '
        'ipam.excludes: no such key, did you mean "exclude"?; ipam.rout: no such key, did you mean "routes"?'
    ]
    assert count == 3


FOREIGN: dict[str, dict[str, Any]] = {
    "the spec's": {
        "capabilities": {"mac": True, "bandwidth": True},
        "cniVersions": ["1.0.0"],
        "disableCheck": True,
        "disableGC": False,
        "loadOnlyInlinedPlugins": False,
        "ipMasq": False,
        "args": {"cni": {"labels": [{"key": "a", "value": "b"}], "logicNetworkName": "red"}, "x": 1},
        "runtimeConfig": {
            "mac": "02:00:00:00:00:01",
            "portMappings": [],
            "dns": {"servers": ["10.0.0.1"], "searches": ["a"], "options": ["ndots:5"]},
        },
        "cni.dev/valid-attachments": [],
        "cni.dev/else": 1,
    },
    "of a device": {"deviceID": "br1", "pciBusID": "br1"},
    "of Multus' daemon": {
        "chrootDir": "/hostroot",
        "binDir": "/opt/cni/bin",
        "cniConfigDir": "/host/etc/cni/net.d",
        "cniDir": "/var/lib/cni/multus",
        "daemonSocketDir": "/run/multus",
        "logLevel": "verbose",
        "logToStderr": True,
        "multusAutoconfigDir": "/host/etc/cni/net.d",
        "multusConfigFile": "auto",
        "multusMasterCNI": "10-podnet.conf",
        "socketDir": "/host/run/multus/",
        "metricsPort": 9091,
        "perNodeCertificate": {"enabled": True},
    },
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("keys", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("plugin", [*PARSERS, "static-ip"])
def test_keys_of_others_are_none_of_ours(plugin: str, keys: dict[str, Any], strict: bool) -> None:
    ipam = {"ipam": {**IPAM, "strict": strict}} if plugin == "static-ip" else {"strict": strict}
    assert said(plugin, {**ipam, **keys}) == ([], 0)


def test_keys_are_known_in_any_case_and_null_is_none() -> None:
    assert said("cnv-bridge", {"MacSpoofChk": True, "MTU": 1500, "nonsense": None, "IPAM": IPAM}) == ([], 0)


def test_the_configuration_of_another_address_manager_is_its_own() -> None:
    assert said("cnv-bridge", {"strict": True, "ipam": {"type": "host-local", "excludes": 1}}) == ([], 0)


def test_the_plugin_above_may_have_any_keys() -> None:
    assert said("static-ip", {"master": "eth0", "dns": {"x": 1}, "strict": 7, "ipam": IPAM}) == ([], 0)


def test_keys_of_a_vms_spec_are_known_in_ports() -> None:
    ports = {"ports": [{"name": "ssh", "port": 22}], "portRanges": [{"name": "x", "start": 1, "end": 2}]}
    assert said("masquerade", ports) == ([], 0)


@pytest.mark.parametrize(
    ("plugin", "config", "keys"),
    [
        ("cnv-bridge", {"strict": True, "vlann": 3, "mtuu": 9}, ["vlann", "mtuu"]),
        ("cnv-bridge", {"strict": True, "ipam": {**IPAM, "exclud": []}}, ["ipam.exclud"]),
        ("cnv-bridge", {"ipam": {**IPAM, "strict": True, "exclud": []}}, ["ipam.exclud"]),
        ("masquerade", {"strict": True, "ports": [{"port": 1, "prt": 2}]}, ["ports[0].prt"]),
        ("vm-bridge", {"strict": True, "lan": 1}, ["lan"]),
        ("static-ip", {"ipam": {**IPAM, "strict": True, "exclud": []}}, ["ipam.exclud"]),
    ],
)
def test_strict_refuses_all_of_them(plugin: str, config: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(CNIError) as raised:
        said(plugin, config)
    assert raised.value.code == 7
    assert [part.partition(":")[0] for part in raised.value.msg.split("; ")] == keys
    assert raised.value.msg.endswith(" (strict)")


def test_an_address_managers_strictness_is_about_its_own() -> None:
    lines, _ = said("cnv-bridge", {"vlann": 3, "ipam": {**IPAM, "strict": True}})
    assert lines == ['vlann: no such key, did you mean "vlan"?']


@pytest.mark.parametrize(
    ("plugin", "config", "message"),
    [
        ("cnv-bridge", {"strict": "yes"}, "strict: expected true or false, got a string"),
        (
            "static-ip",
            {"ipam": {**IPAM, "strict": 1}},
            "ipam.strict: expected true or false, got an integer",
        ),
    ],
)
def test_strict_is_true_or_false(plugin: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CNIError) as raised:
        said(plugin, config)
    assert (raised.value.code, raised.value.msg) == (7, message)


# -- every key that is documented


def documented(page: str, begin: str, tables: int = 1) -> list[str]:
    """The keys in the first column of the first tables after a line of a page."""
    text = (DOCS / f"{page}.md").read_text().partition(begin)[2]
    # Each begins with its heading and a line of dashes, and ends with the first line that is none of it.
    found = re.findall(r"^\| key .*\n\|.*\n((?:\|.*\n)*)", text, re.MULTILINE)[:tables]
    assert len(found) == tables, page
    rows = (row for table in found for row in table.splitlines())
    return [key for row in rows for key in re.findall(r"`([A-Za-z_]+)`", row.split("|")[1])]


# The plugin, where its keys are, and what else has to be there.
PLACES: list[tuple[str, list[str], Callable[[dict[str, Any]], dict[str, Any]]]] = [
    ("cnv-bridge", documented("cnv-bridge", "## Keys"), lambda keys: keys),
    ("masquerade", documented("masquerade", "## Keys"), lambda keys: keys),
    (
        "masquerade",
        documented("masquerade", "`guestServices`"),
        lambda keys: {"guestServices": keys},
    ),
    ("vm-bridge", documented("vm-bridge", "## Keys"), lambda keys: keys),
    ("static-ip", documented("static-ip", "## Keys", tables=5), lambda keys: {"ipam": {**IPAM, **keys}}),
]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789-"


@st.composite
def slips(draw: st.DrawFn, key: str) -> str:
    """The key with one letter missing, wrong, too many, or two that have changed places."""
    at = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from(LETTERS))
    return draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1 :],
                key[:at] + letter + key[at + 1 :],
                key[:at] + letter + key[at:],
                key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
            ]
        )
    )


def test_the_pages_have_keys() -> None:
    assert [len(keys) > 4 for _, keys, _ in PLACES] == [True] * len(PLACES)
    assert {"macspoofchk", "strict"} <= set(PLACES[0][1])
    assert {"rangeStart", "exclude", "strict"} <= set(PLACES[4][1])


@given(st.data())
def test_any_slip_in_any_key_is_said_with_the_key(data: st.DataObject) -> None:
    plugin, keys, place = data.draw(st.sampled_from(PLACES))
    key = data.draw(st.sampled_from(keys))
    slip = data.draw(slips(key))
    known = {each.lower() for _, several, _ in PLACES for each in several}
    assume(slip and slip.lower() not in known | unknown_keys.FOREIGN)
    (line,), count = said(plugin, place({slip: 1}))
    assert count == 1
    assert f"{slip}: no such key, did you mean " in line
    assert f'"{key}"' in line
