"""Makes the winner of a confirmation the champion, with the evidence beside its files."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from xray_opt import registry
from xray_opt.confirm.judging import Confirmation
from xray_opt.errors import StudyError
from xray_opt.experiment import ADAPTER_ARTIFACT
from xray_opt.settling import example_film
from xray_opt.tracking import log_run_file
from xray_opt.workers import Work

#: The verdict as a file: artifact of the study's run, of the winner's run and of the registered version.
EVIDENCE = "confirmation.json"


@dataclass(frozen=True)
class Promotion:
    """The version that is champion now; ``before`` is the one that was, none where it is the same or the first."""

    new: registry.Version
    before: registry.Version | None


def promote_winner(work: Work, verdict: Confirmation) -> Promotion:
    """Register the winner's median retraining, attach the verdict, move the champion; safe to repeat.

    The median stands for the setting: the best of its seeds would be one more winner by luck.

    Raises:
        StudyError: there is no winner.
    """
    if verdict.winner is None:
        why = next(
            (one.confirmed.why for one in verdict.settings if one.confirmed.why), "no setting finds any pneumonia"
        )
        raise StudyError(f"nothing is promoted: {why}")
    best = verdict.of(verdict.winner)
    connection, name = work.connection, work.opened.config.config.tracking.registered_model
    tags = {**work.tags, "xray_opt.trial": str(best.trial)}
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        bundle = work.tracking.download(best.run, ADAPTER_ARTIFACT, Path(folder))
        version = registry.register(connection, best.run, bundle, work.base, name, tags, example_film())
        path = Path(folder) / EVIDENCE
        path.write_text(json.dumps(verdict.to_dict(), indent=1) + "\n", encoding="utf-8")
        log_run_file(connection, best.run, path)
        registry.attach(connection, version, path, _facts(verdict))
    old = registry.champion(connection, name)
    if old is not None and old.version == version.version:
        return Promotion(version, None)
    return Promotion(version, registry.promote(connection, name, version.version, _why(verdict), "confirm").old)


def _facts(verdict: Confirmation) -> dict[str, str]:
    """What a reader of the version sees at once; the whole stands in the file."""
    best = verdict.of(verdict.winner or 0)
    facts = {
        "confirmed.f1": f"{best.confirmed.value:.4f}",
        "confirmed.lower": f"{best.lower or 0.0:.4f}",
        "confirmed.gap": f"{best.gap.value:+.4f}",
        "xray_opt.evidence": f"runs:/{best.run}/{EVIDENCE}",
    }
    if verdict.lead is not None:
        facts["confirmed.lead"] = f"{verdict.lead.value:+.4f}" + (
            "" if verdict.lead.p is None else f", p {verdict.lead.p:.2g}"
        )
    return facts


def _why(verdict: Confirmation) -> str:
    best = verdict.of(verdict.winner or 0)
    found = f"F1 {best.confirmed.value:.4f}, lower end {best.lower or 0.0:.4f}"
    return f"winner of the confirmation of {verdict.study}: {found}"
