"""The samples in conf/: what people copy must be a configuration that the plugins take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnvnet.call_context import captured
from cnvnet.cni import unknown_keys
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.ipam.static_ip.config import Config as AddressConfig
from cnvnet.plugins.cnv_bridge.config import Config as BridgeConfig
from cnvnet.plugins.masquerade.config import Config as MasqueradeConfig
from cnvnet.plugins.vm_bridge.config import Config as VMBridgeConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
PARSERS: dict[str, Callable[[Request], object]] = {
    "cnv-bridge": BridgeConfig.parse,
    "cnvnet-bridge": BridgeConfig.parse,
    "masquerade": MasqueradeConfig.parse,
    "vm-bridge": VMBridgeConfig.parse,
}
# In a sample beside ours.
FOREIGN = {"cnv-tuning"}
RESOURCE = "k8s.v1.cni.cncf.io/resourceName"
IDENTITY = "IgnoreUnknown=1;VM_NAMESPACE=default;VM_NAME=vm-a;VM_UID=6f0c;VM_INTERFACE=net1"


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """What Kubernetes would read, each with its file's name."""
    for path in sorted(CONF.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for _, document in documents() if document.get("kind") == kind]


def bindings() -> dict[str, dict[str, Any]]:
    """Those that are merged into KubeVirt's own object, by name."""
    patch = yaml.safe_load((CONF / "kubevirt-bindings.patch.yaml").read_text())
    found: dict[str, dict[str, Any]] = patch["spec"]["configuration"]["network"]["binding"]
    return found


def networks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each network, as a list of plugins, with the name of its file."""
    for path in sorted(CONF.glob("*.conflist")):
        yield path.name, json.loads(path.read_text())
    for file, document in documents():
        if document.get("kind") == "NetworkAttachmentDefinition":
            config = json.loads(document["spec"]["config"])
            assert config["name"] == document["metadata"]["name"]
            yield file, config if "plugins" in config else {**config, "plugins": [config]}


def calls() -> Iterator[Any]:
    """What each plugin of each network is called with."""
    for file, network in networks():
        common = {key: network[key] for key in ("cniVersion", "name")}
        for plugin in network["plugins"]:
            if plugin["type"] in FOREIGN:
                continue
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
        fields=Fields(config),
        raw=json.dumps(config).encode(),
        cni_version=config["cniVersion"],
        name=config["name"],
    )


@pytest.mark.parametrize("config", list(calls()))
def test_a_sample_is_a_configuration_of_its_plugin(config: dict[str, Any]) -> None:
    asked = request(config)
    PARSERS[config["type"]](asked)
    if config.get("ipam"):
        assert config["ipam"]["type"] == "static-ip"
        AddressConfig.parse(asked)
    with captured() as lines:
        unknown_keys.report(asked.fields, own_ipam="ipam" in config)
    assert lines == []


def test_the_first_network_of_the_readme_needs_nothing_of_the_node() -> None:
    text = (CONF.parent / "README.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    config = json.loads(yaml.safe_load(block)["spec"]["config"])
    assert not {"vlan", "vlanTrunk"} & config.keys()
    BridgeConfig.parse(request(config))
    AddressConfig.parse(request(config))


def test_every_plugin_has_a_sample() -> None:
    used = {plugin["type"] for _, network in networks() for plugin in network["plugins"]}
    assert used == {*PARSERS, *FOREIGN}


def test_every_file_is_looked_at_and_explained() -> None:
    others = [path.name for path in CONF.iterdir() if path.suffix not in (".conflist", ".yaml")]
    assert sorted(others) == ["README.md", "kustomize", "systemd"]
    readme = (CONF / "README.md").read_text()
    files = {path.name + "/" * path.is_dir() for path in CONF.iterdir()} - {"README.md"}
    assert set(re.findall(r"^\| `(\S+[./]\S*)` \|", readme, re.MULTILINE)) == files
    commands = [line for line in readme.splitlines() if line.startswith("kubectl ")]
    for path in CONF.glob("*.yaml"):
        assert any(line.endswith(f" conf/{path.name}") for line in commands), path.name


def test_every_manifest_of_kustomize_is_part_of_its_folders_list() -> None:
    for listed in CONF.glob("kustomize/**/kustomization.yaml"):
        resources = set(yaml.safe_load(listed.read_text())["resources"])
        there = {path.name for path in listed.parent.iterdir()} - {listed.name}
        assert there == {name for name in resources if not name.startswith("../")}, listed


def test_the_command_is_the_same_wherever_it_is_written() -> None:
    """An `apply` of the patch would do away with the cluster's settings."""
    command = r"kubectl -n kubevirt patch kubevirt kubevirt --type merge --patch-file (\S+)"
    for path in (CONF / "README.md", CONF / "kubevirt-bindings.patch.yaml"):
        assert re.findall(command, path.read_text()) == ["conf/kubevirt-bindings.patch.yaml"]
    assert not of_kind("KubeVirt")


