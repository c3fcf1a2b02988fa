"""What scripts/demo shows, step by step. It runs in namespaces of its own, which end with it."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path
from typing import Protocol

from rich.markup import escape

from cnvnet.ipam.lease import Lease
from cnvnet.kernel.tap import ensure_available
from scripts import demo_node as node
from scripts.demo_node import AttachedPod, CallFailed, Vm
from scripts.demo_output import command_output, console, error_message, show, step, table
from scripts.guest.console import CommandResult
from scripts.guest.machine import Nic, QemuGuest
from scripts.guest.namespace_guest import NamespaceGuest

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
# Seconds that a ping may take.
PATIENCE = 10
# An address of network vms that no VM has, and a MAC that no interface has.
FOREIGN_IP, FOREIGN_MAC = "10.10.0.99", "02:de:ad:be:ef:01"


class Guest(Protocol):
    """A virtual machine, or the namespaces that take its place with --no-vm."""

    def run(self, command: str, *, seconds: float = ...) -> CommandResult:
        """Run a shell command in the guest."""
        ...

    def close(self) -> None:
        """End the guest."""
        ...


class Demo:
    """All steps in order. A step whose outcome is not the expected one raises RuntimeError."""

    def __init__(self, *, virtual: bool) -> None:
        self._virtual = virtual

    def run(self) -> None:
        """Run all steps, in order."""
        step("A node with nothing on it")
        show(f"links: {node.links()}")
        node.start_agent()
        show("cnvnet-agent starts: the plugins' calls run in it, and it will answer the guests' DHCP")

        step("Two virtual machines get a pod each")
        a, b = node.attach(A, "a-1"), node.attach(B, "b-1")
        show("vm-a, network vms:  cnv-bridge + static-ip, then vm-bridge: the guest takes the pod's address")
        show("vm-b, network pods: cnv-bridge + static-ip, then masquerade: the guest hides behind it")
        show_pods(a, b)

        step("The guests boot, and ask by DHCP")
        guest_a, guest_b = self._boot(a), self._boot(b)

        step("The leases are the VMs', their pods only hold them")
        show_leases(A, B)

        step("They reach each other")
        show(f"vm-b has 10.0.2.2 for itself; to all others it is its pod, {b.ip.ip}")
        serve(guest_a, 80)
        serve(guest_b, 80, 81)
        ping(guest_b, b, a)
        fetch(guest_b, b, a)
        fetch(guest_a, a, b)
        fetch_refused(guest_a, a, b, 81)

        step("The guest of vm-a sends from addresses of others")
        send_forged_frames(guest_a, a)

        step("vm-a is restarted: its pod goes, another one comes")
        guest_a.close()
        node.detach(a)
        show("the guest is off and its pod deleted; the lease stays, and no pod holds it:")
        show_leases(A)
        request_held_address(a)
        again = node.attach(A, "a-2")
        if (again.ip, again.mac) != (a.ip, a.mac):
            raise RuntimeError(f"vm-a had {a.ip} {a.mac} and now has {again.ip} {again.mac}")
        show("vm-a comes back in another pod:")
        guest_a = self._boot(again, brief=True)
        show_leases(A)
        show(f"[green]same IP, same MAC[/] as before: {again.ip}, {again.mac}")
        ping(guest_b, b, again)

        step("Both leave")
        for guest, pod in ((guest_a, again), (guest_b, b)):
            guest.close()
            node.detach(pod)
        show(f"links: {node.links()}")
        show("the bridges stay for the next VM, the addresses stay with the VMs until those are deleted")

    def _boot(self, pod: AttachedPod, *, brief: bool = False) -> Guest:
        """Starts a guest on the pod's tap, configures it by DHCP and prints its addresses.

        Without `brief` also its routes and resolvers.
        """
        begun = time.monotonic()
        nic = Nic(TAP, pod.mac)
        guest: Guest = QemuGuest(pod.netns, nic) if self._virtual else NamespaceGuest(pod.netns, nic)
        what = "QEMU, Linux and busybox" if self._virtual else "a namespace with busybox plays the guest"
        show(f"{pod.vm.name}: {what}; ready after {time.monotonic() - begun:.1f} s")
        asked = guest.run(ASK)
        if asked.status:
            raise RuntimeError(f"{pod.vm.name} was not answered: {asked.output}")
        obtained = re.search(r".*lease of .* obtained.*", asked.output)
        command_output("guest# udhcpc -i eth0", obtained[0] if obtained else asked.output)
        name = guest.run("hostname").output.strip()
        for command in (ADDRESSES,) if brief else (ADDRESSES, "ip route", "cat /etc/resolv.conf"):
            command_output(f"{name}# {command}", guest.run(command).output)
        return guest


def show_pods(*pods: AttachedPod) -> None:
    """Print a table of the pods' addresses."""
    rows = ((pod.vm.name, pod.name, pod.vm.network, str(pod.ip), pod.mac) for pod in pods)
    table("results of cnitool", ("VM", "pod", "network", "IP", "MAC"), rows)


