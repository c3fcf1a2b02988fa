"""The demo's node: the namespaces that scripts/demo has made stand for a machine.

/run and /var/lib become file systems in memory, so that cnitool, the plugins and the agent keep their files
at the paths of a real node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, NamedTuple

from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kernel.links import RETIRED_GROUP

CHECKOUT = Path(__file__).resolve().parents[1]
IFNAME = "eth0"
_NAMESPACE = "default"
_STATEDIR = "/var/lib/cnvnet"
_AGENT_SOCKET = Path("/run/cnvnet/agent.sock")
# Seconds that the agent may take to listen, on a slow machine.
_STARTING = 30.0
# Seconds that the agent may take to delete the links that a DEL has put off (cnvnet.kernel.deferred).
_DELETING = 5.0


class CallFailed(Exception):
    """A CNI call that ended with an error; the text is the error's message."""


class Vm(NamedTuple):
    """A virtual machine as the caller of a plugin knows it, and the network it is on."""

    name: str
    uid: str
    network: str


class AttachedPod(NamedTuple):
    """A pod's network namespace with a VM's interface in it, and the result of its ADD."""

    vm: Vm
    name: str
    ip: IPv4Interface
    mac: str

    @property
    def netns(self) -> str:
        """The path of the pod's namespace."""
        return netns(self.name)


def set_up() -> None:
    """Mounts the node's folders. Exits when it does not run in namespaces of scripts/demo."""
    if os.getpid() != 1:
        sys.exit("demo: start me as scripts/demo")
    for place in ("/run", "/var/lib"):
        run("mount", "-t", "tmpfs", "demo", place)
    run("ip", "link", "set", "lo", "up")


def start_agent() -> None:
    """Starts cnvnet-agent, which ends with the namespaces, and waits until it listens."""
    log = Path("/run/cnvnet-agent.log")
    with log.open("w") as out:
        command = [str(CHECKOUT / ".venv/bin/cnvnet-agent"), "--log-format", "text"]
        agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    deadline = time.monotonic() + _STARTING
    while not _AGENT_SOCKET.exists():
        if agent.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"cnvnet-agent does not start: {log.read_text()}")
        time.sleep(0.02)


def run(*argv: str) -> str:
    """Run a program; what it printed. RuntimeError if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


def netns(pod: str) -> str:
    """The path of a pod's namespace."""
    return f"/run/netns/{pod}"


def links() -> str:
    """The names of the node's links, after the agent has deleted those that DEL has put off."""
    deadline = time.monotonic() + _DELETING
    while True:
        links = json.loads(run("ip", "-j", "link"))
        names = [link["ifname"] for link in links]
        if not any(link["group"] == str(RETIRED_GROUP) for link in links) or time.monotonic() > deadline:
            return ", ".join(names)
        time.sleep(0.02)


def attach(vm: Vm, pod: str, *, requested_ip: str = "") -> AttachedPod:
    """Makes a pod and attaches it to the VM's network. CallFailed when a plugin refuses the ADD."""
    run("ip", "netns", "add", pod)
    run("ip", "-n", pod, "link", "set", "lo", "up")
    result = _cnitool("add", vm, pod, requested_ip=requested_ip)
    (inside,) = (link for link in result["interfaces"] if link.get("sandbox"))
    return AttachedPod(vm, pod, IPv4Interface(result["ips"][0]["address"]), inside["mac"])


def detach(pod: AttachedPod) -> None:
    """Delete the pod's attachment and its namespace."""
    _cnitool("del", pod.vm, pod.name)
    run("ip", "netns", "del", pod.name)


def _cnitool(verb: str, vm: Vm, pod: str, *, requested_ip: str = "") -> dict[str, Any]:
    """Makes one CNI call as a runtime does, with the VM's identity in CNI_ARGS."""
    args = (
        f"IgnoreUnknown=1;VM_NAMESPACE={_NAMESPACE};VM_NAME={vm.name};VM_UID={vm.uid};VM_INTERFACE={IFNAME}"
    )
    env = {
        "PATH": os.environ["PATH"],
        "CNI_PATH": str(CHECKOUT / ".venv/bin"),
        "NETCONFPATH": str(CHECKOUT / "conf"),
        "CNI_ARGS": f"{args};IP={requested_ip}" if requested_ip else args,
        "CNI_IFNAME": IFNAME,
    }
    command = [str(CHECKOUT / ".tools/bin/cnitool"), verb, vm.network, netns(pod)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CallFailed((done.stderr or done.stdout).strip())
    result: dict[str, Any] = json.loads(done.stdout or "{}")
    return result


def lease(vm: Vm) -> Lease | None:
    """The VM's, as the embedded store has it."""
    key = LeaseKey(vm.network, _NAMESPACE, vm.name, IFNAME)
    return Sqlite(_STATEDIR).look(lambda ledger: ledger.get(key))


def drops() -> Counter[str]:
    """How many packets the guards have dropped so far, by reason."""
    listing = json.loads(run("nft", "-j", "list", "counters", "table", "bridge", "cnv_bridge"))["nftables"]
    counters = (item["counter"] for item in listing if "counter" in item)
    return Counter({counter["name"]: counter["packets"] for counter in counters})
