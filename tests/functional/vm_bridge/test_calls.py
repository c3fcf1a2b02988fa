"""The executable as runtimes call it: three ways, with everything restored in the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.own_agent import ask
from tests.functional.bridge.test_cnitool import Cnitool
from tests.functional.masquerade.masquerade_pod import PATIENCE
from tests.functional.masquerade.test_calls import lower
from tests.functional.vm_bridge.vm_bridge_pod import (
    LAN_MAC,
    POD_MAC,
    PORT,
    Lab,
    changed,
    difference,
    settle,
    snapshot,
)
from tests.harness import VERSIONS, Node, Outcome

HASHED = "pod16477688c0e"
BLUE = {"args": {"cni": {"logicNetworkName": "blue"}}}


def records(node: Node) -> list[Path]:
    return list((node.rundir / "attachments").iterdir())


def furnish(lab: Lab) -> None:
    """Everything of an interface that other programs may have set up."""
    lab.network()
    pod = lab.pod
    for command in (
        "addr add 10.1.0.6/24 brd + dev eth0",
        "addr add 10.3.0.5/32 dev eth0 scope link noprefixroute",
        "addr add 10.4.0.5 peer 10.4.0.1/32 dev eth0",
        "addr add fd97::5/64 dev eth0 nodad noprefixroute",
        "addr add 10.12.0.5/24 dev eth0",
        "route del 10.12.0.0/24 dev eth0",
        "addr add fd96::5/64 dev eth0 nodad",
        "route del fd96::/64 dev eth0",
        "link set eth0 mtu 1400 alias uplink",
        "route add 10.5.0.0/16 via 10.1.0.1 metric 50 mtu 1300 src 10.1.0.6",
        "route add 10.6.0.0/16 dev eth0 scope link proto static",
        "route add 10.7.0.0/16 via 192.0.2.1 dev eth0 onlink",
        "route add 10.8.0.0/16 via 10.1.0.1 table 77",
        "route add fd98::/64 via fd99::9 dev eth0 metric 7",
        "neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
        "neigh add fd99::9 lladdr 02:00:00:00:00:0a dev eth0 nud permanent",
    ):
        pod.run("ip", *command.split())
    pod.run("sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=2", "net.ipv6.conf.eth0.accept_ra=0")
    settle(lab)


def node_routes(lab: Lab) -> str:
    shown = lab.node.run("ip", "-d", "route", "show", "table", "all").stdout
    return shown.replace(" linkdown", "")  # noted a while after it is so


def addressed(lab: Lab) -> None:
    lab.network()


def aws(lab: Lab) -> None:
    lab.point_to_point(permanent=True)


def down(lab: Lab) -> None:
    settle(lab)  # or the node ends duplicate detection of its own address only when ADD sets it up
    lab.pod.run("ip", "link", "set", "eth0", "down")


def without_ipv6(lab: Lab) -> None:
    lab.pod.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")


def keeping(lab: Lab) -> None:
    lab.pod.run("sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1")


@pytest.mark.parametrize("setup", [furnish, addressed, aws, down, without_ipv6, keeping])
def test_del_leaves_the_pod_as_it_was(lab: Lab, setup: Callable[[Lab], None]) -> None:
    setup(lab)
    settle(lab)
    before = snapshot(lab.pod)
    node = node_routes(lab)
    lab.pod.cni("ADD").ok()
    lab.pod.cni("CHECK").ok()
    assert snapshot(lab.pod) != before
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""
    assert records(lab.node) == []
    assert node_routes(lab) == node


def test_the_pods_interface_looks_the_same_from_outside(lab: Lab) -> None:
    furnish(lab)
    before = {family: sorted(lab.pod.addresses("eth0", family=family)) for family in ("inet", "inet6")}
    result = lab.pod.cni("ADD", "eth0", args=BLUE["args"]).ok()
    assert "interfaces" not in result
    assert sorted(lab.pod.links()) == ["eth0", "eth0-nic", "k6t-eth0", "lo", "tap0"]
    shown = lab.pod.link("eth0")
    assert shown is not None
    assert (shown["address"], shown["mtu"], shown["operstate"]) == (POD_MAC, 1400, "DOWN")
    after = {family: sorted(lab.pod.addresses("eth0", family=family)) for family in ("inet", "inet6")}
    assert changed(before, after) == ""
    nic = lab.pod.link("eth0-nic")
    assert nic is not None
    assert nic["address"] not in (POD_MAC, LAN_MAC)
    assert lab.pod.addresses("eth0-nic") == []
    assert nic["linkinfo"]["info_slave_data"]["learning"] is False


@pytest.mark.every_way
@pytest.mark.parametrize("half", ["tap0", "k6t-eth0", "eth0-nic", "table", "addresses", "record"])
def test_del_of_half_of_it_leaves_nothing(lab: Lab, half: str) -> None:
    lab.network()
    settle(lab)
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    if half == "table":
        lab.pod.run("nft", "flush", "ruleset")
    elif half == "addresses":
        lab.pod.run("ip", "addr", "flush", "dev", "eth0")
    elif half == "record":
        for path in records(lab.node):
            path.unlink()
    else:
        lab.pod.run("ip", "link", "del", half)
    error = lab.pod.cni("CHECK").error()
    assert error["code"] == 100
    lab.pod.cni("DEL").ok()
    after = snapshot(lab.pod)
    if half == "eth0-nic":
        # With it went what was to be given back.
        assert sorted(lab.pod.links()) == ["lo"]
        return
    if half == "record":
        # Only it knew the routes through gateways, and whether the addresses had been looked for.
        for found in (before, after):
            del found["routes -4"], found["routes -6"], found["sysctls"]
            found["addresses"] = [line.replace(" nodad", "") for line in found["addresses"]]
    assert after == before


def test_the_lower_plugins_del_may_come_first(lab: Lab) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    lab.pod.run("ip", "link", "del", "eth0")  # all that such a plugin does
    lab.pod.cni("DEL").ok()
    assert sorted(lab.pod.links()) == ["lo"]
    assert lab.node.link(PORT) is None
    assert lab.pod.run("nft", "list", "ruleset").stdout == ""


@pytest.mark.every_way
def test_a_pod_that_is_gone_leaves_no_record(lab: Lab) -> None:
    lab.pod.cni("ADD").ok()
    gone = f"/proc/{os.getpid()}/ns/nothing"
    config = {"cniVersion": "1.1.0", "name": "wire", "type": "vm-bridge"}
    lab.node.cni("vm-bridge", "DEL", config, gone, ifname="net1", container_id="c1").ok()
    assert records(lab.node) == []


@pytest.mark.every_way
@pytest.mark.parametrize("version", VERSIONS)
def test_the_binding_network_reports_nothing(lab: Lab, version: str) -> None:
    lab.network()
    outcome = lab.pod.cni("ADD", cniVersion=version, args={"cni": {"logicNetworkName": "default"}})
    if version in ("0.1.0", "0.2.0"):
        assert outcome.error()["code"] == 7
        assert list(lab.pod.links()) == ["lo", "eth0"]
        return
    result = outcome.ok()
    assert {key: value for key, value in result.items() if value and value != {}} == {"cniVersion": version}


def test_two_interfaces_of_one_pod(lab: Lab) -> None:
    lab.network()
    lab.pod.run("ip", "link", "add", HASHED, "type", "veth", "peer", "name", "far")
    for name in ("far", HASHED):
        lab.pod.run("ip", "link", "set", name, "addrgenmode", "none", "up")
    lab.pod.run("ip", "addr", "add", "10.8.0.5/24", "dev", HASHED)
    settle(lab)
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    lab.pod.cni("ADD", "net2", **BLUE).ok()
    assert {"16477688c0e-nic", "k6t-16477688c0e", "tap16477688c0e", HASHED} < set(lab.pod.links())
    servers = [lab.pod.addresses(name)[0] for name in ("k6t-eth0", "k6t-16477688c0e")]
    assert servers == ["169.254.75.10/32", "169.254.75.11/32"]
    for ifname, keys in (("net1", {}), ("net2", BLUE)):
        lab.pod.cni("CHECK", ifname, **keys).ok()
    lab.pod.cni("DEL", "net2", **BLUE).ok()
    lab.pod.cni("CHECK").ok()
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""


@pytest.mark.parametrize("ifname", ["eth0", HASHED], ids=["default network", "secondary network"])
@pytest.mark.parametrize("which", ["bridge", "cnv-bridge", "ptp"])
def test_chained_behind_another_plugin_and_before_tuning(node: Node, which: str, ifname: str) -> None:
    pod = node.pod()
    below = lower(node, which)
    before = snapshot(pod)
    tuned = {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}
    plain = Cnitool(node, "plain", below)
    expected = plain.run("add", pod, CNI_IFNAME=ifname).ok()
    assert plain.run("del", pod, CNI_IFNAME=ifname).code == 0
    tool = Cnitool(node, "net", below, {"type": "vm-bridge"}, tuned)
    result = tool.run("add", pod, CNI_IFNAME=ifname).ok()
    assert [i["name"] for i in result["interfaces"]][-1] == [i["name"] for i in expected["interfaces"]][-1]
    assert {"k6t-", "tap"} & {i["name"][:4] for i in result["interfaces"]} == set()
    assert result.get("routes") == expected.get("routes")
    assert any(name.startswith("tap") for name in pod.links())
    assert tool.run("del", pod, CNI_IFNAME=ifname).code == 0
    assert difference(pod, before) == ""
    assert records(node) == []


def test_a_macvlan_is_refused_with_a_remedy(node: Node) -> None:
    pod = node.pod()
    before = snapshot(pod)
    message = Cnitool(node, "net", lower(node, "macvlan"), {"type": "vm-bridge"}).run("add", pod).stderr
    assert "eth0 is a macvlan" in message
    assert "cnv-bridge" in message
    assert "masquerade" in message
    assert snapshot(pod)["nftables"] == before["nftables"]
    assert sorted(pod.links()) == ["eth0", "lo"]


@pytest.mark.every_way
def test_what_is_bound_already_is_refused(lab: Lab) -> None:
    lab.network()
    config = {"cniVersion": "1.1.0", "name": "masq", "type": "masquerade"}
    lab.node.cni("masquerade", "ADD", config, lab.pod, ifname="net9").ok()
    assert "masquerade has bound the VM" in lab.pod.cni("ADD").error()["msg"]
    lab.node.cni("masquerade", "DEL", config, lab.pod, ifname="net9").ok()
    lab.pod.cni("ADD").ok()
    assert "net1 of container c1 has k6t-eth0 already" in lab.pod.cni("ADD").error()["msg"]
    assert "stands in for an interface that a VM has taken" in lab.pod.cni("ADD", "net2").error()["msg"]
    assert (
        "k6t-eth0 already"
        in lab.node.cni("masquerade", "ADD", config, lab.pod, ifname="net9").error()["msg"]
    )
    lab.pod.cni("CHECK").ok()


@pytest.mark.every_way
@pytest.mark.parametrize("other", ["vm-bridge", "masquerade"])
def test_of_several_adds_at_once_one_succeeds_and_stays(lab: Lab, other: str) -> None:
    lab.network()
    settle(lab)
    before = snapshot(lab.pod)
    calls = [("vm-bridge", "net1"), ("vm-bridge", "net2"), (other, "net3"), (other, "net4")]

    def call(command: str, plugin: str, ifname: str) -> Outcome:
        config = {"cniVersion": "1.1.0", "name": "wire", "type": plugin}
        return lab.node.cni(plugin, command, config, lab.pod, ifname=ifname, container_id="c1")

    def add(which: tuple[str, str]) -> Outcome:
        return call("ADD", *which)

    with ThreadPoolExecutor(len(calls)) as threads:
        outcomes = list(threads.map(add, calls))
    (winner,) = (which for which, outcome in zip(calls, outcomes, strict=True) if outcome.code == 0)
    assert {outcome.error()["code"] for outcome in outcomes if outcome.code} == {7}
    call("CHECK", *winner).ok()
    for which in calls:
        call("DEL", *which).ok()
    assert difference(lab.pod, before) == ""


@pytest.mark.parametrize("first", ["net1", "net2"])
def test_what_bridges_hand_to_iptables_stays_off_until_the_last_is_gone(lab: Lab, first: str) -> None:
    lab.network()
    lab.pod.run("ip", "link", "add", HASHED, "type", "veth", "peer", "name", "far")
    key = "net.bridge.bridge-nf-call-iptables"
    if lab.pod.run("sysctl", "-qw", f"{key}=1", check=False).returncode:
        pytest.skip("this kernel has no br_netfilter")
    networks: dict[str, dict[str, Any]] = {"net1": {}, "net2": BLUE}
    for ifname, keys in networks.items():
        lab.pod.cni("ADD", ifname, **keys).ok()
    lab.pod.cni("DEL", first, **networks.pop(first)).ok()
    ((last, keys),) = networks.items()
    lab.pod.cni("CHECK", last, **keys).ok()
    lab.pod.cni("DEL", last, **keys).ok()
    assert lab.pod.run("sysctl", "-n", key).stdout == "1\n"


def test_a_pod_without_its_interface_is_refused(lab: Lab) -> None:
    lab.pod.run("ip", "link", "del", "eth0")
    assert "to bind the VM to" in lab.pod.cni("ADD").error()["msg"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("ip link set eth0-nic nomaster", "eth0-nic is not attached to k6t-eth0"),
        ("nft flush chain netdev cnv_wire_tap0 from_lan", 'cnv_wire_tap0, chain from_lan: the rule "TCP"'),
        ("nft delete table netdev cnv_wire_tap0", 'cnv_wire_tap0, chain from_guest: the rule "TCP"'),
        ("bridge link set dev eth0-nic learning on", "eth0-nic learns"),
        ("ip link set eth0-nic down", "eth0-nic is down"),
        ("ip link set eth0-nic address 0a:00:00:00:00:07", "the MAC of eth0-nic is 0a:00:00:00:00:07, not"),
        ("ip addr add 10.1.0.5/24 dev eth0-nic", "eth0-nic has an address 10.1.0.5/24"),
        ("ip addr del 10.1.0.5/24 dev eth0", "address 10.1.0.5/24 is missing on eth0"),
        ("ip link set eth0 up", "eth0 is up"),
        ("ip link set eth0 mtu 1300", "MTU 1300"),
        ("ip addr flush dev k6t-eth0", "DHCP server is missing"),
        ("ip link set k6t-eth0 type bridge mcast_snooping 1", "snoops multicast"),
        ("ip link set k6t-eth0 type bridge group_fwd_mask 0", "group_fwd_mask"),
        ("ip link set tap0 down", "tap0 is down"),
        ("ip link set tap0 address 0a:00:00:00:00:05", "the MAC of tap0 is 0a:00:00:00:00:05, not"),
        ("ip link set k6t-eth0 alias uplink", "the alias of k6t-eth0 is 'uplink'"),
        ("ip link set tap0 alias uplink", "the alias of tap0 is 'uplink'"),
        ("ip link set eth0-nic alias uplink", "the alias of eth0-nic is 'uplink'"),
        ("ip link set eth0 alias uplink", "the alias of eth0 is 'uplink'"),
        ("ip link set k6t-eth0 address 0a:00:00:00:00:06", "the MAC of k6t-eth0 is"),
        ("sysctl -qw net.ipv4.conf.k6t-eth0.arp_ignore=0", "arp_ignore is 0"),
        ("nft flush chain bridge cnv_guest_tap0 forward", "is missing"),
        ("nft delete table bridge cnv_guest_tap0", "is missing"),
        ("nft add chain bridge cnv_guest_tap0 forward { policy drop ; }", "not as ADD made it"),
    ],
)
def test_check_sees_what_is_wrong(lab: Lab, spoil: str, message: str) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    lab.pod.run(*spoil.split())
    error = lab.pod.cni("CHECK").error()
    assert error["code"] == 100
    assert message in error["msg"]


@pytest.mark.every_way
def test_gc_removes_what_is_not_valid(lab: Lab) -> None:
    lab.network()
    settle(lab)
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    valid = [{"containerID": "c1", "ifname": "net1"}]
    lab.pod.cni("GC", "", **{"cni.dev/valid-attachments": valid}).ok()
    lab.pod.cni("CHECK").ok()
    lab.pod.cni("GC", "", **{"cni.dev/valid-attachments": []}).ok()
    assert difference(lab.pod, before) == ""
    assert records(lab.node) == []


# What the guest is to get.


def guest(lab: Lab) -> Any:
    (path,) = records(lab.node)
    return json.loads(path.read_text()).get("guest")


def test_the_guest_gets_what_the_pod_knew(lab: Lab) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    settings = guest(lab)["settings"]
    assert guest(lab)["ifname"] == "tap0"
    assert settings["guest_mac"] == POD_MAC
    assert (settings["v4"]["address"], settings["v4"]["gateway"]) == ("10.1.0.5/24", "10.1.0.1")
    assert (settings["v6"]["address"], settings["v6"]["router_mac"]) == ("fd99::5/64", LAN_MAC)


def test_a_guest_behind_ptp_asks_for_its_gateway_alone(node: Node) -> None:
    pod = node.pod()
    network: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", **lower(node, "ptp")}
    network["ipam"]["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    result = node.cni("ptp", "ADD", network, pod).ok()
    deadline = time.monotonic() + PATIENCE
    while "tentative" in pod.run("ip", "-6", "addr").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = snapshot(pod)
    config = {"cniVersion": "1.1.0", "name": "net", "type": "vm-bridge", "prevResult": result}
    node.cni("vm-bridge", "ADD", config, pod).ok()
    (path,) = records(node)
    settings = json.loads(path.read_text())["guest"]["settings"]
    # ptp takes the kernel's routes to the pod's network away: its host answers for no other address there.
    assert (settings["v4"]["address"], settings["v4"]["gateway"]) == ("10.244.0.2/32", "10.244.0.1")
    assert ["10.244.0.0/24", "10.244.0.1"] in [list(route.values()) for route in settings["v4"]["routes"]]
    assert (settings["v6"]["address"], settings["v6"]["routes"]) == ("fd99::2/128", ["fd99::/64"])
    node.cni("vm-bridge", "DEL", config, pod).ok()
    assert difference(pod, before) == ""
    node.cni("ptp", "DEL", network, pod).ok()


@pytest.mark.parametrize("keys", [{"lanDHCP": True}, {"guestServices": {"enabled": False}}], ids=str)
def test_a_guest_of_the_lans_gets_nothing(lab: Lab, keys: dict[str, Any]) -> None:
    lab.network()
    lab.pod.cni("ADD", **keys).ok()
    assert guest(lab) is None
    lab.pod.cni("CHECK", **keys).ok()


def test_a_network_without_addresses_is_a_wire(lab: Lab) -> None:
    lab.pod.cni("ADD").ok()
    assert guest(lab) is None
    assert lab.pod.addresses("k6t-eth0") == []
    lab.pod.cni("CHECK").ok()


@pytest.mark.alone
def test_required_guest_services_without_an_agent(lab: Lab) -> None:
    lab.network()
    settle(lab)
    before = snapshot(lab.pod)
    for command in ("ADD", "STATUS"):
        assert lab.pod.cni(command, guestServices={"autostart": False}).error()["code"] == 50
        assert difference(lab.pod, before) == ""
    lab.pod.cni("STATUS").ok()


def test_required_guest_services_are_checked(lab: Lab) -> None:
    lab.network()
    lab.node.agent()
    lab.pod.cni("ADD", guestServices={}).ok()
    lab.pod.cni("CHECK", guestServices={}).ok()
    (path,) = records(lab.node)
    forget = {"v": 1, "guest": "forget", "record": path.name}
    assert ask(lab.node.rundir / "agent.sock", forget)["ok"]
    error = lab.pod.cni("CHECK", guestServices={}).error()
    assert (error["code"], "not served" in error["msg"]) == (50, True)
    lab.pod.cni("DEL", guestServices={}).ok()
    assert records(lab.node) == []
