"""MLflow's scoring server, and around it what tells a client in one line what is wrong with a request.

uvicorn loads this file by itself, and it imports nothing of this package: the model brings its own copy of that. Added
to MLflow's app are a limit of a request's size, one prediction at a time, and errors without traces and inputs.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import mlflow.pyfunc
from mlflow.pyfunc import scoring_server

#: Variables that this app reads: URI of the model, bytes of the largest request.
MODEL, MOST = "XRAY_OPT_SERVE_MODEL", "XRAY_OPT_SERVE_MOST_BYTES"
#: What MLflow's app says where the model itself failed: no fault of the request.
UNEXPECTED = "Encountered an unexpected error while evaluating the model"
NOT_JSON = "Ensure that input is a valid JSON formatted string"
#: Letters of an answer's message.
LONGEST = 300
CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE"}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guarded:
    """An ASGI app around MLflow's."""

    def __init__(self, app: Any, most: int) -> None:
        self._app = app
        self._most = most
        self._turn = asyncio.Semaphore(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on whatever is no prediction; read a request whole, then answer it when it is its turn."""
        if scope["type"] != "http" or scope["path"] != "/invocations" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if not kinds:
            await _refuse(send, 415, "the request has no Content-Type; send application/json")
            return
        body = await self._body(receive)
        if body is None:
            await _refuse(send, 413, f"the request has more than {self._most >> 20} MiB; send fewer films at once")
            return
        # A network uses all cores by itself, and so memory is that of one prediction and of the bodies that wait.
        async with self._turn:
            answer = await _asked(self._app, scope, body)
        await _deliver(send, *answer)

    async def _body(self, receive: Receive) -> bytes | None:
        """The request's body; none where it is too large. What comes behind the limit is read and let go."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            part = message.get("body", b"")
            size += len(part)
            if size <= self._most:
                parts.append(part)
            elif size > 4 * self._most:
                return None
            if not message.get("more_body"):
                return b"".join(parts) if size <= self._most else None


async def _asked(app: Any, scope: Scope, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the app's answer; an error's body is made anew."""
    said: list[Message] = []
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the app waits for the client to go away; it is told when it is done
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def keep(message: Message) -> None:
        said.append(message)

    try:
        await app(scope, receive, keep)
    except MemoryError:
        return _error(500, "out of memory; send fewer films at once")
    except Exception as error:  # MLflow says nothing of what its readers of JSON, CSV and Parquet raise
        return _error(400, f"the request cannot be read ({type(error).__name__}): {error}")
    status = next((one["status"] for one in said if one["type"] == "http.response.start"), 500)
    content = b"".join(one.get("body", b"") for one in said if one["type"] == "http.response.body")
    if status < 400:
        headers = next(one["headers"] for one in said if one["type"] == "http.response.start")
        return status, [*headers], content
    message = _message(content)
    if UNEXPECTED in message:
        return _error(500, "the model failed; the server's log says how")
    return _error(status, told(message))


def _message(content: bytes) -> str:
    """What an answer of MLflow says: JSON with a message, or plain text."""
    text = content.decode("utf-8", "replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, LookupError, TypeError):
        return text


def told(message: str) -> str:
    """The reason alone: MLflow repeats the whole input before or behind it."""
    head = message.partition("\nInput:")[0]
    if "UnicodeDecodeError" in head:  # it shows the bytes
        return "the body is not UTF-8"
    reason = head.rpartition("Error: ")[2]
    return f"the body is not JSON: {reason}" if NOT_JSON in head else reason


def _error(status: int, message: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    code = CODES.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR")
    line = " ".join(message.split())
    short = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    content = json.dumps({"error_code": code, "message": short}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    return status, headers, content


async def _refuse(send: Send, status: int, message: str) -> None:
    await _deliver(send, *_error(status, message))


async def _deliver(send: Send, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def make_app() -> Guarded:
    """The app of the model that the environment names; uvicorn calls this in each of its processes."""
    model = mlflow.pyfunc.load_model(os.environ[MODEL])
    return Guarded(scoring_server.init(model), int(os.environ[MOST]))
