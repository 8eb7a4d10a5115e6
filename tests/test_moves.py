"""Moves of the champion: on, back, further back, by two at once; what is written down, and what a kill leaves."""

from __future__ import annotations

import json
import threading
import uuid

import pytest
from mlflow_stores import blank_versions, embedded

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import Connection
from xray_opt.registry import moves as room
from xray_opt.registry import promote, read_state, rollback
from xray_opt.registry.moves import MOVE, Move, claim, standing
from xray_opt.registry.versions import settle_alias


@pytest.fixture
def name() -> str:
    return f"model-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads follow each other at once: no test waits for others."""
    monkeypatch.setattr(room, "PAUSE", 0.0)


def champion(connection: Connection, name: str) -> str | None:
    return read_state(connection, name).champion


def promoted(connection: Connection, name: str, count: int) -> None:
    """``count`` versions that were champion one after the other."""
    first, *others = blank_versions(connection, name, count)
    settle_alias(connection, first)
    for one in others:
        promote(connection, name, one.version, f"better than {int(one.version) - 1}")


def test_a_rollback_gives_the_champion_back_and_another_one_goes_further(
    connection: Connection, name: str, quick: None
) -> None:
    promoted(connection, name, 3)
    back = rollback(connection, name, why="flips on re-compressed films")
    assert back.old is not None
    assert (back.old.version, back.new.version, back.meanwhile) == ("3", "2", ())
    assert champion(connection, name) == "2"
    assert rollback(connection, name).new.version == "1"
    with pytest.raises(TrackingError, match="name one with --to VERSION"):
        rollback(connection, name)
    assert champion(connection, name) == "1"

    promote(connection, name, "3")
    assert rollback(connection, name).new.version == "1", "what was rolled back from does not come back"


def test_every_move_is_written_down_with_who_when_why_and_evidence(tmp_path, name: str, quick: None) -> None:
    connection = embedded(tmp_path)
    first, second = blank_versions(connection, name, 2)
    settle_alias(connection, first)
    tags = {"val.f1": "0.9", "confirmed.f1": "0.88", "test.auc": "0.97 (0.95 to 0.98)", "robust.val.worst": "cut"}
    tags["xray_opt.study"] = "s"
    for key, value in tags.items():
        connection.client.set_model_version_tag(name, second.version, key, value)
    promote(connection, name, "2", "two\nlines")
    rollback(connection, name, why="a bad day")
    on, back = read_state(connection, name).moves.values()
    assert (on.version, on.by, on.why, on.found) == ("2", "promote", "two lines", "1")
    assert on.evidence == {key: value for key, value in tags.items() if key != "xray_opt.study"}
    assert (back.version, back.by, back.why, back.found) == ("1", "rollback", "a bad day", None)
    assert on.who
    assert on.when.endswith("+00:00")
    stored = connection.client.get_model_version(name, "1").tags["xray_opt.moved"]
    assert stored == f"{back.when} rollback by {back.who}: a bad day"
    assert "promote by" in connection.client.get_model_version(name, "2").tags["xray_opt.moved"]


def test_rollback_to_a_version_and_what_it_refuses(tmp_path, name: str, quick: None) -> None:
    connection = embedded(tmp_path)
    with pytest.raises(TrackingError, match="no champion to take back"):
        rollback(connection, name)
    promoted(connection, name, 4)
    assert rollback(connection, name, "2").new.version == "2"
    assert rollback(connection, name).new.version == "1"
    for wrong, words in (("9", "has no version 9"), ("x", "has no version x"), ("1", "is the champion already")):
        with pytest.raises(TrackingError, match=words):
            rollback(connection, name, wrong)
    assert champion(connection, name) == "1"


def test_a_version_that_was_deleted_is_passed_over(tmp_path, name: str, quick: None) -> None:
    connection = embedded(tmp_path)
    promoted(connection, name, 3)
    connection.client.delete_model_version(name, "2")
    assert rollback(connection, name).new.version == "1"


