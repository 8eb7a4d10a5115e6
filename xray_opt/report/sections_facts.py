"""Sections of what a study stands on: films, settings, machines, and the commands that do it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from xray_opt.config import Config, as_text, flatten, study_text
from xray_opt.report.html import code, heading, missing, paragraph, table
from xray_opt.report.records import ROBUST, SHEET, Evidence, command_of

#: Settings that are no rules of a study, but that it was run with.
RUNNING = ("training.device", "training.micro_batch", "training.cuda_graphs")
#: Settings that may be a path: only the last part is shown.
PLACES = ("model.base", "data.root")
_SHORTCUTS = (
    ("file metadata alone", "shortcut.metadata_auc", "shortcut.metadata_f1"),
    ("16×16 thumbnail alone", "shortcut.thumbnail_auc", "shortcut.thumbnail_f1"),
    ("always saying {}", "", "shortcut.always_f1"),
)


def data(evidence: Evidence) -> Markup:
    """Splits, audit, shortcut screen."""
    parts = []
    if evidence.splits:
        rows = [
            [one.name, one.films, one.patients, one.negative, one.positive, _percent(one.positive, one.films)]
            for one in evidence.splits
        ]
        heads = ["split", "films", "patients", *evidence.classes, "share"]
        parts.append(table("Films and patients of each split; no patient is in two", heads, rows))
    else:
        command = command_of(evidence, "tune")
        parts.append(missing("The study's run keeps no table of its films", command))
    parts += [heading("Audit"), _audit(evidence), heading("Shortcut screen"), _shortcut(evidence)]
    return Markup("").join(parts)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _audit(evidence: Evidence) -> Markup:
    found = evidence.audit
    if not found:
        return missing("No audit of this split was kept on this machine", "xray-opt data audit FOLDER")
    near = found.get("near_duplicates") or {}
    rows: list[list[object]] = [
        ["verdict", "ok" if found.get("ok") else "NOT OK"],
        ["patients, files or groups in two splits", len(found.get("leaks") or ())],
        ["films in a split that cannot be used now", len(found.get("broken") or ())],
        ["bad files, left out", len(found.get("bad_files") or ())],
        [
            f"splits whose share of {evidence.classes[1]} differs by more than 5 points",
            len(found.get("unbalanced") or ()),
        ],
        ["grey films saved as RGB", found.get("grey_as_rgb")],
        ["films with real colour", len(found.get("coloured") or ())],
        ["near-duplicates of different patients", near.get("total")],
        ["near-duplicates across splits", near.get("across_splits")],
    ]
    rows += [[f"left out: {reason}", count] for reason, count in (found.get("left_out") or {}).items()]
    return table("Audit of all films that the study's were chosen from", ["what", "found"], rows)


def _shortcut(evidence: Evidence) -> Markup:
    found = evidence.shortcut
    if not found:
        command = command_of(evidence, "tune")
        return missing("The study's run holds no shortcut screen", command)
    rows = shortcut_rows(evidence)
    note = (
        "What the class is told by without looking at lungs, cross-validated by patient on train and val. Where these "
    )
    note += "are high, a high score of a network proves little by itself."
    return table("Models that look at no lungs", ["model", "AUC", "F1"], rows) + paragraph(note, kind="note")


def shortcut_rows(evidence: Evidence) -> list[list[object]]:
    """What looks at no lungs, its AUC and its F1 on train and val."""
    found, positive = evidence.shortcut, evidence.classes[1]
    return [[words.format(positive), found.get(auc), found.get(f1)] for words, auc, f1 in _SHORTCUTS]


def settings(evidence: Evidence) -> Markup:
    """The searched space, the chosen model's settings, what was fixed."""
    rules, chosen = evidence.rules, evidence.chosen
    space = [[item.get("name"), item.get("kind"), _range(item), _conditions(item)] for item in rules.get("space", ())]
    names = evidence.chosen_params
    own = {name: value for name, value in (chosen.settings if chosen else {}).items() if name in names}
    parts = []
    if space:
        parts.append(table("Searched settings", ["setting", "kind", "values", "only where"], space))
    if own:
        parts.append(
            table("The chosen model's searched settings", ["setting", "value"], [[*one] for one in own.items()])
        )
    fixed = [[name, _place(name, value)] for name, value in sorted((rules.get("fixed") or {}).items())]
    if fixed:
        parts.append(table("Fixed settings", ["setting", "value"], [*fixed, ["seed of the search", rules.get("seed")]]))
    return Markup("").join(parts) or paragraph("The study keeps no settings.", kind="missing")


def _range(item: Mapping[str, Any]) -> str:
    if item.get("choices"):
        return ", ".join(str(one) for one in item["choices"])
    words = f"{item.get('low')} to {item.get('high')}"
    words += ", logarithmic" if item.get("log") else ""
    return words + (f", in steps of {item['step']}" if item.get("step") else "")


def _conditions(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in (item.get("when") or {}).items())


def _place(name: str, value: object) -> object:
    return PurePath(value).name if name in PLACES and isinstance(value, str) else value


def environment(evidence: Evidence) -> Markup:
    """Versions and machines, as the chosen model's run recorded them."""
    if not evidence.environment:
        return missing("The chosen model has no run in MLflow", command_of(evidence, "tune"))
    parts = [
        table("Recorded with the chosen model", ["what", "value"], [[*one] for one in evidence.environment.items()])
    ]
    if evidence.hosts:
        rows = [[host, count] for host, count in evidence.hosts.items()]
        parts.append(table("Machines that did the study's runs", ["machine", "runs"], rows))
    return Markup("").join(parts)


