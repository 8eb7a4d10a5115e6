"""Benchmarks: every script runs at toy size, and says what it cannot measure. No figure is checked."""

import argparse
import importlib.util
import json
import os
import re
from pathlib import Path

import forked
import pytest
import torch

from xray_opt.adapter import attach, set_mode
from xray_opt.backbone import random_base, resolve_device, resolve_precision

#: Most of a script's time is imports of its child processes, and they are slow on a loaded machine.
pytestmark = pytest.mark.timeout(1500)
ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
POSTGRES = any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and importlib.util.find_spec("psycopg")


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("measure")


def run_script(script, *arguments, cwd):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "XRAY_OPT_"))}
    return forked.run_script(BENCHMARKS / script, *arguments, cwd=cwd, environment=kept)


def toy(script, folder, *more):
    """Output of a script at toy size, and its raw samples."""
    out = folder / "out.json"
    done = run_script(script, "--toy", "--out", str(out), *more, cwd=folder)
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


@pytest.mark.bench
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


@pytest.mark.bench
@pytest.mark.parametrize(("batch_norm", "more"), [("train", ["--plain-workers", "0"]), ("frozen", [])])
def test_the_ceiling_and_real_epochs_take_turns(tmp_path, batch_norm, more):
    output, sections = toy("ceiling.py", tmp_path, "--batch-norm", batch_norm, *more)
    names = {"ceiling: one batch", "Trainer, real films"} | ({"plain: DataLoader, PIL, peft"} if more else set())
    assert set(sections["32/8"]["samples"]) == names
    assert all(values[0]["img_s"] > 0 for values in sections["32/8"]["samples"].values())
    assert sections["cache"]["samples"]["for 32 px"][0]["core_ms"] > 0
    assert "cache build" in output


@pytest.mark.bench
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


@pytest.mark.bench
def test_tracking_is_measured_straight_and_while_mlflow_is_away(tmp_path):
    _, sections = toy("spool.py", tmp_path)
    samples = sections["tracking"]["samples"]
    assert set(samples) == {"MLflow's client", "ours", "ours, MLflow away"}
    assert all(values["ms"] > 0 for rounds in samples.values() for values in rounds)


@pytest.mark.bench
def test_a_step_is_measured_alone_and_beside_others(tmp_path):
    _, sections = toy("crowded.py", tmp_path)
    assert len(sections) == 2
    for section in sections.values():
        assert [values["ms"] > 0 for values in section["samples"]["one thread"]] == [True]


@pytest.mark.bench
def test_throughput_is_measured_on_every_storage_that_is_there(tmp_path):
    output, sections = toy("throughput.py", tmp_path)
    for name in ("PostgreSQL", "gRPC", "SQLite"):
        if name == "SQLite" or (POSTGRES and (name == "PostgreSQL" or importlib.util.find_spec("grpc"))):
            (values,) = sections["workers"]["samples"][f"{name}, 2 workers"]
            assert 0 < values["whole"] <= values["steady"] <= 1
            assert ("transactions" in values) == (name != "SQLite")
            assert sections["loop"]["samples"][f"{name}, trial 16"][0]["s"] > 0
        else:
            assert name in sections["workers"]["absent"]
    if POSTGRES:
        assert "one study is enough for trials of" in line(output, "PostgreSQL: ")


@pytest.mark.bench
def test_overhead_is_measured_on_both_storages_or_the_missing_one_is_named(tmp_path):
    output, sections = toy("overhead.py", tmp_path)
    names = set(sections["loop"]["samples"])
    assert {f"{loop}, SQLite, trial {at}" for loop in ("Optuna", "ours") for at in (12, 16)} <= names
    if POSTGRES:
        assert "ours, PostgreSQL, trial 16" in names
    else:
        assert "PostgreSQL" in sections["loop"]["absent"]
        assert "psycopg" in line(output, "PostgreSQL") or "no PostgreSQL here" in line(output, "PostgreSQL")
    assert sections["product"]["samples"]["tune, with MLflow on SQLite"][0]["rest_s"] > 0


@pytest.mark.bench
def test_a_whole_study_against_the_plain_script(tmp_path):
    _, sections = toy("study.py", tmp_path)
    samples = sections["study"]["samples"]
    native = resolve_precision("auto", resolve_device("cpu")) == torch.bfloat16
    assert set(samples) == {"plain script, fp32", "xray-opt tune"} | ({"plain script, bf16"} if native else set())
    assert all(values[0]["epochs"] == 2 for values in samples.values())


