"""The program: its options, its parts put together, its end."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from types import FrameType
from typing import Final, NamedTuple

import click

from cnvnet import VERSION, attachments
from cnvnet.agent import listener, log, plugins, requests
from cnvnet.agent.calls import Calls
from cnvnet.agent.foreman import Foreman
from cnvnet.agent.guests import Guests
from cnvnet.agent.listener import Listener
from cnvnet.agent.loop_process import PacketLoop
from cnvnet.agent.metrics import Endpoint, Metrics, parse_address
from cnvnet.agent.pod_dns import PodDns
from cnvnet.agent.server import Server
from cnvnet.agent.upkeep import Upkeep
from cnvnet.agent.watch import Watch
from cnvnet.kernel.resident import ResidentKernel
from cnvnet.plugins.cnv_bridge import restoration

# Seconds between looks at whether there is a reason to end.
_LOOK: Final = 1.0
# Each call that waits has five, and 4,096 may; systemd's unit says the same.
_DESCRIPTORS: Final = 65536
# An idle one has 90, and each call that runs may need ten.
_FEWEST: Final = 1024


class Options(NamedTuple):
    """`idle_exit` in seconds, 0 is never; `metrics_address` "" is no endpoint."""

    rundir: str
    socket: str
    metrics_address: str
    idle_exit: float


class Agent:
    """The parts. `run` is over when it was told to stop or has been idle for long enough."""

    def __init__(self, options: Options, door: Listener) -> None:
        self._options = options
        self._door = door
        # A signal's handler takes no lock: the thread that it interrupts may hold it.
        self._told = os.eventfd(0, os.EFD_CLOEXEC)
        self._loop = PacketLoop(self._wake)
        self._dns = PodDns(self._wake)
        self._guests = Guests(options.rundir, self._loop, self._dns)
        self._foreman = Foreman()
        self._watch = Watch(options.rundir, self._guests, self._loop, self._dns, self._foreman)
        self._metrics = Metrics(self._guests, self._loop)
        find = requests.of_guests(self._guests, self._loop)
        self._kernel = ResidentKernel(log.error)
        self._calls = Calls(
            options.rundir,
            plugins.load_all(self._kernel),
            requests.in_process(find),
            self._metrics.observe_call,
        )
        self._server = Server(
            door.socket,
            find,
            self._metrics.observe,
            self._foreman,
            self._calls.take,
            self._calls.resume,
        )
        tables = restoration.tables(options.rundir, self._kernel)
        self._upkeep = Upkeep(tables, restoration.PROGRAMS, self._metrics)
        self._endpoint: Endpoint | None = None

    def run(self) -> None:
        plugins.import_all(self._kernel)
        self._foreman.start()
        self._upkeep.start()
        self._dns.start()
        self._watch.start()
        self._endpoint = self._open_endpoint()
        self._server.start()
        log.info(
            "agent ready",
            version=VERSION,
            pid=os.getpid(),
            rundir=self._options.rundir,
            served=self._guests.served(),
            waiting=self._guests.waiting(),
            metrics=self._endpoint.address if self._endpoint else "",
        )
        self._wait()
        # Who comes now shall find nobody, and start another one if he needs one.
        self._door.hide()
        self._calls.close()
        self._server.stop(for_good=self._door.own)
        self._upkeep.stop()
        self._kernel.close()
        self._door.socket.close()
        self._watch.stop()
        self._loop.stop()
        if self._endpoint is not None:
            self._endpoint.stop()
        log.info("agent ended")

    def stop(self) -> None:
        """Also for a signal's handler."""
        os.eventfd_write(self._told, 1)

    def problems(self) -> list[str]:
        """Why the agent is not well."""
        found: list[str] = []
        if not self._server.is_alive():
            found.append("a thread of the server has ended")
        if not self._watch.is_alive():
            found.append("the watch does not come round")
        if not self._loop.is_alive():
            found.append("the packet loop does not run")
        return found + self._kernel.problems() + self._upkeep.problems()

    def _wake(self) -> None:
        self._watch.wake()

    def _open_endpoint(self) -> Endpoint | None:
        address = self._options.metrics_address
        if not address:
            return None
        try:
            endpoint = Endpoint(address, self._metrics, self.problems)
        except (OSError, OverflowError) as e:
            # Guests are more important than numbers about them.
            log.error("no metrics", address=address, error=str(e))
            return None
        endpoint.start()
        return endpoint

    def _wait(self) -> None:
        limit = self._options.idle_exit
        busy = time.monotonic()
        while not select.select([self._told], [], [], min(limit / 4, _LOOK) if limit else _LOOK)[0]:
            if not self._door.is_found():
                log.error("nobody finds the socket any more: the agent ends", socket=self._door.path)
                return
            if not limit:
                continue
            now = time.monotonic()
            if self._guests.served() or self._calls.running():
                busy = now
            if now - max(busy, self._server.last_call) > limit:
                log.info("no guest and no call: not needed any more", seconds=limit)
                return


def _raise_limit() -> int:
    """How many descriptors we may have: who starts an agent on demand may have them for few calls only."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(now, min(most, _DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    return limit


def _open_door(options: Options) -> Listener:
    return listener.activated(os.environ) or listener.bound(options.socket)


def _metrics_address(_: click.Context, __: click.Parameter, value: str) -> str:
    if value:
        try:
            parse_address(value)
        except ValueError as e:
            raise click.BadParameter(str(e)) from e
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--rundir",
    default=attachments.RUNDIR,
    envvar="CNVNET_RUNDIR",
    show_default=True,
    help="Where the plugins keep their records.",
)
@click.option("--socket", default="", help="The socket to listen on.  [default: RUNDIR/agent.sock]")
@click.option(
    "--metrics-address",
    default="127.0.0.1:9440",
    callback=_metrics_address,
    show_default=True,
    help='HOST:PORT for /metrics and /healthz; "" for none.',
)
@click.option(
    "--idle-exit",
    default=0.0,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End after so long without a guest and without a call; 0: never.",
)
@click.option("--log-level", type=click.Choice(log.LEVELS), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(log.FORMATS), default="json", show_default=True)
@click.version_option(VERSION, prog_name="cnvnet-agent")
def command(
    rundir: str, socket: str, metrics_address: str, idle_exit: float, log_level: str, log_format: str
) -> None:
    """Serves the virtual machines of this node: DHCP, DHCPv6 and router advertisements."""
    log.configure(log_level, log_format)
    rundir = os.path.abspath(rundir)
    path = os.path.abspath(socket) if socket else os.path.join(rundir, "agent.sock")
    options = Options(rundir, path, metrics_address, idle_exit)
    os.chdir("/")
    if (limit := _raise_limit()) < _FEWEST:
        log.error(
            "cannot start", error=f"{limit} open files are too few", remedy=f"ulimit -n {_DESCRIPTORS}"
        )
        sys.exit(1)
    try:
        lock = listener.lock(rundir)
        door = _open_door(options)
    except listener.Unusable as e:
        log.error("cannot start", error=str(e))
        sys.exit(1)
    agent = Agent(options, door)

    def stop(number: int, _: FrameType | None) -> None:
        agent.stop()

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of the terminal that it was started from
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    agent.run()
    os.close(lock)
