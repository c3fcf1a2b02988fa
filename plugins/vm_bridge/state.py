"""What one ADD leaves behind, as its record keeps it, and how the pod gets its interface back."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.attachment.record import Key
from cnvnet.attachment.rollback import ErrorCollector
from cnvnet.attachment.sandbox import Pod
from cnvnet.kernel import replays
from cnvnet.kernel.links import ChangeLink, Link
from cnvnet.kernel.replays import Replay
from cnvnet.kernel.snapshots import Snapshot
from cnvnet.kernel.stack import KernelError, Stack, delete_link
from cnvnet.kernel.wait import wait_for_link
from cnvnet.plugins.binding import ownership, placeholder, sysctls
from cnvnet.plugins.binding import ruleset as vm_ruleset
from cnvnet.plugins.binding.sysctls import Change
from cnvnet.plugins.vm_bridge import old_record, original, plan, ruleset
from cnvnet.plugins.vm_bridge.original import Original
from cnvnet.vm import names as all_names
from cnvnet.vm.names import PodLinkNames

# What is to be restored is there already, or what is to be removed has gone by itself.
_DONE: Final = (errno.EEXIST, errno.ESRCH, errno.EADDRNOTAVAIL)
# As long as the kernel may take to note that a link is ready.
_SECONDS: Final = 2.0


class BridgeState(NamedTuple):
    """The undo keys of a record: the pod's interface as it was, and the sysctls of the namespace.

    All else follows from the interface. With `placeholder_deleted` another program has deleted the
    placeholder, and meant the interface.
    """

    was: Original | None = None
    sysctls: tuple[Change, ...] = ()
    placeholder_deleted: bool = False

    @property
    def names(self) -> PodLinkNames | None:
        """The names of the links that were made; None if none was."""
        return all_names.of(self.was.name) if self.was is not None else None

    def to_json(self) -> dict[str, Any]:
        """What the record keeps."""
        pod = original.encode(self.was) if self.was is not None else None
        return {"pod": pod, "sysctls": self.sysctls}

    @classmethod
    def parse(cls, undo: Mapping[str, Any]) -> BridgeState:
        """Never raises: a key of another shape than ours is one that cannot be undone."""
        return cls(original.parse(undo.get("pod")), ownership.changes(undo))


def find(pod: Stack, key: Key) -> BridgeState:
    """What the links of the pod show of an attachment: nothing about routes and neighbours."""
    links = ownership.marked(pod, key)
    nic = next((link for link in links if link.name.endswith("-nic")), None)
    placeholder_link = next((link for link in links if _is_placeholder(link)), None)
    if nic is None or placeholder_link is None:
        # One of them alone has no name to give back, or needs none; the others go by their names.
        name = placeholder_link.name if placeholder_link is not None else _name_of(links)
        return BridgeState(_unharmed(pod, name, ours=placeholder_link is not None) if name else None)
    kept = _addresses(pod, placeholder_link)
    was = Original(
        nic.ifindex,
        placeholder_link.name,
        placeholder_link.mac,
        nic.mtu,
        True,
        disable_ipv6="0",
        snapshot=kept,
        missing_connected_routes=(),
    )
    return BridgeState(was)


def _unharmed(pod: Stack, name: str, *, ours: bool) -> Original:
    """What has this name: a link of ours or the pod's interface, which stays as it is."""
    link = pod.link(name)
    if link is None or ours:
        return Original(0, name, link.mac if link is not None else "", 0, up=True)
    kept = _addresses(pod, link)
    return Original(
        link.ifindex, name, link.mac, link.mtu, up=True, snapshot=kept, missing_connected_routes=()
    )


def _addresses(pod: Stack, link: Link) -> Snapshot:
    kept = pod.snapshot(link.ifindex)
    return Snapshot(kept.at, kept.addresses)


