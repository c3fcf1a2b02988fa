"""Paths of objects."""

from __future__ import annotations

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.kube.resources import IP_RESERVATIONS, NODES, PODS, VM_LEASES


def test_a_path_names_group_version_and_namespace() -> None:
    assert PODS.item("p", "a") == "/api/v1/namespaces/a/pods/p"
    assert PODS.collection() == "/api/v1/pods"
    assert VM_LEASES.collection("a") == "/apis/cnvnet.io/v1alpha1/namespaces/a/vmleases"
    assert NODES.item("n", subresource="status") == "/api/v1/nodes/n/status"
    assert IP_RESERVATIONS.item("r") == "/apis/cnvnet.io/v1alpha1/ipreservations/r"


def test_an_objects_api_version_has_its_group() -> None:
    assert (PODS.api_version, VM_LEASES.api_version) == ("v1", "cnvnet.io/v1alpha1")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../secrets/s", "a%2fb", "a?b", "a#b", "ä", "a b", "a\n"]
)
def test_what_is_no_name_leads_to_no_other_object(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"pods '.*': no name of a Kubernetes object"):
        PODS.item(name, "a")
    if name:
        with pytest.raises(InvalidConfig, match=r"namespace '.*': no name of a Kubernetes object"):
            PODS.collection(name)


def test_an_object_of_a_namespace_needs_one() -> None:
    with pytest.raises(InvalidConfig, match=r"pods 'p': no namespace is given"):
        PODS.item("p")
