"""A LAN on a node's bridge with a real DHCP server, and the reference's `dhcp` daemon on the node."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.harness import Node, Sandbox, peer

LEASE_SECONDS: Final = 20
GATEWAY: Final = "10.77.0.1"
ADDRESS: Final = "10.77.0.50"
"""The only one that the server has to give."""
# ISC's server takes whole frames, as a relay of a LAN does: the daemon gives its packets no source address,
# which the sockets of other servers do not hear.
SERVER: Final = f"""
authoritative;
min-lease-time {LEASE_SECONDS};
default-lease-time {LEASE_SECONDS};
max-lease-time {LEASE_SECONDS};
ping-check false;
subnet 10.77.0.0 netmask 255.255.255.0 {{
    range {ADDRESS} {ADDRESS};
    option routers {GATEWAY};
}}
"""


class Lan:
    """The server's side, and what the `ipam` object of a network on this LAN is."""

    def __init__(self, server: Sandbox, socket: Path, log: Path) -> None:
        self.server = server
        self._socket = socket
        self._log = log

    @property
    def ipam(self) -> dict[str, Any]:
        return {"type": "dhcp", "daemonSocketPath": str(self._socket)}

    def said(self, word: str) -> list[str]:
        """The server's log lines about one kind of message: DHCPDISCOVER, DHCPREQUEST or any other."""
        return [line for line in self._log.read_text().splitlines() if re.match(rf"{word}\b", line)]

    def eventually_said(self, word: str, times: int, seconds: float) -> list[str]:
        until(lambda: len(self.said(word)) >= times, seconds)
        return self.said(word)


@contextmanager
def a_lan(node: Node, *, served: bool = True) -> Generator[Lan]:
    """`served` False is a LAN without a DHCP server."""
    node.run("ip", "link", "add", "bridge0", "address", "02:00:00:00:00:b0", "type", "bridge")
    node.run("ip", "link", "set", "bridge0", "up")
    server = node.pod()
    node.run("ip", "link", "add", "lan0", "type", "veth", "peer", "eth0", "netns", server.netns)
    node.run("ip", "link", "set", "lan0", "up", "master", "bridge0")
    server.run("ip", "addr", "add", f"{GATEWAY}/24", "dev", "eth0")
    server.run("ip", "link", "set", "eth0", "up")
    with ExitStack() as undo:
        # A socket's path has at most 107 characters, and a test's folder may have more.
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="dhcp-")))
        lan = Lan(server, folder / "dhcp.sock", folder / "server.log")
        daemon = (peer("dhcp"), "daemon", "-socketpath", str(folder / "dhcp.sock"))
        patience = ("-timeout", "1s", "-resendtimeout", "3s")
        undo.enter_context(running(node, folder / "daemon.log", *daemon, *patience))
        if served:
            files = ("-cf", str(folder / "conf"), "-lf", str(folder / "leases"), "-pf", str(folder / "pid"))
            (folder / "conf").write_text(SERVER)
            (folder / "leases").touch()
            program = (peer("dhcpd"), "-4", "-d", "-f", *files, "eth0")
            undo.enter_context(running(server, folder / "server.log", *program))
            until(lambda: "Sending on" in (folder / "server.log").read_text(), 10)
        until((folder / "dhcp.sock").exists, 10)
        yield lan


@contextmanager
def running(where: Sandbox, log: Path, *argv: str) -> Generator[None]:
    """A program of ours until the end of the block."""
    with log.open("w") as file, where.popen(*argv, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for something that must come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.05)
