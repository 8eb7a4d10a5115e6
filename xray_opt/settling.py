"""Settles a study when a call of ``tune`` ends: ranks its best trials, notes its leaderboard, registers its best one.

With two objectives that is the one of best F1, which is on the Pareto front.

Safe to repeat and to do from several workers: one settles at a time, and each finds what the one before has done.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xray_opt import registry
from xray_opt.backbone import Base
from xray_opt.config import Config, Workspace, flatten
from xray_opt.errors import StoreAway, StudyError, TrackingError
from xray_opt.experiment import ADAPTER_ARTIFACT
from xray_opt.mlflow_client import Connection, quickly
from xray_opt.places import PARENT
from xray_opt.spool import look, spool_files
from xray_opt.tracking import STUDY_ID, RankedTrial, Tracking, TrialEnd, is_told
from xray_opt.tuning import OpenStudy, StudyRecord, TrialRecord, amend, storage_patience, storage_url
from xray_opt.tuning.storage import one_after_another

#: So many best trials become LoggedModels, which MLflow's UI compares.
RANKED = 5
#: Bytes of the largest upload, base weights: MLflow gets the time for these, then settling is postponed.
LARGEST = 100_000_000
#: Study note: what is needed to settle the study later, as MLflow was away when its trials were done.
POSTPONED = "postponed"


def settle(
    opened: OpenStudy, tracking: Tracking, connection: Connection, base: Base, tags: Mapping[str, str]
) -> registry.Version | None:
    """Rank the best trials and register the best one; none where no trial is complete.

    Args:
        tags: of the registered version; trial and validation F1 are added.

    Raises:
        TrackingError: MLflow refuses. A kill or an error loses nothing: the next call does what is missing.
    """
    url = storage_url(opened.workspace, opened.config.storage)
    with one_at_a_time(url, opened.config.name), quickly(LARGEST):
        record = opened.read()
        best = record.ranked
        tracking.rank_models([RankedTrial(_run_of(t, tracking), t.number, t.value or 0.0) for t in best[:RANKED]])
        tracking.log_metrics({"trials.complete": len(best), "trials.pruned": record.count("PRUNED")})
        if not best:
            return None
        tracking.log_metrics({"best.f1": best[0].value or 0.0})
        tracking.note(leaderboard(record))
        name, facts = opened.config.config.tracking.registered_model, _facts(best[0], record.second)
        return _register(best[0], name, tracking, connection, base, {**tags, **facts})


@dataclass(frozen=True)
class Settled:
    """The registered version with its aliases, if there is one, and how many writes still wait for MLflow."""

    version: registry.Version | None
    aliases: tuple[str, ...]
    waiting: int


def settle_as_far_as_it_goes(
    opened: OpenStudy,
    tracking: Tracking,
    connection: Connection,
    base: Base,
    tags: Mapping[str, str],
    say: Callable[[str], None],
) -> Settled:
    """Settle a study and end its run, as far as MLflow answers; what waits, and how to send it, is said in one line."""
    noted = opened.notes.get(POSTPONED)
    left, version, why, held = tracking.send_waiting(), None, "", list[str]()
    try:
        if left.stopped or not tracking.is_made:
            raise StoreAway(left.stopped or "the study's run is not made yet")
        agree_all(opened, tracking, say)
        patient = storage_patience(opened.workspace, opened.config.storage, say)
        version = patient(lambda: settle(opened, tracking, connection, base, tags))
        aliases = registry.aliases(connection, version.name) if version else {}
        held = [alias for alias, number in aliases.items() if version and number == version.version]
        done_with(noted, opened, say)
    except TrackingError as error:
        note = postponed(opened.config.config, tags)
        note_postponed(opened, lambda now: note, say)
        why = f", which registers the best adapter, too ({error})"
    tracking.end()  # now, so that it counts among what waits
    left = tracking.send_waiting()
    if left.waiting or why:
        say(f"{left.waiting} writes wait for MLflow at {connection.shown}: run xray-opt sync{why}")
    return Settled(version, tuple(held), left.waiting)


def require_sent(tracking: Tracking, command: str) -> None:
    """What earlier calls and this one could not send is in MLflow now, where ``command`` reads its trainings.

    Raises:
        StoreAway: MLflow is away, or does not take all of it.
    """
    left = tracking.send_waiting()
    if left.stopped or tracking.is_waiting or not tracking.is_made:
        why = left.stopped or f"{left.waiting} writes wait for it"
        raise StoreAway(f"{command} reads its trainings from MLflow: {why}; run it again then, none is lost")


def _register(
    best: TrialRecord,
    name: str,
    tracking: Tracking,
    connection: Connection,
    base: Base,
    facts: Mapping[str, str],
) -> registry.Version:
    run_id = _run_of(best, tracking)
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        bundle = tracking.download(run_id, ADAPTER_ARTIFACT, Path(folder))
        return registry.register(connection, run_id, bundle, base, name, facts, example_film())


def _facts(best: TrialRecord, second: str | None) -> dict[str, str]:
    facts = {"xray_opt.trial": str(best.number), "val.f1": f"{best.value:.6f}"}
    return facts if best.second is None else facts | {f"objective.{second}": f"{best.second:.6g}"}


def _run_of(trial: TrialRecord, tracking: Tracking) -> str:
    return tracking.find_run(str(trial.notes["mlflow_run"]))


def postponed(config: Config, tags: Mapping[str, str]) -> dict[str, Any]:
    """The study note ``POSTPONED``: what ``settle`` needs besides the study (JSON-ready)."""
    settings = flatten(config)
    names = ("model.base", "model.base_seed", "tracking.registered_model")
    return stamped({"settings": {name: settings[name] for name in names}, "tags": dict(tags)})


def stamped(note: Mapping[str, Any], now: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The note ``POSTPONED`` with a new time: whoever acts upon an older one, another host say, leaves this one.

    Args:
        now: what stands there already, which stays.
    """
    return {**note, **(now or {}), "at": datetime.now(UTC).isoformat()}