def test_a_champion_moved_by_hand_is_known_all_the_same(tmp_path, name: str, quick: None) -> None:
    connection = embedded(tmp_path)
    promoted(connection, name, 2)
    blank = blank_version(connection, name)
    connection.client.set_registered_model_alias(name, "champion", blank)
    assert read_state(connection, name).standing == ["1", "2", blank]
    assert rollback(connection, name).new.version == "2"
    connection.client.set_registered_model_alias(name, "champion", blank)
    promote(connection, name, "1")
    assert rollback(connection, name).new.version == blank


def blank_version(connection: Connection, name: str) -> str:
    one = connection.client.get_model_version(name, "1")
    return str(connection.client.create_model_version(name, one.source, one.run_id).version)


def test_a_rolled_back_version_becomes_no_candidate_again(tmp_path, name: str, quick: None) -> None:
    connection = embedded(tmp_path)
    promoted(connection, name, 2)
    (second,) = (one for one in connection.client.search_model_versions(f"name='{name}'") if str(one.version) == "2")
    rollback(connection, name)
    settle_alias(connection, room_version(second))
    assert read_state(connection, name).aliases == {"champion": "1"}


def room_version(one):
    from xray_opt.registry.versions import as_version

    return as_version(one)


def test_a_kill_between_record_and_alias_is_mended_by_the_next_call(
    tmp_path, name: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = embedded(tmp_path)
    promoted(connection, name, 3)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "_settle", killed)
        with pytest.raises(KeyboardInterrupt):
            rollback(connection, name)
    assert champion(connection, name) == "3"
    assert rollback(connection, name).new.version == "2"
    assert rollback(connection, name).new.version == "1"


