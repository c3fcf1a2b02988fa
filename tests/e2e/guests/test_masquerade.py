"""masquerade with a virtual machine behind it, reached and reaching out as KubeVirt's users do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.guest.machine import QEMU_USER, QemuGuest
from tests.e2e.guests.qemu_node import SIDES, V4, V6, a_lab, assert_both_ways, fetch, renew_lease, serve

# The link-local address that follows from the MAC of masquerade's bridge.
ROUTER6 = "fe80::ff:fe00:0"


def masquerade(**keys: Any) -> dict[str, Any]:
    return {"type": "masquerade", **keys}


def configure(guest: QemuGuest) -> None:
    """What a guest does when it boots: all its settings come from the agent."""
    assert guest.ask_dhcp()["ip"] == V4.guest
    assert guest.await_default_route6() == ROUTER6
    assert guest.ask_dhcp6()["new_ip6_address"] == V6.guest


def test_a_guest_gets_all_that_it_needs(tmp_path: Path) -> None:
    options = {
        "hostname": "vm-a",
        "nameservers": ["10.96.0.10", "fd99::a"],
        "search": ["default.svc.cluster.local", "cluster.local"],
        "leaseSeconds": 3600,
    }
    with a_lab(tmp_path, masquerade(guestServices=options), mtu=1400) as lab:
        guest = lab.guest(lab.pod())
        lease = guest.ask_dhcp()
        assert (lease["ip"], lease["mask"], lease["router"]) == (V4.guest, "24", V4.gateway)
        assert (lease["mtu"], lease["lease"], lease["serverid"]) == ("1400", "3600", V4.gateway)
        assert guest.run("hostname; cat /sys/class/net/eth0/mtu").ok().split() == ["vm-a", "1400"]
        assert guest.run("cat /etc/resolv.conf").ok().splitlines() == [
            "nameserver 10.96.0.10",
            "search default.svc.cluster.local cluster.local",
        ]
        assert guest.await_default_route6() == ROUTER6
        lease6 = guest.ask_dhcp6()
        assert (lease6["new_ip6_address"], lease6["new_dhcp6_name_servers"]) == (V6.guest, "fd99::a")
        assert lease6["new_dhcp6_domain_search"] == "default.svc.cluster.local. cluster.local."
        # The router gives a way out and no address: there is one from DHCPv6, and none made up beside it.
        assert guest.run("grep -c ' 00 .* eth0' /proc/net/if_inet6").ok() == "1\n"
        for side in SIDES:
            guest.run(f"ping -c 1 -W 30 {side.outside}").ok()


def test_an_agent_that_was_killed_is_not_missed(tmp_path: Path) -> None:
    with a_lab(tmp_path, masquerade()) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        configure(guest)
        serve(guest, 80)
        lab.agent.kill()
        for side in SIDES:
            assert fetch(lab.node, side, pod.address(side), 80, "/name") == b"guest"
        lab.agent.start()
        renew_lease(guest)
        configure(guest)


def test_a_listed_port_leads_to_the_guest_and_the_guest_goes_out_as_its_pod(tmp_path: Path) -> None:
    with a_lab(tmp_path, masquerade(ports=[{"port": 80}])) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        configure(guest)
        serve(guest, 80, 81)
        for side in SIDES:
            assert_both_ways(lab, pod, guest, side)
            # The guest would answer there: it is the pod that does not.
            with pytest.raises(ConnectionRefusedError):
                fetch(lab.node, side, pod.address(side), 81, "/name")
        pod.check()


def test_programs_of_the_pod_reach_the_guest_by_the_loopback_address(tmp_path: Path) -> None:
    """`kubectl port-forward` connects there."""
    with a_lab(tmp_path, masquerade()) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        # As cloud-init does it: the guest brings its addresses along and needs no DHCP server.
        guest.run("ip link set eth0 up; ip addr add 10.0.2.2/24 dev eth0").ok()
        serve(guest, 80)
        assert fetch(pod, V4, "127.0.0.1", 80, "/name") == b"guest"


@pytest.mark.parametrize("mtu", [1400, 8900])
def test_nothing_is_cut_into_pieces_on_its_way(tmp_path: Path, mtu: int) -> None:
    with a_lab(tmp_path, masquerade(), mtu) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        configure(guest)
        serve(guest, 80)
        assert guest.run("cat /sys/class/net/eth0/mtu").ok() == f"{mtu}\n"
        before = pod.fragments()
        for side, headers in zip(SIDES, (28, 48), strict=True):
            assert_both_ways(lab, pod, guest, side)
            guest.run(f"ping -c 1 -W 30 -s {mtu - headers} {side.outside}").ok()
        assert pod.fragments() == before
        # It would have shown.
        guest.run(f"ping -c 1 -W 30 -s {mtu} {V4.outside}").ok()
        assert pod.fragments() != before


@pytest.mark.usefixtures("_opened")
def test_qemu_opens_the_tap_without_any_privilege(tmp_path: Path) -> None:
    with a_lab(tmp_path, masquerade()) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        status = Path(f"/proc/{guest.pid}/status").read_text()
        assert f"Uid:\t{QEMU_USER}\t{QEMU_USER}\t{QEMU_USER}" in status
        assert "CapEff:\t0000000000000000" in status


@pytest.mark.usefixtures("_opened")
def test_qemu_does_not_open_a_tap_of_another_user(tmp_path: Path) -> None:
    with (
        a_lab(tmp_path, masquerade(owner=1000, group=1000)) as lab,
        pytest.raises(RuntimeError, match="Operation not permitted"),
    ):
        lab.guest(lab.pod())


@pytest.mark.usefixtures("_either_way")
def test_a_tap_for_several_queues(tmp_path: Path) -> None:
    with a_lab(tmp_path, masquerade(queues=2)) as lab:
        pod = lab.pod()
        # The two have to agree, as the documentation says.
        with pytest.raises(RuntimeError, match="could not configure /dev/net/tun"):
            lab.guest(pod)
        guest = lab.guest(pod, queues=2)
        configure(guest)
        serve(guest, 80)
        queues = guest.run("ls /sys/class/net/eth0/queues; grep -c 'virtio.*-input' /proc/interrupts").ok()
        assert queues.split() == ["rx-0", "rx-1", "tx-0", "tx-1", "2"]
        for side in SIDES:
            assert_both_ways(lab, pod, guest, side)


@pytest.mark.usefixtures("_either_way")
def test_an_attachment_is_renewed_under_a_running_guest(tmp_path: Path) -> None:
    """As when an interface is unplugged and plugged in again: KubeVirt takes the card away first."""
    with a_lab(tmp_path, masquerade()) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        configure(guest)
        serve(guest, 80)
        guest.unplug()
        pod.detach()
        assert pod.link("tap0") is None
        pod.attach()
        guest.plug()
        configure(guest)
        for side in SIDES:
            assert_both_ways(lab, pod, guest, side)


def test_the_next_pod_of_a_guest_is_the_same_to_it(tmp_path: Path) -> None:
    """A restart: another pod, and the guest finds what it knows."""
    with a_lab(tmp_path, masquerade()) as lab:
        for _ in range(2):
            pod = lab.pod()
            with lab.guest(pod) as guest:
                configure(guest)
                serve(guest, 80)
                for side in SIDES:
                    assert_both_ways(lab, pod, guest, side)
            pod.detach()
