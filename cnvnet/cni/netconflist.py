"""Configuration lists, and the request each plugin of one gets: the runtime's half of the protocol.

For `cnvctl`, the demo and the tests. Keys, defaults and texts are those of containernetworking/cni libcni,
which (unlike the plugins) matches the keys of a list exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from cnvnet.cni import version
from cnvnet.cni.document import Malformed, decode_object, encode, kind
from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.cni.result import Result, render

_WHAT = "error parsing configuration list"


class NetConfList(NamedTuple):
    """One network: its plugins in the order of ADD. `plugins` are the objects as written."""

    name: str
    cni_version: str
    disable_check: bool
    disable_gc: bool
    load_only_inlined_plugins: bool
    plugins: tuple[Mapping[str, Any], ...]


def parse(raw: bytes) -> NetConfList:
    """The list in a .conflist file; InvalidConfig says what is wrong with it.

    A file with a plugin's `type` and no `plugins` (.conf) is a list of that one plugin.
    """
    try:
        document = decode_object(raw)
    except Malformed as e:
        raise InvalidConfig(f"{_WHAT}: {e}") from e
    if "plugins" not in document and isinstance(document.get("type"), str):
        document = {**document, "plugins": [document]}
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidConfig(f"{_WHAT}: no name" if name is None else f"{_WHAT}: invalid name: {kind(name)}")
    inlined = _flag(document, "loadOnlyInlinedPlugins")
    if inlined and "plugins" not in document:
        raise InvalidConfig(f"{_WHAT}: `loadOnlyInlinedPlugins` is true, and no 'plugins' key")
    return NetConfList(
        name=name,
        cni_version=_version(document),
        disable_check=_flag(document, "disableCheck"),
        disable_gc=_flag(document, "disableGC"),
        load_only_inlined_plugins=inlined,
        plugins=_plugins(document),
    )


def plugin_config(
    network: NetConfList,
    plugin: Mapping[str, Any],
    *,
    previous: Result | None = None,
    capability_args: Mapping[str, Any] | None = None,
    valid_attachments: Sequence[tuple[str, str]] | None = None,
) -> bytes:
    """The stdin of one plugin: its object plus what the runtime adds.

    Of `capability_args` it gets those that its `capabilities` declare. `valid_attachments`, for GC, goes
    under the spec's key and the older one; None leaves both out.
    """
    document: dict[str, Any] = {**plugin, "name": network.name, "cniVersion": network.cni_version}
    if previous is not None:
        document["prevResult"] = render(previous, network.cni_version)
    declared = plugin.get("capabilities")
    if isinstance(declared, Mapping) and capability_args:
        wanted = {key for key, value in cast("Mapping[str, Any]", declared).items() if value is True}
        runtime = {key: value for key, value in capability_args.items() if key in wanted}
        if runtime:
            document["runtimeConfig"] = runtime
    if valid_attachments is not None:
        listed = [
            {"containerID": container_id, "ifname": ifname} for container_id, ifname in valid_attachments
        ]
        document["cni.dev/valid-attachments"] = listed
        document["cni.dev/attachments"] = listed
    return encode(document, indent=False)


def _version(document: Mapping[str, Any]) -> str:
    """The highest of `cniVersions` and `cniVersion` that we speak, else `cniVersion`, else the oldest."""
    fields = Fields(document)
    single, several = fields.text("cniVersion"), fields.texts("cniVersions")
    if not several:
        return single or version.IMPLIED
    newest = version.parse_version(version.CURRENT)
    try:
        known = {text: version.parse_version(text) for text in (*several, *((single,) if single else ()))}
    except CNIError as e:
        raise InvalidConfig(f"{_WHAT}: invalid cniVersions entry: {e.msg}") from e
    usable = [text for text, number in known.items() if number <= newest]
    return max(usable, key=lambda text: known[text], default=single or version.IMPLIED)


def _flag(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise InvalidConfig(f"{_WHAT}: {key}: expected true or false, got {kind(value)}")
    return value


def _plugins(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    if "plugins" not in document:
        return ()
    plugins = Fields({"plugins": document["plugins"]}).each("plugins")
    if not plugins:
        raise InvalidConfig(f"{_WHAT}: no plugins in list")
    for plugin in plugins:
        plugin.required("type")
    return tuple(cast("Sequence[Mapping[str, Any]]", document["plugins"]))
