"""The calls of a process that stays, as the node's agent makes them: no start of an interpreter, no imports.

The process lives on its system's node and is asked through a pipe, one line of JSON each way. What it times
is `skel.run` alone: the cost of forwarding a call to such a process comes on top.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from cnvnet.cni import skel
from tests.bench.systems import CHECKOUT

_PROFILED = "--profile="


class Answer(NamedTuple):
    """What a call came to, and its milliseconds."""

    exit: int
    stdout: str
    stderr: str
    spent: float


class Resident:
    """One process on a node, until `close`."""

    def __init__(self, node: str, profile: str = "") -> None:
        command = ["nsenter", f"--net=/run/netns/{node}", sys.executable, "-m", __name__]
        if profile:
            command.append(f"{_PROFILED}{profile}")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT
        )

    def call(self, program: str, environment: Mapping[str, str], config: str) -> Answer:
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        asked.write(json.dumps([program, dict(environment), config]) + "\n")
        asked.flush()
        return Answer(*json.loads(answered.readline()))

    def close(self) -> None:
        self._process.communicate()


def _loads() -> Mapping[str, skel.Load]:
    from cnvnet.ipam.static_ip.plugin import StaticIP
    from cnvnet.kernel.resident import ResidentKernel
    from cnvnet.plugins import cnv_bridge

    kernel, static_ip = ResidentKernel(), StaticIP()
    return {
        "cnv-bridge": partial(cnv_bridge.load, kernel=kernel, static_ip=static_ip),
        "static-ip": lambda _: static_ip,
    }


def _serve(run: Callable[..., skel.Response]) -> None:
    loads = _loads()
    for line in sys.stdin:
        program, environment, config = json.loads(line)
        stdin: bytes = config.encode()
        begun = time.perf_counter_ns()
        response = run(program, loads[program], environment, lambda content=stdin: content)
        spent = (time.perf_counter_ns() - begun) / 1e6
        answer: list[Any] = [response.exit, response.stdout.decode(), response.stderr.decode(), spent]
        print(json.dumps(answer), flush=True)


def main() -> None:
    profiled = [each.removeprefix(_PROFILED) for each in sys.argv[1:] if each.startswith(_PROFILED)]
    if not profiled:
        _serve(skel.run)
        return
    import cProfile

    profile = cProfile.Profile()
    _serve(lambda *arguments: profile.runcall(skel.run, *arguments))
    profile.dump_stats(profiled[0])


if __name__ == "__main__":
    main()
