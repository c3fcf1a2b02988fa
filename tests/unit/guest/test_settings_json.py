from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.guest import settings_json
from cnvnet.guest.settings import V4, GuestRoute, Settings, checked
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT

assert MASQUERADE.v4 is not None
assert POINT_TO_POINT.v6 is not None
FULL = POINT_TO_POINT._replace(
    ntp_servers=("10.0.0.9", "time.example"),
    tftp_server="10.0.0.8",
    boot_file="pxelinux.0",
    private_options=((224, "x"), (252, "http://wpad.example/")),
    lease_seconds=3600,
    v4=V4(
        *(MASQUERADE.v4.address, MASQUERADE.v4.server, None),
        (
            GuestRoute(IPv4Network("10.8.0.0/16")),
            GuestRoute(IPv4Network("0.0.0.0/0"), IPv4Address("10.0.2.9")),
        ),
        mtu=1450,
    ),
    v6=POINT_TO_POINT.v6._replace(default_route=False, routes=(IPv6Network("fd00:8::/32"),), mtu=1400),
)


@pytest.mark.parametrize("settings", [MASQUERADE, FULL], ids=["masquerade", "everything"])
def test_settings_survive_a_record(settings: Settings) -> None:
    document = json.loads(json.dumps(settings_json.encode(settings)))
    assert settings_json.parse(document) == checked(settings)


def test_keys_of_a_newer_version_are_skipped() -> None:
    document = settings_json.encode(MASQUERADE)
    assert settings_json.parse({**document, "novelty": 1}) == checked(MASQUERADE)


def test_a_family_without_an_mtu_of_its_own_has_the_interfaces() -> None:
    document = json.loads(json.dumps(settings_json.encode(MASQUERADE)))
    for family in ("v4", "v6"):
        del document[family]["mtu"]  # as an older version wrote it
    found = settings_json.parse(document)
    assert (found.ipv4_mtu, found.ipv6_mtu) == (MASQUERADE.mtu, MASQUERADE.mtu)


def test_a_short_document_gets_the_defaults() -> None:
    assert settings_json.parse({"server_mac": "02:00:00:00:00:00"}) == Settings("02:00:00:00:00:00", 1500)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mtu": "1500"}, "mtu '1500': not a whole number"),
        ({"mtu": True}, "mtu True: not a whole number"),
        ({"search": "corp.example"}, "search 'corp.example': not a list"),
        ({"nameservers": ["x"]}, "nameservers ['x']: 'x' does not appear to be"),
        ({"private_options": [[224]]}, "private_options [[224]]: not a number and a text"),
        ({"private_options": [["224", "x"]]}, "private_options [['224', 'x']]: not a whole number"),
        ({"v4": "10.0.2.2"}, "v4 '10.0.2.2': not an object"),
        ({"v4": {"address": "10.0.2.2/33"}}, "v4 {'address': '10.0.2.2/33'}: "),
        ({"v4": {"address": "10.0.2.2/24"}}, "v4 {'address': '10.0.2.2/24'}: "),
        ({"v4": {"address": "10.0.2.2/24", "server": "10.0.2.1", "gateway": "x"}}, "gateway 'x': "),
        ({"v6": {"address": "fd00::2/64", "default_route": 1}}, "default_route 1: neither true nor false"),
        ({"neighbours": [{"address": "10.0.0.1"}]}, "neighbours 'None': not a MAC address"),
    ],
)
def test_a_value_of_the_wrong_form_is_an_error_that_names_its_key(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig) as raised:
        settings_json.parse({**settings_json.encode(MASQUERADE), **wrong})
    assert raised.value.msg.startswith(message)
