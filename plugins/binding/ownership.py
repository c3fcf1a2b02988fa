"""How the links of an attachment are found and deleted: by its record, or by the alias that they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, cast

from cnvnet.attachment.record import Key, UndoKeys
from cnvnet.executables import BINDINGS
from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Reader, Stack, delete_link
from cnvnet.plugins.binding.sysctls import Change


def alias(key: Key) -> str:
    """The alias of an attachment's links, by which they are found without a record."""
    identity = "\0".join((key.network, key.container_id, key.ifname))
    return f"{key.plugin}-{sha256(identity.encode(errors='surrogateescape')).hexdigest()[:32]}"


def marked(pod: Reader, key: Key) -> list[Link]:
    """The links that have an attachment's alias."""
    return [link for link in pod.links() if link.alias == alias(key)]


def other_plugins(pod: Reader, key: Key) -> list[str]:
    """The bindings that have links in this pod beside those of the attachment."""
    own = alias(key)
    plugins = {link.alias.rpartition("-")[0] for link in pod.links() if link.alias != own}
    return sorted(plugins & set(BINDINGS))


def delete_tap(pod: Stack, name: str) -> None:
    """Deletes the tap of this name, if that is one."""
    link = pod.link(name) if name else None
    if link is not None and link.kind == "tun":
        delete_link(pod, link.ifindex)


def delete_bridge(pod: Stack, name: str, mac: str) -> None:
    """Deletes the bridge of this name, if it has the MAC address that ours has."""
    link = pod.link(name) if name else None
    if link is not None and link.kind == "bridge" and link.mac == mac:
        delete_link(pod, link.ifindex)


def changes(undo: Mapping[str, Any]) -> tuple[Change, ...]:
    """The sysctls of a record's undo keys; what is of another shape is left out."""
    return tuple(_changes(UndoKeys(undo).items("sysctls")))


def _changes(recorded: Iterable[object]) -> Iterable[Change]:
    for item in recorded:
        parts = cast("list[object]", item) if isinstance(item, list) else []
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts) == 3:
            yield Change(*texts)
