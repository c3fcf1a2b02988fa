from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.guest import domains
from tests.unit.guest import scapy_packets

labels = st.from_regex(r"[a-z][a-z0-9]{0,62}", fullmatch=True)
domain_names = st.builds(".".join, st.lists(labels, min_size=1, max_size=6))
search_lists = st.lists(
    domain_names.filter(lambda name: domains.cleaned(name) == name), max_size=8, unique=True
)


@given(search_lists)
def test_what_is_compressed_is_what_scapy_reads(search: list[str]) -> None:
    assert scapy_packets.names(domains.compress(search)) == search


@given(search_lists)
def test_what_is_not_compressed_is_what_scapy_reads(search: list[str]) -> None:
    assert scapy_packets.names(domains.encode_list(search)) == search


def test_a_pods_search_list_says_each_tail_once() -> None:
    data = domains.compress(("default.svc.cluster.local", "svc.cluster.local", "cluster.local"))
    assert data == b"\x07default\x03svc\x07cluster\x05local\0\xc0\x08\xc0\x0c"


def test_no_pointer_leads_beyond_what_its_fourteen_bits_can_say() -> None:
    search = [f"{index:0>60}.{'a' * 60}{index % 10}.example" for index in range(400)]
    assert scapy_packets.names(domains.compress(search)) == search


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("cluster.local", "cluster.local"),
        ("Cluster.LOCAL.", "cluster.local"),
        ("_msdcs.corp.example", "_msdcs.corp.example"),
        ("lan", "lan"),
        ("3com.example", "3com.example"),
        ("DHCP", ""),
        ("dhcp", ""),
        ("10.0.0.1", ""),
        ("fd00::1", ""),
        ("a" * 64 + ".example", ""),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 60] * 5), ""),
        ("a..b", ""),
        ("-a.example", ""),
        ("a-.example", ""),
        ("bücher.example", ""),
        ("a b", ""),
        ("*.example", ""),
        (".", ""),
        ("", ""),
    ],
)
def test_names_that_no_guest_could_use_are_left_out(given: str, cleaned: str) -> None:
    assert domains.cleaned(given) == cleaned


@given(st.text(max_size=300))
def test_whatever_is_let_through_can_be_encoded(text: str) -> None:
    name = domains.cleaned(text)
    if name:
        assert scapy_packets.names(domains.encode(name)) == [name]
        assert len(domains.encode(name)) <= 255


def test_a_list_keeps_its_order_and_loses_its_doubles() -> None:
    assert domains.cleaned_list(["b.example", "DHCP", "A.example", "b.example."]) == (
        "b.example",
        "a.example",
    )


def test_a_list_has_no_more_domains_than_a_pod_may_have() -> None:
    assert len(domains.cleaned_list(f"{index}.example" for index in range(100))) == 32


def test_the_longest_domain_stands_for_all() -> None:
    assert domains.main_domain(("local", "default.svc.cluster.local", "svc.cluster.local")) == (
        "default.svc.cluster.local"
    )
    assert domains.main_domain(()) == ""