def note_postponed(opened: OpenStudy, change: Callable[[Any], Any], say: Callable[[str], None]) -> None:
    """Put what ``change`` makes of the note ``POSTPONED`` in its place, in one step."""
    name, storage = opened.config.name, opened.config.storage
    patient = storage_patience(opened.workspace, storage, say)
    patient(lambda: amend(name, opened.workspace, POSTPONED, change, storage))


def done_with(noted: Any, opened: OpenStudy, say: Callable[[str], None]) -> None:
    """Remove the note ``POSTPONED`` that was acted upon; one that somebody put in its place meanwhile stays."""
    if noted:
        note_postponed(opened, partial(_unless_changed, noted, None), say)


def agree_all(opened: OpenStudy, tracking: Tracking, say: Callable[[str], None]) -> None:
    """Bring the states of a study's runs to those of its trials, and say which were not."""
    record = opened.read()
    needed = record.resumable()
    ends = [
        TrialEnd(t.number, t.state, t.reason, max(t.intermediate, default=0), t.number in needed) for t in record.trials
    ]
    for state, count in tracking.agree(ends).items():
        say(f"{count} MLflow run{'s' * (count > 1)} brought to {state}, as Optuna has it")


def parent_of(opened: OpenStudy) -> Callable[[Sequence[str]], str]:
    """What gives every process the same one of the runs that may be a study's: the one that was noted first."""
    before = opened.notes.get(PARENT)

    def choose(found: Sequence[str]) -> str:
        study = opened.config
        try:
            noted = opened.notes.get(PARENT)
            if noted in found:
                return str(noted)
            # None was noted, or one that was deleted; one that was noted since is newer than what was found.
            change = partial(_unless_changed, before, found[0])
            return str(amend(study.name, opened.workspace, PARENT, change, study.storage)[PARENT])
        except StudyError:  # away, or deleted
            return found[0]

    return choose


def _unless_changed(before: Any, value: Any, now: Any) -> Any:
    return value if now == before else now


def writes_waiting(workspace: Workspace, identity: str) -> int:
    """How many writes of the study with this id wait for MLflow in this workspace, whoever holds them; those of a
    damaged file may be its own."""
    files = (look(path) for path in spool_files(workspace.spool))
    return sum(count for about, count in files if not is_told(about) or about["tags"].get(STUDY_ID) == identity)


def agree_now(opened: OpenStudy, tracking: Tracking, say: Callable[[str], None]) -> None:
    """Send what waits and bring the states of runs to their trials', as far as MLflow answers: an earlier call was
    killed between the two, or MLflow was away."""
    try:
        left = tracking.send_waiting()
        for line in left.refused:
            say(line)
        if not left.stopped and tracking.is_made:
            agree_all(opened, tracking, say)
    except StoreAway as error:
        say(f"the states of runs are compared later: {error}")


@contextmanager
def one_at_a_time(url: str, study: str) -> Iterator[None]:
    """Hold the lock under which a study is settled; a dead holder's lock is free. It is not the one of claiming trials:
    that must not wait for uploads."""
    with one_after_another(url, f"settle:{study}"):
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
