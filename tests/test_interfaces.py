"""The two user interfaces: ports are checked, both start and answer, both end."""

import signal
import socket
import urllib.request

import pytest

from xray_opt.errors import XrayError
from xray_opt.interfaces import require_free


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_taken_port_is_refused_with_its_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(XrayError, match="--mlflow-port"):
            require_free(taken.getsockname()[1], "--mlflow-port")


def test_a_free_port_is_free():
    port = free_port()
    require_free(port, "--mlflow-port")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        assert probe.getsockname()[1] == port


def test_one_port_for_both_is_refused(tuned):
    place, _, _ = tuned
    done = place.run("ui", "--mlflow-port", "5999", "--dashboard-port", "5999")
    assert done.returncode == 1
    assert "two ports" in done.stderr


@pytest.mark.slow
def test_both_start_answer_and_end(tuned):
    place, _, _ = tuned
    mlflow, dashboard = free_port(), free_port()
    process = place.start("ui", "--mlflow-port", str(mlflow), "--dashboard-port", str(dashboard))
    lines = []
    while "Ctrl-C ends both\n" not in lines:
        line = process.stdout.readline()
        assert line or process.poll() is None, process.stderr.read()
        lines.append(line)
    for port in (mlflow, dashboard):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/studies", timeout=30) as answer:
        assert "tiny" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=400)
    assert process.returncode == 130
    for port in (mlflow, dashboard):
        require_free(port, "--port")
