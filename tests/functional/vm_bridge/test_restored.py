"""DEL on a pod whose interface has everything that one can have, configured or from a router."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from cnvnet.plugins.vm_bridge import original
from tests.functional.crash import strace
from tests.functional.masquerade.masquerade_pod import PATIENCE
from tests.functional.vm_bridge.test_calls import furnish, records
from tests.functional.vm_bridge.test_killed import call, moments
from tests.functional.vm_bridge.vm_bridge_pod import LAN_MAC, PORT, Lab, difference, settle, snapshot

LAVISH = """
link add other type veth peer name far
link set far addrgenmode none up
link set other addrgenmode none up
addr add 10.88.0.5/24 dev other
addr add fd88::5/64 dev other nodad
addr add 10.1.0.6/24 brd 10.1.0.254 dev eth0 label eth0:six
addr add 10.1.0.7/24 dev eth0 valid_lft 4000 preferred_lft 3000
addr add 10.2.0.5/24 dev eth0 metric 300
addr add 10.2.1.5/24 dev eth0 preferred_lft 0 valid_lft forever
addr add 10.3.0.5/32 dev eth0 scope link noprefixroute
addr add 10.4.0.5 peer 10.4.0.1/32 dev eth0
addr add 10.12.0.5/24 dev eth0
route del 10.12.0.0/24 dev eth0
addr add fd95::5/64 dev eth0 nodad metric 300
addr add fd94::5/64 dev eth0 nodad valid_lft 4000 preferred_lft 0
addr add fd93::5/128 dev eth0 nodad valid_lft 4000 preferred_lft 3000 noprefixroute
addr add fd96::5/64 dev eth0 nodad home
-6 route del fd96::/64 dev eth0
link set eth0 mtu 1400 alias uplink
route add 10.20.0.0/16 via 10.1.0.1 metric 50 mtu lock 1300 advmss 1200 window 9000
route add 10.21.0.0/16 via 10.1.0.1 rto_min 100ms quickack 1 rtt 300ms initcwnd 20 hoplimit 9 src 10.1.0.6
route add 10.22.0.0/16 via 10.1.0.1 tos 0x10
route add 10.22.0.0/16 via 10.1.0.2
route append 10.22.0.0/16 via 10.1.0.3
route append 10.22.0.0/16 via 10.1.0.4 scope global proto static
route append 10.1.0.0/24 via 10.2.0.1
route add 10.23.0.0/16 via 10.1.0.1 realms 5/6
route add 10.24.0.0/16 nexthop via 10.1.0.1 weight 3 nexthop via 10.2.0.1 weight 7 onlink dev eth0
route add 10.25.0.0/16 via inet6 fd99::1 dev eth0
route add 10.26.0.0/16 via 192.0.2.1 dev eth0 onlink table 4711 proto bird
route add local 10.27.0.0/16 dev eth0
route add broadcast 10.28.0.255 dev eth0 table local
route add multicast 239.1.2.0/24 dev eth0
route add unreachable 10.29.0.0/16
route add 10.30.0.0/16 dev lo src 10.1.0.6
-6 route add fd20::/64 via fd99::1 metric 7 pref high mtu 1290 hoplimit 9
-6 route add fd21::/64 via fd99::1 expires 3000
-6 route add fd22::/64 nexthop via fd99::1 weight 3 nexthop via fd99::2 weight 7
-6 route add fd23::/64 via fe80::99 dev eth0 src fd99::5 table 4711
-6 route add local fd24::/64 dev eth0
-6 route add multicast ff05::/16 dev eth0 table local
nexthop add id 7 via 10.1.0.1 dev eth0 proto static
nexthop add id 8 via 10.1.0.2 dev eth0
nexthop add id 9 group 7,3/8,5
-6 nexthop add id 10 via fd99::1 dev eth0
nexthop add id 11 dev eth0
nexthop add id 12 blackhole
nexthop add id 13 group 7/8 type resilient buckets 16 idle_timer 60
route add 10.31.0.0/16 nhid 9
route add 10.32.0.0/16 nhid 7 metric 20
route add 10.33.0.0/16 nhid 13
route add 10.34.0.0/16 nhid 11
-6 route add fd25::/64 nhid 10
neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent proto static
neigh add 10.1.0.10 lladdr 02:00:00:00:00:10 dev eth0 nud noarp
neigh add 10.1.0.11 lladdr 02:00:00:00:00:11 dev eth0 nud permanent extern_learn
neigh add fd99::9 lladdr 02:00:00:00:00:0a dev eth0 nud permanent router
neigh add proxy 10.1.0.77 dev eth0
neigh add proxy fd99::77 dev eth0
neigh add 10.1.0.12 dev eth0 managed
neigh add 10.1.0.13 lladdr 02:00:00:00:00:13 dev eth0 nud reachable extern_learn
route add 10.35.0.0/16 nexthop via 10.1.0.1 nexthop via 10.88.0.1
route add 10.36.0.0/16 via 10.1.0.1
route prepend 10.36.0.0/16 via 10.88.0.1
route add 10.38.0.0/16 via 10.1.0.1
route append 10.38.0.0/16 via 10.1.0.2
route append 10.38.0.0/16 via 10.88.0.1
route append 10.38.0.0/16 via 10.1.0.3
-6 route add fd27::/64 via fd99::1
-6 route append fd27::/64 dev eth0
-6 route add fd26::/64 nexthop via fd99::1 nexthop via fd88::1
nexthop add id 14 via 10.88.0.1 dev other
nexthop add id 15 group 7/14
route add 10.37.0.0/16 nhid 15
maddr add 33:33:00:00:00:77 dev eth0
token set ::77 dev eth0
link property add dev eth0 altname uplink
rule add from 10.1.0.6 lookup 4711 pref 100
rule add oif eth0 lookup 4711 pref 101
rule add iif eth0 lookup 4711 pref 102
"""


def lavish(lab: Lab) -> None:
    """All of layer 3 that a link can have."""
    lab.network()
    settle(lab)
    for command in LAVISH.strip().splitlines():
        lab.pod.run("ip", *command.split())
    lab.pod.run("sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=2", "net.ipv6.conf.eth0.accept_ra=0")
    lab.pod.run("sysctl", "-qw", "net.ipv6.conf.eth0.mtu=1300")
    settle(lab)


def test_a_lavish_pod(lab: Lab) -> None:
    lavish(lab)
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    lab.pod.cni("CHECK").ok()
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""
    assert records(lab.node) == []


def test_time_goes_on_for_addresses_that_have_an_end(lab: Lab) -> None:
    ends = {"10.1.0.7/24": 1000, "fd94::5/64": 2000}
    for text, seconds in ends.items():
        lifetime = ("valid_lft", str(seconds), "preferred_lft", str(seconds // 2))
        lab.pod.run("ip", "addr", "add", text, "dev", "eth0", *lifetime)
    lab.pod.run("ip", "-6", "route", "add", "fd21::/64", "dev", "eth0", "expires", "3000")
    settle(lab)
    lab.pod.cni("ADD").ok()
    time.sleep(3)
    lab.pod.cni("DEL").ok()
    (shown,) = lab.pod.ip("addr", "show", "dev", "eth0")
    left = {
        f"{each['local']}/{each['prefixlen']}": (each["valid_life_time"], each["preferred_life_time"])
        for each in shown["addr_info"]
    }
    for text, seconds in ends.items():
        valid, preferred = left[text]
        assert seconds // 2 < valid <= seconds - 2
        assert valid - preferred in (seconds // 2 - 1, seconds // 2, seconds // 2 + 1)
    (route,) = lab.pod.ip("-6", "route", "show", "fd21::/64")
    assert 2000 < route["expires"] <= 2998


def advertise(lab: Lab, over: threading.Event) -> None:
    """A router that speaks when it is asked, on the node's end of the pod's interface."""
    ear = lab.packets(lab.node, PORT)
    ear.settimeout(0.1)
    body = ICMPv6ND_RA(routerlifetime=1800, chlim=64)
    body /= ICMPv6NDOptSrcLLAddr(lladdr=LAN_MAC) / ICMPv6NDOptMTU(mtu=1400)
    prefix = ICMPv6NDOptPrefixInfo(prefix="2001:db8:5::", prefixlen=64)
    prefix.validlifetime, prefix.preferredlifetime = 7200, 3600
    body /= prefix
    answer = Ether(src=LAN_MAC, dst="33:33:00:00:00:01") / IPv6(src="fe80::99", dst="ff02::1") / body
    while not over.is_set():
        try:
            frame = Ether(ear.recv(70000))
        except TimeoutError:
            continue
        if ICMPv6ND_RS in frame:
            ear.send(bytes(answer))


def await_advertisement(lab: Lab) -> None:
    """Until the pod has made itself an address, and duplicate detection is over."""
    deadline = time.monotonic() + PATIENCE
    while True:
        shown = lab.pod.run("ip", "-6", "addr", "show", "dev", "eth0").stdout
        if "2001:db8:5:" in shown and "tentative" not in shown:
            return
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


@pytest.mark.parametrize("permanent", [False, True], ids=["only what was heard", "a permanent one too"])
def test_what_a_router_said_is_heard_again(lab: Lab, permanent: bool) -> None:
    lab.pod.run("ip", "link", "set", "eth0", "down")
    lab.pod.run("ip", "addr", "add", "10.1.0.5/24", "dev", "eth0")
    over = threading.Event()
    router = threading.Thread(target=advertise, args=(lab, over))
    router.start()
    try:
        lab.pod.run("ip", "link", "set", "eth0", "up")
        if permanent:
            lab.pod.run("ip", "addr", "add", "fd99::5/64", "dev", "eth0")
        await_advertisement(lab)
        before = snapshot(lab.pod)
        assert any("proto ra" in line for line in before["routes -6"])
        lab.pod.cni("ADD").ok()
        lab.pod.cni("CHECK").ok()
        (path,) = records(lab.node)
        recorded = json.loads(path.read_text())["guest"]["settings"]["v6"]
        assert (recorded["router"] if recorded else None) == ("fe80::99" if permanent else None)
        lab.pod.cni("DEL").ok()
        await_advertisement(lab)
        assert difference(lab.pod, before) == ""
    finally:
        over.set()
        router.join()


def test_a_record_of_an_older_version_is_undone(lab: Lab) -> None:
    furnish(lab)
    # Which addresses are without detection of duplicates was not written down.
    for text in ("fd96::5/64", "fd97::5/64 noprefixroute", "fd99::5/64"):
        lab.pod.run("ip", "addr", "replace", *text.split(), "dev", "eth0")
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    (path,) = records(lab.node)
    record = json.loads(path.read_text())
    record["undo"]["pod"] = older(record["undo"]["pod"])
    path.write_text(json.dumps(record))
    lab.pod.cni("CHECK").ok()
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""
    assert records(lab.node) == []


def older(document: dict[str, Any]) -> dict[str, Any]:
    """The same as an older version has written it: values in the place of messages."""
    was = original.parse(document)
    assert was is not None
    kept = original.known(was)
    del document["snapshot"], document["ipv6_mtu"]
    lists = {"addresses": kept.addresses, "routes": kept.routes, "neighbours": kept.neighbours}
    document |= {name: [_texts(each) for each in found] for name, found in lists.items()}
    return {**document, "heard": [], "bare": [str(network) for network in kept.missing_connected_routes]}


def _texts(value: Any) -> dict[str, Any]:
    return {
        name: each if each is None or isinstance(each, (bool, int)) else str(each)
        for name, each in value._asdict().items()
    }


@pytest.mark.vlan  # scripts/vm-run has a kernel with dummies
def test_a_dummy_stands_in_where_the_kernel_has_one(lab: Lab) -> None:
    lavish(lab)
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    placeholder_link = lab.pod.link("eth0")
    assert placeholder_link is not None
    assert (placeholder_link["linkinfo"]["info_kind"], placeholder_link["operstate"]) == ("dummy", "DOWN")
    lab.pod.cni("CHECK").ok()
    for spoil, message in (
        ("ip link add br9 type bridge", ""),
        ("ip link set eth0 master br9", "eth0 is attached to"),
        ("ip link set eth0 nomaster", ""),
        ("ip link del br9", ""),
    ):
        lab.pod.run(*spoil.split())
        assert message in json.dumps(lab.pod.cni("CHECK").error() if message else lab.pod.cni("CHECK").ok())
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""
    assert records(lab.node) == []


@pytest.mark.vlan
@pytest.mark.parametrize("binding_first", [True, False], ids=["vm-bridge first", "what is below first"])
def test_a_dummy_goes_in_any_order(lab: Lab, binding_first: bool) -> None:
    lab.network()
    lab.pod.cni("ADD").ok()
    if binding_first:
        lab.pod.cni("DEL").ok()
    lab.pod.run("ip", "link", "del", "eth0")
    lab.pod.cni("DEL").ok()
    assert sorted(lab.pod.links()) == ["lo"]
    assert lab.node.link("lan0") is None


# Enough of the moments of each call; all of them are tried with a kernel in memory.
EVERY = 9


@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_lavish_pod_survives_a_kill_at_any_moment(lab: Lab, tmp_path: Path, command: str) -> None:
    lavish(lab)
    # The gateway known, nothing of a run depends on when it answers.
    lab.pod.run("ip", "neigh", "replace", "fd99::1", "lladdr", LAN_MAC, "dev", "eth0", "nud", "permanent")
    before = snapshot(lab.pod)
    if command == "DEL":
        call(lab, "ADD").ok()
    for moment in moments(lab, command, tmp_path / "log")[::EVERY]:
        call(lab, "ADD" if command == "DEL" else "DEL").ok()
        assert call(lab, command, strace.killing(moment)).code != 0 or command == "DEL", moment
        call(lab, "DEL").ok()
        assert difference(lab.pod, before) == "", moment
        assert records(lab.node) == [], moment
