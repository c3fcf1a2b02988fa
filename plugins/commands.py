"""What both bindings of a VM to its pod do for each command, from the record's lock to the result.

A binding makes links in the pod's namespace and nowhere else. Which ones is up to its driver: see masquerade
and vm_bridge. cnv-bridge is no driver: its ADD and CHECK work in two namespaces and ask an address manager
before they lock anything, and its DEL works without a namespace, by prevResult. What it has in common with
the bindings is in cnvnet.attachment (teardown, sandbox, ErrorCollector).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from cnvnet.attachment import sandbox, teardown
from cnvnet.attachment.record import ADDED, Attachments, Key, LockedRecord, Record
from cnvnet.attachment.sandbox import Pod
from cnvnet.cni import unknown_keys
from cnvnet.cni.conventions import PodRef, valid_attachments
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError, InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, ensure_renderable, previous
from cnvnet.guest.options import GuestOptions
from cnvnet.kernel import tap
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.launch import guest_client
from cnvnet.plugins.binding import ownership
from cnvnet.plugins.binding.sysctls import Change
from cnvnet.plugins.binding.tap_options import TapOptions
from cnvnet.vm.identity import VM
from cnvnet.vm.launcher import Subject
from cnvnet.vm.subjects import Lookup, no_api, subject_of


class Configured(Protocol):
    """What the configuration of any binding has."""

    @property
    def tap(self) -> TapOptions:
        """The tap that the guest gets."""
        ...

    @property
    def guest(self) -> GuestOptions:
        """How the guest is configured by the guest services."""
        ...

    @property
    def claim(self) -> VM | PodRef | None:
        """What the call says it is for."""
        ...

    def of(self, subject: Subject) -> Self:
        """The same for the VM that the Kubernetes API knows."""
        ...

    def as_added(self, role: str, /) -> Self:
        """The same for a pod that had this role at its ADD."""
        ...


C = TypeVar("C", bound=Configured)


class BindingCall(NamedTuple, Generic[C]):
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
    # The VM's interface; None for a container that is not known to be a VM, and for a CHECK.
    subject: Subject | None = None


class Driver(Protocol[C]):
    """What one binding does its own way; `BindingCommands` does around it what all bindings do.

    A driver keeps nothing between calls: one object serves many of them, also concurrently.
    """

    @property
    def name(self) -> str:
        """The plugin's name, in configurations and in the keys of its records."""
        ...

    def parse(self, request: Request) -> C:
        """What the configuration asks for. Raises CNIError naming the key that is wrong."""
        ...

    def attach(self, call: BindingCall[C], locked: LockedRecord) -> Result:
        """Binds the VM to its pod. Raises CNIError or OSError; nothing of the attachment is left then."""
        ...

    def verify(self, call: BindingCall[C], record: Record | None) -> None:
        """Raises CheckFailed for what is not as `attach` left it."""
        ...

    def detach(self, key: Key, record: Record | None, pod: Pod, others: tuple[Change, ...]) -> None:
        """Removes all that is left of an attachment, as much as can be; then raises the first error.

        Sysctls that `others`, the pod's other bindings, have set as well stay as they are.
        """
        ...

    def existing_link(self, record: Record, pod: Stack) -> str:
        """The name of a link that shows that a recorded attachment exists, "" when it does not."""
        ...


