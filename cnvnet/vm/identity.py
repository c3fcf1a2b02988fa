"""Whom a request is for: the virtual machine, which of its interfaces, and what the pod is to it.

Outside Kubernetes whoever calls the plugin says so, by `args.cni.vm` or by CNI_ARGS. Inside it nobody may:
under Multus both are written by the pod's author, who could name another tenant's VM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from cnvnet.cni.conventions import cni_args
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields

ACTIVE: Final = "active"
TARGET: Final = "target"
TEMP: Final = "temp"
ROLES: Final = (ACTIVE, TARGET, TEMP)

# CNI_ARGS that name a VM, in the order of the fields of VM.
ARGS: Final = ("VM_NAMESPACE", "VM_NAME", "VM_UID", "VM_INTERFACE", "VM_ROLE")
# CNI_ARGS that say that a kubelet asks: by CRI-O and containerd, and by Multus for all it delegates to.
KUBERNETES_ARGS: Final = (
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "K8S_POD_INFRA_CONTAINER_ID",
)

_KEYS: Final = ("namespace", "name", "uid", "interface", "role")
# Kubernetes' own default.
_NAMESPACE: Final = "default"
_LOWER: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALPHANUMERIC: Final = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class VM(NamedTuple):
    """A virtual machine's interface. `uid` is "" where it is not known; `role` is one of ROLES."""

    namespace: str
    name: str
    uid: str
    interface: str
    role: str


def in_kubernetes(args: Mapping[str, str]) -> bool:
    """Whether these CNI_ARGS are those of a Kubernetes pod."""
    return any(args.get(key) for key in KUBERNETES_ARGS)


def identify(config: Fields, args: Mapping[str, str], ifname: str) -> VM | None:
    """The VM this request is for; None for a container that is none.

    `args` are the CNI_ARGS (at least those of ARGS and KUBERNETES_ARGS), `ifname` is the interface's name
    where the request has no better one. `args.cni.vm` beats CNI_ARGS as a whole: half of the one and half of
    the other would be a VM nobody meant. Raises InvalidConfig naming the key.
    """
    fields = cni_args(config)
    if fields.has("vm"):
        source = {key: (fields.fields("vm").path(key), fields.fields("vm").text(key)) for key in _KEYS}
    else:
        source = {key: (f"CNI_ARGS {arg}", args.get(arg, "")) for key, arg in zip(_KEYS, ARGS, strict=True)}
    given = [where for where, value in source.values() if value]
    if not given and not fields.has("vm"):
        return None
    if in_kubernetes(args):
        where = given[0] if given else fields.path("vm")
        raise InvalidConfig(
            f"{where}: a Kubernetes pod cannot say which VM it is; its owner in the Kubernetes API does"
        )
    return _vm(source, given, ifname)


def _vm(source: Mapping[str, tuple[str, str]], given: list[str], ifname: str) -> VM:
    namespace, name, uid, interface, role = (source[key] for key in _KEYS)
    if not name[1]:
        raise InvalidConfig(f"{name[0]}: required" + (f" with {given[0]}" if given else ""))
    _ensure(name, _is_subdomain(name[1]), "a name of a VM (a-z, 0-9, - and ., 253 characters at most)")
    _ensure(
        namespace, _is_label(namespace[1]), "a name of a namespace (a-z, 0-9 and -, 63 characters at most)"
    )
    _ensure(uid, _is_token(uid[1], 128), "a UID (letters, digits, -, _ and ., 128 characters at most)")
    _ensure(
        interface,
        _is_token(interface[1], 63),
        "a name of an interface (letters, digits, -, _ and ., 63 characters at most)",
    )
    _ensure(role, role[1] in ROLES, f"a role ({', '.join(ROLES)})")
    return VM(namespace[1] or _NAMESPACE, name[1], uid[1], interface[1] or ifname, role[1] or ACTIVE)


def _ensure(field: tuple[str, str], valid: bool, wanted: str) -> None:
    where, value = field
    if value and not valid:
        shown = value if len(value) <= 64 else value[:61] + "..."
        raise InvalidConfig(f'{where}: "{shown}" is not {wanted}')


def _is_subdomain(text: str) -> bool:
    # RFC 1123 subdomain, as Kubernetes wants the names of most objects.
    return len(text) <= 253 and all(_is_label(part) for part in text.split("."))


def _is_label(text: str) -> bool:
    inside = _LOWER | {"-"}
    return 0 < len(text) <= 63 and inside.issuperset(text) and text[0] != "-" and text[-1] != "-"


def _is_token(text: str, longest: int) -> bool:
    return (
        0 < len(text) <= longest
        and text[0] in _ALPHANUMERIC
        and (_ALPHANUMERIC | set("-_.")).issuperset(text)
    )