def remove(pod: Pod, left: BridgeState) -> None:
    """Restores the pod from any state; then raises the first error.

    The table goes after the links that it keeps apart, what passes the bridge by before them.
    """
    kernel, netns, stack = pod
    was, called = left.was, left.names
    if was is None or called is None:
        return
    collector = ErrorCollector()
    collector.attempt("nftables", vm_ruleset.delete_present, kernel, netns, ruleset.wire_table(called))
    collector.attempt(called.tap, ownership.delete_tap, stack, called.tap)
    collector.attempt(called.bridge, ownership.delete_bridge, stack, called.bridge, plan.wire_mac(was.mac))
    collector.attempt(called.pod, _delete_placeholder, stack, was)
    collector.attempt("sysctls", sysctls.restore, stack, left.sysctls)
    collector.attempt("nftables", vm_ruleset.delete, kernel, netns, (ruleset.table(called),))
    link = stack.link(was.ifindex) if was.ifindex else None
    # A link that is missing may have been deleted before us, by its own plugin's DEL.
    if link is not None and link.name in (called.pod, called.nic):
        if left.placeholder_deleted and link.kind == "veth":
            collector.attempt(link.name, delete_link, stack, link.ifindex)
        else:
            collector.attempt(link.name, _restore_link, stack, link, was)
            _restore_routes(collector, stack, was)
    collector.raise_first()


def has_placeholder(pod: Stack, was: Original) -> bool:
    """Whether there is a placeholder of the pod's interface, or the interface itself."""
    return pod.link(was.name) is not None


def _is_placeholder(link: Link) -> bool:
    return link.kind in placeholder.KINDS and not link.name.startswith("k6t-")


def _name_of(links: list[Link]) -> str:
    """The pod's interface that these links belong to, by the names of what is left of them."""
    for link in links:
        stem = link.name.removeprefix("k6t-").removesuffix("-nic")
        if stem != link.name:
            secondary = f"pod{stem}"
            return secondary if all_names.is_hashed(secondary) else stem
    return ""


def _delete_placeholder(pod: Stack, was: Original) -> None:
    link = pod.link(was.name)
    if link is None or link.ifindex == was.ifindex or link.kind not in placeholder.KINDS:
        return
    # One that is half made has no alias yet; another plugin (tuning) may have given it another MAC address.
    if link.mac == was.mac or placeholder.is_one(link):
        delete_link(pod, link.ifindex)


def _restore_link(pod: Stack, link: Link, was: Original) -> None:
    """Name, MAC address and all that a link has while it is down; then up, as far as it was."""
    sysctl = original.disable_ipv6(was.name)
    if (link.name, link.mac, link.alias, link.master) != (was.name, was.mac, was.alias, 0):
        pod.apply(
            ChangeLink(link.ifindex, up=False, name=was.name, mac=was.mac or None, alias=was.alias, master=0)
        )
    if was.disable_ipv6 is not None and pod.sysctls.get(sysctl) != was.disable_ipv6:
        pod.sysctls.set(sysctl, was.disable_ipv6)
    now = pod.snapshot(link.ifindex)
    # A pod that listens to routers hears of them again only when the kernel asks, which it does by a
    # link-local address that duplicate address detection has found free.
    missing = replays.addresses_of(link.ifindex, was.snapshot, now, detected=bool(was.snapshot.heard))
    replay(pod, (each for each in missing if replays.needs_no_link(each)))
    if was.up:
        pod.apply(ChangeLink(link.ifindex, up=True))
    replay(pod, (each for each in missing if not replays.needs_no_link(each)))


def _restore_routes(collector: ErrorCollector, pod: Stack, was: Original) -> None:
    """What a link can have only when it is up."""
    now = pod.snapshot(was.ifindex)
    kept = was.snapshot
    if was.missing_connected_routes is not None:
        kept = old_record.completed(kept, was.missing_connected_routes, now)
    for each in replays.routes_of(was.ifindex, kept, now):
        collector.attempt("routes", replay, pod, (each,))
    for each in replays.neighbours_of(was.ifindex, kept, now):
        collector.attempt("neighbours", replay, pod, (each,))
    # A router's MTU comes with its next advertisement, and the kernel sets it only if it differs.
    if was.up and not kept.heard and was.ipv6_mtu not in (None, str(was.mtu)):
        collector.attempt("sysctls", _limit, pod, was)


def _limit(pod: Stack, was: Original) -> None:
    """Sets the limit of IPv6's MTU again, which the kernel drops when the link becomes ready."""
    wait_for_link(pod, was.ifindex, seconds=_SECONDS)
    pod.sysctls.set(original.ipv6_mtu(was.name), was.ipv6_mtu or "")


def replay(pod: Stack, messages: Iterable[Replay]) -> None:
    """Applies all of it that is not as it was already. Raises KernelError."""
    for each in messages:
        try:
            pod.apply(each)
        except KernelError as e:
            if e.errno not in _DONE:
                raise
