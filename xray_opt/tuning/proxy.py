"""A worker's side of ``xray-opt storage serve``: Optuna's gRPC proxy, with locks, time limits and clear errors.

Optuna's own client waits for ever, raises gRPC's errors and has no locks. Here a failed call is what a failed database
is to everybody else. While a lock is held its token goes with every call of the thread, and the proxy refuses a token
that it does not know: a lock that was lost with a restart cannot be written under.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import GrpcStorageProxy

from xray_opt.errors import ConfigError, StudyError, one_line
from xray_opt.tuning.connecting import limit as at_most
from xray_opt.tuning.locks import QUIET, living, longest, lost
from xray_opt.tuning.urls import LockBusy, StorageAway, masked, parsed

log = logging.getLogger(__name__)

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
try:
    import grpc as grpc  # for ``serving`` too
    from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
    from optuna.storages._grpc.client import GrpcClientCache
except ImportError as missing:
    raise ConfigError("a storage grpc://… needs grpcio: install xray-opt[grpc]") from missing

PORT = 13000
#: Our own calls beside Optuna's, and the metadata in which the token of a lock goes.
SERVICE, TOKEN = "xray_opt.Storage", "xray-opt-lock"
#: Seconds for one call; one that waits for a lock may take longer, and its answer so much more.
CALL, SLACK = 30.0, 1.0
#: Either side finds out within half a minute that the other's machine is gone, and a lock falls free.
ALIVE = (("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000))
OPTIONS = (
    *ALIVE,
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
)
#: Codes that Optuna's client turns into its own exceptions.
MEANT = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
)


@dataclass(frozen=True)
class About:
    """What a proxy says of itself: the digest of the storage behind it, and its version of Optuna."""

    digest: str
    optuna: str


class ProxiedStorage(GrpcStorageProxy):
    """The storage behind ``grpc://host:port``; connects with the first call."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = parsed(url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(host=parts.host or "localhost", port=parts.port or PORT)

    def _setup(self) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._channel = grpc.insecure_channel(f"{host}:{self._port}", OPTIONS)
        self._stub = _Stub(StorageServiceStub(self._channel), self._call)  # type: ignore[assignment, no-untyped-call]
        self._cache = GrpcClientCache(self._stub)
        self._about = self._channel.unary_unary(f"/{SERVICE}/About")
        self._hold = self._channel.stream_stream(f"/{SERVICE}/Hold")
        self._held = threading.local()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        token = getattr(self._held, "token", None)
        with _clearly():
            return method(request, timeout=at_most(CALL), metadata=((TOKEN, token),) if token else ())

    def about(self) -> About:
        """What the proxy says of itself.

        Raises:
            StorageAway: it does not answer.
            StudyError: it is none of ours, or has another Optuna.
        """
        try:
            said = About(**json.loads(self._call(self._about, b"")))
        except (grpc.RpcError, StorageInternalError) as error:
            raise StorageAway(
                f"storage {masked(self.url)} does not answer ({one_line(error)}): start it there with xray-opt storage "
                "serve, then run the same command again"
            ) from error
        except (TypeError, ValueError) as error:
            raise StudyError(
                f"storage {masked(self.url)} is no proxy of xray-opt ({one_line(error)}): start one there with "
                "xray-opt storage serve"
            ) from error
        if said.optuna != optuna.__version__:
            raise StudyError(
                f"storage {masked(self.url)} runs Optuna {said.optuna}, this is {optuna.__version__}: install the same "
                "xray-opt on both"
            )
        return said

    @contextmanager
    def hold(
        self, name: str, wait: bool = True, say: Callable[[str], None] = log.warning, limit: float | None = None
    ) -> Iterator[bool]:
        """Hold a lock of the storage behind: whether it is held, which is always so for one that is waited for.

        Args:
            say: told where that takes long.
            limit: seconds without a sign of life after which the proxy may give the lock to others, as this holder
                hangs; none means never.

        Raises:
            LockBusy: the lock was not to be had.
            LockLost: at its end: the proxy went away, or gave the lock to others.
            StorageInternalError: the proxy does not answer.
        """
        ours: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        most = longest(name, server=True)
        ours.put(json.dumps({"name": name, "wait": wait, "limit": limit, "most": most}).encode())
        call = self._hold(iter(ours.get, None))
        before = getattr(self._held, "token", None)
        try:
            with _clearly(), _given_up(call, most + SLACK), _saying(say, name, masked(self.url)):
                token = _answer(call)
            self._held.token = token or before
            with nullcontext() if limit is None else living(partial(ours.put, b"here"), limit / 4):
                yield bool(token)
            ours.put(None)
            try:
                with _clearly(), _given_up(call, at_most(CALL)):  # its end says that the lock was held until now
                    for _ in call:
                        pass
            except StorageInternalError as error:
                raise lost(name, self.url, error) from error
        finally:
            self._held.token = before
            ours.put(None)
            call.cancel()


def _answer(call: Any) -> str:
    """The token of a lock; the call itself has no time limit, so one that ran out is that of the wait."""
    try:
        return str(next(call).decode())
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise LockBusy(error.details()) from None
        raise


@contextmanager
def _saying(say: Callable[[str], None], name: str, url: str) -> Iterator[None]:
    """Say once that a lock is waited for where the block takes long."""
    line = f"waiting for the lock of {name.lstrip(':').replace(':', ' ')} in storage {url}"
    with _later(QUIET, partial(say, line)):
        yield


def _given_up(call: Any, seconds: float) -> AbstractContextManager[None]:
    """End a call where the block, which waits for it, takes longer: the proxy hangs."""
    return _later(seconds, call.cancel)


@contextmanager
def _later(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Act where the block takes longer than so many seconds."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Stub:
    """Optuna's stub, every call of it made by ``call``."""

    def __init__(self, stub: Any, call: Callable[[Callable[..., Any], Any], Any]) -> None:
        self._stub, self._call = stub, call

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        method = getattr(self._stub, name)
        return lambda request: self._call(method, request)


@contextmanager
def _clearly() -> Iterator[None]:
    """Turn gRPC's errors into what a database raises; those that Optuna's client knows stay."""
    try:
        yield
    except StopIteration:
        raise StorageInternalError("the proxy ended the call") from None
    except grpc.RpcError as error:
        if error.code() in MEANT:
            raise
        if error.code() == grpc.StatusCode.CANCELLED:
            raise StorageInternalError("the proxy did not answer in time") from None
        raise StorageInternalError(one_line(Exception(error.details()), 200)) from None
