"""cnvnet-controller as a process of the tests: it sweeps twice a second, and its grace period is short."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import installed

Document = dict[str, Any]


class Process:
    """A controller that runs for the owner of a kubeconfig."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self.log = log
        command = [installed("cnvnet-controller"), "--kubeconfig", str(kubeconfig), "--listen", "off"]
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen([*command, "--interval", "0.5", "--grace", "1"], stderr=stderr)

    def lines(self, text: str) -> list[Document]:
        """The lines of its log with this message."""
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [each for each in found if each["msg"] == text]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def running_controller(kubeconfig: Path, log: Path) -> Generator[Process]:
    made = Process(kubeconfig, log)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.end()
        assert "Traceback" not in made.log.read_text()
        assert made.lines("step failed") == []
