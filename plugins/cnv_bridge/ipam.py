"""Where the addresses come from: our own address manager in this process, or the one that is configured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from cnvnet.attachment.record import Record
from cnvnet.call_context import log
from cnvnet.cni.errors import INTERNAL, CNIError
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.executables import STATIC_IP
from cnvnet.ipam.store.ref import StoreRef
from cnvnet.plugins.cnv_bridge.config import DeleteConfig
from cnvnet.plugins.cnv_bridge.state import PortState
from cnvnet.vm.identity import SILENT_ROLES
from cnvnet.vm.launcher import Subject
from cnvnet.vm.subjects import Lookup

if TYPE_CHECKING:
    from cnvnet.ipam.static_ip.config import Config
    from cnvnet.ipam.static_ip.plugin import StaticIP


class Grant(NamedTuple):
    """What IPAM gave, and how to undo it while the ADD goes on.

    `mac` is "" for a foreign IPAM: a result has no place for it. `is_silent`: the pod does not
    run the VM now, as a migration's target: another one may have its addresses.
    """

    result: Result
    mac: str
    undo: Callable[[], None]
    is_silent: bool = False


class Prospect(NamedTuple):
    """What the configuration says an ADD will get, as far as it does."""

    # Of IP: 4, 6.
    versions: frozenset[int] = frozenset()
    # Where static-ip will keep the lease, and the VM that it is for.
    store: StoreRef | None = None
    subject: Subject | None = None


class Ipam(Protocol):
    """The address manager of the request's configuration.

    Each method raises CNIError but `unavailable_reason`: why it cannot be asked at all, "" if it can.
    `prepare` comes first at an ADD, before anything is done: whether the configuration is sound.
    `recorded` is where static-ip keeps the lease, or the network's leases, as a record says.
    """

    def prepare(self, request: Request) -> Prospect:
        """Read the configuration. CNIError."""
        ...

    def add(self, request: Request) -> Grant:
        """Get the addresses. CNIError, and then nothing is kept."""
        ...

    def delete(self, request: Request, recorded: StoreRef | None = None) -> None:
        """Give the addresses back. CNIError."""
        ...

    def unavailable_reason(self, request: Request) -> str:
        """Why it cannot be called at all; empty if it can."""
        ...

    def check(self, request: Request, recorded: StoreRef | None = None) -> None:
        """CNIError if the addresses are not as given."""
        ...

    def gc(self, request: Request, recorded: StoreRef | None = None) -> None:
        """Give back what belongs to no valid attachment. CNIError."""
        ...

    def status(self, request: Request) -> None:
        """CNIError if no address could be given now."""
        ...

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """The folders of its leases (cnvnet.cni.skel.Plugin), if it works in this process."""
        ...


class DelegatedIpam:
    """An executable in CNI_PATH."""

    def __init__(self, plugin_type: str) -> None:
        # Not at the top: many networks have no addresses, and starting programs takes a large import.
        from cnvnet.cni import delegate

        self._delegate = delegate
        self._type = plugin_type

    def prepare(self, request: Request) -> Prospect:
        """Nothing is known: its configuration is its own."""
        return Prospect()

    def add(self, request: Request) -> Grant:
        """Run its ADD, and its DEL if that fails. CNIError."""
        self._delegate.find(self._type, request.path)  # nothing to give back to one that is not there
        try:
            result = self._delegate.delegate_add(request, self._type)
            if not result.ips:
                raise CNIError(INTERNAL, "IPAM plugin returned missing IP config")
        except CNIError:
            # Section 4 of the spec: whatever it has kept of a failed ADD, its DEL gives back.
            self._give_back(request)
            raise
        return Grant(result, "", partial(self.delete, request))

    def delete(self, request: Request, recorded: StoreRef | None = None) -> None:
        """Run its DEL. CNIError."""
        self._delegate.delegate_delete(request, self._type)

    def unavailable_reason(self, request: Request) -> str:
        """Why its executable cannot be found; empty if it can."""
        try:
            self._delegate.find(self._type, request.path)
        except CNIError as e:
            return e.msg
        return ""

    def check(self, request: Request, recorded: StoreRef | None = None) -> None:
        """Run its CHECK. CNIError."""
        self._delegate.delegate_check(request, self._type)

    def gc(self, request: Request, recorded: StoreRef | None = None) -> None:
        """Run its GC. CNIError."""
        self._delegate.delegate_gc(request, self._type)

    def status(self, request: Request) -> None:
        """Run its STATUS. CNIError."""
        self._delegate.delegate_status(request, self._type)

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """None: it runs as the caller's program, and sees what the caller sees."""
        return ()

    def _give_back(self, request: Request) -> None:
        try:
            self.delete(request)
        except CNIError as e:
            log(f"giving addresses back to {self._type}: {e.msg}")


