"""The key guestServices: what each of its keys becomes, and whose word counts."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.cni.result import DNS
from cnvnet.guest.options import GuestOptions
from cnvnet.guest.settings import LEASE_SECONDS, V4, Settings

NETWORK = Settings(
    server_mac="02:00:00:00:00:00",
    mtu=1500,
    v4=V4(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1"), IPv4Address("10.0.2.1")),
)


def parse(**keys: Any) -> GuestOptions:
    return GuestOptions.parse(Fields({"guestServices": keys}))


def test_without_the_key_guests_are_served_if_there_is_an_agent() -> None:
    assert GuestOptions.parse(Fields({})) == GuestOptions(enabled=True, required=False)
    assert GuestOptions.parse(Fields({"guestServices": None})) == GuestOptions(enabled=True, required=False)


def test_with_the_key_they_have_to_be_served_unless_it_says_no() -> None:
    assert parse() == GuestOptions(enabled=True, required=True)
    assert parse(enabled=False) == GuestOptions(enabled=False, required=False)


def test_every_key_reaches_the_guest() -> None:
    settings = parse(
        hostname="vm1",
        nameservers=["10.96.0.10", "fd00::a"],
        search=["default.svc.cluster.local"],
        ntpServers=["10.0.0.3"],
        tftpServerName="tftp.example",
        bootFileName="pxelinux.0",
        privateOptions=[{"option": 240, "value": "x"}],
        leaseSeconds=3600,
    ).complete(NETWORK, dns=DNS(nameservers=("192.0.2.1",), search=("other",)), hostname="other")
    assert settings._replace(v4=NETWORK.v4) == NETWORK._replace(
        hostname="vm1",
        nameservers=(IPv4Address("10.96.0.10"), IPv6Address("fd00::a")),
        search=("default.svc.cluster.local",),
        ntp_servers=("10.0.0.3",),
        tftp_server="tftp.example",
        boot_file="pxelinux.0",
        private_options=((240, "x"),),
        lease_seconds=3600,
    )


def test_the_runtimes_dns_beats_the_networks() -> None:
    runtime = {"dns": {"servers": ["10.96.0.10"], "searches": ["svc.cluster.local"]}}
    dns = DNS(nameservers=("192.0.2.1", "127.0.0.53"), domain="example.org")
    settings = GuestOptions.parse(Fields({"runtimeConfig": runtime})).complete(NETWORK, dns=dns)
    assert settings.nameservers == (IPv4Address("10.96.0.10"),)
    assert settings.search == ("svc.cluster.local",)
    settings = GuestOptions.parse(Fields({})).complete(NETWORK, dns=dns, hostname="vm1")
    assert settings.nameservers == (IPv4Address("192.0.2.1"),)
    assert (settings.search, settings.hostname) == (("example.org",), "vm1")
    assert settings.lease_seconds == LEASE_SECONDS


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"enabled": 1}, "guestServices.enabled: expected true or false"),
        ({"hostname": "a b"}, 'guestServices.hostname: "a b" is not a host name'),
        ({"nameservers": ["dns"]}, r'guestServices.nameservers\[0\]: "dns" is not an IP address'),
        ({"nameservers": "10.0.0.1"}, "guestServices.nameservers: expected a list of strings"),
        ({"search": [1]}, r"guestServices.search\[0\]: expected a string"),
        ({"ntpServers": {}}, "guestServices.ntpServers: expected a list of strings"),
        ({"tftpServerName": "é"}, "guestServices.tftpServerName: .* is not up to 255 printable"),
        ({"bootFileName": "b" * 256}, "guestServices.bootFileName: .* is not up to 255 printable"),
        ({"leaseSeconds": 59}, "guestServices.leaseSeconds: 59 is not between"),
        ({"privateOptions": [{"value": "x"}]}, r"guestServices.privateOptions\[0\].option: required"),
        ({"privateOptions": [{"option": 240}]}, r"guestServices.privateOptions\[0\].value: required"),
        (
            {"privateOptions": [{"option": 3, "value": "x"}]},
            r"guestServices.privateOptions\[0\].option: 3 is",
        ),
        (
            {"privateOptions": [{"option": 240, "value": "x"}] * 2},
            r"guestServices.privateOptions\[1\].option: 240 is given twice",
        ),
        (
            {"privateOptions": [{"option": 240, "value": "é" * 128}]},
            r"guestServices.privateOptions\[0\].value: longer than 255 bytes",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{message}"):
        parse(**keys)


def test_the_key_itself_has_to_be_an_object() -> None:
    with pytest.raises(InvalidConfig, match=r"^guestServices: expected an object, got a list"):
        GuestOptions.parse(Fields({"guestServices": []}))
