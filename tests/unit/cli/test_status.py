"""What each part of the screen says, and the exit code that it calls for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cnvnet import VERSION
from cnvnet.cli.agent import AgentStatus
from cnvnet.cli.launchers import Installed
from cnvnet.cli.main import command
from cnvnet.cli.status import (
    agent_part,
    attachment_parts,
    dispute_parts,
    drops_part,
    guards_part,
    launcher_part,
    versions,
)
from cnvnet.cli.survey import AttachmentView, Survey
from cnvnet.ipam.store.holds import HELD, Hold
from cnvnet.kernel.nft.tables import Element
from cnvnet.plugins.cnv_bridge.observation import UP, ObservedPort, ObservedTable
from tests.unit.ipam.store.conformance import LEASE

ELEMENT = Element("bridge", "cnv_bridge", "macs", ("ifname", "ether_addr"), ("veth0", "02:00:00:00:00:01"))
GUARDED = ObservedPort("veth0", "02:00:00:00:00:01", UP, "br0", ("macspoofchk",), ())


def attachment(port: ObservedPort | None = None, *problems: str) -> AttachmentView:
    return AttachmentView((), None, port, True, "", problems)


@pytest.mark.parametrize(
    ("agent", "unserved", "text", "code"),
    [
        (AgentStatus(version=VERSION, served=3), 0, f"ok, {VERSION}, guests served: 3, waiting: 0", 0),
        (
            AgentStatus(version=VERSION, served=3, waiting=1),
            0,
            f"ok, {VERSION}, guests served: 3, waiting: 1",
            1,
        ),
        (
            AgentStatus(version=VERSION, loop=False),
            0,
            f"{VERSION}, its packet loop does not run: see its log",
            1,
        ),
        (AgentStatus(version="0.0.9"), 0, "version 0.0.9 still runs: systemctl restart cnvnet-agent", 1),
        (AgentStatus(), 0, "an older version still runs: systemctl restart cnvnet-agent", 1),
        (AgentStatus(absent="/s: refused"), 0, "absent (/s: refused)", 0),
        (
            AgentStatus(absent="/s: timed out", stuck=True),
            0,
            "does not answer (/s: timed out): see its log; systemctl restart cnvnet-agent",
            1,
        ),
        (
            AgentStatus(absent="/s: refused"),
            2,
            "absent (/s: refused), guests that wait for it: 2 (systemctl start cnvnet-agent)",
            1,
        ),
    ],
)
def test_an_agent_is_missed_by_guests_only(agent: AgentStatus, unserved: int, text: str, code: int) -> None:
    assert agent_part(agent, unserved)[1:3] == (text, code)


def test_attachments_that_are_wrong_are_counted() -> None:
    fine, wrong = attachment(), attachment(None, "the port veth0 is missing")
    assert [part[1:3] for part in attachment_parts(Survey((fine,), (), None))] == [("1", 0)]
    (part,) = attachment_parts(Survey((fine, wrong), (), None))
    assert part[1:3] == ("2, 1 not as ADD left them: cnvctl attachments list", 1)


def test_disputes_are_shown_where_there_are_some() -> None:
    assert list(dispute_parts(Survey((), (), None))) == []
    fenced = Hold(HELD, "c1", "eth0", LEASE, dispute="10.0.0.5 is VM default/db's, too", fenced=True)
    (part,) = dispute_parts(Survey((), (), None, (fenced, fenced._replace(fenced=False))))
    text = "interfaces with another one's addresses: 1 fenced, 1 not, as the older claim"
    assert part[1:3] == (f"{text}: cnvctl attachments list", 1)
    assert part.facts["reasons"][0] == "10.0.0.5 is VM default/db's, too"


def test_records_that_cannot_be_read_are_named() -> None:
    parts = list(attachment_parts(Survey((), ("record x: not a record", "leases.db: damaged"), None)))
    assert parts[1][:3] == ("unreadable", "record x: not a record; leases.db: damaged", 3)


@pytest.mark.parametrize(
    ("ports", "table", "text", "code"),
    [
        ([None], None, "no port has any", 0),
        ([GUARDED, None], ObservedTable(True, ""), "ok, ports: 1", 0),
        (
            [GUARDED],
            ObservedTable(True, "guard_v9"),
            "ok, ports: 1, as a newer version does it (guard_v9)",
            0,
        ),
        (
            [GUARDED, GUARDED._replace(unguarded=(ELEMENT,))],
            ObservedTable(True, ""),
            "1 of 2 ports lack some: cnvctl attachments list",
            1,
        ),
    ],
)
def test_guards_stand_or_not(
    ports: list[ObservedPort | None], table: ObservedTable | None, text: str, code: int
) -> None:
    taken = Survey(tuple(map(attachment, ports)), (), table)
    assert guards_part(taken)[1:3] == (text, code)


def test_a_table_that_is_not_whole_guards_nothing() -> None:
    part = guards_part(Survey((attachment(GUARDED), attachment(GUARDED)), (), ObservedTable(False, "")))
    assert part.text.startswith("none of 2 ports is guarded: table bridge cnv_bridge is not whole")
    assert part.code == 1


@pytest.mark.parametrize(
    ("dropped", "text"),
    [
        ({}, "none"),
        ({"snap": 0}, "none"),
        ({"dhcp_server": 2, "snap": 0, "spoofed_mac": 17}, "spoofed_mac 17, dhcp_server 2"),
    ],
)
def test_drops_are_named_most_of_them_first(dropped: dict[str, int], text: str) -> None:
    assert drops_part(dropped) == ("drops", text, 0, {"packets": dropped})


def test_versions_stand_beside_each_other() -> None:
    nothing = Installed("/opt/cni/bin", {})
    assert versions(AgentStatus(absent="no"), nothing) == VERSION
    installed = Installed("/opt/cni/bin", {"cnv-bridge": "0.0.9", "masquerade": VERSION})
    running = versions(AgentStatus(version=VERSION), installed)
    assert running == f"{VERSION} (agent {VERSION}, launcher 0.0.9, {VERSION})"
    assert versions(AgentStatus(), nothing) == f"{VERSION} (agent older)"
    part = launcher_part(installed)
    assert part.code == 1
    assert part.facts == {"folder": "/opt/cni/bin", "versions": installed.versions}


def test_a_node_without_anything_is_fine(tmp_path: Path) -> None:
    args = ["--rundir", str(tmp_path / "run"), "--statedir", str(tmp_path / "state"), "status"]
    args.append(f"--cni-bin={tmp_path}/bin")
    done = CliRunner().invoke(command, args, env={"CNVNET_AGENT": None})
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1:7] == [
        f"cnvnet       {VERSION}",
        f"agent        absent ({tmp_path}/run/agent.sock: no such file or directory)",
        f"launcher     none in {tmp_path}/bin (--cni-bin says where else)",
        "attachments  0",
        "guards       no port has any",
        "drops        none",
    ]
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "state").exists()


def test_records_that_cannot_be_listed_are_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "attachments").symlink_to("attachments")
    done = CliRunner().invoke(command, ["--rundir", str(tmp_path), "status", "-o", "json"])
    assert done.exit_code == 3
    document = json.loads(done.stdout)
    reason = f"{tmp_path}/attachments: too many levels of symbolic links"
    assert document["attachments"] == {"state": "unreadable", "text": reason}
    assert document["agent"]["state"] == "ok"
