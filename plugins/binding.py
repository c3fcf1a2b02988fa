"""What every binding of a VM to its pod does with a request, from the record's lock to the result.

A binding makes links in the pod's namespace and nowhere else. What they are is the binding's own: see
masquerade and vm_bridge.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Generic, NamedTuple, Protocol, TypeVar

from cnvnet import sandbox, teardown
from cnvnet.attachments import ADDED, Attachments, Key, Record, Slot
from cnvnet.cni.conventions import valid_attachments
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError, InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, ensure_renderable, previous
from cnvnet.diagnostics import say
from cnvnet.guest import provider
from cnvnet.guest.wishes import Wishes
from cnvnet.kernel import tap
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.vm import traces
from cnvnet.vm.pod import Pod
from cnvnet.vm.sysctls import Change
from cnvnet.vm.tap_options import TapOptions


class Configured(Protocol):
    """What the configuration of any binding has."""

    @property
    def tap(self) -> TapOptions: ...
    @property
    def guest(self) -> Wishes: ...


C = TypeVar("C", bound=Configured)


class Call(NamedTuple, Generic[C]):
    """An ADD or a CHECK whose configuration is sound, in the pod's namespace, with its record locked.

    An ADD has the namespace for itself. `others` are the sysctls that the pod's other bindings have set.
    """

    key: Key
    request: Request
    config: C
    result: Result | None
    pod: Pod
    env: Mapping[str, str]
    others: tuple[Change, ...] = ()


class Binding(Generic[C]):
    """The commands. It keeps nothing between calls: one object may serve many."""

    name = ""

    def __init__(self, kernel: Kernel, attachments: Attachments, env: Mapping[str, str]) -> None:
        self._kernel = kernel
        self._attachments = attachments
        self._env = env

    # what a binding does its own way

    def _parse(self, request: Request) -> C:
        """Raises CNIError naming the key that is wrong."""
        raise NotImplementedError

    def _attach(self, call: Call[C], slot: Slot) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        raise NotImplementedError

    def _verify(self, call: Call[C], record: Record | None) -> None:
        """Raises CNIError 100 for what is not as ADD left it."""
        raise NotImplementedError

    def _detach(self, key: Key, record: Record | None, pod: Pod, others: tuple[Change, ...]) -> None:
        """Takes away whatever is there, all of it even if some of it cannot be; then raises.

        Sysctls that `others` have set as well stay as they are.
        """
        raise NotImplementedError

    def _standing(self, record: Record, pod: Stack) -> str:
        """A link by which a recorded attachment is known to be there, "" when it is not."""
        raise NotImplementedError

    # the commands

    def add(self, request: Request) -> Result:
        config = self._parse(request)
        result = previous(request)
        ensure_renderable(request.cni_version, has_ips=bool(result and result.ips))
        provider.ensure(self._env, config.guest)
        key = self._key(request)
        with self._attachments.locked(key) as slot, ExitStack() as opened:
            pod = self._pod(opened, request.netns)
            sandbox.lock(self._kernel, pod.netns)
            self._repair(key, slot, pod)
            others = self._others(key, pod)
            return self._attach(Call(key, request, config, result, pod, self._env, others), slot)

    def delete(self, request: Request) -> None:
        self._delete(self._key(request), request.netns)

    def check(self, request: Request) -> None:
        config = self._parse(request)
        key = self._key(request)
        with self._attachments.locked(key, optional=True) as slot, ExitStack() as opened:
            pod = self._pod(opened, request.netns)
            record = slot.read()
            self._verify(Call(key, request, config, previous(request), pod, self._env), record)
        if record is not None and record.guest is not None:
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
        config = self._parse(request)
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
            link = self._standing(record, pod.stack)
            if link:
                raise InvalidConfig(f"{key.ifname} of container {key.container_id} has {link} already")
        provider.forget(self._env, key)
        self._clear(key, record, pod)
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
            if netns is not None:
                sandbox.lock(self._kernel, netns)
                self._clear(
                    key, record, Pod(self._kernel, netns, opened.enter_context(self._kernel.stack(netns)))
                )

    def _clear(self, key: Key, record: Record | None, pod: Pod) -> None:
        if pod.netns.inode == self._kernel.own() or (record is not None and not _is_of(record, pod.netns)):
            return
        self._detach(key, record, pod, self._others(key, pod))

    def _others(self, key: Key, pod: Pod) -> tuple[Change, ...]:
        """The sysctls of the namespace that other bindings need as they are, with what they were before."""
        plugins = traces.other_plugins(pod.stack, key)
        return tuple(
            change
            for plugin in plugins
            for record in self._attachments.records(plugin)
            if record.key != key and _is_of(record, pod.netns)
            for change in traces.changes(record.undo, "sysctls")
        )


def _is_of(record: Record, netns: Netns) -> bool:
    """Whether a record is about this namespace: inodes are used again, after a boot from the beginning."""
    return record.netns_inode == netns.inode and record.boot_id == boot_id()
