"""Leases as documents of the Kubernetes API: names, shapes, and what a patch says."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cnvnet.cni.errors import InvalidConfig
from cnvnet.ipam.lease import Cooldown, Holder, Lease, LeaseKey
from cnvnet.ipam.store import object_names, objects
from cnvnet.vm.identity import ACTIVE, TARGET
from tests.fakes.api_objects import merged
from tests.unit.ipam.store.conformance import HOLDER, KEY, LEASE

SECOND = HOLDER._replace(container_id="c0", role=TARGET, node="n2", pod="default/p", pod_uid="u")
COOLING = (Cooldown(KEY, ip_address("10.0.1.9"), "", "uid-0", 90, 30),)


def stored(lease: Lease, **fields: Any) -> objects.StoredLease:
    document = objects.lease_document(lease, **fields)
    document["metadata"] |= {"uid": "lease-uid", "resourceVersion": "7"}
    return objects.read_lease(document)


def patched(lease: Lease, after: Lease | None, cooling: tuple[Cooldown, ...] = ()) -> objects.StoredLease:
    """A VMLease after the patch that turns one lease into another."""
    document = objects.lease_document(lease)
    document["metadata"] |= {"uid": "lease-uid", "resourceVersion": "7"}
    read = objects.read_lease(document)
    patch = objects.lease_patch(read, lease, after, cooling=cooling, nonce="", pending=(), now=50)
    return objects.read_lease(merged(document, patch))


# -- names


def test_names_of_objects_tell_networks_and_addresses_apart() -> None:
    assert object_names.lease_name(KEY) == "vm1-c91950580be49157"
    assert object_names.reservation_name("net", "10.0.0.5") == "net-a08a0fcbde-10-0-0-5"
    assert object_names.reservation_name("net", "0a:63:00:00:00:01") == "net-a08a0fcbde-0a-63-00-00-00-01"
    assert object_names.reservation_name("net", "fd00::5") == object_names.reservation_name(
        "net", "FD00:0::5"
    )
    assert object_names.reservation_name("a.b", "10.0.0.5") != object_names.reservation_name(
        "a-b", "10.0.0.5"
    )


@given(
    network=st.text(min_size=1, max_size=80),
    vm=st.text(min_size=1, max_size=80),
    ip=st.ip_addresses(),
)
@example("net", "vm", ip_address("::ffff:0.0.0.0"))
def test_every_name_is_one_that_kubernetes_takes_and_an_address_can_be_read_from_it(
    network: str, vm: str, ip: Any
) -> None:
    name = object_names.reservation_name(network, str(ip))
    names = [
        name,
        object_names.lease_name(LeaseKey(network, "ns", vm, "eth0")),
        object_names.network_name(network),
    ]
    for each in names:
        assert len(each) <= 253
        assert set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert each.strip("-") == each
    assert object_names.reserved_ip(network, name) == ip
    label = object_names.network_label(network)
    assert 0 < len(label) <= 63
    assert label[0].isalnum()
    assert label[-1].isalnum()


def test_a_mac_is_no_address_of_ip() -> None:
    assert not object_names.is_mac("2001:3:f5ce:c00::")  # as long, and with as many colons
    name = object_names.reservation_name("net", "0a:63:00:00:00:01")
    assert object_names.reserved_ip("net", name) is None
    assert object_names.block_label("0a:63:00:00:00:01") == "mac"


def test_a_block_has_256_addresses_of_either_family() -> None:
    assert object_names.block_of(ip_address("10.1.2.3")) == "10-1-2"
    assert object_names.block_of(ip_address("fd00::1")) == object_names.block_of(ip_address("fd00::fe"))
    assert object_names.block_of(ip_address("fd00::1")) != object_names.block_of(ip_address("fd00::100"))


def test_two_containers_whose_ids_begin_alike_have_keys_of_their_own() -> None:
    first, second = "0123456789abcdef", "0123456789abcxyz"
    keys = {(first, "eth0"): object_names.holder_key(first, "eth0", {})}
    assert keys[first, "eth0"] == "0123456789abc.eth0"
    other = object_names.holder_key(second, "eth0", keys)
    assert other != keys[first, "eth0"]
    assert object_names.holder_key(first, "eth0", keys) == "0123456789abc.eth0"


# -- leases


def test_a_lease_is_read_from_its_document_as_it_was_written() -> None:
    lease = LEASE._replace(holders=(SECOND, HOLDER))
    read = stored(lease, nonce="n", pending=["10.0.0.5"], cooling=COOLING)
    assert (read.lease, read.key, read.cooling) == (lease, KEY, COOLING)
    assert (read.nonce, read.pending, read.uid, read.version) == ("n", ("10.0.0.5",), "lease-uid", "7")
    assert read.finalizers == (object_names.FINALIZER,)
    assert set(read.labels) == {
        "cnvnet.io/network",
        "cnvnet.io/block-10-0-0",
        "cnvnet.io/block-10-0-1",
        "cnvnet.io/block-fd0000000000000000000000000000",
    }


def test_a_lease_without_addresses_has_ended() -> None:
    assert stored(LEASE._replace(ips=()), cooling=COOLING).lease is None


def test_a_patch_has_what_differs_and_the_version_that_was_read() -> None:
    before = LEASE._replace(holders=(HOLDER,))
    patch = objects.lease_patch(
        stored(before), before, before._replace(vm_uid="new"), cooling=(), nonce="", pending=(), now=50
    )
    metadata: dict[str, object] = {"resourceVersion": "7", "managedFields": [{}]}
    assert patch == {"metadata": metadata, "spec": {"vmUID": "new"}}
    assert (
        objects.lease_patch(stored(before), before, before, cooling=(), nonce="", pending=(), now=50) == {}
    )


@pytest.mark.parametrize(
    "after",
    [
        LEASE._replace(holders=(SECOND, HOLDER)),
        LEASE._replace(holders=(), since=60),
        LEASE._replace(
            ips=LEASE.ips[:1], mac="", vm_uid="x", source="", release="never", cooldown=0, since=9
        ),
        LEASE._replace(holders=(HOLDER._replace(role="leaving"), HOLDER._replace(container_id="c2"))),
        LEASE._replace(holders=(HOLDER._replace(inode=7, node="n1"),)),
    ],
)
def test_a_patch_makes_the_lease_that_is_wanted(after: Lease) -> None:
    assert patched(LEASE, after).lease == after
    assert patched(after, LEASE).lease == LEASE


def test_the_entry_of_a_holder_is_not_rewritten_for_its_role() -> None:
    after = LEASE._replace(holders=(HOLDER._replace(role="leaving"), HOLDER._replace(container_id="c2")))
    patch = objects.lease_patch(stored(LEASE), LEASE, after, cooling=(), nonce="", pending=(), now=50)
    assert list(patch["status"]["holders"]) == ["c2.eth0"]
    assert patch["status"]["roles"] == {"c1.eth0": "leaving", "c2.eth0": ACTIVE}


def test_a_lease_that_ends_with_a_cooldown_keeps_its_addresses_labels() -> None:
    cooling = (Cooldown(KEY, LEASE.ips[0], "", "", 90, 30),)
    ended = patched(LEASE, None, cooling=cooling)
    assert (ended.lease, ended.cooling, ended.holder_keys) == (None, cooling, {})
    assert set(ended.labels) == {"cnvnet.io/network", "cnvnet.io/block-10-0-0"}


def test_the_last_holder_ends_by_a_patch_that_needs_no_look() -> None:
    document = objects.lease_document(LEASE)
    patch = objects.release_patch("c1.eth0", uid="lease-uid", now=77)
    assert patch["metadata"] == {"uid": "lease-uid", "managedFields": [{}]}
    after = objects.read_lease(merged(document, patch)).lease
    assert after == LEASE._replace(holders=(), since=77)


def test_an_heir_is_active_when_the_active_holder_has_ended_without_a_look() -> None:
    document = objects.lease_document(LEASE._replace(holders=(SECOND, HOLDER)))
    ended = merged(document, objects.release_patch("c1.eth0", uid="", now=77))
    # A table of leases shows no part of a pod that has left.
    assert ended["status"]["roles"] == {"c0.eth0": SECOND.role}
    after = objects.read_lease(ended).lease
    assert after is not None
    assert after.holders == (SECOND._replace(role=ACTIVE),)
    assert after.since == LEASE.since


def test_what_no_agent_has_written_is_refused_naming_object_and_field() -> None:
    document = objects.lease_document(LEASE)
    document["spec"]["ips"] = ["10.0.0.5", "ten"]
    with pytest.raises(InvalidConfig, match=r"VMLease default/vm1-c91950580be49157: spec.ips\[1\]"):
        objects.read_lease(document)


# -- reservations


def test_a_reservation_names_the_lease_or_the_pod() -> None:
    lease = objects.read_reservation(
        objects.reservation_document(KEY, "10.0.0.5", nonce="n", lease_uid="u")
        | {"metadata": {"name": "x", "uid": "r", "resourceVersion": "3"}}
    )
    assert (lease.lease_uid, lease.namespace, lease.pod, lease.nonce) == ("u", "default", None, "n")
    key = LeaseKey("net", "", "c1", "eth0")
    holder = Holder("c1", "eth0", ACTIVE, "/run/netns/c1", 7, "boot", 5, "n1", "ns/p", "pod-uid")
    pod = Lease(
        key, LEASE.ips, "0a:63:00:00:00:01", source="args.cni.ips", cooldown=3, since=5, holders=(holder,)
    )
    documents = [objects.reservation_document(key, str(ip), nonce="n", pod=pod) for ip in LEASE.ips]
    assert {each["metadata"]["labels"][object_names.NAMESPACE_LABEL] for each in documents} == {"ns"}
    assert objects.pod_lease(map(objects.read_reservation, documents)) == pod
