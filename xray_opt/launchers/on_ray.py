"""The launcher of one Ray actor a slot: Ray chooses the nodes, an actor there keeps the slot's process.

A process of its own speaks with Ray (``ray_driver``). A slot whose process dies is started again by its actor; one of a
lost actor or node gets another actor, where the cluster has room for it; when the cluster is lost the call ends.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import IO, Any

from xray_opt.config import StudyConfig, redacted
from xray_opt.errors import ConfigError, StudyError, one_line, shortened
from xray_opt.launchers.keeper import LOST, Share
from xray_opt.launchers.member import Event, Member, News, interpreter
from xray_opt.launchers.processes import run_team
from xray_opt.launchers.ray_nodes import Nodes
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job, error_of, read_event
from xray_opt.tuning import Tally, is_proxy, storage_url
from xray_opt.workers import Work

#: What the driver's interpreter runs.
DRIVER = ("-m", "xray_opt.launchers.ray_driver")
#: Seconds that the head of a cluster has to answer.
ANSWER = 10.0
#: Seconds that the driver has to leave a cluster in which nothing of the call runs any more.
LEAVING = 10.0


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
    if find_spec("ray") is None:
        raise ConfigError("--ray needs Ray: install xray-opt[ray], here and on every node")
    if gpus not in (None, "all"):
        raise ConfigError("--ray chooses the GPUs itself: say --gpus all, or limit what Ray has")
    if gpus is None and per_gpu is not None:
        raise ConfigError("--per-gpu counts the slots on each GPU: with --ray say --gpus all --per-gpu K")
    if gpus is not None and device not in ("auto", "cuda"):
        raise ConfigError(f"--gpus chooses the devices itself: leave training.device at auto, not {device}")
    _require_answer(address)
    cluster = Cluster(address, workers or 1)
    try:
        nodes = cluster.nodes
        count, share = (workers or 1, nodes.cpu_share(workers or 1)) if gpus is None else nodes.gpu_slots(per_gpu or 1)
        if gpus is None and (device.startswith("cuda") or (device == "auto" and any(g for _, g in nodes.resources))):
            raise ConfigError("--ray with --workers leaves the cluster's GPUs alone: use --gpus all, or --device cpu")
    except ConfigError:
        cluster.close()
        raise
    say(f"Ray: slots on {nodes.shown}: {count}; cores of each: {share.cpus:.0f}, GPUs: {share.gpus:g}")
    return RayActors(tuple(Slot(f"slot {index}", int(share.cpus)) for index in range(count)), share, cluster)


def _require_answer(address: str) -> None:
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({one_line(error)}): give --ray HOST:PORT of its head (ray start "
            "--head), or --ray local"
        ) from error


@dataclass(frozen=True)
class RayActors:
    """The launcher of one actor a slot."""

    slots: tuple[Slot, ...]
    share: Share
    cluster: Cluster

    def __call__(self, work: Work, total: int, timeout: float | None) -> Tally:
        """Run trials in all slots; see ``workers.Launcher``. The cluster is left at the end.

        Raises:
            XrayError: no slot could work, the cluster was lost, or the stores cannot be reached from other nodes.
            KeyboardInterrupt: after the slots have ended.
        """
        url = storage_url(work.opened.workspace, work.opened.config.storage)

        def hired(news: News) -> Sequence[Member]:
            members = [RayMember(slot, index, self.share, self.cluster, news) for index, slot in enumerate(self.slots)]
            self.cluster.follow(members)
            return members

        try:
            if self.cluster.nodes.machines > 1:
                _require_reachable(url, work)
            # A node's own variables may name another storage.
            return run_team(hired, work, total, timeout, storage=url)
        finally:
            self.cluster.close()


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


class Cluster:
    """A cluster as its driver tells of it.

    Attributes:
        nodes: what it has got.
    """

    def __init__(self, address: str, workers: int) -> None:
        self._address = address
        try:
            self._driver, told = interpreter(DRIVER, {})
        except OSError as error:
            raise StudyError(f"cannot start what speaks with Ray: {error.strerror or error}") from error
        self._events = _read(told)
        self._printed: deque[str] = deque(maxlen=1)
        self._listening = threading.Thread(target=self._listen, name="xray-opt-ray", daemon=True)
        self._listening.start()
        self._send({"address": address, "workers": workers})
        self.nodes = self._joined()

    def _listen(self) -> None:
        """What Ray prints is not shown: it warns each second of what our own lines say, or ends in a stack trace."""
        if self._driver.stdout is not None:
            with self._driver.stdout as lines:
                self._printed.extend(line.decode(errors="replace").strip() for line in lines if line.strip())

    def _joined(self) -> Nodes:
        event = next(self._events, None)
        if event is None:
            self.close()
            self._listening.join(1.0)
            last = shortened(redacted("".join(self._printed)), 200)
            raise ConfigError(f"cannot use the Ray cluster {self._address}: what speaks with it ended ({last})")
        if event["event"] == "error":
            self.close()
            raise error_of(event)
        return Nodes(tuple((cpus, gpus) for cpus, gpus in event["resources"]), event["machines"])

    def follow(self, members: Sequence[RayMember]) -> None:
        """Tell members what happens to them, in a thread; when the driver ends they are all lost."""

        def loop() -> None:
            for event in self._events:
                if "slot" in event:
                    members[event["slot"]].hear(event)
            error = StudyError(f"{self._end()} run the same command again")
            for member in members:
                member.lose(error)

        threading.Thread(target=loop, name="xray-opt-ray-events", daemon=True).start()

    def _end(self) -> str:
        """What became of the driver, which Ray ends with its cluster."""
        with suppress(subprocess.TimeoutExpired):
            if self._driver.wait(LEAVING) == -signal.SIGKILL:
                return "what speaks with Ray was killed (SIGKILL; out of memory?); nothing is lost,"
        lost = f"the Ray cluster {self._address} is lost: its head, or this node of it, died"
        return f"{lost}; nothing is lost, start it and"

    def order(self, do: str, index: int, /, **what: Any) -> None:
        """Have the driver do something with a slot; one that is gone does nothing, which is heard anyway."""
        self._send({"do": do, "slot": index, "with": what})

    def _send(self, order: dict[str, Any]) -> None:
        if self._driver.stdin is not None:
            with suppress(OSError, ValueError):
                self._driver.stdin.write(json.dumps(order).encode() + b"\n")
                self._driver.stdin.flush()

    def close(self) -> None:
        """Leave the cluster; a driver that does not is ended."""
        if self._driver.stdin is not None:
            with suppress(OSError):
                self._driver.stdin.close()
        try:
            self._driver.wait(LEAVING)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()


def _read(stream: IO[bytes]) -> Iterator[Event]:
    with stream as lines:
        for line in lines:
            if (event := read_event(line)) is not None:
                yield event


class RayMember(Member):
    """A slot kept by an actor, as the driver tells of it."""

    def __init__(self, slot: Slot, index: int, share: Share, cluster: Cluster, news: News) -> None:
        super().__init__(slot, news)
        self._index, self._share, self._cluster = index, share, cluster
        self._started = False
        self._fate: StudyError | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and its end was not seen yet."""
        return self._started

    def start(self, job: Job) -> None:
        """Start the slot's process on a node, once the cluster has room for it."""
        self.code, self._started = None, True
        slot, share = asdict(self.slot), asdict(self._share)
        self._cluster.order("start", self._index, number=self.restarts, job=job.line().decode(), slot=slot, share=share)
        if self._fate is not None:  # the cluster was lost meanwhile: nobody else will say so
            self.lose(self._fate)

    def hear(self, event: Event) -> None:
        """Take in what the driver tells."""
        if event["event"] == "news":
            self._news.put((self, event["what"]))
        elif event["event"] == "placed" and self._cluster.nodes.machines > 1:
            self.slot = replace(self.slot, name=f"{self.slot.name.partition(' (')[0]} ({event['host']})")
        elif event["event"] == "over":
            if event["error"] is not None:
                self.error = StudyError(event["error"])
            self.code = event["code"]

    def lose(self, error: StudyError) -> None:
        """The cluster is gone, and this slot with it."""
        self._fate = error
        if self._started and self.code is None:
            self.error, self.code = error, LOST

    def ended(self) -> bool:
        """Whether the process is over; then all that it told has arrived."""
        if not self._started or self.code is None:
            return False
        self._started = False
        return True

    def how(self) -> str:
        """How the process ended, for a line that begins with the slot's name."""
        return "was lost with its actor or its node" if self.code == LOST else super().how()

    def stop(self) -> None:
        """Let the process hand its trial back and end."""
        self._cluster.order("stop", self._index)

    def kill(self) -> None:
        """End the actor, and its process with it."""
        self._cluster.order("kill", self._index)
