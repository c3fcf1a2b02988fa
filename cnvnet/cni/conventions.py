"""What a runtime adds to a call: runtimeConfig, args.cni, GC's attachments, and the pod's names in CNI_ARGS.

Sources: CONVENTIONS.md and SPEC.md of containernetworking/cni. `config` is always the whole configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_mac


class PodRef(NamedTuple):
    """The Kubernetes pod that a call is for, as the runtime names it; "" where the runtime names none."""

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def runtime_config(config: Fields) -> Fields:
    """What the runtime supplies for the capabilities that the configuration declares."""
    return config.fields("runtimeConfig")


def cni_args(config: Fields) -> Fields:
    """`args.cni`: per-attachment arguments of the runtime or, under Multus, of the pod's author."""
    return config.fields("args").fields("cni")


def capability_ips(config: Fields) -> tuple[str, ...]:
    """The capability `ips`: addresses with or without prefix length, as written."""
    return runtime_config(config).texts("ips")


class RequestedMac(NamedTuple):
    """The MAC that a call asks for and the key that asks; both "" where none does."""

    mac: str = ""
    where: str = ""


def requested_mac(config: Fields, args: Mapping[str, str]) -> RequestedMac:
    """The requested MAC: runtimeConfig.mac, then args.cni.mac, then CNI_ARGS MAC.

    What no interface can have (multicast, all zero) is refused by the name of the key that asks for it.
    """
    for where, part in (("runtimeConfig.mac", runtime_config(config)), ("args.cni.mac", cni_args(config))):
        if mac := part.mac("mac", unicast=True):
            return RequestedMac(mac, where)
    text, where = args.get("MAC", ""), "CNI_ARGS MAC"
    return RequestedMac(as_mac(text, where, unicast=True), where) if text else RequestedMac()


def valid_attachments(config: Fields) -> set[tuple[str, str]] | None:
    """(container id, ifname) of every attachment that GC must keep; None when the runtime did not say.

    None: nothing is known and nothing may be collected. An empty set: every attachment is stale.
    libcni sends the list under the spec's key and under the one an earlier text of the spec had
    (containernetworking/cni issue 1101): an attachment in either list is kept.
    """
    valid: set[tuple[str, str]] | None = None
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        items = config.each(key)
        if items is not None:
            listed = {_attachment(item) for item in items}
            valid = listed if valid is None else valid | listed
    return valid


def _attachment(item: Fields) -> tuple[str, str]:
    container_id, ifname = item.text("containerID"), item.text("ifname")
    if not container_id or not ifname:
        # Guessing here would delete a running VM's port.
        raise InvalidConfig(f"{item.where}: containerID and ifname are required")
    return container_id, ifname
