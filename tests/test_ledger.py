"""Room ledger: looks are kept for good, found by any of their films, and told in words."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from xray_opt.config import Workspace
from xray_opt.errors import DataError
from xray_opt.ledger import KEY, Look, film_key, looks_at, note, noted, one_at_a_time, packed, unpacked


def look(number: int, *films: str, **more: object) -> Look:
    when = f"2026-01-{number:02d}T00:00:00.000+00:00"
    return Look("ada", when, "because", "finalize", "one", number, f"{number:032x}", "here", tuple(films), **more)


def key(number: int) -> str:
    return film_key(f"{number:064x}")


def test_a_look_is_written_for_good_and_found_by_any_of_its_films(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first, second = look(1, key(1), key(2)), look(2, key(3))
    for one in (second, first, replace(first, why="told otherwise")):
        note(workspace, one)
    assert sorted(noted(workspace), key=lambda one: one.when) == [first, second]
    assert looks_at([key(2), key(9)], noted(workspace)) == (first,)
    assert looks_at([key(1), key(3)], noted(workspace)) == (first, second)
    assert looks_at([key(9)], noted(workspace)) == ()


def test_of_one_look_that_several_tell_of_the_first_word_counts(tmp_path: Path) -> None:
    first = look(1, key(1))
    moved = replace(first, run="elsewhere", films=(key(1), key(2)))
    assert looks_at([key(1)], [first], [moved, look(2, key(1))]) == (first, look(2, key(1)))


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    numbers = (*range(1, 25), *range(1, 25))
    threads = [threading.Thread(target=note, args=(workspace, look(number, key(number)))) for number in numbers]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [one.trial for one in looks_at([key(n) for n in range(30)], noted(workspace))] == list(range(1, 25))
    assert not list(workspace.openings.glob(".*"))


def test_a_damaged_record_is_not_forgotten(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    note(workspace, look(1, key(1)))
    next(workspace.openings.iterdir()).write_text("{")
    with pytest.raises(DataError, match="the record of an opening"):
        list(noted(workspace))


def test_keys_are_of_the_content_and_a_sketch_of_them_finds_what_is_shared() -> None:
    assert len(key(1)) == KEY
    assert key(1) != key(2)
    ours, theirs = {key(n) for n in range(2000)}, {key(n) for n in range(1000, 3000)}
    sketch = unpacked(packed(ours, 600))
    assert len(sketch) == 600
    assert sketch <= ours
    assert not sketch.isdisjoint(theirs)
    assert sketch.isdisjoint({key(n) for n in range(2000, 4000)})
    assert unpacked(packed([key(1)], 600)) == {key(1)}


def test_a_look_names_whose_model_it_was_for() -> None:
    assert look(3).model() == f"trial 3 of study one, runs:/{3:032x}"
    assert Look("a", "b", "c", "d").model() == "a model without a study"
    assert look(2).text() == f"2026-01-02T00:00:00 by ada at here (finalize) for trial 2 of study one, runs:/{2:032x}"
    assert replace(look(2), host="", run="", study="", trial=None).text() == (
        "2026-01-02T00:00:00 by ada (finalize) for a model without a study"
    )


def test_who_asks_and_then_looks_does_so_alone(tmp_path: Path) -> None:
    """Of many that open only what nobody opened before, one does."""
    workspace, opened = Workspace(tmp_path), []

    def first(number: int) -> None:
        with one_at_a_time(workspace):
            if not looks_at([key(0)], noted(workspace)):
                time.sleep(0.05)
                note(workspace, look(number, key(0)))
                opened.append(number)

    threads = [threading.Thread(target=first, args=(number,)) for number in range(1, 9)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(opened) == len(list(noted(workspace))) == 1
