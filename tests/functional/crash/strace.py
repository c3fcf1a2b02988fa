"""strace as the test's accomplice: which system calls a call of an executable makes, and one of them undone.

strace counts each kind of system call by itself, so a moment of a run is "the third rename". A signal it
injects is delivered before the system call is carried out: killed at its third rename, a program has made
everything before that and nothing of the rename.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from tests.harness import peer

_FILES: Final = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate")
_PATHS: Final = ("openat", "mkdir", "rename", "unlink", "rmdir", "symlink")
_NETLINK: Final = ("sendto", "sendmsg")
_TRACED: Final = (*_FILES, *_PATHS, *_NETLINK, "setns")

_CALL: Final = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*)")
_FILE: Final = re.compile(r"\d+<(?P<path>[^>]*)>")
# Compiled modules must not be written by one run and be there in the next: openat and write are counted.
CONSTANT: Final = {"PYTHONDONTWRITEBYTECODE": "1"}


class Moment(NamedTuple):
    """The moment before the `number`th `name` (counted from 1) of a run; `text` is how strace shows it."""

    name: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.name} {self.number}: {self.text[:200]}"


def watching(log: Path) -> tuple[str, ...]:
    """A `within` of Node.cni that writes to `log` what `moments` reads."""
    return (*_strace(log), f"--trace={','.join(_TRACED)}")


def killing(moment: Moment) -> tuple[str, ...]:
    """A `within` that kills the program at this moment, with all that its system calls have done by then."""
    return _injecting(moment, "signal=KILL")


def refusing(moment: Moment, error: str) -> tuple[str, ...]:
    """A `within` in which this one system call is not carried out and returns the error, ENOSPC say."""
    return _injecting(moment, f"error={error}")


def delaying(moment: Moment, time: str) -> tuple[str, ...]:
    """A `within` in which this one system call returns only after this time."""
    return _injecting(moment, f"delay_exit={time}")


def moments(log: Path, folder: Path) -> list[Moment]:
    """The moments before all that the first process did to files below `folder`, sysctls, stdout and kernel.

    Left out are reading and what only makes the reading possible.
    """
    counted: Counter[str] = Counter()
    found: list[Moment] = []
    first = ""
    for line in log.read_text(errors="replace").splitlines():
        call = _CALL.match(line)
        if call is None or "ERESTART" in line:
            continue  # what is to be restarted has not been done, and may not happen next time
        first = first or call["pid"]
        if call["pid"] != first:
            continue  # its calls are counted apart
        counted[call["name"]] += 1
        if _changes(call["name"], call["arguments"], str(folder)):
            found.append(Moment(call["name"], counted[call["name"]], call["arguments"]))
    return found


def without_monotony(found: list[Moment]) -> list[Moment]:
    """Of many writes in a row to one file only the first and the last."""
    places = ["" if m.name != "pwrite64" else m.text.partition(",")[0] for m in found]
    around = zip(["", *places], places, [*places[1:], ""], found, strict=False)
    return [moment for left, place, right, moment in around if not place or not left == place == right]


def _changes(name: str, arguments: str, folder: str) -> bool:
    if name in _FILES:
        path = _FILE.match(arguments)
        return path is not None and path["path"].startswith((folder, "/proc/sys/", "pipe:"))
    if name in _NETLINK:
        # Queries want no acknowledgement. libnftables asks with sendto and changes with sendmsg.
        return name == "sendmsg" or "NLM_F_ACK" in arguments
    if name == "openat":
        return folder in arguments and "O_CREAT" in arguments
    return name == "setns" or folder in arguments


def _strace(log: Path | str) -> tuple[str, ...]:
    # -y shows the files behind descriptors. With --seccomp-bpf it would be faster, but never kill.
    return (peer("strace"), "-f", "-qq", "-y", "-s", "16", "-o", str(log))


def _injecting(moment: Moment, what: str) -> tuple[str, ...]:
    return (
        *_strace("/dev/null"),
        f"--trace={moment.name}",
        f"--inject={moment.name}:{what}:when={moment.number}",
    )
