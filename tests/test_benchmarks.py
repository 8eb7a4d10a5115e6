"""Benchmarks: every script runs at toy size, and says what it cannot measure. No figure is checked."""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xray_opt.adapter import attach, set_mode
from xray_opt.backbone import random_base

#: Most of a script's time is imports of its child processes, and they are slow on a loaded machine.
pytestmark = pytest.mark.timeout(1500)
ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
POSTGRES = any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and importlib.util.find_spec("psycopg2")


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("measure")


def toy(script, folder, *more):
    """Output of a script at toy size, and its raw samples."""
    out = folder / "out.json"
    command = [sys.executable, str(BENCHMARKS / script), "--toy", "--out", str(out), *more]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "XRAY_OPT_"))}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith(("raw", "plot"))), (
        done.stdout
    )
    document = json.loads(out.read_text())
    assert {"cpu", "cores", "torch", "threads", "device", "date", "commit"} <= set(document["machine"])
    assert out.with_suffix(".png").exists() or "no plot: matplotlib is not installed" in done.stdout
    return done.stdout, document["sections"]


def line(output, name):
    """The row of a name in a table."""
    return next(row for row in output.splitlines() if row.startswith(name))


def test_rounds_alternate_and_a_ratio_is_of_one_round(measure):
    calls = []

    def thunk(name, values):
        left = iter(values)

        def call():
            calls.append(name)
            return {"s": next(left)}

        return call

    rounds = measure.interleave({"a": thunk("a", [9, 1, 2, 4]), "b": thunk("b", [9, 2, 4, 80])}, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert rounds.of("b", "s") == [2, 4, 80]
    assert line("\n".join(measure.table(rounds, "s", "seconds")), "b ").split() == [
        "b",
        "4.00",
        "2.00",
        "80.00",
        "2.00",
    ]


def test_what_is_absent_stands_in_the_table_and_is_not_called_again(measure):
    calls = []

    def missing():
        calls.append(1)
        raise measure.Absent("not installed: nothing")

    rounds = measure.interleave({"here": lambda: {"s": 1.0}, "gone": missing}, 2)
    assert len(calls) == 1
    assert "not installed: nothing" in line("\n".join(measure.table(rounds, "s", "seconds")), "gone")
    assert len(rounds.of("here", "s")) == 2


def test_a_child_tells_its_values_what_it_lacks_or_how_it_failed(measure, tmp_path):
    script = tmp_path / "child.py"
    start = "from measure import need, serve, spawned\nimport time\n"
    script.write_text(start + "serve(lambda job: {'twice': 2 * job['n'], 'later': time.monotonic() - spawned()})")
    values = measure.child(script, {"n": 4})
    assert values["twice"] == 8
    assert values["later"] > 0
    script.write_text(start + "need('json', 'no_such_library')\nserve(lambda job: {})")
    with pytest.raises(measure.Absent, match="not installed: no_such_library"):
        measure.child(script, {})
    script.write_text(start + "serve(lambda job: {'n': job['missing']})")
    with pytest.raises(RuntimeError, match="KeyError: 'missing'"):
        measure.child(script, {})


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_peers_train_the_weights_that_we_train_and_batch_norm_in_the_same_mode(monkeypatch, tmp_path, batch_norm):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    workload, common = importlib.import_module("workload"), importlib.import_module("common")
    args = argparse.Namespace(size=32, batch=8, batch_norm=batch_norm, device="cpu")
    manifest = workload.make_films(tmp_path / "films", 16)
    job = workload.job_of(tmp_path, args, 1, manifest, 16)
    assert {label for _, label in job["train"]} == {0, 1}
    theirs, ours = common.Network(job).train(), attach(random_base(workload.SEED), workload.settings(job))
    set_mode(ours, True)
    assert len(job["targets"]) == 79
    counts = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in (theirs, ours)]
    assert counts[0] == counts[1]
    for network in (theirs, ours):
        modes = {module.training for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)}
        assert modes == {batch_norm == "train"}


def test_every_script_has_its_line_in_the_readme():
    text = (BENCHMARKS / "README.md").read_text()
    for script in BENCHMARKS.glob("*.py"):
        assert f"`{script.name}`" in text, script.name


def test_peers_are_pinned():
    lines = (BENCHMARKS / "requirements.txt").read_text().splitlines()
    pins = [row for row in lines if not row.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9.]+", row) for row in pins), pins
    assert {"lightning", "optuna-integration", "transformers", "accelerate", "ray[tune]"} <= {
        row.partition("==")[0] for row in pins
    }


