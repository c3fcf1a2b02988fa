"""An address manager that does what a test tells it to, and notes every call."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness import Node, cni_path_of_all

# A shell script, so that one call costs milliseconds. It notes its command, the arguments and the whole
# configuration, and answers with the file named after the command, if there is one.
SCRIPT = """#!/bin/sh
read -r folder < "${0%/*}/folder"
call="$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS"
printf '%s %s\\n' "$call" "$(cat)" >> "$folder/calls"
[ -e "$folder/$CNI_COMMAND.sh" ] && . "$folder/$CNI_COMMAND.sh"
[ -e "$folder/$CNI_COMMAND.json" ] && cat "$folder/$CNI_COMMAND.json"
[ -e "$folder/$CNI_COMMAND.exit" ] && exit "$(cat "$folder/$CNI_COMMAND.exit")"
exit 0
"""


class Call(NamedTuple):
    """One call as the address manager saw it."""

    command: str
    container_id: str
    ifname: str
    netns: str
    config: dict[str, Any]


class ScriptedIpam:
    """The type `scripted`, found through `cni_path`. It gives 10.1.2.9/24 unless configured otherwise."""

    type = "scripted"

    def __init__(self, node: Node) -> None:
        self.folder = node.folder / "scripted-ipam"
        self.folder.mkdir()
        program = self.folder / self.type
        program.write_text(SCRIPT)
        program.chmod(0o755)
        (self.folder / "folder").write_text(f"{self.folder}\n")
        self.answers(
            "ADD", {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.9/24", "gateway": "10.1.2.1"}]}
        )

    @property
    def config(self) -> dict[str, Any]:
        return {"type": self.type}

    @property
    def cni_path(self) -> str:
        return f"{self.folder}:{cni_path_of_all()}"

    def answers(self, command: str, document: dict[str, Any] | None, code: int = 0) -> None:
        """What the next calls of `command` print and exit with."""
        text = "" if document is None else json.dumps(document)
        (self.folder / f"{command}.json").write_text(text)
        (self.folder / f"{command}.exit").write_text(str(code))

    def refuses(self, command: str, code: int, msg: str, details: str = "") -> None:
        self.answers(command, {"cniVersion": "1.0.0", "code": code, "msg": msg, "details": details}, 1)

    def runs(self, command: str, *argv: str | Path) -> None:
        """A command that the next calls of `command` run before they answer."""
        (self.folder / f"{command}.sh").write_text(shlex.join(str(part) for part in argv) + "\n")

    @property
    def calls(self) -> list[Call]:
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [_call(line) for line in lines]

    @property
    def commands(self) -> list[str]:
        return [call.command for call in self.calls]


def _call(line: str) -> Call:
    command, container_id, ifname, netns, config = line.split(" ", 4)
    return Call(command, container_id, ifname, netns, json.loads(config))
