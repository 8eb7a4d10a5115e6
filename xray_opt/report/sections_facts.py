"""Sections of what a study stands on: films, settings, machines, and the commands that do it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from xray_opt.report.html import code, heading, missing, paragraph, table
from xray_opt.report.records import ROBUST, SHEET, Evidence

#: Settings that may be a path: only the last part is shown.
PLACES = ("model.base", "data.root")
SHORTCUTS = (
    ("file metadata alone", "shortcut.metadata_auc", "shortcut.metadata_f1"),
    ("16×16 thumbnail alone", "shortcut.thumbnail_auc", "shortcut.thumbnail_f1"),
    ("always saying pneumonia", "", "shortcut.always_f1"),
)


def data(evidence: Evidence) -> Markup:
    """Splits, audit, shortcut screen."""
    parts = []
    if evidence.splits:
        rows = [
            [one.name, one.films, one.patients, one.normal, one.pneumonia, _percent(one.pneumonia, one.films)]
            for one in evidence.splits
        ]
        heads = ["split", "films", "patients", "normal", "pneumonia", "share"]
        parts.append(table("Films and patients of each split; no patient is in two", heads, rows))
    else:
        command = f"xray-opt tune --study {evidence.study.name}"
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
        ["splits whose share of pneumonia differs by more than 5 points", len(found.get("unbalanced") or ())],
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
        command = f"xray-opt tune --study {evidence.study.name}"
        return missing("The study's run holds no shortcut screen", command)
    rows = [[words, found.get(auc), found.get(f1)] for words, auc, f1 in SHORTCUTS]
    note = (
        "What the class is told by without looking at lungs, cross-validated by patient on train and val. Where these "
    )
    note += "are high, a high score of a network proves little by itself."
    return table("Models that look at no lungs", ["model", "AUC", "F1"], rows) + paragraph(note, kind="note")


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
        return missing("The chosen model has no run in MLflow", f"xray-opt tune --study {evidence.study.name}")
    parts = [
        table("Recorded with the chosen model", ["what", "value"], [[*one] for one in evidence.environment.items()])
    ]
    if evidence.hosts:
        rows = [[host, count] for host, count in evidence.hosts.items()]
        parts.append(table("Machines that did the study's runs", ["machine", "runs"], rows))
    return Markup("").join(parts)


def commands(evidence: Evidence) -> Markup:
    """The commands of this study, in their order."""
    return code(reproducing(evidence)) + paragraph(
        "The study's settings, its split and its seeds stand above and in the study's run. The same films give the "
        "same split, and on one kind of processor a training is equal bit for bit.",
        kind="note",
    )


def reproducing(evidence: Evidence) -> Iterator[str]:
    """Command lines that do the study again."""
    name = shlex.quote(evidence.study.name)
    if commit := evidence.environment.get("git commit"):
        yield f"git checkout {shlex.quote(commit)}"
    yield "xray-opt data prepare FOLDER"
    yield f"xray-opt tune --study {name} --trials {max(evidence.study.counted, 1)}"
    if verdict := evidence.confirmation:
        found = verdict["settings"]
        seeds, splits = (max(len(one[kind]) for one in found) for kind in ("seeds", "splits"))
        more = f" --splits {splits}" if splits else ""
        yield f"xray-opt confirm --study {name} --top {len(found)} --seeds {seeds}{more}"
    own = f" --model runs:/{shlex.quote(evidence.chosen.run)}" if evidence.chosen else ""
    if evidence.final and own:
        yield f"xray-opt finalize{own}"
    if ROBUST["val"] in evidence.files and own:
        yield f"xray-opt evaluate --robustness{own}"
    if SHEET in evidence.files and own:
        yield f"xray-opt explain --out sheet{own}"
    if "baseline_val" in evidence.study.notes:
        yield f"xray-opt baseline --study {name}"
    yield f"xray-opt report {name}"
