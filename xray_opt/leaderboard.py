"""A study's trials, best first, and how often its sealed test films were opened. Light: no torch, no MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xray_opt.config import Workspace
from xray_opt.dataset import kept_manifests
from xray_opt.intervals import Interval
from xray_opt.ledger import Look, held_out_keys, looks_at, noted
from xray_opt.tuning import StudyRecord, TrialRecord, amend, read_study

#: Study note that holds every opening of the test split.
OPENINGS = "test_openings"


#: Score → note of a trial that holds the ends of its 95 % interval over the validation patients. For reading alone: the
#: best of many trials is the best by luck as well, which such an interval does not know.
INTERVALS = {"f1": "val.f1_interval", "auc": "val.auc_interval"}


@dataclass(frozen=True)
class Opening:
    """One opening of the sealed test split.

    Attributes:
        trial, run: whose model it was opened for, and that model's MLflow run.
        scores: at the threshold fixed on validation; empty where a kill came before them.
        command: the command line.
        by: ``evaluate``, ``finalize`` or ``baseline``.
    """

    who: str
    when: str
    why: str
    trial: int | None
    scores: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    run: str = ""
    by: str = "evaluate"
    own: bool = False

    def is_that_of(self, other: Opening) -> bool:
        """Whether both tell of one opening, with or without its scores."""
        return replace(self, scores={}) == replace(other, scores={})


@dataclass(frozen=True)
class Leaderboard:
    """A study's trials, best validation F1 first, with test scores of those whose test was opened.

    Of a study with two objectives ``second`` is the other one's name, and ``front`` are the trials of the Pareto front:
    they come first. ``looks`` are all that are known at the study's test films, for its own models and for others.
    ``confirmed`` are F1 with its interval (as ``Interval``'s fields) of the trials whose setting was confirmed.
    """

    summary: str
    trials: tuple[TrialRecord, ...]
    openings: tuple[Opening, ...]
    second: str | None = None
    front: tuple[int, ...] = ()
    looks: tuple[Look, ...] = ()
    confirmed: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def foreign(self) -> tuple[Look, ...]:
        """The looks that the study did not note: for other studies, for none, or for one of its name that is gone."""
        return foreign_looks(self.looks, self.openings)

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows; the reference's table, its test columns empty where the test is sealed."""
        names = sorted({name for trial in self.trials for name in trial.params})
        test = ("test.f1", "test.auc", "test.accuracy") if self.openings else ()
        # A retraining of a trial is opened under the trial's number, but its scores are not the trial's. A trial that
        # ended while MLflow was away does not know its run.
        scored = [opening for opening in self.openings if opening.scores]
        tested = {opening.run or opening.trial: opening.scores for opening in scored}
        own = {opening.trial: opening.scores for opening in scored if opening.own}
        columns = ["trial", "state", "val F1", "F1 95 %", *((self.second, "front") if self.second else ())]
        columns += ["val AUC", "AUC 95 %", *names]
        rows: list[list[object]] = [
            [t.number, t.state.lower(), t.value, self._between(t, "f1")]
            + ([t.second, "★" if t.number in self.front else ""] if self.second else [])
            + [t.notes.get("val.auc"), self._between(t, "auc"), *(t.params.get(name) for name in names)]
            + [found.get(name) for name in test]
            for t in self.trials
            for found in [tested.get(t.notes.get("mlflow_run")) or own.get(t.number) or tested.get(t.number, {})]
        ]
        return columns + [name.replace(".", " ").replace("f1", "F1").replace("auc", "AUC") for name in test], rows

    def _between(self, trial: TrialRecord, score: str) -> str | None:
        """The trial's own interval, in few letters; of a confirmed setting F1 has a better one."""
        ends = interval_of(trial, score)
        if trial.number in self.confirmed:
            return "confirmed" if score == "f1" else None
        return None if ends is None else "-".join(f"{end:.3f}".removeprefix("0") for end in ends)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "summary": self.summary,
            "test_openings": [asdict(opening) for opening in self.openings],
            "looks_at_test_films": [look.to_dict() | {"films": len(look.films)} for look in self.looks],
            "trials": [trial.to_dict() for trial in self.trials],
            "confirmed": {str(number): dict(one) for number, one in self.confirmed.items()},
        } | ({"second": self.second, "front": list(self.front)} if self.second else {})


def leaderboard(
    study: str, workspace: Workspace, storage: str | None = None, elsewhere: Iterable[Look] = ()
) -> Leaderboard:
    """Trials of ``study``: complete ones by validation F1 (those of a front first), then pruned ones, then the rest.

    Args:
        elsewhere: looks at test films that other machines told of.

    Raises:
        StudyError: no such study; the line names those there are.
    """
    record = read_study(study, workspace, storage)
    front = tuple(t.number for t in record.front) if record.second else ()
    summary = f"{record.count('COMPLETE')} complete, {record.count('PRUNED')} pruned, {record.count('FAIL')} failed"
    looks = study_looks(record, workspace, elsewhere)
    confirmed = confirmed_scores(record.notes.get("confirmation"))
    return Leaderboard(summary, record.listed, tuple(openings(record)), record.second, front, looks, confirmed)