def together(*calls) -> list[object]:
    """What each call gave or raised, all started at once."""
    start, found = threading.Barrier(len(calls)), [None] * len(calls)

    def run(place: int) -> None:
        start.wait()
        try:
            found[place] = calls[place]()
        except TrackingError as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_rollbacks_at_once_agree(connection: Connection, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have decided before the first one writes: they go back one step together."""
    promoted(connection, name, 3)
    decided = threading.Barrier(3)
    original = room._next_tag

    def after_all(state):
        decided.wait()
        return original(state)

    monkeypatch.setattr(room, "_next_tag", after_all)
    found = together(*[lambda: rollback(connection, name)] * 3)
    assert [one.new.version for one in found] == ["2", "2", "2"]
    assert champion(connection, name) == "2"
    assert read_state(connection, name).standing == ["1", "2"]
    assert all(len(one.meanwhile) <= 2 for one in found)


def test_a_promotion_and_a_rollback_at_once_leave_one_champion_and_both_know_it(
    connection: Connection, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(connection, name, 3)
    fourth = blank_version(connection, name)
    decided = threading.Barrier(2)
    original = room._next_tag

    def after_both(state):
        decided.wait()
        return original(state)

    monkeypatch.setattr(room, "_next_tag", after_both)
    on, back = together(lambda: promote(connection, name, fourth), lambda: rollback(connection, name))
    state = read_state(connection, name)
    assert state.last is not None
    assert state.champion == state.last.version
    assert state.champion in (fourth, "2")
    for one, version in ((on, fourth), (back, "2")):
        if isinstance(one, TrackingError):
            assert state.champion != version
            assert f"made version {state.champion} of {name} the champion at the same time" in str(one)
        else:
            assert state.champion == version
    assert read_state(connection, name).standing == (["1", "2", fourth] if state.champion == fourth else ["1", "2"])


def test_who_moves_behind_ones_back_is_told(tmp_path, name: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided on version 3, but before the move is written somebody promotes version 4."""
    connection = embedded(tmp_path)
    promoted(connection, name, 3)
    fourth = blank_version(connection, name)
    original = room._next_tag

    def late(state):
        monkeypatch.setattr(room, "_next_tag", original)
        promote(connection, name, fourth, "meanwhile")
        return original(read_state(connection, name))

    monkeypatch.setattr(room, "_next_tag", late)
    back = rollback(connection, name)
    assert [(one.version, one.why) for one in back.meanwhile] == [(fourth, "meanwhile")]
    assert champion(connection, name) == "2"


def test_foreign_tags_are_no_moves(tmp_path, name: str, quick: None) -> None:
    connection = embedded(tmp_path)
    promoted(connection, name, 2)
    odd = {"000001.zzzzzzzz": "{}", "000009.00000000": "not json", "000008.11111111": "[1]", "note": "x"}
    odd["000007.22222222"] = json.dumps({"version": 3})
    odd["000006.33333333"] = json.dumps({"version": "x", "who": "", "when": "", "why": "", "by": "", "found": None})
    for tag, text in odd.items():
        connection.client.set_registered_model_tag(name, MOVE + tag, text)
    assert len(read_state(connection, name).moves) == 1
    assert rollback(connection, name).new.version == "1"


def test_an_alias_that_keeps_changing_is_one_line(
    tmp_path, name: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = embedded(tmp_path)
    promoted(connection, name, 2)
    monkeypatch.setattr(room, "claim", lambda *_: None)
    with pytest.raises(TrackingError, match="keep changing"):
        rollback(connection, name)


@pytest.mark.parametrize(
    ("moves", "champion", "left"),
    [
        ([], None, []),
        ([], "1", ["1"]),
        ([("promote", "2", "1")], "2", ["1", "2"]),
        ([("promote", "2", "1"), ("promote", "1", None)], "1", ["1", "2", "1"]),
        ([("promote", "2", "1"), ("rollback", "1", None)], "1", ["1"]),
        ([("promote", "2", "1"), ("rollback", "1", None), ("rollback", "1", None)], "1", ["1"]),
        ([("promote", "2", "1"), ("rollback", "7", None)], "7", ["1", "2", "7"]),
        ([("promote", "2", "1")], "5", ["1", "2", "5"]),
    ],
)
def test_what_stands(moves, champion, left) -> None:
    made = [Move(version, "me", "now", "", by, found) for by, version, found in moves]
    assert standing(made, champion) == left


def test_claim_raises_what_is_no_race(tmp_path, name: str) -> None:
    connection = embedded(tmp_path)
    blank_versions(connection, name, 1)
    with pytest.raises(Exception, match="7"):
        claim(connection, name, "champion", "7")


def test_the_commands(tuned) -> None:
    place, _, _ = tuned
    assert "no move of the champion" in place.run("rollback", "--history", "--name", "nothing").stdout
    for arguments, words in (
        (["rollback", "--name", "nothing"], "no champion to take back"),
        (["rollback", "--to", "99"], "has no version 99"),
    ):
        done = place.run(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (7, 1)
        assert words in done.stderr


@pytest.mark.slow
def test_promote_and_rollback_as_a_user_types_them(tmp_path) -> None:
    from conftest import Place

    from xray_opt.config import Workspace

    connection = embedded(tmp_path)
    first, _ = blank_versions(connection, "xray-pneumonia", 2)
    settle_alias(connection, first)
    place = Place(Workspace(connection.workspace.root), tmp_path)
    moved = place.json("promote", "--version", "2", "--why", "confirmed")
    assert (moved["old"]["version"], moved["new"]["version"]) == ("1", "2")
    shown = place.run("rollback", "--why", "flips")
    assert shown.returncode == 0, shown.stderr
    assert "champion: xray-pneumonia version 1, in place of version 2" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    history = place.json("rollback", "--history")
    assert [(one["by"], one["version"], one["why"]) for one in history] == [
        ("promote", "2", "confirmed"),
        ("rollback", "1", "flips"),
    ]
    assert "flips" in place.run("rollback", "--history").stdout
