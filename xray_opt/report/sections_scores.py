"""Sections of the chosen model's scores: in short, on validation films, on test films as ``finalize`` recorded them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from xray_opt.intervals import Interval, Patients, json_ready, scored
from xray_opt.metrics import Cases
from xray_opt.report import curves
from xray_opt.report import figures_scores as drawings
from xray_opt.report.html import ends, figure, figures, gained, heading, missing, paragraph, table
from xray_opt.report.records import Evidence, Predictions
from xray_opt.report.sections_evidence import worst_case

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
            paragraph(Markup("<b>Gain over the best trivial model.</b> "), *gain(evidence)),
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
    sizes = len(evidence.validation.labels) if evidence.validation else 0
    heads = ["score", f"{sizes} validation films", "95 %"]
    heads += [f"{final[level]['cases']} test {what}" for level, what in LEVELS] if final else ["test films", "patients"]
    heads = [*heads[:4], "95 %", heads[4], "95 %"]
    note = "The threshold was fitted to the validation films, so scores at it are a little too high there."
    return table("Scores at the threshold fixed on validation", heads, rows) + paragraph(note, kind="note")


LEVELS = (("image", "films"), ("patient", "patients"))


def _record(one: Interval | None) -> dict[str, Any] | None:
    return None if one is None else json_ready(asdict(one))


def gain(evidence: Evidence) -> list[object]:
    """What the model is better by than a model that looks at no lungs, and what that says."""
    final = evidence.final
    if final is None:
        command = f"xray-opt finalize --model runs:/{evidence.chosen.run}" if evidence.chosen else "xray-opt finalize"
        return ["not known; this opens the test split once: ", Markup("<code>{}</code>").format(command)]
    head = final["headline"]
    low, high = head.get("low"), head.get("high")
    if low is None or high is None:
        says = ""
    elif low > 0:
        says = " The model is better than one that looks at no lungs."
    elif high < 0:
        says = " The model is worse than one that looks at no lungs."
    else:
        says = " The model is not told apart from one that looks at no lungs."
    return [f"AUC {gained(head)} over {head['over']}, paired by patient, on the test films.", says]


def opened(evidence: Evidence) -> str:
    """How often the test split was opened."""
    count = len(evidence.openings)
    if not count:
        return "Sealed, never opened."
    return "Opened once." if count == 1 else f"Opened {count} times: only the first look was free of any choice."


def _threshold(evidence: Evidence) -> float:
    known = evidence.chosen.threshold if evidence.chosen else None
    return 0.5 if known is None else known


def validation(evidence: Evidence) -> Markup:
    """Curves, confusion matrix and all scores on the validation films."""
    own = evidence.validation
    if own is None or not len(own.labels):
        what = "The chosen model's validation predictions were not found"
        return missing(what, f"xray-opt tune --study {evidence.study.name}")
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
        _curves("validation", "validation films", own, found, threshold)
        + drawings.confusion(f"Validation films at threshold {threshold:.4f}", counts)
        + heading("All scores")
        + _all_scores("Validation films", (("films", found),))
    )


def _curves(
    name: str, what: str, own: Predictions, scores: Mapping[str, Mapping[str, Any]], threshold: float
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
            drawings.roc(name, what, roc, (alarms, sensitivity), words["auc"]),
            f"ROC, {what}. AUC {words['auc']}. {band} Ring: the threshold.",
        ),
        figure(
            drawings.precision_recall(name, what, pr, mark, words["auprc"], float(truth.mean())),
            f"Precision–recall, {what}. Average precision {words['auprc']}. Dotted: the share of pneumonia.",
        ),
        figure(
            drawings.reliability(name, what, curves.reliability(own), words["ece"]),
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
    reasons = {one["why"] for _, scores in levels for one in scores.values() if one.get("why")}
    notes = Markup("").join(paragraph(f"No interval: {why}", kind="note") for why in sorted(reasons))
    return table(caption, heads, rows) + notes


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
        parts.append(_curves("test", "test films", evidence.test, image["scores"], final["threshold"]))
    else:
        parts.append(missing("The films' probabilities were not recorded", "xray-opt finalize --again"))
    parts += [
        drawings.confusion("Test films", image["confusion"]),
        drawings.confusion("Test patients", patient["confusion"]),
        heading("All scores"),
        _all_scores("Test split", (("films", image["scores"]), ("patients", patient["scores"]))),
        heading("Beside trivial models, on the same films"),
        _baselines(final),
    ]
    return Markup("").join(parts)


def _openings(evidence: Evidence) -> Markup:
    if not evidence.openings:
        return Markup("")
    rows = [
        [one.when[:19].replace("T", " "), one.who, one.by, "–" if one.trial is None else f"trial {one.trial}", one.why]
        for one in evidence.openings
    ]
    return table("Openings of the test split", ["when", "who", "by", "for", "why"], rows)


def _baselines(final: Mapping[str, Any]) -> Markup:
    rows = [
        [
            one["name"],
            one["image"]["scores"]["auc"]["value"],
            ends(one["image"]["scores"]["auc"]),
            one["image"]["scores"]["f1"]["value"],
            gained(one["gains"]["auc"]),
            gained(one["gains"]["f1"]),
        ]
        for one in final["baselines"]
    ]
    heads = ["trivial model", "AUC", "95 %", "F1", "gain in AUC", "gain in F1"]
    return table("The model's gain over models that look at no lungs, paired by patient", heads, rows)
