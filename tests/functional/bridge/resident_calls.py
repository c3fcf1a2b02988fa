"""A process that stays, as the node's agent is one: many calls in its threads. Run by test_resident.py.

Standard input is one JSON object: `threads`, `rounds`, `killed` (before its reaper does anything), and
`calls`, each `env` and `config` of an attachment that every round adds, checks and deletes. It prints what
went wrong, and the addresses that were given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from cnvnet.cni import skel
from cnvnet.ipam.static_ip.plugin import StaticIP
from cnvnet.kernel.deferred.resident import ResidentKernel
from cnvnet.plugins.cnv_bridge import plugin as cnv_bridge


class Late:
    """A reaper whose process is killed before it has begun."""

    def notify(self) -> None:
        pass


class Attachment:
    """The calls for one of them, and what came of them."""

    def __init__(self, load: skel.Load, env: dict[str, str], config: dict[str, Any]) -> None:
        self._load = load
        self._env = env
        self._config = config
        self.problems: list[str] = []
        self.addresses: list[str] = []

    def cycle(self) -> None:
        result = json.loads(self._call("ADD", self._config) or "{}")
        self.addresses += [ip["address"] for ip in result.get("ips", [])]
        added = {**self._config, "prevResult": result}
        self._call("CHECK", added)
        self._call("DEL", added)

    def _call(self, command: str, config: dict[str, Any]) -> str:
        env = {**self._env, "CNI_COMMAND": command}
        response = skel.run("cnv-bridge", self._load, env, lambda: json.dumps(config).encode())
        if response.exit or response.stderr:
            self.problems.append(f"{command}: {response.stdout.decode()}{response.stderr.decode()}")
        return "" if response.exit else response.stdout.decode()


def main() -> None:
    asked = json.load(sys.stdin)
    kernel = ResidentKernel()
    if asked["killed"]:
        kernel.reaper = Late()
    load = partial(cnv_bridge.load, kernel=kernel, static_ip=StaticIP())
    attachments = [Attachment(load, call["env"], call["config"]) for call in asked["calls"]]
    with ThreadPoolExecutor(asked["threads"]) as threads:
        for _ in range(asked["rounds"]):
            for done in [threads.submit(each.cycle) for each in attachments]:
                done.result()
    report = {
        "problems": [problem for each in attachments for problem in each.problems],
        "addresses": [address for each in attachments for address in each.addresses],
    }
    json.dump(report, sys.stdout)
    sys.stdout.flush()
    if asked["killed"]:
        os.kill(os.getpid(), signal.SIGKILL)
    kernel.close()


if __name__ == "__main__":
    main()
