"""The key `guestServices`: what a guest gets by DHCP, DHCPv6 and router advertisements.

Its keys are those of a VM's `dhcpOptions` in KubeVirt and some more. Name servers and search domains come
from it, else from the runtime (the capability `dns`), else from the network's own result; where none of
them has any, the node's agent takes those of the pod's resolv.conf.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from cnvnet.cni.conventions import runtime_config
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_address
from cnvnet.cni.result import DNS
from cnvnet.guest import domains, resolvconf
from cnvnet.guest.settings import FOREVER, LEASE_SECONDS, Settings, checked


class GuestOptions(NamedTuple):
    """What the configuration says about a guest's services.

    A field with the name of a field of Settings becomes that field.
    """

    # The guest is served if the node has an agent.
    enabled: bool = True
    # The key is there: an ADD without an agent fails.
    required: bool = False
    # An ADD without an agent starts one first.
    autostart: bool = True
    hostname: str = ""
    nameservers: tuple[IPv4Address | IPv6Address, ...] = ()
    search: tuple[str, ...] = ()
    ntp_servers: tuple[str, ...] = ()
    tftp_server: str = ""
    boot_file: str = ""
    private_options: tuple[tuple[int, str], ...] = ()
    lease_seconds: int = LEASE_SECONDS

    @classmethod
    def parse(cls, fields: Fields) -> GuestOptions:
        """From the whole configuration. Raises InvalidConfig naming the key."""
        key = fields.fields("guestServices")
        enabled = key.flag("enabled", default=True)
        dns = runtime_config(fields).fields("dns")
        dns.know("options")  # the capability has them, no protocol does
        nameservers = [
            as_address(text, f"{key.path('nameservers')}[{index}]")
            for index, text in enumerate(key.texts("nameservers"))
        ]
        return cls(
            enabled=enabled,
            required=enabled and fields.has("guestServices"),
            autostart=key.flag("autostart", default=True),
            hostname=_hostname(key),
            nameservers=tuple(nameservers) or resolvconf.usable(dns.texts("servers")),
            search=key.texts("search") or dns.texts("searches"),
            ntp_servers=key.texts("ntpServers"),
            tftp_server=_text(key, "tftpServerName"),
            boot_file=_text(key, "bootFileName"),
            private_options=_private_options(key),
            lease_seconds=key.integer("leaseSeconds", LEASE_SECONDS, minimum=60, maximum=FOREVER),
        )

    def complete(self, settings: Settings, *, dns: DNS, hostname: str = "") -> Settings:
        """A network's settings with these options; `dns` and `hostname` count where the options have none.

        Raises InvalidConfig when the whole cannot be given to a guest.
        """
        fields = {name: value for name, value in self._asdict().items() if name in Settings._fields}
        fields["hostname"] = self.hostname or hostname
        fields["nameservers"] = self.nameservers or resolvconf.usable(dns.nameservers)
        fields["search"] = self.search or dns.search or ((dns.domain,) if dns.domain else ())
        return checked(settings._replace(**fields))


def _hostname(key: Fields) -> str:
    name = key.text("hostname")
    if name and not domains.cleaned(name):
        raise InvalidConfig(f'{key.path("hostname")}: "{name[:64]}" is not a host name')
    return name


def _text(key: Fields, name: str) -> str:
    text = key.text(name)
    # It becomes a DHCP option, which clients hand to programs written in C.
    if not (text.isascii() and text.isprintable()) or len(text) > 255:
        raise InvalidConfig(f"{key.path(name)}: {text[:40]!r} is not up to 255 printable ASCII characters")
    return text


def _private_options(key: Fields) -> tuple[tuple[int, str], ...]:
    values: dict[int, str] = {}
    for item in key.each("privateOptions") or ():
        option = item.integer("option", minimum=224, maximum=254)
        value = item.required("value")
        if not option:
            raise InvalidConfig(f"{item.path('option')}: required")
        if option in values:
            raise InvalidConfig(f"{item.path('option')}: {option} is given twice")
        if len(value.encode(errors="surrogatepass")) > 255:
            raise InvalidConfig(f"{item.path('value')}: longer than 255 bytes")
        values[option] = value
    return tuple(values.items())
