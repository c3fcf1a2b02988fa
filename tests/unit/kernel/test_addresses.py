"""Addresses that are made from other ones."""

from __future__ import annotations

import pytest

from cnvnet.kernel.addresses import link_local


@pytest.mark.parametrize(
    ("mac", "address"),
    [("3456789abcde", "fe80::3656:78ff:fe9a:bcde"), ("020000000000", "fe80::ff:fe00:0")],
    ids=["any", "KubeVirt's bridge"],
)
def test_the_link_local_address_is_formed_as_rfc_4291_says(mac: str, address: str) -> None:
    assert str(link_local(bytes.fromhex(mac))) == address
