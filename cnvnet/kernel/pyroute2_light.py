"""pyroute2's message classes without the rest of pyroute2.

`import pyroute2`, or any module of it, runs the package's `__init__`, which loads 370 modules in 80 to 130
ms; a standalone executable uses four message classes, which load in 17. So an empty module takes the
package's name in sys.modules while they are imported, and is removed afterwards, so that a real `import
pyroute2` works as ever. Where pyroute2 has been imported already (the agent, tests), that one is used.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Protocol

_PACKAGE: Final = "pyroute2"


# What an attribute holds depends on its name, and pyroute2 has no types to say so.
Value = Any


class Decoded(Protocol):
    """A message or a nested attribute as pyroute2 shows it: header fields by key, attributes by name."""

    def __getitem__(self, field: str) -> Value: ...
    def get_attr(self, name: str) -> Value:
        """The first attribute of this name, or None."""
        ...

    def get_attrs(self, name: str) -> list[Value]:
        """All attributes of this name."""
        ...


_classes: dict[str, Callable[..., Any]] = {}
_lock = allocate_lock()


def _message_class(module: str, name: str) -> Callable[..., Any]:
    if name not in _classes:
        with _lock:
            _classes[name] = getattr(_import(module), name)
    return _classes[name]


def encode(
    module: str, name: str, fields: Mapping[str, int], attributes: Sequence[tuple[str, object]]
) -> bytes:
    """The body (all that follows the netlink header) of a message with these header fields and attributes.

    The message class goes by its module below pyroute2 and its name: ("netlink.rtnl.rtmsg", "rtmsg").
    """
    message = _message_class(module, name)()
    for field, value in fields.items():
        message[field] = value
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data[16:])


def decode(module: str, name: str, raw: bytes) -> Decoded:
    """A whole message, its header included."""
    message = _message_class(module, name)(raw)
    message.decode()
    decoded: Decoded = message
    return decoded


def _import(name: str) -> ModuleType:
    if _PACKAGE in sys.modules:
        return import_module(f"{_PACKAGE}.{name}")
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return import_module(f"{_PACKAGE}.{name}")  # installed in some other way: the long road
    placeholder = ModuleType(_PACKAGE)
    placeholder.__path__ = list(spec.submodule_search_locations)
    placeholder.__spec__ = spec
    sys.modules[_PACKAGE] = placeholder
    try:
        return import_module(f"{_PACKAGE}.{name}")
    finally:
        del sys.modules[_PACKAGE]