def confirmed_scores(verdict: Mapping[str, Any] | None) -> dict[int, Mapping[str, Any]]:
    """Trial → its setting's confirmed F1 (``Interval``'s fields), of the note of a confirmation."""
    return {int(one["trial"]): one["confirmed"] for one in (verdict or {}).get("settings", ())}


def interval_notes(found: Mapping[str, Interval]) -> dict[str, Any]:
    """What a trial notes of the intervals of its validation scores; nothing of a score that has none."""
    both = {name: (one.low, one.high) for name, one in found.items()}
    return {INTERVALS[name]: [low, high] for name, (low, high) in both.items() if low is not None and high is not None}


def interval_of(trial: TrialRecord, score: str) -> tuple[float, float] | None:
    """Ends of the 95 % interval of ``f1`` or ``auc`` over patients that a complete trial noted; older ones did not."""
    ends = trial.notes.get(INTERVALS[score])
    return (float(ends[0]), float(ends[1])) if ends and trial.state == "COMPLETE" else None


def study_looks(study: StudyRecord, workspace: Workspace, elsewhere: Iterable[Look] = ()) -> tuple[Look, ...]:
    """Every look at a study's test films that is known here, oldest first, whatever study and model it was for.

    The films are those of the study's manifest; where that is not kept here, those of the looks that it noted itself.

    Raises:
        DataError: a record is damaged.
    """
    known, own = [*noted(workspace), *elsewhere], openings(study)
    manifest = next(kept_manifests(workspace.manifests, str(study.notes.get("data_sha256"))), None)
    if manifest is not None:
        keys = held_out_keys(manifest)
    else:
        mine = {look_of(one, study.name).identity for one in own}
        keys = frozenset(key for look in known if look.identity in mine for key in look.films)
    found = {look.identity: look for look in looks_at(keys, known)}
    for one in own:  # noted before there was a ledger, or on another machine
        found.setdefault((look := look_of(one, study.name)).identity, look)
    return tuple(sorted(found.values(), key=lambda look: look.when))


def foreign_looks(looks: Iterable[Look], own: Iterable[Opening]) -> tuple[Look, ...]:
    """The looks that are none of a study's own openings; its name tells nothing: others may have one like it."""
    noted_ones = {look_of(one, "").identity for one in own}
    return tuple(look for look in looks if look.identity not in noted_ones)


def looks_told(looks: Sequence[Look], own: Iterable[Opening], study: str) -> str:
    """How often a study's test films were looked at, for whom, and which looks were free of any choice.

    The first look is. So is one of ``baseline`` for the same trial right behind that of ``finalize``: what it compares
    was trained without the test. Whatever comes later may have been chosen by what was seen.

    Args:
        looks: all that are known, oldest first; ``own`` are those that the study noted.
    """
    if not looks:
        return "Sealed, never opened."
    foreign = foreign_looks(looks, own)
    names = {study: "another study of this name", "": "a model without a study"}
    whose = ", ".join(dict.fromkeys(names.get(look.study, f"study {look.study}") for look in foreign))
    if len(looks) == 1:
        return f"Opened once, for {whose}: another look is not the first one." if foreign else "Opened once."
    compared = (
        [look.by for look in looks[:2]] == ["finalize", "baseline"]
        and looks[0].trial == looks[1].trial
        and not set(foreign) & set(looks[:2])
    )
    if compared and len(looks) == 2:
        return (
            "Opened 2 times: once for the chosen model, and then by baseline, to compare what was chosen and trained "
            "before; nothing was chosen by that."
        )
    free = "the first look was free of any choice"
    if compared:
        free = "the first look, and that of baseline behind it, were free of any choice"
    elif looks[0] in foreign:
        free += ", and that was not this study's"
    words = f"Opened {len(looks)} times: only {free}."
    return f"{words} {len(foreign)} of them for {whose}." if foreign else words


def look_of(opening: Opening, study: str, films: tuple[str, ...] = (), host: str = "") -> Look:
    """An opening for a model of ``study`` as a look at films, whose keys these are."""
    one = opening
    return Look(one.who, one.when, one.why, one.by, study, one.trial, one.run, host, films)


def openings(study: StudyRecord) -> list[Opening]:
    """Every opening of the study's test split, oldest first."""
    return _from_note(study.notes.get(OPENINGS))


def note_opening(study: str, workspace: Workspace, storage: str | None, opening: Opening) -> list[Opening]:
    """Write an opening to a study and return all; a second note of the same opening takes the place of the first."""

    def with_it(note: Any) -> list[dict[str, Any]]:
        known = _from_note(note)
        if not any(one.is_that_of(opening) for one in known):
            known.append(opening)
        return [asdict(opening if one.is_that_of(opening) else one) for one in known]

    return _from_note(amend(study, workspace, OPENINGS, with_it, storage)[OPENINGS])


def _from_note(note: Any) -> list[Opening]:
    return [Opening(**item) for item in note or []]
