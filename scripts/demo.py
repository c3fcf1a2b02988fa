"""The demo's story. scripts/demo starts it in namespaces of its own, which end with it.

The namespace it starts in plays a node, and /run and /var/lib become folders in memory, so that cnitool,
cnv-bridge and static-ip may keep their files where they would on a real one.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from cnvnet.kernel import netns

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "vms"
IFNAME = "net1"
ETH_P_IP = 0x0800
ICMP_ECHO_REQUEST = 8
# How long a frame may take through veth and bridge, generously.
ARRIVAL = 0.5

Document = dict[str, Any]

console = Console(highlight=False)
steps = itertools.count(1)


class Vm(NamedTuple):
    """A namespace that plays a virtual machine's pod, and what cnv-bridge said about its port."""

    name: str
    uid: str
    pod: str
    ip: IPv4Interface
    mac: str
    port: str

    @property
    def netns(self) -> str:
        return f"/run/netns/{self.pod}"


class Refused(Exception):
    """A CNI call that ended with an error; the text is the error's message."""


def step(title: str) -> None:
    console.print(f"\n[bold]{next(steps)}. {title}[/]")


def tell(text: str) -> None:
    console.print(Padding(text, (0, 0, 0, 3), expand=False))


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


def cnitool(verb: str, name: str, uid: str, pod: str, *, wish: str = "") -> Document:
    """One call as a runtime makes it, with the VM's identity in CNI_ARGS."""
    args = f"IgnoreUnknown=1;VM_NAMESPACE=default;VM_NAME={name};VM_UID={uid};VM_INTERFACE={IFNAME}"
    env = {
        "PATH": os.environ["PATH"],
        "CNI_PATH": str(ROOT / ".venv/bin"),
        "NETCONFPATH": str(ROOT / "conf"),
        "CNI_ARGS": f"{args};IP={wish}" if wish else args,
        "CNI_IFNAME": IFNAME,
        "CNVNET_AGENT": "off",
    }
    command = [str(ROOT / ".tools/bin/cnitool"), verb, NETWORK, f"/run/netns/{pod}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused((done.stderr or done.stdout).strip())
    result: Document = json.loads(done.stdout or "{}")
    return result


def attach(name: str, uid: str, pod: str, *, wish: str = "") -> Vm:
    """A new pod for the VM, attached to the network."""
    run("ip", "netns", "add", pod)
    run("ip", "-n", pod, "link", "set", "lo", "up")
    result = cnitool("add", name, uid, pod, wish=wish)
    port, inside = (
        item for item in result["interfaces"] if item["name"].startswith("veth") or item.get("sandbox")
    )
    return Vm(name, uid, pod, IPv4Interface(result["ips"][0]["address"]), inside["mac"], port["name"])


def detach(vm: Vm) -> None:
    cnitool("del", vm.name, vm.uid, vm.pod)
    run("ip", "netns", "del", vm.pod)


def ping(source: Vm, target: Vm) -> None:
    command = [
        "ip",
        "netns",
        "exec",
        source.pod,
        "ping",
        "-c",
        "2",
        "-i",
        "0.2",
        "-W",
        "2",
        str(target.ip.ip),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name} cannot reach {target.name}: {done.stdout}{done.stderr}")
    answered, average = re.findall(r"(\d+) received|= [\d.]+/([\d.]+)/", done.stdout)
    tell(f"{source.name} -> {target.name}: [green]{answered[0]} of 2 pings answered[/], {average[1]} ms")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(int(word) for word in struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def echo_request(mac: str, ip: str, target: Vm, mark: bytes) -> bytes:
    """An ICMP echo request in an Ethernet frame, with whatever source it is told to claim."""

    def icmp(check: int) -> bytes:
        return struct.pack("!BBHHH", ICMP_ECHO_REQUEST, 0, check, 1, 1) + mark

    def header(check: int) -> bytes:
        total = 20 + len(icmp(0))
        addresses = socket.inet_aton(ip) + socket.inet_aton(str(target.ip.ip))
        return struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0, 64, socket.IPPROTO_ICMP, check) + addresses

    macs = bytes.fromhex((target.mac + mac).replace(":", ""))
    return macs + struct.pack("!H", ETH_P_IP) + header(checksum(header(0))) + icmp(checksum(icmp(0)))


def listener(vm: Vm) -> socket.socket:
    """A raw socket on the VM's interface; a socket stays in the namespace it was opened in."""
    with netns.opened(vm.netns) as pod, netns.entered(pod):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        raw.bind((IFNAME, ETH_P_IP))
    return raw


def arrives(sender: Vm, target: Vm, mac: str, ip: str) -> bool:
    """Whether a frame that the sender's guest forges so comes out at the target."""
    mark = os.urandom(16)
    with listener(sender) as out, listener(target) as into:
        out.send(echo_request(mac, ip, target, mark))
        deadline = time.monotonic() + ARRIVAL
        while (left := deadline - time.monotonic()) > 0:
            into.settimeout(left)
            try:
                if into.recv(2048).endswith(mark):
                    return True
            except TimeoutError:
                break
    return False


def drops() -> Counter[str]:
    """What the guards have dropped so far, by reason."""
    listing = json.loads(run("nft", "-j", "list", "counters", "table", "bridge", "cnv_bridge"))["nftables"]
    counters = (item["counter"] for item in listing if "counter" in item)
    return Counter({counter["name"]: counter["packets"] for counter in counters})


def show(title: str, *vms: Vm) -> None:
    table = Table(
        title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD, show_edge=False
    )
    for column in ("VM", "pod", "interface", "IP", "MAC", "port"):
        table.add_column(column, no_wrap=True)
    for vm in vms:
        table.add_row(vm.name, vm.pod, IFNAME, str(vm.ip), vm.mac, vm.port)
    console.print(Padding(table, (1, 0, 0, 3), expand=False))


def try_frames(sender: Vm, target: Vm) -> None:
    """Sends one honest frame and two forged ones; raises when one does not fare as it should."""
    mac, ip = sender.mac, str(sender.ip.ip)
    tell(f"it sends three frames to {target.name}, with")
    cases = (
        ("its own MAC and IP", mac, ip, True),
        ("a foreign MAC", "02:de:ad:be:ef:01", ip, False),
        ("the gateway's IP", mac, str(sender.ip.network[1]), False),
    )
    for what, claimed_mac, claimed_ip, wanted in cases:
        before = drops()
        came = arrives(sender, target, claimed_mac, claimed_ip)
        reasons = ", ".join(drops() - before)
        if came != wanted:
            raise RuntimeError(
                f"a frame with {what} {'arrived' if came else 'did not arrive'} at {target.name}"
            )
        fate = "[green]arrives[/]" if came else f"[red]dropped[/] and counted as {reasons}"
        tell(f"{what} ({claimed_mac}, {claimed_ip}):")
        tell(f"  {fate}")


def story() -> None:
    step("A node with nothing on it")
    tell(f"links: {', '.join(item['ifname'] for item in json.loads(run('ip', '-j', 'link')))}")

    step("Two virtual machines start")
    tell("cnitool add vms, with conf/vms.conflist and each VM's identity in CNI_ARGS")
    a = attach("vm-a", "6f0c-a", "a-1")
    b = attach("vm-b", "91d2-b", "b-1")
    show("network vms on bridge br-vms", a, b)

    step("They reach each other")
    ping(a, b)
    ping(b, a)

    step("The guest of vm-a tries to be somebody else")
    try_frames(a, b)

    step("vm-a is restarted: its pod goes, another one comes")
    detach(a)
    tell("its pod is deleted; another VM asks for vm-a's address meanwhile:")
    try:
        attach("vm-c", "33aa-c", "c-1", wish=str(a.ip.ip))
        raise RuntimeError(f"vm-c was given {a.ip.ip}, which is vm-a's")
    except Refused as refusal:
        tell(f"[red]refused[/]: {refusal}")
    again = attach(a.name, a.uid, "a-2")
    show("before and after", a, again)
    if (again.ip, again.mac) != (a.ip, a.mac):
        raise RuntimeError(f"vm-a had {a.ip} {a.mac} and now has {again.ip} {again.mac}")
    tell("[green]same IP, same MAC[/], in another namespace with another container id")
    ping(b, again)

    step("Both leave")
    detach(again)
    detach(b)
    left = [item["ifname"] for item in json.loads(run("ip", "-j", "link"))]
    tell(f"links: {', '.join(left)}")
    tell("the bridge stays for the next VM, the addresses stay with the VMs until those are deleted")


def make_node() -> None:
    """The namespaces were just made by scripts/demo; nothing here may happen in the machine's own."""
    if os.getpid() != 1:
        sys.exit("demo: start me as scripts/demo")
    for place in ("/run", "/var/lib"):
        run("mount", "-t", "tmpfs", "demo", place)
    run("ip", "link", "set", "lo", "up")


def main() -> int:
    """Tells the story; 0 if everything in it went as it should."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    make_node()
    try:
        story()
    except KeyboardInterrupt:
        console.print("\ninterrupted; nothing is left behind")
        return 130
    except (RuntimeError, Refused) as error:
        console.print(f"\n[red]demo: {error}[/]")
        return 1
    console.print(f"\nDone in {time.monotonic() - begun:.1f} s. Nothing is left on this machine.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
