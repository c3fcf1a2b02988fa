"""Container images made on the spot: one static program, no registry."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

IDLE = "cnvnet.test/idle:1"
"""Does nothing, for good: the image of sandboxes and of containers."""


def write_idle(archive: Path) -> None:
    """A docker archive with IDLE: Debian's static busybox."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed"
    layer = _tar({"bin/busybox": Path(busybox).read_bytes()})
    config = {
        "architecture": "amd64",
        "os": "linux",
        # Nothing to finish, so nobody needs to wait for it at the end.
        "config": {"Cmd": ["/bin/busybox", "tail", "-f", "/dev/null"], "StopSignal": "SIGKILL"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IDLE], "Layers": ["layer.tar"]}]
    archive.write_bytes(
        _tar(
            {
                "layer.tar": layer,
                "config.json": json.dumps(config).encode(),
                "manifest.json": json.dumps(manifest).encode(),
            }
        )
    )


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
