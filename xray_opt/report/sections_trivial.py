"""What the chosen model gains over models that look at no lungs: the headline, and all of them beside each other.

On test films where ``finalize`` recorded it, else on validation: as ``baseline`` found it, else as ``evaluate`` or the
report itself recorded it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from xray_opt.ledger import TRIVIAL_RECORD
from xray_opt.report.html import ends, gained, paragraph, rough, table
from xray_opt.report.records import Evidence
from xray_opt.report.sections_evidence import CONTENDERS, called

Record = Mapping[str, Any]
#: A model's name, its scores, and the gains over it; none for the model that is asked about.
Model = tuple[str, Record, Record | None]
HEADS = ("model", "AUC", "95 %", "F1", "95 %", "gain in AUC", "gain in F1")
OVER = "paired by patient"
CHOSEN_THERE = (
    "These films chose the settings and fixed the thresholds: what stands here is a little too high, more so for the "
    "model that was searched for than for those that look at no lungs."
)


@dataclass(frozen=True)
class Besides:
    """Models on the same films, the one that is asked about first.

    Attributes:
        over: name of the best trivial one, ``gain`` in AUC over it, and ``how`` that was found.
        validation: whether a choice was made by these films.
    """

    caption: str
    models: tuple[Model, ...]
    over: str
    gain: Record
    validation: bool
    how: str = OVER


def gain(evidence: Evidence) -> list[object]:
    """The headline: what the model is better by than the best one that looks at no lungs, and what that says."""
    found, final = besides(evidence), evidence.final
    if final is not None and found is not None:
        return [f"AUC {gained(found.gain)} over {found.over}, {found.how}, on the test films.", _says(found.gain)]
    opens: list[object] = [" On test films it is not known", *_finalize(evidence)]
    if found is None:
        return [*_unknown(evidence), *opens]
    words = f"On validation: AUC {gained(found.gain)} over {found.over}, {found.how}; "
    words += "the model was chosen on these very films."
    return [words, _says(found.gain, " On them the model"), *opens]


def _finalize(evidence: Evidence) -> list[object]:
    command = f"xray-opt finalize --model runs:/{evidence.chosen.run}" if evidence.chosen else "xray-opt finalize"
    return ["; this opens the test split once: ", _code(command)]


def _unknown(evidence: Evidence) -> list[object]:
    why = evidence.no_trivial or "no trivial model was scored on these films"
    if evidence.chosen is None:
        return ["not known: no model was chosen."]
    words = f"not known on validation: {why}"
    if not evidence.chosen.settings:  # its run is gone
        return [f"{words}."]
    command = f"xray-opt evaluate --data FOLDER --model runs:/{evidence.chosen.run}"
    return [f"{words}; with the films of train and val in FOLDER this tells it: ", _code(command), "."]


def _code(command: str) -> Markup:
    return Markup("<code>{}</code>").format(command)


def _says(head: Record, model: str = " The model") -> str:
    low, high = head.get("low"), head.get("high")
    if low is None or high is None:
        return ""
    if low > 0:
        return f"{model} is better than one that looks at no lungs."
    if high < 0:
        return f"{model} is worse than one that looks at no lungs."
    return f"{model} is not told apart from one that looks at no lungs."


def besides(evidence: Evidence) -> Besides | None:
    """The best record that there is; none where trivial models were nowhere scored beside the study's."""
    final = evidence.final
    if final is not None:
        return _of_record(final, str(final["headline"]["over"]), final["headline"], validation=False)
    if found := compared(evidence.study.notes.get("baseline_val")):
        return found
    record = trivial_record(evidence.files)
    if record is None:
        return None
    best = record["models"][0]
    return _of_record({**record, "baselines": record["models"]}, best["name"], best["gains"]["auc"], validation=True)


def _of_record(record: Record, over: str, head: Record, validation: bool) -> Besides:
    image = record["image"]
    films = f"{image['cases']} {'validation' if validation else 'test'} films of {image['patients']} patients"
    others = [(one["name"], one["image"]["scores"], one["gains"]) for one in record["baselines"]]
    own: Model = "the chosen model", image["scores"], None
    return Besides(f"The model beside those that look at no lungs, {films}", (own, *others), over, head, validation)


def compared(record: Record | None) -> Besides | None:
    """What ``baseline`` found on validation films, where trivial models are beside LoRA."""
    record = record or {}
    trivial = [row["key"] for row in record.get("rows", ()) if row["key"] not in CONTENDERS]  # the better one first
    over = next((key for key in trivial if key in record["gains"]), None)
    if over is None:
        return None
    models = [(called(row["key"]), row["scores"], record["gains"].get(row["key"])) for row in record["rows"]]
    films = f"{record['films']} validation films of {record['patients']} patients"
    caption = f"LoRA beside other trainings and models that look at no lungs, {films}, {record['seeds']} seeds"
    kept = tuple(one for one in models if one[1])
    how = f"{OVER} and seed, the mean of {record['seeds']} trainings with the settings of trial {record['trial']}"
    return Besides(caption, kept, over, record["gains"][over]["auc"], validation=True, how=how)


def trivial_record(files: Mapping[str, bytes]) -> Record | None:
    """The record of trivial models on validation among the chosen run's files; none where none can be read."""
    try:
        record = json.loads(files.get(TRIVIAL_RECORD, b"null"))
        levels = (record["image"], *(one["image"] for one in record["models"]))
        known = {"auc", "f1"}
        whole = all(known <= one["scores"].keys() and {"cases", "patients"} <= one.keys() for one in levels)
        paired = [known <= one["gains"].keys() and "name" in one for one in record["models"]]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    return record if whole and paired and all(paired) else None


def wanted(evidence: Evidence) -> bool:
    """Whether nothing tells yet what the chosen model gains over trivial ones."""
    return evidence.chosen is not None and besides(evidence) is None


def table_of_models(caption: str, models: Sequence[Model]) -> Markup:
    """Models on the same films: AUC and F1 with intervals, and the gain of the first one over each other."""
    shown = [one for _, scores, _ in models for one in (scores["auc"], scores["f1"])]
    note = rough(shown)
    made = table(caption, HEADS, map(_row, models))
    return made + paragraph(note, kind="note") if note else made


def _row(model: Model) -> list[object]:
    name, scores, gains = model
    two = [cell for score in ("auc", "f1") for cell in (scores[score]["value"], ends(scores[score]))]
    return [name, *two, *(gained(gains[score]) if gains else None for score in ("auc", "f1"))]


def beside_trivial(models: Sequence[Record]) -> Markup:
    """The gain of a model over trivial ones on the same films, from their records."""
    rows = [(one["name"], one["image"]["scores"], one["gains"]) for one in models]
    return table_of_models("The model's gain over models that look at no lungs, paired by patient", rows)


def section(evidence: Evidence) -> Markup:
    """The headline, and the models that it compares."""
    found = besides(evidence)
    said = paragraph(Markup("<b>Gain over the best trivial model.</b> "), *gain(evidence))
    if found is None:
        return said
    note = paragraph(CHOSEN_THERE, kind="note") if found.validation else Markup("")
    return said + table_of_models(found.caption, found.models) + note
