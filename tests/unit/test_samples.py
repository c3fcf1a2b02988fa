"""The samples in conf/: what people copy must be a configuration that the plugins take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnvnet.cni.request import Request
from cnvnet.ipam.static_ip.config import Config as AddressConfig
from cnvnet.plugins.cnv_bridge.config import Config as BridgeConfig

CONF = Path(__file__).resolve().parents[2] / "conf"


def conflist() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CONF / "vms.conflist").read_text())
    return loaded


def from_nads() -> dict[str, dict[str, Any]]:
    """The configurations in the NetworkAttachmentDefinitions, by the name of the network."""
    configs = [
        json.loads(each["spec"]["config"])
        for each in yaml.safe_load_all((CONF / "vms-nad.yaml").read_text())
    ]
    return {config["name"]: config for config in configs}


def request(config: dict[str, Any]) -> Request:
    return Request(
        command="ADD",
        container_id="pod-1",
        netns="/run/netns/pod",
        ifname="net1",
        args="IgnoreUnknown=1;VM_NAMESPACE=default;VM_NAME=vm-a;VM_UID=6f0c;VM_INTERFACE=net1",
        path="/opt/cni/bin",
        env={},
        config=config,
        raw=json.dumps(config).encode(),
        cni_version=config["cniVersion"],
        name=config["name"],
    )


@pytest.mark.parametrize("network", from_nads())
def test_a_sample_is_a_configuration_of_both_plugins(network: str) -> None:
    asked = request(from_nads()[network])
    bridge = BridgeConfig.parse(asked)
    assert bridge.network == network
    assert bridge.ipam_type == "static-ip"
    AddressConfig.parse(asked)


def test_the_conflist_and_the_nad_are_the_same_network() -> None:
    listed = conflist()
    (plugin,) = listed["plugins"]
    assert {"cniVersion": listed["cniVersion"], "name": listed["name"], **plugin} == from_nads()["vms"]
