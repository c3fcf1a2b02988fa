"""Whether somebody on this node will serve the guests."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.guest import provider


@pytest.mark.parametrize("variable", ["CNVNET_RUNDIR", "CNVNET_AGENT"])
def test_an_agent_that_listens_will_serve(tmp_path: Path, variable: str) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        provider.ensure({variable: str(tmp_path if variable == "CNVNET_RUNDIR" else path)})


def test_without_one_the_error_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        CNIError, match=r"^guestServices: no agent at .*/agent.sock \(no such file"
    ) as caught:
        provider.ensure({"CNVNET_RUNDIR": str(tmp_path), "CNVNET_AGENT": "off"})
    assert caught.value.code == 50
    assert "start cnvnet-agent" in caught.value.msg


def test_an_agent_that_died_does_not_serve(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))
    with pytest.raises(CNIError, match="connection refused"):
        provider.ensure({"CNVNET_RUNDIR": str(tmp_path)})


def test_a_path_too_long_for_a_socket_is_no_agent() -> None:
    with pytest.raises(CNIError, match="no agent at"):
        provider.ensure({"CNVNET_RUNDIR": "/" + "x" * 200})
