"""QEMU with one network card on a tap, in the namespace and as the user that KubeVirt would run it.

QEMU inherits its ends of all connections as descriptors, so that it needs no socket files, and the kernel
kills it when the process that started it ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any, NamedTuple, Self

from scripts.guest import tap
from scripts.guest.console import CommandResult, Console
from scripts.guest.image import image
from scripts.guest.qmp import Qmp

# The user that KubeVirt runs QEMU as; it has no capabilities.
QEMU_USER = 107
# Seconds: longer than any step takes on a busy machine without KVM.
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
    # A PCIe slot of its own: the root bus of q35 has no hotplug.
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


class QemuGuest:
    """A running virtual machine; as a context manager it ends with the block.

    With `incoming` it boots nothing and waits until another guest migrates into it.
    """

    def __init__(self, netns: str, nic: Nic, *, incoming: bool = False) -> None:
        self._netns = netns
        self._nic = nic
        self._migration_target: socket.socket | None = None
        with ExitStack() as undo:
            line, serial = _pair(undo)
            control, monitor = _pair(undo)
            target = None
            if incoming:
                self._migration_target, target = _pair(undo)
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
                raise RuntimeError(f"{e}: {self._error_output()}") from e
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the virtual machine."""
        self._undo.close()

    @property
    def pid(self) -> int:
        """The process of QEMU."""
        return self._process.pid

    def run(self, command: str, *, seconds: float = PATIENCE) -> CommandResult:
        """A command of the guest's shell. TimeoutError if it has not ended by then."""
        return self._console.run(command, seconds)

    def ask_dhcp(self, ifname: str = "eth0") -> dict[str, str]:
        """Configures the interface by DHCP and returns udhcpc's variables.

        The client stays until the next call (/run/udhcpc.IFNAME has its process id); SIGUSR1 makes it renew
        the lease.
        """
        # A client that is left from a card that was pulled out would take the addresses away again.
        self.run(f"[ ! -e /run/udhcpc.{ifname} ] || kill $(cat /run/udhcpc.{ifname})")
        options = "".join(f" -O {name}" for name in ("search", "mtu", "staticroutes"))
        client = f"udhcpc -i {ifname} -n -t 30 -T 1{options} -s /bin/udhcpc-script -p /run/udhcpc.{ifname}"
        log = f"/run/udhcpc.{ifname}.log"
        self.run(f"{client} </dev/null >{log} 2>&1 || {{ cat {log}; false; }}").ok()
        return self.lease(ifname)

    def ask_dhcp6(self, ifname: str = "eth0") -> dict[str, str]:
        """Configures the interface by DHCPv6 and returns dhclient's variables."""
        files = f"-lf /run/dhclient6.{ifname}.leases -pf /run/dhclient6.{ifname}"
        self.run(f"timeout 60 dhclient -6 -1 -v -sf /bin/dhclient-script {files} {ifname}").ok()
        return self.lease(ifname, v6=True)

    def ask_udhcpc6(self, ifname: str = "eth0") -> dict[str, str]:
        """Configures the interface by busybox's DHCPv6 client and returns its variables.

        The client stays (its process id is in /run/udhcpc6.IFNAME); SIGUSR1 makes it renew the lease.
        """
        ready = f"until ip -6 addr show dev {ifname} scope link | grep inet6; do usleep 100000; done"
        self.run(f"ip link set {ifname} up; {ready}").ok()
        client = f"udhcpc6 -i {ifname} -n -t 30 -T 1 -s /bin/udhcpc6-script -p /run/udhcpc6.{ifname}"
        log = f"/run/udhcpc6.{ifname}.log"
        self.run(f"{client} </dev/null >{log} 2>&1 || {{ cat {log}; false; }}").ok()
        return self.lease(ifname, v6=True)

    def lease(self, ifname: str = "eth0", *, v6: bool = False) -> dict[str, str]:
        """The variables of the client's last lease."""
        shown = self.run(f"cat /run/lease{'6' if v6 else ''}.{ifname}").ok()
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def await_default_route6(self, ifname: str = "eth0") -> str:
        """The router that has advertised itself."""
        look = f"ip -6 route show dev {ifname} | sed -n 's/^default via \\([^ ]*\\).*/\\1/p' | grep ."
        return self.run(f"ip link set {ifname} up; until {look}; do usleep 100000; done").ok().strip()

    def unplug(self) -> None:
        """Pulls the card out of the running guest, and makes QEMU close its tap."""
        self.qmp.execute("device_del", id="card")
        self.qmp.wait("DEVICE_DELETED", device="card")
        self.qmp.execute("netdev_del", id="tap")

    def plug(self) -> None:
        """Plugs the card in again, on the tap that has its name now."""
        names: list[str] = []
        with ExitStack() as undo:
            for fd in _tap_descriptors(self._netns, self._nic, undo):
                names.append(f"queue{len(names)}")
                self.qmp.execute("getfd", send=fd, fdname=names[-1])
        self.qmp.execute("netdev_add", **_netdev(self._nic, names))
        self.qmp.execute("device_add", **_card(self._nic))

    def migrate(self, target: QemuGuest) -> None:
        """Moves the guest to `target`, which was started with `incoming`; here it stays stopped."""
        assert target._migration_target is not None, "the target was not started with incoming"
        self.qmp.execute("getfd", send=target._migration_target.fileno(), fdname="target")
        target._migration_target.close()
        self.qmp.execute("migrate", uri="fd:target")
        deadline = time.monotonic() + PATIENCE
        while (status := self.qmp.execute("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise RuntimeError(f"migration {status}: {self._error_output()}{target._error_output()}")
            time.sleep(0.02)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _error_output(self) -> str:
        """QEMU's error messages, with the remedy where one is known."""
        self._errors.seek(0)
        return tap.with_remedy(self._errors.read().strip())


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
    with ExitStack() as undo:
        # As descriptors: QEMU's user may not be able to reach where the files are.
        kernel, initrd = (undo.enter_context(path.open("rb")) for path in made)
        handed = _tap_descriptors(netns, nic, undo)
        command = [
            "nsenter",
            f"--net={netns}",
            *(() if handed else tap.WITH_OWN_DEVICE),
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
            *("-netdev", _options("tap", _netdev(nic, handed), without="type")),
            *("-device", _options("virtio-net-pci", _card(nic), without="driver")),
        ]
        if incoming is not None:
            command += ["-incoming", f"fd:{incoming.fileno()}"]
        inherited = [
            each.fileno() for each in (kernel, initrd, serial, monitor, incoming) if each is not None
        ]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            text=True,
            pass_fds=[*inherited, *handed],
        )


def _tap_descriptors(netns: str, nic: Nic, undo: ExitStack) -> list[int]:
    """The tap's queues, open for QEMU until `undo`; none where QEMU can open them itself."""
    if tap.can_have_own_device():
        return []
    flags = tap.VNET_HDR | (tap.MULTI_QUEUE if nic.queues > 1 else 0)
    opened: list[int] = []
    for _ in range(nic.queues):
        opened.append(tap.open_tap(netns, nic.tap, flags))
        undo.callback(os.close, opened[-1])
    return opened


def _netdev(nic: Nic, handed: Sequence[object] = ()) -> dict[str, Any]:
    """Arguments of netdev_add; `handed` are the numbers or names of descriptors that QEMU was given.

    There may be no vhost here, and it would not change what is tested.
    """
    if handed:
        key = "fd" if len(handed) == 1 else "fds"
        backend: dict[str, Any] = {key: ":".join(map(str, handed))}
    else:
        backend = {"ifname": nic.tap, "script": "no", "downscript": "no"}
        backend |= {"queues": nic.queues} if nic.queues > 1 else {}
    return {"type": "tap", "id": "tap", **backend, "vhost": False}


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
