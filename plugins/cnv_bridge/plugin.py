"""cnv-bridge: what each command does, from the record's lock to the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from cnvnet.attachment import sandbox, teardown
from cnvnet.attachment.files import rundir
from cnvnet.attachment.record import ADDED, Key, LockedRecord, Record, UnreadableRecord
from cnvnet.call_context import log
from cnvnet.cni import unknown_keys
from cnvnet.cni.args import readable_args
from cnvnet.cni.conventions import valid_attachments
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, ensure_renderable, previous
from cnvnet.executables import CNV_BRIDGE, STATIC_IP
from cnvnet.ipam.store.ref import StoreRef
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.stack import Kernel, LinuxKernel
from cnvnet.plugins.cnv_bridge import guards, ipam, plan, port
from cnvnet.plugins.cnv_bridge.add import Namespaces, PortAdd
from cnvnet.plugins.cnv_bridge.config import Config, DeleteConfig, ensure_usable_ifname
from cnvnet.plugins.cnv_bridge.ipam import Ipam, Prospect
from cnvnet.plugins.cnv_bridge.state import Context
from cnvnet.vm import identity, requests
from cnvnet.vm.launcher import Subject
from cnvnet.vm.subjects import Lookup, no_api, own_lookup, subject_of

if TYPE_CHECKING:
    from cnvnet.ipam.static_ip.plugin import StaticIP


class CnvBridge:
    """The plugin. It keeps nothing between calls: one object may serve many."""

    name = CNV_BRIDGE

    def __init__(
        self, context: Context, choose_ipam: Callable[[str], Ipam], lookup: Lookup = no_api
    ) -> None:
        """`lookup` leads to the Kubernetes API, which knows the VMs of pods."""
        self._context = context
        self._lookup = lookup
        self._kernel = context.kernel
        self._attachments = context.attachments
        self._choose_ipam = choose_ipam

    def add(self, request: Request) -> Result:
        """ADD: put the container on the bridge."""
        config = Config.parse(request)
        manager = self._choose_ipam(config.ipam_type) if config.ipam_type else None
        prospect = manager.prepare(request) if manager is not None else Prospect()
        if config.ipam_type != STATIC_IP:
            prospect = prospect._replace(subject=self._subject(request))
        config.ensure_effective(request.fields, prospect.versions)
        unknown_keys.report(request.fields, own_ipam=config.ipam_type == STATIC_IP)
        ensure_usable_ifname(request.ifname)
        ensure_renderable(request.cni_version, has_ips=bool(config.ipam_type))
        mac = self._mac(request, config, prospect.subject)
        key = Key.of(self.name, request)
        with self._attachments.locked(key) as locked, ExitStack() as opened:
            namespaces = self._namespaces(opened, request.netns)
            self._repair(request, locked, namespaces)
            return PortAdd(request, config, self._context, manager, prospect, mac).run(
                key, locked, namespaces
            )

    def _subject(self, request: Request) -> Subject | None:
        """The VM's interface that a Kubernetes pod is for; outside of it only address managers ask."""
        args = readable_args(request.args)
        if not identity.in_kubernetes(args):
            return None
        return subject_of(identity.claim(request.fields, args, request.ifname), request, self._lookup)

    def _mac(self, request: Request, config: Config, subject: Subject | None) -> str:
        """The MAC that the port is to have, but where the address manager gives one; "" for any."""
        if subject is None:
            return config.mac.mac
        wanted = requests.mac(subject, *config.mac, partial(self._other_interfaces, request))
        if config.ipam_type != STATIC_IP:  # which says them too
            for remark in wanted.remarks:
                log(remark)
        return wanted.mac

    def _other_interfaces(self, request: Request) -> frozenset[str]:
        """Those of the pod that are on bridges already."""
        records = self._attachments.records(CNV_BRIDGE)
        return sandbox.other_interfaces(records, request.container_id, request.ifname)

    def delete(self, request: Request) -> None:
        """DEL: remove the port, its guards and addresses."""
        teardown.delete(self._attachments, Key.of(self.name, request), partial(self._remove, request))

    def check(self, request: Request) -> None:
        """CHECK: compare bridge, port, guards and addresses with the record and prevResult."""
        from cnvnet.plugins.cnv_bridge import check

        config = Config.parse(request)
        with ExitStack() as opened:
            namespaces = self._namespaces(opened, request.netns)
            # It may take long: before the lock, for which DEL and the reconciler of the guards would wait.
            if config.ipam_type:
                self._choose_ipam(config.ipam_type).check(request, self._recorded_store(request))
            locked = opened.enter_context(
                self._attachments.locked(Key.of(self.name, request), optional=True)
            )
            result = check.required(previous(request))
            ends = check.check_links(namespaces.host, namespaces.pod, request, config, result)
            check.check_vlans(namespaces.host, config, ends)
            if config.ipam_type:
                check.check_addresses(namespaces.pod, ends, result)
                if not ends.is_bound:
                    check.check_sysctls(
                        namespaces.pod, plan.container_settings(config, request.ifname, result)
                    )
                check.check_gateway(namespaces.host, config, result)
            if any(config.guards) or config.ip_masq:
                nft = opened.enter_context(self._kernel.nft())
                if _read(locked) is None and check.check_legacy(nft, request, config):
                    return
                check.check_guards(nft, config, ends, result)
                check.check_masquerade(nft, config, result)

    def gc(self, request: Request) -> None:
        """GC: DEL for each attachment that is not valid any more."""
        valid = valid_attachments(request.fields)
        if valid is None:
            return
        stores = ipam.stores_of_network(request, self._attachments.records(self.name))
        collector = teardown.collect(
            self._attachments,
            self.name,
            request.name,
            valid,
            lambda key: self.delete(_request_of(key, request)),
        )
        config = DeleteConfig.parse(request)
        if config.ip_masq:
            collector.attempt("masquerade", self._gc_masquerade, request, valid)
        if config.ipam_type not in ("", STATIC_IP):
            collector.attempt("ipam", self._choose_ipam(config.ipam_type).gc, request)
        for store in stores:
            collector.attempt("ipam", self._choose_ipam(STATIC_IP).gc, request, store)
        collector.raise_first()

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

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """Those of the leases: where the configuration has them, and where the record does."""
        ipam_type = DeleteConfig.parse(request).ipam_type
        configured = self._choose_ipam(ipam_type).shared_folders(request) if ipam_type else ()
        store = self._recorded_store(request)
        return (*configured, *(store.folders if store is not None else ()))

    def _recorded_store(self, request: Request) -> StoreRef | None:
        """Where the attachment's lease is, as its record says, which is read without its lock."""
        try:
            record = self._attachments.read(Key.of(self.name, request))
        except UnreadableRecord:
            return None  # then the configuration says it
        return ipam.recorded_store(request, record)

    def _gc_masquerade(self, request: Request, valid: set[tuple[str, str]]) -> None:
        with self._kernel.nft() as nft:
            self._context.masquerade.gc(nft, self.name, request.name, valid)

    def _namespaces(self, opened: ExitStack, path: str) -> Namespaces:
        netns = opened.enter_context(sandbox.opened(self._kernel, path))
        host = opened.enter_context(self._kernel.stack())
        return Namespaces(host, opened.enter_context(self._kernel.stack(netns)), netns)

    def _repair(self, request: Request, locked: LockedRecord, namespaces: Namespaces) -> None:
        """Removes what a call that was killed has left. An attachment that works is none of that."""
        record = locked.read()
        if record is None:
            return
        if record.state == ADDED and record.boot_id == boot_id():
            port.refuse_taken_name(namespaces.pod, request.ifname, str(record.undo.get("host")))
        self._remove(request, record)

    def _remove(self, request: Request, record: Record | None) -> None:
        from cnvnet.plugins.cnv_bridge.delete import PortDelete  # not at the top: an ADD seldom needs it

        PortDelete(request, Key.of(self.name, request), record, self._context, self._choose_ipam).run()


def load(
    env: Mapping[str, str],
    kernel: Kernel | None = None,
    static_ip: StaticIP | None = None,
    lookup: Lookup | None = None,
) -> CnvBridge:
    """The plugin for a caller with this environment; what it is not given it makes."""
    context = Context.of(rundir(env), kernel or LinuxKernel())
    lookup = lookup or own_lookup(env)
    return CnvBridge(context, partial(ipam.choose, lookup=lookup, static_ip=static_ip), lookup)


def _read(locked: LockedRecord) -> Record | None:
    """The record if there is one that can be read; one that cannot stays where it is."""
    try:
        return locked.read()
    except UnreadableRecord as e:
        log(e.msg)
        return None


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
