"""One run outside a study."""

import pytest

from xray_opt.config import TrackingConfig
from xray_opt.mlflow_client import connect

SMALL = ["--study", "tiny", "--set", "training.epochs=1"]


def test_train_logs_a_run_and_keeps_a_bundle_that_predicts(tuned, tmp_path):
    place, _, _ = tuned
    out = tmp_path / "kept"
    result = place.json("train", *SMALL, "--out", str(out), "--name", "mine")
    assert result["best_epoch"] == 1
    run = connect(TrackingConfig(), place.workspace).client.get_run(result["run"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    assert run.data.metrics["best.f1"] == result["val"]["f1"]
    assert {path.name for path in out.iterdir()} == {"adapter", "base.safetensors"}
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
