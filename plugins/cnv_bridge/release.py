"""Giving addresses back to whom the record names, whatever the configuration says by now."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cnvnet.cni.request import Request
from cnvnet.diagnostics import say
from cnvnet.plugins.cnv_bridge.config import Remnants
from cnvnet.plugins.cnv_bridge.leftovers import Leftovers

if TYPE_CHECKING:
    from cnvnet.plugins.cnv_bridge.ipam import Ipam


class Release(NamedTuple):
    """Whom to ask, and how. `recorded`: it was used, or may have been by an ADD that was killed."""

    ipam_type: str
    request: Request
    recorded: bool


def plan_release(request: Request, left: Leftovers | None) -> Release | None:
    """None when there is nobody to ask.

    The record is written before IPAM is called, so what it does not name has given nothing.
    """
    ipam_type = Remnants.parse(request).ipam_type
    if left is None:
        return Release(ipam_type, request, recorded=False) if ipam_type else None
    if not left.ipam_type:
        return None
    now = ipam_of(request) or {}
    recorded = left.ipam or {**now, "type": left.ipam_type}
    if ipam_type != left.ipam_type or _folded(now).get("datadir") != _folded(recorded).get("datadir"):
        request = _with_ipam(request, recorded)
    return Release(left.ipam_type, request, recorded=True)


def release(planned: Release, choose: Callable[[str], Ipam]) -> None:
    """Raises CNIError or OSError. One that is not there, and of whose use nothing tells, has nothing."""
    ipam = choose(planned.ipam_type)
    absent = "" if planned.recorded else ipam.absent(planned.request)
    if absent:
        say(f"ipam: {absent}: no address is given back")
    else:
        ipam.delete(planned.request)


def ipam_of(request: Request) -> Mapping[str, Any] | None:
    """The configuration's ipam object as it is written."""
    ipam = request.fields.raw("ipam")
    return cast("Mapping[str, Any]", ipam) if isinstance(ipam, Mapping) else None


def _with_ipam(request: Request, ipam: Mapping[str, Any]) -> Request:
    config = {key: value for key, value in request.config.items() if key.lower() != "ipam"}
    config["ipam"] = ipam
    return request._replace(config=config, raw=json.dumps(config).encode())


def _folded(ipam: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): value for key, value in ipam.items()}
