"""Scores apart: of parts of the test films, and of other people's films. Disaggregated, as Mitchell et al. ask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from xray_opt.report.html import ends, heading, missing, paragraph, rough, table
from xray_opt.report.records import OUTSIDE, Evidence
from xray_opt.report.sections_evidence import at_threshold, share
from xray_opt.report.sections_trivial import beside_trivial

Record = Mapping[str, Any]
#: What films are parted by → what it is called.
PARTED = {"subtype": "kind", "size": "size", "folder": "folder of the source", "mode": "mode of the file"}
SCORES = ("auc", "sensitivity", "specificity")
HEADS = ("part", "films", "patients", "AUC", "95 %", "sensitivity", "95 %", "specificity", "95 %")


def part_rows(parts: Sequence[Record]) -> list[list[object]]:
    """A row of ``HEADS`` for each part."""
    return [
        [
            f"{PARTED.get(one['by'], one['by'])}: {one['name']}",
            one["films"],
            one["patients"],
            *(cell for score in SCORES for cell in (one[score]["value"], ends(one[score]))),
        ]
        for one in parts
    ]


def parts_of_test(evidence: Evidence) -> Markup:
    """Scores of parts of the test films, from the opening of ``finalize``."""
    found = (evidence.final or {}).get("subgroups")
    if found is None:
        return missing("Parts of the test films were not scored", "xray-opt finalize --again")
    if not found:
        return paragraph("The test films do not differ in kind, size, folder or mode.")
    return _parts("Parts of the test films, at the same threshold", found)


def kinds_among(found: Sequence[Record]) -> bool:
    """Whether films were parted by kind of pneumonia: with other classes they may not be."""
    return any(one["by"] == "subtype" for one in found)


def _parts(caption: str, found: Sequence[Record]) -> Markup:
    note = "A part with fewer than ten patients of a class that a score needs has no interval; of many parts some lie "
    note += "apart by chance."
    if kinds_among(found):
        note = f"A kind of pneumonia is set against all normal films. {note}"
    return table(caption, HEADS, part_rows(found)) + paragraph(note, kind="note")


def outside_records(evidence: Evidence) -> list[Record]:
    """The records of other people's films that can be read, oldest first."""
    found = []
    wanted = {"made", "films", "patients", "image", "patient", "left_out", "own_known", "subgroups"}
    for name, content in evidence.files.items():
        try:
            record = json.loads(content) if name.startswith(OUTSIDE) else None
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and wanted <= record.keys():
            found.append(record)
    return sorted(found, key=lambda one: str(one["made"]))


def outside(evidence: Evidence) -> Markup:
    """How the chosen model does on other people's films: what is other there, and its scores."""
    found = outside_records(evidence)
    if not found:
        model = f" --model runs:/{evidence.chosen.run}" if evidence.chosen else ""
        return missing("No other people's films were scored", f"xray-opt evaluate --split all --data FOLDER{model}")
    return Markup("").join(_set(record) for record in found)


def _set(record: Record) -> Markup:
    films = f"{record['films']} films of {record['patients']} patients"
    parts = [
        heading(f"Set {record.get('set', '')}: {films}"),
        paragraph(f"Scored {str(record['made'])[:10]}. ", *(f"{line} " for line in shifts(record))),
        _scores(record),
    ]
    if record.get("baselines"):  # older records have none
        parts.append(beside_trivial(record["baselines"]))
    if record["subgroups"]:
        parts.append(_parts("Parts of these films", record["subgroups"]))
    return Markup("").join(parts)


def shifts(record: Record) -> list[str]:
    """What is other in a set than in training, and which films were left out, a sentence each."""
    said = []
    if not record["own_known"]:
        said.append("The model's own films were not known there: some may be among these.")
    if record["left_out"]:
        out = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in record["left_out"].items())
        said.append(f"Left out: {out}.")
    moved = record.get("shift")
    if not moved:
        return said
    trained = moved.get("trained")
    there = "" if trained is None else f", {100 * trained:.1f} % in training"
    said.append(f"Positive: {share(moved['prevalence'])} of the films{there}.")
    low, high = moved["prevalence"].get("low"), moved["prevalence"].get("high")
    if None not in (trained, low, high) and not low <= trained <= high:
        said.append("Prevalence shift: F1, precision and calibration do not compare; AUC does.")
    drift = moved.get("drift")
    if drift is None:
        why = str(moved.get("why") or "not known").partition(":")[0]  # behind that films and folders may be named
        said.append(f"No drift score: {why}.")
        return said
    between = f" ({ends(drift['score'])})" if drift["score"].get("low") is not None else ""
    said.append(f"Drift {drift['score']['value']:.3f}{between}, where 0.5 is like validation films.")
    if drift.get("unlike"):
        said.append("These films look unlike those of training.")
    return said


def _scores(record: Record) -> Markup:
    image, patient = record["image"]["scores"], record["patient"]["scores"]
    names = {"f1": "F1", "auc": "AUC", "auprc": "AUPRC", "brier": "Brier score", "ece": "ECE"}
    rows = [
        [names.get(name, name), one["value"], ends(one), *_two(patient.get(name))]
        for name, one in image.items()
        if name != "loss"
    ]
    note = rough((*image.values(), *patient.values()))
    shown = table(
        f"Scores{at_threshold(record)}, fixed on validation", ["score", "films", "95 %", "patients", "95 %"], rows
    )
    return shown + paragraph(note, kind="note") if note else shown


def _two(one: Record | None) -> list[object]:
    return [one["value"], ends(one)] if one else [None, None]
