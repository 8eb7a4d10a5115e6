"""``xray-opt storage serve``: one process in front of a database, for more workers than it has connections.

It answers Optuna's own gRPC calls, hands out the locks of the database behind it, and reaps: Optuna's proxy knows no
heartbeat, and where all workers of a study died at once nobody else would find their trials. There is no login and no
TLS: for trusted networks only.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage

from xray_opt.errors import ConfigError, StudyError, one_line
from xray_opt.interrupts import INTERRUPTED
from xray_opt.tuning.leases import Lease
from xray_opt.tuning.locks import HOLD, LATE, busy, sole_lock, study_lock
from xray_opt.tuning.proxy import ALIVE, PORT, SERVICE, TOKEN, grpc
from xray_opt.tuning.reaper import Reaper
from xray_opt.tuning.storage import open_database, storage_digest
from xray_opt.tuning.urls import FAULTS, LockBusy, is_proxy, masked

#: Calls that are answered at the same time; the others wait their turn.
THREADS = 12
#: Locks of different names that are waited for at the same time in the database.
LOCKS = 32
#: Seconds that running calls have when the proxy is stopped.
GRACE = 5.0
#: Seconds that the rest has then: a thread that waits in the database for a lock waits up to an hour.
REST = 3.0
LOCAL = ("127.0.0.1", "localhost", "::1")
OPTIONS = (
    *ALIVE,
    ("grpc.so_reuseport", 0),  # a second proxy on the port must be told
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)

T = TypeVar("T")


def serve(
    url: str,
    host: str = LOCAL[0],
    port: int = PORT,
    say: Callable[[str], None] = lambda line: None,
    lease: Lease = Lease(),
) -> None:
    """Serve the database until SIGINT, SIGTERM or SIGHUP, with which this process ends, whoever waits in the database.

    Args:
        port: 0 takes a free one, and says which.
        say: told where it listens, and what it reaps.
        lease: how long a running trial without a sign of life is waited for.

    Raises:
        ConfigError: it is no URL of a database.
        StudyError: the storage cannot be opened, or the port cannot be had.
        KeyboardInterrupt: after the running calls were answered.
    """
    if is_proxy(url):
        raise ConfigError(f"{masked(url)} is a proxy itself: name the database behind it with --storage")
    database = open_database(url)
    asyncio.run(_serve(database, host, port, say, lease))
    raise KeyboardInterrupt


async def _serve(database: RDBStorage, host: str, port: int, say: Callable[[str], None], lease: Lease) -> None:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What a handler raises within a callback of gRPC's may end in a segmentation fault.
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stopped.set)
    locks = Locks(database)
    server = grpc.aio.server(ThreadPoolExecutor(THREADS), interceptors=(_Gate(locks),), options=OPTIONS)
    # Not above: without grpcio the line of ``proxy`` must come first.
    from optuna.storages._grpc.auto_generated.api_pb2_grpc import add_StorageServiceServicer_to_server
    from optuna.storages._grpc.servicer import OptunaStorageProxyService

    add_StorageServiceServicer_to_server(OptunaStorageProxyService(_Cached(database)), server)  # type: ignore[no-untyped-call]
    about = json.dumps({"digest": storage_digest(database.url), "optuna": optuna.__version__}).encode()
    ours = {
        "About": grpc.unary_unary_rpc_method_handler(lambda request, context: about),
        "Hold": grpc.stream_stream_rpc_method_handler(locks.hold),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, ours),))
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError as error:
        raise StudyError(f"cannot listen on {shown}:{port} (is it taken?); choose another --port or --host") from error
    await server.start()
    reaping = asyncio.create_task(_Reaping(Reaper(database, lease, say), locks, say).go_on(lease.every))
    if host not in LOCAL:
        say(f"WARNING: {shown} can be reached from outside, without login or encryption: for trusted networks only")
    say(f"{masked(database.url)} is served at grpc://{shown}:{bound}; Ctrl-C ends that")
    try:
        await stopped.wait()
    finally:
        _end_for_sure()
        reaping.cancel()
        await server.stop(GRACE)


def _end_for_sure() -> None:
    """Python waits for its threads, and theirs may be long waits: the locks of a dead process are free as well."""
    last = threading.Timer(GRACE + REST, os._exit, (INTERRUPTED,))
    last.daemon = True
    last.start()


class Locks:
    """The locks of a database, each given to one client after the other in the order in which they asked.

    A waiting client costs neither a thread nor a connection; only the first of each line waits in the database, where
    other proxies, and workers without one, may hold the same lock.
    """

    def __init__(self, database: RDBStorage) -> None:
        self._database = database
        self._lines: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._threads = ThreadPoolExecutor(LOCKS)
        self.tokens: set[str] = set()

    async def hold(self, asked: AsyncIterator[bytes], context: Any) -> None:
        """Answer a client with a token when it has the lock, with nothing if it is taken; it ends with the call."""
        try:
            wanted = json.loads(await anext(asked))
            async with self.held(wanted["name"], wanted["wait"], wanted["most"], wanted["limit"]) as token:
                await context.write(token.encode())
                await _lives(asked, wanted["limit"])
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the lock of {wanted['name']} is lost")
        except LockBusy as error:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
        except FAULTS as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, one_line(error.__cause__ or error, 200))
        except StudyError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    @asynccontextmanager
    async def held(
        self, name: str, wait: bool = True, most: float | None = None, limit: float | None = None
    ) -> AsyncIterator[str]:
        """Hold a lock here and in the database; gives its token, an empty one where it is not held.

        Args:
            most: seconds to stand in line.
            limit: see ``study_lock``.

        Raises:
            LockBusy: it did not come to the head of the line.
        """
        line = self._lines[name]
        if not wait and line.locked():
            yield ""
            return
        try:
            async with asyncio.timeout(most):
                await line.acquire()
        except TimeoutError:
            raise busy(name, self._database.url, most or 0.0) from None
        try:
            lock = study_lock(self._database, name, hold=limit) if wait else sole_lock(self._database.url, name)
            stack, token = ExitStack(), uuid.uuid4().hex
            entered = asyncio.ensure_future(self._run(partial(stack.enter_context, lock)))
            try:
                if await asyncio.shield(entered) is False:
                    token = ""
                else:
                    self.tokens.add(token)
                yield token
            finally:
                self.tokens.discard(token)
                await asyncio.shield(asyncio.ensure_future(self._leave(entered, stack)))
        finally:
            line.release()

    async def _leave(self, entered: asyncio.Future[Any], stack: ExitStack) -> None:
        """A client that is gone may still be waiting in the database: what it gets there is given back."""
        with suppress(*FAULTS, StudyError):
            await entered
        await self._run(stack.close)

    async def _run(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)


async def _lives(signs: AsyncIterator[bytes], limit: float | None) -> None:
    """Wait until a holder lets go.

    Raises:
        TimeoutError: it gave no sign of life for ``limit`` seconds: it hangs.
    """
    async with asyncio.timeout(limit) as patience:
        async for _ in signs:
            if limit is not None:
                patience.reschedule(asyncio.get_running_loop().time() + limit)


class _Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls under a lock that is not held any more; a fault of the database is one line, no traceback."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The handler of a call, with the checks around it."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        token = dict(details.invocation_metadata or ()).get(TOKEN)

        def answer(request: Any, context: Any) -> Any:
            if token and token not in self._locks.tokens:
                context.abort(grpc.StatusCode.ABORTED, "the lock was lost")
            try:
                return handler.unary_unary(request, context)
            except FAULTS as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, one_line(error.__cause__ or error, 200))

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


class _Cached(_CachedStorage):
    """Optuna's cache; one that was started anew does not know the trials that it has not listed yet."""

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See Optuna's storages."""
        try:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        except KeyError:
            self._backend.set_trial_param(trial_id, param_name, param_value_internal, distribution)


