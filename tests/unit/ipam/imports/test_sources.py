"""What other address managers keep, read."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.ipam.imports.documents import Document, parse
from cnvnet.ipam.imports.sources import Given, host_local, kube_ovn, together, whereabouts


def pool(**spec: Any) -> Document:
    return Document({"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool", "spec": spec}, "p")


def test_an_address_of_whereabouts_is_a_number_of_its_range() -> None:
    entry = {"id": "c1", "podref": "a/b", "ifname": "net1"}
    (given,) = whereabouts(pool(range="fd00::1:0/112", allocations={"255": entry}), "vms")
    assert given == Given("vms", (ip_address("fd00::1:ff"),), "p: 255", "", "", "a/b", "c1", "net1")
    assert list(whereabouts(pool(range="10.0.0.0/24"), "vms")) == []


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({}, "p: spec.range"),
        ({"range": "10.0.0"}, '"10.0.0" is no subnet'),
        ({"range": "10.0.0.0/24", "allocations": {"256": {}}}, "no number of an address of 10.0.0.0/24"),
        ({"range": "10.0.0.0/24", "allocations": {"-1": {}}}, "no number of an address"),
        ({"range": "10.0.0.0/24", "allocations": []}, "p: spec.allocations"),
    ],
)
def test_what_is_wrong_in_a_pool_is_named(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        list(whereabouts(pool(**spec), "vms"))
    assert reason in caught.value.msg


def test_a_folder_of_host_local_has_files_beside_those_of_addresses() -> None:
    files = {"10.0.0.5": "c1\r\neth0", "10.0.0.6": "c2", "lock": "", "last_reserved_ip.0": "10.0.0.6"}
    (first, second) = host_local(files, "vms", "f")
    assert (first.container, first.interface, str(first.ips[0])) == ("c1", "eth0", "10.0.0.5")
    assert (second.container, second.interface) == ("c2", "")
    with pytest.raises(InvalidConfig, match=r"the file 10\.0\.0\.7 names no container"):
        list(host_local({"10.0.0.7": "\n"}, "vms", "f"))


def test_an_ip_of_kube_ovn_is_a_vms_only_if_it_says_so() -> None:
    spec = {"podName": "vm-a", "namespace": "a", "subnet": "lan", "ipAddress": "10.0.0.5,fd00::5"}
    document = Document({"spec": spec}, "i")
    given = kube_ovn(document, "", "eth0")
    assert (given.network, given.vm, given.pod, len(given.ips)) == ("lan", "", "a/vm-a", 2)
    given = kube_ovn(Document({"spec": {**spec, "podType": "VirtualMachine"}}, "i"), "vms", "net1")
    assert (given.network, given.vm, given.namespace, given.interface) == ("vms", "vm-a", "a", "net1")
    with pytest.raises(InvalidConfig, match=r"i: spec\.podName"):
        kube_ovn(Document({"spec": {}}, "i"), "", "eth0")


def test_addresses_of_one_interface_are_one_lease() -> None:
    both = [Given("n", (ip_address(ip),), ip, pod="a/b", interface="e") for ip in ("10.0.0.5", "fd00::5")]
    other = Given("n", (ip_address("10.0.0.6"),), "x", pod="a/c", interface="e")
    merged = together([both[0], other, both[1]])
    assert [len(each.ips) for each in merged] == [2, 1]


def test_documents_are_lines_of_json_or_yaml_with_lists() -> None:
    assert [each.where for each in parse('{"a": 1}\n\n{"b": 2}\n', "f")] == ["f:1", "f:3"]
    text = "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: x}\n---\nkind: Pod\napiVersion: v1\n"
    listed, alone = parse(text, "f")
    assert (listed.content, listed.where) == ({"metadata": {"name": "x"}}, "f (document 1): item x")
    assert alone.kind == "v1/Pod"
    assert parse("", "f") == []
    with pytest.raises(InvalidConfig, match=r"items\[0\] is no object"):
        parse("apiVersion: v1\nkind: List\nitems: [1]\n", "f")
