"""The benchmark of one training step, at toy size: it runs, takes every variant in turn, and says what it measured."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "step.py"
CUDA = torch.device("cuda")
TOY = ["--sizes", "32/2", "--rounds", "2", "--rank", "2", "--stages", "late", "--device", "cpu"]


@pytest.fixture(scope="module")
def step():
    spec = importlib.util.spec_from_file_location("step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["step"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["step"]


def test_every_variant_is_timed_in_both_precisions(step, tmp_path, capsys):
    step.main([*TOY, "--precision", "fp32", "bf16", "--json", str(tmp_path / "step.json")])
    timings = json.loads((tmp_path / "step.json").read_text())
    assert [(timing["precision"], timing["variant"]) for timing in timings] == [
        (precision, variant) for precision in ("fp32", "bf16") for variant in step.VARIANTS
    ]
    for timing in timings:
        assert (timing["size"], timing["batch"], timing["device"]) == (32, 2, "cpu")
        assert 0 < timing["fastest"] <= timing["median"] <= timing["slowest"]
        assert timing["images_per_second"] == pytest.approx(2 / timing["median"])
        assert timing["peak_mib"] is None
        assert timing["way"] == "eager"
    first = {timing["precision"]: timing["median"] for timing in timings if timing["variant"] == "peft"}
    assert all(timing["ratio"] == pytest.approx(first[timing["precision"]] / timing["median"]) for timing in timings)
    shown = capsys.readouterr().out
    assert "32 px, batch 2, fp32, cpu" in shown
    assert shown.count("ratio 1.00") >= 2


def test_graphs_stand_beside_the_eager_steps_where_there_is_cuda(step):
    ours = {name: way for name, (own, _, way) in step.contenders(["eager", "graphs", "both"], CUDA).items() if own}
    assert set(ours.values()) == {"eager", "graphs", "both"}
    assert ours["folded, BatchNorm frozen, graphs"] == "graphs"
    assert set(step.contenders(["eager", "graphs"], torch.device("cpu"))) == set(step.VARIANTS)
    assert all(not own or way == "compile" for own, _, way in step.contenders(["compile"], CUDA).values())


def test_the_plain_variant_is_peft_and_the_folded_one_is_not(step):
    base = step.random_base(0)
    kinds = {}
    for name, (ours, norm) in step.VARIANTS.items():
        config = step.override(step.Config(), {"model.batch_norm": norm, "lora.stages": "late"})
        network = (step.attach if ours else step.plain_peft)(base, config)
        kinds[name] = {type(module).__name__ for module in network.modules()}
        assert sum(weight.numel() for weight in network.parameters() if weight.requires_grad) > 1281
    assert all(("FoldedConv" in found) == name.startswith("folded") for name, found in kinds.items())
    assert "FoldedNorm" in kinds["folded, BatchNorm frozen"]
    assert "FoldedNorm" not in kinds["folded"]


@pytest.mark.bench
def test_it_runs_from_a_bare_checkout(tmp_path):
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *TOY], cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "folded, BatchNorm frozen" in done.stdout
