"""What the controller may do to an object: values, each with its reason and what has to be true of it."""

from __future__ import annotations

from typing import Final, NamedTuple

from cnvnet.ipam.store.objects import StoredLease, StoredReservation
from cnvnet.kube.resources import Resource

END_HOLDER: Final = "end holder"
DELETE_LEASE: Final = "delete lease"
# Of a lease that is being deleted: frees its addresses, then removes its finalizer.
FINISH_LEASE: Final = "finish lease"
END_COOLDOWN: Final = "end cooldown"
DELETE_RESERVATION: Final = "delete reservation"
# Keeps the address of a pod that has gone for the time that its lease asked for.
COOL_RESERVATION: Final = "cool reservation"
ACTIONS: Final = (
    END_HOLDER,
    DELETE_LEASE,
    FINISH_LEASE,
    END_COOLDOWN,
    DELETE_RESERVATION,
    COOL_RESERVATION,
)


class Absence(NamedTuple):
    """An object that must not be there, which is asked for again before a step is done.

    It is another one if its UID is; "" stands for any. `or_out_of_service`: a Node may also be tainted so.
    """

    resource: Resource
    namespace: str
    name: str
    uid: str = ""
    or_out_of_service: bool = False


class CleanupStep(NamedTuple):
    """One change of one object, of this version of it: of `lease` or of `reservation`."""

    action: str
    reason: str
    lease: StoredLease | None = None
    reservation: StoredReservation | None = None
    # The key of a holder in the lease.
    holder: str = ""
    absences: tuple[Absence, ...] = ()

    @property
    def subject(self) -> str:
        """The object, in messages."""
        if self.lease is not None:
            return f"VMLease {self.lease.key.namespace}/{self.lease.name}"
        return f"IPReservation {self.reservation.name if self.reservation is not None else ''}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that it is about."""
        if self.lease is not None:
            return self.lease.listed
        return (self.reservation.address,) if self.reservation is not None else ()

    @property
    def network(self) -> str:
        """The network of these."""
        if self.lease is not None:
            return self.lease.key.network
        return self.reservation.network if self.reservation is not None else ""
