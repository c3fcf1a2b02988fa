"""Whose an address is that another address manager has given to a pod: the VM, by the pod's owner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address
from cnvnet.ipam.imports.documents import Document
from cnvnet.ipam.imports.sources import Given
from cnvnet.kube.api import Api, NotFound
from cnvnet.kube.resources import INSTANCES, PODS, Resource
from cnvnet.vm import launcher
from cnvnet.vm.launcher import Subject
from cnvnet.vm.network_status import interfaces_of

POD: Final = "v1/Pod"
INSTANCE: Final = "kubevirt.io/VirtualMachineInstance"
_Object = Mapping[str, Any]


class NotAVm(Exception):
    """The address is no VM's, or nothing says whose it is: its text says why."""


class Owners:
    """Pods and instances of files, and where an API is given, of the cluster."""

    def __init__(self, documents: Iterable[Document], api: Api | None) -> None:
        self._api = api
        self._pods: dict[tuple[str, str], _Object] = {}
        self._instances: dict[tuple[str, str], _Object] = {}
        for each in documents:
            metadata = each.content.get("metadata") or {}
            key = (str(metadata.get("namespace", "")), str(metadata.get("name", "")))
            (self._pods if each.kind == POD else self._instances)[key] = each.content
        self._listed: dict[tuple[Address, str], list[_Object]] | None = None

    def subject(self, given: Given) -> tuple[Subject, str]:
        """The VM's interface that has an address, and its MAC, "" if unknown. NotAVm, ApiError."""
        pod = self._pod(given)
        metadata = pod["metadata"]
        name = f"pod {metadata['namespace']}/{metadata['name']}"
        owner = launcher.owner(pod)
        if owner is None:
            raise NotAVm(f"{name} is no VM")
        instance = self._find(self._instances, INSTANCES, metadata["namespace"], owner.name)
        if instance is None:
            raise NotAVm(f"{name}: its VirtualMachineInstance {owner.name} is not there")
        having = [each for each in interfaces_of(pod) if each.ips & set(given.ips)]
        ifname = given.interface or (having[0].name if having else "")
        if not ifname:
            raise NotAVm(f"{name}: nothing says which of its interfaces it is (--interface)")
        subject = launcher.subject(pod, instance, ifname)
        if subject is None:
            raise NotAVm(f"{name} is no VM")
        return subject, next((each.mac for each in having if each.name == ifname), "")

    def _pod(self, given: Given) -> _Object:
        if given.pod:
            namespace, _, name = given.pod.partition("/")
            pod = self._find(self._pods, PODS, namespace, name)
            if pod is None:
                raise NotAVm(f"pod {given.pod} is not there")
            return pod
        found = self._by_address().get((given.ips[0], given.interface), [])
        if len(found) != 1:
            how_many = "no pod has" if not found else "several pods have"
            raise NotAVm(
                f"{how_many} {given.ips[0]} on an interface {given.interface} by its network-status"
            )
        return found[0]

    def _by_address(self) -> dict[tuple[Address, str], list[_Object]]:
        if self._listed is None:
            pods = [*self._pods.values()]
            if self._api is not None:
                pods += self._api.list(PODS).items
            listed: defaultdict[tuple[Address, str], list[_Object]] = defaultdict(list)
            uids: set[str] = set()
            for pod in pods:
                uid = str(pod["metadata"].get("uid", ""))
                if uid in uids:
                    continue
                uids |= {uid} - {""}
                for each in interfaces_of(pod):
                    for ip in each.ips:
                        listed[ip, each.name].append(pod)
            self._listed = listed
        return self._listed

    def _find(
        self, known: Mapping[tuple[str, str], _Object], resource: Resource, namespace: str, name: str
    ) -> _Object | None:
        """The object; None where it is not. NotAVm where it cannot be asked for, ApiError."""
        if (namespace, name) in known:
            return known[namespace, name]
        if self._api is None:
            text = f"{resource.kind} {namespace}/{name} is in none of the files, and there is no API to ask"
            remedy = "kubectl get pods,vmis -A -o yaml makes a file of them; --kubeconfig"
            raise NotAVm(f"{text} ({remedy})")
        try:
            return self._api.get(resource, name, namespace)
        except (NotFound, InvalidConfig):
            return None
