"""cnv-tuning: the spec's commands."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from cnvnet.attachment import sandbox, teardown
from cnvnet.attachment.files import AttachmentFiles, rundir
from cnvnet.attachment.record import ADDED, ADDING, Attachments, Key, Record, UndoKeys
from cnvnet.attachment.rollback import Rollback
from cnvnet.attachment.sandbox import Pod
from cnvnet.call_context import log
from cnvnet.cni import unknown_keys
from cnvnet.cni.conventions import valid_attachments
from cnvnet.cni.errors import NOT_AVAILABLE, CheckFailed, CNIError, InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, ensure_renderable, previous
from cnvnet.executables import CNV_TUNING
from cnvnet.kernel import sysctl
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Kernel, LinuxKernel, Stack
from cnvnet.kernel.sysctl import Setting
from cnvnet.plugins.tuning import allowlist, state
from cnvnet.plugins.tuning.config import Config, data_dir
from cnvnet.plugins.tuning.state import LinkState, ReferenceBackup
from cnvnet.vm.subjects import owners_of


class Tuning:
    """The plugin. One object serves many calls, also concurrently."""

    name = CNV_TUNING

    def __init__(self, kernel: Kernel, attachments: Attachments) -> None:
        self._kernel = kernel
        self._attachments = attachments

    def add(self, request: Request) -> Result:
        """ADD: change the interface, and return the previous result with what has changed."""
        config = Config.parse(request)
        unknown_keys.report(request.fields)
        allowlist.ensure_allowed(config.sysctls, allowlist.read())
        result = _required(request)
        ensure_renderable(request.cni_version, has_ips=bool(result.ips))
        key = Key.of(self.name, request)
        with self._attachments.locked(key) as locked, ExitStack() as opened:
            pod = self._pod(opened, request.netns)
            before = locked.read()
            if before is not None:
                # An ADD that was killed, or one whose DEL never came.
                self._clear(before, pod)
            link = _interface(pod.stack, request.ifname, config)
            wanted = LinkState.wanted(config)
            original = wanted.of(link) if link is not None else LinkState()
            sysctls = pod.stack.sysctls
            before_them = {each.path: sysctls.get(each.path) or "" for each in config.sysctls}
            undo = {"link": original.to_json(), "sysctls": before_them}
            owner = owners_of(request, None)
            record = Record(key, request.netns, pod.netns.inode, boot_id(), ADDING, undo, None, *owner)
            with Rollback() as rollback:
                rollback.on_clean("record", locked.remove)
                locked.write(record)
                rollback.push("sysctls", _restore_sysctls, pod.stack, before_them)
                sysctl.apply(sysctls, (Setting(each.path, each.value) for each in config.sysctls))
                if link is not None:
                    rollback.push(request.ifname, state.restore, pod.stack, request.ifname, original)
                    state.change(pod.stack, link, wanted)
                locked.write(record._replace(state=ADDED))
        return _changed(result, request.ifname, config)

    def delete(self, request: Request) -> None:
        """DEL: give the interface back what it had; sysctls stay, as with the reference."""
        key = Key.of(self.name, request)
        self._delete(key, request.netns, self._backup(request))

    def check(self, request: Request) -> None:
        """CHECK: CNIError where interface and sysctls are not as they are asked for."""
        config = Config.parse(request)
        _required(request)
        with ExitStack() as opened:
            pod = self._pod(opened, request.netns, for_change=False)
            for wanted in config.sysctls:
                now = pod.stack.sysctls.get(wanted.path)
                if now is None or now.split() != wanted.value.split():
                    raise CheckFailed(f"sysctl {wanted.path} is {now}, not {wanted.value}")
            link = _interface(pod.stack, request.ifname, config)
            if link is not None:
                _compare(link, LinkState.wanted(config))

    def gc(self, request: Request) -> None:
        """GC: DEL for each attachment that is not valid any more."""
        valid = valid_attachments(request.fields)
        if valid is None:
            return
        collector = teardown.collect(
            self._attachments, self.name, request.name, valid, lambda key: self._delete(key, "", None)
        )
        collector.raise_first()

    def status(self, request: Request) -> None:
        """Code 50 when an ADD could not be served."""
        config = Config.parse(request)
        try:
            self._attachments.ensure_writable()
            allowlist.ensure_allowed(config.sysctls, allowlist.read())
        except CNIError as e:
            raise CNIError(NOT_AVAILABLE, e.msg, e.details) from e

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """None besides RUNDIR."""
        return ()

    def _pod(self, opened: ExitStack, path: str, *, for_change: bool = True) -> Pod:
        netns = opened.enter_context(sandbox.opened(self._kernel, path))
        if for_change:
            sandbox.lock(self._kernel, netns)
        return Pod(self._kernel, netns, opened.enter_context(self._kernel.stack(netns)))

    @staticmethod
    def _backup(request: Request) -> ReferenceBackup | None:
        try:
            folder = data_dir(request.fields)
        except InvalidConfig as e:
            log(e.msg)  # a DEL goes on
            return None
        return ReferenceBackup(folder, request.container_id, request.ifname)

    def _delete(self, key: Key, path: str, backup: ReferenceBackup | None) -> None:
        def remove(record: Record | None) -> None:
            with ExitStack() as opened:
                pod = self._existing(opened, path or (record.netns_path if record is not None else ""))
                if pod is not None and record is not None:
                    self._clear(record, pod)
                elif pod is not None and backup is not None:
                    state.restore(pod.stack, key.ifname, backup.read())
            if backup is not None:
                backup.remove()

        teardown.delete(self._attachments, key, remove)

    def _existing(self, opened: ExitStack, path: str) -> Pod | None:
        """The pod, unless its namespace has gone, and the interface with it."""
        netns = opened.enter_context(sandbox.existing(self._kernel, path))
        if netns is None or netns.inode == self._kernel.own():
            return None
        sandbox.lock(self._kernel, netns)
        return Pod(self._kernel, netns, opened.enter_context(self._kernel.stack(netns)))

    def _clear(self, record: Record, pod: Pod) -> None:
        if not sandbox.is_of(record, pod.netns):
            return
        undo = UndoKeys(record.undo)
        if record.state == ADDING:
            _restore_sysctls(pod.stack, state.recorded_sysctls(undo))
        state.restore(pod.stack, record.key.ifname, state.parse(undo.fields("link")))


def load(env: Mapping[str, str], kernel: Kernel | None = None) -> Tuning:
    """The plugin for a caller with this environment; what it is not given it makes."""
    return Tuning(kernel or LinuxKernel(), AttachmentFiles(rundir(env)))


def _required(request: Request) -> Result:
    result = previous(request)
    if result is None:
        raise InvalidConfig(
            "Required prevResult missing", "cnv-tuning stands behind the plugin that makes the interface"
        )
    return result


def _interface(pod: Stack, ifname: str, config: Config) -> Link | None:
    """The link, if something of it is to be changed."""
    if not config.changes_link:
        return None
    link = pod.link(ifname)
    if link is None:
        raise InvalidConfig(f'failed to get "{ifname}": Link not found', "no plugin before this one made it")
    return link


def _compare(link: Link, wanted: LinkState) -> None:
    now = wanted.of(link)
    for key, value, its in zip(LinkState._fields, wanted, now, strict=True):
        if value != its:
            raise CheckFailed(f"{key} of {link.name} is {_text(its)}, not {_text(value)}")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _restore_sysctls(pod: Stack, values: Mapping[str, str]) -> None:
    for path, value in values.items():
        if not value:
            continue  # it was not there, or had none
        try:
            pod.sysctls.set(path, value)
        except OSError as e:
            log(str(e.strerror or e))


def _changed(result: Result, ifname: str, config: Config) -> Result:
    """The previous result, in which the interface has the MAC and the MTU that it has now.

    The reference changes the MAC alone; an MTU is changed only where a plugin before this one gave one.
    """
    return result._replace(
        interfaces=tuple(
            each._replace(mac=config.mac or each.mac, mtu=(config.mtu or each.mtu) if each.mtu else 0)
            if each.name == ifname
            else each
            for each in result.interfaces
        )
    )
