"""Made-up records of studies for the tests of the report: large, odd and hostile ones."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from functools import cache

import numpy as np
from PIL import Image

from xray_opt.baseline.judging import Contender, Model, compare
from xray_opt.baseline.record import Comparison, Row
from xray_opt.config import LossConfig
from xray_opt.confirm.judging import Candidate, Retrained, judge
from xray_opt.dataset import Drift, Film
from xray_opt.finalize import Final
from xray_opt.intervals import Interval, Patients, gains, json_ready
from xray_opt.leaderboard import Opening
from xray_opt.ledger import TRIVIAL_RECORD
from xray_opt.metrics import Cases, scores
from xray_opt.report import Chosen, Evidence, Predictions, Split, records
from xray_opt.robustness import MASKS, PERTURBATIONS
from xray_opt.robustness import judge as judge_changes
from xray_opt.scoring import Baseline, Evaluation, FilmCases, Shift, film_cases, levels, subgroups, trivial_record
from xray_opt.tuning import StudyRecord, TrialRecord

HOSTILE = "<script>alert(1)</script> \"'&$x_1$ \x00\u202e \ud800 `|*"
RATE, RANK = "optimizer.learning_rate", "lora.rank"
SPACE = [
    {"name": RATE, "kind": "float", "low": 1e-5, "high": 1e-2, "log": True},
    {"name": RANK, "kind": "categorical", "choices": [4, 8, 16], "when": {"model.strategy": "lora"}},
]


def trial(number: int, state: str, value: float | None, epochs: list[float] | None = None, **more: object):
    chance = np.random.default_rng(number)
    params = {RATE: float(10 ** chance.uniform(-5, -2)), RANK: int(chance.choice([4, 8, 16]))}
    steps = dict(enumerate(epochs if epochs is not None else [0.7, 0.8, value or 0.75], start=1))
    notes = {"val.auc": 0.9, "mlflow_run": f"{number:032x}"}
    fields = {"params": params, "notes": notes, "reason": "nan" if state == "FAIL" else None} | more
    return TrialRecord(number, state, fields["params"], value, steps, fields["notes"], None, 9.0, fields["reason"])


def study(*trials: TrialRecord, name: str = "made-up", **notes: object) -> StudyRecord:
    rules = {"fixed": {"model.base": "/home/me/base.safetensors", "image.size": 64}, "space": SPACE, "seed": 7}
    return StudyRecord(name, trials, {"rules": rules} | notes)


def mixed() -> StudyRecord:
    """12 trials: 7 complete, 3 pruned, 1 failed, 1 running."""
    done = [trial(number, "COMPLETE", value) for number, value in enumerate([0.81, 0.84, 0.79, 0.9, 0.88, 0.91, 0.86])]
    pruned = [trial(number, "PRUNED", None, [0.5, 0.55]) for number in (7, 8, 9)]
    return study(*done, *pruned, trial(10, "FAIL", None, []), trial(11, "RUNNING", None, []))


def films(seed: int, patients: int = 120) -> list[Film]:
    chance = np.random.default_rng(seed)
    found = []
    for patient in range(patients):
        label = int(patient % 3 > 0)
        kind = ("normal", "bacteria", "virus")[patient % 3]
        for film in range(1 + int(chance.integers(0, 2))):
            path, who = f"p{seed}-{patient}-{film}.png", f"patient {seed}-{patient}"
            found.append(Film(path, label, who, kind, "", who, "test", f"{len(found):064x}", 1, 1, 1, "L"))
    return found


def logits(made: list[Film], power: float, seed: int) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return power * (np.array([film.label for film in made]) - 0.5) + chance.normal(size=len(made))


def predictions(made: list[Film], own: np.ndarray) -> Predictions:
    labels = np.array([film.label for film in made], dtype=np.int64)
    return Predictions(labels, 1 / (1 + np.exp(-own)), tuple(film.group for film in made))


def trivial(made: list[Film], ours: FilmCases) -> tuple[Baseline, ...]:
    """Models that look at no lungs beside one that says ``ours`` of these films."""
    found = []
    for name, power in (("16×16 thumbnail", 2.0), ("file metadata", 1.0)):
        cases = film_cases(made, logits(made, power, 5), 1.0, LossConfig())
        found.append(Baseline(name, 0.5, levels(cases, 0.5)[0], gains(ours.films, cases.films, ours.whose, (0.5, 0.5))))
    return tuple(found)


@cache
def beside() -> bytes:
    """What ``evaluate`` or the report would record of trivial models on the validation films, by its own code."""
    made = films(1)
    ours = film_cases(made, logits(made, 3.0, 3), 1.0, LossConfig())
    return json.dumps(trivial_record(levels(ours, 0.5)[0], trivial(made, ours))).encode()


def finalized(made: list[Film], own: np.ndarray, run: str, opening: Opening) -> dict[str, object]:
    """What ``finalize`` would record of these test films, by its own code."""
    ours = film_cases(made, own, 1.0, LossConfig())
    image, patient = levels(ours, 0.5)
    opening = replace(opening, run=run, scores=image.values("test"))
    return Final(
        model="models:/m@champion",
        study="made-up",
        run=run,
        trial=5,
        rule="best F1 on validation",
        threshold=0.5,
        temperature=1.25,
        image=image,
        patient=patient,
        baselines=trivial(made, ours),
        opening=opening,
        openings=1,
        subgroups=subgroups(made, ours.films, 0.5),
    ).to_dict()


@cache
def others() -> bytes:
    """What ``evaluate --split all`` would record of other people's films, by its own code."""
    made = films(7)
    cases = film_cases(made, logits(made, 2.0, 8), 1.0, LossConfig())
    image, patient = levels(cases, 0.5)
    spread = Interval(0.9, 0.85, 0.95)
    evaluation = Evaluation(
        "models:/m@champion",
        "all",
        len(made),
        cases.whose.count,
        0.5,
        scores(cases.films.labels, cases.films.probabilities),
        scores(cases.films.labels, cases.films.probabilities, 0.5),
        image,
        patient,
        {"test": 3},
        subgroups=subgroups(made, cases.films, 0.5),
        shift=Shift(Interval(0.5, 0.45, 0.55), 0.7, Drift(spread, {"size": 0.9}, True)),
        baselines=trivial(made, cases),
    )
    return json.dumps(json_ready(asdict(evaluation) | {"set": "abc123", "made": "2026-03-04T05:06:07+00:00"})).encode()


