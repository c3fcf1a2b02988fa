"""A guest without QEMU: namespaces with busybox in them, and a thread that carries frames between taps.

The thread does what QEMU's tap backend does: it copies frames between the pod's tap and the guest's eth0.
"""

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

from scripts.guest.console import CommandResult, Console
from scripts.guest.image import FILES
from scripts.guest.machine import PATIENCE, Nic
from scripts.guest.tap import open_tap

# include/uapi/linux/sockios.h, include/uapi/linux/if_arp.h
_SIOCSIFHWADDR = 0x8924
_ARPHRD_ETHER = 1
_FRAME = 65536
# What scripts/guest/files/init does in a virtual machine, without its kernel modules.
_INIT = "busybox --install -s /bin; ip link set lo up; hostname guest; echo ready; exec sh"


class NamespaceGuest:
    """A guest of busybox alone, with one network card, eth0. It ends with `close` or with this process."""

    def __init__(self, pod: str, nic: Nic) -> None:
        with ExitStack() as undo:
            root = Path(tempfile.mkdtemp(prefix="guest-", dir="/run"))
            undo.callback(shutil.rmtree, root)
            line, serial = socket.socketpair()
            undo.enter_context(line)
            with serial:
                self._process = _start(_root_file_system(root), serial)
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self._console = Console(line)
            self._console.wait_ready(PATIENCE)
            outside = open_tap(pod, nic.tap)
            undo.callback(os.close, outside)
            card = open_tap(f"/proc/{self._process.pid}/ns/net", "eth0")
            undo.callback(os.close, card)
            mac = bytes.fromhex(nic.mac.replace(":", ""))
            fcntl.ioctl(card, _SIOCSIFHWADDR, struct.pack("=16sH6s16x", b"eth0", _ARPHRD_ETHER, mac))
            undo.callback(_FrameCopier(outside, card).stop)
            self._undo = undo.pop_all()

    def run(self, command: str, *, seconds: float = PATIENCE) -> CommandResult:
        """A command of the guest's shell. TimeoutError if it has not ended by then."""
        return self._console.run(command, seconds)

    def close(self) -> None:
        """End the guest's processes."""
        self._undo.close()


class _FrameCopier(threading.Thread):
    """Copies frames between two taps, both ways, until `stop`."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(daemon=True)
        self._ends = {left: right, right: left}
        # Closing the first end notifies the thread, which polls the second one.
        self._stop_sender, self._stop_receiver = socket.socketpair()
        self.start()

    def run(self) -> None:
        poll = select.poll()
        for end in (*self._ends, self._stop_receiver.fileno()):
            poll.register(end, select.POLLIN)
        while True:
            for end, _ in poll.poll():
                if end == self._stop_receiver.fileno():
                    return
                try:
                    os.write(self._ends[end], os.read(end, _FRAME))
                except OSError:
                    pass  # EIO: a tap that is down takes no frames, as a cable that is unplugged

    def stop(self) -> None:
        self._stop_sender.close()
        self.join()
        self._stop_receiver.close()


def _root_file_system(root: Path) -> Path:
    """Fills `root` with busybox, the script of its DHCP client and empty mount points."""
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
