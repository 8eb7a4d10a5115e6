"""The model card of the chosen model in Markdown, under the headings of Mitchell et al. 2019.

*Model cards for model reporting*, https://arxiv.org/abs/1810.03993. What comes from outside is escaped by :func:`safe`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from xray_opt.errors import printable
from xray_opt.report.html import ends, plain, rough
from xray_opt.report.records import Evidence
from xray_opt.report.sections_evidence import worst_case
from xray_opt.report.sections_facts import again, reproducing, shortcut_rows, study_file, study_text_of
from xray_opt.report.sections_parts import HEADS, kinds_among, outside_records, part_rows, shifts
from xray_opt.report.sections_scores import FIRST, named, opened, validation_scores
from xray_opt.report.sections_trivial import besides, gain

Lines = Iterator[str]


def safe(value: object) -> str:
    """A value as text that no Markdown and no HTML is made of."""
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", plain(value)).replace("&", "&amp;").replace("<", "&lt;")


def model_card(evidence: Evidence) -> str:
    """The card of the study's chosen model."""
    parts: list[tuple[str, Callable[[Evidence], Lines]]] = [
        ("Model details", _details),
        ("Intended use", _use),
        ("Factors", _factors),
        ("Metrics", _metrics),
        ("Evaluation data", _evaluation),
        ("Training data", _training),
        ("Quantitative analyses", _analyses),
        ("Ethical considerations", _ethics),
        ("Caveats and recommendations", _caveats),
    ]
    lines = [f"# Model card: study {safe(evidence.study.name)}", "", "**Not for clinical use.**", ""]
    for title, body in parts:
        lines += [f"## {title}", "", *body(evidence), ""]
    return "\n".join(lines)


def _details(evidence: Evidence) -> Lines:
    one = evidence.chosen
    if one is None:
        yield "No model was chosen: no trial of the study is complete."
        return
    yield f"- EfficientNetV2-S with one logit; trained: {safe(one.settings.get('model.strategy', 'lora'))}"
    yield f"- trial {safe(one.trial)}, {safe(one.why)}; MLflow run `{safe(one.run)}`"
    yield f"- registered: {safe(', '.join(one.versions) or 'no')}"
    yield f"- base weights: {safe(one.settings.get('model.base', 'not recorded').rpartition('/')[2])}"
    yield f"- made {safe(evidence.made)} by xray-opt {safe(evidence.version)}"
    searched = {name: one.settings[name] for name in evidence.chosen_params if name in one.settings}
    if searched:
        yield ""
        yield from _table(["searched setting", "value"], searched.items())


def _use(evidence: Evidence) -> Lines:
    yield "- for: research on how settings of adapters are found, compared and proved on chest films"
    yield "- by: people who can judge the evidence in the report that stands beside this card"
    yield "- not for: diagnosis, triage, or any decision on a patient; films of other kinds, other ages, other devices"


def _factors(evidence: Evidence) -> Lines:
    yield "Sensitivities to bacterial and to viral pneumonia are scored apart where films tell. Age, sex and device"
    yield "are not known to the model or to this card. What the files alone tell of the class (below) is a factor too:"
    yield "encoding, size and borders of a film differ between the classes of the public set."


def _metrics(evidence: Evidence) -> Lines:
    one = evidence.chosen
    yield "Scores follow scikit-learn's definitions; intervals are 95 %, by patient: exact ones of shares and F1, those"
    yield "of other scores from a bootstrap of patients. Threshold and temperature are fitted on validation films and"
    yield "fixed before the test split is opened."
    if one is not None and one.threshold is not None:
        yield ""
        yield f"Threshold {plain(one.threshold)} of the calibrated probability, temperature {plain(one.temperature)}."


def _evaluation(evidence: Evidence) -> Lines:
    yield from _splits(evidence, ("val", "test"))
    yield ""
    yield f"Test split: {opened(evidence)}"


def _training(evidence: Evidence) -> Lines:
    yield from _splits(evidence, ("train",))
    if evidence.shortcut:
        yield ""
        yield "What the class is told by without looking at lungs (train and val, cross-validated by patient):"
        yield ""
        yield from _table(["model", "AUC", "F1"], shortcut_rows(evidence))


def _splits(evidence: Evidence, wanted: Sequence[str]) -> Lines:
    rows = [
        (one.name, one.films, one.patients, one.negative, one.positive) for one in evidence.splits if one.name in wanted
    ]
    if not rows:
        yield "Not recorded in the study's run."
        return
    yield from _table(["split", "films", "patients", *map(safe, evidence.classes)], rows)


