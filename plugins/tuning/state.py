"""What an ADD changes of an interface, and how DEL restores it: by our record or by the reference's file."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from cnvnet.attachment.record import UndoKeys
from cnvnet.call_context import log, open_path
from cnvnet.cni.document import Malformed, decode_object
from cnvnet.kernel.links import ChangeLink, Link
from cnvnet.kernel.regular_file import read_file
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.plugins.tuning.config import Config


class LinkState(NamedTuple):
    """Properties of a link; what is None is left alone."""

    mac: str | None = None
    promisc: bool | None = None
    mtu: int | None = None
    allmulti: bool | None = None
    txqlen: int | None = None

    @classmethod
    def wanted(cls, config: Config) -> LinkState:
        """What an ADD makes of the interface."""
        return cls(
            config.mac or None, config.promisc or None, config.mtu or None, config.allmulti, config.txqlen
        )

    def of(self, link: Link) -> LinkState:
        """The same properties as the link has them now."""
        now = (link.mac, link.promisc, link.mtu, link.allmulti, link.txqlen)
        return LinkState._make(None if mine is None else its for mine, its in zip(self, now, strict=True))

    def to_json(self) -> dict[str, Any]:
        """As the record has it, and as the reference writes it."""
        return {key: value for key, value in zip(_KEYS, self, strict=True) if value is not None}


_KEYS = ("mac", "promisc", "mtu", "allmulti", "txQLen")


def parse(document: Mapping[str, Any]) -> LinkState:
    """Of a record or of the reference's file; a property of another type counts as absent."""
    kinds = (str, bool, int, bool, int)
    values = (document.get(key) for key in _KEYS)
    return LinkState._make(
        value if type(value) is kind else None for value, kind in zip(values, kinds, strict=True)
    )


def change(pod: Stack, link: Link, wanted: LinkState) -> None:
    """Gives the link these properties. KernelError.

    Kinds of links that take a MAC address only while they are down are set down for it.
    """
    rest = wanted._replace(mac=None)
    if wanted.mac is not None and wanted.mac != link.mac:
        try:
            pod.apply(ChangeLink(link.ifindex, mac=wanted.mac))
        except KernelError as e:
            if e.errno != errno.EBUSY:
                raise
            pod.apply(
                ChangeLink(link.ifindex, up=False),
                ChangeLink(link.ifindex, mac=wanted.mac),
                ChangeLink(link.ifindex, up=True),
            )
    if rest != LinkState():
        pod.apply(
            ChangeLink(
                link.ifindex,
                promisc=rest.promisc,
                mtu=rest.mtu,
                allmulti=rest.allmulti,
                txqlen=rest.txqlen,
            )
        )


def restore(pod: Stack, ifname: str, original: LinkState) -> None:
    """Gives the interface back what it had, each property for itself; what cannot be is logged."""
    link = pod.link(ifname)
    if link is None:
        return  # the plugin that made it has deleted it
    for key, value in original._asdict().items():
        if value is None:
            continue
        try:
            change(pod, link, LinkState()._replace(**{key: value}))
        except OSError as e:
            log(f"{ifname}: {key} {value} is not restored: {e}")


def recorded_sysctls(undo: UndoKeys) -> dict[str, str]:
    """The sysctls of a record, by their paths, with the values from before the ADD."""
    return {key: value for key, value in undo.fields("sysctls").items() if isinstance(value, str)}


class ReferenceBackup:
    """The file that the reference's ADD has left of an attachment."""

    def __init__(self, folder: str, container_id: str, ifname: str) -> None:
        self._folder = folder
        self._name = f"{container_id}_{ifname}.json"

    def read(self) -> LinkState:
        """What it says; nothing where there is none, or none that can be read."""
        try:
            return parse(decode_object(read_file(os.path.join(self._folder, self._name))))
        except FileNotFoundError:
            return LinkState()
        except (OSError, ValueError, Malformed) as e:
            log(f"{self._folder}/{self._name}: {e}")
            return LinkState()

    def remove(self) -> None:
        """Removes it, if it is there."""
        try:
            folder = open_path(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.unlink(self._name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as e:
            log(f"{self._folder}/{self._name}: {e}")
        finally:
            os.close(folder)
