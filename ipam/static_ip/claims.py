"""IPAMClaims: addresses that an object of the Kubernetes API keeps for a VM's interface.

KubeVirt's IPAM controller makes one for each interface of a network with `allowPersistentIPs`, and names it
in the pod's `ipam-claim-reference`; Multus does not pass that on. A claim owns the lease: it ends with the
claim. What stands in its status is a report for people and programs, with the reasons of OVN-Kubernetes
(go-controller/pkg/persistentips), and a request where there is no lease: after a restore, or a change of the
network's CNI. It proves nothing: whose an address is, the lease says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, cast

from cnvnet.call_context import log
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.cni.fields import Fields, InterfaceAddress, as_plain_address
from cnvnet.ipam.allocation import AddressRequest
from cnvnet.ipam.refusals import AddressTaken, MacTaken, PoolFull
from cnvnet.ipam.store.clock import now, timestamp
from cnvnet.kube.api import Api, ApiError, Conflict, Document, deadline
from cnvnet.kube.resources import IPAM_CLAIMS
from cnvnet.vm import names
from cnvnet.vm.launcher import Subject

# Multus' annotations: the networks of a pod beside the first one, and the first where the pod says it.
_NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
_DEFAULT_NETWORK: Final = "v1.multus-cni.io/default-network"
_REFERENCE: Final = "ipam-claim-reference"

_CONDITION: Final = "IPsAllocated"
_ALLOCATED: Final = "SuccessfulAllocation"
_ADDRESS_CONFLICT: Final = "IPAddressConflict"
_MAC_CONFLICT: Final = "MACAddressConflict"
_EXHAUSTED: Final = "SubnetExhausted"
_ERROR: Final = "InternalError"

# The status for an object, and for a kind, that the server does not have.
_NOT_THERE: Final = 404
# Seconds for the requests about a claim of one ADD, and for telling why it has failed.
_SECONDS: Final = 5.0
_LAST_SECONDS: Final = 2.0
# Attempts to write a status that others write, too.
_ATTEMPTS: Final = 5
# Characters of a condition's message, of which the schema takes 32,768.
_LONGEST: Final = 1024


class ClaimReference(NamedTuple):
    """The claim that a pod's annotation names for one of its interfaces."""

    name: str
    # The key, for messages.
    where: str
    # An interface that stands before it in the annotation and has the same claim, "" for none.
    first: str


