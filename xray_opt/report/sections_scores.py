"""Sections of the chosen model's scores: in short, on validation films, on test films as ``finalize`` recorded them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from xray_opt.intervals import Interval, Patients, json_ready, scored
from xray_opt.leaderboard import looks_told
from xray_opt.metrics import Cases
from xray_opt.report import curves, sections_trivial
from xray_opt.report import figures_scores as drawings
from xray_opt.report.html import ends, figure, figures, heading, missing, paragraph, rough, table
from xray_opt.report.records import Evidence, Predictions, command_of
from xray_opt.report.sections_evidence import at_threshold, suite, worst_case, worst_on
from xray_opt.report.sections_parts import parts_of_test

NOT_CLINICAL = "Not for clinical use."
#: Scores of the headline.
FIRST = ("f1", "auc", "sensitivity", "specificity", "precision", "accuracy")
NAMES = {"f1": "F1", "auc": "AUC", "auprc": "AUPRC", "brier": "Brier score", "ece": "ECE"}


def named(score: str) -> str:
    """A score as a reader calls it."""
    return NAMES.get(score, score.replace("sensitivity.", "sensitivity, "))


def validation_scores(evidence: Evidence) -> dict[str, Interval]:
    """All scores of the chosen model on the validation films, at its threshold; empty where nothing was recorded."""
    own = evidence.validation
    if own is None or not len(own.labels):
        return {}
    return scored(Cases(own.labels, own.probabilities), Patients(own.groups), _threshold(evidence))


def headline(evidence: Evidence) -> Markup:
    """The chosen model, its scores, its gain over the best trivial model, the openings of the test split."""
    return Markup("").join(
        (
            paragraph(*_chosen(evidence)),
            _first_scores(evidence),
            sections_trivial.section(evidence),
            paragraph(Markup("<b>Worst case.</b> "), worst_case(evidence) or "not known: no changed films were tried."),
            paragraph(Markup("<b>Test split.</b> "), opened(evidence)),
        )
    )


def _chosen(evidence: Evidence) -> list[object]:
    one = evidence.chosen
    if one is None:
        return ["No model was chosen: no trial is complete."]
    trial = f"trial {one.trial}" if one.trial is not None else "a model without a trial"
    versions = f" Registered as {', '.join(one.versions)}." if one.versions else " It is not registered."
    return [Markup("<b>Chosen model:</b> "), f"{trial}, {one.why}.", versions]


def _first_scores(evidence: Evidence) -> Markup:
    found = validation_scores(evidence)
    final = evidence.final
    image, patient = (final[level]["scores"] if final else {} for level in ("image", "patient"))
    if not found and not final:
        return paragraph("No scores were recorded.", kind="missing")
    rows = []
    for name in FIRST:
        columns = (_record(found.get(name)), image.get(name), patient.get(name))
        rows.append([named(name), *(cell for one in columns for cell in (one and one["value"], ends(one)))])
    rows += _worst_rows(evidence)
    sizes = len(evidence.validation.labels) if evidence.validation else 0
    heads = ["score", f"{sizes} validation films", "95 %"]
    heads += [f"{final[level]['cases']} test {what}" for level, what in LEVELS] if final else ["test films", "patients"]
    heads = [*heads[:4], "95 %", heads[4], "95 %"]
    note = "The threshold was fitted to the validation films, so scores at it are a little too high there."
    return table("Scores at the threshold fixed on validation", heads, rows) + paragraph(note, kind="note")


def _worst_rows(evidence: Evidence) -> list[list[object]]:
    """What the worst change of the films costs, in the columns of films; patients are not asked about it.

    Not at another threshold than that of the table.
    """
    own = "", at_threshold({"threshold": _threshold(evidence)})
    found = [
        worst_on(evidence, split) if at_threshold(suite(evidence, split) or {}) in own else None
        for split in ("val", "test")
    ]
    if not any(found):
        return []
    return [
        [words, *(cell for one in (*(each and each[key] for each in found), None) for cell in _two(one))]
        for words, key in (("share flipped, worst case", "flipped"), ("AUC, worst case", "auc"))
    ]


LEVELS = (("image", "films"), ("patient", "patients"))


def _record(one: Interval | None) -> dict[str, Any] | None:
    return None if one is None else json_ready(asdict(one))


def opened(evidence: Evidence) -> str:
    """How often the test films were opened, for this study's models and for others, and what that means."""
    return looks_told(evidence.all_looks, evidence.openings, evidence.study.name)


def _threshold(evidence: Evidence) -> float:
    known = evidence.chosen.threshold if evidence.chosen else None
    return 0.5 if known is None else known


