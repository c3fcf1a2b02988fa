"""Container images made on the spot: one static program, no registry."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from tests.harness import peer

IDLE = "cnvnet.test/idle:1"
"""Does nothing, for good: the image of sandboxes and of containers."""
MULTUS = "cnvnet.test/multus:1"
"""Multus' daemon, as its own image has it."""


def write_idle(archive: Path) -> None:
    """A docker archive with IDLE: Debian's static busybox."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed"
    # It has nothing to finish, so the kubelet need not wait for it at the end.
    config = {"Cmd": ["/bin/busybox", "tail", "-f", "/dev/null"], "StopSignal": "SIGKILL"}
    _write(archive, IDLE, {"bin/busybox": Path(busybox).read_bytes()}, config)


def write_multus(archive: Path) -> None:
    """A docker archive with MULTUS: the daemon asks /etc/passwd who it is, and opens /var/run/netns."""
    files: dict[str, bytes | str] = {
        "usr/src/multus-cni/bin/multus-daemon": Path(peer("multus-daemon")).read_bytes(),
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
        "var/run": "/run",
    }
    _write(archive, MULTUS, files, {})


def _write(archive: Path, name: str, files: dict[str, bytes | str], settings: dict[str, Any]) -> None:
    layer = _tar(files)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    content: dict[str, bytes | str] = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    archive.write_bytes(_tar(content))


def _tar(files: dict[str, bytes | str]) -> bytes:
    """Files by their names; a string is what a symbolic link leads to."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