def _analyses(evidence: Evidence) -> Lines:
    found = {name: asdict(one) for name, one in validation_scores(evidence).items()}
    final = evidence.final
    image, patient = (final[level]["scores"] if final else {} for level in ("image", "patient"))
    names = list(dict.fromkeys((*image, *found)))
    if not names:
        yield "No scores were recorded."
    else:
        columns: tuple[Mapping[str, Mapping[str, Any]], ...] = (found, image, patient)
        rows = [(named(name), *(_cell(column.get(name)) for column in columns)) for name in names]
        yield from _table(["score", "validation films", "test films", "test patients"], rows)
        if note := rough(one for column in columns for one in column.values()):
            yield ""
            yield note
    yield from _apart(evidence)
    yield ""
    yield "Gain over the best trivial model: " + "".join(_words(part) for part in gain(evidence))
    if beside := besides(evidence):
        yield ""
        yield f"{safe(beside.caption)}:"
        yield ""
        rows = [(name, _cell(scores["auc"]), _cell(scores["f1"])) for name, scores, _ in beside.models]
        yield from _table(["model", "AUC", "F1"], rows)
    if worst := worst_case(evidence):
        yield ""
        yield f"Worst case among changed films: {safe(worst)}"


def _apart(evidence: Evidence) -> Lines:
    """Parts of the test films, and other people's films."""
    if parts := (evidence.final or {}).get("subgroups"):
        yield ""
        kinds = " (a kind of pneumonia is set against all normal films)" if kinds_among(parts) else ""
        yield f"Parts of the test films, from the same opening{kinds}:"
        yield ""
        rows = [(*row[:3], *map(_beside, row[3::2], row[4::2])) for row in part_rows(parts)]
        yield from _table([*HEADS[:3], *HEADS[3::2]], rows)
    for record in outside_records(evidence):
        scores = record["image"]["scores"]
        yield ""
        yield f"Other people's films, set {safe(record.get('set', ''))}, {safe(record['films'])} films of "
        yield f"{safe(record['patients'])} patients: {safe(' '.join(shifts(record)))}"
        yield ""
        named_scores = [(named(name), _cell(scores.get(name))) for name in FIRST]
        yield from _table(["score", "films"], named_scores)


def _beside(value: object, between: object) -> str:
    return f"{plain(value)} ({between})" if between else plain(value)


def _words(part: object) -> str:
    """A part of a sentence; a command among them, which is a piece of HTML, becomes code."""
    return re.sub(r"</?code>", "`", part) if isinstance(part, Markup) else safe(part)


def _cell(one: Mapping[str, Any] | None) -> str:
    if not one:
        return "–"
    return plain(one["value"]) + (f" ({ends(one)})" if one.get("low") is not None else "")


def _ethics(evidence: Evidence) -> Lines:
    yield "Films are of patients. Registry and MLflow hold no film; names of films and patients leave the machine only"
    yield "as salted pseudonyms. A wrong answer may delay a treatment or cause a needless one: it decides nothing."


def _caveats(evidence: Evidence) -> Lines:
    yield "- One set of films from few sources: elsewhere, `xray-opt evaluate --split all --data FOLDER` tells."
    yield "- Scores on validation films are a little too high: settings and threshold were chosen on them."
    if evidence.final is None:
        yield "- The model was not finalized: it has no score on films that nothing was chosen by."
    if not evidence.confirmation:
        yield "- The setting was not confirmed with new seeds: its search score is that of a winner among many."
    yield ""
    yield f"Do it again, with this study file as `{study_file(evidence)}`:"
    yield from _code("yaml", study_text_of(evidence).splitlines())
    yield from _code("sh", again(evidence))
    yield ""
    yield "Or look again at the runs that it left in MLflow:"
    yield from _code("sh", reproducing(evidence))


def _code(kind: str, lines: Iterable[str]) -> Lines:
    yield ""
    yield f"```{kind}"
    yield from (printable(line).replace("```", "'''") for line in lines)
    yield "```"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Lines:
    yield "| " + " | ".join(heads) + " |"
    yield "| " + " | ".join("---" for _ in heads) + " |"
    for row in rows:
        yield "| " + " | ".join(safe(one) for one in row) + " |"
