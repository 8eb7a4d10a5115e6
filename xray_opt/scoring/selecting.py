"""Which model, and which films of which set: what ``evaluate`` and ``explain`` ask for; the sealed test's way in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import Film, Manifest, prepared
from xray_opt.errors import ConfigError
from xray_opt.leaderboard import Opening
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import Place
from xray_opt.scoring.opening import SealedTest, require_own, study_storage
from xray_opt.scoring.outside import own_manifest, own_settings, strangers


@dataclass(frozen=True)
class Selection:
    """A model and films for it.

    Attributes:
        threshold: from which a film is called pneumonia.
        own: the manifest that the model was made on; none where it is not known here.
        left_out: see ``Evaluation``.
        opened: the sealed test and the record of its opening, where ``split`` is ``test``.
    """

    loaded: registry.Loaded
    connection: Connection
    split: str
    threshold: float
    manifest: Manifest
    films: tuple[Film, ...]
    own: Manifest | None
    left_out: Mapping[str, int] | None = field(default_factory=dict)
    opened: tuple[SealedTest, Opening] | None = None

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
) -> Selection:
    """Load a model and find its films; an opening of ``test`` is recorded before a label is read.

    Raises:
        ConfigError: ``test`` without a reason, ``all`` without data or with no films but the model's own, or no
            threshold is known for that sensitivity.
        DataError: a split was asked of data that is not the model's own.
        StudyError: the opening cannot be written to the model's study.
    """
    if split == "test" and not why:
        raise ConfigError('the test split is sealed: say why it is opened with --why "…"; the opening is recorded')
    if split == "all" and data is None:
        raise ConfigError("--split all scores the films of another folder: name it with --data")
    connection = connect(place.tracking(workspace), workspace)
    loaded = registry.load(connection, model, resolve_device(device))
    threshold = loaded.bundle.threshold_for(sensitivity)
    manifest = prepared(_data_settings(loaded, split, data), workspace)
    if split == "all":
        own = own_manifest(loaded, connection, workspace)
        films, left_out = strangers(manifest, loaded, own, workspace)
        return Selection(loaded, connection, split, threshold, manifest, films, own, left_out)
    require_own(manifest, loaded, model, split)
    if split != "test":
        return Selection(loaded, connection, split, threshold, manifest, manifest.of(split), manifest)
    sealed = SealedTest(loaded, manifest, connection, workspace, study_storage(loaded, workspace, place))
    films, opening = sealed.open(str(why))
    return Selection(loaded, connection, split, threshold, manifest, films, manifest, opened=(sealed, opening))


def _data_settings(loaded: registry.Loaded, split: str, data: str | None) -> DataConfig:
    if split == "all":
        return DataConfig(root=data)
    config = own_settings(loaded)
    return replace(config, root=data or config.root)
