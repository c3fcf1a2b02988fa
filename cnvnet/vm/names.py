"""KubeVirt's names for launcher pods and their links, which its other parts rely on.

The same as pkg/network/namescheme and pkg/network/link/names.go of kubevirt/kubevirt. Pure.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple

# The interface of the pod network, unless the cluster calls it otherwise.
PRIMARY: Final = "eth0"

_LAUNCHER: Final = "virt-launcher-"
# Characters that an API server makes of a generateName.
_GENERATED: Final = 5
_POD: Final = "pod"
_ORDINAL: Final = "net"
_HEX: Final = frozenset("0123456789abcdef")
# What KubeVirt keeps of a hash: a name has 15 characters, and its longest affix, "-nic" or "k6t-", has 4.
_LENGTH: Final = 11


class PodLinkNames(NamedTuple):
    """The links that belong to one interface of a VM."""

    # The pod's interface.
    pod: str
    # The bridge behind it.
    bridge: str
    # What the bridge binding renames the pod's interface to.
    nic: str
    # What QEMU opens.
    tap: str


def likely_instance(pod: str) -> str:
    """The instance of which a pod with this name is the launcher, if it is one; "" if it hardly is.

    The name proves nothing: any pod may be called so.
    """
    name, _, end = pod.removeprefix(_LAUNCHER).rpartition("-")
    return name if pod.startswith(_LAUNCHER) and len(end) == _GENERATED else ""


def hashed(network: str) -> str:
    """The pod's interface for a network that a VM's spec calls `network` (spec.networks[].name)."""
    return _POD + _hash(network)


def ordinal(number: int) -> str:
    """The pod's interface for a VM's secondary network of this number, from 1, in the older scheme."""
    return f"{_ORDINAL}{number}"


def is_hashed(ifname: str) -> bool:
    """Whether a name is one of those that `hashed` makes."""
    digits = ifname.removeprefix(_POD)
    return ifname.startswith(_POD) and len(digits) == _LENGTH and _HEX.issuperset(digits)


def is_ordinal(ifname: str) -> bool:
    """Whether a name is of the older scheme, net1, net2, and so on.

    A single link of such a name makes KubeVirt name all links of the VM by that scheme: no part may create
    or report one without need.
    """
    digits = ifname.removeprefix(_ORDINAL)
    return ifname.startswith(_ORDINAL) and digits.isascii() and digits.isdigit()


def of(pod_ifname: str) -> PodLinkNames:
    """All names for a pod's interface; those of one too long for the affixes are made of its hash."""
    stem = pod_ifname.removeprefix(_POD)
    if not stem or len(stem.encode(errors="surrogatepass")) > _LENGTH:
        stem = _hash(pod_ifname)
    # Only interfaces of secondary networks are distinguished: a primary one may have any name (ovn-udn1).
    secondary = is_hashed(pod_ifname) or is_ordinal(pod_ifname)
    tap = f"tap{pod_ifname[3:]}" if secondary else "tap0"
    return PodLinkNames(pod_ifname, f"k6t-{stem}", f"{stem}-nic", tap)


def _hash(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:_LENGTH]
