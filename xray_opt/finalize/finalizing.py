"""The one opening of the test split that a chosen model gets.

Everything that could be chosen was chosen before: threshold and temperature stand in the model's bundle, the baselines
are fitted to train and their thresholds to validation. The opening is recorded before the first film is handed out; a
process that is killed behind that is finished by the next call without another opening.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.calibration import logit
from xray_opt.config import LossConfig, Workspace
from xray_opt.dataset import Film, Manifest, Pseudonyms, prepared, trivial_models
from xray_opt.errors import ConfigError
from xray_opt.finalize.record import Baseline, Final
from xray_opt.intervals import gains
from xray_opt.leaderboard import Opening
from xray_opt.metrics import best_threshold
from xray_opt.mlflow_client import connect
from xray_opt.places import Place
from xray_opt.scoring import (
    FilmCases,
    SealedTest,
    cases_of,
    film_cases,
    levels,
    loss_of,
    own_settings,
    require_own,
    study_storage,
)
from xray_opt.tracking import TEST_PREDICTIONS, log_run_file, log_run_predictions
from xray_opt.tuning import amend, read_study

#: Study note: MLflow run → the record of its finalization. Artifact of that run: the same.
FINALS, ARTIFACT = "finalized", "finalize.json"
#: What openings by this command are marked with.
OURS = "finalize"
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Chosen:
    """A model that is to be finalized, with its sealed test split."""

    model: str
    sealed: SealedTest
    threshold: float
    rule: str

    @property
    def study(self) -> str:
        return str(self.sealed.study)

    @property
    def run_id(self) -> str:
        return self.sealed.loaded.run_id

    def finals(self) -> dict[str, Final]:
        return finals(self.study, self.sealed.workspace, self.sealed.storage)


def finalize(
    model: str,
    workspace: Workspace,
    data: str | None = None,
    why: str = "the chosen model's one test",
    again: bool = False,
    sensitivity: float | None = None,
    device: str = "auto",
    place: Place = Place(),
    say: Say = lambda line: None,
) -> Final:
    """Score ``model`` on the test split of its study, once; a second call gives the record of the first.

    Args:
        model: MLflow model URI or ``runs:/RUN_ID`` of a study's model.
        data: where the films lie now.
        again: open once more what was opened by ``finalize`` before; that counts.
        sensitivity: use the threshold that reached it on validation; none takes that of best F1.
        say: told what a user should know of earlier openings.

    Raises:
        ConfigError: not a study's model, or the split was opened for another model of the study.
        DataError: the films are not those of the study.
        StudyError: the opening cannot be written.
    """
    chosen = _chosen(model, workspace, data, sensitivity, device, place)
    before, record = chosen.sealed.openings(), chosen.finals().get(chosen.run_id)
    ours = [one for one in before if one.by == OURS]
    opening = next((one for one in ours if one.run == chosen.run_id and not one.scores), None)
    if record is not None and opening is not None and record.opening.is_that_of(opening):
        say(f"completing the record of {opening.when}, which was stopped half-way")
        _record(chosen, record)
        return record
    if opening is not None:
        say(f"going on with the opening of {opening.when}, whose scores were lost")
        films = chosen.sealed.resume(opening)
    elif record is not None and not again:
        say(f"opened already, {record.opening.when}: this is the record; --again opens it once more")
        return record
    else:
        _refuse_others(chosen, ours, again)
        if count := sum(one.run != chosen.run_id for one in before):
            say(f"the test was opened before for other models of this study, {count} in all: this is no first look")
        films, opening = chosen.sealed.open(why, OURS)
    final = _score(chosen, films, opening)
    _record(chosen, final)
    return final


def _refuse_others(chosen: _Chosen, ours: Sequence[Opening], again: bool) -> None:
    """Raises ConfigError where another model of the study got the test, even if its scores were lost by a kill."""
    other = next((one for one in ours if one.run != chosen.run_id), None)
    if other is not None and not again:
        raise ConfigError(
            f"the test split of study {chosen.study} was opened for trial {other.trial}, runs:/{other.run}, on "
            f"{other.when}: to choose between models by their test scores is what the seal prevents; --again opens it "
            "all the same, and counts"
        )


def finals(study: str, workspace: Workspace, storage: str | None = None) -> dict[str, Final]:
    """MLflow run → record, of every finalized model of a study."""
    noted = read_study(study, workspace, storage).notes.get(FINALS) or {}
    return {run: Final.from_dict(values) for run, values in noted.items()}


def _chosen(
    model: str, workspace: Workspace, data: str | None, sensitivity: float | None, device: str, place: Place
) -> _Chosen:
    connection = connect(place.tracking(workspace), workspace)
    loaded = registry.load(connection, model, resolve_device(device))
    if "xray_opt.study" not in loaded.tags:
        raise ConfigError(f"{model} belongs to no study: finalize is for a study's choice; use evaluate --split test")
    own = own_settings(loaded)
    manifest = prepared(replace(own, root=data or own.root), workspace)
    require_own(manifest, loaded, model, "test")
    sealed = SealedTest(loaded, manifest, connection, workspace, study_storage(loaded, workspace, place))
    rule = "best F1 on validation" if sensitivity is None else f"sensitivity {sensitivity:g} on validation"
    return _Chosen(model, sealed, loaded.bundle.threshold_for(sensitivity), rule)


def _score(chosen: _Chosen, films: Sequence[Film], opening: Opening) -> Final:
    sealed = chosen.sealed
    loaded = sealed.loaded
    cases = cases_of(loaded, sealed.manifest, films)
    _log_predictions(chosen, films, cases)
    image, patient = levels(cases, chosen.threshold)
    return Final(
        model=chosen.model,
        study=chosen.study,
        run=chosen.run_id,
        trial=opening.trial,
        rule=chosen.rule,
        threshold=chosen.threshold,
        temperature=loaded.bundle.temperature,
        image=image,
        patient=patient,
        baselines=_baselines(chosen, films, cases),
        opening=replace(opening, scores=image.values("test")),
        openings=len(sealed.openings()),
    )


def _log_predictions(chosen: _Chosen, films: Sequence[Film], cases: FilmCases) -> None:
    """Each film's label and probability beside the model's own validation ones: the report draws its curves of them.

    Before the record: a kill in between scores the films once more, and none loses this.
    """
    sealed, own = chosen.sealed, cases.films
    names = Pseudonyms(sealed.workspace)
    paths = [film.path for film in films]
    where = sealed.connection, chosen.run_id, TEST_PREDICTIONS
    log_run_predictions(*where, paths, own.labels, own.probabilities, names)


def _baselines(chosen: _Chosen, films: Sequence[Film], ours: FilmCases) -> tuple[Baseline, ...]:
    """The trivial models, best AUC first: chosen on the test films, which is to their advantage and not to ours."""
    found = []
    trivial = trivial_cases(chosen.sealed.manifest, films, loss_of(chosen.sealed.loaded))
    for name, (threshold, cases) in trivial.items():
        paired = gains(ours.films, cases.films, ours.whose, (chosen.threshold, threshold))
        found.append(Baseline(name, threshold, levels(cases, threshold)[0], paired))
    return tuple(sorted(found, key=lambda one: -np.nan_to_num(one.image.scores["auc"].value)))


def trivial_cases(manifest: Manifest, films: Sequence[Film], loss: LossConfig) -> dict[str, tuple[float, FilmCases]]:
    """Trivial model → its threshold of best F1 on validation, and what it says of these films."""
    val = manifest.of("val")
    found = {}
    for name, probabilities in trivial_models(manifest, (*val, *films)).items():
        threshold = best_threshold([film.label for film in val], probabilities[: len(val)])
        found[name] = threshold, film_cases(films, logit(probabilities[len(val) :]), 1.0, loss)
    return found


def _record(chosen: _Chosen, final: Final) -> None:
    """The study's note first, so that scores are never lost; the opening's scores last: they say that all is there."""
    sealed = chosen.sealed
    plain = {chosen.run_id: final.to_dict()}
    amend(chosen.study, sealed.workspace, FINALS, lambda noted: (noted or {}) | plain, sealed.storage)
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        path = Path(folder) / ARTIFACT
        path.write_text(json.dumps(final.to_dict(), indent=1) + "\n", encoding="utf-8")
        log_run_file(sealed.connection, chosen.run_id, path)
    scores = final.image.scores
    tags = {f"test.{name}": _text(scores[name].value, scores[name].low, scores[name].high) for name in ("f1", "auc")}
    gain = final.headline
    tags["test.auc_gain"] = f"{_text(gain.value, gain.low, gain.high)} over {final.baselines[0].name}"
    registry.tag_versions(sealed.connection, chosen.run_id, tags | {"xray_opt.test_openings": str(final.openings)})
    sealed.record(final.opening, final.opening.scores)


def _text(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"
