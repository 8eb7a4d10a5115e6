"""One run outside a study."""

import signal

import pytest

from xray_opt.config import Config, TrackingConfig, Workspace
from xray_opt.errors import ConfigError
from xray_opt.mlflow_client import connect
from xray_opt.single import _checked, _held, train

SMALL = ["--study", "tiny", "--set", "training.epochs=1"]


def test_train_logs_a_run_and_keeps_a_bundle_that_predicts(tuned, tmp_path):
    place, _, _ = tuned
    out = tmp_path / "kept"
    result = place.json("train", *SMALL, "--out", str(out), "--name", "mine")
    assert result["best_epoch"] == 1
    run = connect(TrackingConfig(), place.workspace).client.get_run(result["run"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    assert run.data.metrics["best.f1"] == result["val"]["f1"]
    assert {path.name for path in out.iterdir()} == {"adapter", "base.safetensors", "films.json"}
    film = str(next((place.films / "val" / "NORMAL").iterdir()))
    by_run = place.json("predict", film, "--model", f"runs:/{result['run']}", "--device", "cpu")
    by_folder = place.run("predict", film, "--model", str(out / "adapter"), "--csv")
    assert by_folder.returncode == 0, by_folder.stderr
    assert float(by_folder.stdout.splitlines()[1].split(",")[1]) == pytest.approx(by_run[0]["probability"], abs=1e-5)


def test_train_refuses_what_is_wrong_with_one_line(tuned):
    place, _, _ = tuned
    for arguments, code, says in (
        (["--set", "lora.rnak=3"], 2, "did you mean lora.rank"),
        (["--data", "nowhere"], 3, "nowhere"),
        (["--weights", "nothing.pth"], 4, "nothing.pth"),
        (["--device", "cuda:99"], 2, "cuda:99"),
    ):
        done = place.run("train", *SMALL, *arguments)
        assert (done.returncode, done.stderr.count("error:")) == (code, 1), done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_training_twice_from_a_seed_gives_the_same_scores(tuned):
    place, _, _ = tuned
    first, second = (place.json("train", *SMALL, "--seed", "3") for _ in range(2))
    assert first["val"] == second["val"]
    assert first["threshold"] == second["threshold"]


def test_the_base_of_a_single_run_is_stored_with_it(tuned):
    place, _, _ = tuned
    result = place.json("train", *SMALL)
    client = connect(TrackingConfig(), place.workspace).client
    assert [item.path for item in client.list_artifacts(result["run"], "base")] == ["base/base.safetensors"]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_stopped_run_goes_on_under_its_name(tuned, stop):
    place, _, _ = tuned
    command = ["train", "--study", "tiny", "--set", "training.epochs=3", "--name", f"it's {stop.name}"]
    process = place.start(*command)
    wait_for_line(process, "epoch 1/3")
    process.send_signal(stop)
    _, rest = process.communicate(timeout=400)
    assert "Traceback" not in rest
    again = place.run(*command, "--json")
    assert again.returncode == 0, again.stderr
    # The first epoch is not trained again.
    assert "epoch 1/3" not in again.stderr
    client = connect(TrackingConfig(), place.workspace).client
    runs = [r for r in client.search_runs([experiment(client)]) if r.info.run_name == f"it's {stop.name}"]
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    done = next(run for run in runs if run.info.status == "FINISHED")
    assert len(client.get_metric_history(done.info.run_id, "val.f1")) == 3
    assert list(place.workspace.unfinished_runs.iterdir()) == []


def experiment(client):
    return client.get_experiment_by_name("train").experiment_id


def wait_for_line(process, text):
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


def test_two_runs_of_one_name_do_not_work_at_once(tuned):
    place, _, _ = tuned
    with _held("mine", place.workspace):
        done = place.run("train", *SMALL, "--name", "mine")
    assert (done.returncode, "at work here already" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 251, "\x07"])
def test_names_that_mlflow_cannot_keep_are_refused(tuned, name):
    place, _, _ = tuned
    with pytest.raises(ConfigError, match="--name must be"):
        train(Config(), place.workspace, name)


@pytest.mark.parametrize("name", ["it's", "a/b", "..", "Thörax “1”", "x" * 250])
def test_other_names_are_a_files_and_a_runs(tmp_path, name):
    with _held(_checked(name), Workspace(tmp_path)) as unfinished:
        assert unfinished.checkpoint.parent == Workspace(tmp_path).unfinished_runs
        with pytest.raises(ConfigError, match="at work"), _held(name, Workspace(tmp_path)):
            pass
    with _held(name, Workspace(tmp_path)):
        pass
    assert list(Workspace(tmp_path).unfinished_runs.iterdir()) == []
