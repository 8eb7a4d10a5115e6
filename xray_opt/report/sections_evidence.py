"""Sections of what was asked of the chosen model beyond scores: changed films, heat maps, rivals on the same split."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from xray_opt.report import figures_evidence as drawings
from xray_opt.report.forest import Line
from xray_opt.report.html import ends, figure, figures, gained, heading, missing, paragraph, picture, table
from xray_opt.report.records import EXPLAINED, ROBUST, SHEET, Evidence, command_of

#: How contenders of ``baseline`` are called where people read; trivial models have names already.
CONTENDERS = {"lora": "LoRA", "linear": "linear probe", "full": "full fine-tune"}
SPLITS = {"val": "validation", "test": "test"}
PNG = b"\x89PNG\r\n\x1a\n"
Record = Mapping[str, Any]


def robustness(evidence: Evidence) -> Markup:
    """What changed films cost the model, on each split where that was asked."""
    found = [(split, record) for split in SPLITS if (record := suite(evidence, split))]
    if not found:
        command = f"xray-opt evaluate --robustness{_model(evidence)}"
        return missing("The chosen model was not asked about changed films", command)
    return Markup("").join(_suite(split, record) for split, record in found)


def suite(evidence: Evidence, split: str = "val") -> Record | None:
    """The record of ``evaluate --robustness`` on a split; none where there is none that can be read."""
    try:
        record = json.loads(evidence.files.get(ROBUST[split], b"null"))
    except (ValueError, RecursionError):
        return None
    wanted = {"plain", "conditions", "masks", "worst", "goals", "shortcuts", "films", "patients"}
    return record if isinstance(record, dict) and wanted <= record.keys() and record["conditions"] else None


def worst_on(evidence: Evidence, split: str) -> Record | None:
    """The change of a split's films that flips most decisions; none where that was not asked."""
    record = suite(evidence, split)
    return record and next(one for one in record["conditions"] if one["name"] == record["worst"])


def worst_case(evidence: Evidence) -> str | None:
    """The change that flips most decisions, of the test films where that is known, and the goals; in words."""
    split = next((one for one in ("test", "val") if suite(evidence, one)), None)
    if split is None:
        return None
    record, worst = suite(evidence, split) or {}, worst_on(evidence, split) or {}
    auc = "not known" if worst["auc"]["value"] is None else f"{worst['auc']['value']:.3f}"
    words = f"{worst['name']} ({SPLITS[split]} films): AUC {auc}, {share(worst['flipped'])} of the decisions flipped"
    return f"{words}{at_threshold(record)}. Goals: {'; '.join(map(_goal, record['goals']))}."


def at_threshold(record: Record) -> str:
    """At which threshold decisions were made, where a record tells: it need not be that of best F1."""
    threshold = record.get("threshold")
    return f" at threshold {threshold:.4f}" if isinstance(threshold, float) else ""


def _goal(goal: Record) -> str:
    return f"under {100 * goal['limit']:.0f} % flipped by {goal['what']}: {goal['verdict']} ({share(goal['flipped'])})"


def share(one: Record) -> str:
    """A share in per cent with its interval."""
    if one["value"] is None:
        return "–"
    low, high = one.get("low"), one.get("high")
    between = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * one['value']:.1f} %{between}"


def _suite(split: str, record: Record) -> Markup:
    name, films = f"robust-{split}", f"{record['films']} {SPLITS[split]} films of {record['patients']} patients"
    goals = [f"{words[0].upper()}{words[1:]}. " for words in map(_goal, record["goals"])]
    changed, hidden = record["conditions"], record["masks"]
    flipped = [_line(one["name"], one["flipped"], 100) for one in changed]
    scored = [_line(one["name"], one["auc"]) for one in (record["plain"], *changed)]
    unread = len(record.get("unread") or ())
    parts = [
        heading(f"{films[0].upper()}{films[1:]}{at_threshold(record)}"),
        paragraph(Markup("<b>Goals.</b> "), *goals),
        figures(
            figure(
                drawings.intervals(
                    f"{name}-flipped", f"Decisions flipped, {films}", flipped, "% of decisions flipped", 2
                ),
                "Decisions that change with the films; bars: 95 % over patients. Dotted: the goal.",
            ),
            figure(
                drawings.intervals(f"{name}-auc", f"AUC on changed films, {films}", scored, "AUC"),
                "AUC on changed films, the films as they are on top.",
            ),
        ),
        _costs("Changed films", (record["plain"], *changed)),
        heading("The shortcut test: a part of every film painted out"),
        _costs("Painted films", hidden),
        _shortcuts(record["shortcuts"]),
    ]
    if unread:
        parts.append(paragraph(f"{unread} films could not be read and are left out.", kind="note"))
    return Markup("").join(parts)


def _line(label: str, one: Record, factor: float = 1, kind: int = 0) -> Line:
    value, low, high = (None if one.get(name) is None else factor * one[name] for name in ("value", "low", "high"))
    return Line(label, float("nan") if value is None else value, low, high, kind)


