"""cnv-bridge: what each command does, from the record's lock to the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from cnvnet import sandbox, teardown
from cnvnet.attachments import (
    ADDED,
    Key,
    Record,
    Slot,
    UnreadableRecord,
    rundir,
)
from cnvnet.cni.conventions import valid_attachments
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, ensure_renderable, previous
from cnvnet.diagnostics import say
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.stack import Kernel, LinuxKernel
from cnvnet.plugins.cnv_bridge import guards, plan, port
from cnvnet.plugins.cnv_bridge.addition import Addition, Sides
from cnvnet.plugins.cnv_bridge.config import Config, Remnants, ensure_usable_ifname
from cnvnet.plugins.cnv_bridge.leftovers import Tools

if TYPE_CHECKING:
    from cnvnet.ipam.static_ip.plugin import StaticIP
    from cnvnet.plugins.cnv_bridge.ipam import Ipam


class CnvBridge:
    """The plugin. It keeps nothing between calls: one object may serve many."""

    name = "cnv-bridge"

    def __init__(self, tools: Tools, choose_ipam: Callable[[str], Ipam]) -> None:
        self._tools = tools
        self._kernel = tools.kernel
        self._attachments = tools.attachments
        self._choose_ipam = choose_ipam

    def add(self, request: Request) -> Result:
        config = Config.parse(request)
        ensure_usable_ifname(request.ifname)
        ensure_renderable(request.cni_version, has_ips=bool(config.ipam_type))
        key = self._key(request)
        with self._attachments.locked(key) as slot, ExitStack() as opened:
            sides = self._sides(opened, request.netns)
            self._repair(request, slot, sides)
            manager = self._choose_ipam(config.ipam_type) if config.ipam_type else None
            return Addition(request, config, self._tools, manager).run(key, slot, sides)

    def delete(self, request: Request) -> None:
        teardown.delete(self._attachments, self._key(request), partial(self._remove, request))

    def check(self, request: Request) -> None:
        from cnvnet.plugins.cnv_bridge import check

        config = Config.parse(request)
        with ExitStack() as opened:
            sides = self._sides(opened, request.netns)
            # It may take long: before the lock, for which DEL and the upkeep of the guards would wait.
            if config.ipam_type:
                self._choose_ipam(config.ipam_type).check(request)
            slot = opened.enter_context(self._attachments.locked(self._key(request), optional=True))
            result = check.required(previous(request))
            ends = check.check_links(sides.host, sides.pod, request, config, result)
            check.check_vlans(sides.host, config, ends)
            if config.ipam_type:
                check.check_addresses(sides.pod, ends, result)
                if not ends.is_bound:
                    check.check_sysctls(sides.pod, plan.container_settings(config, request.ifname, result))
                check.check_gateway(sides.host, config, result)
            if any(config.guards) or config.ip_masq:
                nft = opened.enter_context(self._kernel.nft())
                if _read(slot) is None and check.check_legacy(nft, request, config):
                    return
                check.check_guards(nft, config, ends, result)
                check.check_masquerade(nft, config, result)

    def gc(self, request: Request) -> None:
        valid = valid_attachments(request.fields)
        if valid is None:
            return
        tries = teardown.collect(
            self._attachments,
            self.name,
            request.name,
            valid,
            lambda key: self.delete(_request_of(key, request)),
        )
        remnants = Remnants.parse(request)
        if remnants.ip_masq:
            tries.attempt("masquerade", self._gc_masquerade, request, valid)
        if remnants.ipam_type:
            tries.attempt("ipam", self._choose_ipam(remnants.ipam_type).gc, request)
        if tries.errors:
            raise tries.errors[0]

    def status(self, request: Request) -> None:
        """Code 50 when an ADD could not be served, or whatever IPAM says."""
        config = Config.parse(request)
        try:
            self._attachments.ensure_writable()
            if any(config.guards) or config.ip_masq:
                with self._kernel.nft() as nft:
                    if not guards.loaded(nft):
                        nft.run("\n")  # says what is missing, should that be all of nft
        except (CNIError, OSError) as e:
            raise CNIError(NOT_AVAILABLE, str(e)) from e
        if config.ipam_type:
            self._choose_ipam(config.ipam_type).status(request)

    def _gc_masquerade(self, request: Request, valid: set[tuple[str, str]]) -> None:
        with self._kernel.nft() as nft:
            self._tools.masquerade.gc(nft, self.name, request.name, valid)

    def _key(self, request: Request) -> Key:
        return Key(self.name, request.name, request.container_id, request.ifname)

    def _sides(self, opened: ExitStack, path: str) -> Sides:
        netns = opened.enter_context(sandbox.opened(self._kernel, path))
        host = opened.enter_context(self._kernel.stack())
        return Sides(host, opened.enter_context(self._kernel.stack(netns)), netns)

    def _repair(self, request: Request, slot: Slot, sides: Sides) -> None:
        """Removes what a call that was killed has left. An attachment that works is none of that."""
        record = slot.read()
        if record is None:
            return
        if record.state == ADDED and record.boot_id == boot_id():
            port.refuse_taken_name(sides.pod, request.ifname, str(record.undo.get("host")))
        self._remove(request, record)

    def _remove(self, request: Request, record: Record | None) -> None:
        from cnvnet.plugins.cnv_bridge.removal import Removal  # not at the top: an ADD seldom needs it

        errors = Removal(request, self._key(request), record, self._tools, self._choose_ipam).run()
        if errors:
            raise errors[0]


def load(
    env: Mapping[str, str], kernel: Kernel | None = None, static_ip: StaticIP | None = None
) -> CnvBridge:
    """The plugin for a caller with this environment; what it is not given it makes."""
    tools = Tools.of(rundir(env), kernel or LinuxKernel())
    return CnvBridge(tools, partial(_choose_ipam, static_ip=static_ip))


def _read(slot: Slot) -> Record | None:
    """The record if there is one that can be read; one that cannot stays where it is."""
    try:
        return slot.read()
    except UnreadableRecord as e:
        say(e.msg)
        return None


def _choose_ipam(plugin_type: str, static_ip: StaticIP | None) -> Ipam:
    from cnvnet.plugins.cnv_bridge.ipam import choose  # not at the top: many networks have no addresses

    return choose(plugin_type, static_ip)


def _request_of(key: Key, request: Request) -> Request:
    """A DEL of one attachment, made of a GC of its network."""
    env = {
        **request.env,
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": key.container_id,
        "CNI_IFNAME": key.ifname,
        "CNI_NETNS": "",
    }
    return request._replace(
        command="DEL", container_id=key.container_id, ifname=key.ifname, netns="", env=env
    )
