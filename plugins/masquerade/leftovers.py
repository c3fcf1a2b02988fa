"""What one ADD leaves behind, as its record keeps it, and how it is taken away again."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple, cast

from cnvnet.attachments import Key
from cnvnet.attempts import Attempts
from cnvnet.cni.errors import CNIError
from cnvnet.kernel.links import DeleteLink, Link
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel, KernelError, Stack
from cnvnet.plugins.masquerade import ruleset
from cnvnet.plugins.masquerade.plan import BRIDGE_MAC
from cnvnet.vm import sysctls
from cnvnet.vm.sysctls import Change

_FAMILIES: Final = ("ip", "ip6")


class Leftovers(NamedTuple):
    """The undo keys of a record; "" and () stand for nothing. `tables` are the families that have one."""

    bridge: str = ""
    tap: str = ""
    tables: tuple[str, ...] = ()
    sysctls: tuple[Change, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def parse(cls, undo: Mapping[str, Any]) -> Leftovers:
        """Never raises: a key of another shape than ours is one that cannot be undone."""
        return cls(
            bridge=_text(undo.get("bridge")),
            tap=_text(undo.get("tap")),
            tables=tuple(family for family in _FAMILIES if family in _list(undo.get("tables"))),
            sysctls=tuple(_changes(_list(undo.get("sysctls")))),
        )


def alias(key: Key) -> str:
    """What the links of an attachment bear, so that they are known without a record."""
    identity = "\0".join((key.network, key.container_id, key.ifname))
    return f"{key.plugin}-{sha256(identity.encode(errors='surrogateescape')).hexdigest()[:32]}"


def find(pod: Stack, key: Key) -> Leftovers:
    """What the links of the pod tell of an attachment; nothing about the sysctls."""
    mine = [link for link in pod.links() if link.alias == alias(key)]
    bridge = next((link.name for link in mine if link.kind == "bridge"), "")
    tap = next((link.name for link in mine if link.kind == "tun"), "")
    return Leftovers(bridge, tap, _FAMILIES if mine else ())


def remove(kernel: Kernel, netns: Netns, pod: Stack, left: Leftovers) -> list[CNIError | OSError]:
    """Takes all of it away, whatever of it is there. The guards go after what they guard."""
    tries = Attempts()
    tries.attempt(left.tap, delete_tap, pod, left.tap)
    tries.attempt(left.bridge, delete_bridge, pod, left.bridge)
    tries.attempt("nftables", delete_tables, kernel, netns, left.tables)
    tries.attempt("sysctls", sysctls.restore, pod, left.sysctls)
    return tries.errors


def delete_tap(pod: Stack, name: str) -> None:
    link = pod.link(name) if name else None
    if link is not None and link.kind == "tun":
        _delete(pod, link)


def delete_bridge(pod: Stack, name: str) -> None:
    link = pod.link(name) if name else None
    if link is not None and link.kind == "bridge" and link.mac == BRIDGE_MAC:
        _delete(pod, link)


def delete_tables(kernel: Kernel, netns: Netns, families: Iterable[str]) -> None:
    """All in one transaction."""
    wanted = tuple(families)
    if wanted:
        with kernel.nft(netns) as nft:
            nft.run(ruleset.render_removal(wanted))


def _delete(pod: Stack, link: Link) -> None:
    try:
        pod.apply(DeleteLink(link.ifindex))
    except KernelError as e:
        if e.errno != errno.ENODEV:
            raise


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _changes(items: Iterable[object]) -> Iterable[Change]:
    for item in items:
        parts = _list(item)
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts) == 3:
            yield Change(*texts)
