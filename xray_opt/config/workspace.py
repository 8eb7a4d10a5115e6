"""Where one workspace keeps its data, studies and runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from xray_opt.errors import ConfigError


@dataclass(frozen=True)
class Workspace:
    """A folder with ``data/``, ``studies/`` and ``mlruns/``; nothing but the weight cache is written outside it."""

    root: Path

    @classmethod
    def here(cls) -> Workspace:
        """``XRAY_OPT_HOME`` if set, else the current folder."""
        return cls(Path(os.environ.get("XRAY_OPT_HOME") or Path.cwd()).resolve())

    @property
    def data(self) -> Path:
        """Data sets, manifests, caches and the salt."""
        return self.root / "data"

    @property
    def manifests(self) -> Path:
        """Prepared manifests, one file a split."""
        return self.data / "manifests"

    @property
    def outside(self) -> Path:
        """Manifests of folders that were only ever scored as other people's films: their splits mean nothing."""
        return self.data / "outside"

    @property
    def openings(self) -> Path:
        """Every look at test films, one file each; see :mod:`xray_opt.ledger`."""
        return self.data / "openings"

    @property
    def caches(self) -> Path:
        """Decoded films, one memmap a manifest and side."""
        return self.data / "cache"

    @property
    def studies(self) -> Path:
        """Study files of the user, and the embedded Optuna database."""
        return self.root / "studies"

    @property
    def study_database(self) -> Path:
        """SQLite file of Optuna's embedded storage.

        Raises:
            ConfigError: no URL can name it.
        """
        return _named_by_a_url(self.studies / "optuna.db")

    def study_folder(self, study: str) -> Path:
        """What one study keeps on this machine: its base weights and the checkpoints of unfinished trials."""
        return self.studies / "state" / study

    @property
    def unfinished_runs(self) -> Path:
        """Checkpoints of single runs that were stopped."""
        return self.studies / "unfinished"

    @property
    def mlruns(self) -> Path:
        """Embedded MLflow: database and artifacts."""
        return self.root / "mlruns"

    @property
    def spool(self) -> Path:
        """Writes that wait for an MLflow server which is away."""
        return self.mlruns / "spool"

    @property
    def mlflow_uri(self) -> str:
        """Tracking URI of the embedded MLflow store.

        Raises:
            ConfigError: there is none.
        """
        return f"sqlite:///{_named_by_a_url(self.mlruns.resolve() / 'mlflow.db')}"


def _named_by_a_url(database: Path) -> Path:
    if wrong := {"?", "%"} & set(str(database)):
        # Optuna and MLflow would take the rest for options, or for another name, and write outside of the workspace.
        raise ConfigError(
            f"the database {database} has {' and '.join(sorted(wrong))} in its path, which no URL bears: rename that "
            "folder, or work in another one (XRAY_OPT_HOME)"
        )
    return database
