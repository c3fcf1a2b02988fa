"""The node of the story: the namespaces that scripts/demo made play it.

/run and /var/lib become folders in memory, so that cnitool, the plugins and the agent keep their files where
they would on a real one.
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

from cnvnet.ipam.lease import Key, Lease
from cnvnet.ipam.sqlite import Sqlite
from cnvnet.kernel.links import RETIRED_GROUP

CHECKOUT = Path(__file__).resolve().parents[2]
IFNAME = "eth0"
_NAMESPACE = "default"
_STATEDIR = "/var/lib/cnvnet"
_AGENT_SOCKET = Path("/run/cnvnet/agent.sock")
# How long the agent may take to listen, on a slow machine.
_STARTING = 30.0
# How long it may take to delete retired links (cnvnet.kernel.retired).
_DELETING = 5.0


class Refused(Exception):
    """A CNI call that ended with an error; the text is the error's message."""


class Vm(NamedTuple):
    """A virtual machine as the caller of a plugin knows it, and the network it is on."""

    name: str
    uid: str
    network: str


class Pod(NamedTuple):
    """A namespace that a VM is attached in, and what the plugins said about it."""

    vm: Vm
    name: str
    ip: IPv4Interface
    mac: str

    @property
    def netns(self) -> str:
        return netns(self.name)


def make() -> None:
    """Nothing here may happen in the machine's own namespaces."""
    if os.getpid() != 1:
        sys.exit("demo: start me as scripts/demo")
    for place in ("/run", "/var/lib"):
        run("mount", "-t", "tmpfs", "demo", place)
    run("ip", "link", "set", "lo", "up")


def start_agent() -> None:
    """It ends with the namespaces, as everything does."""
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
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


def netns(pod: str) -> str:
    return f"/run/netns/{pod}"


def links() -> str:
    """The names of the node's links, once the agent has deleted what it is about to."""
    deadline = time.monotonic() + _DELETING
    while True:
        links = json.loads(run("ip", "-j", "link"))
        names = [link["ifname"] for link in links]
        if not any(link["group"] == str(RETIRED_GROUP) for link in links) or time.monotonic() > deadline:
            return ", ".join(names)
        time.sleep(0.02)


def attach(vm: Vm, pod: str, *, wish: str = "") -> Pod:
    """A new pod for the VM, attached to its network. Refused when the plugins say no."""
    run("ip", "netns", "add", pod)
    run("ip", "-n", pod, "link", "set", "lo", "up")
    result = _cnitool("add", vm, pod, wish=wish)
    (inside,) = (link for link in result["interfaces"] if link.get("sandbox"))
    return Pod(vm, pod, IPv4Interface(result["ips"][0]["address"]), inside["mac"])


def detach(pod: Pod) -> None:
    _cnitool("del", pod.vm, pod.name)
    run("ip", "netns", "del", pod.name)


def _cnitool(verb: str, vm: Vm, pod: str, *, wish: str = "") -> dict[str, Any]:
    """One call as a runtime makes it, with the VM's identity in CNI_ARGS."""
    args = (
        f"IgnoreUnknown=1;VM_NAMESPACE={_NAMESPACE};VM_NAME={vm.name};VM_UID={vm.uid};VM_INTERFACE={IFNAME}"
    )
    env = {
        "PATH": os.environ["PATH"],
        "CNI_PATH": str(CHECKOUT / ".venv/bin"),
        "NETCONFPATH": str(CHECKOUT / "conf"),
        "CNI_ARGS": f"{args};IP={wish}" if wish else args,
        "CNI_IFNAME": IFNAME,
    }
    command = [str(CHECKOUT / ".tools/bin/cnitool"), verb, vm.network, netns(pod)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused((done.stderr or done.stdout).strip())
    result: dict[str, Any] = json.loads(done.stdout or "{}")
    return result


def lease(vm: Vm) -> Lease | None:
    """The VM's, as the embedded store has it."""
    with Sqlite(_STATEDIR).reading() as store:
        return store.get(Key(vm.network, _NAMESPACE, vm.name, IFNAME))


def drops() -> Counter[str]:
    """What the guards have dropped so far, by reason."""
    listing = json.loads(run("nft", "-j", "list", "counters", "table", "bridge", "cnv_bridge"))["nftables"]
    counters = (item["counter"] for item in listing if "counter" in item)
    return Counter({counter["name"]: counter["packets"] for counter in counters})
