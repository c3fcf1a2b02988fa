"""What an address manager that is not ours finds: with ADD the port, and with DEL the port again."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import OURS, Network, ports, ruleset
from tests.functional.bridge.ipam import ScriptedIpam
from tests.functional.bridge.test_failure import assert_nothing_left
from tests.harness import Node, Sandbox

GUARDED = {"macspoofchk": True, "ipspoofchk": True}
ADDRESS = "10.1.2.9"
MAC = "02:00:00:00:00:0a"
# Looks at everything from inside the address manager.
LOOK = """
folder=$1
nsenter --net="$CNI_NETNS" ip -d -j addr show dev eth0 >"$folder/inside"
ip -d -j link show type veth >"$folder/outside"
bridge -j vlan show >"$folder/vlans"
nft list table bridge cnv_bridge >"$folder/guards" 2>&1 || :
"""
# Sends the frames of its arguments from inside the pod, which it has to set up for that.
SPEAK = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "eth0", "up"], check=True)
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
for frame in sys.argv[1:]:
    link.send(bytes.fromhex(frame))
"""


class Seen:
    """What it saw."""

    def __init__(self, ipam: ScriptedIpam) -> None:
        self.guards = (ipam.folder / "guards").read_text()
        self.vlans = json.loads((ipam.folder / "vlans").read_text() or "[]")
        (self.inside,) = json.loads((ipam.folder / "inside").read_text())
        (self.outside,) = json.loads((ipam.folder / "outside").read_text())

    @property
    def addresses(self) -> list[str]:
        return [each["local"] for each in self.inside["addr_info"]]


@pytest.fixture
def ipam(node: Node) -> ScriptedIpam:
    return ScriptedIpam(node)


def looking(ipam: ScriptedIpam, command: str) -> None:
    ipam.runs(command, "sh", "-c", LOOK, "sh", ipam.folder)


def ipv4(source: str, destination: str, sport: int, dport: int, sender: str = MAC) -> str:
    """A client's DHCP message as hexadecimal digits, whatever its ports are; its checksums are wrong.

    It ends with the client's MAC address, as the shortest one of BOOTP's does (RFC 2131, 2).
    """
    addresses = "".join(f"{int(part):02x}" for part in f"{source}.{destination}".split("."))
    mac = MAC.replace(":", "")
    message = f"01010600{'00' * 24}{mac}".ljust(88, "0")
    header = f"4500{28 + len(message) // 2:04x}00000000ff110000{addresses}"
    udp = f"{sport:04x}{dport:04x}{8 + len(message) // 2:04x}0000"
    return f"{'ff' * 6}{sender.replace(':', '')}0800{header}{udp}{message}"


def counters(node: Node) -> dict[str, int]:
    shown = node.run("nft", "-j", "list", "counters", "table", "bridge", "cnv_bridge").stdout
    found = [item["counter"] for item in json.loads(shown)["nftables"] if "counter" in item]
    return {each["name"]: each["packets"] for each in found if each["packets"]}


@pytest.mark.every_way
def test_with_add_it_finds_the_port_as_it_stays(node: Node, pod: Sandbox, ipam: ScriptedIpam) -> None:
    looking(ipam, "ADD")
    network = Network(
        node, OURS, ipam=ipam.config, hairpinMode=True, portIsolation=True, mtu=1400, **GUARDED
    )
    result = network.add(pod, cni_path=ipam.cni_path, args=f"MAC={MAC}").ok()
    seen = Seen(ipam)
    assert (seen.inside["address"], seen.inside["mtu"], seen.addresses) == (MAC, 1400, [])
    # As with the reference: a plugin that needs it up sets it up.
    assert "UP" not in seen.inside["flags"]
    assert seen.outside["ifname"] == result["interfaces"][1]["name"]
    assert "UP" in seen.outside["flags"]
    assert seen.outside["master"] == "bridge0"
    port = seen.outside["linkinfo"]["info_slave_data"]
    assert (port["hairpin"], port["isolated"]) == (True, True)
    assert f'"{seen.outside["ifname"]}" . {MAC}' in seen.guards
    assert ADDRESS not in seen.guards
    assert f'"{seen.outside["ifname"]}" . {ADDRESS}' in ruleset(node)
    network.delete(pod, result, cni_path=ipam.cni_path).ok()
    assert_nothing_left(node, pod)


@pytest.mark.vlan
def test_with_add_the_port_is_in_its_vlan(node: Node, pod: Sandbox, ipam: ScriptedIpam) -> None:
    looking(ipam, "ADD")
    network = Network(node, OURS, ipam=ipam.config, vlan=100)
    result = network.add(pod, cni_path=ipam.cni_path).ok()
    seen = Seen(ipam)
    (port,) = [each for each in seen.vlans if each["ifname"] == seen.outside["ifname"]]
    assert port["vlans"] == [{"vlan": 100, "flags": ["PVID", "Egress Untagged"]}]
    network.delete(pod, result, cni_path=ipam.cni_path).ok()