def confirmed(made: list[Film]) -> dict[str, object]:
    """What ``confirm`` would record of trials 5 and 3, by its own code."""
    labels = np.array([film.label for film in made], dtype=np.int64)
    found = []
    for number, search, power in ((5, 0.91, 3.4), (3, 0.9, 2.0)):
        called = [logits(made, power, 100 * number + seed) > 0 for seed in range(3)]
        scores = [float(2 * (one & (labels == 1)).sum() / (one.sum() + labels.sum())) for one in called]
        runs = [f"{number}{seed}" * 16 for seed in range(3)]
        seeds = tuple(Retrained(*one) for one in zip(runs, scores, called, strict=True))
        found.append(Candidate(number, {RANK: 8}, search, seeds))
    return judge("made-up", found, labels, Patients([film.group for film in made])).to_dict()


@cache
def changed() -> bytes:
    """What ``evaluate --robustness`` would record of the validation films, by its own code."""
    made, names = films(1), (*PERTURBATIONS, *MASKS)
    own, chance = logits(made, 3.0, 3), np.random.default_rng(6)
    moved = own + chance.normal(size=(len(names), len(own))) * np.linspace(0.1, 1.5, len(names))[:, None]
    probabilities = 1 / (1 + np.exp(-np.vstack([own, moved])))
    labels = np.array([film.label for film in made], dtype=np.int64)
    suite = judge_changes(names, tuple(MASKS), probabilities, labels, whose(made), 0.5, ("secret-name.png: truncated",))
    return json.dumps(json_ready(asdict(suite) | {"shortcuts": ["it reads the border: AUC -0.100"]})).encode()


@cache
def rivals() -> dict[str, object]:
    """What ``baseline`` would record of the validation films, by its own code; one training gave no result."""
    made = films(1)
    labels = np.array([film.label for film in made], dtype=np.int64)
    skills = {"lora": 3.0, "linear": 2.0, "file metadata": 1.0}
    contenders = [
        Contender(
            key, tuple(Model(Cases(labels, 1 / (1 + np.exp(-logits(made, skill, seed)))), 0.5) for seed in (1, 2))
        )
        for key, skill in skills.items()
    ]
    scores, leads = compare(contenders, whose(made), "lora")
    rows = [Row(key, scores[key], (0.5,), 1e-3, 1000, 9.0, ("1" * 32,)) for key in skills]
    rows.insert(2, Row("full", {}, failed="oom in /home/me/films"))
    sizes = len(made), whose(made).count
    return Comparison("made-up", "val", 5, "the best of the search", 2, *sizes, tuple(rows), leads, rates=3).to_dict()


def whose(made: list[Film]) -> Patients:
    return Patients([film.group for film in made])


@cache
def sheet() -> bytes:
    """A small PNG in the place of a sheet of heat maps."""
    buffer = io.BytesIO()
    Image.new("RGB", (1010, 300), "grey").save(buffer, "PNG")
    return buffer.getvalue()


EXPLAINED = (
    b"path,probability,threshold,answer,label\nsecret-name.png,0.9,0.5,PNEUMONIA,NORMAL\nb.png,0.6,0.5,PNEUMONIA,\n"
)


