"""The CNI_* variables of one call: which the command needs and what they may look like.

Order, codes and texts are those of containernetworking/cni pkg/skel `getCmdArgsFromEnv` and pkg/utils.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cnvnet.cni.errors import INVALID_ENVIRONMENT, CNIError

_ATTACHMENT: Final = frozenset({"ADD", "CHECK", "DEL"})
_ANY: Final = frozenset({"ADD", "CHECK", "DEL", "GC", "STATUS"})
# CNI_ARGS and CNI_NETNS_OVERRIDE are optional everywhere.
_REQUIRED: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    ("CNI_COMMAND", _ANY),
    ("CNI_CONTAINERID", _ATTACHMENT),
    ("CNI_NETNS", frozenset({"ADD", "CHECK"})),
    ("CNI_IFNAME", _ATTACHMENT),
    ("CNI_PATH", _ANY),
)
_ALPHANUMERIC: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME: Final = _ALPHANUMERIC | frozenset("_.-")
# unicode.IsSpace of Go; str.isspace of Python also counts the four ASCII separators.
_SPACES: Final = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000"
)
_IFNAMSIZ: Final = 16  # linux/if.h, bytes with the closing NUL; this package needs nothing of the kernel's


def command(env: Mapping[str, str]) -> str:
    """The command of a call whose environment is complete and well formed; code 4 otherwise.

    An unknown command is not an error yet: the reference complains about a bad configuration first. What is
    set but empty is missing.
    """
    verb = env.get("CNI_COMMAND", "")
    missing: list[str] = []
    for name, commands in _REQUIRED:
        value = env.get(name, "")
        if not value:
            if verb in commands or name == "CNI_COMMAND":
                missing.append(name)
        elif verb in commands and name == "CNI_CONTAINERID":
            ensure_container_id(value)
        elif verb in commands and name == "CNI_IFNAME":
            ensure_ifname(value)
    if missing:
        raise CNIError(INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    return verb


def is_name(text: str) -> bool:
    """Whether the text can be a container id or a network's name: [a-zA-Z0-9][a-zA-Z0-9_.-]*, no newline."""
    return bool(text) and text[0] in _ALPHANUMERIC and _NAME.issuperset(text)


def is_text(value: str) -> bool:
    """Whether a variable's bytes are UTF-8; those that are not are surrogates in `value` (PEP 383)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def ensure_container_id(text: str) -> None:
    """Code 4 for a container id that could leave the folder of some plugin's records."""
    if not is_name(text):
        raise CNIError(INVALID_ENVIRONMENT, "invalid characters in containerID", text)


def ensure_ifname(text: str) -> None:
    """Code 4 for what the kernel would not take as the name of an interface."""
    if len(text.encode("utf-8", "surrogateescape")) >= _IFNAMSIZ:
        details = f"interface name should be less than {_IFNAMSIZ} characters"
        raise CNIError(INVALID_ENVIRONMENT, "interface name is too long", details)
    if not is_text(text):
        raise CNIError(INVALID_ENVIRONMENT, "interface name is not UTF-8")
    if text in (".", ".."):
        raise CNIError(INVALID_ENVIRONMENT, "interface name is . or ..")
    if any(c in "/:" or c in _SPACES for c in text):
        raise CNIError(INVALID_ENVIRONMENT, "interface name contains / or : or whitespace characters")


def overrides_netns(env: Mapping[str, str]) -> bool:
    """Whether the caller insists on CNI_NETNS being right even where it is the plugin's own namespace."""
    return env.get("CNI_NETNS_OVERRIDE", "").upper() in ("1", "TRUE")
