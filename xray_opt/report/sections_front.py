"""The section of a study with two objectives: its Pareto front."""

from __future__ import annotations

from markupsafe import Markup

from xray_opt.report import figures_front, figures_study
from xray_opt.report.html import ends, figure, figures, missing, paragraph, short_names, table
from xray_opt.report.records import Evidence, command_of

#: Objective → what it is, as the end of a sentence.
MEANINGS = {
    "parameters": "the number of weights that are trained and kept",
    "latency": "the milliseconds that an fp32 pass takes a film, on the machine and under the load of its trial",
    "robustness": "the smallest share of decisions that stay when films are re-compressed, cut or equalised",
}


def front(evidence: Evidence) -> Markup:
    """The front as a figure and a table, and what mattered for the second objective; nothing with one objective."""
    study = evidence.study
    if study.second is None:
        return Markup("")
    if not study.front:
        return missing("No trial is complete", command_of(evidence, "tune"))
    meaning = MEANINGS.get(study.second, study.second)
    return Markup("").join(
        (
            paragraph(
                f"Two objectives: validation F1, and {meaning}. On the front are the trials of which no other is "
                "better in one and as good in the other. The one of highest F1 is registered; which of them is worth "
                "its cost is for people to say."
            ),
            figures(
                figure(figures_front.front(evidence), "Numbers are those of the front's trials."),
                figure(
                    figures_study.importances(evidence, second=True),
                    f"How much of the spread of the best trials by {study.second} each setting explains (PED-ANOVA).",
                ),
            ),
            _table(evidence),
        )
    )


def _table(evidence: Evidence) -> Markup:
    study = evidence.study
    names = short_names(evidence.params)
    confirmed = {one["trial"]: one["confirmed"] for one in (evidence.confirmation or {}).get("settings", ())}
    heads = ["trial", "val F1", study.second, *(["confirmed F1", "95 %"] if confirmed else []), *names.values()]
    rows = []
    for trial in study.front:
        one = confirmed.get(trial.number)
        own = [one and one["value"], ends(one)] if confirmed else []
        rows.append([trial.number, trial.value, trial.second, *own, *(trial.params.get(name) for name in names)])
    return table("The Pareto front, highest F1 first", heads, rows)
