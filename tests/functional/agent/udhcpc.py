"""A DHCP client that is not ours, in the guest: busybox' udhcpc."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import Sandbox

# Prints its settings instead of using it: the guest's addresses belong to the lab.
SCRIPT = '#!/bin/sh\n[ "$1" = bound ] || exit 0\nenv\necho done\n'


@contextmanager
def asking(guest: Sandbox, folder: Path, attempts: int = 60) -> Generator[subprocess.Popen[str]]:
    """A client that asks once a second until it is answered, and has ended with the block."""
    script = folder / "script"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    command = ["busybox", "udhcpc", "-f", "-q", "-n", "-T", "1", "-t", str(attempts)]
    options = ["-i", "eth0", "-s", str(script), "-O", "search", "-O", "ntpsrv"]
    client = guest.popen(*command, *options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield client
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()


def settings(client: subprocess.Popen[str]) -> dict[str, str]:
    """The settings that the client was given; nothing if it gave up."""
    output, _ = client.communicate(timeout=120)
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def lease(guest: Sandbox, folder: Path, attempts: int = 60) -> dict[str, str]:
    """A whole exchange: DISCOVER to ACK."""
    with asking(guest, folder, attempts) as client:
        return settings(client)