def show_leases(*vms: Vm) -> None:
    """Prints the VMs' leases; their holders are pods, known by the paths of their namespaces."""
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
    """The pods that hold a lease, in words."""
    return ", ".join(f"pod {Path(each.netns).name}" for each in lease.holders) or "no pod"


def serve(guest: Guest, *ports: int) -> None:
    """Starts web servers in the guest, whose page names the caller's address and the guest."""
    page = (
        f"mkdir -p /www/cgi-bin; cat >/www/cgi-bin/hello <<'PAGE'\n{HELLO}PAGE\nchmod +x /www/cgi-bin/hello"
    )
    listen = "".join(f"\nhttpd -p {port} -h /www" for port in ports)
    done = guest.run(page + listen)
    if done.status:
        raise RuntimeError(f"no web server in the guest: {done.output}")


def ping(guest: Guest, source: AttachedPod, target: AttachedPod) -> None:
    """Ping one guest from another. RuntimeError if it does not answer."""
    done = guest.run(f"ping -c 2 -W {PATIENCE} {target.ip.ip}")
    if done.status:
        raise RuntimeError(f"{source.vm.name} cannot reach {target.vm.name}: {done.output}")
    answered = re.search(r"(\d+) packets received", done.output)
    average = re.search(r"= [\d.]+/([\d.]+)/", done.output)
    show(
        f"{source.vm.name} pings {target.vm.name} at {target.ip.ip}: "
        f"[green]{answered[1] if answered else '?'} of 2 answered[/], {average[1] if average else '?'} ms"
    )


def fetch(guest: Guest, source: AttachedPod, target: AttachedPod) -> None:
    """Fetches the page; it has to name the caller's address, which behind masquerade is the pod's."""
    done = guest.run(f"wget -q -O - http://{target.ip.ip}/cgi-bin/hello")
    if done.status or str(source.ip.ip) not in done.output or target.vm.name not in done.output:
        raise RuntimeError(f"{source.vm.name} asked {target.ip.ip} and got {done.output!r}")
    show(f'{source.vm.name} asks http://{target.ip.ip}: [green]"{escape(done.output.strip())}"[/]')


def fetch_refused(guest: Guest, source: AttachedPod, target: AttachedPod, port: int) -> None:
    """RuntimeError unless the connection to a port is refused."""
    done = guest.run(f"wget -q -O - http://{target.ip.ip}:{port}/cgi-bin/hello")
    if not done.status or "refused" not in done.output:
        raise RuntimeError(f"{source.vm.name} reached port {port} of {target.vm.name}: {done.output!r}")
    show(f"{source.vm.name} asks http://{target.ip.ip}:{port}: [red]refused[/], only port 80 is listed")


def send_forged_frames(guest: Guest, pod: AttachedPod) -> None:
    """Pings the gateway from the guest's addresses, then from others, which the guards have to drop."""
    gateway = pod.ip.network[1]
    show(f"it pings its gateway, {gateway},")
    senders = (
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
    for sender, before, option, after in senders:
        counted = node.drops()
        guest.run(before)
        answered = not guest.run(f"ping -c 1 -W {1 if before else PATIENCE} {option} {gateway}").status
        guest.run(after)
        reasons = [reason for reason in node.drops() - counted if reason.startswith("spoofed")]
        if answered == bool(before) or answered == bool(reasons):
            raise RuntimeError(f"a ping {sender}: answered {answered}, dropped as {reasons}")
        outcome = (
            "[green]answered[/]" if answered else f"[red]dropped[/] and counted as {', '.join(reasons)}"
        )
        show(f"  {sender}: {outcome}")


def request_held_address(pod: AttachedPod) -> None:
    """A second VM asks for the address of one that is stopped, and has to be refused."""
    try:
        node.attach(C, "c-1", requested_ip=str(pod.ip.ip))
    except CallFailed as refusal:
        show(f"another VM asks for {pod.ip.ip} meanwhile: [red]refused[/]:")
        error_message(str(refusal))
        node.run("ip", "netns", "del", "c-1")
    else:
        raise RuntimeError(f"{C.name} was given {pod.ip.ip}, which is {pod.vm.name}'s")


def main() -> int:
    """Runs the demo. 0: each step had its expected outcome; 1: one had not; 130: interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    node.set_up()
    try:
        ensure_available()
        Demo(virtual="--no-vm" not in sys.argv[1:]).run()
    except KeyboardInterrupt:
        console.print("\ninterrupted: its namespaces end with it, nothing is left")
        return 130
    except (RuntimeError, OSError, CallFailed) as error:
        console.print(f"\n[red]demo:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    console.print(f"\nDone in {time.monotonic() - begun:.1f} s.")
    show("Its namespaces end with it: no link, no process, no rule is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
