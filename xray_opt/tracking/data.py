"""How a manifest is told to MLflow: as dataset inputs, and as a table without names where the store is remote."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag

from xray_opt.dataset import Manifest, Pseudonyms
from xray_opt.ledger import held_out_keys
from xray_opt.mlflow_client import PARENT_RUN, Connection, speaking

#: Tag with the digest of the split.
MANIFEST = "xray_opt.manifest_sha256"
#: MLflow stores so many characters of a digest.
DIGEST = 36
MANIFEST_FILE, PSEUDONYMISED_FILE = "data/manifest.csv", "data/manifest-pseudonymised.csv"
#: Keys of the test films, where a store gets no manifest: they are known again whatever they are called.
TEST_FILMS_FILE = "data/test-films.txt"
CONTEXTS = {"train": "training", "val": "validation"}


def data_tags(manifest: Manifest) -> dict[str, str]:
    """Tags of study, runs and versions: the digest of the split, and that of the films whatever their split."""
    return {MANIFEST: manifest.sha256, "xray_opt.data_sha256": manifest.data_sha256}


def dataset_inputs(manifest: Manifest, local: bool) -> list[DatasetInput]:
    """Training and validation films as inputs with digest and counts; the sealed test split is no input."""
    source = {"manifest_sha256": manifest.sha256, "data_sha256": manifest.data_sha256}
    if local:
        source["root"] = manifest.root
    inputs = []
    for split, context in CONTEXTS.items():
        films = manifest.of(split)
        profile = {
            "films": len(films),
            "patient_groups": len({film.group for film in films}),
            manifest.classes[1].lower(): sum(film.label for film in films),
        }
        dataset = Dataset(
            name=f"chest-films-{split}",
            digest=manifest.sha256[:DIGEST],
            source_type="local" if local else "pseudonymised",
            source=json.dumps(source),
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs


def manifest_files(manifest: Manifest, connection: Connection, folder: Path) -> None:
    """Write what goes with the parent run: the manifest itself, or its table under pseudonyms."""
    if connection.local:
        manifest.save(folder).rename(folder / "manifest.csv")
        return
    films_file(manifest, folder)
    names = Pseudonyms(connection.workspace)
    with open(folder / Path(PSEUDONYMISED_FILE).name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["film", "patient", "group", "label", "subtype", "split", "bytes", "width", "height", "mode"])
        for film in manifest.films:
            who = [names.film(film.path), names.patient(film.patient), names.patient(film.group)]
            facts = [film.label, film.subtype, film.split, film.bytes, film.width, film.height, film.mode]
            writer.writerow([*who, *facts])


def films_file(manifest: Manifest, folder: Path) -> Path:
    """Write the keys of a manifest's test films, a line each, into ``folder``."""
    path = folder / Path(TEST_FILMS_FILE).name
    path.write_text("".join(f"{key}\n" for key in sorted(held_out_keys(manifest))), encoding="ascii")
    return path


def study_manifest(connection: Connection, run_id: str, folder: Path) -> Path | None:
    """The manifest that the study of a run keeps, copied into ``folder``; none for a run without study, and where the
    store got pseudonyms instead."""
    with speaking(connection.uri, f"look for the manifest of the run {run_id}"):
        parent = connection.client.get_run(run_id).data.tags.get(PARENT_RUN)
        names = {item.path for item in connection.client.list_artifacts(parent, "data")} if parent else set()
        if MANIFEST_FILE not in names:
            return None
        return Path(connection.client.download_artifacts(str(parent), MANIFEST_FILE, str(folder)))
