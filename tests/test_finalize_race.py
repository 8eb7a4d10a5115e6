"""Two hosts that finalize at the same moment: they share a study's storage and an MLflow store, and no folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import STUDY, make_place
from postgres_server import postgres

from xray_opt.config import Workspace
from xray_opt.errors import ConfigError
from xray_opt.finalize import Final, finalize, finalizing
from xray_opt.leaderboard import Opening, openings
from xray_opt.places import Place
from xray_opt.scoring import opening
from xray_opt.tuning import read_study

pytestmark = pytest.mark.slow
SMALL = ("--set", "training.epochs=1")


@dataclass
class Hosts:
    """Two workspaces, where the films lie, what the hosts share, and the runs of two trials."""

    workspaces: list[Workspace]
    films: str
    shared: Place
    runs: list[str]

    def finalize(self, runs: list[str], again: bool = False) -> tuple[list[Final | ConfigError], list[list[str]]]:
        """What each host got for its model, and was told, both at once."""
        found: list[Final | ConfigError | None] = [None, None]
        told: list[list[str]] = [[], []]

        def one(host: int) -> None:
            try:
                found[host] = finalize(
                    f"runs:/{runs[host]}",
                    self.workspaces[host],
                    self.films,
                    again=again,
                    device="cpu",
                    place=self.shared,
                    say=told[host].append,
                )
            except ConfigError as error:
                found[host] = error

        threads = [threading.Thread(target=one, args=(host,)) for host in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [one for one in found if one is not None], told

    def openings(self) -> list[Opening]:
        return openings(read_study("tiny", self.workspaces[0], self.shared.storage))


@pytest.fixture(params=["sqlite", "postgresql"])
def hosts(request, tmp_path: Path) -> Iterator[Hosts]:
    place = make_place(tmp_path / "home")
    with nullcontext() if request.param == "sqlite" else postgres() as server:
        url = server.database("race") if server else f"sqlite:///{place.workspace.root}/shared.db"
        (place.workspace.studies / "tiny.yaml").write_text(f"{STUDY}\nstorage: {url}\n")
        place.json("tune", "--study", "tiny", "--trials", "2", *SMALL)
        runs = [str(trial.notes["mlflow_run"]) for trial in read_study("tiny", place.workspace, url).trials]
        both = [Workspace(tmp_path / name) for name in ("one", "other")]
        yield Hosts(both, str(place.films), Place("tiny", url, place.workspace.mlflow_uri), runs)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has asked who looked goes on only when the other one has come to that point, or waits before it."""
    arrivals, deadline = [], time.monotonic() + 300  # one that fails before must not keep the other one
    asked, turns = finalizing._refuse_others, opening.one_after_another

    @contextmanager
    def coming(*arguments: object) -> Iterator[None]:
        arrivals.append(arguments)
        with turns(*arguments):
            yield

    def asking(*arguments: object) -> None:
        asked(*arguments)
        while len(arrivals) % 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)

    monkeypatch.setattr(opening, "one_after_another", coming)
    monkeypatch.setattr(finalizing, "_refuse_others", asking)


def test_of_two_hosts_one_opens_the_test_and_the_other_one_learns_of_it(hosts: Hosts, at_once: None) -> None:
    found, _ = hosts.finalize(hosts.runs)
    (final,) = (one for one in found if isinstance(one, Final))
    (refused,) = (one for one in found if isinstance(one, ConfigError))
    assert (final.openings, final.looks, final.others) == (1, 1, ())
    assert f"runs:/{final.run}" in str(refused)
    assert "what the seal prevents" in str(refused)
    assert [(one.run, one.by) for one in hosts.openings()] == [(final.run, "finalize")]

    # The same model on both hosts: one opening, which the other one goes on with.
    both, told = hosts.finalize([final.run, final.run], again=True)
    assert [one.openings for one in both if isinstance(one, Final)] == [2, 2]
    assert len(hosts.openings()) == 2
    assert sum("going on with the opening" in line for lines in told for line in lines) == 1
