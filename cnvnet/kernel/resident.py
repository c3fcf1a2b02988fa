"""The kernel as a process that stays uses it: some things are kept, and deletions are put off.

An executable that ends with its call does without: it opens, uses and closes everything anew.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

from cnvnet.diagnostics import say
from cnvnet.kernel import netns, nft
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nfnetlink import Connection
from cnvnet.kernel.nft import Nft
from cnvnet.kernel.reaper import ReaperThread
from cnvnet.kernel.stack import LinuxKernel


class ResidentKernel(LinuxKernel):
    """For all threads of a process, from when it is made until `close`; made in the process' own namespace.

    Connections to that namespace's nftables stay open: the kernel lets nobody close one before everything is
    freed that anybody's transaction has deleted, which takes 10 ms and more. `report` is told what its own
    thread cannot do.
    """

    def __init__(self, report: Callable[[str], None] = say) -> None:
        super().__init__()
        self._home = netns.own_inode()
        # Those that no thread uses at the moment; append and pop are atomic.
        self._idle: list[Connection] = []
        self._reaper = ReaperThread(self, report)
        self.reaper = self._reaper

    def problems(self) -> list[str]:
        """Why links that nobody wants any more are still there."""
        return self._reaper.problems()

    def nft(self, netns: Netns | None = None) -> AbstractContextManager[Nft]:
        return self._kept_nft() if netns is None else super().nft(netns)

    def close(self) -> None:
        """Deletes what is retired. To be called when no thread uses it any more."""
        self._reaper.close()
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _kept_nft(self) -> Generator[Nft]:
        # A socket acts where it was made, and whoever asks means the namespace that his thread is in.
        if netns.own_inode() != self._home:
            raise RuntimeError("a resident kernel is for threads of its own network namespace")
        connection = self._idle_one() or nft.connect()
        try:
            yield nft.Nftables(connection)
        except BaseException:
            # There may be answers in it which the next transaction would take for its own.
            connection.close()
            raise
        self._idle.append(connection)

    def _idle_one(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None
