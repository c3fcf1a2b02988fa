"""Which VM a pod runs and which part the pod has in that, read off the pod and its VirtualMachineInstance.

Pure. A pod is a VM's by its controller owner, with the UID: names and labels are cut, and the template's
annotations win over KubeVirt's own (pkg/virt-controller/services/template.go of kubevirt/kubevirt). That the
owner is no tenant's invention is for an admission policy to see to: every field of a pod is its author's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from cnvnet.attachment.record import RecordedVM
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.vm import names
from cnvnet.vm.identity import ACTIVE, TARGET, TEMP, VM

# A decoded object of the Kubernetes API.
Document = Mapping[str, Any]

_GROUP: Final = "kubevirt.io"
_INSTANCE: Final = "VirtualMachineInstance"
_MACHINE: Final = "VirtualMachine"
# On the target of a migration, and it stays there; a VM's author cannot set it.
_MIGRATION: Final = "kubevirt.io/migrationJobUID"
# On the pod that only makes storage come about (WaitForFirstConsumer), with the VM's owner and networks.
_PROVISIONING: Final = "kubevirt.io/ephemeral-provisioning"
# On the API's image of a static pod, whose UID is another one than that of the pod which the kubelet runs.
_MIRROR: Final = "kubernetes.io/config.mirror"
# How an interface can be bound so that the guest's MAC never leaves the pod: two VMs may then have the same.
_INSIDE: Final = ("masquerade", "passt", "passtBinding", "slirp")
# The source of an interface's status that is the guest's word alone.
_GUEST: Final = "guest-agent"


class Owner(NamedTuple):
    """The VirtualMachineInstance that a pod names as its controller."""

    name: str
    uid: str


class VMNetwork(NamedTuple):
    """One of `spec.networks`: its name, and what the pod's interface for it may be called."""

    name: str
    ifnames: tuple[str, ...]

    @property
    def is_primary(self) -> bool:
        """Whether it is what the pod has as its first network."""
        return names.PRIMARY in self.ifnames


class MacSource(NamedTuple):
    """A MAC as it is written, and where."""

    mac: str
    where: str


class Subject(NamedTuple):
    """What a request is for: a VM's interface, and the part of the pod in it."""

    vm: VM
    # The guest's, "" for none.
    hostname: str
    # The rest is known in Kubernetes only.
    vmi: str = ""
    vmi_uid: str = ""
    pod_uid: str = ""
    # The pod's node.
    node: str = ""
    # The UID of the migration whose target the pod is, "" if it is none.
    migration: str = ""
    # What the VM's spec calls the interface's network, "" where it has none there.
    network: str = ""
    networks: tuple[VMNetwork, ...] = ()
    # The MAC in the VM's spec and the one that its status reports, the stronger first.
    macs: tuple[MacSource, ...] = ()
    # Whether the pod gets along without that MAC: a binding plugin gives the guest its own.
    mac_yields: bool = False
    # The pod's.
    annotations: Mapping[str, str] = MappingProxyType({})
    # The UIDs of the pods that run the instance, as its status has them; of one without a VirtualMachine.
    pods: frozenset[str] = frozenset()

    @property
    def role(self) -> str:
        """The pod's, one of identity.ROLES."""
        return self.vm.role

    def recorded(self) -> RecordedVM:
        """As the record of the attachment keeps it."""
        vm = self.vm
        return RecordedVM(
            vm.namespace, vm.name, vm.uid, self.vmi, self.vmi_uid, self.pod_uid, vm.role, self.migration
        )


def explicit(vm: VM) -> Subject:
    """Outside Kubernetes: all that the caller has said."""
    return Subject(vm, vm.hostname)


def is_mirror(pod: Document) -> bool:
    """Whether the pod is the API's image of a static pod. Such a pod is no VM's."""
    return _MIRROR in annotations_of(pod)


def node(pod: Document) -> str:
    """The name of the pod's node, "" before it has one."""
    return _text(_object(pod, "spec"), "nodeName")


def owner(pod: Document) -> Owner | None:
    """The VirtualMachineInstance that the pod belongs to, None for a pod of any other kind.

    A pod that attaches a volume to a running VM (hp-volume-*) belongs to the launcher pod, and is no VM's.
    """
    reference = None if is_mirror(pod) else _controller(pod, _INSTANCE)
    return Owner(reference["name"], reference["uid"]) if reference is not None else None


