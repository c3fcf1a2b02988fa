"""A network whose addresses static-ip gives out, and the calls made for VMs on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from ipaddress import ip_address
from typing import Any

from tests.harness import Node, Outcome, Sandbox

NOWHERE = "/run/netns/nowhere"
"""A CNI_NETNS for calls that need not find it: an address manager never enters it."""


class Addresses:
    """One network's configuration on a node, its `ipam` keys given by the test."""

    def __init__(self, node: Node, version: str = "1.1.0", /, **ipam: Any) -> None:
        self.node = node
        self.config: dict[str, Any] = {
            "cniVersion": version,
            "name": "blue",
            "ipam": {"type": "static-ip", **(ipam or {"subnet": "10.1.0.0/24"})},
        }

    def call(
        self,
        command: str,
        container: str,
        vm: str = "",
        *,
        args: str = "",
        pod: Sandbox | str = NOWHERE,
        within: Sequence[str] = (),
        config: dict[str, Any] | None = None,
    ) -> Outcome:
        """`config` is added to the network's own, `args` to the CNI_ARGS that name the VM."""
        named = f"VM_NAME={vm}" if vm else ""
        return self.node.cni(
            "static-ip",
            command,
            {**self.config, **(config or {})},
            pod,
            container_id=container,
            args=";".join(part for part in (named, args) if part),
            within=within,
        )

    def add(self, container: str, vm: str = "", *, args: str = "", **more: Any) -> list[str]:
        """The addresses of an ADD that must succeed, without prefix lengths."""
        answer = self.call("ADD", container, vm, args=args, **more).ok()
        return [ip["address"].partition("/")[0] for ip in answer["ips"]]

    def delete(self, container: str) -> None:
        done = self.call("DEL", container)
        assert (done.code, done.stdout, done.stderr) == (0, "", "")

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.node.statedir / "leases.db")) as reader:
            return reader.execute(query).fetchall()

    def taken(self) -> dict[str, int]:
        """Every address that has a lease, and the lease's number."""
        rows = self.rows("SELECT ip, lease FROM addresses WHERE lease IS NOT NULL")
        return {str(ip_address(ip[1:])): lease for ip, lease in rows}
