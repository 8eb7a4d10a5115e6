"""Settles a study when a call of ``tune`` ends: ranks its best trials, notes its leaderboard, registers its best one.

With two objectives that is the one of best F1, which is on the Pareto front.

Safe to repeat and to do from several workers: one settles at a time, and each finds what the one before has done.
"""

from __future__ import annotations

import fcntl
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from xray_opt import registry
from xray_opt.backbone import Base
from xray_opt.config import StudyConfig
from xray_opt.errors import StudyError
from xray_opt.experiment import ADAPTER_ARTIFACT
from xray_opt.mlflow_client import Connection
from xray_opt.tracking import RankedTrial, Tracking
from xray_opt.tuning import OpenStudy, StudyRecord, TrialRecord, storage_url
from xray_opt.tuning.storage import open_storage, reachable, sqlite_file, study_lock

#: So many best trials become LoggedModels, which MLflow's UI compares.
RANKED = 5


def settle(
    opened: OpenStudy, tracking: Tracking, connection: Connection, base: Base, tags: Mapping[str, str]
) -> registry.Version | None:
    """Rank the best trials and register the best one; none where no trial is complete.

    Args:
        tags: of the registered version; trial and validation F1 are added.

    Raises:
        TrackingError: MLflow refuses. A kill or an error loses nothing: the next call does what is missing.
    """
    with one_at_a_time(storage_url(opened.workspace, opened.config.storage), opened.config.name):
        record = opened.read()
        best = record.ranked
        tracking.rank_models([RankedTrial(str(t.notes["mlflow_run"]), t.number, t.value or 0.0) for t in best[:RANKED]])
        tracking.log_metrics({"trials.complete": len(best), "trials.pruned": record.count("PRUNED")})
        if not best:
            return None
        tracking.log_metrics({"best.f1": best[0].value or 0.0})
        tracking.note(leaderboard(record))
        return _register(best[0], opened.config, tracking, connection, base, tags)


def _register(
    best: TrialRecord,
    study: StudyConfig,
    tracking: Tracking,
    connection: Connection,
    base: Base,
    tags: Mapping[str, str],
) -> registry.Version:
    run_id, name = str(best.notes["mlflow_run"]), study.config.tracking.registered_model
    facts = {**tags, "xray_opt.trial": str(best.number), "val.f1": f"{best.value:.6f}"}
    if best.second is not None:
        facts[f"objective.{study.second}"] = f"{best.second:.6g}"
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        bundle = tracking.download(run_id, ADAPTER_ARTIFACT, Path(folder))
        return registry.register(connection, run_id, bundle, base, name, facts, example_film())


@contextmanager
def one_at_a_time(url: str, study: str) -> Iterator[None]:
    """Hold the lock under which a study is settled; a dead holder's lock is free. It is not the one of claiming trials:
    that must not wait for uploads."""
    file = sqlite_file(url) if url.startswith("sqlite") else None
    if file is None:
        with reachable(url), study_lock(open_storage(url), f":settle:{study}"):  # no study has a colon in its name
            yield
        return
    try:
        handle = file.with_name(f"{file.name}.settle.lock").open("w")
    except OSError as error:
        raise StudyError(f"cannot write to {file.parent}: {error.strerror}; nothing is lost, run it again") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def leaderboard(record: StudyRecord) -> str:
    """Markdown table of finished trials for the note of the study's run in MLflow; those of a front come first."""
    best, front = record.ranked, {trial.number for trial in record.front}
    names = sorted({name for trial in best for name in trial.params})
    rows = [["trial", "val F1", "val AUC", *((record.second, "front") if record.second else ()), *names]]
    rows += [
        [str(t.number), f"{t.value:.4f}", f"{t.notes.get('val.auc', float('nan')):.4f}"]
        + ([f"{t.second:.6g}", "★" if t.number in front else ""] if record.second else [])
        + [f"{value:.3g}" if isinstance(value := t.params.get(name, ""), float) else str(value) for name in names]
        for t in best
    ]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def example_film() -> bytes:
    """A made-up film (64×64 grey PNG) as the input example of the registered model: never a patient's."""
    side = np.linspace(-1, 1, 64)
    glow = np.exp(-((side[:, None] ** 2) + side[None, :] ** 2))
    buffer = io.BytesIO()
    Image.fromarray((glow * 200).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