def subject(pod: Document, vmi: Document | None, ifname: str, network: str = "") -> Subject | None:
    """The VM's interface `ifname` in a pod, None for a pod that is no VM's.

    `vmi` is the object that `owner` names. `network` is the name that the caller gives the interface's
    network, if it does: KubeVirt says it of a binding, whose own interface has any name. Raises CNIError 11
    where the object is another one than the owner.
    """
    belongs_to = owner(pod)
    if belongs_to is None or vmi is None:
        return None
    metadata = _object(pod, "metadata")
    namespace, uid = _text(metadata, "namespace"), _text(_object(vmi, "metadata"), "uid")
    if uid != belongs_to.uid:
        raise CNIError(
            TRY_AGAIN_LATER,
            f"pod {namespace}/{_text(metadata, 'name')} belongs to {_INSTANCE} {belongs_to.name} with the "
            f"UID {belongs_to.uid}, and the Kubernetes API has one with the UID {uid}",
        )
    machine = _controller(vmi, _MACHINE)
    known = Owner(machine["name"], machine["uid"]) if machine is not None else belongs_to
    vm = VM(namespace, known.name, known.uid, ifname, role(pod, vmi))
    networks = tuple(_networks(vmi))
    name = _network_of(networks, ifname, network)
    interface = _named(_list(vmi, "spec", "domain", "devices", "interfaces"), name)
    return Subject(
        vm=vm,
        hostname=_text(_object(vmi, "spec"), "hostname") or vm._replace(name=belongs_to.name).hostname,
        vmi=belongs_to.name,
        vmi_uid=uid,
        pod_uid=_text(metadata, "uid"),
        node=node(pod),
        migration=_labels(pod).get(_MIGRATION, "") if vm.role == TARGET else "",
        network=name,
        networks=networks,
        macs=tuple(_macs(vmi, interface, f"{_INSTANCE} {namespace}/{belongs_to.name}")),
        mac_yields="binding" in interface,
        annotations=annotations_of(pod),
        pods=frozenset(_object(_object(vmi, "status"), "activePods")) if machine is None else frozenset(),
    )


def role(pod: Document, vmi: Document) -> str:
    """The part that a pod of this VirtualMachineInstance has at its ADD.

    It is a migration's target while the VM still is on another node: `status.nodeName` becomes the target's
    once the migration has succeeded. `status.migrationState` cannot tell: at the ADD it is absent, or the
    former migration's. The label stays on the pod, so that alone would call the source of the next migration
    a target. The template of a VM may claim the annotation, so the label counts first.
    """
    if _MIGRATION in _labels(pod) and _text(_object(vmi, "status"), "nodeName") != node(pod):
        return TARGET
    return TEMP if annotations_of(pod).get(_PROVISIONING) == "true" else ACTIVE


def annotations_of(pod: Document) -> Mapping[str, str]:
    """The pod's annotations."""
    return cast("Mapping[str, str]", _object(_object(pod, "metadata"), "annotations"))


def _networks(vmi: Document) -> Iterator[VMNetwork]:
    ordinal = 0
    for each in _list(vmi, "spec", "networks"):
        name = _text(each, "name")
        if "multus" in each and not _object(each, "multus").get("default"):
            # A VM that was started by an older KubeVirt has ordinal names until it is restarted.
            ordinal += 1
            yield VMNetwork(name, (names.hashed(name), names.ordinal(ordinal)))
        else:
            yield VMNetwork(name, (names.PRIMARY,))


def _network_of(networks: tuple[VMNetwork, ...], ifname: str, network: str) -> str:
    if any(each.name == network for each in networks):
        return network
    return next((each.name for each in networks if ifname in each.ifnames), "")


def _macs(vmi: Document, interface: Document, where: str) -> Iterator[MacSource]:
    if any(binding in interface for binding in _INSIDE):
        return
    name = _text(interface, "name")
    if mac := _text(interface, "macAddress"):
        yield MacSource(mac, f"{where}: macAddress of interface {name}")
    reported = _named(_list(vmi, "status", "interfaces"), name)
    if _text(reported, "infoSource") != _GUEST and (mac := _text(reported, "mac")):
        yield MacSource(mac, f"{where}: status of interface {name}")


def _controller(document: Document, kind: str) -> Document | None:
    """The owner of this kind that controls an object, with a name and a UID."""
    for each in _list(document, "metadata", "ownerReferences"):
        group = _text(each, "apiVersion").partition("/")[0]
        if each.get("controller") is True and (group, each.get("kind")) == (_GROUP, kind):
            return each
    return None


def _labels(pod: Document) -> Document:
    return _object(_object(pod, "metadata"), "labels")


def _named(items: list[Document], name: str) -> Document:
    nothing: Document = {}
    return next((each for each in items if name and each.get("name") == name), nothing)


def _object(document: Document, key: str) -> Document:
    value = document.get(key)
    return cast("Document", value) if isinstance(value, Mapping) else {}


def _list(document: Document, *path: str) -> list[Document]:
    for key in path[:-1]:
        document = _object(document, key)
    value = document.get(path[-1])
    return cast("list[Document]", value) if isinstance(value, list) else []


def _text(document: Document, key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""
