"""The launcher of one Ray actor a slot: Ray chooses the nodes, an actor there keeps the slot's process.

The only file that imports Ray, and it is imported for ``--ray`` alone. A slot whose process dies is started again by
its actor; one whose actor or node is lost gets another actor, where the cluster has room for it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from xray_opt.config import StudyConfig
from xray_opt.errors import ConfigError, StudyError, one_line
from xray_opt.launchers.keeper import Keeper, Share
from xray_opt.launchers.member import Member, News
from xray_opt.launchers.processes import run_team
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job
from xray_opt.tuning import Tally, is_proxy, storage_url
from xray_opt.workers import Work

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
try:
    import ray
except ImportError as missing:
    raise ConfigError("--ray needs Ray: install xray-opt[ray], here and on every node") from missing

#: Seconds that the head of a cluster has to answer.
ANSWER = 10.0
#: Seconds that a slot waits for room in the cluster.
ROOM = 60.0
#: Bytes of shared memory for a Ray of our own: what goes through it are short lines. Ray takes no less.
STORE = 80 * 2**20
#: Variables with these beginnings go to the nodes: where the stores are, and the logins.
TAKEN_ALONG = ("MLFLOW_", "XRAY_OPT_", "AWS_")
#: Exit code of a slot whose actor or node is gone.
LOST = -signal.SIGHUP


@dataclass(frozen=True)
class Nodes:
    """The living nodes of a cluster: cores and GPUs of each."""

    resources: tuple[tuple[float, float], ...]

    @classmethod
    def here(cls) -> Nodes:
        """Those of the cluster that this process is connected to."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return cls(tuple((each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in alive))

    def cpu_share(self, count: int) -> Share:
        """As many whole cores as each of ``count`` slots can have.

        Raises:
            ConfigError: there are fewer cores than slots.
        """
        most = int(max((cpus for cpus, _ in self.resources), default=0))
        for cores in range(most, 0, -1):
            if sum(int(cpus // cores) for cpus, _ in self.resources) >= count:
                return Share(float(cores))
        total = sum(int(cpus) for cpus, _ in self.resources)
        raise ConfigError(f"--workers {count} need a core each: the Ray cluster has {total} on {self.shown}")

    def gpu_slots(self, per_gpu: int) -> tuple[int, Share]:
        """Number of slots, ``per_gpu`` on each GPU, and what each gets.

        Raises:
            ConfigError: there is no GPU, or there are too few cores for so many slots.
        """
        count = sum(int(gpus) for _, gpus in self.resources) * per_gpu
        if not count:
            raise ConfigError(f"--gpus: the Ray cluster has no GPU on {self.shown}; use --workers instead")
        if any(cpus < int(gpus) * per_gpu for cpus, gpus in self.resources):
            raise ConfigError(f"--per-gpu {per_gpu} needs a core a slot, and a node of the Ray cluster has too few")
        cores = min(int(cpus // (int(gpus) * per_gpu)) for cpus, gpus in self.resources if int(gpus))
        return count, Share(float(cores), 1 / per_gpu, per_gpu)

    @property
    def shown(self) -> str:
        """How many there are, in words."""
        return f"{len(self.resources)} node{'s' * (len(self.resources) != 1)}"


def ray_launcher(
    address: str,
    study: StudyConfig,
    workers: int | None,
    gpus: str | None,
    per_gpu: int | None,
    say: Callable[[str], None] = lambda line: None,
) -> RayActors:
    """Connect to a cluster (or start one on this machine: ``local``) and divide it into slots.

    Raises:
        ConfigError: no cluster answers there, it has not got what is asked for, or the options contradict each other.
    """
    device = study.config.training.device
    if gpus not in (None, "all"):
        raise ConfigError("--ray chooses the GPUs itself: say --gpus all, or limit what Ray has")
    if gpus is None and per_gpu is not None:
        raise ConfigError("--per-gpu counts the slots on each GPU: with --ray say --gpus all --per-gpu K")
    if gpus is not None and device not in ("auto", "cuda"):
        raise ConfigError(f"--gpus chooses the devices itself: leave training.device at auto, not {device}")
    _connect(address, workers or 1)
    try:
        nodes = Nodes.here()
        count, share = (workers or 1, nodes.cpu_share(workers or 1)) if gpus is None else nodes.gpu_slots(per_gpu or 1)
        if gpus is None and (device.startswith("cuda") or (device == "auto" and any(g for _, g in nodes.resources))):
            raise ConfigError("--ray with --workers leaves the cluster's GPUs alone: use --gpus all, or --device cpu")
    except ConfigError:
        ray.shutdown()
        raise
    say(f"Ray: slots on {nodes.shown}: {count}; cores of each: {share.cpus:.0f}, GPUs: {share.gpus:g}")
    return RayActors(tuple(Slot(f"slot {index}", int(share.cpus)) for index in range(count)), share, nodes)


def _connect(address: str, workers: int) -> None:
    """Join a cluster; Ray's own waiting, lines and signal handlers are kept away."""
    if address not in ("local", "auto"):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {address} ({one_line(error)}): give --ray HOST:PORT of its head (ray start "
                "--head), or --ray local"
            ) from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options: dict[str, Any] = {}
    if address == "local":
        options = {"num_cpus": max(workers, cores), "include_dashboard": False, "object_store_memory": STORE}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # whatever Ray raises: of another version, not reachable from here, no room in /dev/shm
        raise ConfigError(f"cannot use the Ray cluster {address}: {one_line(error, 300)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class RayActors:
    """The launcher of one actor a slot."""

    slots: tuple[Slot, ...]
    share: Share
    nodes: Nodes

    def __call__(self, work: Work, total: int, timeout: float | None) -> Tally:
        """Run trials in all slots; see ``workers.Launcher``. The cluster is left at the end.

        Raises:
            XrayError: no slot could work, or the stores cannot be reached from other nodes.
            KeyboardInterrupt: after the slots have ended.
        """
        url = storage_url(work.opened.workspace, work.opened.config.storage)
        several = len(self.nodes.resources) > 1
        try:
            if several:
                _require_reachable(url, work)

            def hired(news: News) -> list[Member]:
                return [RayMember(slot, self.share, several, news) for slot in self.slots]

            # A node's own variables may name another storage.
            return run_team(hired, work, total, timeout, storage=url)
        finally:
            ray.shutdown()


def _require_reachable(url: str, work: Work) -> None:
    if not url.startswith("postgresql") and not is_proxy(url):
        raise ConfigError(
            "the nodes of a Ray cluster cannot share a SQLite storage: name one that all reach with XRAY_OPT_STORAGE, "
            "postgresql://… or grpc://…"
        )
    if work.connection.local:
        raise ConfigError(
            "the nodes of a Ray cluster cannot share an embedded MLflow store: name a server that all reach with "
            "MLFLOW_TRACKING_URI"
        )


class RayMember(Member):
    """A slot kept by an actor; a thread here asks that for news."""

    def __init__(self, slot: Slot, share: Share, several: bool, news: News) -> None:
        super().__init__(slot, news)
        self._share, self._several = share, several
        self._actor: Any = None
        self._thread: threading.Thread | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and its end was not seen yet."""
        return self._thread is not None

    def start(self, job: Job) -> None:
        """Start the slot's process on a node, once the cluster has room for it."""
        self.code = None
        self._thread = threading.Thread(
            target=self._follow, args=(job,), name=f"xray-opt-{self.slot.name}", daemon=True
        )
        self._thread.start()

    def _follow(self, job: Job) -> None:
        try:
            actor = self._placed()
            variables = {key: value for key, value in os.environ.items() if key.startswith(TAKEN_ALONG)}
            _ask(actor, "start", job.line(), self.slot, self._share, variables)
            while self.code is None:
                events, code = _ask(actor, "news")
                for event in events:
                    self._news.put((self, event))
                self.code = code
        except ray.exceptions.GetTimeoutError:
            self.kill()
            self.error = StudyError(f"the cluster had no room for it in {ROOM:.0f} s")
            self.code = self.error.exit_code
        except ray.exceptions.RayError as error:
            self.kill()
            lost = isinstance(error, ray.exceptions.RayActorError)
            self.error = None if lost else StudyError(f"Ray failed: {one_line(error, 200)}")
            self.code = LOST

    def _placed(self) -> Any:
        """The actor that is there, or a new one."""
        if (actor := self._actor) is None:
            options: dict[str, Any] = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus}
            kept: Any = ray.remote(Keeper)
            self._actor = actor = kept.options(**options).remote()
            host = ray.get(actor.host.remote(), timeout=ROOM)
            if self._several:
                self.slot = replace(self.slot, name=f"{self.slot.name.partition(' (')[0]} ({host})")
        return actor

    def ended(self) -> bool:
        """Whether the process is over; then all that it told has arrived."""
        if self._thread is None or self._thread.is_alive():
            return False
        self._thread = None
        if self.code == 0:
            self.kill()  # its place is free for one that was lost
        return True

    def how(self) -> str:
        """How the process ended, for a line that begins with the slot's name."""
        return "was lost with its actor or its node" if self.code == LOST else super().how()

    def stop(self) -> None:
        """Let the process hand its trial back and end."""
        if self._actor is not None:
            self._actor.stop.remote()

    def kill(self) -> None:
        """End the actor, and its process with it."""
        if self._actor is not None:
            with suppress(ray.exceptions.RayError):
                ray.kill(self._actor)
            self._actor = None


def _ask(actor: Any, what: str, *arguments: Any) -> Any:
    """An actor's answer; one that cannot be reached for a moment is asked again: Ray decides when it is dead."""
    while True:
        try:
            return ray.get(getattr(actor, what).remote(*arguments))
        except ray.exceptions.ActorUnavailableError:
            time.sleep(1.0)
