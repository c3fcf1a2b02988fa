"""How the links of an attachment are known, and taken away: by a record, or by the alias that they bear."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, cast

from cnvnet.attachments import Key
from cnvnet.kernel.links import DeleteLink, Link
from cnvnet.kernel.stack import KernelError, Reader, Stack
from cnvnet.vm.sysctls import Change

# Whose links bear such aliases.
BINDINGS: Final = ("masquerade", "vm-bridge")


def alias(key: Key) -> str:
    """What the links of an attachment bear, so that they are known without a record."""
    identity = "\0".join((key.network, key.container_id, key.ifname))
    return f"{key.plugin}-{sha256(identity.encode(errors='surrogateescape')).hexdigest()[:32]}"


def marked(pod: Reader, key: Key) -> list[Link]:
    """The links that bear an attachment's alias."""
    return [link for link in pod.links() if link.alias == alias(key)]


def other_plugins(pod: Reader, key: Key) -> list[str]:
    """The bindings that have links in this pod beside those of the attachment."""
    mine = alias(key)
    found = {link.alias.rpartition("-")[0] for link in pod.links() if link.alias != mine}
    return sorted(found & set(BINDINGS))


def delete_tap(pod: Stack, name: str) -> None:
    """Deletes the tap of this name, if that is one."""
    link = pod.link(name) if name else None
    if link is not None and link.kind == "tun":
        delete(pod, link)


def delete_bridge(pod: Stack, name: str, mac: str) -> None:
    """Deletes the bridge of this name, if it has the MAC address that ours has."""
    link = pod.link(name) if name else None
    if link is not None and link.kind == "bridge" and link.mac == mac:
        delete(pod, link)


def delete(pod: Stack, link: Link) -> None:
    """Deletes a link that may have gone in the meantime."""
    try:
        pod.apply(DeleteLink(link.ifindex))
    except KernelError as e:
        if e.errno != errno.ENODEV:
            raise


def text(undo: Mapping[str, Any], key: str) -> str:
    """A text of a record's undo keys, "" where it is of another shape."""
    value = undo.get(key)
    return value if isinstance(value, str) else ""


def items(undo: Mapping[str, Any], key: str) -> list[object]:
    """A list of a record's undo keys, empty where it is of another shape."""
    value = undo.get(key)
    return cast("list[object]", value) if isinstance(value, list) else []


def contents(undo: Mapping[str, Any]) -> dict[str, str]:
    """What was in each table right after ADD, by the table's name."""
    found = undo.get("contents")
    return cast("dict[str, str]", found) if isinstance(found, dict) else {}


def changes(undo: Mapping[str, Any], key: str) -> tuple[Change, ...]:
    """The sysctls of a record's undo keys; what is of another shape is left out."""
    return tuple(_changes(items(undo, key)))


def _changes(found: Iterable[object]) -> Iterable[Change]:
    for item in found:
        parts = cast("list[object]", item) if isinstance(item, list) else []
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts) == 3:
            yield Change(*texts)
