"""What is restored of the plugin's tables, and what is not."""

from __future__ import annotations

import os
from collections.abc import Generator
from configparser import ConfigParser
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDING, DELETING, Key, LockedRecord, Record
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.nft.reconcile import TableReconciler
from cnvnet.kernel.nft.tables import NftError
from cnvnet.plugins.cnv_bridge import guards, ip_masq
from cnvnet.plugins.cnv_bridge.reconcile import (
    PROGRAMS,
    GuardsTable,
    KnownPorts,
    MasqueradeTable,
    ReconcileResult,
)
from cnvnet.plugins.cnv_bridge.state import Context
from tests.fakes.nft import FakeNft
from tests.guard_versions import NEWER, OLDER, text_of
from tests.unit.plugins.cnv_bridge.fake_node import FULL, World

KEY = Key("cnv-bridge", "net1", "cid-1", "eth0")
NOTHING = ReconcileResult()


class Node(World):
    """A World with an attachment and its two tables."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, **FULL)
        self.result = self.add()
        tools = Context.of(str(self.rundir), self.kernel)
        ports = KnownPorts(tools.attachments)
        self.guards, self.masquerade = GuardsTable(tools, ports), MasqueradeTable(tools, ports)
        self.before = self.elements

    @property
    def nft(self) -> FakeNft:
        nft = self.kernel.nft_of(self.host)
        assert isinstance(nft, FakeNft)
        return nft

    def rewrite(self, **changes: Any) -> None:
        """The record as another call would have left it."""
        with AttachmentFiles(str(self.rundir)).locked(KEY) as slot:
            record = slot.read()
            assert isinstance(record, Record)
            slot.write(record._replace(**changes))

    def reconcile(self) -> tuple[ReconcileResult, ReconcileResult]:
        return self.guards.reconcile(), self.masquerade.reconcile()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_where_nothing_is_missing_nothing_is_done(node: Node) -> None:
    assert node.reconcile() == (NOTHING, NOTHING)
    assert node.elements == node.before


def test_everything_is_restored(node: Node) -> None:
    node.nft.run("flush ruleset")
    of_guards, of_masquerade = node.reconcile()
    assert of_guards == ReconcileResult(rules=True, elements=sum("cnv_bridge" in e for e in node.before))
    assert of_masquerade == ReconcileResult(rules=True, elements=2)
    assert node.elements == node.before
    node.check(node.result)
    assert node.reconcile() == (NOTHING, NOTHING)


def test_one_element_is_restored(node: Node) -> None:
    lost = guards.elements(
        node.result.interfaces[1].name, node.result.interfaces[2].mac, [], guards.Guards(True)
    )[:1]
    node.nft.change(delete=lost)
    assert node.reconcile() == (ReconcileResult(elements=1), NOTHING)
    assert node.elements == node.before


@pytest.mark.parametrize(
    "damage",
    [
        "add rule bridge cnv_bridge mac_source accept",
        "flush chain bridge cnv_bridge mac_source",
        "add table bridge cnv_bridge { flags dormant; }",
    ],
)
def test_rules_that_are_not_as_they_were_loaded_are_loaded_again(node: Node, damage: str) -> None:
    node.nft.run(damage)
    assert not guards.loaded(node.nft)
    assert node.reconcile() == (ReconcileResult(rules=True), NOTHING)
    assert guards.loaded(node.nft)
    assert node.elements == node.before


def test_what_was_exchanged_shows_once_it_has_been_seen(node: Node) -> None:
    node.reconcile()
    chain = node.nft.tables["bridge", "cnv_bridge"].chains["mac_source"]
    chain[0] = chain[0]._replace(comment="another program's")
    assert guards.loaded(node.nft)
    assert node.reconcile() == (ReconcileResult(rules=True), NOTHING)
    assert node.reconcile() == (NOTHING, NOTHING)


def test_a_record_is_read_once_until_it_changes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def content(path: str) -> bytes:
        read.append(path)
        return Path(path).read_bytes()

    monkeypatch.setattr("cnvnet.attachment.files._content", content)
    node.reconcile()
    node.nft.run("flush ruleset")
    node.reconcile()
    assert len(read) == 1
    node.rewrite(state=DELETING)
    node.nft.run("flush ruleset")
    node.reconcile()
    assert len(read) == 2
    assert not any("cnv_bridge" in element for element in node.elements)


def test_of_a_node_without_attachments_nothing_is_loaded(node: Node) -> None:
    node.delete()
    node.nft.run("flush ruleset")
    assert node.reconcile() == (NOTHING, NOTHING)
    assert node.nft.tables == {}


@pytest.mark.parametrize("state", [ADDING, DELETING])
def test_what_a_killed_call_has_left_is_not_restored(node: Node, state: str) -> None:
    node.rewrite(state=state)
    node.nft.run("flush ruleset")
    found = node.guards.reconcile()
    assert (found.elements, found.busy) == (0, False)
    assert not any("cnv_bridge" in element for element in node.elements)


def test_of_an_earlier_boot_nothing_is_restored(node: Node) -> None:
    node.rewrite(boot_id="another")
    assert boot_id() != "another"
    node.nft.run("flush ruleset")
    assert node.reconcile() == (NOTHING, NOTHING)
    assert node.elements == []


def test_for_a_port_that_has_gone_nothing_is_restored(node: Node) -> None:
    name = node.result.interfaces[1].name
    [port] = [link for link in node.host.links.values() if link.name == name]
    port.name = "renamed"
    node.nft.run("flush ruleset")
    assert node.guards.reconcile() == ReconcileResult(rules=True)


def test_while_a_call_is_at_work_it_is_left_to_the_next_look(node: Node) -> None:
    node.nft.run("flush ruleset")
    with AttachmentFiles(str(node.rundir)).locked(KEY):
        assert node.guards.reconcile() == ReconcileResult(rules=True, busy=True)
    assert node.guards.reconcile().elements > 0
    node.masquerade.reconcile()
    assert node.elements == node.before


def test_an_attachment_deleted_between_two_looks_at_its_record_is_not_restored(node: Node) -> None:
    class Late(AttachmentFiles):
        """The attachment is deleted after its record was read, and before it is locked."""

        @contextmanager
        def locked(
            self, key: Key, *, wait_seconds: float = 10.0, optional: bool = False
        ) -> Generator[LockedRecord]:
            node.delete()
            with super().locked(key, wait_seconds=wait_seconds, optional=optional) as slot:
                yield slot

    tools = Context.of(str(node.rundir), node.kernel)
    late = Late(str(node.rundir))
    table = GuardsTable(tools._replace(attachments=late), KnownPorts(late))
    node.nft.run("flush ruleset")
    assert table.reconcile() == ReconcileResult(rules=True)
    node.assert_nothing_of_an_attachment()


def test_an_address_that_a_del_has_given_up_stays_away(node: Node) -> None:
    """Its record may still say that it is added: a reader is never quite in time."""
    ip_masq = Context.of(str(node.rundir), node.kernel).masquerade
    addresses = [ip.address for ip in node.ipam.result.ips]
    ip_masq.remove(node.nft, KEY, addresses)
    assert node.masquerade.reconcile() == NOTHING
    assert not any("cnv_masquerade" in element for element in node.elements)


def test_the_newest_attachment_decides_about_the_subnet(node: Node) -> None:
    tools = Context.of(str(node.rundir), node.kernel)
    keys = [KEY._replace(container_id=f"next-{length}") for length in (24, 16, 8)]
    for key in keys:
        length = key.container_id.removeprefix("next-")
        tools.masquerade.add(node.nft, key, [ip_interface(f"10.0.0.2/{length}")])
    for marker in (node.rundir / "masquerade/10.0.0.2").iterdir():
        when = 2**31 if os.readlink(marker).endswith("/16") else 2**30
        os.utime(marker, (when, when), follow_symlinks=False)
    node.nft.run("flush ruleset")
    keeper = TableReconciler(ip_masq.FAMILY, ip_masq.TABLE, ip_masq.VERSION, ip_masq.TEXT)

    def repair(needed: bool) -> bool:
        return keeper.repair(node.nft, needed=needed)

    assert tools.masquerade.reconcile(node.nft, keys, repair) == (True, 1)
    assert any("10.0.0.2 : goto beyond_10.0.0.0/16" in element for element in node.nft.elements())
    # As long as the address is in the map at all, the attachment that put it there decides.
    node.nft.run("flush chain inet cnv_masquerade beyond_10.0.0.0/16")
    assert tools.masquerade.reconcile(node.nft, keys, repair) == (True, 0)


def test_an_older_version_is_brought_up_to_date_and_keeps_the_elements(node: Node) -> None:
    node.nft.run(
        "".join(f"{verb} chain bridge cnv_bridge {guards.VERSION}\n" for verb in ("flush", "delete"))
    )
    node.nft.run(text_of(OLDER))
    assert node.guards.reconcile() == ReconcileResult(rules=True)
    assert node.elements == node.before
    assert node.nft.chain("bridge", "cnv_bridge", OLDER) is None
    assert guards.loaded(node.nft)


def test_an_older_version_that_no_attachment_needs_is_brought_up_to_date_too(node: Node) -> None:
    node.delete()
    node.nft.run("flush ruleset")
    node.nft.run(text_of(OLDER))
    assert node.guards.reconcile() == ReconcileResult(rules=True)
    assert guards.loaded(node.nft)


def test_a_newer_version_stays_and_gets_its_elements(node: Node) -> None:
    node.nft.ensure(guards.FAMILY, guards.TABLE, NEWER, text_of(NEWER))
    assert node.guards.reconcile() == ReconcileResult(newer=NEWER)
    node.nft.run(f"flush chain bridge cnv_bridge {NEWER}")
    with pytest.raises(NftError, match="a newer program's"):
        node.guards.reconcile()


def test_a_record_that_cannot_be_read_is_passed_over(node: Node) -> None:
    (node.rundir / "attachments" / f"cnv-bridge-{'0' * 32}.json").write_text("{")
    node.nft.run("flush ruleset")
    node.reconcile()
    assert node.elements == node.before


def test_status_is_about_the_next_add_not_about_ports_that_lost_their_guards(node: Node) -> None:
    node.nft.run("flush ruleset")
    node.plugin.status(node.request())


def test_what_the_plugin_changes_under_any_of_its_names_is_its_own() -> None:
    setup = ConfigParser()
    setup.read(Path(__file__).parents[4] / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")
    names = {script.partition(" = ")[0] for script in scripts if script.endswith("executables:cnv_bridge")}
    assert names
    assert names <= set(PROGRAMS)
