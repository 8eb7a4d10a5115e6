"""Which model, and which films of which set: what ``evaluate`` and ``explain`` ask for; the sealed test's way in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import Film, Manifest, prepared, unsplit
from xray_opt.errors import ConfigError
from xray_opt.leaderboard import Opening
from xray_opt.ledger import OUTSIDE, looks_at, noted
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import Place
from xray_opt.scoring.opening import SealedTest, note_look, opening_now, require_own, study_storage
from xray_opt.scoring.outside import NOT_ELSEWHERE, UNUSABLE, Elsewhere, own_manifest, own_settings, strangers
from xray_opt.tracking import run_looks


@dataclass(frozen=True)
class Selection:
    """A model and films for it.

    Attributes:
        threshold: from which a film is called pneumonia.
        own: the manifest that the model was made on; none where it is not known here.
        left_out, own_known: see ``Evaluation``.
        opened: the sealed test and the record of its opening, where ``split`` is ``test``.
        looks: how often these test films were looked at by now; none where no sealed film is among them.
    """

    loaded: registry.Loaded
    connection: Connection
    split: str
    threshold: float
    manifest: Manifest
    films: tuple[Film, ...]
    own: Manifest | None
    left_out: Mapping[str, int] = field(default_factory=dict)
    own_known: bool = True
    opened: tuple[SealedTest, Opening] | None = None
    looks: int | None = None

    @property
    def paths(self) -> list[Path]:
        """Where the films lie."""
        return [Path(self.manifest.root) / film.path for film in self.films]

    def end(self, values: Mapping[str, float]) -> None:
        """Add the scores to the opening of the test, if this is one."""
        if self.opened is not None:
            sealed, opening = self.opened
            sealed.record(opening, values)


def select(
    model: str,
    split: str,
    workspace: Workspace,
    data: str | None,
    why: str | None,
    device: str,
    place: Place,
    sensitivity: float | None = None,
    elsewhere: Elsewhere = Elsewhere(),
) -> Selection:
    """Load a model and find its films; an opening of ``test`` is recorded before a label is read.

    Args:
        why: the reason for opening ``test``, or the sealed test films among those of another folder.
        elsewhere: how films of another folder are read.

    Raises:
        ConfigError: ``test`` without a reason, ``all`` without data or with no films but the model's own, no
            threshold is known for that sensitivity, or ``elsewhere`` says something of the model's own films.
        DataError: a split was asked of data that is not the model's own.
        StudyError: the opening cannot be written to the model's study.
    """
    if split == "test" and not why:
        raise ConfigError('the test split is sealed: say why it is opened with --why "…"; the opening is recorded')
    if split == "all" and data is None:
        raise ConfigError("--split all scores the films of another folder: name it with --data")
    if split != "all" and elsewhere != Elsewhere():
        raise ConfigError(NOT_ELSEWHERE)
    connection = connect(place.tracking(workspace), workspace)
    loaded = registry.load(connection, model, resolve_device(device))
    threshold = loaded.bundle.threshold_for(sensitivity)
    if split == "all":
        return _outside(loaded, connection, threshold, workspace, elsewhere.settings(data, loaded), why)
    own = own_settings(loaded)
    manifest = prepared(replace(own, root=data or own.root), workspace)
    require_own(manifest, loaded, model, split)
    if split != "test":
        return Selection(loaded, connection, split, threshold, manifest, manifest.of(split), manifest)
    sealed = SealedTest(loaded, manifest, connection, workspace, study_storage(loaded, connection, workspace, place))
    with sealed.alone():
        films, opening = sealed.open(str(why))
        looks = len(sealed.looks())
    opened = sealed, opening
    return Selection(loaded, connection, split, threshold, manifest, films, manifest, opened=opened, looks=looks)


def _outside(
    loaded: registry.Loaded,
    connection: Connection,
    threshold: float,
    workspace: Workspace,
    data: DataConfig,
    why: str | None,
) -> Selection:
    """The films of another folder. That they are scored is written down: they may be test films one day, or be some
    that nobody here knows for what they are."""
    manifest = unsplit(data, workspace)
    bad = sum(one.bad for one in manifest.left_out)
    own = own_manifest(loaded, connection, workspace)
    found = strangers(manifest, loaded, own, connection, workspace, opening=bool(why))
    looks, sealed = None, {film.path for film in found.opened}
    if found.opened:
        keys = note_look(loaded, connection, workspace, opening_now(loaded, str(why), "evaluate"), found.opened)
        elsewhere = run_looks(connection) if loaded.run_id else []
        looks = len(looks_at(keys, noted(workspace), elsewhere))
    if rest := tuple(film for film in found.films if film.path not in sealed):
        note_look(loaded, connection, workspace, opening_now(loaded, "films of another folder", OUTSIDE), rest)
    return Selection(
        loaded,
        connection,
        "all",
        threshold,
        manifest,
        found.films,
        own,
        found.left_out if not bad else {**found.left_out, UNUSABLE: bad},
        found.own_known,
        looks=looks,
    )
