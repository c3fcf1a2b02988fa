"""vm-bridge with a virtual machine in the place of its pod, on the LAN that the pod was on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.guest.machine import QemuGuest
from tests.e2e.guests.qemu_node import (
    SIDES,
    V4,
    V6,
    Lab,
    Pod,
    a_lab,
    assert_both_ways,
    fetch,
    renew_lease,
    serve,
)

BINDING = {"type": "vm-bridge"}


def configure(pod: Pod, guest: QemuGuest) -> dict[str, str]:
    """What a guest does when it boots: it asks for the pod's addresses."""
    lease = guest.ask_dhcp()
    assert lease["ip"] == pod.address(V4)
    guest.await_default_route6()
    assert guest.ask_dhcp6()["new_ip6_address"] == pod.address(V6)
    return lease


def link_local(pod: Pod) -> str:
    """The guest's, whose MAC address is the pod's."""
    first, *rest = bytes.fromhex(pod.mac.replace(":", ""))
    host = bytes([first ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]]).hex(":", 2)
    return "fe80::" + ":".join(f"{int(word, 16):x}" for word in host.split(":"))


def check(lab: Lab, pod: Pod) -> None:
    """CHECK of vm-bridge alone.

    The reference's bridge, before it in the list, misses the pod's veth, as it does with KubeVirt's own
    binding.
    """
    (record,) = (lab.node.rundir / "attachments").glob("vm-bridge-*.json")
    container = json.loads(record.read_text())["containerid"]
    config = {"cniVersion": "1.1.0", "name": "pods", **BINDING, "prevResult": pod.result}
    lab.node.cni("vm-bridge", "CHECK", config, pod, container_id=container).ok()


def test_a_guest_is_its_pod_to_everyone(tmp_path: Path) -> None:
    with a_lab(tmp_path, BINDING, mtu=1400) as lab:
        pod = lab.pod()
        mac = pod.mac
        guest = lab.guest(pod)
        lease = configure(pod, guest)
        assert (lease["mask"], lease["mtu"]) == ("24", "1400")
        assert guest.run("ip route | sed -n 's/^default via //p'").ok().split()[0] == V4.outside
        serve(guest, 80)
        for side in SIDES:
            assert_both_ways(lab, pod, guest, side)
            (neighbour,) = lab.node.ip("neigh", "show", "to", pod.address(side))
            assert neighbour["lladdr"] == mac
        check(lab, pod)


def test_vlans_and_multicast_pass_between_guests(tmp_path: Path) -> None:
    with a_lab(tmp_path, BINDING) as lab:
        pods = [lab.pod(), lab.pod()]
        guests = [lab.guest(pod) for pod in pods]
        for number, (pod, guest) in enumerate(zip(pods, guests, strict=True), start=1):
            configure(pod, guest)
            guest.run(f"""
                ip link add link eth0 name eth0.33 type vlan id 33
                ip addr add 192.0.2.{number}/24 dev eth0.33
                ip link set eth0.33 up
                echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts
            """).ok()
        one, other = guests
        one.run("ping -c 2 -W 30 192.0.2.2").ok()
        # As large as an untagged one may be: the tag is no part of the MTU.
        one.run("ping -c 1 -W 30 -s 1472 192.0.2.2").ok()
        for group, answer in (("224.0.0.1", pods[1].address(V4)), ("ff02::1", link_local(pods[1]))):
            replies = one.run(f"ping -I eth0 -c 3 -W 5 {group}").output
            assert f"from {answer}" in replies, replies
        assert other.run("ping -c 1 -W 30 192.0.2.1").status == 0


def test_an_agent_that_was_killed_is_not_missed(tmp_path: Path) -> None:
    with a_lab(tmp_path, BINDING) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        configure(pod, guest)
        serve(guest, 80)
        lab.agent.kill()
        for side in SIDES:
            assert fetch(lab.node, side, pod.address(side), 80, "/name") == b"guest"
        lab.agent.start()
        renew_lease(guest)
        configure(pod, guest)


@pytest.fixture
def suite(tmp_path: Path) -> Any:
    """The network of a VM that keeps its addresses: all three plugins together."""
    vm = {"namespace": "default", "name": "vm-a", "uid": "6f0c", "interface": "eth0"}
    ipam = {
        "type": "static-ip",
        "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd99::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    return {"type": "cnv-bridge", "ipam": ipam, "args": {"cni": {"vm": vm}}}


def test_an_attachment_is_renewed_under_a_running_guest(tmp_path: Path, suite: Any) -> None:
    """As when an interface is unplugged and plugged in again, with a new attachment of the same VM."""
    with a_lab(tmp_path, BINDING, **suite) as lab:
        pod = lab.pod()
        guest = lab.guest(pod)
        configure(pod, guest)
        serve(guest, 80)
        before = [pod.mac, *(pod.address(side) for side in SIDES)]
        guest.unplug()
        pod.detach()
        assert list(pod.links()) == ["lo"]
        pod.attach()
        assert [pod.mac, *(pod.address(side) for side in SIDES)] == before
        guest.plug()
        configure(pod, guest)
        for side in SIDES:
            assert_both_ways(lab, pod, guest, side)
