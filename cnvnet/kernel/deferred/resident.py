"""The kernel as a resident process uses it: connections stay open, and deletions are put off.

An executable that ends with its call does without: it opens, uses and closes everything anew.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

from cnvnet.call_context import log
from cnvnet.kernel import netns
from cnvnet.kernel.deferred.reaper import ReaperThread
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nft import tables
from cnvnet.kernel.nft.tables import Nft
from cnvnet.kernel.nft.wire import NftConnection
from cnvnet.kernel.stack import LinuxKernel


class ResidentKernel(LinuxKernel):
    """For all threads of a process, from when it is made until `close`; made in the process' own namespace.

    Connections to that namespace's nftables stay open: the kernel delays close() until everything is freed
    that any program's transaction has deleted, which takes 10 ms and more. `report` gets what the reaper's
    thread cannot do. `ports` are those of the connections that are open.
    """

    def __init__(self, report: Callable[[str], None] = log) -> None:
        super().__init__()
        self._own_inode = netns.own_inode()
        # Those that no thread uses at the moment; append and pop are atomic.
        self._idle: list[NftConnection] = []
        self.ports: set[int] = set()
        self._reaper = ReaperThread(self, report)
        self.reaper = self._reaper

    def problems(self) -> list[str]:
        """Why retired links are still there."""
        return self._reaper.problems()

    def nft(self, netns: Netns | None = None) -> AbstractContextManager[Nft]:
        """The kept connection for the own namespace, a new one for another."""
        return self._kept_nft() if netns is None else super().nft(netns)

    def close(self) -> None:
        """Deletes what is retired. To be called when no thread uses it any more."""
        self._reaper.close()
        while self._idle:
            self._close(self._idle.pop())

    @contextmanager
    def _kept_nft(self) -> Generator[Nft]:
        # A socket acts where it was made, but the caller means the namespace that its thread is in.
        if netns.own_inode() != self._own_inode:
            raise RuntimeError("a resident kernel is for threads of its own network namespace")
        connection = self._idle_one() or self._connect()
        try:
            yield tables.Nftables(connection)
        except BaseException:
            # There may be unread answers in it, which the next transaction would take for its own.
            self._close(connection)
            raise
        self._idle.append(connection)

    def _connect(self) -> NftConnection:
        connection = tables.connect()
        self.ports.add(connection.port)
        return connection

    def _close(self, connection: NftConnection) -> None:
        # In this order: another program's socket may get its number.
        self.ports.discard(connection.port)
        connection.close()

    def _idle_one(self) -> NftConnection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None
