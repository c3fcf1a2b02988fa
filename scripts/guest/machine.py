"""QEMU with one network card on a tap, in the namespace and as the user that KubeVirt would run it.

It is handed its ends of all connections when it is started, so that no file of it is anywhere, and it dies
with whoever started it.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from typing import IO, Any, NamedTuple, Self

from scripts.guest.console import Console, Ended
from scripts.guest.image import image
from scripts.guest.qmp import Qmp

# The user that KubeVirt runs QEMU as, who has no capability.
QEMU_USER = 107
# Longer than anything takes on a busy machine without KVM.
PATIENCE = 90.0

_AS_QEMU_USER = (
    *("setpriv", f"--reuid={QEMU_USER}", f"--regid={QEMU_USER}", "--clear-groups"),
    *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--pdeathsig=KILL"),
)
_MACHINE = (
    *("qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", "max", "-m", "160"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    # On a busy machine the kernel may find its timer too slow to be one, and would panic.
    *("-append", "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 audit=0 no_timer_check"),
    # A place of its own, which the card can be pulled out of and put back into.
    *("-device", "pcie-root-port,id=socket,chassis=1"),
)


class Nic(NamedTuple):
    """A network card: the tap behind it and what the guest sees of it.

    `mtu` is what the device offers the guest (None: nothing). With more than one queue the tap has to be a
    multi-queue one, and the guest has as many processors, without which it would use only one of them.
    """

    tap: str
    mac: str
    mtu: int | None = None
    queues: int = 1


class Guest:
    """A running virtual machine; as a context manager it ends with the block.

    One that is started with `incoming` boots nothing: it waits for another to migrate into it.
    """

    def __init__(self, netns: str, nic: Nic, *, incoming: bool = False) -> None:
        self._nic = nic
        self._mouth: socket.socket | None = None
        with ExitStack() as undo:
            line, serial = _pair(undo)
            control, monitor = _pair(undo)
            target = None
            if incoming:
                self._mouth, target = _pair(undo)
            self._errors = undo.enter_context(tempfile.TemporaryFile("w+"))
            self._process = _start(netns, nic, serial, monitor, target, self._errors)
            undo.callback(self._end)
            for end in (serial, monitor, target):
                if end is not None:
                    end.close()  # so that QEMU's end is noticed
            self._console = Console(line)
            control.settimeout(PATIENCE)
            self.qmp = Qmp(control)
            try:
                self.qmp.negotiate()
                if not incoming:
                    self._console.wait_ready(PATIENCE)
            except (OSError, RuntimeError) as e:
                raise RuntimeError(f"{e}: {self._written()}") from e
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._undo.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, command: str, *, seconds: float = PATIENCE) -> Ended:
        """A command of the guest's shell. TimeoutError if it has not ended by then."""
        return self._console.run(command, seconds)

    def ask_dhcp(self, ifname: str = "eth0") -> dict[str, str]:
        """What the interface is given by DHCP, and has from then on: udhcpc's variables.

        The client stays, as process /run/udhcpc.IFNAME, until the next is asked for; SIGUSR1 makes it renew
        the lease.
        """
        # One that is left over from a card that was pulled out would take the addresses away again.
        self.run(f"[ ! -e /run/udhcpc.{ifname} ] || kill $(cat /run/udhcpc.{ifname})")
        options = "".join(f" -O {name}" for name in ("search", "mtu", "staticroutes"))
        client = f"udhcpc -i {ifname} -n -t 30 -T 1{options} -s /bin/udhcpc-script -p /run/udhcpc.{ifname}"
        log = f"/run/udhcpc.{ifname}.log"
        self.run(f"{client} </dev/null >{log} 2>&1 || {{ cat {log}; false; }}").ok()
        return self.lease(ifname)

    def ask_dhcp6(self, ifname: str = "eth0") -> dict[str, str]:
        """What the interface is given by DHCPv6, and has from then on: dhclient's variables."""
        files = f"-lf /run/dhclient6.{ifname}.leases -pf /run/dhclient6.{ifname}"
        self.run(f"timeout 60 dhclient -6 -1 -v -sf /bin/dhclient-script {files} {ifname}").ok()
        return self.lease(ifname, v6=True)

    def ask_udhcpc6(self, ifname: str = "eth0") -> dict[str, str]:
        """What the interface is given by DHCPv6 with busybox's client, and has from then on: its variables.

        The client stays, as process /run/udhcpc6.IFNAME; SIGUSR1 makes it renew the lease.
        """
        ready = f"until ip -6 addr show dev {ifname} scope link | grep inet6; do usleep 100000; done"
        self.run(f"ip link set {ifname} up; {ready}").ok()
        client = f"udhcpc6 -i {ifname} -n -t 30 -T 1 -s /bin/udhcpc6-script -p /run/udhcpc6.{ifname}"
        log = f"/run/udhcpc6.{ifname}.log"
        self.run(f"{client} </dev/null >{log} 2>&1 || {{ cat {log}; false; }}").ok()
        return self.lease(ifname, v6=True)

    def lease(self, ifname: str = "eth0", *, v6: bool = False) -> dict[str, str]:
        """What the client was told last."""
        shown = self.run(f"cat /run/lease{'6' if v6 else ''}.{ifname}").ok()
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def await_default_route6(self, ifname: str = "eth0") -> str:
        """The router that has advertised itself."""
        look = f"ip -6 route show dev {ifname} | sed -n 's/^default via \\([^ ]*\\).*/\\1/p' | grep ."
        return self.run(f"ip link set {ifname} up; until {look}; do usleep 100000; done").ok().strip()

    def unplug(self) -> None:
        """The card is pulled out of the running guest, and its tap let go."""
        self.qmp.execute("device_del", id="card")
        self.qmp.wait("DEVICE_DELETED", device="card")
        self.qmp.execute("netdev_del", id="tap")

    def plug(self) -> None:
        """The card is put back, on whatever tap has its name now."""
        self.qmp.execute("netdev_add", **_netdev(self._nic))
        self.qmp.execute("device_add", **_card(self._nic))

    def migrate(self, target: Guest) -> None:
        """The guest goes on in `target`, which was started to wait for it; here it stays stopped."""
        assert target._mouth is not None, "the target was not started with incoming"
        self.qmp.execute("getfd", fd=target._mouth.fileno(), fdname="target")
        target._mouth.close()
        self.qmp.execute("migrate", uri="fd:target")
        deadline = time.monotonic() + PATIENCE
        while (status := self.qmp.execute("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise RuntimeError(f"migration {status}: {self._written()}{target._written()}")
            time.sleep(0.02)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _written(self) -> str:
        """What QEMU has complained about."""
        self._errors.seek(0)
        return self._errors.read().strip()


def _pair(undo: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Our end of a connection and QEMU's."""
    ours, theirs = socket.socketpair()
    return undo.enter_context(ours), undo.enter_context(theirs)


def _start(
    netns: str,
    nic: Nic,
    serial: socket.socket,
    monitor: socket.socket,
    incoming: socket.socket | None,
    errors: IO[str],
) -> subprocess.Popen[str]:
    made = image()
    # As descriptors: QEMU's user may not be able to reach where the files are.
    with made.kernel.open("rb") as kernel, made.initrd.open("rb") as initrd:
        command = [
            "nsenter",
            f"--net={netns}",
            *_AS_QEMU_USER,
            *_MACHINE,
            *("-smp", str(nic.queues)),
            *("-kernel", f"/proc/self/fd/{kernel.fileno()}", "-initrd", f"/proc/self/fd/{initrd.fileno()}"),
            *("-chardev", f"socket,id=line,fd={serial.fileno()}", "-serial", "chardev:line"),
            *(
                "-chardev",
                f"socket,id=control,fd={monitor.fileno()}",
                "-mon",
                "chardev=control,mode=control",
            ),
            *("-netdev", _options("tap", _netdev(nic), without="type")),
            *("-device", _options("virtio-net-pci", _card(nic), without="driver")),
        ]
        if incoming is not None:
            command += ["-incoming", f"fd:{incoming.fileno()}"]
        inherited = [
            each.fileno() for each in (kernel, initrd, serial, monitor, incoming) if each is not None
        ]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, text=True, pass_fds=inherited
        )


def _netdev(nic: Nic) -> dict[str, Any]:
    """Arguments of netdev_add. There may be no vhost here, and it would not change what is tested."""
    opened = {
        "type": "tap",
        "id": "tap",
        "ifname": nic.tap,
        "script": "no",
        "downscript": "no",
        "vhost": False,
    }
    return opened | ({"queues": nic.queues} if nic.queues > 1 else {})


def _card(nic: Nic) -> dict[str, Any]:
    """Arguments of device_add, with an interrupt for each direction of each queue and two more."""
    card = {"driver": "virtio-net-pci", "id": "card", "netdev": "tap", "mac": nic.mac, "bus": "socket"}
    offered = {} if nic.mtu is None else {"host_mtu": nic.mtu}
    several = {"mq": True, "vectors": 2 * nic.queues + 2} if nic.queues > 1 else {}
    return card | offered | several


def _options(first: str, arguments: dict[str, Any], *, without: str) -> str:
    """The same arguments as an option of the command line."""
    words = {True: "on", False: "off"}
    rest = (
        f"{key}={words[value] if isinstance(value, bool) else value}"
        for key, value in arguments.items()
        if key != without
    )
    return ",".join((first, *rest))
