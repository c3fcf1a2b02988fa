"""Where the addresses come from: our own address manager in this process, or the one that is configured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cnvnet.cni import delegate
from cnvnet.cni.errors import INTERNAL, CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.diagnostics import say
from cnvnet.plugins.cnv_bridge.config import OWN_IPAM

if TYPE_CHECKING:
    from cnvnet.ipam.static_ip.plugin import StaticIP


class Lease(NamedTuple):
    """What IPAM gave, and how to undo it while the ADD goes on.

    `mac` is "" for a foreign IPAM: a result has no place for it.
    """

    result: Result
    mac: str
    undo: Callable[[], None]


class Ipam(Protocol):
    """The address manager of the request's configuration. Each method raises CNIError but `absent`: why it
    cannot be asked at all, "" if it can.
    """

    def add(self, request: Request) -> Lease: ...
    def delete(self, request: Request) -> None: ...
    def absent(self, request: Request) -> str: ...
    def check(self, request: Request) -> None: ...
    def gc(self, request: Request) -> None: ...
    def status(self, request: Request) -> None: ...


class Foreign:
    """An executable in CNI_PATH."""

    def __init__(self, plugin_type: str) -> None:
        self._type = plugin_type

    def add(self, request: Request) -> Lease:
        delegate.find(self._type, request.path)  # nothing to give back to one that is not there
        try:
            result = delegate.delegate_add(request, self._type)
            if not result.ips:
                raise CNIError(INTERNAL, "IPAM plugin returned missing IP config")
        except CNIError:
            # Section 4 of the spec: whatever it has kept of a failed ADD, its DEL gives back.
            self._give_back(request)
            raise
        return Lease(result, "", partial(self.delete, request))

    def delete(self, request: Request) -> None:
        delegate.delegate_delete(request, self._type)

    def absent(self, request: Request) -> str:
        try:
            delegate.find(self._type, request.path)
        except CNIError as e:
            return e.msg
        return ""

    def check(self, request: Request) -> None:
        delegate.delegate_check(request, self._type)

    def gc(self, request: Request) -> None:
        delegate.delegate_gc(request, self._type)

    def status(self, request: Request) -> None:
        delegate.delegate_status(request, self._type)

    def _give_back(self, request: Request) -> None:
        try:
            self.delete(request)
        except CNIError as e:
            say(f"giving addresses back to {self._type}: {e.msg}")


class Own:
    """static-ip, called as a function: only so can it hand over the MAC it keeps for a virtual machine."""

    def __init__(self, plugin: StaticIP | None) -> None:
        # Not at the top: whoever has a foreign IPAM or none does without SQLite.
        from cnvnet.ipam.static_ip.plugin import StaticIP

        self._plugin = plugin or StaticIP()

    def add(self, request: Request) -> Lease:
        assignment = self._plugin.assign(request)
        return Lease(assignment.result, assignment.mac, partial(self._plugin.revert, request, assignment))

    def delete(self, request: Request) -> None:
        self._plugin.release(request)

    def absent(self, request: Request) -> str:
        return ""

    def check(self, request: Request) -> None:
        self._plugin.check(request)

    def gc(self, request: Request) -> None:
        self._plugin.gc(request)

    def status(self, request: Request) -> None:
        self._plugin.status(request)


def choose(plugin_type: str, static_ip: StaticIP | None = None) -> Ipam:
    """The manager of this type; our own is `static_ip`, if the process keeps one."""
    return Own(static_ip) if plugin_type == OWN_IPAM else Foreign(plugin_type)
