"""Removing an attachment by what still describes it: its record, its prevResult, the kernel."""

from __future__ import annotations

from collections.abc import Callable

from cnvnet.attachment.record import Key, Record
from cnvnet.attachment.rollback import ErrorCollector
from cnvnet.call_context import log
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, previous
from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Stack, delete_link
from cnvnet.plugins.cnv_bridge import plan, port
from cnvnet.plugins.cnv_bridge.config import DeleteConfig
from cnvnet.plugins.cnv_bridge.ipam import Ipam, Release, plan_release, release
from cnvnet.plugins.cnv_bridge.state import (
    Context,
    PortState,
    find_container_end,
    find_other_end,
    find_port,
    find_port_of_result,
    remove_elements,
    remove_masquerade,
    state_of_port,
    state_of_result,
)


class PortDelete:
    """A DEL of one attachment. Every part is tried, also after one of them has failed."""

    def __init__(
        self,
        request: Request,
        key: Key,
        record: Record | None,
        context: Context,
        choose_ipam: Callable[[str], Ipam],
    ) -> None:
        self._request = request
        self._key = key
        self._record = record
        self._left = PortState.of(record) if record is not None else None
        self._context = context
        self._choose_ipam = choose_ipam
        self._result = self._previous() if record is None else None
        # Without a record: what the links themselves show.
        self._seen: PortState | None = None
        self._has_retired = False

    def run(self) -> None:
        """Remove everything, addresses last, so that their next holders find nothing of ours that has them.

        Where the address manager needs the port, they go as soon as nothing on it has them any more. Raises
        the first error, when all steps have been tried.
        """
        try:
            self._remove_all()
        finally:
            # Not before: the reaper would begin while this call is at work, and be in its way.
            if self._has_retired and self._context.kernel.reaper is not None:
                self._context.kernel.reaper.notify()

    def _remove_all(self) -> None:
        collector, left = ErrorCollector(), self._left
        planned = plan_release(self._request, left)
        if left is not None and planned is not None and self._silenced(left, planned):
            collector.attempt("guards", remove_elements, self._context, left.of_addresses())
            collector.attempt("masquerade", remove_masquerade, self._context, self._key, left)
            collector.attempt("giving addresses back", release, planned, self._choose_ipam)
            collector.attempt("port", self._delete_port)
            # Each element once: the kernel refuses a transaction that names a missing one, in 10 ms.
            collector.attempt("guards", remove_elements, self._context, left.without_addresses())
            collector.raise_first()
            return
        collector.attempt("port", self._delete_port)
        if left is not None:
            collector.attempt("guards", remove_elements, self._context, left)
            collector.attempt("masquerade", remove_masquerade, self._context, self._key, left)
        else:
            self._remove_legacy()
            self._remove_what_is_reported()
        if planned is not None:
            collector.attempt("giving addresses back", release, planned, self._choose_ipam)
        collector.raise_first()

    def _silenced(self, left: PortState, planned: Release) -> bool:
        """Whether the address manager needs the port and can have it, without its addresses from now on."""
        record, request = self._record, self._request
        if record is None or not request.netns or not plan.finds_port(planned.ipam_type):
            return False
        try:
            with (
                self._context.kernel.netns(request.netns) as netns,
                self._context.kernel.stack(netns) as pod,
            ):
                link = find_container_end(pod, request.ifname, left)
                if link is None or record.netns_inode != netns.inode:
                    return False
                port.take_addresses(pod, link.ifindex)
        except OSError:
            return False  # the port goes first then
        return True

    def _delete_port(self) -> None:
        with self._context.kernel.stack() as host:
            link = self._host_end(host)
            if link is not None:
                if not self._retire(host, link):
                    delete_link(host, link.ifindex)
                return
        # The kernel deletes both ends with either; without the host end there is at most half of it left.
        if self._request.netns:
            self._delete_container_end()

    def _retire(self, host: Stack, link: Link) -> bool:
        """Whether the port is out of the way already, for the reaper of a process that stays to delete."""
        kernel, request = self._context.kernel, self._request
        if kernel.reaper is None or not request.netns:
            return False
        from cnvnet.kernel.deferred.retired import (
            retire,  # not at the top: a program that ends has no reaper
        )

        try:
            with kernel.netns(request.netns) as netns, kernel.stack(netns) as pod:
                if not retire(host, link, pod, request.ifname):
                    return False
        except OSError:
            return False  # there is no such namespace any more
        self._has_retired = True
        return True

    def _host_end(self, host: Stack) -> Link | None:
        if self._left is not None:
            return find_port(host, self._left)
        link = find_port_of_result(host, self._result) if self._result is not None else None
        return None if link is None or self._belongs_to_another(link.name) else link

    def _delete_container_end(self) -> None:
        path = self._request.netns
        try:
            with self._context.kernel.netns(path) as netns:
                if self._record is None or self._record.netns_inode == netns.inode:
                    with self._context.kernel.stack(netns) as pod:
                        link = find_container_end(pod, self._request.ifname, self._left)
                        if link is not None and (self._record is not None or self._leads_to_us(pod, link)):
                            delete_link(pod, link.ifindex)
        except FileNotFoundError:
            pass  # the kernel has deleted the port with the namespace
        except OSError as e:
            # A file where the namespace was: nothing of ours is in it.
            log(f"CNI_NETNS {path}: {e}")

    def _leads_to_us(self, pod: Stack, container: Link) -> bool:
        bridge = DeleteConfig.parse(self._request).bridge
        with self._context.kernel.stack() as host:
            link = find_other_end(host, container, bridge, self._result)
        if link is None or self._belongs_to_another(link.name):
            return False
        addresses = [address.address for address in pod.addresses(container.ifindex)]
        self._seen = state_of_port(link.name, container.mac, addresses)
        return True

    def _belongs_to_another(self, host_name: str) -> bool:
        """Whether another attachment's record names this port: a refused ADD's DEL finds its rival's."""
        records = self._context.attachments.records(self._key.plugin)
        return any(PortState.of(r).host == host_name for r in records if r.key != self._key)

    def _remove_legacy(self) -> None:
        from cnvnet.plugins.cnv_bridge import (
            reference_cleanup,  # not at the top: rare, and it needs regular expressions
        )

        request = self._request
        attachment = reference_cleanup.Attachment(request.name, request.container_id, request.ifname)
        try:
            with self._context.kernel.nft() as nft:
                reference_cleanup.remove(nft, attachment)
        except OSError as e:
            log(f"rules of an older plugin: {e}")  # without nftables it has left none

    def _remove_what_is_reported(self) -> None:
        reported = [self._seen] if self._seen is not None else []
        try:
            if self._result is not None:
                with self._context.kernel.stack() as host:
                    reported.append(state_of_result(host, self._result))
            for left in reported:
                if not self._belongs_to_another(left.host):
                    remove_elements(self._context, left)
                remove_masquerade(self._context, self._key, left)
        except (CNIError, OSError, ValueError) as e:
            log(f"without a record some may stay: {e}")  # it need not have been there

    def _previous(self) -> Result | None:
        try:
            return previous(self._request)
        except CNIError as e:
            log(f"prevResult is of no use: {e.msg}")
            return None
