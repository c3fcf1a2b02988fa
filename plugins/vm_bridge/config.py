"""The configuration of vm-bridge: every key, parsed once."""

from __future__ import annotations

from typing import NamedTuple

from cnvnet.cni.args import parse_args
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.guest.options import GuestOptions
from cnvnet.plugins.binding.tap_options import TapOptions
from cnvnet.vm import identity
from cnvnet.vm.launcher import Subject


class Config(NamedTuple):
    """What the configuration asks for."""

    # Whether the LAN's DHCP server and routers configure the guest, instead of the guest services.
    lan_dhcp: bool
    tap: TapOptions
    guest: GuestOptions
    # The guest's, made from the VM's name; "" for none.
    hostname: str
    # What the call says it is for; None for a container outside Kubernetes that is no VM.
    claim: identity.VM | PodRef | None

    @classmethod
    def parse(cls, request: Request) -> Config:
        """Raises CNIError (7, for CNI_ARGS 4) naming the key that is wrong or contradicts another."""
        fields = request.fields
        claim = identity.claim(fields, parse_args(request.args, identity.KNOWN_ARGS), request.ifname)
        guest = GuestOptions.parse(fields)
        lan_dhcp = fields.flag("lanDHCP")
        if lan_dhcp and guest.required:
            raise InvalidConfig(
                f"{fields.path('lanDHCP')}: the LAN tells the guest everything, guestServices has to go"
            )
        return cls(
            lan_dhcp=lan_dhcp,
            tap=TapOptions.parse(fields),
            guest=guest._replace(enabled=guest.enabled and not lan_dhcp),
            hostname=claim.hostname if isinstance(claim, identity.VM) else "",
            claim=claim,
        )

    def of(self, subject: Subject) -> Config:
        """The same for the VM that the Kubernetes API knows."""
        return self._replace(hostname=subject.hostname)

    def as_added(self, _role: str, /) -> Config:
        """The same: the role of the pod changes nothing here."""
        return self
