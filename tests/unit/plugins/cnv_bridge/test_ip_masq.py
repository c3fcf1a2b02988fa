"""Which attachments keep an address masqueraded, and for how long."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import Key
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.kernel.nft.tables import Element
from cnvnet.plugins.cnv_bridge.ip_masq import FAMILY, TABLE, TEXT, IpMasq, missing
from tests.fakes.nft import FakeNft

GOLDEN = Path(__file__).parents[3] / "data" / "masquerade.nft"
ADDRESSES: list[IPv4Interface | IPv6Interface] = [IPv4Interface("10.1.2.5/24"), IPv6Interface("fd00::5/64")]
OLD = Key("cnv-bridge", "net", "old-pod", "eth0")
NEW = OLD._replace(container_id="new-pod")
ELEMENTS = [
    "add element inet cnv_masquerade pods4 { 10.1.2.5 : goto beyond_10.1.2.0/24 }",
    "add element inet cnv_masquerade pods6 { fd00::5 : goto beyond_fd00--/64 }",
]


@pytest.fixture
def nft() -> FakeNft:
    return FakeNft()


@pytest.fixture
def masquerade(tmp_path: Path) -> IpMasq:
    return IpMasq(AttachmentFiles(str(tmp_path)), str(tmp_path / "masquerade"))


def left(masquerade: IpMasq) -> list[Path]:
    return list(Path(masquerade.folder).iterdir())


def test_the_table_is_the_golden_one() -> None:
    assert GOLDEN.read_text() == TEXT


def test_an_address_leads_to_the_chain_of_its_subnet(nft: FakeNft, masquerade: IpMasq) -> None:
    masquerade.add(nft, OLD, ADDRESSES)
    assert nft.elements() == ELEMENTS
    assert missing(nft, ADDRESSES) == []
    masquerade.remove(nft, OLD, ADDRESSES)
    assert nft.elements() == []
    assert left(masquerade) == []


def test_a_pods_delete_leaves_the_address_to_the_next_pod_of_the_vm(
    nft: FakeNft, masquerade: IpMasq
) -> None:
    masquerade.add(nft, OLD, ADDRESSES)
    masquerade.add(nft, NEW, ADDRESSES)
    masquerade.remove(nft, OLD, ADDRESSES)
    masquerade.remove(nft, OLD, ADDRESSES)
    assert nft.elements() == ELEMENTS
    masquerade.remove(nft, NEW, ADDRESSES)
    assert nft.elements() == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_an_address_is_masqueraded_while_an_attachment_wants_it(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[str, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    nft, masquerade = FakeNft(), IpMasq(AttachmentFiles(str(folder)), str(folder / "masquerade"))
    wanting: set[str] = set()
    for owner, adds in calls:
        key = OLD._replace(container_id=owner)
        if adds:
            masquerade.add(nft, key, ADDRESSES)
            wanting.add(owner)
        else:
            masquerade.remove(nft, key, ADDRESSES)
            wanting.discard(owner)
        assert nft.elements() == (ELEMENTS if wanting else [])


def test_a_removal_killed_half_way_is_repeated(nft: FakeNft, masquerade: IpMasq) -> None:
    masquerade.add(nft, OLD, ADDRESSES)
    for folder in left(masquerade):
        for marker in folder.iterdir():
            marker.unlink()
    assert nft.elements() == ELEMENTS, "the markers went first, and then came the end"
    masquerade.remove(nft, OLD, ADDRESSES)
    assert nft.elements() == []
    assert left(masquerade) == []


def test_an_addition_killed_half_way_is_removed(nft: FakeNft, masquerade: IpMasq) -> None:
    masquerade.add(nft, OLD, ADDRESSES)
    nft.run("flush ruleset")
    masquerade.remove(nft, OLD, ADDRESSES)
    assert left(masquerade) == []


def test_the_newer_pod_decides_about_the_subnet(nft: FakeNft, masquerade: IpMasq) -> None:
    masquerade.add(nft, OLD, ADDRESSES[:1])
    wider = IPv4Interface("10.1.2.5/16")
    masquerade.add(nft, NEW, [wider])
    assert missing(nft, [wider]) == []
    assert missing(nft, ADDRESSES[:1]) != []


def test_what_was_flushed_is_missing_and_the_next_addition_repairs_it(
    nft: FakeNft, masquerade: IpMasq
) -> None:
    masquerade.add(nft, OLD, ADDRESSES)
    for command in ("flush ruleset", "flush table inet cnv_masquerade"):
        nft.run(command)
        assert [element.set for element in missing(nft, ADDRESSES)] == ["pods4", "pods6"]
        masquerade.add(nft, OLD, ADDRESSES)
        assert missing(nft, ADDRESSES) == []
    nft.run(f"flush chain {FAMILY} {TABLE} beyond_10.1.2.0/24")
    assert [element.set for element in missing(nft, ADDRESSES)] == ["pods4"]


def subnets(nft: FakeNft) -> set[str]:
    return {name for name in nft.chains(FAMILY, TABLE) if name.startswith("beyond_")}


def test_a_subnets_chain_goes_with_its_last_pod(nft: FakeNft, masquerade: IpMasq) -> None:
    one, other = IPv4Interface("10.1.2.5/24"), IPv4Interface("10.1.2.6/24")
    masquerade.add(nft, OLD, [one])
    masquerade.add(nft, NEW, [other])
    masquerade.remove(nft, OLD, [one])
    assert subnets(nft) == {"beyond_10.1.2.0/24"}
    masquerade.remove(nft, NEW, [other])
    assert subnets(nft) == set()
    masquerade.add(nft, OLD, [one])
    assert missing(nft, [one]) == []


def test_the_chain_of_a_subnet_that_an_address_was_in_goes_with_the_older_pod(
    nft: FakeNft, masquerade: IpMasq
) -> None:
    masquerade.add(nft, OLD, ADDRESSES[:1])
    masquerade.add(nft, NEW, [IPv4Interface("10.1.2.5/16")])
    masquerade.remove(nft, OLD, ADDRESSES[:1])
    assert subnets(nft) == {"beyond_10.1.0.0/16"}


def test_gc_takes_the_chains_that_nothing_leads_to(nft: FakeNft, masquerade: IpMasq) -> None:
    masquerade.add(nft, OLD, ADDRESSES)
    # As a version before, or a DEL that was killed, leaves them; and one that is no subnet's.
    for chain in ("beyond_10.9.0.0/16", "beyond_fd99--/64", "else"):
        nft.run(f"add chain {FAMILY} {TABLE} {chain}\nadd rule {FAMILY} {TABLE} {chain} masquerade\n")
    masquerade.gc(nft, "cnv-bridge", "net", [("old-pod", "eth0")])
    assert subnets(nft) == {"beyond_10.1.2.0/24", "beyond_fd00--/64"}
    assert "else" in nft.chains(FAMILY, TABLE)
    assert missing(nft, ADDRESSES) == []
    masquerade.gc(nft, "cnv-bridge", "net", [])
    assert subnets(nft) == set()
    masquerade.gc(nft, "cnv-bridge", "net", [])


class FlushedNft(FakeNft):
    """One whose ruleset another program flushes right before each of some changes."""

    flushes = 0

    def change(self, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None:
        if self.flushes > 0:
            self.flushes -= 1
            self.run("flush ruleset")
        super().change(add=add, delete=delete)


def test_an_addition_during_a_flush_is_made_once_more(masquerade: IpMasq) -> None:
    nft = FlushedNft()
    nft.flushes = 3
    masquerade.add(nft, OLD, ADDRESSES)
    assert nft.flushes == 0
    assert missing(nft, ADDRESSES) == []


def test_an_addition_during_flushes_without_end_may_be_tried_again(masquerade: IpMasq) -> None:
    nft = FlushedNft()
    nft.flushes = 1000
    with pytest.raises(CNIError, match="flushes the node's nftables") as refused:
        masquerade.add(nft, OLD, ADDRESSES)
    assert refused.value.code == TRY_AGAIN_LATER


def test_gc_forgets_the_dead_of_its_own_network_only(nft: FakeNft, masquerade: IpMasq) -> None:
    dead, alive, foreign = (IPv4Interface(f"10.1.2.{n}/24") for n in (5, 6, 7))
    masquerade.add(nft, OLD, [dead])
    masquerade.add(nft, NEW, [alive])
    masquerade.add(nft, OLD._replace(network="other"), [foreign])
    masquerade.gc(nft, "cnv-bridge", "net", [("new-pod", "eth0")])
    assert [element.key for element in missing(nft, [dead, alive, foreign])] == [("10.1.2.5",)]


def test_an_unwritable_folder_is_named_by_add_and_keeps_nothing_from_being_deleted(
    nft: FakeNft, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    masquerade = IpMasq(AttachmentFiles(str(tmp_path / "file")), str(tmp_path / "file" / "masquerade"))
    with pytest.raises(CNIError, match="file") as caught:
        masquerade.add(nft, OLD, ADDRESSES)
    assert caught.value.code == errno.EIO
    IpMasq(AttachmentFiles(str(tmp_path)), str(tmp_path / "masquerade")).add(nft, OLD, ADDRESSES)
    masquerade.remove(nft, OLD, ADDRESSES)
    assert nft.elements() == []
