"""Removing an attachment, from whatever still tells of it: its record, its prevResult, the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cnvnet.attachments import Key, Record
from cnvnet.attempts import Attempts
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, previous
from cnvnet.diagnostics import say
from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Stack
from cnvnet.plugins.cnv_bridge import port
from cnvnet.plugins.cnv_bridge.config import Remnants
from cnvnet.plugins.cnv_bridge.leftovers import (
    Leftovers,
    Tools,
    find_container_end,
    find_other_end,
    find_port,
    find_port_of_result,
    leftovers_of_port,
    leftovers_of_result,
    remove_elements,
    remove_masquerade,
)
from cnvnet.plugins.cnv_bridge.release import plan_release, release

if TYPE_CHECKING:
    from cnvnet.plugins.cnv_bridge.ipam import Ipam


class Removal:
    """A DEL of one attachment. Every part is tried; what went wrong is in the list that `run` returns."""

    def __init__(
        self,
        request: Request,
        key: Key,
        record: Record | None,
        tools: Tools,
        choose_ipam: Callable[[str], Ipam],
    ) -> None:
        self._request = request
        self._key = key
        self._record = record
        self._left = Leftovers.of(record) if record is not None else None
        self._tools = tools
        self._choose_ipam = choose_ipam
        self._result = self._previous() if record is None else None
        # Without a record: what the links themselves tell.
        self._seen: Leftovers | None = None

    def run(self) -> list[CNIError | OSError]:
        """The addresses go last: whoever gets them next finds nothing of ours that knows them."""
        tries = Attempts()
        tries.attempt("port", self._delete_port)
        if self._left is not None:
            tries.attempt("guards", remove_elements, self._tools, self._left)
            tries.attempt("masquerade", remove_masquerade, self._tools, self._key, self._left)
        else:
            self._remove_legacy()
            self._remove_what_is_told()
        planned = plan_release(self._request, self._left)
        if planned is not None:
            tries.attempt("giving addresses back", release, planned, self._choose_ipam)
        return tries.errors

    def _delete_port(self) -> None:
        with self._tools.kernel.stack() as host:
            link = self._host_end(host)
            if link is not None:
                if not self._retire(host, link):
                    port.delete(host, link.ifindex)
                return
        # The kernel deletes both ends with either; without the host end there is at most half of it left.
        if self._request.netns:
            self._delete_container_end()

    def _retire(self, host: Stack, link: Link) -> bool:
        """Whether the port is out of the way already, for the reaper of a process that stays to delete."""
        kernel, request = self._tools.kernel, self._request
        if kernel.reaper is None or not request.netns:
            return False
        from cnvnet.kernel.retired import retire  # not at the top: a program that ends has no reaper

        try:
            with kernel.netns(request.netns) as netns, kernel.stack(netns) as pod:
                if not retire(host, link, pod, request.ifname):
                    return False
        except OSError:
            return False  # there is no such namespace any more
        kernel.reaper.notify()
        return True

    def _host_end(self, host: Stack) -> Link | None:
        if self._left is not None:
            return find_port(host, self._left)
        link = find_port_of_result(host, self._result) if self._result is not None else None
        return None if link is None or self._is_anothers(link.name) else link

    def _delete_container_end(self) -> None:
        path = self._request.netns
        try:
            with self._tools.kernel.netns(path) as netns:
                if self._record is None or self._record.netns_inode == netns.inode:
                    with self._tools.kernel.stack(netns) as pod:
                        link = find_container_end(pod, self._request.ifname, self._left)
                        if link is not None and (self._record is not None or self._leads_to_us(pod, link)):
                            port.delete(pod, link.ifindex)
        except FileNotFoundError:
            pass  # with the namespace went the port
        except OSError as e:
            # A file where the namespace was: whatever became of it, nothing of ours is in it.
            say(f"CNI_NETNS {path}: {e}")

    def _leads_to_us(self, pod: Stack, container: Link) -> bool:
        bridge = Remnants.parse(self._request).bridge
        with self._tools.kernel.stack() as host:
            link = find_other_end(host, container, bridge, self._result)
        if link is None or self._is_anothers(link.name):
            return False
        addresses = [found.address for found in pod.addresses(container.ifindex)]
        self._seen = leftovers_of_port(link.name, container.mac, addresses)
        return True

    def _is_anothers(self, host_name: str) -> bool:
        """Whether another attachment's record names this port: a refused ADD's DEL finds its rival's."""
        records = self._tools.attachments.records(self._key.plugin)
        return any(Leftovers.of(r).host == host_name for r in records if r.key != self._key)

    def _remove_legacy(self) -> None:
        from cnvnet.plugins.cnv_bridge import (
            legacy,
        )  # not at the top: rare, and it needs regular expressions

        request = self._request
        attachment = legacy.Attachment(request.name, request.container_id, request.ifname)
        try:
            with self._tools.kernel.nft() as nft:
                legacy.remove(nft, attachment)
        except OSError as e:
            say(f"rules of an older plugin: {e}")  # without nftables it has left none

    def _remove_what_is_told(self) -> None:
        told = [self._seen] if self._seen is not None else []
        try:
            if self._result is not None:
                with self._tools.kernel.stack() as host:
                    told.append(leftovers_of_result(host, self._result))
            for left in told:
                if not self._is_anothers(left.host):
                    remove_elements(self._tools, left)
                remove_masquerade(self._tools, self._key, left)
        except (CNIError, OSError, ValueError) as e:
            say(f"without a record some may stay: {e}")  # it need not have been there

    def _previous(self) -> Result | None:
        try:
            return previous(self._request)
        except CNIError as e:
            say(f"prevResult is of no use: {e.msg}")
            return None
