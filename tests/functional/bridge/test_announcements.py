"""A pod whose address was another's is reachable at once: neighbours hear the new MAC."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP, Ether

from cnvnet.guest.frames import mac as packed
from cnvnet.kernel.addresses import link_local
from tests.functional.bridge.bridge_network import OURS, Network
from tests.functional.datapath.guarded_bridge import packet_socket
from tests.harness import Node, Sandbox

OLD, NEW = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
V4, V6 = "10.1.2.5", "fd00::5"
NEIGHBOURS = ("10.1.2.9/24", "fd00::9/64")
NODAD: dict[str, Any] = {}
DAD = {"enabledad": True}
GUARDED = {"macspoofchk": True, "ipspoofchk": True}


@contextmanager
def heard_by(sandbox: Sandbox) -> Generator[list[Any]]:
    """The frames that come to a sandbox while the block runs, as scapy's packets."""
    found: list[Any] = []
    with ExitStack() as opened:
        ear = opened.enter_context(packet_socket(sandbox))
        yield found
        ear.settimeout(0.3)
        try:
            while True:
                found.append(Ether(ear.recv(2000)))
        except TimeoutError:
            pass


def announced(frames: list[Any], mac: str) -> set[str]:
    """The addresses that a MAC has claimed for itself without being asked."""
    arps = [f[ARP] for f in frames if ARP in f and f.src == mac and f[ARP].psrc == f[ARP].pdst != "0.0.0.0"]
    advertisements = [f[ICMPv6ND_NA] for f in frames if ICMPv6ND_NA in f and f.src == mac]
    assert all(each.O == 1 and each.S == 0 and each.R == 0 for each in advertisements)
    return {arp.psrc for arp in arps} | {each.tgt for each in advertisements}


@pytest.fixture
def neighbour(node: Node) -> Sandbox:
    """A pod on the bridge with addresses of the LAN."""
    made = node.pod()
    Network(node, OURS).add(made, container_id="neighbour").ok()
    for address in NEIGHBOURS:
        made.run("ip", "addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    return made


def network(node: Node, mac: str, **keys: Any) -> Network:
    """One whose address manager always gives the same addresses."""
    ipam = {"type": "static", "addresses": [{"address": f"{V4}/24"}, {"address": f"{V6}/64"}]}
    return Network(node, OURS, ipam=ipam, args={"cni": {"mac": mac}}, **keys)


def vm(node: Node, role: str, **keys: Any) -> Network:
    """One of static-ip, which says which pods are a VM's."""
    ipam = {
        "type": "static-ip",
        "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]],
        "dataDir": str(node.statedir),
    }
    args = {"cni": {"vm": {"name": "vm1", "uid": "u1", "role": role}}}
    return Network(node, OURS, ipam=ipam, args=args, **keys)


@pytest.mark.parametrize("keys", [NODAD, DAD], ids=["no-dad", "dad"])
@pytest.mark.parametrize("role", ["target", "temp"])
def test_a_pod_beside_the_one_that_runs_the_vm_announces_nothing(
    node: Node, neighbour: Sandbox, keys: dict[str, Any], role: str
) -> None:
    """The addresses are the source's until the VM has moved; the VM's first pod is announced."""
    with heard_by(neighbour) as frames:
        source = vm(node, "active", **keys).add(node.pod(), container_id="source").ok()
    mac = source["interfaces"][2]["mac"]
    addresses = {ip["address"].partition("/")[0] for ip in source["ips"]}
    assert announced(frames, mac) == {*addresses, str(link_local(packed(mac)))}
    announcing = node.pod()
    for key in ("net/ipv4/conf/all/arp_notify", "net/ipv6/conf/all/ndisc_notify"):
        announcing.run("sysctl", "-qw", f"{key}=1")  # as a pod inherits it from its node
    with heard_by(neighbour) as frames:
        target = vm(node, role, **keys).add(announcing, container_id="target").ok()
    assert target["interfaces"][2]["mac"] == mac
    assert [ip["address"] for ip in target["ips"]] == [ip["address"] for ip in source["ips"]]
    assert announced(frames, mac) == set()


@pytest.mark.parametrize("keys", [NODAD, DAD, GUARDED], ids=["no-dad", "dad", "guarded"])
def test_a_pod_with_another_mac_is_reachable_at_once(
    node: Node, neighbour: Sandbox, keys: dict[str, Any]
) -> None:
    first, second = node.pod(), node.pod()
    network(node, OLD, **keys).add(first, container_id="first").ok()
    for address in (V4, V6):
        neighbour.run("ping", "-qc1", "-w10", address)
    network(node, OLD, **keys).delete(first, container_id="first").ok()
    with heard_by(neighbour) as frames:
        network(node, NEW, **keys).add(second, container_id="second").ok()
        for address in (V4, V6):
            # A stale entry is asked for anew after five seconds.
            assert neighbour.run("ping", "-qc1", "-W3", address, check=False).returncode == 0, address
    assert announced(frames, NEW) == {V4, V6, str(link_local(packed(NEW)))}
