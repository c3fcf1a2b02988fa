"""cnvctl leases export and import: between stores, and from what other address managers keep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnvnet.kube.resources import (
    INSTANCES,
    IP_NETWORKS,
    KUBE_OVN_IPS,
    PODS,
    VIRTUAL_MACHINES,
    VM_LEASES,
    WHEREABOUTS_POOLS,
    Resource,
)
from tests.fakes.api_server import ApiServer, refuse
from tests.fakes.kubernetes_store import disagreements
from tests.fakes.launchers import Launchers
from tests.unit.cli.lease_node import Node as Folders
from tests.unit.cli.test_leases_cluster import Cluster
from tests.unit.ipam.store.conformance import a_pool
from tests.unit.ipam.store.nodes import leases, reserved

SHORTEST = {"format": "cnvnet.io/lease/v1", "network": "many", "namespace": "default", "vm": "vm-a"} | {
    "interface": "eth0",
    "ips": ["10.60.0.2"],
}


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path) -> Iterator[Cluster]:
    yield Cluster(server, tmp_path)
    assert disagreements(server) == []


def lines(*documents: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(each)}\n" for each in documents)


def written(folder: Path, text: str) -> str:
    (folder / "leases.jsonl").write_text(text)
    return str(folder / "leases.jsonl")


def test_what_is_exported_is_imported_as_it_was(node: Folders, tmp_path: Path) -> None:
    node.add("vm-a", cooldown=60)
    node.add("vm-b")
    node.delete("vm-b")
    node.add("", container="c0ffee")
    done = node.cnvctl("leases", "export", "--network", "many")
    assert done.stderr == "cnvctl: left out, of containers that are no VMs: 1\n"
    other = Folders(tmp_path / "other")
    file = written(tmp_path, done.stdout)
    dry = other.cnvctl("leases", "import", file, "--dry-run").stdout
    assert dry.splitlines()[-1] == "network many: would import 2, there already 0"
    assert other.leases() == []
    text = other.cnvctl("leases", "import", file).stdout
    assert text == dry.replace("would import", "imported")
    kept = ("network", "vm", "ips", "mac", "vmUID", "source", "release", "cooldownSeconds", "since")
    before = [{key: each[key] for key in kept} for each in node.leases() if each["vm"]]
    assert [{key: each[key] for key in kept} for each in other.leases()] == before
    again = other.cnvctl("leases", "import", file).stdout
    assert again == "network many: imported 0, there already 2\n"
    assert other.cnvctl("leases", "export").stdout == done.stdout


def test_an_import_that_conflicts_changes_nothing_and_says_all_of_it(node: Folders, tmp_path: Path) -> None:
    (ip,) = node.add("vm-a")
    free = next(f"10.60.0.{n}" for n in range(2, 7) if f"10.60.0.{n}" != str(ip))
    before = node.leases()
    file = written(
        tmp_path,
        lines(
            {**SHORTEST, "vm": "vm-b", "ips": [str(ip)]},
            {**SHORTEST, "vm": "vm-a", "ips": [free]},
            {**SHORTEST, "vm": "vm-c", "ips": ["10.99.0.1"]},
            {**SHORTEST, "vm": "vm-d", "ips": [free]},
            {**SHORTEST, "vm": "vm-d", "ips": ["10.60.0.1"]},
            {**SHORTEST, "network": "other", "vm": "vm-e", "ips": ["10.98.0.1"]},
        ),
    )
    done = node.cnvctl("leases", "import", file, code=2)
    said = done.stderr.splitlines()
    assert said[-1] == "cnvctl: network many: nothing is imported"
    assert f"cnvctl: network many: {ip} of VM default/vm-b (eth0) is held by VM default/vm-a" in said[0]
    assert f"VM default/vm-a (eth0): {free} is to be imported, and it has {ip}, 0a:63:" in said[1]
    assert "10.99.0.1 of VM default/vm-c (eth0): network many does not give it out" in said[2]
    assert f"VM default/vm-d (eth0): it stands there twice, with {free} and 10.60.0.1" in said[3]
    # Another network is another matter.
    assert [each for each in node.leases() if each["network"] == "many"] == before
    assert [each["vm"] for each in node.leases() if each["network"] == "other"] == ["vm-e"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "cnvnet.io/lease/v2"}, '"cnvnet.io/lease/v2" is not cnvnet.io/lease/v1'),
        ({"ip": "10.0.0.1"}, "leases.jsonl:1.ip: no such key"),
        ({"ips": []}, "at least one address"),
        ({"ips": ["10.0.0.1", "10.0.0.1"]}, "none of them twice"),
        ({"ips": ["10.0.0.300"]}, '"10.0.0.300" is not an IP address'),
        ({"mac": "01:00:00:00:00:01"}, "leases.jsonl:1.mac"),
        ({"network": "a b"}, '"a b" is no name of a network'),
        ({"vm": "UPPER"}, '"UPPER" is not a name of a VM'),
        ({"namespace": ""}, "namespace"),
        ({"release": "soon"}, '"soon" is not one of vm-deleted, never, pod'),
        ({"cooldownSeconds": -1}, "cooldownSeconds"),
        ({"since": "yesterday"}, '"yesterday" is no time such as'),
    ],
)
def test_what_is_wrong_in_a_line_is_named(
    node: Folders, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    done = node.cnvctl("leases", "import", written(tmp_path, lines({**SHORTEST, **change})), code=2)
    assert reason in done.stderr
    assert node.leases() == []


def test_what_is_no_document_is_named(node: Folders, tmp_path: Path) -> None:
    for text, reason in (
        (lines(SHORTEST) + "{", "leases.jsonl:2: no JSON object"),
        ("a: [", "neither JSON nor YAML"),
        ("- 1\n", "document 1 is no object"),
        ("apiVersion: v1\nkind: Secret\n", "v1/Secret is no kind that has addresses of VMs"),
    ):
        assert reason in node.cnvctl("leases", "import", written(tmp_path, text), code=2).stderr
    assert "FILE or --from" in node.cnvctl("leases", "import", code=2).stderr
    assert "no such file" in node.cnvctl("leases", "import", str(tmp_path / "none"), code=3).stderr
    assert node.cnvctl("leases", "import", written(tmp_path, "")).stdout == "nothing to import\n"


def test_leases_of_a_node_go_into_the_cluster_and_back(
    cluster: Cluster, launchers: Launchers, tmp_path: Path
) -> None:
    cluster.folders.add("vm-a", "net", ago=60)
    cluster.folders.delete("vm-a", "net")
    cluster.folders.add("vm-b", "net")
    exported = cluster.cnvctl("leases", "export", "--store", "sqlite").stdout
    file = written(tmp_path, exported)
    into = ("leases", "import", file, "--store", "kubernetes")
    dry = cluster.cnvctl(*into, "--dry-run").stdout
    assert dry.startswith(
        "would make the IPNetwork of net for default\nwould import net/default/vm-a eth0: "
    )
    assert objects_of(cluster.server, VM_LEASES) + objects_of(cluster.server, IP_NETWORKS) == []
    cluster.cnvctl(*into)
    assert cluster.server.objects.get(IP_NETWORKS, "", "net")["spec"]["namespaces"] == ["default"]
    assert len(reserved(cluster.server)) == 4
    back = cluster.cnvctl("leases", "export", "--store", "kubernetes").stdout
    assert back == exported
    # A VM that starts finds what was imported for it.
    lease = cluster.node.attach("vm-a", "c1", "uid-1", given=a_pool("10.60.0.0/29"))
    (first, *_) = map(json.loads, exported.splitlines())
    assert ([str(ip) for ip in lease.ips], lease.mac) == (first["ips"], first["mac"])
    assert cluster.cnvctl(*into).stdout == "network net: imported 0, there already 2\n"


def test_the_cluster_gets_a_vms_uid_only_if_it_has_the_vm(cluster: Cluster, tmp_path: Path) -> None:
    there = cluster.create(VIRTUAL_MACHINES, "vm-a", "default")["metadata"]["uid"]
    vms = [
        {**SHORTEST, "vmUID": there},
        {**SHORTEST, "vm": "vm-b", "ips": ["10.60.0.3"], "vmUID": "of-another-cluster"},
    ]
    cluster.cnvctl("leases", "import", written(tmp_path, lines(*vms)))
    assert [each.lease.vm_uid for each in leases(cluster.server) if each.lease] == [there, ""]


def test_all_of_a_network_or_nothing_gets_into_the_cluster(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.cli.lease_files._AT_ONCE", 2)
    vms = [{**SHORTEST, "vm": f"vm{n}", "ips": [f"10.60.0.{n}"]} for n in range(1, 8)]
    into = ("leases", "import", written(tmp_path, lines(*vms)))
    cluster.server.inject(refuse(403, message="no room"), verb="create", plural="ipreservations", skip=5)
    assert "no room" in cluster.cnvctl(*into, code=3).stderr
    assert (leases(cluster.server), reserved(cluster.server)) == ([], [])
    cluster.server.clear_faults()
    cluster.cnvctl(*into)
    assert len(leases(cluster.server)) == 7


def test_an_ipnetwork_is_kept_to(cluster: Cluster, tmp_path: Path) -> None:
    spec = {"namespaces": ["prod"], "ranges": ["10.60.0.0/30"]}
    cluster.create(IP_NETWORKS, "many", spec=spec)
    vms = [SHORTEST, {**SHORTEST, "namespace": "prod", "ips": ["10.60.0.9"]}]
    done = cluster.cnvctl("leases", "import", written(tmp_path, lines(*vms)), code=2).stderr
    assert 'namespace default may not use it: IPNetwork many admits prod: add "- default" to its' in done
    assert "IPNetwork many does not give out 10.60.0.9" in done
    assert leases(cluster.server) == []


def test_leases_of_kubectl_are_a_backup(cluster: Cluster, tmp_path: Path) -> None:
    cluster.node.attach("vm-a", "c1", "uid-1")
    (document,) = objects_of(cluster.server, VM_LEASES)
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [document]})
    other = Folders(tmp_path / "other")
    done = other.cnvctl("leases", "import", written(tmp_path, text))
    assert "imported net/default/vm-a eth0: 10.0.0." in done.stdout
    (lease,) = other.leases()
    assert (lease["holders"], lease["vmUID"]) == ([], "uid-1")


def objects_of(server: ApiServer, resource: Resource) -> list[dict[str, Any]]:
    """As kubectl prints them."""
    named = {"apiVersion": resource.api_version, "kind": resource.kind}
    return [{**each, **named} for each in server.objects.matching(resource, "", lambda _: True)]


# -- other address managers


def pool(**allocations: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "whereabouts.cni.cncf.io/v1alpha1",
        "kind": "IPPool",
        "metadata": {"name": "10.1.0.0-24", "namespace": "kube-system"},
        "spec": {
            "range": "10.1.0.0/24",
            "allocations": {key.lstrip("n"): each for key, each in allocations.items()},
        },
    }


def test_pools_of_whereabouts_are_read_from_the_api_by_the_owners_of_their_pods(
    cluster: Cluster, launchers: Launchers
) -> None:
    pod, web = launchers.start("vm-a"), launchers.add_pod("web")
    made = pool(
        n5={"id": "c1", "podref": str(pod), "ifname": "net1"},
        n6={"id": "c2", "podref": str(web), "ifname": "net1"},
        n7={"id": "c3", "podref": "default/gone", "ifname": "net1"},
    )
    cluster.node.client.create(WHEREABOUTS_POOLS, made, "kube-system")
    into = ("leases", "import", "--from", "whereabouts", "--store", "kubernetes")
    assert "of which network it is stands nowhere there: --network" in cluster.cnvctl(*into, code=2).stderr
    done = cluster.cnvctl(*into, "--network", "vms", code=1)
    assert "imported vms/default/vm-a net1: 10.1.0.5" in done.stdout
    assert "10.1.0.6 of pod default/web is left out: pod default/web is no VM" in done.stderr
    assert "10.1.0.7 of pod default/gone is left out: pod default/gone is not there" in done.stderr
    (lease,) = leases(cluster.server)
    assert (lease.key.vm, lease.key.interface) == ("vm-a", "net1")


def test_pools_and_pods_may_be_files_where_there_is_no_api(
    node: Folders, server: ApiServer, launchers: Launchers, tmp_path: Path
) -> None:
    pod = launchers.start("vm-a")
    made = pool(n5={"id": "c1", "podref": str(pod), "ifname": "net1"})
    (tmp_path / "pools.yaml").write_text(yaml.safe_dump_all([made]))
    alone = node.cnvctl("leases", "import", str(tmp_path / "pools.yaml"), "--network", "vms", code=1)
    assert "is in none of the files, and there is no API to ask (kubectl get pods,vmis" in alone.stderr
    (tmp_path / "pods.yaml").write_text(
        yaml.safe_dump_all([*objects_of(server, PODS), *objects_of(server, INSTANCES)])
    )
    files = [str(tmp_path / name) for name in ("pools.yaml", "pods.yaml")]
    done = node.cnvctl("leases", "import", *files, "--network", "vms")
    assert "imported vms/default/vm-a net1: 10.1.0.5" in done.stdout


def test_ips_of_kube_ovn_name_their_vms(cluster: Cluster) -> None:
    spec = {"podName": "vm-a", "namespace": "default", "subnet": "lan", "podType": "VirtualMachine"}
    ips = {"v4IpAddress": "10.60.0.5", "v6IpAddress": "fd00::5", "macAddress": "00:00:00:AA:BB:CC"}
    cluster.create(KUBE_OVN_IPS, "vm-a.default", spec={**spec, **ips})
    of_pod = {**spec, "podName": "web-0", "podType": "StatefulSet", "v4IpAddress": "10.60.0.6"}
    cluster.create(KUBE_OVN_IPS, "web-0.default", spec=of_pod)
    done = cluster.cnvctl("leases", "import", "--from", "kube-ovn", "--dry-run", code=1)
    assert "would import lan/default/vm-a eth0: 10.60.0.5, fd00::5, 00:00:00:aa:bb:cc" in done.stdout
    assert "10.60.0.6 of pod default/web-0 is left out" in done.stderr
    cluster.cnvctl(
        *("leases", "import", "--from", "kube-ovn", "--network", "vms", "--interface", "net1"), code=1
    )
    (lease,) = leases(cluster.server)
    assert (lease.key.network, lease.key.interface, len(lease.listed)) == ("vms", "net1", 3)


def test_a_folder_of_host_local_is_read_by_what_multus_says_of_the_pods(
    cluster: Cluster, launchers: Launchers, tmp_path: Path
) -> None:
    pod = launchers.start("vm-a")
    status = json.dumps([{"interface": "net1", "ips": ["10.1.0.5", "fd00::5"], "mac": "02:00:00:00:00:05"}])
    annotations = {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/network-status": status}}}
    cluster.node.client.patch(PODS, pod.name, annotations, pod.namespace)
    folder = tmp_path / "vms"
    folder.mkdir()
    (folder / "10.1.0.5").write_text("c1\r\nnet1")
    (folder / "fd00__5").write_text("c1\r\nnet1")
    (folder / "10.1.0.9").write_text("c9\r\nnet1")
    (folder / "last_reserved_ip.0").write_text("10.1.0.9")
    (folder / "lock").write_text("")
    done = cluster.cnvctl("leases", "import", str(folder), "--store", "kubernetes", code=1)
    assert "imported vms/default/vm-a net1: 10.1.0.5, fd00::5, 02:00:00:00:00:05" in done.stdout
    assert "10.1.0.9 of container c9 is left out: no pod has 10.1.0.9 on an interface net1" in done.stderr
    (folder / "nonsense").write_text("c1")
    wrong = cluster.cnvctl("leases", "import", str(folder), "--store", "kubernetes", code=2).stderr
    assert 'the file nonsense: "nonsense" is not an IP address' in wrong