class ClaimedAddresses:
    """A claim as an ADD has found it, and what the ADD says in it. Only `report` raises CNIError."""

    def __init__(self, api: Api, document: Document, pod: str, node: str) -> None:
        """`pod` is the name of the pod that the ADD is for, `node` its node."""
        metadata = document["metadata"]
        self.namespace: str = metadata["namespace"]
        self.name: str = metadata["name"]
        self.uid: str = metadata["uid"]
        # What its status asks for. InvalidConfig.
        self.requests = tuple(_requests(document, str(self)))
        self._api = api
        self._document = document
        self._pod = pod
        self._node = node
        self._former = _ips(document)

    def __str__(self) -> str:
        return f"IPAMClaim {self.namespace}/{self.name}"

    def report(self, ips: Iterable[InterfaceAddress]) -> None:
        """Say what the VM has. Nothing is written where the claim says so already. CNIError."""
        addresses = [str(each) for each in ips]
        if self._former and sorted(self._former) != sorted(addresses):
            log(f"{self} had {', '.join(self._former)}: its VM has {', '.join(addresses)}")
        text = f"{', '.join(addresses)} for pod {self._pod}"
        with deadline(_SECONDS):
            self._write(lambda _: _Answer(addresses, self._pod, "True", _ALLOCATED, text))

    def refuse(self, error: CNIError) -> None:
        """Say why the VM gets no address, unless it is the API that does not answer."""
        if isinstance(error, ApiError):
            return
        kinds = ((AddressTaken, _ADDRESS_CONFLICT), (MacTaken, _MAC_CONFLICT), (PoolFull, _EXHAUSTED))
        reason = next((reason for kind, reason in kinds if isinstance(error, kind)), _ERROR)
        self._try_to_write(lambda now: _Answer(_ips(now), _owner_pod(now), "False", reason, error.msg))

    def take_back(self) -> None:
        """The ADD came to nothing: where it has given other addresses, say what was there before."""
        text = f"the ADD of pod {self._pod} has failed"
        if _ips(self._document) != self._former:
            self._try_to_write(lambda now: _Answer(self._former, _owner_pod(now), "False", _ERROR, text))

    def _try_to_write(self, answer: Callable[[Document], _Answer]) -> None:
        try:
            with deadline(_LAST_SECONDS):
                self._write(answer)
        except CNIError as e:
            log(f"{self}: its status does not say what has become of the ADD: {e.msg}")

    def _write(self, answer: Callable[[Document], _Answer]) -> None:
        """Make the status what `answer` makes of the claim as it is now. CNIError."""
        for _ in range(_ATTEMPTS):
            if self._document["metadata"]["uid"] != self.uid:
                raise CNIError(TRY_AGAIN_LATER, f"{self} was deleted and made anew in the meantime")
            said = answer(self._document)
            signed = said._replace(message=f"{said.message[:_LONGEST]} (node {self._node})")
            changes = _changes(self._document, signed)
            if not changes:
                return
            metadata = {"resourceVersion": self._document["metadata"]["resourceVersion"]}
            patch = {"metadata": metadata, "status": changes}
            try:
                self._document = self._api.patch(
                    IPAM_CLAIMS, self.name, patch, self.namespace, subresource="status"
                )
                return
            except Conflict:
                pass
            self._document = self._api.get(IPAM_CLAIMS, self.name, self.namespace)
        raise CNIError(TRY_AGAIN_LATER, f"{self}: others have changed it {_ATTEMPTS} times: try again")


def reference(annotations: Mapping[str, str], ifname: str) -> ClaimReference | None:
    """The claim of an interface, None where the pod's annotations name none. InvalidConfig."""
    key = _DEFAULT_NETWORK if ifname == names.PRIMARY else _NETWORKS
    elements = _elements(annotations.get(key, ""))
    claims: dict[str, str] = {}
    for index, element in enumerate(elements):
        # What Multus calls an interface without a name; the first network has one element.
        named = names.PRIMARY if key == _DEFAULT_NETWORK else element.get("interface")
        named = named or names.ordinal(index + 1)
        name = element.get(_REFERENCE)
        if named == ifname and name:
            where = f"annotation {key}[{index}].{_REFERENCE}"
            if not isinstance(name, str) or "/" in name:
                text = "not the name of an IPAMClaim in the pod's namespace"
                raise InvalidConfig(f'{where}: "{str(name)[:64]}" is {text}')
            return ClaimReference(name, where, claims.get(name, ""))
        if isinstance(name, str):
            claims.setdefault(name, str(named))
    return None


def read(
    api: Api, named: ClaimReference, subject: Subject, *, network: str, pod: str, node: str
) -> ClaimedAddresses:
    """The claim that a VM's pod of this name names for its interface in this network.

    Raises CNIError: 7 for one of another VM, network or interface, 11 for one that is not there (yet).
    """
    where, claim = named.where, f"IPAMClaim {subject.vm.namespace}/{named.name}"
    if named.first:
        raise InvalidConfig(
            f"{where}: {claim} keeps the addresses of one interface, and {named.first} has it: give each "
            "interface a NetworkAttachmentDefinition of its own"
        )
    try:
        with deadline(_SECONDS):
            document = api.get(IPAM_CLAIMS, named.name, subject.vm.namespace)
    except ApiError as e:
        if e.status != _NOT_THERE:
            raise
        raise CNIError(TRY_AGAIN_LATER, f"{where}: {claim} is not there", e.msg) from e
    _ensure_own(document, subject, where, claim)
    of_network = Fields(document.get("spec") or {}, f"{claim} spec").text("network")
    if of_network != network:
        raise InvalidConfig(f"{where}: {claim} is for network {of_network}, and this one is {network}")
    return ClaimedAddresses(api, document, pod, node)


