"""A small proxy in front of a real server: TLS with a CA of its own, another clock; and a server that hangs."""

import http.client
import http.server
import io
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HOP = {"connection", "transfer-encoding", "content-length", "date", "server", "content-encoding"}


@contextmanager
def front(uri, certificate=None, ahead=0.0):
    """URI of a proxy before ``uri``, whose clock is ahead; with a certificate (and key, in one file) it speaks TLS."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(urlsplit(uri).netloc, ahead))
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def handler(netloc, ahead):
    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            inner = http.client.HTTPConnection(netloc, timeout=120)
            headers = {
                key: value for key, value in self.headers.items() if key.lower() not in ("host", "accept-encoding")
            }
            inner.request(self.command, self.path, body, headers | {"Host": netloc, "Accept-Encoding": "identity"})
            response = inner.getresponse()
            content = response.read()
            self.send_response_only(response.status)
            for key, value in response.getheaders():
                if key.lower() not in HOP:
                    self.send_header(key, value)
            self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            inner.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *args):
            pass

    return Handler


def certificates(folder: Path):
    """The file of a CA, and one with the certificate and key that it signed for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    ca, key, server = folder / "ca.pem", folder / "ca.key", folder / "server.pem"

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-keyout", key, "-out", ca, "-subj", "/CN=test CA")
    own, name = folder / "own.key", ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    openssl(*new, "-keyout", own, "-out", folder / "own.pem", *name, "-CA", ca, "-CAkey", key)
    server.write_text((folder / "own.pem").read_text() + own.read_text())
    return ca, server


@contextmanager
def silent():
    """Port of a server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


class Faulty:
    """A proxy before ``netloc`` with a mood: ``ok``, ``down`` (hangs up), ``drop`` (does it and hangs up), ``slow``
    (does it and answers when the mood changes), ``full`` (answers questions, and 500 to all that writes), or a status
    that it answers by itself. ``asked`` counts requests; those that hold ``poison`` are answered 500 in any mood."""

    def __init__(self, uri):
        self.mood, self.asked, self.poison = "ok", 0, b""
        self.changed = threading.Event()
        inner = handler(urlsplit(uri).netloc, 0.0)
        front = self

        class Handler(inner):
            def answer(self):
                front.asked += 1
                mood, stream = front.mood, self.rfile
                if front.poison:
                    self.rfile = io.BytesIO(stream.read(int(self.headers.get("Content-Length") or 0)))
                    mood = 500 if front.poison in self.rfile.getvalue() else mood
                if mood == "full":
                    mood = "ok" if self.command == "GET" or "/search" in self.path else 500
                if mood == "down":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif isinstance(mood, int):
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    self.send_response(mood)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif mood in ("drop", "slow"):
                    out, self.wfile = self.wfile, io.BytesIO()
                    super().answer()
                    if mood == "slow":
                        front.changed.wait(60)
                    self.wfile = out
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                else:
                    super().answer()
                self.rfile = stream

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.changed.set()
        self._server.shutdown()
        self._server.server_close()
