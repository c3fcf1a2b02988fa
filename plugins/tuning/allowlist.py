"""Which sysctls networks may set, as the reference has it: /etc/cni/tuning/allowlist.conf."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cnvnet.cni.errors import IO_FAILURE, CNIError, InvalidConfig
from cnvnet.kernel.regular_file import read_file
from cnvnet.plugins.tuning.config import NamedSysctl

PATH: Final = "/etc/cni/tuning/allowlist.conf"


def ensure_allowed(sysctls: Iterable[NamedSysctl], patterns: tuple[str, ...] | None) -> None:
    """InvalidConfig for a sysctl whose name, as it is written or with dots, no pattern is found in."""
    if patterns is None:
        return
    for wanted in sysctls:
        if not any(re.search(each, name) for each in patterns for name in (wanted.written, wanted.name)):
            allowed = f"[{' '.join(patterns)}]"
            raise InvalidConfig(
                f"Sysctl {wanted.written} is not allowed. Only the following sysctls are allowed: {allowed}",
                f"{PATH} has a regular expression on each line",
            )


def read() -> tuple[str, ...] | None:
    """The regular expressions; None where there is no such file, and all sysctls below net are allowed.

    CNIError 5 that names the file where it cannot be read, or a line that is no regular expression.
    """
    try:
        text = read_file(PATH).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise CNIError(IO_FAILURE, f"{PATH}: {e}") from e
    patterns = tuple(line for line in text.split("\n") if line)
    for line in patterns:
        try:
            re.compile(line)
        except re.error as e:
            raise CNIError(IO_FAILURE, f"{PATH}: {line!r} is no regular expression: {e}") from e
    return patterns
