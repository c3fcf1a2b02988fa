from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from cnvnet.guest import resolvconf

POD = """\
# written by the kubelet
search default.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.10
nameserver fd00:10:96::a
options ndots:5
"""


def test_a_pods_file_gives_its_servers_and_domains() -> None:
    found = resolvconf.parse(POD)
    assert found.nameservers == (ip_address("10.96.0.10"), ip_address("fd00:10:96::a"))
    assert found.search == ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")


def test_odd_entries_are_skipped() -> None:
    text = (
        "nameserver\nnameserver DHCP\nnameserver 10.0.0.300\nsearch DHCP 10.0.0.1 Corp.Example. a_b -x\nodd"
    )
    assert resolvconf.parse(text) == ((), ("corp.example", "a_b"))


def test_servers_that_only_the_pod_can_reach_are_skipped() -> None:
    odd = "127.0.0.53 ::1 fe80::1%eth0 fe80::1 0.0.0.0 :: 224.0.0.251 255.255.255.255"
    text = "".join(f"nameserver {server}\n" for server in odd.split())
    assert resolvconf.parse(text).nameservers == ()


def test_of_a_tenants_many_servers_the_first_ones_count() -> None:
    many = "".join(f"nameserver fd00::{number:x}\n" for number in range(1, 4200))
    found = resolvconf.parse(many).nameservers
    assert found[:2] == (ip_address("fd00::1"), ip_address("fd00::2"))
    assert len(found) == 16


def test_a_node_local_cache_is_kept() -> None:
    assert resolvconf.parse("nameserver 169.254.20.10 ; cache").nameservers == (ip_address("169.254.20.10"),)


def test_the_last_search_line_counts() -> None:
    assert resolvconf.parse("search a.example\ndomain b.example c.example").search == ("b.example",)


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    resolvconf.parse(text)
    resolvconf.parse(f"nameserver {text}\nsearch {text}")
