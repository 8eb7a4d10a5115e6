"""What a run may take along when it leaves the machine: no paths, no names of films, no words of an error.

The same that ``tracking.run`` and ``tracking.data`` keep back when a run is logged to a server in the first place.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput

from xray_opt.dataset import Manifest, Pseudonyms
from xray_opt.mlflow_client import Connection
from xray_opt.tracking.data import MANIFEST_FILE, PSEUDONYMISED_FILE, manifest_files
from xray_opt.tracking.run import PLACES, PREDICTIONS, TEST_PREDICTIONS


def outgoing_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with the kind alone of what went wrong: its words may name films."""
    return {key: value.partition(":")[0] if key == "error" else value for key, value in tags.items()}


def outgoing_params(params: Mapping[str, str]) -> dict[str, str]:
    """Params with file names in place of paths."""
    return {key: Path(value).name if key in PLACES else value for key, value in params.items()}


def outgoing_inputs(inputs: Iterable[DatasetInput]) -> list[DatasetInput]:
    """Data sets by their digests, without the folder that they lie in."""
    return [DatasetInput(_without_root(item.dataset), item.tags) for item in inputs]


def _without_root(dataset: Dataset) -> Dataset:
    source = {key: value for key, value in json.loads(dataset.source).items() if key != "root"}
    return Dataset(dataset.name, dataset.digest, "pseudonymised", json.dumps(source), dataset.schema, dataset.profile)


def outgoing_files(folder: Path, source: Connection, target: Connection) -> None:
    """Put pseudonyms in place of film names in a copy of a run's artifacts; the salt is the source's workspace's."""
    here = replace(target, workspace=source.workspace)
    for name in (PREDICTIONS, TEST_PREDICTIONS):
        if (predictions := folder / name).is_file():
            predictions.write_text(_pseudonymised(predictions, Pseudonyms(source.workspace)), encoding="utf-8")
    if (manifest := folder / MANIFEST_FILE).is_file():
        manifest_files(Manifest.load(manifest), here, manifest.parent)
        manifest.unlink()


def outgoing_name(path: str) -> str:
    """The name of an artifact after ``outgoing_files``."""
    return PSEUDONYMISED_FILE if path == MANIFEST_FILE else path


def _pseudonymised(predictions: Path, names: Pseudonyms) -> str:
    text = io.StringIO(newline="")
    with predictions.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.reader(file)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(next(rows))
        writer.writerows([names.film(film), *others] for film, *others in rows)
    return text.getvalue()
