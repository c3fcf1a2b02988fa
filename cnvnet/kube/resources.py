"""The kinds of objects that this suite reads or writes, and their paths in the API."""

from __future__ import annotations

import string
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig

# Names of all objects consist of these; a path needs no escapes for them.
_OF_NAMES: Final = frozenset(string.ascii_letters + string.digits + "-._:")


class Resource(NamedTuple):
    """One kind of object. `group` is "" for the core ones."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """As an object's `apiVersion` has it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def collection(self, namespace: str = "") -> str:
        """The path of all objects, of one namespace or of all of them. InvalidConfig."""
        root = f"/apis/{self.group}" if self.group else "/api"
        within = f"/namespaces/{_segment('namespace', namespace)}" if self.namespaced and namespace else ""
        return f"{root}/{self.version}{within}/{self.plural}"

    def item(self, name: str, namespace: str = "", subresource: str = "") -> str:
        """The path of one object, or of a part of it. InvalidConfig."""
        if self.namespaced and not namespace:
            raise InvalidConfig(f"{self.plural} {name!r}: no namespace is given")
        path = f"{self.collection(namespace)}/{_segment(self.plural, name)}"
        return f"{path}/{_segment('subresource', subresource)}" if subresource else path


PODS = Resource("", "v1", "pods", "Pod", True)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False)
NODES = Resource("", "v1", "nodes", "Node", False)
EVENTS = Resource("", "v1", "events", "Event", True)
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet", True)
VIRTUAL_MACHINES = Resource("kubevirt.io", "v1", "virtualmachines", "VirtualMachine", True)
INSTANCES = Resource("kubevirt.io", "v1", "virtualmachineinstances", "VirtualMachineInstance", True)
VM_LEASES = Resource("cnvnet.io", "v1alpha1", "vmleases", "VMLease", True)
IP_RESERVATIONS = Resource("cnvnet.io", "v1alpha1", "ipreservations", "IPReservation", False)
IP_NETWORKS = Resource("cnvnet.io", "v1alpha1", "ipnetworks", "IPNetwork", False)
IPAM_CLAIMS = Resource("k8s.cni.cncf.io", "v1alpha1", "ipamclaims", "IPAMClaim", True)
WHEREABOUTS_POOLS = Resource("whereabouts.cni.cncf.io", "v1alpha1", "ippools", "IPPool", True)
KUBE_OVN_IPS = Resource("kubeovn.io", "v1", "ips", "IP", False)
COORDINATION_LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)


def _segment(what: str, text: str) -> str:
    """One segment of a path. A name that a tenant has written must not lead to another object."""
    if text in ("", ".", "..") or not _OF_NAMES.issuperset(text):
        raise InvalidConfig(f"{what} {text!r}: no name of a Kubernetes object")
    return text
