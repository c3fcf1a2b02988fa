"""What one ADD leaves behind, as its record keeps it, and how the pod gets its interface back."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.attachments import Key
from cnvnet.attempts import Attempts
from cnvnet.cni.errors import CNIError
from cnvnet.kernel import snapshots
from cnvnet.kernel.links import ChangeLink, Link
from cnvnet.kernel.snapshots import Replay, Snapshot
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.kernel.wait import wait_for_link
from cnvnet.plugins.vm_bridge import old_record, original, plan, ruleset
from cnvnet.plugins.vm_bridge.original import Original
from cnvnet.vm import names as all_names
from cnvnet.vm import ruleset as vm_ruleset
from cnvnet.vm import stand_in as stand_ins
from cnvnet.vm import sysctls, traces
from cnvnet.vm.names import Names
from cnvnet.vm.pod import Pod
from cnvnet.vm.sysctls import Change

# What is put back is there already, or what is in its way has gone by itself.
_DONE: Final = (errno.EEXIST, errno.ESRCH, errno.EADDRNOTAVAIL)
# As long as the kernel may take to note that a link is ready.
_SECONDS: Final = 2.0


class Leftovers(NamedTuple):
    """The undo keys of a record: the pod's interface as it was, from which all else follows
    but the sysctls of the namespace.

    With `mislaid` somebody has deleted what stood in for the interface, and meant the interface.
    """

    was: Original | None = None
    sysctls: tuple[Change, ...] = ()
    mislaid: bool = False

    @property
    def names(self) -> Names | None:
        return all_names.of(self.was.name) if self.was is not None else None

    def to_json(self) -> dict[str, Any]:
        pod = original.encode(self.was) if self.was is not None else None
        return {"pod": pod, "sysctls": self.sysctls}

    @classmethod
    def parse(cls, undo: Mapping[str, Any]) -> Leftovers:
        """Never raises: a key of another shape than ours is one that cannot be undone."""
        return cls(original.parse(undo.get("pod")), traces.changes(undo, "sysctls"))


def find(pod: Stack, key: Key) -> Leftovers:
    """What the links of the pod tell of an attachment; nothing about routes and neighbours."""
    mine = traces.marked(pod, key)
    nic = next((link for link in mine if link.name.endswith("-nic")), None)
    stand_in = next((link for link in mine if _stands_in(link)), None)
    if nic is None or stand_in is None:
        # One of them alone has no name to give back, or needs none; the others go by their names.
        name = stand_in.name if stand_in is not None else _name_of(mine)
        return Leftovers(_unharmed(pod, name, ours=stand_in is not None) if name else None)
    kept = _addresses(pod, stand_in)
    was = Original(
        nic.ifindex, stand_in.name, stand_in.mac, nic.mtu, True, disable_ipv6="0", snapshot=kept, bare=()
    )
    return Leftovers(was)


def _unharmed(pod: Stack, name: str, *, ours: bool) -> Original:
    """What has this name: a link of ours or the pod's interface, which stays as it is."""
    link = pod.link(name)
    if link is None or ours:
        return Original(0, name, link.mac if link is not None else "", 0, up=True)
    kept = _addresses(pod, link)
    return Original(link.ifindex, name, link.mac, link.mtu, up=True, snapshot=kept, bare=())


def _addresses(pod: Stack, link: Link) -> Snapshot:
    kept = pod.snapshot(link.ifindex)
    return Snapshot(kept.at, kept.addresses)


def remove(pod: Pod, left: Leftovers) -> list[CNIError | OSError]:
    """Puts everything back that is there, from whatever state. The table goes after what it keeps apart."""
    kernel, netns, stack = pod
    tries = Attempts()
    was, called = left.was, left.names
    if was is None or called is None:
        return []
    tries.attempt(called.tap, traces.delete_tap, stack, called.tap)
    tries.attempt(called.bridge, traces.delete_bridge, stack, called.bridge, plan.wire_mac(was.mac))
    tries.attempt(called.pod, _delete_stand_in, stack, was)
    tries.attempt("sysctls", sysctls.restore, stack, left.sysctls)
    tries.attempt("nftables", vm_ruleset.delete, kernel, netns, (ruleset.table(called),))
    link = stack.link(was.ifindex) if was.ifindex else None
    # It may have gone before us, with its own plugin's DEL.
    if link is None or link.name not in (called.pod, called.nic):
        return tries.errors
    if left.mislaid and link.kind == "veth":
        tries.attempt(link.name, traces.delete, stack, link)
    else:
        tries.attempt(link.name, _give_back, stack, link, was)
        _refill(tries, stack, was)
    return tries.errors


