"""The configuration of vm-bridge: every key, parsed once."""

from __future__ import annotations

from typing import NamedTuple

from cnvnet.cni.args import parse_args
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.guest.wishes import Wishes
from cnvnet.vm import identity
from cnvnet.vm.tap_options import TapOptions

_ARGS = frozenset({"IP", "MAC", *identity.ARGS, *identity.KUBERNETES_ARGS})


class Config(NamedTuple):
    """What the configuration asks for. With `lan_dhcp` the guest is told everything by the LAN, not by us.

    `hostname` is the VM's.
    """

    lan_dhcp: bool
    tap: TapOptions
    guest: Wishes
    hostname: str

    @classmethod
    def parse(cls, request: Request) -> Config:
        """Raises CNIError (7, for CNI_ARGS 4) naming the key that is wrong or contradicts another."""
        fields = request.fields
        vm = identity.identify(fields, parse_args(request.args, _ARGS), request.ifname)
        guest = Wishes.parse(fields)
        lan_dhcp = fields.flag("lanDHCP")
        if lan_dhcp and guest.required:
            raise InvalidConfig(
                f"{fields.path('lanDHCP')}: the LAN tells the guest everything, guestServices has to go"
            )
        return cls(
            lan_dhcp=lan_dhcp,
            tap=TapOptions.parse(fields),
            guest=guest._replace(enabled=guest.enabled and not lan_dhcp),
            hostname=vm.name if vm is not None else "",
        )
