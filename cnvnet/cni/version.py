"""The versions of the CNI spec: which are spoken, how they compare, which commands they know."""

from __future__ import annotations

from cnvnet.cni.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, CNIError

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SUPPORTED: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT: Final = SUPPORTED[-1]
# A configuration that names no version means the oldest one.
IMPLIED: Final = SUPPORTED[0]
# These know one address per family and no interfaces.
WITHOUT_INTERFACES: Final = frozenset({"0.1.0", "0.2.0"})
# These have no `mtu`, `socketPath` and `pciID` of an interface, and print `dns` even when it is empty.
BEFORE_1_0: Final = frozenset({"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"})

# The spec's versions that brought these commands; a configuration of an older one cannot ask for them.
_INTRODUCED = {"CHECK": (0, 4, 0), "GC": (1, 1, 0), "STATUS": (1, 1, 0)}


def ensure_compatible(command: str, version: str) -> None:
    """CNIError unless the configuration's version knows the command and is one of ours.

    The texts and their order are those of containernetworking/cni pkg/skel, `pluginMain`.
    """
    if command in _INTRODUCED:
        wanted = parse_version(version)
        if wanted < _INTRODUCED[command]:
            raise CNIError(INCOMPATIBLE_VERSION, f"config version does not allow {command}")
        if wanted > parse_version(CURRENT):
            raise CNIError(INCOMPATIBLE_VERSION, f"plugin version does not allow {command}")
    if version not in SUPPORTED:
        from cnvnet.cni.document import quoted, quoted_list

        details = f"config is {quoted(version)}, plugin supports {quoted_list(SUPPORTED)}"
        raise CNIError(INCOMPATIBLE_VERSION, "incompatible CNI versions", details)


def parse_version(text: str) -> tuple[int, int, int]:
    """Major, minor and micro ("" is 0.1.0, what is left out is 0); code 6 with Go's text otherwise."""
    if not text:
        return (0, 1, 0)
    parts = text.split(".")
    if len(parts) > 3:
        from cnvnet.cni.document import quoted

        raise CNIError(DECODING_FAILURE, f"invalid version {quoted(text)}: too many parts")
    names = ("major", "minor", "micro")
    numbers = [_number(part, name) for part, name in zip(parts, names, strict=False)]
    major, minor, micro = numbers + [0] * (3 - len(numbers))
    return (major, minor, micro)


def _number(part: str, name: str) -> int:
    from cnvnet.cni.document import quoted

    digits = part[1:] if part[:1] in ("+", "-") else part
    problem = "invalid syntax"
    if digits.isascii() and digits.isdigit():
        if len(digits) < 1000 and -(2**63) <= int(part) < 2**63:
            return int(part)
        problem = "value out of range"
    reason = f"strconv.Atoi: parsing {quoted(part)}: {problem}"
    raise CNIError(DECODING_FAILURE, f"failed to convert {name} version part {quoted(part)}: {reason}")
