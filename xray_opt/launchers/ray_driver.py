"""The process that speaks with Ray for a call: ``python -m xray_opt.launchers.ray_driver DESCRIPTOR``.

Ray ends such a process from within, without a word, when the node that it is on or the cluster's head is lost. The call
lives on to say so, and to end what was begun. Orders come as lines of JSON on standard input, whose end is that of the
call; what happens is told on the descriptor. Here alone is Ray imported.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, Any

from xray_opt.errors import ConfigError, StudyError, XrayError, one_line, shortened
from xray_opt.launchers.keeper import LOST, Keeper, Share
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job, Teller

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray

#: Seconds that a slot waits for room in the cluster.
ROOM = 60.0
#: Seconds that slots have to hand their trials back when their call is gone.
GRACE = 20.0
#: Bytes of shared memory for a Ray of our own: what goes through it are short lines. Ray takes no less.
STORE = 80 * 2**20
#: Variables with these beginnings go to the nodes: where the stores are, and the logins.
TAKEN_ALONG = ("MLFLOW_", "XRAY_OPT_", "AWS_")
#: What to try where a cluster refuses: Ray does not tell why.
TOKEN = "where it wants a token, set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"


def main(descriptor: int) -> None:
    """Join the cluster that the first line of standard input names, and obey until the orders end."""
    os.set_inheritable(descriptor, False)
    teller, orders = Teller(descriptor), sys.stdin.buffer
    try:
        with connected(**json.loads(orders.readline())):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # those for the call may come here as well
                signal.signal(number, signal.SIG_IGN)
            teller.tell("cluster", **_nodes())
            _obey(orders, teller)
    except XrayError as error:
        teller.error(error)


@contextmanager
def connected(address: str, workers: int) -> Iterator[None]:
    """Join a cluster, or start one on this machine (``local``), until the end of the block.

    Raises:
        ConfigError: it refuses.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options: dict[str, Any] = {}
    if address == "local":
        options = {"num_cpus": max(workers, cores), "include_dashboard": False, "object_store_memory": STORE}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # whatever Ray raises: of another version, no token, no room in /dev/shm
        hint = "" if address == "local" else f"; {TOKEN}"
        raise ConfigError(f"cannot use the Ray cluster {address}: {one_line(error, 300)}{hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _nodes() -> dict[str, Any]:
    """What ``ray_nodes.Nodes`` is made of."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    resources = [(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in (node["Resources"] for node in alive)]
    return {"resources": resources, "machines": len({node["NodeManagerAddress"] for node in alive})}


def _obey(orders: IO[bytes], teller: Teller) -> None:
    slots: dict[int, _Kept] = {}
    for line in orders:
        try:
            order = json.loads(line)
        except ValueError:  # the call died while it wrote
            break
        kept = slots.setdefault(order["slot"], _Kept(order["slot"], teller))
        if order["do"] == "start":
            kept.start(**order["with"])
        elif order["do"] == "stop":
            kept.stop()
        else:
            kept.kill()
    deadline = time.monotonic() + GRACE  # a call that is over has none that run; one that was killed may
    for kept in slots.values():
        kept.stop()
    for kept in slots.values():
        kept.wait(deadline - time.monotonic())


class _Kept:
    """A slot that is kept by an actor; a thread here asks that for news and passes them on."""

    def __init__(self, index: int, teller: Teller) -> None:
        self._index, self._teller = index, teller
        self._actor: Any = None
        self._stopped = False
        self._seen = 0
        self._thread: threading.Thread | None = None

    def start(self, number: int, job: str, slot: dict[str, Any], share: dict[str, Any]) -> None:
        """Start the slot's process of that number on a node, once the cluster has room for it."""
        arguments = (number, Job.read(job.encode()), Slot(**slot), Share(**share))
        self._thread = threading.Thread(target=self._follow, args=arguments, name=slot["name"], daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the process hand its trial back and end."""
        self._stopped = True
        if (actor := self._actor) is not None:
            actor.stop.remote()

    def kill(self) -> None:
        """End the actor, and its process with it."""
        if self._actor is not None:
            with suppress(ray.exceptions.RayError):
                ray.kill(self._actor)
            self._actor = None

    def wait(self, seconds: float) -> None:
        """Until the process is over, or for so many seconds."""
        if self._thread is not None:
            self._thread.join(max(seconds, 0.0))

    def _follow(self, number: int, job: Job, slot: Slot, share: Share) -> None:
        try:
            code, error = self._followed(number, job, slot, share), None
        except ray.exceptions.GetTimeoutError:
            self.kill()
            error = StudyError(f"the cluster had no room for it in {ROOM:.0f} s")
            code = error.exit_code
        except Exception as problem:
            self.kill()
            code, error = LOST, None
            if not _is_lost(problem):
                error = StudyError(f"it cannot run on its node: {_last_line(problem)}")
        self._teller.tell("over", slot=self._index, code=code, error=error and str(error))

    def _followed(self, number: int, job: Job, slot: Slot, share: Share) -> int:
        """The exit code of the process, whose news were passed on."""
        began = time.monotonic()
        actor = self._placed(share)
        if job.timeout is not None:  # it counts from the call on, not from when there was room
            job = replace(job, timeout=max(job.timeout - (time.monotonic() - began), 0.0))
        variables = {key: value for key, value in os.environ.items() if key.startswith(TAKEN_ALONG)}
        _ask(actor, "start", number, job.line(), slot, share, variables, os.getcwd())
        while True:
            events, code = _ask(actor, "news", self._seen)
            self._seen += len(events)
            for event in events:
                self._teller.tell("news", slot=self._index, what=event)
            if code is not None:
                return int(code)

    def _placed(self, share: Share) -> Any:
        """The actor that is there, or a new one."""
        if (actor := self._actor) is None:
            kept: Any = ray.remote(Keeper)
            self._actor = actor = kept.options(num_cpus=share.cpus, num_gpus=share.gpus).remote()
            if self._stopped:  # before there was an actor to tell
                actor.stop.remote()
            self._seen = 0
            self._teller.tell("placed", slot=self._index, host=ray.get(actor.host.remote(), timeout=ROOM))
        return actor


def _is_lost(error: Exception) -> bool:
    """Whether an actor lived, so that another one may; one that could not even be made has no xray-opt on its node."""
    return isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed


def _last_line(error: Exception) -> str:
    """Ray's errors are whole tracebacks; what happened stands at the end."""
    return shortened(str(error).strip().rpartition("\n")[2], 200) or type(error).__name__


def _ask(actor: Any, what: str, *arguments: Any) -> Any:
    """An actor's answer; one that cannot be reached for a moment is asked again: Ray decides when it is dead."""
    while True:
        try:
            return ray.get(getattr(actor, what).remote(*arguments))
        except ray.exceptions.ActorUnavailableError:
            time.sleep(1.0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
