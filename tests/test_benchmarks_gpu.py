"""What `make bench-gpu` runs, at toy size on the CPU: it runs, says what only a GPU can tell, and judges the goals."""

import importlib
import json
import re
import subprocess
import sys

import pytest
import torch
from test_benchmarks import BENCHMARKS, ROOT, line, toy

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.bench
def test_memory_is_estimated_everywhere_and_measured_on_a_gpu(tmp_path):
    output, sections = toy("memory.py", tmp_path)
    saved = {name: samples[0]["mib"] for name, samples in sections["saved"]["samples"].items()}
    assert set(saved) == {
        f"{variant}, {precision}"
        for variant in ("peft", "peft, BatchNorm frozen", "folded", "folded, BatchNorm frozen")
        for precision in ("fp32", "bf16")
    }
    assert saved["folded, BatchNorm frozen, bf16"] < saved["folded, bf16"] < saved["peft, bf16"]
    assert saved["folded, BatchNorm frozen, bf16"] < 0.6 * saved["folded, BatchNorm frozen, fp32"]
    assert set(sections["peak"]["absent"].values()) == {"not measured on a CPU"}
    assert set(sections["automatic"]["absent"]) == {f"{gb} GB: {name}" for gb in (4, 8, 16) for name in MEASURED}
    assert "not measured on a CPU" in line(output, "4 GB: plain peft")


MEASURED = ("plain peft", "folded, BatchNorm frozen", "… as a CUDA graph")


def test_what_is_saved_is_counted_once_and_without_the_weights(script):
    memory = script("memory")

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, 3, 4, 4))

        def forward(self, images):
            inner = images * self.weight  # saves the images
            return (inner.exp() * inner).sum(dim=(1, 2, 3))[:, None]  # saves inner, and what exp gave: once each

    one, two = (memory.saved_bytes(Twice(), films, 4, torch.float32) for films in (1, 2))
    assert two - one == 3 * (3 * 4 * 4 * 4)


@pytest.mark.bench
def test_processes_begin_together_and_train_whole_trials(tmp_path):
    output, sections = toy("per_gpu.py", tmp_path, "--device", "cpu")
    samples = sections["per device"]["samples"]
    assert set(samples) == {"1 at once", "2 at once"}
    for name, count in (("1 at once", 1), ("2 at once", 2)):
        values = samples[name][0]
        assert values["trials_hour"] * values["seconds"] == pytest.approx(3600 * count)
        assert values["img_s"] * values["seconds"] == pytest.approx(16 * count)
    assert "a trial: 1 epochs of 16 films at 32 px, batch 8" in output


def test_mps_that_is_not_there_is_said(script, tmp_path, monkeypatch):
    per_gpu = script("per_gpu")
    monkeypatch.setattr(per_gpu.shutil, "which", lambda name: None)
    with pytest.raises(per_gpu.Absent, match="nvidia-cuda-mps-control is not there"):
        per_gpu.under_mps({}, 2, tmp_path)


@pytest.mark.bench
def test_a_step_is_taken_apart_by_kind(tmp_path):
    out = tmp_path / "profile.json"
    command = [sys.executable, str(BENCHMARKS / "profile_step.py"), "--toy", "--ways", "eager", "graphs"]
    command += ["--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(len(row) <= 80 for row in done.stdout.splitlines() if not row.startswith("raw"))
    ways = json.loads(out.read_text())["ways"]
    assert set(ways) == {"eager"}
    kinds = {row["kind"] for row in ways["eager"]["rows"]}
    assert {"convolution", "optimizer", "copy, fill", "elementwise"} <= kinds
    spent = sum(row["us"] for row in ways["eager"]["rows"]) / 1e6
    assert 0 < spent < 3 * ways["eager"]["seconds"]  # the profiler costs time as well


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816wgrad_optimized>", "convolution"),
        ("void conv2d_grouped_direct_kernel<at::BFloat16>", "convolution"),
        ("ampere_sgemm_64x32_sliced1x4_nn", "matrix product (fold, head)"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("void at::native::batch_norm_transform_input_channels_last_kernel", "norm"),
        ("Memcpy DtoD (Device -> Device)", "copy, fill"),
        ("void at::native::vectorized_elementwise_kernel<4, silu_kernel>", "elementwise"),
        ("void at::native::reduce_kernel<512, 1, MeanOps>", "reduce"),
        ("something new", "other"),
    ],
)
def test_kernels_are_known_by_their_names(script, name, kind):
    assert script("profile_step").kind_of(name) == kind


