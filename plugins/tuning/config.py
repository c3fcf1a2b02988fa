"""The configuration of cnv-tuning: every key of the reference plugin `tuning`, parsed once.

`args.cni` comes before `runtimeConfig`, CNI_ARGS and the configuration itself, as in the reference plugin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from cnvnet.cni.args import parse_args
from cnvnet.cni.conventions import cni_args, runtime_config
from cnvnet.cni.document import quoted
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_mac
from cnvnet.cni.request import Request

# Where the reference plugin keeps what DEL restores.
DATA_DIR: Final = "/run/cni/tuning"
# Stands for CNI_IFNAME in the name of a sysctl.
_PLACEHOLDER: Final = "IFNAME"
_ARGS: Final = frozenset(["MAC"])
# What the kernel takes at most: of a queue any signed 32-bit number, of an MTU what a link's kind allows.
_LONGEST_QUEUE: Final = 2**31 - 1
_LARGEST_MTU: Final = 2**16 - 1


class NamedSysctl(NamedTuple):
    """A sysctl that is asked for."""

    # As it is written, and with dots between its parts: IFNAME stands in both.
    written: str
    name: str
    # Below /proc/sys, of this interface.
    path: str
    value: str


class Config(NamedTuple):
    """What the configuration asks for; what is None or empty stays as it is."""

    sysctls: tuple[NamedSysctl, ...]
    mac: str
    # False leaves it as it is, as with the reference.
    promisc: bool
    # 0: as it is.
    mtu: int
    allmulti: bool | None
    txqlen: int | None

    @classmethod
    def parse(cls, request: Request) -> Config:
        """Raises CNIError (7, for CNI_ARGS 4) naming the key that is wrong."""
        fields = request.fields
        of_pod = cni_args(fields)
        data_dir(fields)
        given = _sysctls(fields, request.ifname)
        of_args = _sysctls(of_pod, request.ifname)
        if given or of_args:
            _ensure_unique(request.raw)
        return cls(
            # Those of the pod's author take the place of the same ones.
            sysctls=tuple({each.path: each for each in (*given, *of_args)}.values()),
            mac=_mac(fields, parse_args(request.args, _ARGS)),
            promisc=True in (of_pod.flag("promisc"), fields.flag("promisc")),
            mtu=next(filter(None, [_mtu(of_pod), _mtu(fields)]), 0),
            allmulti=_flag(of_pod, "allmulti", _flag(fields, "allmulti", None)),
            txqlen=_queue(of_pod, _queue(fields, None)),
        )

    @property
    def changes_link(self) -> bool:
        """Whether anything but sysctls is asked for."""
        return bool(self.mac or self.promisc or self.mtu) or (self.allmulti, self.txqlen) != (None, None)


def data_dir(fields: Fields) -> str:
    """The folder in which the reference plugin has left what its ADD changed."""
    return fields.text("dataDir") or DATA_DIR


def _mac(fields: Fields, args: Mapping[str, str]) -> str:
    text = args.get("MAC", "")
    # All of them are read, so that none is called unknown.
    asked = [
        cni_args(fields).mac("mac", unicast=True),
        runtime_config(fields).mac("mac", unicast=True),
        as_mac(text, "CNI_ARGS MAC", unicast=True) if text else "",
        fields.mac("mac", unicast=True),
    ]
    return next(filter(None, asked), "")


def _mtu(fields: Fields) -> int:
    return fields.integer("mtu", minimum=0, maximum=_LARGEST_MTU)


def _flag(fields: Fields, key: str, default: bool | None) -> bool | None:
    return fields.flag(key) if fields.has(key) else default


def _queue(fields: Fields, default: int | None) -> int | None:
    if not fields.has("txQLen"):
        return default
    return fields.integer("txQLen", minimum=0, maximum=_LONGEST_QUEUE)


def _sysctls(fields: Fields, ifname: str) -> tuple[NamedSysctl, ...]:
    wanted = fields.fields("sysctl")
    named: dict[str, NamedSysctl] = {}
    for written in wanted.data:
        wanted.know(written)
        path = _path(written)
        where = wanted.path(written)
        value = wanted.data[written]
        if not isinstance(value, str):
            raise InvalidConfig(f"{where}: expected a string")
        if path in named:
            raise _duplicated(f"{where} and {wanted.path(named[path].written)} are the same")
        parts = path.split("/")
        if parts[0] != "net" or len(parts) == 1 or any(part in ("", ".", "..") for part in parts):
            raise InvalidConfig(f"invalid net sysctl key: {quoted(path)}", f"{where}: not below net")
        # With dots inside a part, as in the name of a VLAN interface, slashes are what separates the parts.
        name = ".".join(part.replace(".", "/") for part in parts)
        named[path] = NamedSysctl(written, name, path.replace(_PLACEHOLDER, ifname, 1), value)
    return tuple(named.values())


def _ensure_unique(raw: bytes) -> None:
    """InvalidConfig for a key that stands twice in an object `sysctl`; decoded, the last one is left."""
    objects = [cast("_Pairs", json.loads(raw.decode("utf-8", "replace"), object_pairs_hook=_Pairs))]
    for each in objects:
        for key, value in each:
            if not isinstance(value, _Pairs):
                continue
            names = [name for name, _ in value]
            if key.lower() == "sysctl" and len(set(names)) < len(names):
                raise _duplicated(f"{key}: {next(name for name in names if names.count(name) > 1)} twice")
            if key.lower() in ("args", "cni"):
                objects.append(value)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written."""


def _duplicated(details: str) -> InvalidConfig:
    return InvalidConfig("duplicated sysctl keys are not allowed", details)


def _path(written: str) -> str:
    """The path below /proc/sys of a name that has dots or slashes between its parts, as sysctl(8) reads it.

    What stands first says which: in `net.ipv4.conf.eth0/5.x`, a slash stands for a dot.
    """
    first = min((i for i in (written.find("."), written.find("/")) if i >= 0), default=-1)
    if first < 0 or written[first] == "/":
        return written
    return written.translate(str.maketrans("./", "/."))
