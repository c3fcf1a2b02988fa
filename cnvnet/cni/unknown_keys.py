"""Keys of a configuration that no parser has asked for: a mistyped one must not go unnoticed.

The spec wants unknown keys ignored, so an ADD says so on stderr and goes on; where the configuration has
`"strict": true` it is refused. Keys that other programs add for themselves are not reported: the spec's own,
those of Multus and its daemon, and all that stands in `args`, `runtimeConfig` and `prevResult`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from cnvnet import call_context
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields

# Of the document itself. SPEC.md and CONVENTIONS.md of containernetworking/cni: what belongs to a list or to
# the runtime, and what any plugin may have.
_SPEC: Final = frozenset(
    [
        "cniversion",
        "cniversions",
        "name",
        "type",
        "args",
        "ipam",
        "dns",
        "capabilities",
        "runtimeconfig",
        "prevresult",
        "disablecheck",
        "disablegc",
        "loadonlyinlinedplugins",
        "plugins",
        "ipmasq",
    ]
)
# k8snetworkplumbingwg/multus-cni: pkg/types and pkg/server/config. The daemon lays its whole configuration
# over that of an interface which is plugged into a running pod; the two last are those of a device.
_MULTUS: Final = frozenset(
    [
        "additionalbindir",
        "auxiliarycnichainname",
        "bindir",
        "chrootdir",
        "clusternetwork",
        "cniconfigdir",
        "cnidir",
        "confdir",
        "daemonsocketdir",
        "defaultnetworks",
        "delegates",
        "forcecniversion",
        "globalnamespaces",
        "kubeconfig",
        "logfile",
        "loglevel",
        "logoptions",
        "logtostderr",
        "metricsport",
        "multusautoconfigdir",
        "multusconfigfile",
        "multusmastercni",
        "multusnamespace",
        "namespaceisolation",
        "overridenetworkname",
        "pernodecertificate",
        "readinessindicatorfile",
        "retrydeleteonerror",
        "socketdir",
        "systemnamespaces",
        "deviceid",
        "pcibusid",
    ]
)
FOREIGN: Final = _SPEC | _MULTUS
_FOREIGN_PREFIX: Final = "cni.dev/"
# Objects with keys of others beside ours, and one that is another plugin's altogether.
_SHARED: Final = ("args", "args.cni", "runtimeConfig")
_NOT_OURS: Final = "prevResult"
# A known key is suggested if at most a third of the letters (length // 3) differ, and always for one letter.
_WRONG: Final = 3
_LONGEST: Final = 64
# Letters: a beginning of that length is enough for a longer key to be suggested.
_STEM: Final = 3


class UnknownKey(NamedTuple):
    """A key that no parser knows."""

    # With all objects above it: "ipam.ranges[0].subnett".
    path: str
    # What is wrong with it, and which key was probably meant.
    remark: str

    def __str__(self) -> str:
        return f"{self.path}: {self.remark}"


def report(config: Fields, *, own_ipam: bool = False) -> None:
    """Logs which keys of a plugin's whole configuration no parser knows; all of them have read it.

    `own_ipam`: the address manager's object is ours, too. Raises InvalidConfig where `strict` is true: that
    of the document counts for all of it, that of `ipam` for this object.
    """
    strict = config.flag("strict")
    strict_ipam = strict or (own_ipam and config.fields("ipam").flag("strict"))
    unknown = _unknown(config, own_ipam=own_ipam)
    if unknown:
        _report(
            unknown, [key for key in unknown if (strict_ipam if key.path.startswith("ipam.") else strict)]
        )


def report_ipam(config: Fields) -> None:
    """The same for an address manager, of whose whole configuration one object is its own."""
    ipam = config.fields("ipam")
    strict = ipam.flag("strict")
    # What is not in an object is for the plugin above.
    unknown = [key for part in _unfinished(config) if part.where for key in _of_object(part)]
    _report(unknown, unknown if strict else [])


def _report(unknown: list[UnknownKey], refused: list[UnknownKey]) -> None:
    if refused:
        raise InvalidConfig(f"{_listed(refused)} (strict)")
    if unknown:
        call_context.log_unknown_keys(_listed(unknown), len(unknown))


def _listed(unknown: list[UnknownKey]) -> str:
    return "; ".join(map(str, unknown))


def _unknown(fields: Fields, *, own_ipam: bool) -> list[UnknownKey]:
    unknown: list[UnknownKey] = []
    for part in _unfinished(fields):
        others = part.where == "ipam" and not own_ipam
        unknown += _of_ipam_without_type(part) if others else _of_object(part)
    return unknown


def _unfinished(fields: Fields) -> Iterator[Fields]:
    for part in fields.not_all_read():
        if part.where not in _SHARED and not part.where.startswith(_NOT_OURS):
            yield part


def _of_object(fields: Fields) -> Iterator[UnknownKey]:
    for key in fields.unread():
        if fields.where or not _is_foreign(key):
            yield UnknownKey(fields.path(_shown(key)), _remark(_nearest(key, fields.asked())))


def _of_ipam_without_type(ipam: Fields) -> Iterator[UnknownKey]:
    """Without a type no address manager reads the rest."""
    if ipam.raw("type"):
        return
    for key in ipam.unread():
        slip = _nearest(key, ["type"])
        yield UnknownKey(ipam.path(_shown(key)), _remark(slip) if slip else "no effect without ipam.type")


def _remark(nearest: tuple[str, ...]) -> str:
    meant = " or ".join(f'"{key}"' for key in nearest)
    return f"no such key, did you mean {meant}?" if meant else "no such key"


def _shown(key: str) -> str:
    key = key[:_LONGEST]
    return key if key.isprintable() else ascii(key)


def _is_foreign(key: str) -> bool:
    folded = key.lower()
    return folded in FOREIGN or folded.startswith(_FOREIGN_PREFIX)


def _nearest(key: str, known: Collection[str]) -> tuple[str, ...]:
    """Those of the known keys with the fewest letters wrong, all of them, if that may be a slip.

    Else those of which it is the beginning, or that are its beginning.
    """
    key = key.lower()[:_LONGEST]
    distances = {name: _distance(key, name.lower()) for name in sorted(known)}
    least = min(distances.values(), default=_LONGEST)
    if least <= max(1, len(key) // _WRONG):
        return tuple(name for name, distance in distances.items() if distance == least)
    if len(key) < _STEM:
        return ()
    return tuple(n for n in distances if n.lower().startswith(key) or key.startswith(n.lower()))


def _distance(one: str, other: str) -> int:
    """How many letters are missing, too many, wrong, or have changed places (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        last, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(row[-1] + 1, before[j] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
