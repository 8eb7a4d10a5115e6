"""Looks at test films among the tags of runs: who shares an MLflow server learns of those on other machines."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from xray_opt.ledger import Look, packed, unpacked
from xray_opt.mlflow_client import PARENT_RUN, Connection, speaking
from xray_opt.tracking.cleanup import runs_everywhere
from xray_opt.tracking.data import MANIFEST_FILE, TEST_FILMS_FILE
from xray_opt.tracking.ending import LONGEST_TAG

#: Tag of a run whose model saw test films, by which it is found; of older runs with the last look's films.
FILMS = "xray_opt.test_films"
#: What the tags of each look start with, and those of its films' keys; both end on when it was and by what.
LOOK, LOOK_FILMS = "xray_opt.look.", "xray_opt.look_films."
#: MLflow keeps 8,000 characters of a tag.
MOST_FILMS = 600


def tag_look(connection: Connection, run_id: str, look: Look) -> None:
    """Tell MLflow of a look at test films by the model of a run."""
    told = replace(look, why=look.why[:LONGEST_TAG]).to_dict()
    text = json.dumps({name: value for name, value in told.items() if name != "films"})
    name = re.sub(r"\D", "", look.when)[:20] + "." + look.by
    with speaking(connection.uri, f"note the opening of the test split at the run {run_id}"):
        if FILMS not in connection.client.get_run(run_id).data.tags:  # else it may hold the films of an older look
            connection.client.set_tag(run_id, FILMS, "seen")
        connection.client.set_tag(run_id, LOOK_FILMS + name, packed(look.films, MOST_FILMS))
        connection.client.set_tag(run_id, LOOK + name, text)


def run_looks(connection: Connection) -> list[Look]:
    """Every look that a run of the store tells of, whatever its study; of deleted runs as long as MLflow has them."""
    with speaking(connection.uri, "look for openings of test films"):
        runs = [run.data.tags for run in runs_everywhere(connection, f"tags.`{FILMS}` LIKE '%'")]
    return [look for tags in runs for look in _looks(tags)]


def _looks(tags: dict[str, str]) -> Iterator[Look]:
    for name in sorted(tags):
        if name.startswith(LOOK):
            films = tuple(sorted(unpacked(tags.get(LOOK_FILMS + name.removeprefix(LOOK), tags[FILMS]))))
            with suppress(ValueError, LookupError, TypeError):  # of another version, or not ours
                yield Look.from_dict(_plain(json.loads(tags[name])) | {"films": films})


def _plain(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in ("who", "when", "by")):
        raise ValueError("this is no look")
    return values


def noted_test_films(connection: Connection, run_id: str) -> frozenset[str]:
    """Keys of the test films of a run or of its study, where the store has them without a manifest."""
    with speaking(connection.uri, f"look for the test films of the run {run_id}"):
        parent = connection.client.get_run(run_id).data.tags.get(PARENT_RUN)
        for one in filter(None, (run_id, parent)):
            names = {item.path for item in connection.client.list_artifacts(one, "data")}
            if TEST_FILMS_FILE in names and MANIFEST_FILE not in names:
                return unpacked(_text(connection, one).replace("\n", ""))
    return frozenset()


def _text(connection: Connection, run_id: str) -> str:
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        return Path(connection.client.download_artifacts(run_id, TEST_FILMS_FILE, folder)).read_text(encoding="ascii")
