"""Sections of the search: its course, its trials, its confirmation. Each is a function from the records to a piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from xray_opt.report import figures_study as drawings
from xray_opt.report.html import ends, figure, figures, gained, heading, missing, paragraph, short_names, table
from xray_opt.report.records import Evidence
from xray_opt.tuning import TrialRecord

#: So many trials stand in the leaderboard.
MOST_ROWS = 50


def search(evidence: Evidence) -> Markup:
    """Counts, history, epochs, importances, parallel coordinates, slices."""
    study = evidence.study
    if not study.trials:
        return missing("The study has no trial yet", f"xray-opt tune --study {study.name}")
    states = Counter("failed" if trial.state == "FAIL" else trial.state.lower() for trial in study.trials)
    reasons = Counter(trial.reason or "error" for trial in study.trials if trial.state == "FAIL")
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    slices = [
        figure(svg, f"Complete trials over {name}; the darker, the later.") for name, svg in drawings.slices(evidence)
    ]
    return Markup("").join(
        (
            paragraph(f"{len(study.trials)} trials: {counts}.", f" Failed by: {why}." if why else ""),
            figures(
                figure(drawings.history(evidence), "Every trial, and the best value so far."),
                figure(drawings.epochs(evidence), f"Every epoch; at most {drawings.MOST_LINES} trials, the best ones."),
                figure(
                    drawings.importances(evidence),
                    "How much of the spread of good trials each setting explains (PED-ANOVA, Watanabe et al. 2023).",
                ),
            ),
            heading("Settings and values"),
            figures(
                figure(
                    drawings.parallel(evidence),
                    "Complete trials; the darker a line, the better. A line has a gap where a trial has no such "
                    "setting.",
                    wide=True,
                ),
                *slices,
            ),
        )
    )


def leaderboard(evidence: Evidence) -> Markup:
    """Every trial, best first; confirmed scores where a confirmation retrained the setting."""
    study = evidence.study
    if not study.trials:
        return missing("No trial is over", f"xray-opt tune --study {study.name}")
    trials = study.listed
    front = {trial.number for trial in study.front} if study.second else set()
    names = short_names(evidence.params)
    confirmed = {one["trial"]: one["confirmed"] for one in (evidence.confirmation or {}).get("settings", ())}
    heads = ["trial", "state", "val F1", *([study.second, "front"] if study.second else []), "val AUC"]
    heads += [*(["confirmed F1", "95 %"] if confirmed else []), *names.values()]
    rows = [_row(trial, list(names), confirmed, front, study.second is not None) for trial in trials[:MOST_ROWS]]
    shown = f"{study.name}: validation scores" + (f", the first {MOST_ROWS} trials" if len(trials) > MOST_ROWS else "")
    more = (
        paragraph(f"{len(trials) - MOST_ROWS} more: xray-opt compare {study.name}") if len(trials) > MOST_ROWS else ""
    )
    return (
        table(shown, heads, rows)
        + more
        + paragraph(
            "A trial's own score is that of a winner among many, and has no interval of its own; the confirmed score "
            "is the mean of new seeds.",
            kind="note",
        )
    )


def _row(
    trial: TrialRecord, names: list[str], confirmed: Mapping[int, Mapping[str, Any]], front: set[int], two: bool
) -> list[object]:
    state = trial.state.lower() + (f" ({trial.reason})" if trial.reason else "")
    row: list[object] = [trial.number, state, trial.value]
    row += [trial.second, "★" if trial.number in front else ""] if two else []
    row.append(trial.notes.get("val.auc"))
    if confirmed:
        one = confirmed.get(trial.number)
        row += [one and one["value"], ends(one)]
    return row + [trial.params.get(name) for name in names]


def confirmation(evidence: Evidence) -> Markup:
    """Search scores against new seeds, the winner's lead."""
    verdict = evidence.confirmation
    if not verdict:
        return missing(
            "Whether the winner is really better was not tried", f"xray-opt confirm --study {evidence.study.name}"
        )
    rows = [
        [
            f"trial {one['trial']}",
            one["search"],
            one["confirmed"]["value"],
            ends(one["confirmed"]),
            one["gap"]["value"],
            ends(one["gap"]),
            one["lower"],
            len(one["seeds"]),
            len(one["splits"]),
        ]
        for one in verdict["settings"]
    ]
    heads = ["setting", "search F1", "confirmed F1", "95 %", "gap", "95 %", "counts for", "seeds", "splits"]
    reasons = sorted({one["confirmed"]["why"] for one in verdict["settings"] if one["confirmed"].get("why")})
    return Markup("").join(
        (
            paragraph(*_verdict(verdict)),
            table("Search scores against new seeds, validation F1", heads, rows),
            figures(
                figure(
                    drawings.confirmation(verdict),
                    "The gap between search score and confirmed score is the winner's curse. ★: the winner.",
                )
            ),
            *(paragraph(f"No interval: {why}", kind="note") for why in reasons),
        )
    )


def _verdict(verdict: Mapping[str, Any]) -> list[str]:
    """Who won, and what the lead says."""
    if verdict["winner"] is None:
        return ["No setting won: none has an interval."]
    lead, first = verdict.get("lead"), f"Trial {verdict['winner']} has the highest lower end."
    if not lead or lead["value"] is None:
        return [first]
    if lead["low"] is not None and lead["low"] > 0:
        says = "The lead is beyond chance."
    elif lead["high"] is not None and lead["high"] < 0:
        says = "On the study's own split the runner-up is better; the re-drawn splits decided."
    else:
        says = "The two are not told apart."
    return [first, f" Its lead over trial {verdict['runner_up']}: {gained(lead)}. ", says]
