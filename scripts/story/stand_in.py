"""A guest without an emulator: a namespace with a system of its own, behind the tap that QEMU would have."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from cnvnet.kernel import netns
from scripts.guest.console import Console, Ended
from scripts.guest.image import FILES
from scripts.guest.machine import PATIENCE, Nic

# include/uapi/linux/if_tun.h, include/uapi/linux/sockios.h, include/uapi/linux/if_arp.h
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI = 0x1002
_SIOCSIFHWADDR = 0x8924
_ARPHRD_ETHER = 1
_FRAME = 65536
# The same as the first program of a real guest, but for the modules.
_INIT = "busybox --install -s /bin; ip link set lo up; hostname guest; echo ready; exec sh"


class StandIn:
    """Busybox and nothing else, with one card, eth0. Ends with `close`, and with whoever started it."""

    def __init__(self, pod: str, nic: Nic) -> None:
        with ExitStack() as undo:
            root = Path(tempfile.mkdtemp(prefix="guest-", dir="/run"))
            undo.callback(shutil.rmtree, root)
            line, serial = socket.socketpair()
            undo.enter_context(line)
            with serial:
                self._process = _start(_furnished(root), serial)
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self._console = Console(line)
            self._console.wait_ready(PATIENCE)
            outside = _tap(pod, nic.tap)
            undo.callback(os.close, outside)
            card = _tap(f"/proc/{self._process.pid}/ns/net", "eth0")
            undo.callback(os.close, card)
            mac = bytes.fromhex(nic.mac.replace(":", ""))
            fcntl.ioctl(card, _SIOCSIFHWADDR, struct.pack("=16sH6s16x", b"eth0", _ARPHRD_ETHER, mac))
            undo.callback(_Wire(outside, card).cut)
            self._undo = undo.pop_all()

    def run(self, command: str, *, seconds: float = PATIENCE) -> Ended:
        """A command of the guest's shell. TimeoutError if it has not ended by then."""
        return self._console.run(command, seconds)

    def close(self) -> None:
        self._undo.close()


class _Wire(threading.Thread):
    """Carries frames between two taps, as QEMU does between tap and guest."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(daemon=True)
        self._ends = {left: right, right: left}
        self._knife, self._edge = socket.socketpair()
        self.start()

    def run(self) -> None:
        waiting = select.poll()
        for end in (*self._ends, self._edge.fileno()):
            waiting.register(end, select.POLLIN)
        while True:
            for end, _ in waiting.poll():
                if end == self._edge.fileno():
                    return
                try:
                    os.write(self._ends[end], os.read(end, _FRAME))
                except OSError:
                    pass  # a card that is down takes nothing

    def cut(self) -> None:
        self._knife.close()
        self.join()
        self._edge.close()


def _furnished(root: Path) -> Path:
    """A root file system."""
    for folder in ("bin", "dev", "etc", "proc", "run", "tmp"):
        (root / folder).mkdir()
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("busybox is not here: apt-get install busybox-static")
    shutil.copy2(busybox, root / "bin/busybox")
    shutil.copy2(FILES / "udhcpc", root / "bin/udhcpc-script")
    return root


def _start(root: Path, serial: socket.socket) -> subprocess.Popen[bytes]:
    mounts = f"mount --rbind /dev {root}/dev; mount -t proc proc {root}/proc"
    inside = f'{mounts}; exec chroot {root} /bin/busybox sh -c "$0"'
    unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child"]
    return subprocess.Popen(
        [*unshare, "sh", "-ec", inside, _INIT],
        stdin=serial.fileno(),
        stdout=serial.fileno(),
        stderr=serial.fileno(),
        env={"PATH": f"/bin:{os.environ['PATH']}"},
    )


def _tap(path: str, name: str) -> int:
    """A tap of a namespace, made if it is not there. A descriptor stays where it was opened."""
    with netns.opened(path) as opened, netns.entered(opened):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), _IFF_TAP_NO_PI))
    return fd
