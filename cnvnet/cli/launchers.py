"""What is installed where the runtime looks for plugins, and of which version it is."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final, NamedTuple

from cnvnet import VERSION
from cnvnet.cli.output import PROBLEMS
from cnvnet.executables import NAMES
from cnvnet.launch.ownership import is_ours

# Where install-cni leaves the name of the launchers' folder, below the environment that cnvctl is in.
_MARK: Final = ".install-cni"
_USUAL: Final = "/opt/cni/bin"
_REMEDY: Final = "scripts/install-cni puts this version's there"
_OLDER: Final = "an older version"
_PATIENCE: Final = 5


class Installed(NamedTuple):
    """What `folder` has of ours: the version of each file by its name, as it says itself."""

    folder: str
    versions: dict[str, str]

    @property
    def others(self) -> dict[str, list[str]]:
        """The names of those that are not of our version, by theirs."""
        names_by_version: dict[str, list[str]] = {}
        for name, version in self.versions.items():
            if version != VERSION:
                names_by_version.setdefault(version, []).append(name)
        return names_by_version

    @property
    def version(self) -> str:
        """All versions there are, "" where nothing is installed."""
        return ", ".join(dict.fromkeys(self.versions.values()))

    def report(self) -> tuple[str, int]:
        """What there is to say, and the exit code that it calls for."""
        if not self.versions:
            return f"none in {self.folder} (--cni-bin says where else)", 0
        if not self.others:
            return f"ok, {VERSION}, in {self.folder}", 0
        others = "; ".join(f"{version}: {', '.join(names)}" for version, names in self.others.items())
        return f"not of version {VERSION} in {self.folder}: {others} ({_REMEDY})", PROBLEMS


def usual_folder() -> str:
    """Where install-cni has put the launchers of this installation, else the usual folder of runtimes."""
    try:
        with open(os.path.join(sys.prefix, _MARK), "rb") as mark:
            folder = os.fsdecode(mark.read(4096)).strip()
    except OSError:
        return _USUAL
    return folder if os.path.isabs(folder) else _USUAL


def installed(folder: str) -> Installed:
    """Asks each file of ours there; other programs' are not run. Raises OSError."""
    present = [name for name in NAMES if is_ours(os.path.join(folder, name))]
    return Installed(folder, {name: _version(os.path.join(folder, name), name) for name in present})


def _version(path: str, name: str) -> str:
    """An older launcher takes the argument for none, and says something else."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**env, "CNVNET_AGENT": "off"},
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "does not answer"
    except OSError as e:
        return f"cannot be run ({(e.strerror or str(e)).lower()})"
    # The C program adds what it is; the Python executable may stand in its place.
    words = done.stdout.decode("utf-8", "replace").split()
    return words[1] if done.returncode == 0 and len(words) > 1 and words[0] == name else _OLDER
