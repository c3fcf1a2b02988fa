"""CNI calls to a running agent: by the launchers, and as a launcher makes them but from this process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cnvnet.cni.skel import Response
from cnvnet.launch.protocol import ForwardedCall, decode_response, encode_call, forwarded, framed
from tests.functional.agent.own_agent import received
from tests.harness import Node, Outcome, Sandbox, installed, launchers

CONFIG: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br0"}
# Through whichever agent there is, by the C launcher or by the Python one.
AUTO = {"CNVNET_AGENT": "auto"}


def launcher(kind: str, name: str = "cnv-bridge") -> str:
    return str(launchers() / name) if kind == "c" else installed(name)


def cni(node: Node, command: str, pod: Sandbox | str, kind: str = "c", **options: Any) -> Outcome:
    """A call through the agent of a node. `config` replaces keys of CONFIG; the rest is Node.cni's."""
    config = {**CONFIG, **options.pop("config", {})}
    if config["type"] in ("masquerade", "vm-bridge"):
        del config["bridge"]
    env = {**AUTO, **options.pop("env", {})}
    return node.cni(launcher(kind, str(config["type"])), command, config, pod, env=env, **options)


def start(node: Node, command: str, pod: Sandbox, config: Mapping[str, Any], **env: str) -> Started:
    """The same, and the launcher still runs."""
    environment = node.environment(
        CNI_COMMAND=command,
        CNI_NETNS=pod.netns,
        **{"CNI_CONTAINERID": "dummy-0", "CNI_IFNAME": "eth0", "CNI_PATH": "/nowhere", **AUTO, **env},
    )
    process = node.popen(
        launcher("c"), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({**CONFIG, **config}))
    process.stdin.close()
    process.stdin = None
    return Started(process)


class Started:
    """A launcher that waits for its answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def outcome(self) -> Outcome:
        stdout, stderr = self.process.communicate(timeout=60)
        return Outcome(self.process.returncode, stdout, stderr)


class Ipam:
    """A foreign address manager: calls are lines in `log`, and one command waits while there is a `hold`."""

    def __init__(self, folder: Path, name: str = "slow-ipam", *, waits: str = "ADD") -> None:
        self.name = name
        self.folder = folder / "bin"
        self.folder.mkdir(exist_ok=True)
        self.hold = self.folder / f"{name}.hold"
        self.log = self.folder / f"{name}.log"
        self.log.touch()
        program = self.folder / name
        program.write_text(
            "#!/bin/sh\n"
            f'echo "$CNI_COMMAND $CNI_CONTAINERID begin" >>{self.log}\n'
            f'while [ "$CNI_COMMAND" = {waits} ] && [ -e {self.hold} ]; do sleep 0.3; done\n'
            f'echo "$CNI_COMMAND $CNI_CONTAINERID end" >>{self.log}\n'
            '[ "$CNI_COMMAND" = ADD ] || exit 0\n'
            """echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/16"}]}'\n"""
        )
        program.chmod(0o755)

    @property
    def keys(self) -> dict[str, Any]:
        return {"ipam": {"type": self.name}}

    @property
    def path(self) -> dict[str, str]:
        return {"CNI_PATH": str(self.folder)}

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


class Wire:
    """A launcher inside this process: one connection for each call, the node's namespace for its own."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._socket = str(node.rundir / "agent.sock")
        self._opened = ExitStack()
        self._fixed = [
            self._open(node.netns, os.O_RDONLY),
            self._open("/proc/self/ns/mnt", os.O_RDONLY),
            self._open("/", os.O_PATH),
        ]

    def close(self) -> None:
        self._opened.close()

    def call(self, name: str, config: Mapping[str, Any], netns: str, **env: str) -> Response | None:
        """None for `unsupported`."""
        everything = self._node.environment(CNI_NETNS=netns, **env)
        request = framed(
            encode_call(
                ForwardedCall(
                    name,
                    forwarded(everything),
                    json.dumps(config).encode(),
                    ("netns", "self", "mnt", "root"),
                )
            )
        )
        fd = os.open(netns, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(self._socket)
                socket.send_fds(connection, [request[:1]], [fd, *self._fixed])
                connection.sendall(request[1:])
                return decode_response(received(connection)[4:])
        finally:
            os.close(fd)

    def _open(self, path: str, flags: int) -> int:
        fd = os.open(path, flags)
        self._opened.callback(os.close, fd)
        return fd


def without_python(folder: Path) -> str:
    """The C launcher where it finds no executable to run in the agent's place."""
    alone = folder / "alone/cnv-bridge"
    alone.parent.mkdir()
    shutil.copy(launcher("c"), alone)
    return str(alone)