def whole() -> Evidence:
    """A study with every record that there is."""
    val, sealed = films(1), films(2)
    own, unseen = logits(val, 3.0, 3), logits(sealed, 3.0, 4)
    opening = Opening("ada", "2026-01-02T03:04:05+00:00", "the one test", 5, {}, "xray-opt finalize", by="finalize")
    final = finalized(sealed, unseen, "5" * 32, opening)
    made = mixed()
    made = replace(
        made,
        notes=made.notes | {"confirmation": confirmed(val), "finalized": {"5" * 32: final}, "baseline_val": rivals()},
    )
    return Evidence(
        study=made,
        made="2026-01-02 03:04+00:00",
        version="0.1.0",
        importances={RATE: 0.75, RANK: 0.25},
        openings=(Opening(**final["opening"]),),
        chosen=Chosen("5" * 32, 5, "the best of the search", 0.5, 1.25, {RATE: "0.002"}, ("m version 1 (champion)",)),
        final=final,
        validation=predictions(val, own),
        test=predictions(sealed, unseen / 1.25),
        splits=(Split("train", 900, 500, 300, 600), Split("val", len(val), 120, 60, len(val) - 60)),
        shortcut={"shortcut.metadata_auc": 0.93, "shortcut.thumbnail_auc": 0.96, "shortcut.always_f1": 0.84},
        audit={"ok": True, "leaks": [], "near_duplicates": {"total": 3, "across_splits": 1}, "left_out": {"odd": 2}},
        environment={"host": "here", "git commit": "c0ffee", "torch": "2.13.0"},
        hosts={"here": 12},
        files={
            records.ROBUST["val"]: changed(),
            TRIVIAL_RECORD: beside(),
            records.SHEET: sheet(),
            records.EXPLAINED: EXPLAINED,
            f"{records.OUTSIDE}abc123.json": others(),
        },
    )


def hostile() -> Evidence:
    """Every text from outside is what breaks pages, drawings and tables."""
    odd = {HOSTILE: HOSTILE, RATE: float("nan"), RANK: True}
    trials = [
        trial(0, "COMPLETE", 0.5, params=odd, notes={"val.auc": HOSTILE, "mlflow_run": HOSTILE}),
        trial(1, "COMPLETE", 0.6, [float("nan"), float("inf")], params={RATE: -1.0}),
        trial(2, "FAIL", None, [], params={HOSTILE: None}, reason=HOSTILE),
        trial(3, HOSTILE, None, [], params={}),
    ]
    full = whole()
    space = [{"name": HOSTILE, "kind": HOSTILE, "choices": [HOSTILE], "when": {HOSTILE: HOSTILE}}]
    rules = {"fixed": {HOSTILE: HOSTILE, "model.base": f"/home/me/{HOSTILE}"}, "space": space, "seed": HOSTILE}
    final = {**full.final, "rule": HOSTILE, "headline": {**full.final["headline"], "over": HOSTILE}}
    suite = json.loads(changed())
    suite["conditions"][0]["name"] = suite["worst"] = suite["masks"][0]["name"] = HOSTILE
    suite["shortcuts"], suite["goals"][0]["verdict"] = [HOSTILE], HOSTILE
    table = io.StringIO()
    csv.writer(table).writerows([["answer", "probability", "label"], [HOSTILE, "nan", HOSTILE]])
    shown = {
        records.ROBUST["val"]: json.dumps(suite).encode(),
        records.SHEET: sheet(),
        records.EXPLAINED: table.getvalue().encode("utf-8", "surrogatepass"),
    }
    abroad = json.loads(others())
    abroad["set"] = abroad["made"] = abroad["subgroups"][0]["name"] = abroad["subgroups"][0]["by"] = HOSTILE
    abroad["left_out"], abroad["shift"]["drift"], abroad["shift"]["why"] = {HOSTILE: 1}, None, HOSTILE
    shown[f"{records.OUTSIDE}odd.json"] = json.dumps(abroad).encode()
    shown[f"{records.OUTSIDE}broken.json"] = b"[" * 100_000
    duel = json.loads(json.dumps(rivals()))
    duel["rows"][0]["key"] = duel["rows"][2]["failed"] = HOSTILE
    duel["gains"][HOSTILE] = duel["gains"].pop("linear")
    notes = {"rules": rules, "confirmation": full.confirmation, "baseline_val": duel}
    return replace(
        full,
        study=StudyRecord(HOSTILE, tuple(trials), notes),
        version=HOSTILE,
        importances={HOSTILE: 0.5},
        openings=(Opening(HOSTILE, HOSTILE, HOSTILE, None, by=HOSTILE),),
        chosen=Chosen(HOSTILE, None, HOSTILE, None, None, {HOSTILE: HOSTILE}, (HOSTILE,)),
        final=final,
        audit={"left_out": {HOSTILE: HOSTILE}},
        environment={HOSTILE: HOSTILE, "git commit": HOSTILE},
        hosts={HOSTILE: 1},
        files=shown,
    )
