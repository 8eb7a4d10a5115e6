"""The one opening of the test split that a chosen model gets.

Everything that could be chosen was chosen before: threshold and temperature stand in the model's bundle, the baselines
are fitted to train and their thresholds to validation. The opening is recorded before the first film is handed out; a
process that is killed behind that is finished by the next call without another opening.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import Workspace
from xray_opt.dataset import Film, Pseudonyms, prepared
from xray_opt.errors import ConfigError
from xray_opt.finalize.record import Changed, Final
from xray_opt.leaderboard import Opening, look_of
from xray_opt.ledger import Look, held_out_keys
from xray_opt.mlflow_client import connect
from xray_opt.places import Place
from xray_opt.scoring import (
    FilmCases,
    SealedTest,
    baselines,
    cases_of,
    changed_films,
    levels,
    log_robustness,
    loss_of,
    own_settings,
    require_own,
    study_storage,
    subgroups,
)
from xray_opt.tracking import MOST_FILMS, TEST_PREDICTIONS, log_run_json, log_run_predictions
from xray_opt.tuning import amend, read_study

#: Study note: MLflow run → the record of its finalization. Artifact of that run: the same.
FINALS, ARTIFACT = "finalized", "finalize.json"
#: What openings by this command are marked with.
OURS = "finalize"
#: Artifact of what changed test films cost; records of before tell no more of it.
CHANGED = "robustness-test.json"
Say = Callable[[str], None]
Progress = Callable[[int, int], None]
Opened = tuple[tuple[Film, ...], Opening]


@dataclass(frozen=True)
class _Chosen:
    """A model that is to be finalized, with its sealed test split."""

    model: str
    sealed: SealedTest
    threshold: float
    rule: str
    sensitivity: float | None

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
    robustness: bool = False,
    progress: Progress | None = None,
) -> Final:
    """Score ``model`` on the test split of its study, once; a second call gives the record of the first.

    Args:
        model: MLflow model URI or ``runs:/RUN_ID`` of a study's model.
        data: where the films lie now.
        again: open once more what was opened by ``finalize`` before; that counts.
        sensitivity: use the threshold that reached it on validation; none takes that of best F1.
        say: told what a user should know of earlier openings.
        robustness: also score changed films, as ``evaluate`` does, in the same opening.
        progress: called with (films done, films in all) of that.

    Raises:
        ConfigError: not a study's model, or one of the test films was opened by ``finalize`` for another model, of
            this study or another one.
        DataError: the films are not those of the study.
        StudyError: the opening cannot be written.
    """
    chosen = _chosen(model, workspace, data, sensitivity, device, place)
    changes = (progress or _silent) if robustness else None
    with chosen.sealed.alone(say):
        begun = _begin(chosen, why, again, say)
    if isinstance(begun, Final):
        _say_what_differs(chosen, begun, robustness, say)
        return begun
    final = _score(chosen, *begun, changes)
    _record(chosen, final)
    return final


def _begin(chosen: _Chosen, why: str, again: bool, say: Say) -> Final | Opened:
    """The record that there is, or the films and the opening to score them under: decided while nobody else decides."""
    record = chosen.finals().get(chosen.run_id)
    ours = [one for one in chosen.sealed.openings() if one.by == OURS]
    opening = next((one for one in ours if one.run == chosen.run_id and not one.scores), None)
    if record is not None and opening is not None and record.opening.is_that_of(opening):
        say(f"completing the record of {opening.when}, which was stopped half-way")
        _record(chosen, record)
        return record
    if opening is not None:
        say(f"going on with the opening of {opening.when}, whose scores were lost, or are being made elsewhere")
        return chosen.sealed.resume(opening), opening
    if record is not None and not again:
        say(f"opened already, {record.opening.when}: this is the record; --again opens it once more")
        return record
    return _first_look(chosen, why, again, say)


def _first_look(chosen: _Chosen, why: str, again: bool, say: Say) -> Opened:
    """Ask who looked before, and open the split."""
    looks = chosen.sealed.looks()
    _refuse_others(chosen, looks, again)
    if others := [look for look in looks if look.run != chosen.run_id]:
        say(f"these test films were opened before for other models, {len(others)} in all: this is no first look")
        for look in others:
            say(f"opened {look.text()}")
    return chosen.sealed.open(why, OURS)


def _silent(done: int, films: int) -> None:
    """Who watches nothing."""


def _say_what_differs(chosen: _Chosen, record: Final, robustness: bool, say: Say) -> None:
    """A record answers what was asked when the test was opened, which may not be what is asked now."""
    if record.rule != chosen.rule:
        say(
            f"not as asked: the record's threshold is that of {record.rule} ({record.threshold:.4f}), that of "
            f"{chosen.rule} is {chosen.threshold:.4f}; only --again, which counts, scores with it"
        )
    if robustness and not record.robustness:
        kept = chosen.sealed.connection.client.list_artifacts(chosen.run_id)
        if any(one.path == CHANGED for one in kept):
            say(f"changed films were scored when the test was opened: {CHANGED} of run {chosen.run_id}")
        else:
            say("not as asked: no changed films were scored when the test was opened; only --again, which counts, does")


def _refuse_others(chosen: _Chosen, looks: Sequence[Look], again: bool) -> None:
    """Raises ConfigError where a model of any study got these test films before, even if a kill lost its scores."""
    other = next((look for look in looks if look.by == OURS and look.run != chosen.run_id), None)
    if other is not None and not again:
        own = held_out_keys(chosen.sealed.manifest)
        same = len(own.intersection(other.films))
        least = "at least " if len(other.films) == MOST_FILMS else ""  # MLflow tells no more of them
        films = "these test films were" if same == len(own) else f"{least}{same} of these {len(own)} test films were"
        raise ConfigError(
            f"{films} opened for {other.model()}, on {other.when}: to choose between models by their test scores is "
            "what the seal prevents, within a study and over several; --again opens them all the same, and counts"
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
    sealed = SealedTest(loaded, manifest, connection, workspace, study_storage(loaded, connection, workspace, place))
    rule = "best F1 on validation" if sensitivity is None else f"sensitivity {sensitivity:g} on validation"
    return _Chosen(model, sealed, loaded.bundle.threshold_for(sensitivity), rule, sensitivity)


def _score(chosen: _Chosen, films: Sequence[Film], opening: Opening, changes: Progress | None) -> Final:
    sealed = chosen.sealed
    loaded, looks = sealed.loaded, sealed.looks()
    own, ours = sealed.manifest, {look_of(one, chosen.study).identity for one in sealed.openings()}
    cases = cases_of(loaded, sealed.manifest, films)
    _log_predictions(chosen, films, cases)
    changed = None
    if changes is not None:
        paths = [Path(sealed.manifest.root) / film.path for film in films]
        suite = changed_films(loaded, paths, films, chosen.threshold, changes)[2]
        log_robustness(sealed.connection, chosen.run_id, "test", suite)
        changed = Changed.of(suite)
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
        baselines=baselines(own, own, films, cases, chosen.threshold, loss_of(loaded)),
        opening=replace(opening, scores=image.values("test")),
        openings=len(sealed.openings()),
        looks=len(looks),
        others=tuple(look.text() for look in looks if look.identity not in ours),
        sensitivity=chosen.sensitivity,
        subgroups=subgroups(films, cases.films, chosen.threshold),
        robustness=changed,
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


def _record(chosen: _Chosen, final: Final) -> None:
    """The study's note first, so that scores are never lost; the opening's scores last: they say that all is there."""
    sealed = chosen.sealed
    plain = {chosen.run_id: final.to_dict()}
    amend(chosen.study, sealed.workspace, FINALS, lambda noted: (noted or {}) | plain, sealed.storage)
    log_run_json(sealed.connection, chosen.run_id, ARTIFACT, final.to_dict())
    scores = final.image.scores
    tags = {f"test.{name}": _text(scores[name].value, scores[name].low, scores[name].high) for name in ("f1", "auc")}
    gain = final.headline
    tags["test.auc_gain"] = f"{_text(gain.value, gain.low, gain.high)} over {final.baselines[0].name}"
    tags |= {"xray_opt.test_openings": str(final.openings), "xray_opt.test_openings_of_films": str(final.looks)}
    registry.tag_versions(sealed.connection, chosen.run_id, tags)
    sealed.record(final.opening, final.opening.scores)


def _text(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"
