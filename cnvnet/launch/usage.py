"""What an executable says to a person who gives it an argument; runtimes give none.

launcher/cnv-launch.c says the same.
"""

from __future__ import annotations

from typing import Final

from cnvnet import VERSION

_HELP: Final = """\
{name}: a CNI plugin that {purpose}.

A container runtime runs it (Multus, containerd, CRI-O; manually: cnitool). CNI_COMMAND and the other
variables CNI_* say what to do, the network's configuration comes on stdin, the result goes to stdout.
The configuration's keys: docs/{name}.md, which an installation has in share/doc/cnvnet.
"""


def explained(name: str, purpose: str, argument: str) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr of the plugin `name` for its first argument.

    `purpose` says what it does, after "a CNI plugin that".
    """
    if argument in ("--help", "-h"):
        return 0, _HELP.format(name=name, purpose=purpose).encode(), b""
    if argument in ("--version", "-V"):
        return 0, f"{name} {VERSION}\n".encode(), b""
    refusal = (
        f"{name}: {argument}: no such option (--help, --version); calls come in CNI_COMMAND and on stdin\n"
    )
    return 2, b"", refusal.encode("utf-8", "surrogateescape")
