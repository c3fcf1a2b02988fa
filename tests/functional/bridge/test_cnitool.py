"""Through cnitool, libcni's own command: alone, in lists, and chained with the reference's other plugins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import OURS, host_local, leases, ports, ruleset
from tests.harness import Node, Outcome, Sandbox, cni_path_of_all, peer

# libcni keeps its cache below /var/lib/cni, whatever one says; each test gets a folder of its own there.
PRIVATE = 'mount --make-rprivate /; mount --bind "$1" /var/lib; shift; exec "$@"'


class Cnitool:
    """One network in a folder of configurations, and the commands that cnitool has for it."""

    def __init__(self, node: Node, name: str, *plugins: dict[str, Any], version: str = "1.1.0") -> None:
        self.node = node
        self.name = name
        self._folder = node.folder / "net.d"
        self._folder.mkdir(exist_ok=True)
        (node.folder / "var").mkdir(exist_ok=True)
        document = {"cniVersion": version, "name": name, "plugins": list(plugins)}
        (self._folder / f"{name}.conflist").write_text(json.dumps(document))

    def run(self, command: str, pod: Sandbox, **env: str) -> Outcome:
        argv = ["unshare", "--mount", "sh", "-ec", PRIVATE, "sh", str(self.node.folder / "var")]
        environment = self.node.environment(NETCONFPATH=str(self._folder), CNI_PATH=cni_path_of_all(), **env)
        done = self.node.run(
            *argv, peer("cnitool"), command, self.name, pod.netns, check=False, env=environment
        )
        self.node.await_reaper()
        return Outcome(done.returncode, done.stdout, done.stderr)

    @property
    def cached(self) -> list[Path]:
        return sorted((self.node.folder / "var").rglob("results/*"))


def bridge(node: Node, program: str, **keys: Any) -> dict[str, Any]:
    ipam = host_local(node, "10.1.2.0/24", dataDir=str(node.folder / "ipam"))
    return {"type": program, "bridge": "bridge0", "isGateway": True, "ipam": ipam, **keys}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_a_life_of_an_attachment(node: Node, pod: Sandbox, program: str, version: str) -> None:
    tool = Cnitool(node, "net", bridge(node, program, macspoofchk=True, ipMasq=True), version=version)
    result = tool.run("add", pod).ok()
    assert result["ips"][0]["address"] == "10.1.2.2/24"
    assert pod.addresses("eth0") == ["10.1.2.2/24"]
    if version != "0.3.1":
        assert tool.run("check", pod).code == 0
    assert tool.run("del", pod).code == 0
    assert pod.link("eth0") is None
    assert leases(node, "net") == []
    assert "10.1.2.2" not in ruleset(node)
    assert tool.cached == []
    assert tool.run("del", pod).code == 0


def test_another_interface_name(node: Node, pod: Sandbox, program: str) -> None:
    tool = Cnitool(node, "net", bridge(node, program))
    tool.run("add", pod, CNI_IFNAME="net1").ok()
    assert pod.link("net1") is not None
    assert tool.run("del", pod, CNI_IFNAME="net1").code == 0
    assert pod.link("net1") is None


def test_capabilities_are_passed_on(node: Node, pod: Sandbox, program: str) -> None:
    tool = Cnitool(node, "net", bridge(node, program, capabilities={"mac": True, "ips": True}))
    capabilities = {"mac": "02:00:00:00:00:07", "ips": ["10.1.2.77/24"]}
    result = tool.run("add", pod, CAP_ARGS=json.dumps(capabilities)).ok()
    assert (pod.link("eth0") or {})["address"] == capabilities["mac"]
    assert result["ips"][0]["address"] == "10.1.2.77/24"
    assert tool.run("check", pod, CAP_ARGS=json.dumps(capabilities)).code == 0
    assert tool.run("del", pod, CAP_ARGS=json.dumps(capabilities)).code == 0


def test_an_error_reaches_the_caller(node: Node, pod: Sandbox, program: str) -> None:
    outcome = Cnitool(node, "net", bridge(node, program, vlan=5000)).run("add", pod)
    assert outcome.code == 1
    assert "invalid VLAN ID 5000 (must be between 0 and 4094)" in outcome.stdout + outcome.stderr


def test_gc_and_status(node: Node, program: str) -> None:
    tool = Cnitool(node, "net", bridge(node, program, macspoofchk=True))
    pods = [node.pod(), node.pod()]
    for pod in pods:
        tool.run("add", pod).ok()
    assert tool.run("status", pods[0]).code == 0
    # Without a list of what is valid, which cnitool cannot give, nothing of a plugin's own may go.
    assert tool.run("gc", pods[0]).code == 0
    assert tool.run("status", pods[0]).code == 0
    for pod in pods:
        assert tool.run("del", pod).code == 0
    assert ports(node) == []


CHAINS: dict[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
    "tuning-without-settings": ([{"type": "tuning"}], {}),
    "tuning-sysctl-and-mtu": (
        [{"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400}],
        {},
    ),
    "portmap": (
        [{"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}],
        {"CAP_ARGS": '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'},
    ),
    "bandwidth": (
        [{"type": "bandwidth", "ingressRate": 8000000, "ingressBurst": 8000000}],
        {},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_plugins_chained_behind(node: Node, pod: Sandbox, program: str, name: str) -> None:
    chained, env = CHAINS[name]
    tool = Cnitool(node, "net", bridge(node, program, ipMasq=True), *_private(node, chained))
    result = tool.run("add", pod, **env).ok()
    assert [interface["name"] for interface in result["interfaces"]][:1] == ["bridge0"]
    assert result["ips"][0]["interface"] == 2
    if name == "tuning-sysctl-and-mtu":
        assert (pod.link("eth0") or {})["mtu"] == 1400
        assert pod.run("sysctl", "-n", "net.ipv4.conf.eth0.arp_filter").stdout.strip() == "1"
    elif name == "portmap":
        assert "8080" in ruleset(node)
    elif name == "bandwidth":
        assert "tbf" in node.run("tc", "qdisc", "show").stdout
    assert tool.run("del", pod, **env).code == 0
    assert pod.link("eth0") is None
    assert ports(node) == []
    assert leases(node, "net") == []
    assert "8080" not in ruleset(node)


CHECKED = [name for name in CHAINS if name != "tuning-sysctl-and-mtu"]


@pytest.mark.parametrize("name", CHECKED)
def test_a_chain_is_found_as_it_should_be(node: Node, pod: Sandbox, program: str, name: str) -> None:
    chained, env = CHAINS[name]
    tool = Cnitool(node, "net", bridge(node, program), *_private(node, chained))
    tool.run("add", pod, **env).ok()
    outcome = tool.run("check", pod, **env)
    assert outcome.code == 0, outcome.stdout + outcome.stderr


def _private(node: Node, plugins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [plugin | {"dataDir": str(node.folder / "tuning")} for plugin in plugins]


def test_the_other_end_of_a_chain_may_change_the_mac(node: Node, pod: Sandbox, program: str) -> None:
    tuning = {"type": "tuning", "mac": "02:00:00:00:00:09"}
    tool = Cnitool(node, "net", bridge(node, program), *_private(node, [tuning]))
    result = tool.run("add", pod).ok()
    assert result["interfaces"][2]["mac"] == "02:00:00:00:00:09"
    assert tool.run("check", pod).code == 0
    assert tool.run("del", pod).code == 0
    assert pod.link("eth0") is None
    assert ports(node) == []


def test_two_networks_on_one_pod(node: Node, pod: Sandbox) -> None:
    first = Cnitool(node, "one", bridge(node, OURS, bridge="br1"))
    second = Cnitool(node, "two", {"type": OURS, "bridge": "br2", "macspoofchk": True})
    first.run("add", pod).ok()
    second.run("add", pod, CNI_IFNAME="net1").ok()
    assert first.run("check", pod).code == 0
    assert second.run("check", pod, CNI_IFNAME="net1").code == 0
    assert first.run("del", pod).code == 0
    assert pod.link("net1") is not None
    assert second.run("del", pod, CNI_IFNAME="net1").code == 0
    assert set(pod.links()) == {"lo"}
