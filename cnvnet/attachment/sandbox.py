"""The namespace a request is about, or the CNI error that says why it cannot be opened."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from cnvnet.attachment.record import Record
from cnvnet.call_context import log
from cnvnet.cni.errors import INVALID_NETNS, TRY_AGAIN_LATER, CNIError
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel, Stack

# Longer than any ADD takes, which may wait for a router, for an agent to start, and for its answer.
_SECONDS: Final = 60.0


class Pod(NamedTuple):
    """The pod's namespace as a binding works in it, open for the whole call."""

    kernel: Kernel
    netns: Netns
    stack: Stack


@contextmanager
def opened(kernel: Kernel, path: str) -> Generator[Netns]:
    """The namespace at a path, closed on exit. CNIError 8, worded as the reference plugins do."""
    with ExitStack() as stack:
        try:
            netns = stack.enter_context(kernel.netns(path))
        except OSError as e:
            problem = "no such file or directory" if isinstance(e, FileNotFoundError) else str(e)
            raise CNIError(INVALID_NETNS, f'failed to open netns "{path}": {problem}') from e
        yield netns


@contextmanager
def existing(kernel: Kernel, path: str) -> Generator[Netns | None]:
    """The namespace at a path, closed on exit; None where it has gone, or where something else is."""
    with ExitStack() as stack:
        netns: Netns | None = None
        try:
            netns = stack.enter_context(kernel.netns(path)) if path else None
        except FileNotFoundError:
            pass
        except OSError as e:
            log(f"netns {path}: {e}")
        yield netns


def lock(kernel: Kernel, netns: Netns) -> None:
    """Locks the namespace against other calls of ours until it is closed. CNIError 11."""
    try:
        kernel.lock(netns, _SECONDS)
    except TimeoutError as e:
        raise CNIError(TRY_AGAIN_LATER, str(e.strerror)) from e


def other_interfaces(records: Iterable[Record], container_id: str, ifname: str) -> frozenset[str]:
    """The interfaces of a container, but for this one, that these records are about."""
    keys = (each.key for each in records)
    return frozenset(key.ifname for key in keys if key.container_id == container_id and key.ifname != ifname)


def is_of(record: Record, netns: Netns) -> bool:
    """Whether a record is about this namespace: inodes are reused, after a boot from the beginning."""
    return record.netns_inode == netns.inode and record.boot_id == boot_id()


def is_there(record: Record) -> bool:
    """Whether the path of a record still leads to the namespace that the ADD was for."""
    try:
        return os.stat(record.netns_path).st_ino == record.netns_inode
    except (OSError, ValueError):
        return False
