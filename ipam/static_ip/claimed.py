"""The configuration of an ADD together with the IPAMClaim that the pod names for its interface."""

from __future__ import annotations

from cnvnet.cni.request import Request
from cnvnet.ipam.static_ip.asked import node_of
from cnvnet.ipam.static_ip.config import Config
from cnvnet.ipam.store.ref import SQLITE
from cnvnet.vm.identity import ACTIVE
from cnvnet.vm.launcher import Subject
from cnvnet.vm.subjects import Lookup


def claimed(config: Config, subject: Subject, request: Request, lookup: Lookup) -> Config:
    """The configuration with the claim, if the pod names one. Raises CNIError: 7, 11.

    Only for the pod in which the VM is to run: one that moves in gets what the other has.
    """
    directory = lookup() if subject.vmi and subject.role == ACTIVE else None
    if directory is None or config.pod is None:
        return config
    # Not at the top: most pods are none of Kubernetes, or have no API.
    from cnvnet.ipam.static_ip import claims

    named = claims.reference(subject.annotations, request.ifname)
    if named is None:
        return config
    if ignored := _unclaimed(config):
        remark = f"{named.where}: {named.name} ignored: {ignored}"
        return config._replace(remarks=(*config.remarks, remark))
    where = {"network": request.name, "pod": config.pod.name, "node": node_of(config)}
    claim = claims.read(directory.api, named, subject, **where)
    return config._replace(addresses=(*config.addresses, *claim.requests), ipam_claim=claim)


def _unclaimed(config: Config) -> str:
    """Why no claim keeps addresses of this network, "" where one may."""
    if config.store.kind == SQLITE:
        return "the leases of this network are each node's own"
    return "" if config.allows_claims else "the network has allowPersistentIPs: false"