class BindingCommands(Generic[C]):
    """The plugin: the spec's commands, carried out by a driver. One object serves many calls."""

    def __init__(
        self,
        driver: Driver[C],
        kernel: Kernel,
        attachments: Attachments,
        env: Mapping[str, str],
        lookup: Lookup = no_api,
    ) -> None:
        """`lookup` leads to the Kubernetes API, which knows the VMs of pods."""
        self.name = driver.name
        self._driver = driver
        self._kernel = kernel
        self._attachments = attachments
        self._env = env
        self._lookup = lookup

    def add(self, request: Request) -> Result:
        """ADD: bind the guest to the pod's network."""
        config = self._driver.parse(request)
        unknown_keys.report(request.fields)
        _ensure_context(config.tap.selinux_context)
        result = previous(request)
        ensure_renderable(request.cni_version, has_ips=bool(result and result.ips))
        # Before the record: an ADD whose guest no agent could serve fails with nothing to undo.
        guest_client.ensure_agent(self._env, config.guest)
        subject = subject_of(config.claim, request, self._lookup)
        if subject is not None:
            config = config.of(subject)
        key = Key.of(self.name, request)
        with self._attachments.locked(key) as locked, ExitStack() as opened:
            pod = self._pod(opened, request.netns)
            sandbox.lock(self._kernel, pod.netns)
            self._repair(key, locked, pod)
            # Read with the namespace locked: another binding of the pod may be changing the same sysctls.
            others = self._others(key, pod)
            return self._driver.attach(
                BindingCall(key, request, config, result, pod, self._env, others, subject), locked
            )

    def delete(self, request: Request) -> None:
        """DEL: undo the binding, and give the pod its interface back."""
        self._delete(Key.of(self.name, request), request.netns)

    def check(self, request: Request) -> None:
        """CHECK: CNIError if the binding is not as ADD made it."""
        config = self._driver.parse(request)
        key = Key.of(self.name, request)
        with self._attachments.locked(key, optional=True) as locked, ExitStack() as opened:
            pod = self._pod(opened, request.netns)
            record = locked.read()
            if record is not None and record.vm is not None and record.vm.role:
                # The role of the call has changed since, where the VM has moved.
                config = config.as_added(record.vm.role)
            self._driver.verify(BindingCall(key, request, config, previous(request), pod, self._env), record)
        if record is not None and record.guest is not None:
            guest_client.check(self._env, config.guest, key)

    def gc(self, request: Request) -> None:
        """GC: DEL for each attachment that is not valid any more."""
        valid = valid_attachments(request.fields)
        if valid is None:
            return
        collector = teardown.collect(
            self._attachments, self.name, request.name, valid, lambda key: self._delete(key, "")
        )
        collector.raise_first()

    def status(self, request: Request) -> None:
        """Code 50 when an ADD could not be served."""
        config = self._driver.parse(request)
        try:
            self._attachments.ensure_writable()
            tap.ensure_available(config.tap.selinux_context)
            with self._kernel.nft() as nft:
                nft.run("\n")  # raises what nft lacks, such as the program itself
        except (CNIError, OSError) as e:
            raise CNIError(NOT_AVAILABLE, str(e)) from e
        guest_client.ensure_available(self._env, config.guest)

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """None besides RUNDIR."""
        return ()

    def _pod(self, opened: ExitStack, path: str) -> Pod:
        netns = opened.enter_context(sandbox.opened(self._kernel, path))
        return Pod(self._kernel, netns, opened.enter_context(self._kernel.stack(netns)))

    def _repair(self, key: Key, locked: LockedRecord, pod: Pod) -> None:
        """Removes what a call that was killed has left. Refuses an attachment that works."""
        record = locked.read()
        if record is None:
            return
        if record.state == ADDED and sandbox.is_of(record, pod.netns):
            link = self._driver.existing_link(record, pod.stack)
            if link:
                raise InvalidConfig(f"{key.ifname} of container {key.container_id} has {link} already")
        guest_client.forget(self._env, key)
        self._clear(key, record, pod)
        locked.remove()

    def _delete(self, key: Key, path: str) -> None:
        teardown.delete(self._attachments, key, lambda record: self._remove(key, record, path))

    def _remove(self, key: Key, record: Record | None, path: str) -> None:
        """Removes what is in the namespace, if it still is the record's."""
        guest_client.forget(self._env, key)
        # A runtime that does not know the path any more gives none: the record has it.
        path = path or (record.netns_path if record is not None else "")
        with ExitStack() as opened:
            netns = opened.enter_context(sandbox.existing(self._kernel, path))
            # The kernel has deleted all of it with the namespace.
            if netns is not None:
                sandbox.lock(self._kernel, netns)
                self._clear(
                    key, record, Pod(self._kernel, netns, opened.enter_context(self._kernel.stack(netns)))
                )

    def _clear(self, key: Key, record: Record | None, pod: Pod) -> None:
        if pod.netns.inode == self._kernel.own() or (
            record is not None and not sandbox.is_of(record, pod.netns)
        ):
            return
        self._driver.detach(key, record, pod, self._others(key, pod))

    def _others(self, key: Key, pod: Pod) -> tuple[Change, ...]:
        """The sysctls of the namespace that other bindings need as they are, with their values before."""
        plugins = ownership.other_plugins(pod.stack, key)
        return tuple(
            change
            for plugin in plugins
            for record in self._attachments.records(plugin)
            if record.key != key and sandbox.is_of(record, pod.netns)
            for change in ownership.changes(record.undo)
        )


def _ensure_context(context: str) -> None:
    if context and not tap.knows_selinux():
        raise InvalidConfig(f"selinuxContext: {context}: SELinux does not run on this node")
