"""The namespace a request is about, or the CNI error that says why it cannot be had."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Final

from cnvnet.cni.errors import INVALID_NETNS, TRY_AGAIN_LATER, CNIError
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel

# An ADD may wait for a router's answer, for an agent to start and for its answer.
_SECONDS: Final = 60.0


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


def lock(kernel: Kernel, netns: Netns) -> None:
    """Until it is closed no other call that asks for it works in this namespace. CNIError 11."""
    try:
        kernel.lock(netns, _SECONDS)
    except TimeoutError as e:
        raise CNIError(TRY_AGAIN_LATER, str(e.strerror)) from e
