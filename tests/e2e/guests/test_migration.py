"""A live migration between two pods of the same address: QEMU moves the guest, connections go on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scripts.guest.machine import PATIENCE, Nic, QemuGuest
from tests.functional.agent.own_agent import eventually, running_agent
from tests.functional.masquerade.masquerade_pod import GUEST_MAC, SIDES, a_lab
from tests.functional.masquerade.test_migration import role

KEPT = ("ip", "mask", "router", "mtu", "serverid", "lease")
NIC = Nic("tap0", GUEST_MAC)


class Talk(threading.Thread):
    """Says something over a connection and waits to hear it again, until it is stopped."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._stop_it = threading.Event()
        self.heard = 0
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._stop_it.wait(0.01):
                message = b"%08d" % self.heard
                self._connection.sendall(message)
                answer = b""
                while len(answer) < len(message):
                    read = self._connection.recv(len(message) - len(answer))
                    assert read, "closed"
                    answer += read
                assert answer == message
                self.heard += 1
        except (OSError, AssertionError) as e:
            self.error = e

    def stop(self) -> None:
        self._stop_it.set()
        try:
            self._connection.shutdown(socket.SHUT_RDWR)  # so that it does not wait any longer
        except OSError:
            pass  # the other end was faster
        self.join()

    def goes_on(self) -> bool:
        """Whether it will have heard more than now."""
        enough = self.heard + 10
        return bool(eventually(lambda: self.error is not None or self.heard >= enough)) and not self.error


@contextmanager
def talking(connection: socket.socket) -> Generator[Talk]:
    talk = Talk(connection)
    try:
        yield talk
    finally:
        talk.stop()


def test_connections_in_both_directions_live_on(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"ports": [{"port": 7777}]}
    with a_lab(tmp_path) as lab, running_agent(lab.node), ExitStack() as undo:
        source, target = lab.pod(), lab.pod(up=False)
        source.cni("ADD", **keys, **role("active")).ok()
        guest = undo.enter_context(QemuGuest(source.netns, NIC))
        lease = guest.ask_dhcp()
        guest.await_default_route6()
        guest.ask_dhcp6()
        talks: list[Talk] = []
        for side in SIDES:
            # Both ends of the guest's are programs that repeat what they hear.
            outside = lab.listener(lab.node, side, 80)
            guest.run(f"nc {side.outside} 80 -e cat >/dev/null 2>&1 &").ok()
            called, _ = outside.accept()
            called.settimeout(PATIENCE)
            talks.append(undo.enter_context(talking(undo.enter_context(called))))
        guest.run("nc -ll -p 7777 -e cat >/dev/null 2>&1 &").ok()
        guest.run("until netstat -ltn | grep :7777; do usleep 100000; done").ok()
        for side in SIDES:
            inbound = lab.unbound(lab.node, side)
            inbound.connect((side.pod, 7777))
            inbound.settimeout(PATIENCE)
            talks.append(undo.enter_context(talking(inbound)))
        target.cni("ADD", **keys, **role("target")).ok()
        moved = undo.enter_context(QemuGuest(target.netns, NIC, incoming=True))
        guest.migrate(moved)
        # The network learns where the address is now.
        source.run("ip", "link", "set", "eth0", "down")
        target.run("ip", "link", "set", "eth0", "up")
        lab.node.run("ip", "neigh", "flush", "all")
        assert [(talk.goes_on(), talk.error) for talk in talks] == [(True, None)] * 4
        source.cni("DEL", **keys, **role("active")).ok()
        # It is served where it is now, and given the same settings.
        again = moved.ask_dhcp()
        assert {key: again[key] for key in KEPT} == {key: lease[key] for key in KEPT}
