"""The keys a runtime adds to a configuration: runtimeConfig, args.cni and what GC is told.

Sources: CONVENTIONS.md and SPEC.md of containernetworking/cni. `config` is always the whole configuration.
"""

from __future__ import annotations

from collections.abc import Mapping

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_mac


def runtime_config(config: Fields) -> Fields:
    """What the runtime supplies for the capabilities that the configuration declares."""
    return config.fields("runtimeConfig")


def cni_args(config: Fields) -> Fields:
    """`args.cni`: per-attachment arguments of the runtime or, under Multus, of the pod's author."""
    return config.fields("args").fields("cni")


def capability_ips(config: Fields) -> tuple[str, ...]:
    """The capability `ips`: addresses with or without prefix length, as written."""
    return runtime_config(config).texts("ips")


def capability_ip_ranges(config: Fields) -> list[list[Fields]]:
    """The capability `ipRanges`: sets of ranges {subnet, rangeStart, rangeEnd, gateway}."""
    return runtime_config(config).each_list("ipRanges") or []


def requested_mac(config: Fields, args: Mapping[str, str]) -> str:
    """The MAC somebody asked for, "" if nobody did: runtimeConfig.mac, then args.cni.mac, then CNI_ARGS MAC.

    What no interface can have (multicast, all zero) is refused by the name of the key that asks for it.
    """
    found = runtime_config(config).mac("mac", unicast=True) or cni_args(config).mac("mac", unicast=True)
    text = args.get("MAC", "")
    return found or (as_mac(text, "CNI_ARGS MAC", unicast=True) if text else "")


def valid_attachments(config: Fields) -> set[tuple[str, str]] | None:
    """(container id, ifname) of every attachment that GC must keep; None when the runtime did not say.

    None: nothing is known and nothing may be collected. An empty set: every attachment is stale.
    libcni sends the list under the spec's key and under the one an earlier text of the spec had
    (containernetworking/cni issue 1101): an attachment that stands in either is kept.
    """
    found: set[tuple[str, str]] | None = None
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        items = config.each(key)
        if items is not None:
            listed = {_attachment(item) for item in items}
            found = listed if found is None else found | listed
    return found


def _attachment(item: Fields) -> tuple[str, str]:
    container_id, ifname = item.text("containerID"), item.text("ifname")
    if not container_id or not ifname:
        # Guessing here would delete a running VM's port.
        raise InvalidConfig(f"{item.where}: containerID and ifname are required")
    return container_id, ifname
