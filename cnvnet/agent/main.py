"""The program: its options, its parts put together, its end."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Final

import click

from cnvnet import VERSION
from cnvnet.agent import handlers, launchers, listener, registry, systemd
from cnvnet.agent.address_events import AddressEvents
from cnvnet.agent.calls.runner import CallRunner
from cnvnet.agent.guards import GuardReconciler
from cnvnet.agent.guests.packet_loop_process import PacketLoopProcess
from cnvnet.agent.guests.pod_dns import PodDns
from cnvnet.agent.guests.reconciler import GuestReconciler
from cnvnet.agent.guests.serving import ServedGuests
from cnvnet.agent.kubernetes import SharedDirectory
from cnvnet.agent.lease_adoption import LeaseAdoption
from cnvnet.agent.lease_comparison import LeaseComparison, compare_in
from cnvnet.agent.lease_queue import LeaseQueue
from cnvnet.agent.listener import Listener
from cnvnet.agent.metrics import Metrics, Networks
from cnvnet.agent.node_kubeconfig import NodeKubeconfig
from cnvnet.agent.node_metrics import Attached, NodeMetrics, Sources
from cnvnet.agent.options import Options, checked_address, option
from cnvnet.agent.own_files import OwnFiles
from cnvnet.agent.server import Server
from cnvnet.agent.supervisor import Supervisor
from cnvnet.agent.takeover import take_lock
from cnvnet.attachment import RUNDIR
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError
from cnvnet.guest.events import Event
from cnvnet.ipam.static_ip.config import STATEDIR
from cnvnet.ipam.static_ip.plugin import StaticIP
from cnvnet.ipam.store.holds import Holds
from cnvnet.ipam.store.kubernetes_networks import NAMESPACE, NEW_NETWORKS
from cnvnet.kernel import sysctl
from cnvnet.kernel.deferred.resident import ResidentKernel
from cnvnet.kube import credentials
from cnvnet.kube.metrics import ApiMetrics
from cnvnet.plugins.cnv_bridge import observation, reconcile
from cnvnet.plugins.cnv_bridge.fence import FenceTable
from cnvnet.plugins.cnv_bridge.state import Context
from cnvnet.resident import log
from cnvnet.resident.endpoint import AddressUnavailable, Endpoint, Health, open_endpoint

# Seconds between two checks whether there is a reason to end.
_LOOK: Final = 1.0
# Open files: a call that waits has five, and 4,096 may; systemd's unit has the same limit.
_DESCRIPTORS: Final = 65536
_STDERR: Final = 2
# Bytes of the log of an agent on demand; the older half, agent.log.1, has as many.
_LOG_BYTES: Final = 4 << 20
# Open files without which the agent does not start: idle it has 90, and each running call may need ten.
_FEWEST: Final = 1024


class Agent:
    """The parts. `run` returns after `stop`, or when the agent has been idle for long enough."""

    def __init__(
        self,
        options: Options,
        listener: Listener,
        notes: Sequence[str] = (),
        node_kubeconfig: NodeKubeconfig | None = None,
    ) -> None:
        """`notes` are lines for `/healthz?verbose`."""
        self._options = options
        self._notes = notes
        self._node_kubeconfig = node_kubeconfig
        self._listener = listener
        # A signal's handler takes no lock: the thread that it interrupts may hold it.
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._loop = PacketLoopProcess(self._notify, self._observe_event)
        self._dns = PodDns(self._notify)
        self._guests = ServedGuests(options.rundir, self._loop, self._dns)
        self._supervisor = Supervisor()
        self._files = OwnFiles()
        self._guest_reconciler = GuestReconciler(
            options.rundir, self._guests, self._loop, self._dns, self._supervisor, self._files
        )
        networks = Networks()
        self._metrics = Metrics(networks)
        requests = ApiMetrics()
        requests.register(self._metrics.registry)
        self._directory = SharedDirectory(
            {**os.environ, credentials.VARIABLE: options.kubeconfig}, requests.observe
        )
        self._events = AddressEvents(self._directory, self._metrics.observe_dropped_event)
        static_ip = StaticIP(
            on_refusal=self._metrics.observe_refusal,
            lookup=self._directory,
            node_name=options.node_name,
            new_networks=options.new_networks,
            before_cluster_add=self._ensure_compared,
            on_event=self._events.put,
        )
        route = handlers.guest_handlers(self._guests, self._loop, self._retire)
        self._kernel = ResidentKernel(log.error)
        self._calls = CallRunner(
            options.rundir,
            registry.load_all(self._kernel, static_ip, self._directory),
            handlers.in_process(route),
            self._metrics.observe_call,
        )
        self._server = Server(
            listener.socket,
            route,
            self._metrics.observe,
            self._supervisor,
            self._calls.take,
            self._calls.resume,
        )
        held = Holds(options.statedir)
        fence = FenceTable(
            Context.of(options.rundir, self._kernel), lambda: (each.interface for each in held.fenced())
        )
        self._guard_reconciler = GuardReconciler(
            (*reconcile.tables(options.rundir, self._kernel), fence),
            reconcile.PROGRAMS,
            self._metrics,
            self._kernel.ports,
        )
        self._lease_queue = LeaseQueue(partial(static_ip.drain, options.statedir))
        self._lease_comparison = LeaseComparison(
            compare_in(partial(static_ip.cluster_with_holds, options.statedir)),
            held.disputed,
            fence.reconcile,
            self._directory.api,
            put_event=self._events.put,
        )
        self._lease_adoption = LeaseAdoption(partial(static_ip.adopt, options.statedir, options.rundir))
        self._ready = False
        sources = Sources(
            self._guests,
            self._loop,
            self._calls,
            attached=Attached(options.rundir).count,
            usage=lambda: static_ip.usage(options.statedir, int(time.time())),
            drops=partial(observation.drops, self._kernel),
            disputes=self._lease_comparison.counts,
        )
        self._metrics.registry.register(NodeMetrics(sources, networks))
        self._endpoint = self._open_endpoint()

    def run(self) -> None:
        """Serve until a signal ends it."""
        registry.import_all(self._kernel)
        self._directory.announce()
        self._files.remember()
        self._supervisor.start()
        self._guard_reconciler.start()
        self._dns.start()
        self._guest_reconciler.start()
        self._lease_queue.start()
        self._lease_comparison.start()
        self._lease_adoption.start()
        self._events.start()
        if self._endpoint is not None:
            self._endpoint.start()
        self._server.start()
        self._ready = True
        log.info(
            "agent ready",
            version=VERSION,
            pid=os.getpid(),
            rundir=self._options.rundir,
            served=self._guests.served(),
            waiting=self._guests.waiting(),
            metrics=self._endpoint.address if self._endpoint else "",
        )
        systemd.notify(systemd.READY)
        self._wait()
        systemd.notify(systemd.STOPPING)
        self._ready = False
        # Unlink the socket first, so that new callers start a fresh agent instead of queueing on this one.
        self._listener.hide()
        self._calls.close()
        self._server.stop(for_good=self._listener.own)
        self._guard_reconciler.stop()
        self._kernel.close()
        self._listener.socket.close()
        self._guest_reconciler.stop()
        self._lease_queue.stop()
        self._lease_comparison.stop()
        self._lease_adoption.stop()
        self._events.stop()
        self._loop.stop()
        if self._endpoint is not None:
            self._endpoint.stop()
        log.info("agent ended")

    def stop(self) -> None:
        """Lets `run` return. A signal's handler may call it."""
        os.eventfd_write(self._stop, 1)

    def _retire(self) -> None:
        """The node's own agent wants to take over from one that a plugin has started."""
        if not self._options.idle_exit:
            raise CNIError(NOT_AVAILABLE, "it is no agent on demand (--idle-exit) and goes on")
        log.info("the node's own agent takes over")
        self.stop()

    def problems(self) -> list[str]:
        """Why the agent is not well."""
        problems = self._hung()
        if not self._loop.is_alive():
            problems.append("the packet loop does not run")
        return problems + self._calls.stuck() + self._kernel.problems() + self._guard_reconciler.problems()

    def _hung(self) -> list[str]:
        """What only a restart of the agent mends."""
        problems: list[str] = []
        if not self._server.is_alive():
            problems.append("a thread of the server has ended")
        if not self._guest_reconciler.is_alive():
            problems.append("the thread that reconciles guests hangs or has ended")
        return problems

    def health(self) -> Health:
        """What /healthz, /readyz and `?verbose` say."""
        absent = self._directory.problem()
        return Health(self._ready, self.problems(), self._details, (absent,) if absent else ())

    def _details(self) -> list[str]:
        upgraded = (
            ["the agent's files were replaced by an upgrade: restart it"] if self._files.replaced() else []
        )
        lost = [f"log: {number} lines are lost, nothing reads it"] if (number := log.lost()) else []
        left = self._node_kubeconfig.problem if self._node_kubeconfig else ""
        return [
            f"calls: {self._calls.running()} running, {self._calls.waiting()} waiting",
            f"guests: {self._guests.served()} served, {self._guests.waiting()} waiting",
            *self._guests.problems(),
            *upgraded,
            *lost,
            *([left] if left else []),
            *self._notes,
        ]

    def _ensure_compared(self, network: str) -> None:
        self._lease_comparison.ensure_compared(network)

    def _notify(self) -> None:
        self._guest_reconciler.notify()

    def _observe_event(self, name: str, event: Event) -> None:
        self._guests.events.observe(name, event)

    def _open_endpoint(self) -> Endpoint | None:
        """None where none is wanted. Unusable: it cannot be had; an agent on demand does without it."""
        try:
            return open_endpoint(self._options.metrics_address, self._metrics.registry, self.health)
        except AddressUnavailable as e:
            text = f"{e}: no /metrics and no /healthz"
            if self._options.idle_exit:
                log.warning(text)
                return None
            self._listener.hide()
            remedy = '--metrics-address HOST:PORT, or "" for none'
            raise listener.Unusable(f"{text} ({remedy})") from e

    def _wait(self) -> None:
        limit = self._options.idle_exit
        busy = time.monotonic()
        while not select.select([self._stop], [], [], min(limit / 4, _LOOK) if limit else _LOOK)[0]:
            if not self._hung():
                systemd.notify(systemd.ALIVE)
            if not self._listener.is_found():
                log.error("the socket was removed or replaced: the agent ends", socket=self._listener.path)
                return
            if not limit:
                continue
            # One on demand has its log in RUNDIR, which is memory.
            log.limit(_STDERR, os.path.join(self._options.rundir, "agent.log"), _LOG_BYTES)
            now = time.monotonic()
            if self._guests.served() or self._calls.running():
                busy = now
            if now - max(busy, self._server.last_call) > limit:
                log.info("no guest and no call: not needed any more", seconds=limit)
                return