@pytest.mark.bench
def test_searches_are_replayed_on_a_recorded_table_that_goes_on_where_it_was_killed(tmp_path):
    file = tmp_path / "table.json"
    output, sections = toy("search.py", tmp_path, "--record", str(file))
    recorded = file.read_text()
    table = json.loads(recorded)
    assert len(table["table"]) == 4
    samples = sections["search"]["samples"]
    assert all(len(values) == 3 for values in samples.values())
    assert all(value["found"] for value in samples["random, never twice"])
    assert "bootstrap" in output
    file.write_text(json.dumps(table | {"table": table["table"][:2]}))
    again, _ = toy("search.py", tmp_path, "--record", str(file))
    assert json.loads(file.read_text())["table"] == table["table"]
    times = [row for row in output.splitlines() if "times fewer [" in row]
    assert len(times) == 2 * 4
    assert times == [row for row in again.splitlines() if "times fewer [" in row]
    table["settings"]["image.size"] = 48
    file.write_text(json.dumps(table | {"table": table["table"][:2]}))
    refused = run_script("search.py", "--toy", "--record", str(file), cwd=tmp_path)
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[-1].startswith(f"{file} was begun with another image.size")


def test_a_search_pays_for_every_epoch_until_it_is_near(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    search = importlib.import_module("search")
    curves = [[0.5, 0.5, 0.5]] * 5 + [[0.5, 0.5, 0.79]] + [[0.5, 0.8, 0.7]]
    table = [{"places": {"lora.rank": place}, "f1": curve} for place, curve in enumerate(curves)]
    for seed in range(5):
        order = search.np.random.default_rng(seed).permutation(7).tolist()
        found = search.search(table, "shuffled", "none", seed)
        near, rough = order.index(6), min(order.index(6), order.index(5))
        assert found == {
            "epochs": 3 * near + 2,
            "epochs_rough": 3 * rough + (2 if order[rough] == 6 else 3),
            "trials": near + 1,
            "found": 1,
        }
    # Below the others from the first epoch on, so it is pruned as soon as the pruner's warm-up is over.
    study = search.optuna.create_study(direction="maximize", pruner=search.pruner_for(search.PrunerConfig(), 6))
    for curve in [[0.5] * 6] * 4:
        study.tell(trial := study.ask(), max(search.run(trial, curve)))
    assert search.run(study.ask(), [0.1] * 6) == [0.1] * 3


@pytest.fixture(scope="module")
def quality(tmp_path_factory):
    """Folder, output and record of ``quality.py`` at toy size."""
    folder = tmp_path_factory.mktemp("quality")
    done = run_quality(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, json.loads((folder / "quality.json").read_text())


def run_quality(folder):
    return run_script("quality.py", "--toy", "--out", "quality.json", cwd=folder)


@pytest.mark.bench
def test_the_engine_and_plain_peft_are_trained_alike_and_compared_by_seed(quality):
    _, output, record = quality
    runs = {(run["batch_norm"], run["seed"], run["contender"]): run["epochs"] for run in record["runs"]}
    assert len(runs) == 2 * 2 * 3
    for norm in ("frozen", "train"):
        for seed in (0, 1):
            plain, ours = (runs[norm, seed, name][0] for name in ("plain PEFT fp32", "engine fp32"))
            # The same films in the same order, the same pixels, the same dropout: rounding alone tells them apart.
            assert ours["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)
        assert len({runs[norm, seed, "plain PEFT fp32"][0]["train_loss"] for seed in (0, 1)}) == 2
    assert runs["frozen", 0, "engine bf16"] != runs["frozen", 0, "engine fp32"]
    assert runs["frozen", 0, "engine fp32"] != runs["train", 0, "engine fp32"]
    assert all(len(row) <= 80 for row in output.splitlines())
    assert len([row for row in output.splitlines() if row.lower().startswith("quality is")]) == 4
    row = next(row for row in record["summary"] if row["contender"] == "engine bf16")
    pairs = [runs["frozen", seed, "engine bf16"] for seed in (0, 1)]
    assert (row["batch_norm"], row["metric"]) == ("frozen", "auc")
    best = [max(epochs, key=lambda epoch: (epoch["f1"], -epoch["val_loss"]))["auc"] for epochs in pairs]
    assert row["mean"] == pytest.approx(sum(best) / 2)


@pytest.mark.bench
def test_quality_goes_on_where_it_was_killed_and_mixes_no_settings(quality):
    folder, output, record = quality
    file = folder / "quality.json"
    file.write_text(json.dumps(record | {"runs": record["runs"][:7]}))
    assert run_quality(folder).stdout == output
    runs = json.loads(file.read_text())["runs"]
    assert [run["epochs"] for run in runs] == [run["epochs"] for run in record["runs"]]
    file.write_text(json.dumps(record | {"settings": record["settings"] | {"optimizer.learning_rate": 1.0}}))
    refused = run_quality(folder)
    assert refused.returncode != 0
    assert "holds runs with another optimizer.learning_rate" in refused.stderr.splitlines()[-1]


def test_the_interval_of_paired_differences_is_students(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("quality")
    pairs = found.differences([0.1, 0.2, 0.4], [0.2, 0.4, 0.7])
    assert found.interval(pairs) == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5))
    assert found.verdict("train", "engine", [0.8, 0.9], [0.75, 0.85]).startswith("quality is held")
    assert found.verdict("train", "engine", [0.8, 0.9], [0.75, 0.8]).startswith("QUALITY IS NOT HELD")


@pytest.mark.bench
def test_stacked_adapters_compute_what_separate_ones_do_and_take_turns_with_them(tmp_path):
    output, sections = toy("batched_adapters.py", tmp_path)
    assert output.count("of separate training's") == 3
    (samples,) = (section["samples"] for section in sections.values())
    assert set(samples) == {"engine, one after another", "low-rank", "folded, bmm", "folded, grouped"}


@pytest.mark.parametrize("design", ["low-rank", "folded, bmm", "folded, grouped"])
def test_a_stacked_step_moves_every_adapter_as_its_own_step_does(monkeypatch, design):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    study, stacked = importlib.import_module("batched_adapters"), importlib.import_module("stacked")
    base, plain = study.lively_base(), {"image.size": 32, "model.dropout": 0.0, "model.stochastic_depth": 0.0}
    configs = [study.override(study.Config(), plain | {"lora.rank": rank, "training.seed": rank}) for rank in (2, 5)]
    networks = [study.moved(attach(base, config), 3) for config in configs]
    together = stacked.stack(base, configs[0], networks, design)
    for _ in range(2):
        torch.manual_seed(7)
        study.stacked_step(together, 32, 3, torch.float32, 2)()
    for adapter, network in enumerate(networks):
        before = [weight.detach().clone() for weight in network.parameters() if weight.requires_grad]
        for _ in range(2):
            torch.manual_seed(7)
            images = torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last)
            own_step(study, network, images[3 * adapter :][:3], (torch.arange(6)[3 * adapter :][:3] % 2).float())
        after = [weight.detach() for weight in network.parameters() if weight.requires_grad]
        assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        own = [part.weight.detach() for part in stacked.own_weights(together, adapter)]
        moved = sum(float((one - other).abs().sum()) for one, other in zip(before, after, strict=True))
        wanted = [as_stacked(weight) for weight in after]
        apart = sum(float((one - other.view_as(one)).abs().sum()) for one, other in zip(own, wanted, strict=True))
        assert apart < 0.01 * moved


def as_stacked(weight):
    """A (r, I, h, w), B (O, r, 1, 1) or a head in the order that ``stacked.py`` holds it in."""
    if weight.ndim < 4:
        return weight
    is_up = weight.shape[2:] == (1, 1) and weight.shape[1] <= 5
    return weight.flatten(1).T if is_up else weight.permute(0, 2, 3, 1).flatten(1)


def own_step(study, network, images, targets):
    """One AdamW step as ``step.make_step`` does it, on these films."""
    set_mode(network, True)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    study.FocalLoss(0.25, 2.0)(study.logits(network, images), targets).backward()
    torch.optim.AdamW(weights, lr=1e-4).step()
    network.zero_grad()


@pytest.mark.bench
def test_serving_answers_all_clients_at_toy_size(tmp_path):
    output, sections = toy("serving.py", tmp_path)
    assert float(line(output, "2 clients, 4 films").split()[4]) > 0
    for samples in sections["serving"]["samples"].values():
        for one in samples:
            assert one["requests"] >= 1
            assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
