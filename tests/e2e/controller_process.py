"""cnvnet-controller as a process of the tests: it sweeps twice a second, and its grace period is short."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.cnvnet_objects import CONTROLLER, SYSTEM
from tests.e2e.control_plane import ControlPlane
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


@contextmanager
def bound_kubeconfig(control_plane: ControlPlane) -> Generator[Path]:
    """A kubeconfig with the token of its ServiceAccount that is bound to a pod of its own."""
    name = f"controller-{uuid.uuid4().hex[:5]}"
    pod = control_plane.create_pod(SYSTEM, name, "node-1", CONTROLLER)
    yield control_plane.kubeconfig(control_plane.token(SYSTEM, CONTROLLER, pod))
    end_pod(control_plane, pod)


def end_pod(control_plane: ControlPlane, pod: Document) -> None:
    """As `kubectl delete --force` does it: no kubelet is there to end it."""
    metadata = pod["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
    control_plane.api.delete(path, gracePeriodSeconds=0)
