"""The hold files of one run: what it is going to give pods of this node, and what they have at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cnvnet.ipam.lease import Holder, Lease, LeaseKey
from cnvnet.ipam.store import holds, object_names, objects
from cnvnet.ipam.store.holds import Hold, Holds, Intent
from cnvnet.ipam.store.kubernetes_work import interface
from cnvnet.ipam.store.objects import StoredLease


class Intents:
    """What the attempts of a run have written to hold files."""

    def __init__(self, held: Holds, node: str, *, remade: bool = False) -> None:
        """`remade`: they have it already, and only the API does not. A kill must not end them then."""
        self._holds = held
        self._node = node
        self._remade = remade
        self._open: dict[tuple[str, str, str], Intent] = {}

    def begin(
        self, lease: Lease, holders: Iterable[Holder], stored: StoredLease | None, addresses: Iterable[str]
    ) -> None:
        """Write down what holders are going to have, before the API hears of it. CNIError."""
        used = _keys(stored)
        for holder in holders:
            former = self._holds.get(lease.key.network, *interface(holder)) if self._remade else None
            hold = Hold(
                state=holds.HELD if self._remade else holds.ADDING,
                container_id=holder.container_id,
                ifname=holder.ifname,
                lease=lease,
                lease_uid=stored.uid if stored is not None else "",
                holder_key=object_names.holder_key(*interface(holder), used),
                addresses=tuple(sorted(addresses)),
                is_remade=self._remade,
                dispute=former.dispute if former is not None else "",
                fenced=former.fenced if former is not None else False,
            )
            intent = self._open.get(hold.interface)
            if intent is None:
                self._open[hold.interface] = self._holds.begin(hold)
            elif intent.hold != hold:
                self._holds.rewrite(intent, hold)

    def former_addresses(self, key: LeaseKey) -> set[str]:
        """What earlier ADDs of the same interfaces have asked for or got, for this lease."""
        former = [each.former for each in self._open.values() if each.former is not None]
        return {
            address
            for each in former
            if each.lease.key == key
            for address in (*each.addresses, *objects.addresses_of(each.lease))
        }

    def finish(
        self,
        lease: Lease,
        holders: Iterable[Holder],
        stored: StoredLease | None,
        *,
        left: tuple[str, ...],
        reservations: Mapping[str, str],
    ) -> None:
        """Write down that the holders have what they asked for; `left` is still to be freed. CNIError."""
        keys = _keys(stored)
        for holder in holders:
            intent = self._open[(lease.key.network, *interface(holder))]
            former = dict(intent.former.reservations) if intent.former is not None else dict[str, str]()
            names = {object_names.reservation_name(lease.key.network, str(ip)) for ip in lease.ips}
            kept = {name: uid for name, uid in former.items() if name in names}
            done = intent.hold._replace(
                state=holds.HELD,
                lease=lease,
                lease_uid=stored.uid if stored is not None else intent.hold.lease_uid,
                holder_key=keys.get(interface(holder), intent.hold.holder_key),
                addresses=left,
                reservations={**kept, **reservations},
                version=stored.version if stored is not None else "",
                is_unsettled=stored is not None and bool(stored.pending),
                is_remade=False,
                dispute="",
                fenced=False,
            )
            self._holds.finish(intent, done)
            del self._open[done.interface]

    def resume(self, lease: Lease, holders: Iterable[Holder], stored: StoredLease) -> bool:
        """Write down that holders are going to keep what the lease says; whether it was not known. CNIError.

        The lease has to be read again then: until the file is written, a release that was queued goes on.
        """
        known = ((each, self._holds.get(lease.key.network, *interface(each))) for each in holders)
        unsure = [each for each, hold in known if hold is None or hold.state != holds.HELD]
        is_new = any((lease.key.network, *interface(each)) not in self._open for each in unsure)
        self.begin(lease, unsure, stored, objects.addresses_of(lease))
        return is_new

    def confirm(self, lease: Lease, holders: Iterable[Holder], stored: StoredLease) -> None:
        """Write down that these have what they had before. CNIError."""
        resumed = [each for each in holders if (lease.key.network, *interface(each)) in self._open]
        self.finish(lease, resumed, stored, left=(), reservations={})

    def forget(self, key: LeaseKey, interfaces: Iterable[tuple[str, str]]) -> None:
        """These interfaces hold nothing of this key any more; another one may have them by now. CNIError."""
        for each in interfaces:
            hold = self._holds.get(key.network, *each)
            if hold is not None and hold.state != holds.COOLING and hold.lease.key == key:
                self._holds.remove(hold)

    def withdraw(self) -> None:
        """Nothing of what was going to be is: the files are as they were. CNIError."""
        for intent in self._open.values():
            if intent.fd >= 0:
                self._holds.withdraw(intent)
        self._open.clear()

    def close(self) -> None:
        """Leave the files as they are."""
        for intent in self._open.values():
            intent.close()


def _keys(stored: StoredLease | None) -> Mapping[tuple[str, str], str]:
    return stored.holder_keys if stored is not None else dict[tuple[str, str], str]()
