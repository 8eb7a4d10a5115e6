"""One run from config to recorded adapter: what is logged when it ends well, is pruned, is resumed, or fails."""

import csv
import gc
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from small_sets import kaggle_set

from xray_opt.adapter import load_bundle
from xray_opt.backbone import random_base
from xray_opt.cache import open_images
from xray_opt.config import Config, TrackingConfig, Workspace, override
from xray_opt.dataset import Pseudonyms, prepare
from xray_opt.errors import NotFinite, Pruned
from xray_opt.experiment import ADAPTER_ARTIFACT, Job, run_experiment
from xray_opt.intervals import Patients, scored
from xray_opt.metrics import Cases
from xray_opt.mlflow_client import connect
from xray_opt.tracking import Tracking

SMALL = {
    "image.size": 32,
    "model.base": "random",
    "model.batch_norm": "train",
    "model.strategy": "linear",
    "training.epochs": 2,
    "training.batch_size": 8,
    "training.device": "cpu",
    "tracking.system_interval": 0.0,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("experiment"))
    root = kaggle_set(workspace.root / "set", patients=16, films=1)
    config = override(Config(), SMALL | {"data.root": str(root)})
    images = open_images(prepare(config.data), 32, workspace)
    connection = connect(TrackingConfig(), workspace)
    with Tracking.open(connection, "test", {}, parent=False) as tracking:
        yield config, images, random_base(0), tracking, Pseudonyms(workspace), connection.client


def run(world, **changes):
    config, images, base, tracking, pseudonyms, _ = world
    job = replace(Job(config, "run", {}, {}), **changes)
    return run_experiment(job, images, base, tracking, pseudonyms)


def started(world, error, **changes):
    """The MLflow run of a job that ends with ``error``."""
    ids = []
    with pytest.raises(error):
        run(world, started=ids.append, **changes)
    return world[-1].get_run(ids[0])


def test_a_good_run_records_what_the_saved_adapter_scores(world, tmp_path):
    _, images, base, _, _, client = world
    seen = []
    result = run(world, watch=seen.append, keep=tmp_path / "kept")
    record = client.get_run(result.run_id)
    assert record.info.status == "FINISHED"
    assert [epoch.number for epoch in seen] == [1, 2] == [epoch.number for epoch in result.epochs]
    assert record.data.metrics["best.f1"] == result.assessment.scores.f1
    assert record.data.metrics["best.epoch"] == result.best_epoch
    folder = client.download_artifacts(result.run_id, ADAPTER_ARTIFACT, str(tmp_path))
    _, bundle = load_bundle(Path(folder), base)
    assert bundle.threshold == result.assessment.threshold
    assert bundle.scores["val.f1"] == result.assessment.scores.f1
    _, kept = load_bundle(tmp_path / "kept" / ADAPTER_ARTIFACT, base)
    assert kept == bundle
    text = Path(client.download_artifacts(result.run_id, "val_predictions.csv", str(tmp_path))).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["label"]) for row in rows] == images.val.labels.tolist()
    cases = Cases(images.val.labels, np.array([float(row["probability"]) for row in rows]))
    found = scored(cases, Patients(images.val.groups), 0.5)
    assert result.intervals == {name: found[name] for name in ("f1", "auc")}
    assert "too few patients" in str(result.intervals["f1"].why)


def test_a_pruned_run_is_killed_and_keeps_no_adapter(world):
    def watch(epoch):
        raise Pruned(epoch.number)

    record = started(world, Pruned, watch=watch)
    assert (record.info.status, record.data.tags["pruned_epoch"]) == ("KILLED", "1")
    assert not world[-1].list_artifacts(record.info.run_id, ADAPTER_ARTIFACT)


def test_a_failed_run_says_why(world):
    def watch(epoch):
        raise NotFinite("loss is NaN")

    record = started(world, NotFinite, watch=watch)
    assert (record.info.status, record.data.tags["reason"]) == ("FAILED", "nan")


def test_a_resumed_run_equals_an_uninterrupted_one_and_logs_every_epoch_once(world, tmp_path):
    client, checkpoint, replayed = world[-1], tmp_path / "trial.pt", []

    def stop(epoch):
        raise KeyboardInterrupt

    lost = started(world, KeyboardInterrupt, watch=stop, checkpoint=checkpoint)
    assert (lost.info.status, lost.data.tags["reason"]) == ("FAILED", "interrupted")
    resumed = run(world, checkpoint=checkpoint, replay=lambda epoch: replayed.append(epoch.number))
    straight = run(world)
    assert replayed == [1]
    assert resumed.assessment == straight.assessment
    for result in (resumed, straight):
        assert [point.step for point in client.get_metric_history(result.run_id, "val.f1")] == [1, 2]


def held() -> tuple[int, int]:
    """Bytes of all live tensors, and of this process in memory.

    What an exporter traced in another test is left out: such a tensor has no memory, and raises where asked for it.
    """
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()), psutil.Process().memory_info().rss


@pytest.mark.slow
def test_memory_after_fifty_trials_is_that_after_two(world):
    config, *rest = world
    small = {"model.strategy": "lora", "lora.rank": 2, "lora.stages": "late", "training.epochs": 1}
    after = {}
    for trial in range(1, 51):
        own = override(config, small | {"training.seed": trial, "lora.alpha": float(1 + trial % 3)})
        run((own, *rest))
        if trial in (2, 10, 50):
            after[trial] = held()
    assert after[50][0] == after[2][0]
    # The allocator takes a few trials to find its size.
    assert after[50][1] < after[10][1] + 64e6
