"""The demo's story. scripts/demo starts it in namespaces of its own, which end with it."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path
from typing import Protocol

from rich.markup import escape

from cnvnet.ipam.lease import Lease
from scripts.guest.console import Ended
from scripts.guest.machine import Guest as QemuGuest
from scripts.guest.machine import Nic
from scripts.story import node
from scripts.story.node import Pod, Refused, Vm
from scripts.story.stand_in import StandIn
from scripts.story.telling import console, quote, step, table, tell

A = Vm("vm-a", "6f0c-a", "vms")
B = Vm("vm-b", "91d2-b", "pods")
C = Vm("vm-c", "33aa-c", "vms")
TAP = "tap0"
# -n: udhcpc gives up rather than go on asking in the background.
ASK = "udhcpc -i eth0 -n -t 30 -T 1 -O mtu -O search -O staticroutes -s /bin/udhcpc-script 2>&1"
ADDRESSES = "ip addr show dev eth0 | grep -e ether -e 'inet '"
# Busybox writes the caller's address as [::ffff:A.B.C.D].
HELLO = """#!/bin/sh
caller=${REMOTE_ADDR##*:}
echo
echo "hello ${caller%]}, this is $(hostname)"
"""
# Seconds that an answer may take.
PATIENCE = 10
# An address of network vms that nobody has, and a MAC.
FOREIGN_IP, FOREIGN_MAC = "10.10.0.99", "02:de:ad:be:ef:01"


class Guest(Protocol):
    """A virtual machine, or what stands in for one."""

    def run(self, command: str, *, seconds: float = ...) -> Ended: ...
    def close(self) -> None: ...


class Story:
    """Everything in order. Each step raises RuntimeError when something is not as it should be."""

    def __init__(self, *, virtual: bool) -> None:
        self._virtual = virtual

    def tell(self) -> None:
        step("A node with nothing on it")
        tell(f"links: {node.links()}")
        node.start_agent()
        tell("cnvnet-agent starts: the plugins' calls run in it, and it will answer the guests' DHCP")

        step("Two virtual machines get a pod each")
        a, b = node.attach(A, "a-1"), node.attach(B, "b-1")
        tell("vm-a, network vms:  cnv-bridge + static-ip, then vm-bridge: the guest takes the pod's address")
        tell("vm-b, network pods: cnv-bridge + static-ip, then masquerade: the guest hides behind it")
        show_pods(a, b)

        step("The guests boot, and ask by DHCP")
        guest_a, guest_b = self._boot(a), self._boot(b)

        step("The leases are the VMs', their pods only hold them")
        show_leases(A, B)

        step("They reach each other")
        tell(f"vm-b has 10.0.2.2 for itself; to everybody else it is its pod, {b.ip.ip}")
        serve(guest_a, 80)
        serve(guest_b, 80, 81)
        ping(guest_b, b, a)
        fetch(guest_b, b, a)
        fetch(guest_a, a, b)
        refuse(guest_a, a, b, 81)

        step("The guest of vm-a tries to be somebody else")
        forge(guest_a, a)

        step("vm-a is restarted: its pod goes, another one comes")
        guest_a.close()
        node.detach(a)
        tell("the guest is off and its pod deleted; the lease stays, and nobody holds it:")
        show_leases(A)
        covet(a)
        again = node.attach(A, "a-2")
        if (again.ip, again.mac) != (a.ip, a.mac):
            raise RuntimeError(f"vm-a had {a.ip} {a.mac} and now has {again.ip} {again.mac}")
        tell("vm-a comes back in another pod:")
        guest_a = self._boot(again, brief=True)
        show_leases(A)
        tell(f"[green]same IP, same MAC[/] as before: {again.ip}, {again.mac}")
        ping(guest_b, b, again)

        step("Both leave")
        for guest, pod in ((guest_a, again), (guest_b, b)):
            guest.close()
            node.detach(pod)
        tell(f"links: {node.links()}")
        tell("the bridges stay for the next VM, the addresses stay with the VMs until those are deleted")

    def _boot(self, pod: Pod, *, brief: bool = False) -> Guest:
        """A guest on the pod's tap that has asked by DHCP; what it says of itself is shown."""
        begun = time.monotonic()
        nic = Nic(TAP, pod.mac)
        guest: Guest = QemuGuest(pod.netns, nic) if self._virtual else StandIn(pod.netns, nic)
        what = "QEMU, Linux and busybox" if self._virtual else "a namespace with busybox plays the guest"
        tell(f"{pod.vm.name}: {what}; ready after {time.monotonic() - begun:.1f} s")
        asked = guest.run(ASK)
        if asked.status:
            raise RuntimeError(f"{pod.vm.name} was not answered: {asked.output}")
        obtained = re.search(r".*lease of .* obtained.*", asked.output)
        quote("guest# udhcpc -i eth0", obtained[0] if obtained else asked.output)
        name = guest.run("hostname").output.strip()
        for command in (ADDRESSES,) if brief else (ADDRESSES, "ip route", "cat /etc/resolv.conf"):
            quote(f"{name}# {command}", guest.run(command).output)
        return guest


def show_pods(*pods: Pod) -> None:
    rows = ((pod.vm.name, pod.name, pod.vm.network, str(pod.ip), pod.mac) for pod in pods)
    table("what cnitool was told", ("VM", "pod", "network", "IP", "MAC"), rows)


def show_leases(*vms: Vm) -> None:
    """Who holds a lease is a pod, known by the path of its namespace."""
    table(
        "the store, /var/lib/cnvnet/leases.db",
        ("VM", "UID", "network", "IP", "MAC", "held by"),
        (
            (vm.name, vm.uid, vm.network, ", ".join(map(str, lease.ips)), lease.mac or "", holders(lease))
            for vm in vms
            if (lease := node.lease(vm)) is not None
        ),
    )


def holders(lease: Lease) -> str:
    return ", ".join(f"pod {Path(each.netns).name}" for each in lease.holders) or "nobody"


def serve(guest: Guest, *ports: int) -> None:
    """A web page that says who asked, and who answers."""
    page = (
        f"mkdir -p /www/cgi-bin; cat >/www/cgi-bin/hello <<'PAGE'\n{HELLO}PAGE\nchmod +x /www/cgi-bin/hello"
    )
    listen = "".join(f"\nhttpd -p {port} -h /www" for port in ports)
    done = guest.run(page + listen)
    if done.status:
        raise RuntimeError(f"no web server in the guest: {done.output}")


def ping(guest: Guest, source: Pod, target: Pod) -> None:
    done = guest.run(f"ping -c 2 -W {PATIENCE} {target.ip.ip}")
    if done.status:
        raise RuntimeError(f"{source.vm.name} cannot reach {target.vm.name}: {done.output}")
    answered = re.search(r"(\d+) packets received", done.output)
    average = re.search(r"= [\d.]+/([\d.]+)/", done.output)
    tell(
        f"{source.vm.name} pings {target.vm.name} at {target.ip.ip}: "
        f"[green]{answered[1] if answered else '?'} of 2 answered[/], {average[1] if average else '?'} ms"
    )


def fetch(guest: Guest, source: Pod, target: Pod) -> None:
    """The answer names the caller: behind masquerade that is the pod."""
    done = guest.run(f"wget -q -O - http://{target.ip.ip}/cgi-bin/hello")
    if done.status or str(source.ip.ip) not in done.output or target.vm.name not in done.output:
        raise RuntimeError(f"{source.vm.name} asked {target.ip.ip} and got {done.output!r}")
    tell(f'{source.vm.name} asks http://{target.ip.ip}: [green]"{escape(done.output.strip())}"[/]')


def refuse(guest: Guest, source: Pod, target: Pod, port: int) -> None:
    done = guest.run(f"wget -q -O - http://{target.ip.ip}:{port}/cgi-bin/hello")
    if not done.status or "refused" not in done.output:
        raise RuntimeError(f"{source.vm.name} reached port {port} of {target.vm.name}: {done.output!r}")
    tell(f"{source.vm.name} asks http://{target.ip.ip}:{port}: [red]refused[/], only port 80 is listed")


def forge(guest: Guest, pod: Pod) -> None:
    """A guest may do with its card what it likes; what is not its own does not get through its port."""
    gateway = pod.ip.network[1]
    tell(f"it pings its gateway, {gateway},")
    claims = (
        ("as itself", "", "", ""),
        (
            f"as {FOREIGN_IP}",
            f"ip addr add {FOREIGN_IP}/32 dev eth0",
            f"-I {FOREIGN_IP}",
            f"ip addr del {FOREIGN_IP}/32 dev eth0",
        ),
        (
            f"with the MAC {FOREIGN_MAC}",
            f"ip link set eth0 address {FOREIGN_MAC}",
            "",
            f"ip link set eth0 address {pod.mac}",
        ),
    )
    for claim, before, option, after in claims:
        counted = node.drops()
        guest.run(before)
        answered = not guest.run(f"ping -c 1 -W {1 if before else PATIENCE} {option} {gateway}").status
        guest.run(after)
        reasons = [reason for reason in node.drops() - counted if reason.startswith("spoofed")]
        if answered == bool(before) or answered == bool(reasons):
            raise RuntimeError(f"a ping {claim}: answered {answered}, dropped as {reasons}")
        fate = "[green]answered[/]" if answered else f"[red]dropped[/] and counted as {', '.join(reasons)}"
        tell(f"  {claim}: {fate}")


def covet(pod: Pod) -> None:
    """Another VM asks for an address that is not in use."""
    try:
        node.attach(C, "c-1", wish=str(pod.ip.ip))
    except Refused as refusal:
        tell(f"another VM asks for {pod.ip.ip} meanwhile: [red]refused[/]:\n{escape(str(refusal))}")
        node.run("ip", "netns", "del", "c-1")
    else:
        raise RuntimeError(f"{C.name} was given {pod.ip.ip}, which is {pod.vm.name}'s")


def main() -> int:
    """Tells the story; 0 if everything in it went as it should."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    node.make()
    try:
        Story(virtual="--no-vm" not in sys.argv[1:]).tell()
    except KeyboardInterrupt:
        console.print("\ninterrupted: its namespaces end with it, nothing is left")
        return 130
    except (RuntimeError, OSError, Refused) as error:
        console.print(f"\n[red]demo:[/] {escape(str(error))}")
        return 1
    console.print(f"\nDone in {time.monotonic() - begun:.1f} s.")
    tell("Its namespaces end with it: no link, no process, no rule is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