def test_the_bindings_name_networks_that_are_there() -> None:
    named = {binding.get("networkAttachmentDefinition") for binding in bindings().values()} - {None}
    sampled = {
        f"{document['metadata'].get('namespace', 'default')}/{document['metadata']['name']}"
        for document in of_kind("NetworkAttachmentDefinition")
    }
    assert named
    assert named <= sampled
    assert {binding["domainAttachmentType"] for binding in bindings().values()} == {"tap"}
    readme = (CONF / "README.md").read_text()
    assert set(re.findall(r"^\| `(cnvnet-\S+)` \|", readme, re.MULTILINE)) == set(bindings())


def test_a_guest_may_move_where_its_address_is_the_same_in_every_pod() -> None:
    plugins = {network["name"]: network["plugins"][0]["type"] for _, network in networks()}
    for binding in bindings().values():
        _, _, name = binding.get("networkAttachmentDefinition", "").partition("/")
        assert ("migration" in binding) == (plugins.get(name) == "masquerade")


def test_no_binding_but_the_one_for_the_web_keeps_ports_from_the_guest() -> None:
    (masquerade,) = (network for _, network in networks() if network["name"] == "masquerade")
    assert not {"ports", "portRanges"} & set(masquerade["plugins"][0])


def test_the_virtual_machine_uses_bindings_and_networks_of_these_samples() -> None:
    (machine,) = of_kind("VirtualMachine")
    spec = machine["spec"]["template"]["spec"]
    used = {each["name"]: each["binding"]["name"] for each in spec["domain"]["devices"]["interfaces"]}
    assert set(used.values()) <= set(bindings())
    assert used.keys() == {network["name"] for network in spec["networks"]}
    joined = {network["multus"]["networkName"] for network in spec["networks"] if "multus" in network}
    assert joined <= {document["metadata"]["name"] for document in of_kind("NetworkAttachmentDefinition")}


def test_what_needs_a_bridge_with_vlans_names_the_one_that_nmstate_makes() -> None:
    """nmstate's definition is not at hand to hold it against: this is what its documentation says."""
    (policy,) = of_kind("NodeNetworkConfigurationPolicy")
    (bridge,) = policy["spec"]["desiredState"]["interfaces"]
    assert (bridge["type"], bridge["state"]) == ("linux-bridge", "up")
    (uplink,) = bridge["bridge"]["port"]
    (tags,) = (each["id-range"] for each in uplink["vlan"]["trunk-tags"])
    assert uplink["vlan"]["mode"] == "trunk"
    for document in of_kind("NetworkAttachmentDefinition"):
        config = json.loads(document["spec"]["config"])
        plugin = config.get("plugins", [config])[0]
        if "vlan" in plugin:
            assert plugin["bridge"] == bridge["name"]
            assert tags["min"] <= plugin["vlan"] <= tags["max"]
            annotation = document["metadata"]["annotations"][RESOURCE]
            assert annotation == f"bridge.network.kubevirt.io/{bridge['name']}"
