"""The one way to the sealed test split: first it is written down who opens it, when and why, then there are films.

An opening stands in the workspace's ledger of looks at these films (:mod:`xray_opt.ledger`), among the notes of the
model's study, with the command and later the scores, and as tags on the model's MLflow run, with a count also on the
study's. It is counted by its films: another study on the same ones has not a first look.
"""

from __future__ import annotations

import logging
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from xray_opt import registry
from xray_opt.config import Workspace, redacted
from xray_opt.dataset import Film, Manifest
from xray_opt.errors import DataError, StudyError
from xray_opt.leaderboard import Opening, look_of, note_opening, openings
from xray_opt.ledger import OUTSIDE, Look, film_keys, held_out_keys, looks_at, note, noted, one_at_a_time
from xray_opt.mlflow_client import Connection, user_name
from xray_opt.places import Place, known_storages, moved_with
from xray_opt.tracking import MANIFEST, STORAGE, STUDY_ID, log_run_metrics, run_looks, tag_look, tag_opening
from xray_opt.tuning import read_study, storage_url
from xray_opt.tuning.storage import one_after_another

log = logging.getLogger(__name__)

#: Tags of runs that tell the trial they are or retrain.
TRIAL_TAGS = ("xray_opt.trial", "xray_opt.confirms", "xray_opt.baseline_of")


def require_own(manifest: Manifest, loaded: registry.Loaded, model: str, split: str) -> None:
    """Raises DataError unless ``model`` was made on this very split of these films."""
    own = loaded.tags.get(MANIFEST)
    if manifest.sha256 != own:
        raise DataError(
            f"{model} was made on other data ({str(own)[:12]}, this is {manifest.sha256[:12]}): its {split} split "
            "cannot be told from its training films; score other films with --split all --data PATH"
        )


@dataclass(frozen=True)
class SealedTest:
    """The test split of one model's data, sealed until :meth:`open` is called.

    Attributes:
        storage: URL of the storage that holds the model's study.
    """

    loaded: registry.Loaded
    manifest: Manifest
    connection: Connection
    workspace: Workspace
    storage: str | None

    def open(self, why: str, by: str = "evaluate") -> tuple[tuple[Film, ...], Opening]:
        """The films and the record of this opening by a command, which is written first.

        Raises:
            StudyError, TrackingError: it cannot be written; the split stays sealed.
        """
        opening = opening_now(self.loaded, why, by)
        return self.manifest.open_test(lambda: self._note(opening)), opening

    @contextmanager
    def alone(self, say: Callable[[str], None] = log.warning) -> Iterator[None]:
        """Of those who ask who looked, and then look, one at a time: of all that share this workspace or the storage of
        the model's study. Nobody else's look is missed, and of two at once one comes first.

        Args:
            say: told where that takes long.

        Raises:
            StudyError: the storage is away, or somebody hangs.
        """
        with one_at_a_time(self.workspace, say):
            if self.study is None:
                yield
                return
            with one_after_another(storage_url(self.workspace, self.storage), "openings", say):
                yield

    def openings(self) -> list[Opening]:
        """Every opening of the study's test split, for whatever model."""
        return openings(read_study(self.study, self.workspace, self.storage)) if self.study else []

    def looks(self) -> tuple[Look, ...]:
        """Every look at one of these test films that is known here, oldest first: of whatever model, study and split.

        Known are those of this workspace, of the model's study, and of runs in its MLflow store.

        Raises:
            DataError: a record is damaged.
            TrackingError: MLflow does not answer.
        """
        keys, own = tuple(sorted(held_out_keys(self.manifest))), self.openings()
        told = [look_of(one, self.study or "", keys) for one in own]
        elsewhere = run_looks(self.connection) if self.loaded.run_id else []
        found = looks_at(keys, noted(self.workspace), elsewhere, told)
        # A study that was moved to another store knows its runs by the ids that they have there.
        runs = {look.identity: look.run for look in told}
        return tuple(replace(look, run=runs.get(look.identity, look.run)) for look in found)

    def resume(self, opening: Opening) -> tuple[Film, ...]:
        """The films of an opening that is recorded already; its tags may not be."""
        return self.manifest.open_test(lambda: self._note(opening))

    def record(self, opening: Opening, values: Mapping[str, float]) -> None:
        """Log the scores (``test.f1``, …) to the model's run, and then add them to the opening, which ends it."""
        if self.loaded.run_id:
            log_run_metrics(self.connection, self.loaded.run_id, values)
        if self.study:
            note_opening(self.study, self.workspace, self.storage, replace(opening, scores=dict(values)))

    @property
    def study(self) -> str | None:
        """Name of the model's study."""
        return self.loaded.tags.get("xray_opt.study")

    def _note(self, opening: Opening) -> None:
        """First where no study and no store can lose it."""
        keys = tuple(sorted(held_out_keys(self.manifest)))
        look = look_of(opening, self.study or "", keys, socket.gethostname())
        note(self.workspace, look)
        counts = None
        if self.study:
            known = note_opening(self.study, self.workspace, self.storage, opening)
            counts = sum(one.run == opening.run for one in known), len(known)
        if self.loaded.run_id:
            line = f"{opening.when} {opening.who}: {opening.why}"
            tag_opening(self.connection, self.loaded.run_id, line, counts)
            tag_look(self.connection, self.loaded.run_id, look)


def note_look(
    loaded: registry.Loaded, connection: Connection, workspace: Workspace, opening: Opening, films: Sequence[Film]
) -> frozenset[str]:
    """Write down that a model's answers for these films are held against their labels; returns the films' keys.

    Test films are told to MLflow too, at the model's run; what is no known test film stays in this workspace.
    """
    keys = film_keys(films)
    look = look_of(opening, loaded.tags.get("xray_opt.study", ""), tuple(sorted(keys)), socket.gethostname())
    note(workspace, look)
    if loaded.run_id and opening.by != OUTSIDE:
        tag_look(connection, loaded.run_id, look)
    return keys


def opening_now(loaded: registry.Loaded, why: str, by: str) -> Opening:
    """The record of an opening for this model at this moment, by this command."""
    tags = loaded.tags
    return Opening(
        who=user_name(),
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        why=why,
        trial=next((int(tags[name]) for name in TRIAL_TAGS if name in tags), None),
        command=redacted(shlex.join([_program(), *sys.argv[1:]])),
        run=loaded.run_id,
        by=by,
        own="xray_opt.trial" in tags and not tags.keys() & set(TRIAL_TAGS[1:]),
    )


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "xray-opt" if name == "__main__.py" else name


def study_storage(loaded: registry.Loaded, connection: Connection, workspace: Workspace, place: Place) -> str | None:
    """URL of the storage that holds the model's study, in which an opening is written.

    Raises:
        StudyError: it is none of those known here.
    """
    if place.storage or "xray_opt.study" not in loaded.tags:
        return place.storage
    url = known_storages(workspace).get(loaded.tags.get(STORAGE, ""))
    if url is None and connection.artifact_root:
        url = moved_with(workspace, loaded.tags.get(STUDY_ID, ""))
    if url is None:
        raise StudyError(
            f"the test split stays sealed: the opening belongs into study {loaded.tags['xray_opt.study']}, which is "
            "in a storage that is not known here; name it with --storage URL or --study FILE"
        )
    return url
