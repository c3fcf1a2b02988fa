"""The two systems: where their programs and folders are, what they are asked, and one call timed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnvnet.kernel import netns

if TYPE_CHECKING:
    from tests.bench.resident import Resident

CHECKOUT = Path(__file__).resolve().parents[2]
NETWORK = "bench"
IFNAME = "eth0"
SUBNET = "10.0.0.0/9"
# Where a call's configuration and output are kept: in memory, so that no disk is timed with them.
SCRATCH = Path("/run/bench")

REFERENCE, OURS = "reference", "cnvnet"


class System(NamedTuple):
    """One of the two on one node: a network namespace with a pod, and folders for its state."""

    name: str
    node: str
    pod: str
    bridge: str
    ipam: str
    bin: Path
    folder: Path
    # Where the calls go if not to executables.
    resident: Resident | None = None

    def config(self, kind: str) -> dict[str, Any]:
        """The network configuration of a kind: l2, macspoofchk, l3; ipam is the address manager alone."""
        base: dict[str, Any] = {"cniVersion": "1.0.0", "name": NETWORK, "type": self.bridge, "bridge": "br0"}
        ipam = {"type": self.ipam, "subnet": SUBNET, "dataDir": str(self.folder)}
        match kind:
            case "l2":
                return base
            case "macspoofchk":
                return {**base, "macspoofchk": True}
            case "l3":
                return {**base, "isGateway": True, "ipam": ipam}
            case _:
                return {**base, "ipam": ipam}

    def program(self, kind: str) -> str:
        return str(self.bin / (self.ipam if kind == "ipam" else self.bridge))


class Failed(Exception):
    """A call ended with an error; the text says which and what it printed."""


def call(
    system: System, command: str, kind: str, container_id: str, *, pod: str = ""
) -> tuple[float, dict[str, Any]]:
    """One call on the system's node: its milliseconds (from posix_spawn to wait, or in the process that
    stays), and the printed document.
    """
    config, output, errors = (SCRATCH / name for name in ("stdin", "stdout", "stderr"))
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": f"/run/netns/{pod or system.pod}",
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": str(system.bin),
        "CNVNET_AGENT": "off",
        "CNVNET_RUNDIR": f"/run/{system.node}",
        "CNVNET_STATEDIR": str(system.folder),
    }
    if system.resident is not None:
        answer = system.resident.call(
            Path(system.program(kind)).name, environment, json.dumps(system.config(kind))
        )
        if answer.exit:
            raise Failed(f"{system.name}: {command} {kind}: {answer.stdout}{answer.stderr}")
        return answer.spent, json.loads(answer.stdout) if answer.stdout else {}
    config.write_text(json.dumps(system.config(kind)))
    status, spent = _spawn(system, system.program(kind), environment, config, output, errors)
    if status:
        raise Failed(f"{system.name}: {command} {kind}: {output.read_text()}{errors.read_text()}")
    text = output.read_text()
    return spent, json.loads(text) if text.strip() else {}


def _spawn(
    system: System, program: str, environment: Mapping[str, str], config: Path, output: Path, errors: Path
) -> tuple[int, float]:
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(config), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), write, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, str(errors), write, 0o600),
    ]
    with netns.opened(f"/run/netns/{system.node}") as node, netns.entered(node):
        begun = time.perf_counter_ns()
        pid = os.posix_spawn(program, [program], environment, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        return status, (time.perf_counter_ns() - begun) / 1e6
