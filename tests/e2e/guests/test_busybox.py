"""A virtual machine with nothing but busybox's clients, as small images have them.

Its DHCPv6 client asks for what it has by Request, first at the server's own address, and does not hear an
answer from there.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path

import pytest

from scripts.guest.machine import QemuGuest
from tests.e2e.guests.qemu_node import SIDES, V4, V6, Lab, Pod, Side, a_lab, assert_both_ways, serve

OPTIONS = {
    "nameservers": ["10.96.0.10", "fd99::a", "fd99::b"],
    "search": ["default.svc.cluster.local", "cluster.local"],
    "leaseSeconds": 3600,
}
EACH_PLUGIN = pytest.mark.parametrize("plugin", ["masquerade", "vm-bridge"])


def addresses(plugin: str, pod: Pod) -> dict[Side, str]:
    """The guest's."""
    return {side: side.guest if plugin == "masquerade" else pod.address(side) for side in SIDES}


def in_short(addresses: str) -> list[str]:
    """udhcpc6 writes addresses in full."""
    return [str(IPv6Address(address)) for address in addresses.split()]


def router(pod: Pod, lab: Lab, plugin: str) -> str:
    """The link-local address of the guest's next hop: the pod, or the host outside."""
    hop, ifname = (pod, "k6t-eth0") if plugin == "masquerade" else (lab.node, "br0")
    (link,) = hop.ip("addr", "show", "dev", ifname, "scope", "link")
    (found,) = (each["local"] for each in link["addr_info"] if each.get("family") == "inet6")
    return str(found)


def signal(guest: QemuGuest, name: str, until: str) -> None:
    guest.run(f"kill -{name} $(cat /run/udhcpc6.eth0); until {until}; do usleep 100000; done").ok()


@EACH_PLUGIN
def test_busybox_gets_all_that_it_needs(tmp_path: Path, plugin: str) -> None:
    with a_lab(tmp_path, {"type": plugin, "guestServices": OPTIONS}, mtu=1400) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        wanted = addresses(plugin, pod)
        assert guest.ask_dhcp()["ip"] == wanted[V4]
        lease = guest.ask_udhcpc6()
        assert (lease["event"], *in_short(lease["ipv6"])) == ("bound", wanted[V6])
        assert in_short(lease["dns"]) == ["fd99::a", "fd99::b"]
        assert lease["search"] == "default.svc.cluster.local cluster.local"
        # It tells its script a number with the bytes the wrong way round.
        assert "lease time 3600" in guest.run("cat /run/udhcpc6.eth0.log").ok()
        # All else is the kernel's: it listens to the router.
        assert guest.await_default_route6() == router(pod, lab, plugin)
        serve(guest, 80)
        for side in SIDES:
            guest.run(f"ping -c 1 -W 30 {side.outside}").ok()
            assert_both_ways(lab, pod, guest, side)


@EACH_PLUGIN
def test_busybox_renews_its_lease_gives_it_back_and_gets_it_again(tmp_path: Path, plugin: str) -> None:
    with a_lab(tmp_path, {"type": plugin, "guestServices": OPTIONS}) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        wanted = addresses(plugin, pod)[V6]
        guest.await_default_route6()
        guest.ask_udhcpc6()
        guest.run("rm /run/lease6.eth0").ok()
        signal(guest, "USR1", until="[ -e /run/lease6.eth0 ]")
        lease = guest.lease(v6=True)
        # It has not begun from the beginning.
        assert (lease["event"], *in_short(lease["ipv6"])) == ("renew", wanted)
        guest.run(f"ping -c 1 -W 30 {V6.outside}").ok()
        signal(guest, "USR2", until=f"! ip -6 addr show dev eth0 | grep -q {wanted}/")
        signal(guest, "USR1", until="[ -e /run/lease6.eth0 ]")
        lease = guest.lease(v6=True)
        assert (lease["event"], *in_short(lease["ipv6"])) == ("bound", wanted)
        guest.run(f"ping -c 1 -W 30 {V6.outside}").ok()
