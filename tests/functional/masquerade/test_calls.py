"""The executable as runtimes call it: three ways, with everything restored in the end."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnvnet.kernel import netns, tap
from cnvnet.kernel.tap import CreateTap
from scripts.guest.tap import WITH_OWN_DEVICE, can_have_own_device
from tests.functional.bridge.bridge_network import host_local
from tests.functional.bridge.test_cnitool import Cnitool
from tests.functional.masquerade.masquerade_pod import (
    MULTI_QUEUE,
    PATIENCE,
    SIDES,
    TAP_NO_PI,
    V4,
    V6,
    Lab,
    a_lab,
    open_tap,
)
from tests.harness import VERSIONS, Node, Sandbox, namespace

# What says how much there is, or was, of something.
VOLATILE = ("nf_conntrack_count", "nf_conntrack_buckets", "stat_refresh", "neigh/default/gc", "random")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path) as made:
        yield made


def snapshot(pod: Sandbox) -> dict[str, Any]:
    """Everything of a pod that a binding could have touched."""
    lines = pod.run("grep", "-rHs", ".", "/proc/sys/net", check=False).stdout.splitlines()
    return {
        "links": pod.run("ip", "-d", "link").stdout,
        "addresses": pod.run("ip", "addr").stdout.replace(" tentative", ""),
        "routes": [route for family in ("-4", "-6") for route in _routes(pod, family)],
        "rules": pod.run("ip", "rule").stdout,
        "sysctls": [line for line in lines if not any(word in line for word in VOLATILE)],
        "nftables": pod.run("nft", "list", "ruleset").stdout,
        "iptables": pod.run("cat", "/proc/net/ip_tables_names", check=False).stdout,
    }


def _routes(pod: Sandbox, family: str) -> list[str]:
    shown = pod.run("ip", family, "route", "show", "table", "all").stdout
    return sorted(shown.replace(" linkdown", "").splitlines())  # noted a while after it is so


@pytest.mark.parametrize("sides", [SIDES, (V4,), (V6,)], ids=["both", "IPv4", "IPv6"])
@pytest.mark.parametrize("forwarding", ["0", "1"])
def test_del_leaves_the_pod_as_it_was(lab: Lab, sides: tuple[Any, ...], forwarding: str) -> None:
    pod = lab.pod(sides=sides)
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        pod.run("sysctl", "-qw", f"{key}={forwarding}")
    pod.run("sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=0", "net.ipv6.conf.lo.forwarding=1")
    before = snapshot(pod)
    pod.cni("ADD").ok()
    pod.cni("CHECK").ok()
    assert snapshot(pod) != before
    pod.cni("DEL").ok()
    assert snapshot(pod) == before
    pod.cni("DEL").ok()
    assert snapshot(pod) == before


@pytest.mark.every_way
@pytest.mark.parametrize("half", ["tap0", "k6t-eth0", "ip", "ip6", "sysctls", "record"])
def test_del_of_half_of_it_leaves_nothing(lab: Lab, half: str) -> None:
    pod = lab.pod()
    before = snapshot(pod)
    pod.cni("ADD").ok()
    if half in ("tap0", "k6t-eth0"):
        pod.run("ip", "link", "del", half)
    elif half in ("ip", "ip6"):
        pod.run("nft", "delete", "table", half, "cnv_masquerade")
    elif half == "sysctls":
        pod.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    else:
        for path in (lab.node.rundir / "attachments").iterdir():
            path.unlink()
    pod.cni("DEL").ok()
    after = snapshot(pod)
    if half == "record":
        # Only it knew the sysctls, and a router has anycast addresses.
        del before["sysctls"], after["sysctls"], before["routes"], after["routes"]
    assert after == before


@pytest.mark.every_way
def test_a_pod_that_is_gone_leaves_no_record(lab: Lab) -> None:
    pod = lab.pod()
    pod.cni("ADD").ok()
    gone = f"/proc/{os.getpid()}/ns/nothing"
    config = {"cniVersion": "1.1.0", "name": "masq", "type": "masquerade"}
    lab.node.cni("masquerade", "DEL", config, gone, ifname="net1", container_id=pod.pid).ok()
    assert list((lab.node.rundir / "attachments").iterdir()) == []


@pytest.mark.every_way
@pytest.mark.parametrize("version", VERSIONS)
def test_the_binding_network_reports_nothing(lab: Lab, version: str) -> None:
    pod = lab.pod()
    outcome = pod.cni("ADD", cniVersion=version, args={"cni": {"logicNetworkName": "default"}})
    if version in ("0.1.0", "0.2.0"):
        assert outcome.error()["code"] == 7
        assert list(pod.links()) == ["lo", "eth0"]
        return
    result = outcome.ok()
    assert {key: value for key, value in result.items() if value and value != {}} == {"cniVersion": version}
    assert sorted(pod.links()) == ["eth0", "k6t-eth0", "lo", "tap0"]


def test_the_binding_network_of_a_secondary_network_takes_its_names(lab: Lab) -> None:
    pod = lab.pod()
    pod.run("ip", "link", "set", "eth0", "name", "pod16477688c0e")
    pod.run("ip", "link", "set", "pod16477688c0e", "up")
    pod.run("ip", "link", "add", "eth0", "type", "bridge")
    pod.run("ip", "addr", "add", f"{V6.pod}/64", "dev", "pod16477688c0e", "nodad", check=False)
    blue = {"args": {"cni": {"logicNetworkName": "blue"}}}
    pod.cni("ADD", "net2", **blue).ok()
    assert {"k6t-16477688c0e", "tap16477688c0e"} < set(pod.links())
    pod.cni("CHECK", "net2", **blue).ok()
    pod.cni("DEL", "net2", **blue).ok()
    assert sorted(pod.links()) == ["eth0", "lo", "pod16477688c0e"]


def lower(node: Node, which: str) -> dict[str, Any]:
    ipam = host_local(node, "10.244.0.0/24", "fd99::/64", dataDir=str(node.folder / "ipam"))
    if which == "macvlan":
        node.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        node.run("ip", "link", "set", "up0", "up")
        node.run("ip", "link", "set", "up1", "up")
        return {"type": "macvlan", "master": "up0", "ipam": ipam}
    if which == "ptp":
        return {"type": "ptp", "ipam": ipam}
    return {"type": which, "bridge": "br1", "isDefaultGateway": True, "ipam": ipam}


@pytest.mark.parametrize("ifname", ["eth0", "pod16477688c0e"], ids=["default network", "secondary network"])
@pytest.mark.parametrize("which", ["bridge", "cnv-bridge", "ptp", "macvlan"])
def test_chained_behind_another_plugin_and_before_tuning(node: Node, which: str, ifname: str) -> None:
    pod = node.pod()
    below = lower(node, which)
    before = snapshot(pod)
    tuned = {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}
    plain = Cnitool(node, "plain", below)
    expected = plain.run("add", pod, CNI_IFNAME=ifname).ok()
    assert plain.run("del", pod, CNI_IFNAME=ifname).code == 0
    tool = Cnitool(node, "net", below, {"type": "masquerade", "ports": [{"port": 80}]}, tuned)
    result = tool.run("add", pod, CNI_IFNAME=ifname).ok()
    assert [i["name"] for i in result["interfaces"]][-1] == [i["name"] for i in expected["interfaces"]][-1]
    assert {"k6t-", "tap"} & {i["name"][:4] for i in result["interfaces"]} == set()
    assert result.get("routes") == expected.get("routes")
    taps = [name for name in pod.links() if name.startswith("tap")]
    assert taps == ["tap0" if ifname == "eth0" else "tap16477688c0e"]
    assert tool.run("check", pod, CNI_IFNAME=ifname).code == 0
    pod.run("nft", "flush", "chain", "ip", "cnv_masquerade", "guard")
    assert "chain guard: the rule" in tool.run("check", pod, CNI_IFNAME=ifname).stderr
    assert tool.run("del", pod, CNI_IFNAME=ifname).code == 0
    assert snapshot(pod) == before


def test_a_network_without_addresses_has_nothing_to_hide_behind(node: Node) -> None:
    pod = node.pod()
    tool = Cnitool(node, "net", {"type": "cnv-bridge", "bridge": "br1"}, {"type": "masquerade"})
    assert "eth0 has no address that a VM could be masqueraded behind" in tool.run("add", pod).stderr


# IPv6 routes of routers


def test_the_default_route_that_a_router_advertised_survives(lab: Lab) -> None:
    from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
    from scapy.layers.l2 import Ether

    pod = lab.pod()
    pod.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1", "net.ipv6.conf.eth0.addr_gen_mode=0")
    mouth = lab.packets(lab.node, "br0")
    advertisement = IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)
    frame = bytes(
        Ether(src=(lab.node.link("br0") or {})["address"], dst="33:33:00:00:00:01") / advertisement
    )
    with pod.popen("ip", "-6", "monitor", "route", stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout is not None
        while not pod.ip("-6", "route", "show", "default"):
            mouth.send(frame)
        monitor.terminate()
    before = pod.ip("-6", "route", "show", "default")
    assert before[0]["protocol"] == "ra"
    pod.cni("ADD").ok()
    (after,) = pod.ip("-6", "route", "show", "default")
    assert (after["gateway"], after["protocol"]) == ("fe80::1", "ra")
    pod.cni("CHECK").ok()
    pod.cni("DEL").ok()
    (last,) = pod.ip("-6", "route", "show", "default")
    assert (last["gateway"], last["protocol"]) == ("fe80::1", "ra")
    assert pod.run("sysctl", "-n", "net.ipv6.conf.eth0.accept_ra").stdout.strip() == "1"


def test_addresses_that_a_router_advertised_are_still_prolonged(lab: Lab) -> None:
    from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
    from scapy.layers.l2 import Ether

    pod = lab.pod(sides=(V4,))
    pod.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1", "net.ipv6.conf.eth0.addr_gen_mode=0")
    mouth = lab.packets(lab.node, "br0")
    source = (lab.node.link("br0") or {})["address"]

    def advertise(lifetime: int) -> None:
        # Not by a router that wants to be the default one.
        prefix = ICMPv6NDOptPrefixInfo(prefix="fd99::", validlifetime=lifetime, preferredlifetime=lifetime)
        packet = IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=0) / prefix
        mouth.send(bytes(Ether(src=source, dst="33:33:00:00:00:01") / packet))
        time.sleep(0.1)

    def lifetime() -> int:
        (shown,) = pod.ip("-6", "addr", "show", "dev", "eth0")
        found = [each["valid_life_time"] for each in shown["addr_info"] if each["local"].startswith("fd99:")]
        return found[0] if found else 0

    deadline = time.monotonic() + PATIENCE
    while not lifetime():
        assert time.monotonic() < deadline
        advertise(10000)
    pod.cni("ADD").ok()
    while lifetime() < 50000:
        assert time.monotonic() < deadline, "the pod heeds its router no more"
        advertise(90000)
    pod.cni("CHECK").ok()
    pod.cni("DEL").ok()
    assert pod.run("sysctl", "-n", "net.ipv6.conf.eth0.accept_ra").stdout == "1\n"


# the tap

OPEN = """
import fcntl, os, struct, sys
for _ in range(int(sys.argv[2])):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("=16sH22x", b"tap0", int(sys.argv[1])))
"""


@pytest.mark.parametrize("queues", [1, 2])
def test_only_qemus_user_opens_the_tap_with_its_queues(lab: Lab, queues: int) -> None:
    pod = lab.pod()
    pod.cni("ADD", queues=queues).ok()
    flags = TAP_NO_PI | (MULTI_QUEUE if queues > 1 else 0)
    # The machine's own may be root's alone (0600); a pod's may be opened by any user (0666).
    device = WITH_OWN_DEVICE if can_have_own_device() else ()
    for uid, refusal in ((107, ""), (1000, "Operation not permitted")):
        who = [*device, "setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--"]
        done = pod.run(*who, "/usr/bin/python3", "-c", OPEN, str(flags), str(queues), check=False)
        assert (done.returncode == 0) == (not refusal), done.stderr
        assert refusal in done.stderr
    pod.cni("CHECK", queues=queues).ok()


def test_a_tap_for_root_and_of_another_size(lab: Lab) -> None:
    pod = lab.pod()
    pod.cni("ADD", owner=0, group=0, mtu=1400).ok()
    shown = pod.link("tap0")
    assert shown is not None
    data = shown["linkinfo"]["info_data"]
    assert (data["user"], data["group"], shown["mtu"], shown["master"]) == ("root", "root", 1400, "k6t-eth0")


def test_an_selinux_context_where_there_is_none_is_said(lab: Lab) -> None:
    if os.path.isdir("/sys/fs/selinux"):
        pytest.skip("SELinux runs here")
    pod = lab.pod()
    before = snapshot(pod)
    context = "system_u:system_r:container_t:s0"
    error = pod.cni("ADD", selinuxContext=context).error()
    assert error["code"] == 7
    assert error["msg"] == f"selinuxContext: {context}: SELinux does not run on this node"
    assert snapshot(pod) == before


def test_a_child_makes_the_same_tap() -> None:
    with namespace() as path, netns.opened(path) as inside:
        wanted = CreateTap("tap0", owner=107, group=108, multi_queue=True)
        with netns.entered(inside):
            tap.run_child(wanted)
        shown = Sandbox(path).link("tap0")
        assert shown is not None
        data = shown["linkinfo"]["info_data"]
        assert (data["user"], data["multi_queue"], data["persist"]) == (107, True, True)
        with netns.entered(inside), pytest.raises(OSError, match="busy"):
            tap.run_child(wanted)


def test_a_tap_in_use_is_taken_away_all_the_same(lab: Lab) -> None:
    pod = lab.pod()
    before = snapshot(pod)
    pod.cni("ADD").ok()
    fd = open_tap(pod, "tap0")
    try:
        pod.cni("DEL").ok()
        assert snapshot(pod) == before
    finally:
        os.close(fd)


# others


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nft delete element ip cnv_masquerade listed { tcp . 80 }", "6 . 80 is missing in set listed"),
        ("nft delete element ip6 cnv_masquerade reserved { 49152 }", "49152 is missing in set reserved"),
        ("nft flush chain ip6 cnv_masquerade postrouting", "chain postrouting"),
        ("nft add rule ip cnv_masquerade guard drop", "chain guard: rules that"),
        ("nft delete table ip6 cnv_masquerade", "table ip6 cnv_masquerade"),
        ("nft add element ip cnv_masquerade listed { tcp . 9999 }", "not as ADD made it"),
        ("nft add chain ip cnv_masquerade guard { policy drop ; }", "not as ADD made it"),
        ("nft add chain ip cnv_masquerade other", "not as ADD made it"),
        ("ip link set tap0 down", "tap0 is down"),
        ("ip link set k6t-eth0 down", "k6t-eth0 is down"),
        ("ip link set tap0 nomaster", "tap0 is not attached"),
        ("ip link set tap0 mtu 1300", "mtu of tap0"),
        ("ip link set k6t-eth0 address 02:00:00:00:00:01", "the MAC of k6t-eth0"),
        ("ip link del tap0", "tap tap0 is missing"),
        ("ip addr del 10.0.2.1/24 dev k6t-eth0", "address 10.0.2.1/24 is missing"),
        ("ip addr del fd10:0:2::1/120 dev k6t-eth0", "address fd10:0:2::1/120 is missing"),
        ("ip -6 addr flush dev k6t-eth0 scope link", "address fe80::ff:fe00:0/64 is missing"),
        ("ip addr add 10.0.2.9/24 dev k6t-eth0", "k6t-eth0 has an address 10.0.2.9/24"),
        ("sysctl -qw net.ipv4.conf.eth0.forwarding=0", "conf/eth0/forwarding is 0"),
        ("sysctl -qw net.ipv4.conf.k6t-eth0.route_localnet=0", "route_localnet is 0"),
        ("sysctl -qw net.ipv6.conf.all.forwarding=0", "net/ipv6/conf/all/forwarding is 0"),
    ],
)
def test_check_sees_what_is_wrong(lab: Lab, spoil: str, message: str) -> None:
    pod = lab.pod()
    pod.cni("ADD", ports=[{"port": 80}]).ok()
    pod.cni("CHECK", ports=[{"port": 80}]).ok()
    pod.run(*spoil.split())
    error = pod.cni("CHECK", ports=[{"port": 80}]).error()
    assert error["code"] == 100
    assert message in error["msg"]


def test_check_sees_a_rule_that_says_something_else(lab: Lab) -> None:
    pod = lab.pod()
    pod.cni("ADD").ok()
    comment = "the guest to the loopback of the pod"
    shown = pod.run("nft", "-a", "list", "chain", "ip", "cnv_masquerade", "guard").stdout
    (line,) = (line for line in shown.splitlines() if comment in line)
    handle = line.rpartition("handle ")[2]
    pod.run("nft", f'replace rule ip cnv_masquerade guard handle {handle} accept comment "{comment}"')
    assert "not as ADD made it" in pod.cni("CHECK").error()["msg"]


@pytest.mark.every_way
def test_gc_removes_what_is_not_valid(lab: Lab) -> None:
    pod = lab.pod()
    before = snapshot(pod)
    pod.cni("ADD").ok()
    valid = [{"containerID": pod.pid, "ifname": "net1"}]
    pod.cni("GC", "", **{"cni.dev/valid-attachments": valid}).ok()
    pod.cni("CHECK").ok()
    pod.cni("GC", "", **{"cni.dev/valid-attachments": []}).ok()
    assert snapshot(pod) == before
    assert list((lab.node.rundir / "attachments").iterdir()) == []


@pytest.mark.every_way
def test_a_second_masqueraded_interface_is_refused(lab: Lab) -> None:
    pod = lab.pod()
    pod.cni("ADD").ok()
    pod.run("ip", "link", "add", "pod16477688c0e", "type", "bridge")
    pod.run("ip", "addr", "add", "10.99.0.5/24", "dev", "pod16477688c0e")
    error = pod.cni("ADD", "net2", args={"cni": {"logicNetworkName": "blue"}}).error()
    assert "another interface of this pod is masqueraded" in error["msg"]
    pod.cni("CHECK").ok()


@pytest.mark.alone
def test_guest_services_without_an_agent(lab: Lab) -> None:
    pod = lab.pod()
    before = snapshot(pod)
    for command in ("ADD", "STATUS"):
        assert pod.cni(command, guestServices={"autostart": False}).error()["code"] == 50
        assert snapshot(pod) == before
    pod.cni("STATUS").ok()
    pod.cni("ADD").ok()
    (path,) = (lab.node.rundir / "attachments").iterdir()
    guest = json.loads(path.read_text())["guest"]
    assert guest["ifname"] == "tap0"
    assert guest["settings"]["v6"]["router"] == "fe80::ff:fe00:0"
    addresses = pod.run("ip", "-6", "addr", "show", "dev", "k6t-eth0").stdout
    assert f"{V6.gateway}/120" in addresses
