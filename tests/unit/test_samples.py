"""The samples in conf/: what people copy must be a configuration that the plugins take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnvnet.cni.request import Request
from cnvnet.ipam.static_ip.config import Config as AddressConfig
from cnvnet.plugins.cnv_bridge.config import Config as BridgeConfig
from cnvnet.plugins.masquerade.config import Config as MasqueradeConfig
from cnvnet.plugins.vm_bridge.config import Config as VMBridgeConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
PARSERS: dict[str, Callable[[Request], object]] = {
    "cnv-bridge": BridgeConfig.parse,
    "masquerade": MasqueradeConfig.parse,
    "vm-bridge": VMBridgeConfig.parse,
}
IDENTITY = "IgnoreUnknown=1;VM_NAMESPACE=default;VM_NAME=vm-a;VM_UID=6f0c;VM_INTERFACE=net1"


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """What Kubernetes would read, each with its file's name."""
    for path in sorted(CONF.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def networks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each network, as a list of plugins, with the name of its file."""
    for path in sorted(CONF.glob("*.conflist")):
        yield path.name, json.loads(path.read_text())
    for file, document in documents():
        if document["kind"] == "NetworkAttachmentDefinition":
            config = json.loads(document["spec"]["config"])
            assert config["name"] == document["metadata"]["name"]
            yield file, config if "plugins" in config else {**config, "plugins": [config]}


def calls() -> Iterator[Any]:
    """What each plugin of each network is called with."""
    for file, network in networks():
        common = {key: network[key] for key in ("cniVersion", "name")}
        for plugin in network["plugins"]:
            yield pytest.param({**common, **plugin}, id=f"{file}-{network['name']}-{plugin['type']}")


def request(config: dict[str, Any]) -> Request:
    return Request(
        command="ADD",
        container_id="pod-1",
        netns="/run/netns/pod",
        ifname="net1",
        args=IDENTITY,
        path="/opt/cni/bin",
        env={},
        config=config,
        raw=json.dumps(config).encode(),
        cni_version=config["cniVersion"],
        name=config["name"],
    )


@pytest.mark.parametrize("config", list(calls()))
def test_a_sample_is_a_configuration_of_its_plugin(config: dict[str, Any]) -> None:
    asked = request(config)
    PARSERS[config["type"]](asked)
    if "ipam" in config:
        assert config["ipam"]["type"] == "static-ip"
        AddressConfig.parse(asked)


def test_every_plugin_has_a_sample() -> None:
    used = {plugin["type"] for _, network in networks() for plugin in network["plugins"]}
    assert used == set(PARSERS)


def test_every_file_is_looked_at() -> None:
    others = [path.name for path in CONF.iterdir() if path.suffix not in (".conflist", ".yaml")]
    assert sorted(others) == ["README.md", "systemd"]


def test_the_bindings_name_networks_that_are_there() -> None:
    (kubevirt,) = (document for _, document in documents() if document["kind"] == "KubeVirt")
    bindings = kubevirt["spec"]["configuration"]["network"]["binding"]
    named = {binding.get("networkAttachmentDefinition") for binding in bindings.values()} - {None}
    there = {
        f"{document['metadata'].get('namespace', 'default')}/{document['metadata']['name']}"
        for _, document in documents()
    }
    assert named
    assert named <= there
    assert {binding["domainAttachmentType"] for binding in bindings.values()} == {"tap"}