def ceiling(trainer: float, one_batch: float, plain: float) -> dict:
    samples = {
        "ceiling: one batch": one_batch,
        "Trainer, real films": trainer,
        "plain: DataLoader, PIL, peft": plain,
        "Trainer, real films, CUDA graphs": 2 * trainer,
        "ceiling: one batch, CUDA graphs": 2 * one_batch,
    }
    section = {"samples": {name: [{"img_s": value}] for name, value in samples.items()}, "absent": {}}
    return {"arguments": {"device": "cuda"}, "sections": {"384/16": section, "cache": {"samples": {}, "absent": {}}}}


def test_every_goal_has_a_row_with_its_verdict(tmp_path):
    write = {
        "ceiling-gpu.json": ceiling(96.0, 100.0, 40.0),
        "step-gpu.json": [
            {"variant": name, "size": 384, "batch": batch, "peak_mib": 1.0, "way": way, "images_per_second": speed}
            for name, batch, way, speed in (
                ("folded, BatchNorm frozen", 16, "eager", 900.0),
                ("folded, BatchNorm frozen, graphs", 16, "graphs", 1600.0),
                ("folded, BatchNorm frozen", 64, "eager", 1900.0),
                ("peft", 64, "eager", 9000.0),
            )
        ],
        "per-gpu.json": {
            "arguments": {"device": "cuda", "epochs": 10, "films": 4200},
            "sections": {"per device": {"samples": {"1 at once": [{"trials_hour": 130.0}], "2 at once": []}}},
        },
    }
    for name, document in write.items():
        (tmp_path / name).write_text(json.dumps(document))
    rows = judged(tmp_path)
    assert [row[:4].strip() for row in rows] == ["G2", "G2", "G3", "G3", "G4", "G4", "G5", "G10"]
    assert [verdict(row) for row in rows] == ["met", "met", "met", "not met", "not met", "met", "met", "not measured"]
    assert "1600 img/s" in rows[2]
    assert "memory-gpu.json is missing" in rows[7]


def judged(folder) -> list[str]:
    command = [sys.executable, str(BENCHMARKS / "goals.py"), "--results", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [row for row in done.stdout.splitlines() if re.match(r"G\d", row)]


def verdict(row: str) -> str:
    return next(words for words in ("not measured", "not met", "met") if row.endswith(words))


def test_what_was_measured_elsewhere_than_on_the_goals_size_or_device_is_not_judged(tmp_path):
    (tmp_path / "ceiling-gpu.json").write_text(json.dumps(ceiling(1.0, 1.0, 1.0) | {"arguments": {"device": "cpu"}}))
    small = {"arguments": {"device": "cuda", "epochs": 2, "films": 16}}
    samples = {"1 at once": [{"trials_hour": 9000.0}]}
    (tmp_path / "per-gpu.json").write_text(json.dumps(small | {"sections": {"per device": {"samples": samples}}}))
    peaks = {"plain peft": [{"reserved16": 9e9 / 2**20}], "folded, BatchNorm frozen": [{"reserved16": 5e9 / 2**20}]}
    memory = {"arguments": {"device": "cuda"}, "sections": {"peak": {"samples": peaks}}}
    (tmp_path / "memory-gpu.json").write_text(json.dumps(memory))
    rows = {row[:4].strip(): verdict(row) for row in judged(tmp_path)}
    assert rows == {"G2": "not measured", "G3": "not measured", "G4": "not measured"} | {
        "G5": "not measured",
        "G10": "not met",
    }
