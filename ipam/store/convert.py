"""A VM's lease as one line of JSON, which every store can write and read. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from cnvnet.cni.environment import is_name
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_address, as_mac
from cnvnet.ipam.lease import POLICIES, VM_DELETED, Lease, LeaseKey, in_order
from cnvnet.ipam.store.clock import timestamp
from cnvnet.vm import identity

# What tells such a line from other objects, with its version.
FORMAT: Final = "cnvnet.io/lease/v1"
_KEYS: Final = (
    *("format", "network", "namespace", "vm", "interface", "ips", "mac"),
    *("vmUID", "source", "release", "cooldownSeconds", "since"),
)
# As the Kubernetes API limits it.
_LONGEST_TEXT: Final = 253


def as_line(lease: Lease) -> str:
    """A VM's lease without its holders, which are a node's."""
    key = lease.key
    document = {
        "format": FORMAT,
        "network": key.network,
        "namespace": key.namespace,
        "vm": key.vm,
        "interface": key.interface,
        "ips": [str(ip) for ip in lease.ips],
        "mac": lease.mac,
        "vmUID": lease.vm_uid,
        "source": lease.source,
        "release": lease.release,
        "cooldownSeconds": lease.cooldown,
        "since": timestamp(lease.since),
    }
    return json.dumps(document)


def read(document: Mapping[str, Any], where: str) -> Lease:
    """The lease that a line has. Raises InvalidConfig naming the key that is wrong."""
    fields = Fields(document, where)
    if fields.text("format") != FORMAT:
        written = fields.text("format")
        text = f'"{written[:64]}" is not {FORMAT}, which this version knows (upgrade cnvnet)'
        raise InvalidConfig(f"{fields.path('format')}: {text}")
    unknown = sorted(document.keys() - set(_KEYS))
    if unknown:
        raise InvalidConfig(f"{fields.path(unknown[0])}: no such key (there are {', '.join(_KEYS)})")
    network = fields.required("network")
    if not is_name(network):
        raise InvalidConfig(f'{fields.path("network")}: "{network[:64]}" is no name of a network')
    release = fields.text("release", VM_DELETED)
    if release not in POLICIES:
        raise InvalidConfig(f'{fields.path("release")}: "{release}" is not one of {", ".join(POLICIES)}')
    ips = [as_address(text, f"{fields.path('ips')}[{n}]") for n, text in enumerate(fields.texts("ips"))]
    if not ips or len(set(ips)) < len(ips):
        raise InvalidConfig(f"{fields.path('ips')}: at least one address, and none of them twice")
    mac = fields.text("mac")
    return Lease(
        key=key_of(
            network, fields.required("namespace"), fields.required("vm"), fields.required("interface")
        ),
        ips=in_order(ips),
        mac=as_mac(mac, fields.path("mac"), unicast=True) if mac else "",
        vm_uid=fields.text("vmUID")[:_LONGEST_TEXT],
        source=fields.text("source")[:_LONGEST_TEXT],
        release=release,
        cooldown=fields.integer("cooldownSeconds", minimum=0),
        since=_seconds(fields.text("since"), fields.path("since")),
    )


def key_of(network: str, namespace: str, vm: str, interface: str) -> LeaseKey:
    """The key of a VM's lease. Raises InvalidConfig for what can be no name."""
    of = identity.written(f"{namespace}/{vm}", interface)
    return LeaseKey(network, of.namespace, of.name, of.interface)


def _seconds(text: str, where: str) -> int:
    if not text:
        return 0
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise InvalidConfig(f'{where}: "{text[:64]}" is no time such as 2026-01-31T12:00:00Z') from None
