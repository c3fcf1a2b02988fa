"""A machine behind a pod's tap, in which programs of a distribution run as they are shipped.

The machine is a set of namespaces: whatever a program does to the network, to /etc, /run and /var/lib or to
the host name is done to the machine only, and no process outlives it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any, NamedTuple

from cnvnet.guest import settings as guest_settings
from cnvnet.guest.settings import GuestNeighbour, GuestRoute, Settings
from tests.functional.agent.own_agent import RunningAgent, running_agent
from tests.functional.guest.running_loop import Guest, Loop
from tests.functional.masquerade import masquerade_pod as masquerade
from tests.functional.masquerade.masquerade_pod import GUEST_MAC, SIDES, V4, V6, Side, Wire, socket_in
from tests.harness import Sandbox, a_node, namespace

# Longer than any client tries, on a busy machine.
PATIENCE = 60.0
MTU = 1400

# /run comes first: an overlay's upper folder cannot be on another overlay, as /tmp may be. A read-only /sys
# is how systemd knows that there is no udev to wait for.
_BOOT = """
set -e
mount -t tmpfs run /run
for folder in /etc /var/lib; do
    own=/run/machine$folder
    mkdir -p $own/upper $own/work
    mount -t overlay -o lowerdir=$folder,upperdir=$own/upper,workdir=$own/work machine $folder
done
rm -f /etc/resolv.conf
mount -t sysfs -o ro sysfs /sys
hostname localhost
echo
exec cat
"""
_LOG = "/run/clients.log"
# linux/in.h, linux/in6.h: what a connected socket may send at once.
_IP_MTU = 14
_IPV6_MTU = 24

OPTIONS: dict[str, Any] = {
    "hostname": "vm1",
    "nameservers": ["10.96.0.10", "fd00:10:96::a", "10.96.0.11"],
    "search": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
    "ntpServers": ["10.244.0.1", "fd99::1"],
}

# A network that gives its pods single addresses, and a next hop that answers no ARP (AWS VPC CNI,
# Calico); besides the default route one that needs the same next hop, and one that needs none.
HOP_MAC = "0a:58:a9:fe:01:01"
POINT_TO_POINT = Settings(
    server_mac="02:00:00:00:00:4b",
    guest_mac=GUEST_MAC,
    mtu=MTU,
    hostname="vm1",
    v4=guest_settings.V4(
        IPv4Interface("192.168.21.225/32"),
        IPv4Address("169.254.75.10"),
        IPv4Address("169.254.1.1"),
        (
            GuestRoute(IPv4Network("10.200.0.0/16"), IPv4Address("169.254.1.1")),
            GuestRoute(IPv4Network("192.168.99.0/24")),
        ),
    ),
    v6=guest_settings.V6(IPv6Interface("fd00:21::e1/128"), IPv6Address("fe80::1"), HOP_MAC),
    neighbours=(GuestNeighbour(IPv4Address("169.254.1.1"), HOP_MAC),),
)


# Hosts behind the next hop, which only a default route leads to.
BEHIND = {V4: "10.9.9.9", V6: "fd99:9::9"}


class Machine(Sandbox):
    """A guest with its interface eth0, which is down and knows nothing yet."""

    def __init__(self, netns: str, pid: int) -> None:
        super().__init__(netns)
        self._enter = ("nsenter", f"--target={pid}", "--net", "--mount", "--pid", "--uts")

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "timeout": PATIENCE, **options}
        done = subprocess.run([*self._enter, *argv], text=True, check=False, **options)
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def start(self, script: str) -> None:
        """Runs what leaves processes behind, which would keep our pipes open."""
        done = self.run("sh", "-c", f"exec >>{_LOG} 2>&1 </dev/null\n{script}", check=False)
        assert done.returncode == 0, f"{script}: {self.read(_LOG)}"

    def read(self, path: str) -> str:
        """A file's content, "" if it is not there."""
        return self.run("cat", path, check=False).stdout

    def write(self, path: str, content: str, mode: str = "644") -> None:
        self.run(
            "sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"', "", path, mode, input=content
        )

    def settled(self, side: Side) -> list[str]:
        """The interface's global addresses with their lengths that can be used by now."""
        (link,) = self.ip("addr", "show", "dev", "eth0")
        family = "inet" if side is V4 else "inet6"
        return [
            f"{found['local']}/{found['prefixlen']}"
            for found in link["addr_info"]
            if found["family"] == family and found["scope"] == "global" and not found.get("tentative")
        ]

    def link_local(self) -> bool:
        """Whether the interface can speak IPv6."""
        (link,) = self.ip("addr", "show", "dev", "eth0", "scope", "link")
        return any(found["family"] == "inet6" and not found.get("tentative") for found in link["addr_info"])

    def routes(self, side: Side) -> dict[str, str]:
        """The gateway ("": none) of each destination in the main table."""
        shown = self.ip("-4" if side is V4 else "-6", "route", "show", "dev", "eth0")
        return {route["dst"]: route.get("gateway", "") for route in shown}

    def report(self) -> str:
        """What has become of it, to find the reason of a failure."""
        script = f"ip addr; ip -4 route; ip -6 route; cat /etc/resolv.conf {_LOG}"
        return self.run("sh", "-c", script, check=False).stdout

    def mtu(self, side: Side, towards: str) -> int:
        """The largest packet to a host, whether the link or a route says so."""
        level, option = (0, _IP_MTU) if side is V4 else (41, _IPV6_MTU)
        with socket_in(self, side.family, 2) as probe:
            probe.connect((towards, 9))
            return probe.getsockopt(level, option)