def test_meanwhile_the_port_may_ask_for_an_address_and_nothing_else(
    node: Node, pod: Sandbox, ipam: ScriptedIpam
) -> None:
    frames = (
        ipv4("0.0.0.0", "255.255.255.255", 68, 67),
        ipv4("0.0.0.0", "255.255.255.255", 67, 68),
        ipv4("0.0.0.0", "255.255.255.255", 68, 53),
        ipv4(ADDRESS, "10.1.2.1", 4000, 4000),
        ipv4("0.0.0.0", "255.255.255.255", 68, 67, sender="02:00:00:00:00:ee"),
    )
    speak = ("nsenter", f"--net={pod.netns}", sys.executable, "-c", SPEAK)
    ipam.runs("ADD", *speak, *frames)
    network = Network(node, OURS, ipam=ipam.config, **GUARDED)
    result = network.add(pod, cni_path=ipam.cni_path, args=f"MAC={MAC}").ok()
    # The second as an address that it has not been given, as the others are.
    assert counters(node) == {"spoofed_ipv4": 3, "spoofed_mac": 1}
    pod.run(sys.executable, "-c", SPEAK, ipv4(ADDRESS, "10.1.2.1", 4000, 4000))
    assert counters(node) == {"spoofed_ipv4": 3, "spoofed_mac": 1}
    network.check(pod, result, cni_path=ipam.cni_path).ok()


@pytest.mark.every_way
def test_with_del_it_finds_the_port_without_its_addresses(
    node: Node, pod: Sandbox, ipam: ScriptedIpam
) -> None:
    looking(ipam, "DEL")
    network = Network(node, OURS, ipam=ipam.config, isGateway=True, ipMasq=True, **GUARDED)
    result = network.add(pod, cni_path=ipam.cni_path, args=f"MAC={MAC}").ok()
    network.delete(pod, result, cni_path=ipam.cni_path).ok()
    seen = Seen(ipam)
    assert "UP" in seen.inside["flags"]
    assert seen.addresses == []
    assert seen.outside["operstate"] == "UP"
    assert f'"{seen.outside["ifname"]}" . {MAC}' in seen.guards
    assert ADDRESS not in seen.guards
    assert_nothing_left(node, pod)
    assert ADDRESS not in ruleset(node)


@pytest.mark.every_way
def test_an_add_that_fails_gives_back_while_the_port_is_there(
    node: Node, pod: Sandbox, ipam: ScriptedIpam
) -> None:
    looking(ipam, "DEL")
    route = {"dst": "198.51.100.0/24", "gw": "203.0.113.1"}
    document = {"cniVersion": "1.0.0", "ips": [{"address": f"{ADDRESS}/24"}], "routes": [route]}
    ipam.answers("ADD", document)
    network = Network(node, OURS, ipam=ipam.config, isGateway=True, ipMasq=True, **GUARDED)
    error = network.add(pod, cni_path=ipam.cni_path, args=f"MAC={MAC}").error()
    assert "198.51.100.0/24" in error["msg"]
    seen = Seen(ipam)
    assert "UP" in seen.inside["flags"]
    assert seen.addresses == []
    assert f'"{seen.outside["ifname"]}" . {MAC}' in seen.guards
    assert ADDRESS not in seen.guards
    assert ipam.commands == ["ADD", "DEL"]
    assert_nothing_left(node, pod)


@pytest.mark.parametrize("gone", ["", "missing"])
def test_without_its_namespace_the_port_goes_first(
    node: Node, pod: Sandbox, ipam: ScriptedIpam, gone: str
) -> None:
    ipam.runs("DEL", "sh", "-c", 'ip -j link show type veth >"$1/outside"', "sh", ipam.folder)
    network = Network(node, OURS, ipam=ipam.config, **GUARDED)
    result = network.add(pod, cni_path=ipam.cni_path).ok()
    network.delete(gone and "/run/netns/no-such", result, cni_path=ipam.cni_path).ok()
    assert json.loads((ipam.folder / "outside").read_text() or "[]") == []
    assert_nothing_left(node, pod)


def test_a_table_that_is_flushed_meanwhile_is_whole_again(
    node: Node, pod: Sandbox, ipam: ScriptedIpam
) -> None:
    ipam.runs("ADD", "nft", "flush", "ruleset")
    network = Network(node, OURS, ipam=ipam.config, **GUARDED)
    result = network.add(pod, cni_path=ipam.cni_path).ok()
    network.check(pod, result, cni_path=ipam.cni_path).ok()


@pytest.mark.alone
def test_killed_while_it_is_asked_nothing_stays_after_del(
    node: Node, pod: Sandbox, ipam: ScriptedIpam
) -> None:
    (ipam.folder / "ADD.sh").write_text("kill -9 $PPID\n")
    network = Network(node, OURS, ipam=ipam.config, isGateway=True, ipMasq=True, **GUARDED)
    assert network.add(pod, cni_path=ipam.cni_path).code == -9
    assert len(ports(node)) == 1
    (ipam.folder / "ADD.sh").unlink()
    looking(ipam, "DEL")
    network.delete(pod, cni_path=ipam.cni_path).ok()
    assert Seen(ipam).addresses == []
    assert ipam.commands == ["ADD", "DEL"]
    assert_nothing_left(node, pod)
    # And with an ADD in its place the same.
    (ipam.folder / "ADD.sh").write_text("kill -9 $PPID\n")
    assert network.add(pod, cni_path=ipam.cni_path).code == -9
    (ipam.folder / "ADD.sh").unlink()
    result: dict[str, Any] = network.add(pod, cni_path=ipam.cni_path).ok()
    assert ipam.commands[2:] == ["ADD", "DEL", "ADD"]
    network.check(pod, result, cni_path=ipam.cni_path).ok()
    assert len(ports(node)) == 1


@pytest.mark.every_way
def test_a_missing_one_is_refused_before_a_bridge_is_made(node: Node, pod: Sandbox) -> None:
    error = Network(node, OURS, ipam={"type": "no-such-ipam"}, **GUARDED).add(pod).error()
    assert (error["code"], 'failed to find plugin "no-such-ipam"' in error["msg"]) == (7, True)
    assert "bridge0" not in node.links()
    assert_nothing_left(node, pod)
