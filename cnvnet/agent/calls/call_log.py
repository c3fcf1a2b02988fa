"""The agent's line about each CNI call: whose it was, what came of it, and how long that took.

It is written when the caller has its answer. What it says is read from the call's own documents: the
configuration, for the network, the VM and what is known already (`prevResult`), and the result of an ADD.
The VM of a Kubernetes pod is known to the plugin only, from the API or from the record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from cnvnet.cni.document import as_object
from cnvnet.cni.errors import INTERNAL
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import COMMANDS
from cnvnet.cni.skel import Response
from cnvnet.resident import log
from cnvnet.vm import identity

# Commands whose success is news: containerd asks STATUS every five seconds.
_NEWS: Final = ("ADD", "CHECK", "DEL", "GC")
# At most so many lines of a call's stderr are logged, and so many characters of each text: a delegate may
# print any number.
_MOST_LINES: Final = 20
_LONGEST: Final = 2000
_HIGHEST_CODE: Final = 9999


class FinishedCall(NamedTuple):
    """A call that has been answered."""

    plugin: str
    env: Mapping[str, str]
    # The decoded stdin; empty where it is no JSON object.
    config: Mapping[str, Any]
    response: Response
    # How long it ran, in seconds, after it had `waited` for a slot.
    seconds: float
    waited: float

    @property
    def command(self) -> str:
        """The command as one of a few words: it becomes a label of metrics."""
        given = self.env.get("CNI_COMMAND", "")
        return given if given in COMMANDS or given == "VERSION" else "other"

    @property
    def code(self) -> int:
        """The code of the CNI error that the call has ended with, 0 for a success.

        A delegate's error may have any number, and the code becomes a label of metrics.
        """
        error = self.response.error
        if error is None:
            return 0
        return error.code if 0 < error.code <= _HIGHEST_CODE else INTERNAL

    @property
    def error(self) -> str:
        """The CNI error in one text; "" for a success."""
        error = self.response.error
        return "; ".join(text for text in (error.msg, error.details) if text) if error is not None else ""


def write(call: FinishedCall) -> None:
    """A failed call is a warning whatever the log's level; a success is info, or debug where it is polled.

    Each line that the call has printed on stderr (an unknown key, a rolled back step) is a warning, too.
    """
    level = "info" if call.command in _NEWS else "debug"
    if not (call.code or call.response.stderr or log.is_enabled(level)):
        return
    fields = describe(call)
    for line in call.response.stderr.decode(errors="replace").splitlines()[:_MOST_LINES]:
        log.warning("call said", said=line[:_LONGEST], **_whose(fields))
    fields |= {"ms": _ms(call.seconds), "waited": _ms(call.waited), "code": call.code}
    if call.code:
        log.failure("call", **fields, error=call.error[:_LONGEST])
    else:
        log.at(level, "call", **fields)


def describe(call: FinishedCall) -> dict[str, object]:
    """Plugin, command, network, pod, VM, container, interface, IP and MAC, as far as they are known."""
    config = call.config
    pod, vm = identity.named(Fields(config), call.env.get("CNI_ARGS", ""))
    ifname = call.env.get("CNI_IFNAME", "")
    previous = config.get("prevResult")
    result = _object(call.response.stdout) if call.response.exit == 0 else {}
    ips, mac = _addresses(result or as_object(previous), ifname)
    known = {
        "network": config.get("name"),
        "pod": str(pod) if pod is not None else "",
        "vm": call.response.vm or (str(vm) if vm is not None else ""),
        "container": call.env.get("CNI_CONTAINERID", ""),
        "ifname": ifname,
        "ip": ips,
        "mac": mac,
    }
    texts = {name: text[:_LONGEST] for name, text in known.items() if isinstance(text, str) and text}
    return {"plugin": call.plugin, "command": call.command, **texts}


def _whose(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in ("ip", "mac")}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _addresses(result: Mapping[str, Any], ifname: str) -> tuple[str, str]:
    """The addresses of a result of any version, with commas between them, and the MAC of its `ifname`."""
    items = _list(result.get("ips"))
    addresses = [item.get("address") for item in items]
    addresses += [as_object(result.get(family)).get("ip") for family in ("ip4", "ip6")]  # until 0.2.0
    inside = [each for each in _list(result.get("interfaces")) if each.get("sandbox")]
    macs = [each.get("mac") for each in inside if each.get("name") == ifname]
    mac = macs[0] if macs and isinstance(macs[0], str) else ""
    return ",".join(address.partition("/")[0] for address in addresses if isinstance(address, str)), mac


def _object(document: bytes) -> dict[str, Any]:
    """The object in a document, an empty one for whatever is none: what is wrong with it the plugin says."""
    try:
        return as_object(json.loads(document)) if document else {}
    except (ValueError, RecursionError):
        return {}


def _list(value: object) -> list[dict[str, Any]]:
    return [as_object(item) for item in cast("list[object]", value)] if isinstance(value, list) else []
