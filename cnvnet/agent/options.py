"""What the agent's command line asks for, as a value, and how its options are declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from cnvnet.ipam.store.kubernetes_networks import NAMESPACE
from cnvnet.resident.endpoint import parse_address

_Command = Callable[..., None]


class Options(NamedTuple):
    """The options of the command line."""

    rundir: str
    # The path of the socket.
    socket: str
    # HOST:PORT; "" for no endpoint.
    metrics_address: str
    # Seconds; 0: never.
    idle_exit: float
    # Where the leases are of calls that name no folder.
    statedir: str
    # The runtime's folder of plugins, for an agent that puts the launchers there; "": it does not.
    launchers_into: str = ""
    # A file; "" for what else `cnvnet.kube.credentials.find` finds.
    kubeconfig: str = ""
    # Of this node in Kubernetes, for calls that do not say it.
    node_name: str = ""
    # Who may use a network without IPNetwork, one of kubernetes_networks.NEW_NETWORKS.
    new_networks: str = NAMESPACE


def option(name: str, text: str, variable: str = "", **more: object) -> Callable[[_Command], _Command]:
    """An option that a variable of the environment may give as well."""
    variable = variable or f"CNVNET_AGENT_{name.upper().replace('-', '_')}"
    attributes: dict[str, Any] = {"show_envvar": True, "show_default": True, **more}
    return click.option(f"--{name}", help=text, envvar=variable, **attributes)


def checked_address(_: click.Context, __: click.Parameter, value: str) -> str:
    """The address of an endpoint; "" for none. BadParameter."""
    # click takes a variable that is empty for one that is not there.
    if value == "off":
        return ""
    if value:
        try:
            parse_address(value)
        except ValueError as e:
            raise click.BadParameter(str(e)) from e
    return value
