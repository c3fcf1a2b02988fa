"""A node with leases that ADDs have written, for the tests of cnvctl."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, Record
from cnvnet.attachment.record import Key as RecordKey
from cnvnet.cli.main import command
from cnvnet.cni.fields import Address, as_network
from cnvnet.ipam import allocator
from cnvnet.ipam.allocation import AllocationRequest, Policy
from cnvnet.ipam.lease import Holder, LeaseKey
from cnvnet.ipam.pool import Pool, Range, pool
from cnvnet.ipam.store.ref import StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.vm.identity import ACTIVE

CONTAINER = "c0ffee" * 10


def a_pool(*texts: str) -> Pool:
    """A network's ranges: all of each subnet but its first host, the gateway."""
    sets: list[tuple[Range, ...]] = []
    for text in texts:
        subnet = as_network(text, "subnet")
        last = subnet[-2] if subnet.version == 4 else subnet[-1]
        sets.append((Range(subnet, subnet[1], last, gateway=subnet[1]),))
    return pool(sets, ())


SMALL = a_pool("10.60.0.0/29")


class Node:
    """A node's folders; `at` is the time of the calls that follow, seconds before now."""

    def __init__(self, folder: Path) -> None:
        self.rundir = folder / "run"
        self.statedir = folder / "state"

    def add(
        self,
        vm: str,
        network: str = "many",
        *,
        ranges: Pool = SMALL,
        ago: int = 0,
        pod: str = "",
        container: str = "",
        role: str = ACTIVE,
        cooldown: int = 0,
        folder: Path | None = None,
    ) -> tuple[Address, ...]:
        """The addresses of an ADD; the interface of container VM, or of `container`, holds them."""
        now = int(time.time()) - ago
        key = LeaseKey(network, "default" if vm else "", vm or container, "eth0")
        holder = Holder(container or vm, "eth0", role, "/run/netns/x", 1, "boot", now, "", pod, "")
        policy = Policy(b"\x0a\x63", "vm-deleted", cooldown)
        asked = AllocationRequest(key, "", holder, ranges, policy, (), "", "", now)
        return Sqlite(str(folder or self.statedir)).run(
            lambda ledger: allocator.acquire(ledger, asked, lambda _: False).lease.ips
        )

    def delete(self, container: str, network: str = "many", *, ago: int = 0) -> None:
        Sqlite(str(self.statedir)).run(
            lambda ledger: allocator.release(ledger, network, container, "eth0", now=int(time.time()) - ago)
        )

    def cnvctl(self, *args: str, code: int = 0) -> Result:
        places = ["--rundir", str(self.rundir), "--statedir", str(self.statedir)]
        done = CliRunner().invoke(command, [*places, *args])
        assert done.exit_code == code, done.output
        return done

    def rows(self, *args: str) -> list[list[str]]:
        return [line.split() for line in self.cnvctl("leases", "list", *args).stdout.splitlines()[1:]]

    def leases(self) -> list[dict[str, Any]]:
        """All leases, with times that stay the same from one second to the next."""
        found: list[dict[str, Any]] = json.loads(self.cnvctl("leases", "list", "-o", "json").stdout)[
            "leases"
        ]
        return found

    def record(self, network: str, store: StoreRef | None = None, **ipam: Any) -> None:
        """An attachment's record that says how its network's addresses are managed."""
        undo: dict[str, Any] = {"ipam_type": "static-ip", "ipam": {"type": "static-ip", **ipam}}
        if store is not None:
            undo["store"] = store._asdict()
        key = RecordKey("cnv-bridge", network, "cid", "eth0")
        with AttachmentFiles(str(self.rundir)).locked(key) as slot:
            slot.write(Record(key, "/run/netns/x", 1, "boot", ADDED, undo))