def has_stand_in(pod: Stack, was: Original) -> bool:
    """Whether something stands in for the pod's interface, or that itself is there."""
    return pod.link(was.name) is not None


def _stands_in(link: Link) -> bool:
    return link.kind in stand_ins.KINDS and not link.name.startswith("k6t-")


def _name_of(mine: list[Link]) -> str:
    """The pod's interface that these links belong to, by the names of what is left of them."""
    for link in mine:
        stem = link.name.removeprefix("k6t-").removesuffix("-nic")
        if stem != link.name:
            secondary = f"pod{stem}"
            return secondary if all_names.is_hashed(secondary) else stem
    return ""


def _delete_stand_in(pod: Stack, was: Original) -> None:
    link = pod.link(was.name)
    if link is None or link.ifindex == was.ifindex or link.kind not in stand_ins.KINDS:
        return
    # One that is half made has no alias yet; another plugin (tuning) may have given it another MAC address.
    if link.mac == was.mac or stand_ins.is_one(link):
        traces.delete(pod, link)


def _give_back(pod: Stack, link: Link, was: Original) -> None:
    """Name, MAC address and all that a link has while it is down; then up, as far as it was."""
    sysctl = original.disable_ipv6(was.name)
    if (link.name, link.mac, link.alias, link.master) != (was.name, was.mac, was.alias, 0):
        pod.apply(
            ChangeLink(link.ifindex, up=False, name=was.name, mac=was.mac or None, alias=was.alias, master=0)
        )
    if was.disable_ipv6 is not None and pod.sysctls.get(sysctl) != was.disable_ipv6:
        pod.sysctls.set(sysctl, was.disable_ipv6)
    there = pod.snapshot(link.ifindex)
    # A pod that listens to routers hears of them again only when the kernel asks, which it does by a
    # link-local address that it has found to be nobody else's.
    found = snapshots.addresses_of(link.ifindex, was.snapshot, there, detected=bool(was.snapshot.heard))
    replay(pod, (each for each in found if snapshots.needs_no_link(each)))
    if was.up:
        pod.apply(ChangeLink(link.ifindex, up=True))
    replay(pod, (each for each in found if not snapshots.needs_no_link(each)))


def _refill(tries: Attempts, pod: Stack, was: Original) -> None:
    """What a link can have only when it is up."""
    there = pod.snapshot(was.ifindex)
    kept = was.snapshot
    if was.bare is not None:
        kept = old_record.completed(kept, was.bare, there)
    for each in snapshots.routes_of(was.ifindex, kept, there):
        tries.attempt("routes", replay, pod, (each,))
    for each in snapshots.neighbours_of(was.ifindex, kept, there):
        tries.attempt("neighbours", replay, pod, (each,))
    # What a router asks for comes with its next word, and counts only if it is news.
    if was.up and not kept.heard and was.ipv6_mtu not in (None, str(was.mtu)):
        tries.attempt("sysctls", _limit, pod, was)


def _limit(pod: Stack, was: Original) -> None:
    """A link that becomes ready forgets what IPv6 was limited to."""
    wait_for_link(pod, was.ifindex, seconds=_SECONDS)
    pod.sysctls.set(original.ipv6_mtu(was.name), was.ipv6_mtu or "")


def replay(pod: Stack, found: Iterable[Replay]) -> None:
    """All of it that is not as it was already. Raises KernelError."""
    for each in found:
        try:
            pod.apply(each)
        except KernelError as e:
            if e.errno not in _DONE:
                raise
