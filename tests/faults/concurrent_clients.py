"""Clients that attach and detach pods concurrently, while something else goes wrong on their node."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tests.functional.crash.node_state import AttachmentState, attachment_state, held
from tests.harness import Node, Outcome, Sandbox, installed, launchers

CLIENTS: Final = 8
TRY_AGAIN: Final = 11
NETWORK: Final[dict[str, Any]] = {
    "cniVersion": "1.1.0",
    "name": "storm",
    "type": "cnv-bridge",
    "bridge": "br0",
    "isGateway": True,
    "ipMasq": True,
    "ipMasqBackend": "nftables",
    "macspoofchk": True,
    "ipspoofchk": True,
    # Fewer addresses than would be enough if one of them leaked at each fault.
    "ipam": {"type": "static-ip", "subnet": "10.9.0.0/27"},
}


class ConcurrentClients:
    """Each client has a pod, which is a VM's or its own for its life, and calls until it is stopped.

    `codes` counts the ends of the calls, `wrong` are those that no runtime should have to see.
    """

    def __init__(self, node: Node, *, agent: str, allowed: tuple[int, ...] = (TRY_AGAIN,)) -> None:
        self._node = node
        self._agent = agent
        self._allowed = allowed
        self._pods = [node.pod() for _ in range(CLIENTS)]
        self.codes: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self._lock = threading.Lock()

    def work(self, rounds: int, fault: Callable[[], object]) -> int:
        """So many ADDs and DELs of each client, all at once, with the fault again and again meanwhile.

        How often the fault was.
        """
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._client, number, rounds) for number in range(CLIENTS)]
            faults = 0
            while not all(client.done() for client in clients):
                fault()
                faults += 1
        for client in clients:
            client.result()
        return faults

    def add(self, pod: Sandbox, container_id: str) -> Outcome:
        """One more attachment, of a pod that is no client's."""
        return self._run("ADD", pod, container_id, "")

    def delete(self, pod: Sandbox, container_id: str) -> Outcome:
        return self._run("DEL", pod, container_id, "")

    def assert_nothing_is_left(self) -> None:
        """After the last DELs: no link, element, record, marker, and no lease but those of VMs, unheld."""
        for number, pod in enumerate(self._pods):
            assert self._call("DEL", number, pod).code == 0
        self._node.await_reaper()
        assert attachment_state(self._node, *self._pods)._replace(leases=()) == AttachmentState(
            (), (), (), (), ()
        )
        assert held(self._node) == []

    def _client(self, number: int, rounds: int) -> None:
        pod = self._pods[number]
        chance = random.Random(number)
        for _ in range(rounds):
            added = self._call("ADD", number, pod)
            if added.code == 0 and chance.random() < 0.3:
                self._look(number, pod, added.json)
            # As a kubelet: until it is done, and once more.
            while self._call("DEL", number, pod).code != 0 or chance.random() < 0.1:
                pass

    def _look(self, number: int, pod: Sandbox, result: Mapping[str, Any]) -> None:
        """The pod has the address in the result, and no other pod has it."""
        assigned = {address["address"] for address in result["ips"]}
        if _addresses(pod) != assigned:
            self._complain(f"client {number}: the result has {assigned}, the pod has {_addresses(pod)}")
        for other in self._pods:
            if other is not pod and (both := _addresses(other) & assigned):
                self._complain(f"client {number}: {both} is another pod's as well")

    def _call(self, command: str, number: int, pod: Sandbox) -> Outcome:
        args = f"VM_NAMESPACE=default;VM_NAME=vm{number};VM_UID=u{number}" if number % 2 else ""
        return self._run(command, pod, f"c{number}", args)

    def _run(self, command: str, pod: Sandbox, container_id: str, args: str) -> Outcome:
        program = str(launchers() / "cnv-bridge") if self._agent == "auto" else installed("cnv-bridge")
        begun = time.monotonic()
        outcome = self._node.cni(
            program,
            command,
            NETWORK,
            pod,
            container_id=container_id,
            args=args,
            env={"CNVNET_AGENT": self._agent},
        )
        code = outcome.error()["code"] if outcome.code else 0
        with self._lock:
            self.slowest = max(self.slowest, time.monotonic() - begun)
            self.codes[command, code] += 1
            if code not in (0, *self._allowed):
                self.wrong.append(f"{command}: {outcome.stdout}{outcome.stderr}")
        return outcome

    def _complain(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)


def _addresses(pod: Sandbox) -> set[str]:
    shown = pod.run("ip", "-j", "-4", "addr", "show", "dev", "eth0", check=False).stdout
    return {
        f"{a['local']}/{a['prefixlen']}" for link in json.loads(shown or "[]") for a in link["addr_info"]
    }
