"""The fields of VMLeases and IPReservations that this version knows. Pure.

One that it does not know may change what the others mean: the controller then leaves the object alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

# What stands in place of a name that an author chooses, and of the items of a list.
EACH: Final = "*"

_HOLDER: Final[Mapping[str, Any]] = dict.fromkeys(
    ("container", "ifname", "node", "pod", "podUID", "role", "since", "netns", "inode", "bootID")
)
_COOLING: Final[Mapping[str, Any]] = dict.fromkeys(("ip", "mac", "vmUID", "until", "since"))
VM_LEASE: Final[Mapping[str, Any]] = {
    "spec": {
        **dict.fromkeys(("network", "vm", "vmUID", "interface", "ips", "mac", "release", "cooldown")),
        **dict.fromkeys(("source", "since", "nonce", "pending", "routers")),
        "cooling": {EACH: _COOLING},
    },
    "status": {"active": None, "left": None, "roles": {EACH: None}, "holders": {EACH: _HOLDER}},
}
IP_RESERVATION: Final[Mapping[str, Any]] = {
    "spec": {
        **dict.fromkeys(("network", "address", "node", "nonce")),
        "lease": dict.fromkeys(("namespace", "name", "uid")),
        "pod": {
            **dict.fromkeys(("namespace", "name", "uid", "node", "container", "ifname", "role", "since")),
            **dict.fromkeys(("netns", "inode", "bootID", "mac", "vmUID", "source", "release", "cooldown")),
        },
        "cooling": {"until": None, "since": None},
    }
}


def unknown_field(document: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The path of the first field in `spec` or `status` that is not known, "" if all of them are."""
    parts = ("spec", "status")
    return next((path for part in parts for path in _unknown(document.get(part), known.get(part), part)), "")


def _unknown(value: object, known: Mapping[str, Any] | None, path: str) -> Iterator[str]:
    if known is None:
        return  # what is below has no names, or all of it is known
    if isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _unknown(item, known[EACH], f"{path}[]")
    elif isinstance(value, Mapping):
        for key, inner in cast("Mapping[str, object]", value).items():
            if key not in known and EACH not in known:
                yield f"{path}.{key}"
            else:
                yield from _unknown(inner, known.get(key, known.get(EACH)), f"{path}.{key}")
