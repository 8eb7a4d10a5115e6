"""The whole way of a claim on made-up films, as docs/results.md goes it on real ones: each command finds what the one
before has left, and all of them tell the same of one model."""

import json
from pathlib import Path

import pytest
from conftest import make_place
from test_confirm import LUCKY

from xray_opt.config import TrackingConfig
from xray_opt.leaderboard import openings
from xray_opt.mlflow_client import connect
from xray_opt.phantom import make_phantoms
from xray_opt.tuning import read_study

MODEL = "xray-pneumonia"
#: Options of every command that trains.
OURS = ("--study", "chain", "--data", "more", "--device", "cpu")


@pytest.mark.slow
def test_from_films_to_a_champion_that_answers(tmp_path):
    place = make_place(tmp_path / "own")
    films = place.workspace.root / "more"
    make_phantoms(films, 90, 3)
    (place.workspace.studies / "chain.yaml").write_text(LUCKY.replace("name: lucky", "name: chain"))
    client = connect(TrackingConfig(), place.workspace).client

    tuned = place.json("tune", *OURS, "--trials", "2")
    assert (tuned["complete"], tuned["failed"]) == (2, 0)
    verdict = place.json("confirm", *OURS, "--top", "2", "--seeds", "2", "--promote")
    assert verdict["winner"] == 0, "the other one's loss hardly weighs pneumonia"
    champion = client.get_model_version_by_alias(MODEL, "champion")
    confirmed = client.get_run(champion.run_id).data.tags
    assert confirmed["xray_opt.confirms"] == "0"

    final = place.json("finalize", "--robustness", "--why", "chosen by confirm", "--data", "more", "--device", "cpu")
    assert final["run"] == champion.run_id
    rivals = place.json("baseline", *OURS, "--seeds", "2", "--rates", "1")
    tested = place.json("baseline", *OURS, "--seeds", "2", "--rates", "1", "--split", "test")
    assert {row["key"] for row in rivals["rows"]} == {row["key"] for row in tested["rows"]}
    assert {"lora", "linear", "full", "file metadata", "16×16 thumbnail"} <= {row["key"] for row in rivals["rows"]}
    looks = openings(read_study("chain", place.workspace))
    assert [look.by for look in looks] == ["finalize", "baseline"]

    sheet = place.json("explain", "--out", "sheet", "--worst", "2", "--data", "more", "--device", "cpu")
    assert sheet
    made = place.json("report", "chain")
    page, card = Path(made["page"]).read_text(), Path(made["card"]).read_text()
    for section in ("confirmation-confirmed-", "test-roc-curve", "rivals"):
        assert f'id="{section}' in page
    assert f"{final['headline']['value']:+.4f}" in page
    assert f"trial {final['trial']}" in card

    place.json("rollback", "--why", "to see the one before")
    assert client.get_model_version_by_alias(MODEL, "champion").version != champion.version
    moved = place.run("promote", "--version", str(champion.version), "--why", "the chain")
    assert (moved.returncode, max(map(len, moved.stdout.splitlines())) <= 80) == (0, True), moved.stderr
    worst = client.get_model_version(MODEL, champion.version).tags["robust.test.worst"]
    assert f"worst case of changed test films: {worst}" in moved.stdout.replace("\n  ", " ")
    last = json.loads(place.run("rollback", "--history", "--json").stdout)[-1]
    assert last["evidence"]["robust.test.worst"] == worst
    assert client.get_model_version_by_alias(MODEL, "champion").version == champion.version
    assert client.get_model_version(MODEL, champion.version).tags["xray_opt.report"] == made["logged"]
    film = next((films / "test" / "PNEUMONIA").iterdir())
    (answer,) = place.json("predict", str(film), "--device", "cpu")
    assert 0 <= answer["probability"] <= 1
    kept = Path(client.download_artifacts(champion.run_id, "finalize.json")).read_text()
    assert json.loads(kept)["headline"] == final["headline"]
