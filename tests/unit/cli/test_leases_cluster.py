"""cnvctl leases and status on the leases of a cluster, whose API server is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cnvnet.cli.main import command
from cnvnet.kube.resources import IP_NETWORKS, NODES, PODS
from tests.fakes.api_server import ApiServer, running_api_server
from tests.fakes.kubernetes_store import disagreements
from tests.unit.cli.lease_node import Node as Folders
from tests.unit.ipam.store.nodes import Node, leases, reserved


class Cluster:
    """An API server, a node with pods, and an administrator on a machine that is no node."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.node = Node(server, folder, "n1", new_networks="open")
        self.folders = Folders(folder / "desk")
        self.kubeconfig = folder / "kubeconfig"
        config: dict[str, Any] = {
            "clusters": [{"name": "c", "cluster": {"server": server.url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(json.dumps(config))

    def cnvctl(self, *args: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
        places = ["--rundir", str(self.folders.rundir), "--statedir", str(self.folders.statedir)]
        options = [*places, *(() if env else ("--kubeconfig", str(self.kubeconfig)))]
        done = CliRunner().invoke(command, [*options, *args], env=env)
        assert done.exit_code == code, done.output
        return done

    def rows(self, *args: str) -> list[list[str]]:
        return [line.split() for line in self.cnvctl("leases", "list", *args).stdout.splitlines()[1:]]

    def released(self, vm: str, *args: str, code: int = 0) -> Result:
        return self.cnvctl("leases", "release", vm, "--network", "net", *args, code=code)

    def create(self, resource: Any, name: str, namespace: str = "", **more: Any) -> dict[str, Any]:
        return self.node.client.create(resource, {"metadata": {"name": name}, **more}, namespace)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_api_server() as server:
        yield Cluster(server, tmp_path)
        assert disagreements(server) == []


def test_leases_of_the_cluster_look_like_those_of_a_node(cluster: Cluster) -> None:
    lease = cluster.node.attach("vm1", "c1", "uid-1", pod_uid="p1")
    cluster.node.attach_pod("c2")
    stopped = cluster.node.attach("vm2", "c3")
    cluster.node.delete("c3")
    rows = cluster.rows()
    assert [row[:3] for row in rows] == [
        ["net", "c2", "eth0"],
        ["net", "default/vm1", "eth0"],
        ["net", "default/vm2", "eth0"],
    ]
    assert rows[1][3:6] == [str(lease.ips[0]), lease.mac, "active"]
    assert rows[1][7] == "default/virt-launcher-vm1-c1"
    assert (rows[2][3], rows[2][5]) == (str(stopped.ips[0]), "stopped")
    assert [row[1] for row in cluster.rows("--stopped")] == ["default/vm2"]
    (found,) = json.loads(cluster.cnvctl("leases", "show", "default/vm1", "-o", "json").stdout)["leases"]
    assert (found["vmUID"], found["store"]) == ("uid-1", cluster.server.url)
    assert found["holders"][0]["node"] == "n1"
    assert "on node n1" in cluster.cnvctl("leases", "show", "default/vm1").stdout
    shown = cluster.cnvctl("leases", "show", "default/no", "--store", "kubernetes", code=2)
    assert shown.stderr == "cnvctl: default/no has no lease in the cluster\n"
    status = json.loads(cluster.cnvctl("status", "-o", "json").stdout)
    (pool,) = status["pools"]["networks"]
    assert (pool["network"], pool["active"], pool["stopped"]) == ("net", 2, 1)


def test_the_environment_names_the_credentials_too(cluster: Cluster) -> None:
    cluster.node.attach("vm1", "c1")
    done = cluster.cnvctl("leases", "list", env={"CNVNET_KUBECONFIG": str(cluster.kubeconfig)})
    assert "default/vm1" in done.stdout


def test_without_credentials_the_cluster_cannot_be_asked(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.cnvctl("leases", "list", "--store", "kubernetes", code=3, env={"CNVNET_KUBECONFIG": ""})
    assert done.stderr.startswith("cnvctl: --store kubernetes: no credentials for the Kubernetes API (")
    cluster.kubeconfig = tmp_path / "none"
    done = cluster.cnvctl("leases", "list", "--store", "kubernetes", code=2)
    assert str(tmp_path / "none") in done.stderr
    # What is not there hides nothing that is.
    cluster.folders.add("vm-a")
    done = cluster.cnvctl("leases", "list", code=3)
    assert "default/vm-a" in done.stdout
    assert str(tmp_path / "none") in done.stderr
    assert cluster.cnvctl("leases", "list", "--store", "sqlite").stderr == ""


def test_an_api_that_is_away_hides_no_other_store(cluster: Cluster) -> None:
    cluster.folders.add("vm-a")
    cluster.server.stop()
    done = cluster.cnvctl("leases", "list", code=3)
    assert "default/vm-a" in done.stdout
    assert cluster.server.url in done.stderr
    cluster.server.start()


def test_a_stopped_vm_gives_its_addresses_back(cluster: Cluster) -> None:
    lease = cluster.node.attach("vm1", "c1")
    cluster.node.delete("c1")
    dry = cluster.released("default/vm1", "--dry-run").stdout
    text = f"net/default/vm1 eth0: {lease.ips[0]}, {lease.mac}\n"
    assert dry == f"would release {text}"
    assert len(leases(cluster.server)) == 1
    assert cluster.released("default/vm1").stdout == f"released {text}"
    assert (leases(cluster.server), reserved(cluster.server)) == ([], [])


def test_a_vm_that_runs_on_a_node_keeps_its_addresses_even_if_it_is_forced(cluster: Cluster) -> None:
    pod = cluster.create(PODS, "launcher", "default")
    cluster.create(NODES, "n1")
    uid = pod["metadata"]["uid"]
    cluster.node.attach("vm1", "c1", pod="default/launcher", pod_uid=uid)
    assert "is held by pod default/launcher: stop it first" in cluster.released("default/vm1", code=2).stderr
    forced = cluster.released("default/vm1", "--force", code=2).stderr
    assert forced == (
        "cnvctl: VM default/vm1 (eth0) is held by pod default/launcher on node n1, and --force takes "
        "nothing from a pod of another node (pod default/launcher is there): stop it first\n"
    )
    # A pod that is gone may run on, as long as its node is there; one of that name is another one.
    cluster.node.client.delete(PODS, "launcher", "default")
    cluster.create(PODS, "launcher", "default")
    forced = cluster.released("default/vm1", "--force", code=2).stderr
    assert "(node n1 is there without the taint node.kubernetes.io/out-of-service)" in forced
    assert len(leases(cluster.server)) == 1
    taint = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
    cluster.node.client.patch(NODES, "n1", {"spec": {"taints": [taint]}})
    assert "is held by pod" in cluster.released("default/vm1", code=2).stderr
    assert cluster.released("default/vm1", "--force").stdout.startswith("released net/default/vm1")
    assert (leases(cluster.server), reserved(cluster.server)) == ([], [])


def test_a_pod_that_was_lost_with_its_node_gives_its_address_back(cluster: Cluster) -> None:
    cluster.node.attach_pod("c1", pod_uid="gone")
    cluster.node.attach_pod("c2", pod_uid="gone", cooldown=60)
    assert "is held by pod default/c1" in cluster.released("c1", code=2).stderr
    cluster.released("c1", "--force")
    assert [each.pod.key.vm for each in reserved(cluster.server) if each.pod] == ["c2"]
    assert "(free in" in cluster.released("c2", "--force").stdout
    (cooling,) = reserved(cluster.server)
    assert cooling.until > 0


def test_an_address_is_kept_for_a_vm_to_come(cluster: Cluster) -> None:
    reserve = ("leases", "reserve", "default/vm1", "--network", "net", "--mac", "02:00:00:00:00:07")
    done = cluster.cnvctl(*reserve, "--ip", "10.0.0.4")
    assert done.stdout == "reserved net/default/vm1 eth0: 10.0.0.4, 02:00:00:00:00:07\n"
    assert "no ADD in network net has recorded its ranges" in done.stderr
    lease = cluster.node.attach("vm1", "c1", "uid-1")
    assert ([str(ip) for ip in lease.ips], lease.mac) == (["10.0.0.4"], "02:00:00:00:00:07")
    taken = cluster.cnvctl(
        *("leases", "reserve", "default/vm2", "--network", "net", "--ip", "10.0.0.4"), code=2
    )
    assert "10.0.0.4 is held by VM default/vm1 (eth0) in pod default/virt-launcher-vm1-c1" in taken.stderr


def test_an_address_that_the_network_does_not_give_is_kept_for_no_vm(cluster: Cluster) -> None:
    cluster.create(IP_NETWORKS, "net", spec={"namespaces": ["default"], "ranges": ["10.0.0.0/29"]})
    reserve = ("leases", "reserve", "default/vm1", "--network", "net", "--ip")
    refused = cluster.cnvctl(*reserve, "10.9.0.1", code=2).stderr
    assert refused == "cnvctl: network net: IPNetwork net does not give out 10.9.0.1\n"
    assert leases(cluster.server) == []
    cluster.cnvctl(*reserve, "10.0.0.3")


def test_where_a_node_and_the_cluster_may_be_meant_the_option_says_which(cluster: Cluster) -> None:
    cluster.folders.add("vm-a", "there")
    reserve = ("leases", "reserve", "default/new", "--ip", "10.60.0.5", "--network")
    refused = cluster.cnvctl(*reserve, "new", code=2).stderr
    assert "network new has no leases yet: say by --store kubernetes or sqlite where they belong" in refused
    assert cluster.cnvctl(*reserve, "there").stderr == ""
    cluster.cnvctl(*reserve, "there", "--store", "kubernetes")
    assert sorted(row[1] for row in cluster.rows("--store", "sqlite")) == ["default/new", "default/vm-a"]
    assert [row[1] for row in cluster.rows("--store", "kubernetes")] == ["default/new"]
    both = cluster.cnvctl("leases", "release", "default/new", "--network", "there", code=2).stderr
    where = f"{cluster.folders.statedir}/leases.db and {cluster.server.url}"
    assert both == f"cnvctl: default/new has leases in {where}: say by --store which are meant\n"
    cluster.cnvctl("leases", "release", "default/new", "--network", "there", "--store", "sqlite")
    assert [row[1] for row in cluster.rows("--store", "kubernetes")] == ["default/new"]
    folder = ("leases", "list", "--store", "kubernetes", "--data-dir", "/x")
    assert "keeps no leases in a folder" in cluster.cnvctl(*folder, code=2).stderr