class BuiltinIpam:
    """static-ip, called as a function: only so can it hand over the MAC it keeps for a virtual machine."""

    def __init__(self, plugin: StaticIP | None, lookup: Lookup) -> None:
        # Not at the top: a network with a delegated IPAM, or none, needs no SQLite.
        from cnvnet.ipam.static_ip.plugin import StaticIP

        self._plugin = plugin or StaticIP(lookup=lookup)
        self._config: Config | None = None

    def prepare(self, request: Request) -> Prospect:
        """Read the configuration. InvalidConfig."""
        config = self._config = self._plugin.configure(request)
        return Prospect(frozenset(each.version for each in config.pool.sets), config.store, config.subject)

    def add(self, request: Request) -> Grant:
        """Get the addresses, and how to give them back should the ADD fail. CNIError."""
        assignment = self._plugin.assign(request, self._config)
        revert = partial(self._plugin.revert, request, assignment)
        return Grant(assignment.result, assignment.mac, revert, is_silent=assignment.role in SILENT_ROLES)

    def delete(self, request: Request, recorded: StoreRef | None = None) -> None:
        """End the container's hold. CNIError."""
        self._plugin.release(request, recorded)

    def unavailable_reason(self, request: Request) -> str:
        """Empty: it is always there."""
        return ""

    def check(self, request: Request, recorded: StoreRef | None = None) -> None:
        """CNIError if the lease is not as given."""
        self._plugin.check(request, recorded)

    def gc(self, request: Request, recorded: StoreRef | None = None) -> None:
        """End what belongs to no valid attachment. CNIError."""
        self._plugin.gc(request, recorded)

    def status(self, request: Request) -> None:
        """CNIError if no address could be given now."""
        self._plugin.status(request)

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """The folders of the leases."""
        return self._plugin.shared_folders(request)


def recorded_store(request: Request, record: Record | None) -> StoreRef | None:
    """Where static-ip keeps the lease of an attachment; None without one, and without a record."""
    if record is None or PortState.of(record).ipam_type != STATIC_IP:
        return None
    from cnvnet.ipam.static_ip import config, recorded

    return recorded.store(record.undo, config.statedir(request.env))


def stores_of_network(request: Request, records: Iterable[Record]) -> tuple[StoreRef, ...]:
    """The stores with leases of the request's network: the configuration's, and those of its records."""
    stores = [recorded_store(request, each) for each in records if each.key.network == request.name]
    if DeleteConfig.parse(request).ipam_type == STATIC_IP:
        from cnvnet.ipam.static_ip.config import store_refs

        stores[:0] = store_refs(request)
    return tuple(dict.fromkeys(each for each in stores if each is not None))


def choose(plugin_type: str, lookup: Lookup, static_ip: StaticIP | None = None) -> Ipam:
    """The manager of this type; our own is `static_ip`, if the process keeps one."""
    return BuiltinIpam(static_ip, lookup) if plugin_type == STATIC_IP else DelegatedIpam(plugin_type)


class Release(NamedTuple):
    """Which address manager to ask, and how. `recorded`: an ADD, maybe a killed one, has used it."""

    ipam_type: str
    request: Request
    recorded: bool
    # Where static-ip keeps the lease, if the record says so.
    store: StoreRef | None = None


def plan_release(request: Request, left: PortState | None) -> Release | None:
    """None when there is no address manager to ask.

    The record is written before IPAM is called: an address manager that it does not name has given nothing.
    """
    ipam_type = DeleteConfig.parse(request).ipam_type
    if left is None:
        return Release(ipam_type, request, recorded=False) if ipam_type else None
    if not left.ipam_type:
        return None
    now = ipam_of(request) or {}
    recorded = left.ipam or {**now, "type": left.ipam_type}
    if ipam_type != left.ipam_type or _folded(now).get("datadir") != _folded(recorded).get("datadir"):
        request = _with_ipam(request, recorded)
    return Release(left.ipam_type, request, recorded=True, store=left.store)


def release(planned: Release, choose: Callable[[str], Ipam]) -> None:
    """Raises CNIError or OSError. An address manager that is missing, and in no record, has nothing."""
    ipam = choose(planned.ipam_type)
    unavailable_reason = "" if planned.recorded else ipam.unavailable_reason(planned.request)
    if unavailable_reason:
        log(f"ipam: {unavailable_reason}: no address is given back")
    else:
        ipam.delete(planned.request, planned.store)


def ipam_of(request: Request) -> Mapping[str, Any] | None:
    """The configuration's ipam object as it is written."""
    ipam = request.fields.raw("ipam")
    return cast("Mapping[str, Any]", ipam) if isinstance(ipam, Mapping) else None


def _with_ipam(request: Request, ipam: Mapping[str, Any]) -> Request:
    config = {key: value for key, value in request.config.items() if key.lower() != "ipam"}
    config["ipam"] = ipam
    return request._replace(fields=Fields(config), raw=json.dumps(config).encode())


def _folded(ipam: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): value for key, value in ipam.items()}
