"""Whether a process has the root folder of its mount namespace, or another one: that of a chroot."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from cnvnet.call_context import OWN_MOUNTS
from cnvnet.kernel.syscalls import setns, unshare

# include/uapi/linux/sched.h
_CLONE_FS: Final = 0x200
_CLONE_NEWNS: Final = 0x20000


def is_chroot() -> bool:
    """Whether this process' root folder is another one than its mount namespace's.

    The two are compared by mount, not by inode: the chroot that Multus' daemon runs plugins in is a bind
    mount of the node's own root, where every inode is the node's. OSError: the kernel lets only processes
    with CAP_SYS_ADMIN and CAP_SYS_CHROOT ask.
    """
    root = _NamespaceRoot()
    root.start()
    root.join()
    if root.error is not None:
        raise root.error
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _mount_and_inode(here) != _mount_and_inode(root.fd)
    finally:
        os.close(here)
        os.close(root.fd)


class _NamespaceRoot(threading.Thread):
    """Opens the root folder of this process' mount namespace as `fd`, or has an `error`.

    Entering a mount namespace, also the one a thread is in, gives the thread that namespace's root. The
    process keeps its own: this thread has its root and working folder for itself, and ends.
    """

    def __init__(self) -> None:
        super().__init__(name="namespace-root", daemon=True)
        self.fd = -1
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            namespace = os.open(OWN_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            try:
                unshare(_CLONE_FS)
                setns(namespace, _CLONE_NEWNS)
                self.fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                os.close(namespace)
        except OSError as e:
            self.error = e


def _mount_and_inode(fd: int) -> tuple[int, int]:
    """Which mount an open folder is in, and which inode of it: proc_pid_fdinfo(5)."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    mount = next(line for line in lines if line.startswith("mnt_id:"))
    return int(mount.split()[1]), os.fstat(fd).st_ino