def validation(evidence: Evidence) -> Markup:
    """Curves, confusion matrix and all scores on the validation films."""
    own = evidence.validation
    if own is None or not len(own.labels):
        what = "The chosen model's validation predictions were not found"
        return missing(what, command_of(evidence, "tune"))
    found = {name: _record(one) or {} for name, one in validation_scores(evidence).items()}
    threshold = _threshold(evidence)
    truth, called = own.labels == 1, own.probabilities >= threshold
    counts = {
        "true_positive": int((truth & called).sum()),
        "false_positive": int((~truth & called).sum()),
        "true_negative": int((~truth & ~called).sum()),
        "false_negative": int((truth & ~called).sum()),
    }
    return (
        _curves("validation", "validation films", own, found, threshold, evidence.classes)
        + drawings.confusion(f"Validation films at threshold {threshold:.4f}", counts, evidence.classes)
        + heading("All scores")
        + _all_scores("Validation films", (("films", found),))
    )


def _curves(
    name: str,
    what: str,
    own: Predictions,
    scores: Mapping[str, Mapping[str, Any]],
    threshold: float,
    classes: tuple[str, str],
) -> Markup:
    if not curves.both_classes(own):
        return paragraph(f"A class is missing among the {what}: there are no curves.", kind="missing")
    words = {score: _words(scores.get(score)) for score in ("auc", "auprc", "ece")}
    truth, called = own.labels == 1, own.probabilities >= threshold
    sensitivity, alarms = float(called[truth].mean()), float(called[~truth].mean())
    precision = (alarms, sensitivity) if not called.any() else (sensitivity, float(truth[called].mean()))
    roc, pr = curves.roc(own), curves.precision_recall(own)
    mark = precision if called.any() else None
    band = roc.why or "Band: the middle 95 % of resamples of patients."
    return figures(
        figure(
            drawings.roc(name, what, roc, (alarms, sensitivity), words["auc"], classes),
            f"ROC, {what}. AUC {words['auc']}. {band} Ring: the threshold.",
        ),
        figure(
            drawings.precision_recall(name, what, pr, mark, words["auprc"], float(truth.mean())),
            f"Precision–recall, {what}. Average precision {words['auprc']}. Dotted: the share of {classes[1]}.",
        ),
        figure(
            drawings.reliability(name, what, curves.reliability(own), words["ece"], classes[1]),
            f"Reliability, {what}. ECE {words['ece']}. Larger points hold more films; bars only from ten patients on.",
        ),
    )


def _words(one: Mapping[str, Any] | None) -> str:
    if not one or one.get("value") is None:
        return "not known"
    return f"{one['value']:.3f}" + (f" ({ends(one)})" if one.get("low") is not None else "")


def _all_scores(caption: str, levels: tuple[tuple[str, Mapping[str, Mapping[str, Any]]], ...]) -> Markup:
    names = list(dict.fromkeys(name for _, scores in levels for name in scores))
    heads = ["score", *(head for what, _ in levels for head in (what, "95 %"))]
    rows = [[named(name), *(cell for _, scores in levels for cell in _two(scores.get(name)))] for name in names]
    every = [one for _, scores in levels for one in scores.values()]
    words = [f"No interval: {why}" for why in sorted({one["why"] for one in every if one.get("why")})]
    notes = (paragraph(one, kind="note") for one in (*filter(None, [rough(every)]), *words))
    return table(caption, heads, rows) + Markup("").join(notes)


def _two(one: Mapping[str, Any] | None) -> tuple[object, str]:
    return (one and one["value"], ends(one))


def sealed_test(evidence: Evidence) -> Markup:
    """What ``finalize`` recorded, and every opening of the test split."""
    parts = [paragraph(opened(evidence)), _openings(evidence)]
    final = evidence.final
    if final is None:
        command = f"xray-opt finalize --model runs:/{evidence.chosen.run}" if evidence.chosen else "xray-opt finalize"
        return Markup("").join((*parts, missing("The chosen model was not finalized", command)))
    image, patient = final["image"], final["patient"]
    threshold = f"threshold {final['threshold']:.4f} ({final['rule']}), temperature {final['temperature']:.3f}"
    parts.append(paragraph(f"{image['cases']} films of {image['patients']} patients, {threshold}."))
    if evidence.test is not None:
        parts.append(
            _curves("test", "test films", evidence.test, image["scores"], final["threshold"], evidence.classes)
        )
    else:
        parts.append(missing("The films' probabilities were not recorded", "xray-opt finalize --again"))
    parts += [
        drawings.confusion("Test films", image["confusion"], evidence.classes),
        drawings.confusion("Test patients", patient["confusion"], evidence.classes),
        heading("All scores"),
        _all_scores("Test split", (("films", image["scores"]), ("patients", patient["scores"]))),
        heading("Parts of the films"),
        parts_of_test(evidence),
        heading("Beside trivial models, on the same films"),
        sections_trivial.beside_trivial(final["baselines"]),
    ]
    return Markup("").join(parts)


def _openings(evidence: Evidence) -> Markup:
    if not evidence.all_looks:
        return Markup("")
    rows = [
        [
            one.when[:19].replace("T", " "),
            one.who,
            one.by,
            one.study or "–",
            "–" if one.trial is None else f"trial {one.trial}",
            one.why,
        ]
        for one in evidence.all_looks
    ]
    return table("Openings of the test films", ["when", "who", "by", "study", "for", "why"], rows)
