"""The model card of the chosen model in Markdown, under the headings of Mitchell et al. 2019.

*Model cards for model reporting*, https://arxiv.org/abs/1810.03993. What comes from outside is escaped by :func:`safe`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from xray_opt.errors import printable
from xray_opt.report.html import ends, plain
from xray_opt.report.records import Evidence
from xray_opt.report.sections_evidence import worst_case
from xray_opt.report.sections_facts import SHORTCUTS, reproducing
from xray_opt.report.sections_scores import gain, named, opened, validation_scores

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
    yield "Scores follow scikit-learn's definitions; intervals are 95 %, from a bootstrap of patients. Threshold and"
    yield "temperature are fitted on validation films and fixed before the test split is opened."
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
        found = evidence.shortcut
        yield from _table(["model", "AUC", "F1"], [(words, found.get(a), found.get(b)) for words, a, b in SHORTCUTS])


def _splits(evidence: Evidence, wanted: Sequence[str]) -> Lines:
    rows = [
        (one.name, one.films, one.patients, one.normal, one.pneumonia) for one in evidence.splits if one.name in wanted
    ]
    if not rows:
        yield "Not recorded in the study's run."
        return
    yield from _table(["split", "films", "patients", "normal", "pneumonia"], rows)


def _analyses(evidence: Evidence) -> Lines:
    found = {
        name: {"value": one.value, "low": one.low, "high": one.high}
        for name, one in validation_scores(evidence).items()
    }
    final = evidence.final
    image, patient = (final[level]["scores"] if final else {} for level in ("image", "patient"))
    names = list(dict.fromkeys((*image, *found)))
    if not names:
        yield "No scores were recorded."
    else:
        columns: tuple[Mapping[str, Mapping[str, Any]], ...] = (found, image, patient)
        rows = [(named(name), *(_cell(column.get(name)) for column in columns)) for name in names]
        yield from _table(["score", "validation films", "test films", "test patients"], rows)
    yield ""
    yield "Gain over the best trivial model: " + "".join(_words(part) for part in gain(evidence))
    if worst := worst_case(evidence):
        yield ""
        yield f"Worst case among changed films: {safe(worst)}"


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
    yield "Do it again:"
    yield ""
    yield "```sh"
    yield from (printable(line).replace("```", "'''") for line in reproducing(evidence))
    yield "```"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Lines:
    yield "| " + " | ".join(heads) + " |"
    yield "| " + " | ".join("---" for _ in heads) + " |"
    for row in rows:
        yield "| " + " | ".join(safe(one) for one in row) + " |"