class _Reaping:
    """Looks for lost workers again and again, whatever goes wrong; a study that is stuck holds up no other one."""

    def __init__(self, reaper: Reaper, locks: Locks, say: Callable[[str], None]) -> None:
        self._reaper, self._locks, self._say = reaper, locks, say
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._failing: set[str] = set()

    async def go_on(self, every: float) -> None:
        """Look, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            async with self._told(""):
                for name in await loop.run_in_executor(None, self._reaper.suspects):
                    if name not in self._busy:
                        self._busy[name] = asyncio.create_task(self._reap(name))
            await asyncio.sleep(every)

    async def _reap(self, name: str) -> None:
        try:
            async with self._told(name):
                async with self._locks.held(name, most=LATE, limit=HOLD):
                    await asyncio.to_thread(self._reaper.reap, name)
                await asyncio.to_thread(self._reaper.tell, name)
        finally:
            del self._busy[name]

    @asynccontextmanager
    async def _told(self, name: str) -> AsyncIterator[None]:
        """What goes wrong is said once, until all is well again; by a thread, as a terminal may be stopped (Ctrl-S)."""
        try:
            yield
            self._failing.discard(name)
        except Exception as error:
            if name not in self._failing:
                where = f" in study {name}" if name else ""
                why = one_line(error.__cause__ or error, 200)
                self._failing.add(name)
                await asyncio.to_thread(self._say, f"cannot look for lost workers{where} ({why}); trying again")
