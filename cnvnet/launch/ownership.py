"""Which files in the runtime's folder of plugins are ours, of whatever version, and which another program's.

By their content: a list of what was installed would lack the files of older versions and of images, and
would not notice that another program has overwritten one. Asked by cnvctl, the agent and install-cni.
"""

from __future__ import annotations

import os
import re
from typing import Final

from cnvnet.kernel import regular_file

# What launcher/cnv-launch.c says when it is called by no plugin's name.
_LAUNCHER: Final = b": this file must be called cnv-bridge, "
# Executables of older versions import a module of plugins or ipam.
_SCRIPT: Final = re.compile(rb"^from cnvnet\.(executables |plugins\.|ipam\.)", re.MULTILINE)
_LARGEST: Final = 16 << 20


def is_ours(path: str) -> bool:
    """Whether there is an executable or a launcher of ours. Raises OSError for a folder that is closed."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        content = regular_file.read(place, _LARGEST)
    except OSError:
        return False  # no file, or none of this size is ours
    finally:
        os.close(place)
    return bool(_SCRIPT.search(content)) if content.startswith(b"#!") else _LAUNCHER in content


def is_foreign(path: str) -> bool:
    """Whether there is anything else: another program, a link to one, a folder. Raises OSError."""
    return os.path.lexists(path) and not is_ours(path)