def _costs(caption: str, conditions: Sequence[Record]) -> Markup:
    rows = [
        [one["name"], one["auc"]["value"], ends(one["auc"]), _change(one["auc_change"]), share(one["flipped"])]
        for one in conditions
    ]
    return table(caption, ["films", "AUC", "95 %", "AUC against as they are", "decisions flipped"], rows)


def _change(one: Record) -> str:
    if one["value"] is None:
        return "–"
    return f"{one['value']:+.3f}" + (f" ({ends(one)})" if one.get("low") is not None else "")


def _shortcuts(lines: Sequence[object]) -> Markup:
    if not lines:
        return paragraph("No shortcut found.")
    return Markup("").join(paragraph(Markup("<b>Shortcut:</b> "), line, ".") for line in lines)


def explained(evidence: Evidence) -> Markup:
    """The sheet of heat maps of the validation films that the model is most wrong about."""
    sheet, rows = evidence.files.get(SHEET, b""), _explained_films(evidence.files.get(EXPLAINED, b""))
    if not sheet.startswith(PNG):
        command = f"xray-opt explain --out sheet{_model(evidence)}"
        return missing("No sheet of heat maps is recorded, or films are to be left out", command)
    image = picture(base64.b64encode(sheet).decode("ascii"), "Films, each beside itself with its heat map")
    caption = (
        "Validation films that the model is most wrong about. Bright: what speaks for the answer that was given "
        "(Grad-CAM of the last convolution). A heat map does not say why."
    )
    heads = ["film", "answer", "probability", "label"]
    parts = figure(image, caption, wide=True)
    return parts + table("The films of the sheet, in its order", heads, rows) if rows else parts


def _explained_films(content: bytes) -> list[list[object]]:
    """Number, answer, probability and label of each film: names of films stay out of the page."""
    lines: Iterable[Mapping[str, str]] = csv.DictReader(io.StringIO(content.decode("utf-8", "replace"), newline=""))
    try:
        return [
            [f"film {number}", row["answer"], float(row["probability"]), row["label"] or None]
            for number, row in enumerate(lines, start=1)
        ]
    except (KeyError, TypeError, ValueError, csv.Error):
        return []


def rivals(evidence: Evidence) -> Markup:
    """LoRA beside a linear probe, a full fine-tune and trivial models, on each split where they were compared."""
    notes = evidence.study.notes
    found = [(split, record) for split in SPLITS if (record := notes.get(f"baseline_{split}"))]
    if not found:
        return missing("LoRA was not compared with other trainings", command_of(evidence, "baseline"))
    return Markup("").join(_rivals(split, record) for split, record in found)


def _rivals(split: str, record: Record) -> Markup:
    films = f"{record['films']} {SPLITS[split]} films of {record['patients']} patients"
    scored = [row for row in record["rows"] if row["scores"]]
    scores = [_line(called(row["key"]), row["scores"]["auc"], kind=kind_of(row["key"])) for row in scored]
    leads = [_line(f"over {called(key)}", one["auc"], kind=kind_of(key)) for key, one in record["gains"].items()]
    words = "95 % intervals over patients and seeds."
    return Markup("").join(
        (
            heading(f"{films[0].upper()}{films[1:]}, {record['seeds']} seeds"),
            figures(
                figure(drawings.intervals(f"rivals-{split}-auc", f"AUC, {films}", scores, "AUC"), f"AUC. {words}"),
                figure(
                    drawings.intervals(f"rivals-{split}-gain", f"LoRA's gain in AUC, {films}", leads, "gain in AUC", 0),
                    f"LoRA's gain in AUC, paired by patient and seed. {words}",
                ),
            ),
            table("Trained alike but for the strategy and its learning rate", _HEADS, map(_row, record["rows"])),
            table(
                "LoRA's gain over each, paired by patient and seed",
                ["over", "AUC", "F1"],
                [[called(key), gained(one["auc"]), gained(one["f1"])] for key, one in record["gains"].items()],
            ),
        )
    )


_HEADS = ["trained", "F1", "95 %", "AUC", "95 %", "learning rate", "trained weights", "seconds"]


def _row(row: Record) -> list[object]:
    if row.get("failed"):
        return [called(row["key"]), "no result", *[None] * 6]
    two = [cell for name in ("f1", "auc") for cell in (row["scores"][name]["value"], ends(row["scores"][name]))]
    return [called(row["key"]), *two, row["learning_rate"], row["trainable"], row["seconds"]]


def called(key: str) -> str:
    """A contender's name for people."""
    return CONTENDERS.get(key, key)


def kind_of(key: str) -> int:
    """Ours, a rival, or a trivial model."""
    return 0 if key == "lora" else 1 if key in CONTENDERS else 2


def _model(evidence: Evidence) -> str:
    return f" --model runs:/{evidence.chosen.run}" if evidence.chosen else ""
