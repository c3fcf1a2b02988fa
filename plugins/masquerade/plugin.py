"""masquerade: what each command does, from the record's lock to the result."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from cnvnet import sandbox, teardown
from cnvnet.attachments import (
    ADDED,
    AttachmentFiles,
    Attachments,
    Key,
    Record,
    Slot,
    boot_id,
    rundir,
)
from cnvnet.cni.conventions import valid_attachments
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError, InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, ensure_renderable, previous
from cnvnet.diagnostics import say
from cnvnet.guest import provider
from cnvnet.kernel import tap
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel, LinuxKernel, Stack
from cnvnet.plugins.masquerade import leftovers
from cnvnet.plugins.masquerade.addition import Addition, Pod
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.leftovers import Leftovers


class Masquerade:
    """The plugin. It keeps nothing between calls: one object may serve many."""

    name = "masquerade"

    def __init__(self, kernel: Kernel, attachments: Attachments, env: Mapping[str, str]) -> None:
        self._kernel = kernel
        self._attachments = attachments
        self._env = env

    def add(self, request: Request) -> Result:
        config = Config.parse(request)
        result = previous(request)
        ensure_renderable(request.cni_version, has_ips=bool(result and result.ips))
        provider.ensure(self._env, config.guest)
        key = self._key(request)
        with self._attachments.locked(key) as slot, ExitStack() as opened:
            pod = self._pod(opened, request.netns)
            self._repair(key, slot, pod)
            return Addition(request, config, pod, result, self._env).run(key, slot)

    def delete(self, request: Request) -> None:
        self._delete(self._key(request), request.netns)

    def check(self, request: Request) -> None:
        from cnvnet.plugins.masquerade.check import Check

        config = Config.parse(request)
        key = self._key(request)
        with self._attachments.locked(key, optional=True) as slot, ExitStack() as opened:
            pod = self._pod(opened, request.netns)
            Check(request, config, pod, previous(request)).run(key, slot.read())
        provider.check(self._env, config.guest, key)

    def gc(self, request: Request) -> None:
        valid = valid_attachments(request.fields)
        if valid is None:
            return
        tries = teardown.collect(
            self._attachments, self.name, request.name, valid, lambda key: self._delete(key, "")
        )
        if tries.errors:
            raise tries.errors[0]

    def status(self, request: Request) -> None:
        """Code 50 when an ADD could not be served."""
        config = Config.parse(request)
        try:
            self._attachments.ensure_writable()
            tap.ensure_available(config.tap.selinux_context)
            with self._kernel.nft() as nft:
                nft.run("\n")  # says what is missing, should that be all of nft
        except (CNIError, OSError) as e:
            raise CNIError(NOT_AVAILABLE, str(e)) from e
        provider.ensure_available(self._env, config.guest)

    def _key(self, request: Request) -> Key:
        return Key(self.name, request.name, request.container_id, request.ifname)

    def _pod(self, opened: ExitStack, path: str) -> Pod:
        netns = opened.enter_context(sandbox.opened(self._kernel, path))
        return Pod(self._kernel, netns, opened.enter_context(self._kernel.stack(netns)))

    def _repair(self, key: Key, slot: Slot, pod: Pod) -> None:
        """Removes what a call that was killed has left. An attachment that works is none of that."""
        record = slot.read()
        if record is None:
            return
        if record.state == ADDED and _is_of(record, pod.netns):
            bridge = Leftovers.parse(record.undo).bridge
            if pod.stack.link(bridge) is not None:
                raise InvalidConfig(f"{key.ifname} of container {key.container_id} has {bridge} already")
        self._remove(key, record, pod.netns.path)
        slot.remove()

    def _delete(self, key: Key, path: str) -> None:
        teardown.delete(self._attachments, key, lambda record: self._remove(key, record, path))

    def _remove(self, key: Key, record: Record | None, path: str) -> None:
        """Takes away what is in the namespace, if that still is the one."""
        provider.forget(self._env, key)
        # A runtime that does not know the path any more leaves it to us.
        path = path or (record.netns_path if record is not None else "")
        with ExitStack() as opened:
            try:
                netns = opened.enter_context(self._kernel.netns(path)) if path else None
            except FileNotFoundError:
                return  # with the namespace went all there was
            except OSError as e:
                say(f"netns {path}: {e}")  # a file where it was: nothing of ours is in it
                return
            if netns is None or netns.inode == self._kernel.own():
                return
            if record is not None and not _is_of(record, netns):
                return
            stack = opened.enter_context(self._kernel.stack(netns))
            self._remove_all(key, record, netns, stack)

    def _remove_all(self, key: Key, record: Record | None, netns: Netns, pod: Stack) -> None:
        left = leftovers.find(pod, key) if record is None else Leftovers.parse(record.undo)
        errors = leftovers.remove(self._kernel, netns, pod, left)
        if errors:
            raise errors[0]


def load(env: Mapping[str, str]) -> Masquerade:
    """The plugin for a caller with this environment."""
    return Masquerade(LinuxKernel(), AttachmentFiles(rundir(env)), env)


def _is_of(record: Record, netns: Netns) -> bool:
    """Whether a record is about this namespace: inodes are used again, after a boot from the beginning."""
    return record.netns_inode == netns.inode and record.boot_id == boot_id()
