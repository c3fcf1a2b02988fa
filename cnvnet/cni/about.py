"""What every plugin says of itself: VERSION, and a line for people where there is no command.

The spec wants both of a plugin that can do nothing else, and runtimes ask for VERSION before their calls.
"""

from __future__ import annotations

from cnvnet import VERSION
from cnvnet.cni.version import CURRENT, SUPPORTED

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# The same in every call, and written without json to spare its import. launcher/cnv-launch.c has it, too.
_LISTED: Final = ",".join(f'"{version}"' for version in SUPPORTED)
_VERSIONS: Final = f'{{"cniVersion":"{CURRENT}","supportedVersions":[{_LISTED}]}}\n'


def about(name: str, command: str) -> tuple[bytes, bytes] | None:
    """Stdout and stderr of the plugin `name` for VERSION and for no command; None for every other one."""
    if command == "VERSION":
        return _VERSIONS.encode(), b""
    if not command:
        text = f"CNI {name} plugin {VERSION}\nCNI protocol versions supported: {', '.join(SUPPORTED)}\n"
        return b"", text.encode()
    return None
