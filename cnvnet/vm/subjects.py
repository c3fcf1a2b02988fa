"""The way from what a call claims to its subject: what the caller says, or what the Kubernetes API knows.

Imports nothing of the API's client before a pod is asked about with credentials at hand: most calls outside
Kubernetes need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Final

from cnvnet.call_context import note_vm
from cnvnet.cni.conventions import PodRef, cni_args
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.request import Request
from cnvnet.vm import identity, launcher
from cnvnet.vm.identity import VM, Named
from cnvnet.vm.launcher import Subject

if TYPE_CHECKING:
    from cnvnet.vm.directory import Directory

# The way to the Kubernetes API; None where there are no credentials for it.
Lookup = Callable[[], "Directory | None"]

_REMEDY: Final = "CNVNET_KUBECONFIG, --kubeconfig of the agent, or /etc/cnvnet/kubeconfig"


def no_api() -> Directory | None:
    """A lookup without an API: a pod stays a container that is no VM."""
    return None


def own_lookup(env: Mapping[str, str]) -> Lookup:
    """The lookup of a process that runs one call, with the credentials that this environment leads to."""
    return cache(partial(_open, env))


def subject_of(claim: VM | PodRef | None, request: Request, lookup: Lookup) -> Subject | None:
    """The subject of a request with this claim, None for a container that is not known to be a VM.

    Raises CNIError: 11 where the API does not answer or knows no such pod.
    """
    if claim is None:
        return None
    if isinstance(claim, VM):
        return launcher.explicit(claim)
    directory = lookup()
    if directory is None:
        return None
    network = cni_args(request.fields).text("logicNetworkName")
    subject = directory.subject(claim, request.ifname, container_id=request.container_id, network=network)
    if subject is not None:
        note_vm(f"{subject.vm.namespace}/{subject.vm.name}")
    return subject


def owners_of(request: Request, subject: Subject | None) -> Named:
    """The pod and the VM of a request, as the attachment's record keeps them."""
    owners = identity.named(request.fields, request.args)
    return owners if subject is None else owners._replace(vm=subject.recorded())


def no_credentials(purpose: str) -> CNIError:
    """Code 11 for something that needs the API where there is no way to it."""
    return CNIError(TRY_AGAIN_LATER, f"{purpose}: no credentials for the Kubernetes API ({_REMEDY})")


def _open(env: Mapping[str, str]) -> Directory | None:
    from cnvnet.vm.directory import open_directory

    return open_directory(env, resident=False)
