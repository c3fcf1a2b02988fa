"""The program: its options, its parts put together, its end."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Final, NamedTuple

import click

from cnvnet import VERSION
from cnvnet.cni.errors import CNIError
from cnvnet.controller import survey
from cnvnet.controller.election import NAME, Election, Seat, own_identity
from cnvnet.controller.metrics import ControllerMetrics
from cnvnet.controller.steps import CleanupStep
from cnvnet.controller.sweep import Limits, Plan, plan
from cnvnet.controller.worker import CleanupWorker
from cnvnet.kube import credentials
from cnvnet.kube.api import Api, Observe
from cnvnet.kube.client import Client
from cnvnet.kube.events import EventWriter
from cnvnet.kube.metrics import ApiMetrics
from cnvnet.resident import log
from cnvnet.resident.endpoint import AddressUnavailable, Endpoint, Health, open_endpoint, parse_address

# Seconds after which a worker that does not go on hangs: each of its requests ends after ten.
_HUNG: Final = 300.0
# Seconds for events that still wait at the end.
_LAST_EVENTS: Final = 2.0
# Seconds between two checks whether a thread has ended.
_LOOK: Final = 1.0


class ControllerOptions(NamedTuple):
    """The options of the command line."""

    # Of the election's Lease.
    namespace: str
    # Seconds between two sweeps.
    interval: float
    limits: Limits
    # HOST:PORT; "" for no endpoint.
    listen: str


class CannotStart(Exception):
    """The controller cannot start; the text says why and what helps."""


class Controller:
    """The parts. `run` returns after `stop`, or when one of its threads has failed."""

    def __init__(self, options: ControllerOptions, api: Api, requests: ApiMetrics) -> None:
        """`requests` counts those of `api`."""
        # A signal's handler takes no lock: the thread that it interrupts may hold it.
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._options = options
        self._api = api
        self._election = Election(api, Seat(options.namespace, own_identity()), self._observe_election)
        self._metrics = ControllerMetrics(self._election.is_leader)
        requests.register(self._metrics.registry)
        self._events = EventWriter(lambda: api, NAME, lambda _: self._metrics.observe_dropped())
        self._worker = CleanupWorker(
            api,
            self._election,
            self._metrics,
            self._events,
            interval=options.interval,
            limits=options.limits,
        )
        self._threads = [
            threading.Thread(target=self._election.run, name="election", daemon=True),
            threading.Thread(target=self._worker.run, name="worker", daemon=True),
        ]
        self._endpoint = self._open_endpoint()

    @property
    def address(self) -> str:
        """Where its endpoint is, "" without one."""
        return self._endpoint.address if self._endpoint is not None else ""

    def run(self) -> bool:
        """Works until `stop`; False: a thread has failed, and the process is to be started again."""
        threading.excepthook = _log_crash
        self._events.start()
        if self._endpoint is not None:
            self._endpoint.start()
        for each in self._threads:
            each.start()
        log.info(
            "controller started",
            version=VERSION,
            server=self._api.server,
            listen=self.address,
        )
        election, worker = self._threads
        while not select.select([self._stop], [], [], _LOOK)[0] and not self._ended():
            pass
        has_failed = bool(self._ended())
        # The Lease is given back when nothing is done any more.
        self._worker.stop()
        worker.join()
        self._election.stop()
        election.join()
        self._events.stop(_LAST_EVENTS)
        if self._endpoint is not None:
            self._endpoint.stop()
        log.info("controller ended")
        return not has_failed

    def stop(self) -> None:
        """Lets `run` return. A signal's handler may call it."""
        os.eventfd_write(self._stop, 1)

    def health(self) -> Health:
        """/healthz knows nothing of the API: a restart would not bring that back. /readyz does."""
        problems = [f"the thread {each} has ended" for each in self._ended()]
        if time.monotonic() - self._worker.heartbeat > _HUNG:
            problems.append("the thread worker hangs")
        absent = self._election.problem
        return Health(not absent, problems, self._details, (absent,) if absent else ())

    def _ended(self) -> list[str]:
        return [each.name for each in self._threads if not each.is_alive()]

    def _details(self) -> list[str]:
        leads = "leads" if self._election.is_leader() else "does not lead"
        lines = [f"election: this replica {leads}, the Lease is {self._election.holder or 'not'} held"]
        if self._election.problem:
            lines.append(f"election: {self._election.problem}")
        if self._worker.last_plan is not None:
            lines += describe(self._worker.last_plan)
        return lines

    def _observe_election(self) -> None:
        if self._election.problem:
            log.warning("the election's Lease cannot be had", error=self._election.problem)
        self._worker.notify()

    def _open_endpoint(self) -> Endpoint | None:
        try:
            return open_endpoint(self._options.listen, self._metrics.registry, self.health)
        except AddressUnavailable as e:
            raise CannotStart(f'{e} (--listen HOST:PORT, or "" for none)') from e


