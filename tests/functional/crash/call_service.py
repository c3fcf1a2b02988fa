"""Calls of our executables on a node, many of them without a process of their own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cnvnet import executables
from cnvnet.cni import skel
from cnvnet.cni.skel import Response
from tests.functional.crash.strace import CONSTANT
from tests.harness import Node, Outcome, Sandbox, cni_path_of_all

_LOADS: Final = {name: executables.loader(name) for name in ("cnv-bridge", "static-ip")}
NOWHERE: Final = "/run/netns/nowhere"
"""A CNI_NETNS that an address manager need not find."""
_CLONE_NEWNET: Final = 0x40000000


class Service:
    """A thread on a node that answers calls as an executable would, within milliseconds.

    For the calls that follow the one that is killed: hundreds of them. It keeps nothing between calls.
    """

    def __init__(self, node: Node, program: str, config: Mapping[str, Any]) -> None:
        self.node = node
        self.program = program
        self.config = dict(config)
        self._thread = ThreadPoolExecutor(1, initializer=_enter, initargs=(node.netns,))

    def close(self) -> None:
        self._thread.shutdown()

    def call(
        self,
        command: str,
        container: str = "",
        pod: Sandbox | str = NOWHERE,
        args: str = "",
        *,
        more: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """One call; `more` are further keys of the configuration."""
        env = self.node.environment(
            CNI_COMMAND=command,
            CNI_CONTAINERID=container,
            CNI_NETNS=pod if isinstance(pod, str) else pod.netns,
            CNI_IFNAME="eth0" if container else "",
            CNI_ARGS=args,
            CNI_PATH=cni_path_of_all(),
        )
        stdin = json.dumps({**self.config, **(more or {})}).encode()
        answer = self._thread.submit(_answer, self.program, env, stdin).result()
        return Outcome(answer.exit, answer.stdout.decode(), answer.stderr.decode())

    def process(
        self,
        command: str,
        container: str,
        pod: Sandbox | str = NOWHERE,
        args: str = "",
        *,
        within: tuple[str, ...] = (),
        more: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """The same by the executable itself."""
        return self.node.cni(
            self.program,
            command,
            {**self.config, **(more or {})},
            pod,
            container_id=container,
            args=args,
            within=within,
            env=CONSTANT,
            timeout=120,
        )


@contextmanager
def serving(node: Node, program: str, config: Mapping[str, Any]) -> Generator[Service]:
    service = Service(node, program, config)
    gc.freeze()
    try:
        yield service
    finally:
        gc.unfreeze()
        service.close()


def addresses(outcome: Outcome) -> list[str]:
    """What an ADD that must have succeeded gave."""
    return [ip["address"].partition("/")[0] for ip in outcome.ok()["ips"]]


def keep(folder: Path, copy: Path) -> None:
    """Makes `copy` what `folder` is now; `folder` need not exist."""
    shutil.rmtree(copy, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, copy, symlinks=True)


def _answer(program: str, env: dict[str, str], stdin: bytes) -> Response:
    answer = skel.run(program, _LOADS[program], env, lambda: stdin)
    gc.collect()  # A database that is still open would make the next process' work another.
    return answer


def _enter(netns: str) -> None:
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)
