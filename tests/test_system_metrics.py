"""Room system_metrics: samples come at once and regularly, and nothing that goes wrong reaches the training."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from xray_opt.system_metrics import Gpus, SystemSampler, machine


def test_the_first_sample_comes_at_once_and_stop_is_prompt() -> None:
    came = threading.Event()
    samples: list[tuple[dict[str, float], int]] = []

    def send(sample: dict[str, float], index: int) -> None:
        samples.append((sample, index))
        came.set()

    sampler = SystemSampler(send, interval=3600)
    sampler.start()
    assert came.wait(60)
    began = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began < 1
    assert samples[0][1] == 0
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(samples[0][0])


def test_samples_are_numbered() -> None:
    indices: list[int] = []
    third = threading.Event()

    def send(_: dict[str, float], index: int) -> None:
        indices.append(index)
        if index == 2:
            third.set()

    sampler = SystemSampler(send, interval=0.01)
    sampler.start()
    assert third.wait(60)
    sampler.stop()
    assert indices[:3] == [0, 1, 2]
    seen = len(indices)
    time.sleep(0.05)
    assert len(indices) == seen


def test_an_interval_of_zero_samples_nothing() -> None:
    seen: list[int] = []
    sampler = SystemSampler(lambda sample, index: seen.append(index), interval=0)
    sampler.start()
    sampler.stop()
    assert seen == []


def test_a_failing_send_is_warned_of_once_and_sampling_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls = []
    enough = threading.Event()

    def send(sample: dict[str, float], index: int) -> None:
        calls.append(index)
        if len(calls) > 3:
            enough.set()
        raise ConnectionError("no server")

    with caplog.at_level(logging.WARNING):
        sampler = SystemSampler(send, interval=0.01)
        sampler.start()
        assert enough.wait(60)
        sampler.stop()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "no server" in warnings[0].getMessage()


def test_a_hanging_send_does_not_hold_up_the_end() -> None:
    hangs, free = threading.Event(), threading.Event()

    def send(sample: dict[str, float], index: int) -> None:
        hangs.set()
        free.wait(30)

    sampler = SystemSampler(send, interval=0.01)
    sampler.start()
    assert hangs.wait(60)
    began = time.monotonic()
    sampler.stop(patience=0.1)
    assert time.monotonic() - began < 2
    free.set()


def test_values_are_plausible() -> None:
    sample = machine()
    assert 0 <= sample["system/cpu_utilization_percentage"] <= 100
    assert 0 < sample["system/system_memory_usage_percentage"] <= 100
    assert sample["system/system_memory_usage_megabytes"] > 10


def test_a_machine_without_nvidia_driver_has_no_gpu_metrics_and_no_error() -> None:
    with Gpus() as gpus:
        values = gpus.sample()
    assert all(name.startswith("system/gpu_") and value >= 0 for name, value in values.items())