def describe(made: Plan) -> list[str]:
    """The lines of a plan, for people."""
    lines = [f"now: {each.action} {_about(each)}" for each in made.steps]
    lines += [
        f"in {each.seconds:.0f} s, if nothing changes: {each.step.action} {_about(each.step)}"
        for each in made.waiting
    ]
    return lines + [f"left alone: {each.subject}: {each.reason}" for each in made.doubts]


def _about(step: CleanupStep) -> str:
    parts = ", ".join(filter(None, (step.network, *step.addresses, step.holder)))
    return f"{step.subject} ({parts}): {step.reason}"


def _log_crash(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else ""
    try:
        raise args.exc_value or args.exc_type()
    except BaseException:  # noqa: BLE001 -- it is the one to be logged
        log.crash("a thread has failed: the controller ends, and has to be started again", thread=name)


def _listen(_: click.Context, __: click.Parameter, value: str) -> str:
    # click takes a variable that is empty for one that is not there.
    if value in ("", "off"):
        return ""
    try:
        parse_address(value)
    except ValueError as e:
        raise click.BadParameter(str(e)) from e
    return value


def _open_api(kubeconfig: str, observe: Observe) -> Client:
    """CannotStart: there are no credentials."""
    access = (
        credentials.from_kubeconfig(kubeconfig, os.environ)
        if kubeconfig
        else credentials.in_cluster(os.environ)
    )
    if access is None:
        raise CannotStart("no credentials for the Kubernetes API (--kubeconfig FILE, or run as a pod)")
    return Client(access, observe)


def _print_plan(api: Api, limits: Limits) -> None:
    """The plan of a first sweep, on stdout. CNIError."""
    made = plan(survey.take(api), {}, limits, now=time.monotonic(), clock=int(time.time()))
    click.echo("\n".join(describe(made) or ["nothing to do"]))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--kubeconfig",
    help="The API's address and credentials.  [default: those of the pod]",
    envvar="CNVNET_KUBECONFIG",
    show_envvar=True,
    default="",
    metavar="FILE",
)
@click.option(
    "--namespace",
    help="Where the Lease is by which replicas agree which of them acts.",
    envvar="CNVNET_NAMESPACE",
    show_envvar=True,
    show_default=True,
    default="cnvnet-system",
)
@click.option(
    "--interval",
    help="Between two sweeps.",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
)
@click.option(
    "--grace",
    help="For so long what uses an address has to be missing before it is freed; twice it has to be missed.",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
)
@click.option(
    "--listen",
    help='HOST:PORT for /metrics, /healthz and /readyz; "" or "off" for none.',
    envvar="CNVNET_CONTROLLER_LISTEN",
    show_envvar=True,
    show_default=True,
    default="127.0.0.1:9441",
    callback=_listen,
)
@click.option("--dry-run", help="Print what would be done, and end.", is_flag=True)
@click.option("--log-level", type=click.Choice(log.LEVELS), default="info", show_default=True)
@click.option(
    "--log-format",
    help="JSON, or text for people.",
    type=click.Choice(log.FORMATS),
    default="json",
    show_default=True,
)
@click.version_option(VERSION, prog_name="cnvnet-controller")
def command(
    kubeconfig: str,
    namespace: str,
    interval: float,
    grace: float,
    listen: str,
    dry_run: bool,
    log_level: str,
    log_format: str,
) -> None:
    """Frees the addresses whose virtual machine, pod or node has gone. One replica of several acts."""
    log.configure(log_level, log_format)
    limits = Limits(grace)
    try:
        requests = ApiMetrics()
        api = _open_api(kubeconfig, requests.observe)
        if dry_run:
            _print_plan(api, limits)
            return
        controller = Controller(ControllerOptions(namespace, interval, limits, listen), api, requests)
    except (CNIError, CannotStart) as e:
        log.error("cannot start", error=e.msg if isinstance(e, CNIError) else str(e))
        sys.exit(1)

    def stop(number: int, _: FrameType | None) -> None:
        controller.stop()

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of the terminal that it was started from
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if not controller.run():
        sys.exit(1)