@contextmanager
def a_machine(netns: str) -> Generator[Machine]:
    """A machine on the interface of a network namespace."""
    namespaces = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    command = ["nsenter", f"--net={netns}", *namespaces, "sh", "-c", _BOOT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline(), "the machine does not start"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
        yield Machine(netns, int(children))


class Way(NamedTuple):
    """How a guest is bound to its pod: by which plugin, its addresses, IPv4 gateway and IPv6 network."""

    plugin: str
    addresses: dict[Side, str]
    gateway: str
    link: str


MASQUERADE = Way("masquerade", {V4: "10.0.2.2/24", V6: "fd10:0:2::2/128"}, "10.0.2.1", "fd10:0:2::/120")
VM_BRIDGE = Way("vm-bridge", {V4: "10.244.0.5/24", V6: "fd99::5/128"}, "10.244.0.1", "fd99::/64")


class Lab(masquerade.Lab):
    """The lab of masquerade; its guest is a machine without addresses until a client gets it some."""

    def __init__(self, folder: Path, undo: ExitStack) -> None:
        super().__init__(undo.enter_context(a_node(folder)), undo, MTU)
        # The guest finds out by itself about an MTU that is smaller.
        self.guest.run("ip", "link", "set", "eth0", "mtu", "1500", "down")
        self.machine = undo.enter_context(a_machine(self.guest.netns))

    def _address_guest(self, side: Side) -> None:
        pass

    def bind(self, way: Way, *, mtus: dict[Side, int] | None = None, **options: Any) -> RunningAgent:
        """The machine behind a pod's interface, served by the node's agent.

        `mtus` are those of the pod's default routes, where they have any.
        """
        agent = self._undo.enter_context(running_agent(self.node))
        pod = self.pod()
        # vm-bridge gives the guest the pod's addresses: one that had another MAC would be another machine.
        pod.run("ip", "link", "set", "eth0", "address", GUEST_MAC)
        for side in SIDES:
            metric = ("mtu", str(mtus[side])) if mtus else ()
            pod.run("ip", "route", "add", "default", "via", side.outside, "dev", "eth0", *metric)
        config = {
            "cniVersion": "1.1.0",
            "name": "guests",
            "type": way.plugin,
            "guestServices": {**OPTIONS, **options},
        }
        use_agent = {"CNVNET_AGENT": "auto"}
        added = self.node.cni(
            way.plugin, "ADD", config, pod, ifname="net1", container_id=pod.pid, env=use_agent
        )
        # pytest shows it with a test that fails: what a guest does not get has a reason there.
        sys.stderr.write(added.stderr)
        added.ok()
        self.plug(pod)
        return agent

    def serve(self, settings: Settings) -> Hop:
        """The machine on a tap by itself, served by a packet loop as these settings say."""
        loop = Loop(self._undo)
        hop = Hop(self._undo.enter_context(namespace()), self._undo, loop)
        hop.offer(settings)
        self.unplug()
        self._wire.append(Wire(hop.tap.fd, self._guest_tap))
        self._undo.callback(self.unplug)  # before the tap is closed
        return hop


class Hop(Sandbox):
    """The next hop of a guest, and all that is behind it, in one namespace."""

    def __init__(self, netns: str, undo: ExitStack, loop: Loop) -> None:
        super().__init__(netns)
        self.loop = loop
        self.tap = Guest(self, "tap0", undo, up=False)
        self.tap.link("address", HOP_MAC, "addrgenmode", "none", "up")
        for address in (*BEHIND.values(), "10.200.0.1", "192.168.99.1"):
            self.run("ip", "addr", "add", address, "dev", "lo", *(("nodad",) if ":" in address else ()))

    def offer(self, settings: Settings) -> None:
        """Serves the guest so from now on."""
        assert self.loop.serve("vm1", self.tap, settings) == {"served": "vm1"}
        for given in (settings.v4, settings.v6):
            if given is not None:
                self.run("ip", "route", "replace", str(given.address.ip), "dev", "tap0")
