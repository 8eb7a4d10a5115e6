"""Connections to PostgreSQL that cannot hang: every wait for the server has an end, whatever became of it.

libpq finds out that a host is gone (keepalives), and gives a server that does not answer up while it connects. A server
that is stopped, or stuck, still acknowledges on the wire; so a connection that says nothing while it is asked for
something is given up here, and a signal does not wait for it either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import sqlalchemy

from xray_opt.tuning.urls import parsed

#: Seconds to connect, and seconds without a byte after which a server that was asked for something counts as away.
CONNECT, SILENCE = 10, 20.0
#: Options of libpq: a host that vanished is noticed within half a minute. Those of the URL win.
ALIVE = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
#: Connections to a server are tried before use, and there is one for every thread that asks.
POOL = {"pool_pre_ping": True, "max_overflow": -1}

_left: ContextVar[float] = ContextVar("left", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """No wait for a server inside the block, in this thread, is longer than ``seconds`` (one at least)."""
    token = _left.set(min(_left.get(), max(seconds, 1.0)))
    try:
        yield
    finally:
        _left.reset(token)


def limit(usual: float) -> float:
    """Seconds for one wait: the usual ones, or those that ``within`` leaves."""
    return min(usual, _left.get())


def engine_options(url: str) -> dict[str, Any]:
    """What SQLAlchemy's ``create_engine`` gets for a server; psycopg alone can be kept from hanging in a query."""
    if parsed(url).drivername == "postgresql+psycopg":
        return {"creator": partial(connect, url)}
    if parsed(url).drivername == "postgresql+psycopg2":
        return {"connect_args": {**ALIVE, "connect_timeout": CONNECT, **parsed(url).query}}
    return {}


def one_connection(url: str) -> sqlalchemy.Engine:
    """An engine whose connections are closed when they are done."""
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **engine_options(url))


def connect(url: str) -> Any:
    """A new connection of psycopg to the server that the URL names."""
    parts = parsed(url)
    arguments, options = parts.get_dialect()().create_connect_args(parts)
    # libpq takes no fractions, and one second for two.
    usual = {"connect_timeout": max(2, int(limit(CONNECT)))}
    return _bounded().connect(*arguments, **{**ALIVE, **usual, **options})


@cache
def _bounded() -> Any:
    """A connection of psycopg that gives a silent server up; psycopg is there once its URL was opened."""
    import psycopg
    from psycopg import waiting

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return waiting.wait(_limited(gen, limit(SILENCE), self._given_up), self.pgconn.socket, interval)
            except (KeyboardInterrupt, SystemExit):
                # The server may never say that the query was cancelled; it ends what a closed connection began.
                self.pgconn.finish()
                raise

        def _given_up(self, seconds: float) -> Exception:
            self.pgconn.finish()
            return psycopg.OperationalError(f"the server did not answer for {seconds:.0f} s")

    return Bounded


def _limited(
    steps: Generator[Any, Any, Any], seconds: float, given_up: Callable[[float], Exception]
) -> Generator[Any, Any, Any]:
    """psycopg's own steps; they are told of every tenth of a second in which nothing came, and so is this."""
    heard = time.monotonic()
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if ready:
                heard = time.monotonic()
            elif time.monotonic() - heard > seconds:
                raise given_up(seconds)
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value
