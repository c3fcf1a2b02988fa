"""What Multus has written of a pod's interfaces into its annotations. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, cast

from cnvnet.cni.fields import Address
from cnvnet.vm import launcher
from cnvnet.vm.names import PRIMARY

ANNOTATION: Final = "k8s.v1.cni.cncf.io/network-status"


class ReportedInterface(NamedTuple):
    """An interface of a pod. `mac` is "" where nothing says it."""

    name: str
    ips: frozenset[Address]
    mac: str


def interfaces_of(pod: Mapping[str, Any]) -> Iterator[ReportedInterface]:
    """Those of a pod; none where the annotation is not there, or is not Multus'."""
    try:
        written: object = json.loads(launcher.annotations_of(pod).get(ANNOTATION) or "[]")
        for each in cast("list[object]", written) if isinstance(written, list) else []:
            if isinstance(each, dict):
                status = cast("dict[str, Any]", each)
                name = str(status.get("interface") or (PRIMARY if status.get("default") else ""))
                ips = frozenset(ip_address(str(text)) for text in status.get("ips") or ())
                yield ReportedInterface(name, ips, str(status.get("mac") or "").lower())
    except (ValueError, TypeError):
        return
