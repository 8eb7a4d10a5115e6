"""Sections of the search: its course, its trials, its confirmation. Each is a function from the records to a piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from xray_opt.leaderboard import confirmed_scores, interval_of
from xray_opt.report import figures_study as drawings
from xray_opt.report.html import ends, figure, figures, gained, heading, missing, paragraph, short_names, signed, table
from xray_opt.report.records import Evidence, command_of
from xray_opt.tuning import TrialRecord

#: So many trials stand in the leaderboard.
MOST_ROWS = 50


def search(evidence: Evidence) -> Markup:
    """Counts, history, epochs, importances, parallel coordinates, slices."""
    study = evidence.study
    if not study.trials:
        return missing("The study has no trial yet", command_of(evidence, "tune"))
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
        return missing("No trial is over", command_of(evidence, "tune"))
    trials = study.listed
    front = {trial.number for trial in study.front} if study.second else set()
    names = short_names(evidence.params)
    confirmed = confirmed_scores(evidence.confirmation)
    heads = ["trial", "state", "val F1", "95 %", *([study.second, "front"] if study.second else [])]
    heads += ["val AUC", "95 %"]
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
            "A trial's own 95 % is over the validation patients, of that trial by itself (a dash where none was kept, "
            "a class has under 10 patients, or its setting was confirmed). The best of N trials is the best by luck as "
            "well, so its interval is none of the winner's, and nothing is chosen by it: for that there is the "
            "confirmed score, the mean of new seeds.",
            kind="note",
        )
    )


def _row(
    trial: TrialRecord, names: list[str], confirmed: Mapping[int, Mapping[str, Any]], front: set[int], two: bool
) -> list[object]:
    state = trial.state.lower() + (f" ({trial.reason})" if trial.reason else "")
    own = {name: None if trial.number in confirmed else interval_of(trial, name) for name in ("f1", "auc")}
    f1, auc = (ends(both and {"low": both[0], "high": both[1]}) for both in own.values())
    row: list[object] = [trial.number, state, trial.value, f1]
    row += [trial.second, "★" if trial.number in front else ""] if two else []
    row += [trial.notes.get("val.auc"), auc]
    if confirmed:
        one = confirmed.get(trial.number)
        row += [one and one["value"], ends(one)]
    return row + [trial.params.get(name) for name in names]


def confirmation(evidence: Evidence) -> Markup:
    """Search scores against new seeds, the winner's lead."""
    verdict = evidence.confirmation
    if not verdict:
        return missing("Whether the winner is really better was not tried", command_of(evidence, "confirm"))
    rows = [
        [
            f"trial {one['trial']}",
            one["search"],
            one["confirmed"]["value"],
            ends(one["confirmed"]),
            signed(one["gap"]["value"]),
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
        return ["No setting won: none has an interval, or none finds any pneumonia."]
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
