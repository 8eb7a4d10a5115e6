"""Where one workspace keeps its data, studies and runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


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
    def caches(self) -> Path:
        """Decoded films, one memmap a manifest and side."""
        return self.data / "cache"

    @property
    def studies(self) -> Path:
        """Study files of the user, and the embedded Optuna database."""
        return self.root / "studies"

    @property
    def study_database(self) -> Path:
        """SQLite file of Optuna's embedded storage."""
        return self.studies / "optuna.db"

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
        """Tracking URI of the embedded MLflow store."""
        return f"sqlite:///{self.mlruns.resolve() / 'mlflow.db'}"
