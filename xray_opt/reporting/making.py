"""Gathers a study's records, has the report made of them, writes it, and logs it to the study's run.

Where nothing tells yet what the model gains over trivial ones, films of train and val are read for that; those of test
never are.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xray_opt import registry
from xray_opt.config import Workspace
from xray_opt.errors import ConfigError, DataError
from xray_opt.ledger import TRIVIAL_RECORD
from xray_opt.places import Place
from xray_opt.report import Chosen, Evidence, model_card, page, wanted
from xray_opt.reporting.gathering import Source, gather, source_of
from xray_opt.scoring import recorded_trivial
from xray_opt.tracking import log_run_file, log_run_json

#: Folder of page and card among the artifacts of the study's run, and their names there.
FOLDER, PAGE, CARD = "report", "report.html", "model-card.md"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """Where a report lies.

    Attributes:
        page, card: files on this machine.
        logged: URI of the page in MLflow, none where it was not logged.
        versions: registered versions that lead to it, in words.
    """

    page: Path
    card: Path
    logged: str | None
    versions: tuple[str, ...]


def report(
    place: Place,
    workspace: Workspace,
    output: Path | None = None,
    log: bool = True,
    say: Say = lambda line: None,
    films: bool = True,
) -> Report:
    """Make the report and the model card of the study at ``place``.

    Args:
        output: the page's file, the card lies beside it; none means ``reports/STUDY.html`` of the workspace.
        log: also log both to the study's run in MLflow, and let the chosen model's registered versions lead there.
        say: told what was not done, and why, and what takes long.
        films: show the recorded sheet of heat maps, on which films are seen.

    Raises:
        StudyError: no such study.
        ConfigError: the files cannot be written.
        TrackingError: MLflow does not answer.
    """
    source = source_of(place, workspace)
    evidence, trivial = _beside_trivial(source, gather(source, films), say)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", source.study.name)
    target = output or workspace.root / "reports" / f"{name}.html"
    card = target.with_name(f"{target.stem}-model-card.md")
    texts = {PAGE: page(evidence), CARD: model_card(evidence)}
    for path, text in ((target, texts[PAGE]), (card, texts[CARD])):
        _write(path, text)
    if not log:
        return Report(target, card, None, ())
    if trivial and evidence.chosen:
        log_run_json(source.connection, evidence.chosen.run, TRIVIAL_RECORD, trivial)
    if source.parent is None:
        say("the study has no run in MLflow: the report was not logged")
        return Report(target, card, None, ())
    uri = _log(source, texts, evidence.chosen)
    return Report(target, card, uri, evidence.chosen.versions if evidence.chosen else ())


def _beside_trivial(source: Source, evidence: Evidence, say: Say) -> tuple[Evidence, Mapping[str, Any] | None]:
    """The evidence with the gain over trivial models on validation, and its record if it had to be made."""
    chosen = evidence.chosen
    if chosen is None or not wanted(evidence):
        return evidence, None
    tags, threshold = source.facts(chosen.run).tags, 0.5 if chosen.threshold is None else chosen.threshold
    if not tags:
        return replace(evidence, no_trivial="the model's run is not in MLflow"), None
    try:
        record = recorded_trivial(source.connection, chosen.run, tags, threshold, source.workspace, say)
    except DataError as error:
        say(f"no trivial models beside the model: {error}")
        return replace(evidence, no_trivial=str(error).partition(": ")[0]), None  # behind that films may be named
    return replace(evidence, files={**evidence.files, TRIVIAL_RECORD: json.dumps(record).encode()}), record


def _write(path: Path, text: str) -> None:
    """The whole file or nothing."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another file with --output") from error


def _log(source: Source, texts: Mapping[str, str], chosen: Chosen | None) -> str:
    """Page and card as artifacts of the study's run; the chosen model's versions lead there."""
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as scratch:
        for name, text in texts.items():
            path = Path(scratch) / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            log_run_file(source.connection, str(source.parent), path, FOLDER)
    place = f"runs:/{source.parent}/{FOLDER}"
    if chosen is not None:
        links = {"xray_opt.report": f"{place}/{PAGE}", "xray_opt.model_card": f"{place}/{CARD}"}
        registry.tag_versions(source.connection, chosen.run, links)
    return f"{place}/{PAGE}"