@pytest.mark.slow
def test_peers_do_the_same_work_and_those_not_installed_are_shown(tmp_path):
    output, sections = toy("peers.py", tmp_path)
    needs = {"plain fp32": (), "plain bf16": (), "ours, bf16": ()}
    needs |= {"Lightning + Optuna, bf16": ("lightning", "optuna_integration")}
    needs |= {"HF Trainer search, bf16": ("transformers", "accelerate")}
    check_presence(output, sections["training"], needs)
    needs = {"Optuna in memory": (), "ours, SQLite": (), "Ray Tune + OptunaSearch": ("ray",)}
    check_presence(output, sections["scheduler"], needs)


def check_presence(output, section, needs):
    """Samples where the libraries are installed, else the reason in section and table."""
    assert set(section["samples"]) == set(needs)
    for name, libraries in needs.items():
        missing = [library for library in libraries if importlib.util.find_spec(library) is None]
        assert bool(section["samples"][name]) == (not missing), name
        if missing:
            assert section["absent"][name] == f"not installed: {', '.join(missing)}"
            assert "not installed" in line(output, name)
        else:
            assert all(value > 0 for key, value in section["samples"][name][0].items() if key != "f1")


@pytest.mark.slow
@pytest.mark.parametrize(("batch_norm", "more"), [("train", ["--plain-workers", "0"]), ("frozen", [])])
def test_the_ceiling_and_real_epochs_take_turns(tmp_path, batch_norm, more):
    output, sections = toy("ceiling.py", tmp_path, "--batch-norm", batch_norm, *more)
    names = {"ceiling: one batch", "Trainer, real films"} | ({"plain: DataLoader, PIL, peft"} if more else set())
    assert set(sections["32/8"]["samples"]) == names
    assert all(values[0]["img_s"] > 0 for values in sections["32/8"]["samples"].values())
    assert sections["cache"]["samples"]["for 32 px"][0]["core_ms"] > 0
    assert "cache build" in output


@pytest.mark.slow
def test_the_parts_of_a_start_add_up_to_the_whole(tmp_path):
    _, sections = toy("startup.py", tmp_path)
    assert "xray-opt --help" in sections["commands"]["samples"]
    for kind in ("cold", "warm"):
        parts = {name: samples[0]["s"] for name, samples in sections[kind]["samples"].items()}
        whole = parts.pop("first step done")
        second = [parts.pop(name, None) for name in ("2nd trial: start to first step", "1st trial's end to that")]
        assert sum(parts.values()) == pytest.approx(whole)
        assert all((seconds is not None) == (kind == "cold") for seconds in second)
        expected = {"interpreter", "import", "data", "base", "storage", "MLflow", "attach", "first step", "rest"}
        assert set(parts) == expected
        assert all(seconds >= 0 for seconds in parts.values())


@pytest.mark.slow
def test_overhead_is_measured_on_both_storages_or_the_missing_one_is_named(tmp_path):
    output, sections = toy("overhead.py", tmp_path)
    names = set(sections["loop"]["samples"])
    assert {f"{loop}, SQLite, trial {at}" for loop in ("Optuna", "ours") for at in (12, 16)} <= names
    if POSTGRES:
        assert "ours, PostgreSQL, trial 16" in names
    else:
        assert "PostgreSQL" in sections["loop"]["absent"]
        assert "psycopg2" in line(output, "PostgreSQL") or "no PostgreSQL here" in line(output, "PostgreSQL")
    assert sections["product"]["samples"]["tune, with MLflow on SQLite"][0]["rest_s"] > 0


@pytest.mark.slow
def test_a_whole_study_against_the_plain_script(tmp_path):
    _, sections = toy("study.py", tmp_path)
    samples = sections["study"]["samples"]
    assert set(samples) == {"plain script, fp32", "plain script, bf16", "xray-opt tune, bf16"}
    assert all(values[0]["epochs"] == 2 for values in samples.values())


@pytest.mark.slow
def test_searches_are_replayed_on_a_recorded_table(tmp_path):
    table = tmp_path / "table.json"
    output, sections = toy("search.py", tmp_path, "--record", str(table))
    recorded = table.read_text()
    assert len(json.loads(recorded)["table"]) == 4
    assert all(len(samples) == 3 for samples in sections["search"]["samples"].values())
    assert "bootstrap" in output
    again, _ = toy("search.py", tmp_path, "--record", str(table))
    assert table.read_text() == recorded
    rows = [row for row in output.splitlines() if "found by" in row]
    assert rows == [row for row in again.splitlines() if "found by" in row]