class _Answer(NamedTuple):
    """What a status is to say."""

    ips: list[str]
    pod: str
    # Of the condition.
    status: str
    reason: str
    message: str


def _status(claim: Document) -> Document:
    return claim.get("status") or {}


def _ips(claim: Document) -> list[str]:
    return list(_status(claim).get("ips") or [])


def _owner_pod(claim: Document) -> str:
    return str((_status(claim).get("ownerPod") or {}).get("name", ""))


def _changes(claim: Document, answer: _Answer) -> Document:
    """What a merge patch of the claim's status has to have; {} where it says so already."""
    changes: Document = {}
    if _ips(claim) != answer.ips:
        changes["ips"] = answer.ips
    if _owner_pod(claim) != answer.pod:
        changes["ownerPod"] = {"name": answer.pod} if answer.pod else None
    conditions: list[Document] = list(_status(claim).get("conditions") or [])
    nothing: Document = {}
    former = next((each for each in conditions if each.get("type") == _CONDITION), nothing)
    condition: Document = {
        "type": _CONDITION,
        "status": answer.status,
        "reason": answer.reason,
        "message": answer.message,
    }
    if any(former.get(key) != value for key, value in condition.items()):
        began = former.get("lastTransitionTime") if former.get("status") == answer.status else ""
        condition["lastTransitionTime"] = began or timestamp(now())
        others = [each for each in conditions if each.get("type") != _CONDITION]
        changes["conditions"] = [*others, condition]
    # Of the others of the list, and of addresses where there are none yet, the server wants all.
    return {"ips": answer.ips, **changes} if changes else {}


def _ensure_own(document: Mapping[str, Any], subject: Subject, where: str, claim: str) -> None:
    """CNIError where the claim belongs to another VM. One without an owner is for any."""
    references: list[Document] = document["metadata"].get("ownerReferences") or []
    owners = [each for each in references if str(each.get("apiVersion", "")).startswith("kubevirt.io/")]
    vm = subject.vm
    if not owners or any(each.get("uid") in (vm.uid, subject.vmi_uid) for each in owners):
        return
    owner = owners[0]
    whose = f"{owner.get('kind')} {vm.namespace}/{owner.get('name')} with the UID {owner.get('uid')}"
    if owner.get("name") in (vm.name, subject.vmi):
        raise CNIError(
            TRY_AGAIN_LATER,
            f"{where}: {claim} still belongs to the former {whose}, and goes with it; this one has {vm.uid}",
        )
    raise InvalidConfig(f"{where}: {claim} belongs to {whose}, not to VM {vm.namespace}/{vm.name}")


def _requests(document: Mapping[str, Any], claim: str) -> list[AddressRequest]:
    texts = Fields(document.get("status") or {}, f"{claim} status").texts("ips")
    requests: list[AddressRequest] = []
    for index, text in enumerate(texts):
        where = f"{claim} status.ips[{index}]"
        ip = as_plain_address(text, where)
        # A lease has no room for the name of each claim.
        requests.append(AddressRequest(ip, where, IPAM_CLAIMS.kind, is_fallback=True))
    return requests


def _elements(text: str) -> list[Mapping[str, Any]]:
    """The networks of an annotation in JSON. Multus' short form names no claims."""
    if not text.lstrip().startswith("["):
        return []
    try:
        decoded: Any = json.loads(text)
    except ValueError:
        return []  # Multus refuses it
    listed: list[Any] = decoded if isinstance(decoded, list) else []
    return [cast("Mapping[str, Any]", each) if isinstance(each, Mapping) else {} for each in listed]
