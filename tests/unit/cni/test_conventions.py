"""What a runtime adds to a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.cni.conventions import capability_ips, requested_mac, valid_attachments
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields

FROM_RUNTIME = {"runtimeConfig": {"mac": "02:00:00:00:00:03"}}
FROM_ARGS = {"args": {"cni": {"mac": "02:00:00:00:00:02"}}}
FROM_CNI_ARGS = {"MAC": "02-00-00-00-00-01"}


def test_the_runtimes_mac_beats_args_and_args_beat_cni_args() -> None:
    assert requested_mac(Fields({**FROM_RUNTIME, **FROM_ARGS}), FROM_CNI_ARGS) == (
        "02:00:00:00:00:03",
        "runtimeConfig.mac",
    )
    assert requested_mac(Fields(FROM_ARGS), FROM_CNI_ARGS) == ("02:00:00:00:00:02", "args.cni.mac")
    assert requested_mac(Fields({}), FROM_CNI_ARGS) == ("02:00:00:00:00:01", "CNI_ARGS MAC")
    assert requested_mac(Fields({}), {}) == ("", "")


def test_the_reference_suites_spelling_of_runtime_config_is_read() -> None:
    config = Fields({"RuntimeConfig": {"mac": "02:00:00:00:00:03"}})
    assert requested_mac(config, {}).mac == "02:00:00:00:00:03"


@pytest.mark.parametrize(
    ("config", "args", "where"),
    [
        ({"runtimeConfig": {"mac": "x"}}, {}, "runtimeConfig.mac: "),
        ({"args": {"cni": {"mac": "ff:ff:ff:ff:ff:ff"}}}, {}, "args.cni.mac: "),
        ({}, {"MAC": "00:00:00:00:00:00"}, "CNI_ARGS MAC: "),
    ],
)
def test_a_mac_no_interface_can_have_is_refused_by_its_key(
    config: dict[str, Any], args: dict[str, str], where: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        requested_mac(Fields(config), args)
    assert caught.value.msg.startswith(where)


def test_capabilities_are_read() -> None:
    config = Fields({"runtimeConfig": {"ips": ["10.0.0.1/24"]}})
    assert capability_ips(config) == ("10.0.0.1/24",)
    assert capability_ips(Fields({})) == ()


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_valid_attachments_are_read_under_either_key(key: str) -> None:
    config = Fields({key: [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]})
    assert valid_attachments(config) == {("a", "eth0"), ("b", "net1")}


def test_an_attachment_under_either_key_is_kept() -> None:
    one, other = {"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth0"}
    config = Fields({"cni.dev/valid-attachments": [one], "cni.dev/attachments": [other]})
    assert valid_attachments(config) == {("a", "eth0"), ("b", "eth0")}


def test_no_list_and_an_empty_list_are_distinguished() -> None:
    assert valid_attachments(Fields({})) is None
    assert valid_attachments(Fields({"cni.dev/valid-attachments": None})) is None
    assert valid_attachments(Fields({"cni.dev/valid-attachments": []})) == set()


def test_an_attachment_without_its_name_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"^cni\.dev/valid-attachments\[0\]: containerID and ifname"):
        valid_attachments(Fields({"cni.dev/valid-attachments": [{"containerID": "a"}]}))
