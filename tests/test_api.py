"""The public names of the Python API, pinned."""

import pickle

from xray_opt import api

NAMES = {
    "Config", "StudyConfig", "StudyWatcher", "TrainWatcher", "Workspace", "Place", "audit", "baseline",
    "champion_moves", "collect_garbage", "confirm", "delete_whole_study", "diagnose", "evaluate", "explain", "export",
    "export_base", "finalize",
    "find_place", "find_study", "leaderboard", "load_study", "make_phantoms", "migrate", "override", "predict",
    "prepared", "promote", "report", "reproduce", "rollback", "serve",
    "shortcut_screen", "train", "tune",
}  # fmt: skip


def test_public_names_are_these():
    assert set(api.__all__) == NAMES
    assert all(getattr(api, name).__doc__ for name in NAMES)


def test_the_docstring_names_every_verb():
    verbs = {name for name in NAMES if name[0].islower()} - {"find_study", "load_study", "override"}
    assert all(f"``{verb}``" in api.__doc__ for verb in verbs)


def test_the_verbs_work_on_a_workspace(tuned):
    place, report, _ = tuned
    board = api.leaderboard("tiny", place.workspace)
    assert board.trials[0].number == report["best"]["trial"]
    film = next((place.films / "val" / "NORMAL").iterdir())
    found = api.predict([film], "models:/xray-pneumonia@champion", place.workspace)
    assert (len(found.films), found.refused) == (1, ())
    assert [one.films for one in found.patients()] == [1]


def test_the_verbs_can_be_given_to_a_process_pool():
    for name in NAMES:
        verb = getattr(api, name)
        assert pickle.loads(pickle.dumps(verb)) is verb