def commands(evidence: Evidence) -> Markup:
    """The study's file and commands that do it again, and those that look at what it left."""
    own, left = list(again(evidence)), list(reproducing(evidence))
    name = study_file(evidence)
    return Markup("").join(
        (
            heading(f"The whole study again, from its films: {name}"),
            paragraph("Made of the rules that the study keeps; a file of base weights is named without its folder."),
            code(study_text_of(evidence).splitlines()),
            code(own),
            heading("With the runs that it left in MLflow"),
            code(left),
            paragraph(
                "The same films give the same split, and on one kind of processor a training is equal bit for bit. "
                "A second finalize shows the record and opens nothing; on films that were opened before, the model of "
                "a repeated study needs --again, which counts.",
                kind="note",
            ),
        )
    )


def study_file(evidence: Evidence) -> str:
    """Name of the file that the study is written to."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", evidence.study.name)[:100] + ".yaml"


def study_text_of(evidence: Evidence) -> str:
    """A study file made of what the study keeps of itself."""
    search = evidence.study.notes.get("search") or {}
    return study_text(evidence.study.name, evidence.rules, search, max(evidence.study.counted, 1))


def again(evidence: Evidence) -> Iterator[str]:
    """Command lines that do the study again where there is nothing but its films and its file."""
    file = f"--study ./{study_file(evidence)} --data FOLDER{_run_options(evidence)}"
    if commit := evidence.environment.get("git commit"):
        yield f"git checkout {shlex.quote(commit)}"
    yield f"xray-opt tune {file}"
    retrained, promoted = None, False
    if verdict := evidence.confirmation:
        found = verdict["settings"]
        seeds, splits = (max(len(one[kind]) for one in found) for kind in ("seeds", "splits"))
        more = f" --splits {splits}" if splits else ""
        retrained = _retraining(evidence, found)
        promoted = retrained is not None and retrained == verdict.get("winner")
        more += " --promote" if promoted else ""
        yield f"xray-opt confirm {file} --top {len(found)} --seeds {seeds}{more}"
    yield from _scoring(evidence, _model_again(evidence, retrained, promoted))
    for split in ("val", "test"):
        if record := evidence.study.notes.get(f"baseline_{split}"):
            rates = f" --rates {record['rates']}" if record.get("rates") else ""
            where = " --split test" if split == "test" else ""
            yield f"xray-opt baseline {file} --seeds {record['seeds']}{rates}{where}"
    yield f"xray-opt report {shlex.quote(evidence.study.name)}"


def _retraining(evidence: Evidence, settings: Iterable[Mapping[str, Any]]) -> int | None:
    """The trial of whose retrainings the chosen model is the median; none where it is none of these."""
    run = evidence.chosen.run if evidence.chosen else ""
    return next((one["trial"] for one in settings if run and one.get("run") == run), None)


def _run_options(evidence: Evidence) -> str:
    """What the study was told of where and how to run, which is no rule of it: base weights, device."""
    own = evidence.chosen.settings if evidence.chosen else {}
    usual = {name: as_text(value) for name, value in flatten(Config()).items()}
    base = str((evidence.rules.get("fixed") or {}).get("model.base", ""))
    words = f" --weights {shlex.quote(PurePath(base).name)}" if base.endswith(".safetensors") else ""
    return words + "".join(
        f" --set {shlex.quote(f'{name}={own[name]}')}" for name in RUNNING if own.get(name, usual[name]) != usual[name]
    )


def _model_again(evidence: Evidence, retrained: int | None, promoted: bool) -> str:
    """The chosen model's name in a workspace where the study was done again: the champion, or another trial's run."""
    chosen, best = evidence.chosen, evidence.study.best
    if retrained is not None and not promoted:  # confirm promotes its winner alone
        return f" --model runs:/RUN_OF_THE_MEDIAN_RETRAINING_OF_TRIAL_{retrained}"
    if chosen and retrained is None and best and chosen.trial != best.number:
        return f" --model runs:/RUN_OF_TRIAL_{chosen.trial}"
    name = (chosen.settings if chosen else {}).get("tracking.registered_model", "")
    usual = Config().tracking.registered_model
    return f" --model {shlex.quote(f'models:/{name}@champion')}" if name not in ("", usual) else ""


def _scoring(evidence: Evidence, model: str) -> Iterator[str]:
    """What was done with the chosen model alone; ``model`` are the options that name it."""
    if final := evidence.final:
        wanted = final.get("sensitivity")
        words = "" if wanted is None else f" --sensitivity {wanted:g}"
        words += " --robustness" if final.get("robustness") else ""
        yield f"xray-opt finalize{words}{model}"
    if ROBUST["val"] in evidence.files:
        yield f"xray-opt evaluate --robustness{model}"
    if SHEET in evidence.files:
        yield f"xray-opt explain --out sheet{model}"


def reproducing(evidence: Evidence) -> Iterator[str]:
    """Command lines that look again at the runs that the study left."""
    name = shlex.quote(evidence.study.name)
    if evidence.chosen:
        run = shlex.quote(evidence.chosen.run)
        yield f"xray-opt reproduce {run} --study {name} --data FOLDER"
        yield from _scoring(evidence, f" --model runs:/{run} --study {name}")
    yield f"xray-opt compare {name}"
    yield f"xray-opt report {name}"
