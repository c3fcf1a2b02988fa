"""DEL on a pod whose interface has everything that somebody can give one, by hand or from a router."""

from __future__ import annotations

import json
from typing import Any

from cnvnet.plugins.vm_bridge import original
from tests.functional.vm_bridge.lab import Lab, difference, settle, snapshot
from tests.functional.vm_bridge.test_calls import furnish, records

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
link set eth0 mtu 1400 alias mine
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
link property add dev eth0 altname mine
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


def test_a_record_of_an_older_version_is_undone(lab: Lab) -> None:
    furnish(lab)
    # Who had asked for no detection of duplicates was not written down.
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
    return {**document, "heard": [], "bare": [str(network) for network in kept.bare]}


def _texts(value: Any) -> dict[str, Any]:
    return {
        name: each if each is None or isinstance(each, (bool, int)) else str(each)
        for name, each in value._asdict().items()
    }
