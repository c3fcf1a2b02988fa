"""The program: its common options, its command groups, and how errors end it."""

from __future__ import annotations

import os
from typing import Any, Final

import click

from cnvnet import VERSION
from cnvnet.attachment import RUNDIR
from cnvnet.cli import attachments as attachments_group
from cnvnet.cli import lease_files, leases, output, status
from cnvnet.cli.place import Place
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.static_ip.config import STATEDIR
from cnvnet.kube import credentials
from cnvnet.vm.subjects import own_lookup

# A file in its place would look like a node without attachments or leases.
_FOLDER: Final = click.Path(file_okay=False)


class _Group(click.Group):
    """A group whose commands raise CNIError and OSError: one line on stderr, and exit code 2 or 3."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 -- as click declares it
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `cnvctl leases list | head`: click ends quietly
        except UnicodeEncodeError as e:
            raise output.CommandRefused(f'"{e.object}" is no text in UTF-8') from e
        except (CNIError, OSError) as e:
            raise output.failure(e) from e


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--rundir",
    type=_FOLDER,
    default=RUNDIR,
    envvar="CNVNET_RUNDIR",
    show_default=True,
    show_envvar=True,
    help="Where the plugins keep their records and the agent its socket.",
)
@click.option(
    "--statedir",
    type=_FOLDER,
    default=STATEDIR,
    envvar="CNVNET_STATEDIR",
    show_default=True,
    show_envvar=True,
    help="Where static-ip keeps leases.db, unless a network's dataDir says otherwise.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False),
    default="",
    envvar=credentials.VARIABLE,
    show_envvar=True,
    help="Credentials for the Kubernetes API, which has the leases of networks with store kubernetes.  "
    f"[default: a pod's own, else {credentials.DEFAULT_KUBECONFIG}]",
)
@click.version_option(VERSION, prog_name="cnvctl")
@click.pass_context
def command(context: click.Context, rundir: str, statedir: str, kubeconfig: str) -> None:
    """Shows and changes what cnvnet keeps on this node, and the leases of a cluster.

    Works from the node's files and the kernel: neither Kubernetes nor a running agent is needed. With
    credentials for the Kubernetes API it has the cluster's leases as well, on a node or anywhere else.

    Exit codes: 0 fine, 1 something is wrong on the node, 2 asked wrongly or refused, 3 cannot be read.
    """
    env = {**os.environ, credentials.VARIABLE: kubeconfig}
    context.obj = Place(
        os.path.abspath(rundir or RUNDIR), os.path.abspath(statedir or STATEDIR), env, own_lookup(env)
    )


leases.group.add_command(lease_files.export)
leases.group.add_command(lease_files.import_)
command.add_command(leases.group)
command.add_command(attachments_group.group)
command.add_command(status.command)
