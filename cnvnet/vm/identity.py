"""What a request is for: the virtual machine, which of its interfaces, and the pod's role for it.

Outside Kubernetes the caller of the plugin says so, by `args.cni.vm` or by CNI_ARGS. Inside it both are
refused: under Multus the pod's author writes them, who could name another tenant's VM. There the request is
for a pod, and `directory` asks the API which VM that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from cnvnet.attachment.record import RecordedVM
from cnvnet.cni.args import readable_args
from cnvnet.cni.conventions import PodRef, cni_args
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields

ACTIVE: Final = "active"
TARGET: Final = "target"
TEMP: Final = "temp"
ROLES: Final = (ACTIVE, TARGET, TEMP)
# Those of pods that are not to run the VM now: its addresses are, or may be, another pod's.
SILENT_ROLES: Final = (TARGET, TEMP)

# CNI_ARGS that name a VM, in the order of the fields of VM.
ARGS: Final = ("VM_NAMESPACE", "VM_NAME", "VM_UID", "VM_INTERFACE", "VM_ROLE")
# CNI_ARGS of a kubelet's call: CRI-O and containerd set them, and Multus passes them on to its delegates.
KUBERNETES_ARGS: Final = (
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "K8S_POD_INFRA_CONTAINER_ID",
)
# All CNI_ARGS that the plugins know. Those of a chain get the same ones: a binding knows IP and MAC, too.
KNOWN_ARGS: Final = frozenset({"IP", "MAC", *ARGS, *KUBERNETES_ARGS})

_KEYS: Final = ("namespace", "name", "uid", "interface", "role")
# Kubernetes' own default.
_NAMESPACE: Final = "default"
# The longest name of a pod or VM there.
_LONGEST_NAME: Final = 253
LONGEST_LABEL: Final = 63
LOWER: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
ALPHANUMERIC: Final = LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class VM(NamedTuple):
    """A virtual machine's interface."""

    namespace: str
    name: str
    # "" where it is not known.
    uid: str
    interface: str
    # The pod's: one of ROLES.
    role: str

    @property
    def hostname(self) -> str:
        """The guest's: the first label of the name, cut to the 63 characters that DNS allows (RFC 1035)."""
        return self.name.partition(".")[0][:LONGEST_LABEL].rstrip("-")


class Named(NamedTuple):
    """The owners of a call, each None where it names none: the Kubernetes pod and the VM."""

    pod: PodRef | None
    vm: RecordedVM | None


def in_kubernetes(args: Mapping[str, str]) -> bool:
    """Whether these CNI_ARGS are those of a Kubernetes pod."""
    return any(args.get(key) for key in KUBERNETES_ARGS)


def named(config: Fields, args: str) -> Named:
    """The pod and the VM that a call names, for people to read: records and logs.

    `args` are CNI_ARGS as they came. Nothing is checked or refused, as `claim` does; what is too long
    for a name is cut. Inside Kubernetes no VM is taken from the call.
    """
    given = readable_args(args)
    if in_kubernetes(given):
        names = [given.get(key, "")[:_LONGEST_NAME] for key in KUBERNETES_ARGS[:3]]
        return Named(PodRef(*names) if any(names) else None, None)
    try:
        vm = cni_args(config).fields("vm")
        namespace, name = vm.text("namespace"), vm.text("name")
    except InvalidConfig:
        return Named(None, None)
    if not name:
        namespace, name = given.get("VM_NAMESPACE", ""), given.get("VM_NAME", "")
    if not name:
        return Named(None, None)
    return Named(None, RecordedVM((namespace or _NAMESPACE)[:_LONGEST_NAME], name[:_LONGEST_NAME]))


def claim(config: Fields, args: Mapping[str, str], ifname: str) -> VM | PodRef | None:
    """What the caller says that this request is for: a VM, or a pod of Kubernetes, whose API knows the rest.

    None for a container that is neither. `args` are the CNI_ARGS (at least those of ARGS and
    KUBERNETES_ARGS), `ifname` is the interface's name where the request has no better one. `args.cni.vm`
    beats CNI_ARGS as a whole: half of the one and half of the other would be a VM that the caller did not
    mean. Raises InvalidConfig naming the key, also for a pod that says which VM it is.
    """
    fields = cni_args(config)
    if fields.has("vm"):
        source = {key: (fields.fields("vm").path(key), fields.fields("vm").text(key)) for key in _KEYS}
    else:
        source = {key: (f"CNI_ARGS {arg}", args.get(arg, "")) for key, arg in zip(_KEYS, ARGS, strict=True)}
    given = [where for where, value in source.values() if value]
    pod = pod_of(args)
    if not given and not fields.has("vm"):
        return pod
    if pod is not None:
        where = given[0] if given else fields.path("vm")
        raise InvalidConfig(
            f"{where}: a Kubernetes pod cannot say which VM it is; its owner in the Kubernetes API does"
        )
    return _vm(source, given, ifname)


def pod_of(args: Mapping[str, str]) -> PodRef | None:
    """The pod that the runtime names in these CNI_ARGS, None outside Kubernetes."""
    return PodRef(*(args.get(key, "") for key in KUBERNETES_ARGS[:3])) if in_kubernetes(args) else None


def written(text: str, interface: str) -> VM:
    """The VM that a person calls NAMESPACE/NAME, with this interface. Raises InvalidConfig."""
    namespace, slash, name = text.partition("/")
    if not (slash and namespace and name):
        raise InvalidConfig(f'VM "{text[:64]}": write it as NAMESPACE/NAME')
    where = f"VM {text[:64]}"
    source = {"namespace": (where, namespace), "name": (where, name), "uid": (where, "")}
    source |= {"interface": ("interface", interface), "role": (where, "")}
    return _vm(source, [], interface)


def _vm(source: Mapping[str, tuple[str, str]], given: list[str], ifname: str) -> VM:
    namespace, name, uid, interface, role = (source[key] for key in _KEYS)
    if not name[1]:
        raise InvalidConfig(f"{name[0]}: required" + (f" with {given[0]}" if given else ""))
    _ensure(name, _is_subdomain(name[1]), "a name of a VM (a-z, 0-9, - and ., 253 characters at most)")
    _ensure(
        namespace, is_label(namespace[1]), "a name of a namespace (a-z, 0-9 and -, 63 characters at most)"
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
    # As Kubernetes wants the names of most objects: RFC 1123, but for the length of a label.
    return len(text) <= _LONGEST_NAME and all(map(_is_word, text.split(".")))


def is_label(text: str) -> bool:
    """Whether Kubernetes takes the text for the name of a namespace: RFC 1123, 63 characters at most."""
    return len(text) <= LONGEST_LABEL and _is_word(text)


def _is_word(text: str) -> bool:
    inside = LOWER | {"-"}
    return bool(text) and inside.issuperset(text) and text[0] != "-" and text[-1] != "-"


def _is_token(text: str, longest: int) -> bool:
    return (
        0 < len(text) <= longest and text[0] in ALPHANUMERIC and (ALPHANUMERIC | set("-_.")).issuperset(text)
    )
