"""RUNDIR under a caller that keeps nothing from other users: they still write nowhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.own_agent import running_agent
from tests.harness import Node

pytestmark = pytest.mark.alone

OPEN = ("sh", "-c", 'umask 000; exec "$0" "$@"')


def test_umask_000_opens_nothing(node: Node) -> None:
    config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net1", "type": "cnv-bridge", "bridge": "br0"}
    config |= {
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "ipam": {"type": "static-ip", "subnet": "10.1.2.0/24", "dataDir": str(node.folder / "made/leases")},
    }
    node.cni("cnv-bridge", "ADD", config, node.pod(), within=OPEN).ok()
    with running_agent(node, within=OPEN):
        assert open_to_others(Path(node.rundir)) == []
    assert open_to_others(node.folder / "made") == []


def test_a_folder_that_another_user_has_put_there_is_taken_back(node: Node) -> None:
    config = {"cniVersion": "1.1.0", "name": "net1", "type": "cnv-bridge", "bridge": "br0"}
    pod = node.pod()
    node.cni("cnv-bridge", "ADD", config, pod).ok()
    # As another user could in a RUNDIR that is open to all.
    records = node.rundir / "attachments"
    os.chown(records, 65534, 65534)
    done = node.cni("cnv-bridge", "DEL", config, pod)
    done.ok()
    assert f"{records}: belonged to user 65534: it no longer does\n" in done.stderr
    assert records.stat().st_uid == 0


def open_to_others(top: Path) -> list[str]:
    found = [
        top,
        *(Path(folder) / name for folder, folders, files in os.walk(top) for name in folders + files),
    ]
    assert len(found) > 2
    modes = [(path, path.lstat().st_mode) for path in found]
    return [str(path) for path, mode in modes if not stat.S_ISLNK(mode) and mode & 0o022]