def _raise_limit() -> int:
    """Raises the limit of open files, which may be low where a plugin starts an agent; returns it."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(now, min(most, _DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    return limit


def _prepare(options: Options) -> list[str]:
    """Gets what a container lacks, and gives the node its launchers.

    Returns what an operator should know. Raises Unusable.
    """
    notes: list[str] = []
    try:
        if sysctl.ensure_writable():
            log.info("/proc/sys was read-only and is mounted writable")
    except OSError as e:
        notes.append(f"/proc/sys is read-only: vm-bridge and masquerade cannot set sysctls ({e.strerror})")
    if options.launchers_into:
        notes += launchers.install(options.launchers_into)
    for note in notes:
        log.warning(note)
    return notes


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(0)


def _listener(options: Options) -> Listener:
    return listener.activated(os.environ) or listener.bound(options.socket)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@option(
    "rundir",
    "Where the plugins keep their records.",
    "CNVNET_RUNDIR",
    default=RUNDIR,
)
@option("socket", "The socket to listen on.  [default: RUNDIR/agent.sock]", default="")
@option(
    "metrics-address",
    'HOST:PORT for /metrics, /healthz and /readyz; "" or "off" for none.',
    default="127.0.0.1:9440",
    callback=checked_address,
)
@option(
    "idle-exit",
    "End after so long without a guest and without a call; 0: never.",
    default=0.0,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
)
@option(
    "log-level",
    "A CNI call that failed is logged at every level.",
    type=click.Choice(log.LEVELS),
    default="info",
)
@option(
    "kubeconfig",
    "How to reach the Kubernetes API, which knows the VMs of pods.  [default: a pod's own credentials, else "
    f"{credentials.DEFAULT_KUBECONFIG}; without either no API is asked]",
    credentials.VARIABLE,
    default="",
    metavar="FILE",
)
@option(
    "node-name", "This node's name in Kubernetes, for calls without CNVNET_NODE.", "NODE_NAME", default=""
)
@option(
    "new-networks",
    "Who may use a network that has no IPNetwork: the first pod's namespace, all, none.",
    "CNVNET_NEW_NETWORKS",
    type=click.Choice(NEW_NETWORKS),
    default=NAMESPACE,
)
@option("log-format", "JSON, or text for people.", type=click.Choice(log.FORMATS), default="json")
@option(
    "launchers-into",
    "Put the plugins' launchers into this folder of the runtime, beside other programs' files.",
    default="",
    metavar="DIR",
)
@option(
    "node-kubeconfig",
    "Write the way of the agent's pod to the Kubernetes API into this file, for the node's executables that "
    f"run without an agent: {credentials.DEFAULT_KUBECONFIG} of the node.",
    default="",
    metavar="FILE",
)
@click.version_option(VERSION, prog_name="cnvnet-agent")
def command(
    rundir: str,
    socket: str,
    metrics_address: str,
    idle_exit: float,
    log_level: str,
    log_format: str,
    launchers_into: str,
    kubeconfig: str,
    node_name: str,
    new_networks: str,
    node_kubeconfig: str,
) -> None:
    """Serves the virtual machines of this node: DHCP, DHCPv6 and router advertisements."""
    log.configure(log_level, log_format)
    rundir = os.path.abspath(rundir)
    path = os.path.abspath(socket) if socket else os.path.join(rundir, "agent.sock")
    statedir = os.environ.get("CNVNET_STATEDIR") or STATEDIR
    into = os.path.abspath(launchers_into) if launchers_into else ""
    kubeconfig = os.path.abspath(kubeconfig) if kubeconfig else ""
    options = Options(
        rundir, path, metrics_address, idle_exit, statedir, into, kubeconfig, node_name, new_networks
    )
    # Executables need it for as long as no agent takes their calls: before this one can.
    left = NodeKubeconfig(os.path.abspath(node_kubeconfig), os.environ) if node_kubeconfig else None
    os.chdir("/")
    if (limit := _raise_limit()) < _FEWEST:
        log.error(
            "cannot start", error=f"{limit} open files are too few", remedy=f"ulimit -n {_DESCRIPTORS}"
        )
        sys.exit(1)
    # The first process of a container ends by no signal that it has no handler for.
    signal.signal(signal.SIGTERM, _leave)
    try:
        if left is not None:
            left.start()
        _serve(options, left)
    except listener.Unusable as e:
        log.error("cannot start", error=str(e))
        sys.exit(1)
    finally:
        if left is not None:
            left.close()


def _serve(options: Options, left: NodeKubeconfig | None) -> None:
    """Until a signal ends it. Raises Unusable."""
    lock = take_lock(options.rundir, options.socket, on_demand=bool(options.idle_exit))
    if left is not None:
        left.serve()
    # Behind the lock: launchers come with the agent that answers them.
    notes = _prepare(options)
    agent = Agent(options, _listener(options), notes, left)

    def stop(number: int, _: FrameType | None) -> None:
        agent.stop()

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of the terminal that it was started from
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    agent.run()
    os.close(lock)
