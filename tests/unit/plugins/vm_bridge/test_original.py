"""What a record keeps of the pod's interface, and what older ones kept."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from cnvnet.kernel.addresses import Address
from cnvnet.kernel.neighbours import Neighbour
from cnvnet.kernel.routes import Route
from cnvnet.kernel.rtnetlink import PROTOCOL_BOOT
from cnvnet.kernel.snapshots import Snapshot
from cnvnet.plugins.vm_bridge import old_record, original
from cnvnet.plugins.vm_bridge.original import Original

SNAPSHOT = Snapshot(17, (b"a", b"b"), (b"c",), (b"d",), (b"e",), (b"d",), (b"f",))
WAS = Original(2, "eth0", "0a:00:00:00:00:05", 1450, True, "uplink", "0", "1300", SNAPSHOT)
# As version 0.1's first commits wrote it.
OLD: dict[str, Any] = {
    "ifindex": 2,
    "name": "eth0",
    "mac": "0a:00:00:00:00:05",
    "mtu": 1450,
    "up": True,
    "alias": "",
    "disable_ipv6": "0",
    "addresses": [
        {
            "ifindex": 2,
            "address": text,
            "scope": scope,
            "tentative": False,
            "dad_failed": False,
            "permanent": True,
            "noprefixroute": False,
            "proto": 0,
            "broadcast": broadcast,
            "peer": None,
        }
        for text, scope, broadcast in (
            ("10.1.0.5/24", 0, "10.1.0.255"),
            ("fd99::5/64", 0, None),
            ("fe80::5/64", 253, None),
        )
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "ifindex": 2,
            "gw": "10.1.0.1",
            "table": 254,
            "priority": 50,
            "scope": 0,
            "mtu": 1300,
            "advmss": 0,
            "onlink": False,
            "protocol": 3,
            "src": "10.1.0.5",
        }
    ],
    "neighbours": [
        {
            "ifindex": 2,
            "address": "10.1.0.9",
            "mac": "02:00:00:00:00:09",
            "permanent": True,
            "proxy": False,
        }
    ],
    "heard": [],
    "bare": ["10.1.0.0/24"],
}


def test_the_record_keeps_all_of_it() -> None:
    assert original.parse(json.loads(json.dumps(original.encode(WAS)))) == WAS


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        {},
        {"ifindex": "x"},
        {**original.encode(WAS), "snapshot": {"at": 1}},
        {**original.encode(WAS), "snapshot": {"at": 1, **{name: ["x"] for name in Snapshot._fields[1:]}}},
        {**OLD, "routes": 1},
    ],
)
def test_a_damaged_record_is_none(damaged: object) -> None:
    assert original.parse(damaged) is None


def test_an_older_record_is_understood() -> None:
    was = original.parse(OLD)
    assert was is not None
    known = original.known(was)
    assert known.addresses == (
        Address(2, ip_interface("10.1.0.5/24"), broadcast=IPv4Address("10.1.0.255")),
        Address(2, ip_interface("fd99::5/64")),
        Address(2, ip_interface("fe80::5/64"), 253),
    )
    gw, src = ip_address("10.1.0.1"), ip_address("10.1.0.5")
    assert known.routes == (
        Route(ip_network("0.0.0.0/0"), 2, gw, 254, 50, 0, 1300, 0, False, PROTOCOL_BOOT, src),
    )
    assert known.neighbours == (Neighbour(2, ip_address("10.1.0.9"), "02:00:00:00:00:09"),)
    assert (
        was.missing_connected_routes
        == old_record.missing_connected_routes(OLD)
        == (ip_network("10.1.0.0/24"),)
    )
