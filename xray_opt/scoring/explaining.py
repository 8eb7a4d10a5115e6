"""Sheets of heat maps: for films that are named, and for those of a split that a model is most wrong about."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.calibration import logit, probability
from xray_opt.config import Workspace
from xray_opt.dataset import Pseudonyms, decode, to_square
from xray_opt.errors import BadFilm, ConfigError, DataError
from xray_opt.explain import Cell, grad_cam, sheet, shown, towards
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import Place
from xray_opt.scoring.evaluating import cases_of
from xray_opt.scoring.film_files import film_files
from xray_opt.scoring.levels import levels
from xray_opt.scoring.outside import NOT_ELSEWHERE, Elsewhere
from xray_opt.scoring.selecting import Selection, select
from xray_opt.tracking import log_run_file

#: Films on one sheet at most, and how many of the worst where nothing is said.
MOST, USUAL = 64, 8
SHEET, TABLE = "explain.png", "explain.csv"
HEADS = (
    "Bright: what speaks for the answer that was given",
    "(Grad-CAM of the last convolution).",
    "Not for clinical use.",
)


@dataclass(frozen=True)
class Explained:
    """One film of a sheet; ``label`` is none for films that were named."""

    path: str
    probability: float
    threshold: float
    answer: str
    label: str | None


@dataclass(frozen=True)
class Explanation:
    """A sheet that was written, and its films in order; ``wrong`` of them have another label than answer.

    ``left_out``, ``own_known`` and ``looks`` are those of ``Evaluation``.
    """

    films: tuple[Explained, ...]
    wrong: int
    sheet: Path
    table: Path
    left_out: Mapping[str, int] = field(default_factory=dict)
    own_known: bool = True
    looks: int | None = None


@dataclass(frozen=True)
class _Asked:
    """A model with the films that are to be shown: where they lie, and their labels where known."""

    loaded: registry.Loaded
    connection: Connection
    threshold: float
    films: tuple[tuple[Path, str | None], ...]
    chosen: Selection | None = None


def explain(
    model: str,
    workspace: Workspace,
    out: Path,
    films: Iterable[Path] = (),
    split: str = "val",
    worst: int | None = None,
    data: str | None = None,
    why: str | None = None,
    device: str = "auto",
    place: Place = Place(),
    sensitivity: float | None = None,
    elsewhere: Elsewhere = Elsewhere(),
) -> Explanation:
    """Write a sheet of films with heat maps, and a table of them, into the new folder ``out``; log the sheet.

    Args:
        films: files and folders to show.
        split: where to look for the films that the model is most wrong about; see ``evaluate``.
        worst: how many of them; none means 8 where no films are named, and else 0.
        why: the reason for opening ``test`` or sealed films of another folder, which is recorded.
        elsewhere: with the split ``all``, how that folder is read.

    Raises:
        ConfigError: nothing or too much to show, ``out`` exists, or as ``evaluate``.
        DataError: a film cannot be read.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; name a new folder with --out")
    named = [(path, None) for path in film_files(films)]
    count = (0 if named else USUAL) if worst is None else worst
    if not 1 <= len(named) + count <= MOST:
        raise ConfigError(f"a sheet shows 1 to {MOST} films, not {len(named) + count}")
    if count:
        asked = _worst(model, workspace, split, count, data, why, device, place, sensitivity, elsewhere)
    elif elsewhere != Elsewhere():
        raise ConfigError(NOT_ELSEWHERE)
    else:
        connection = connect(place.tracking(workspace), workspace)
        loaded = registry.load(connection, model, resolve_device(device))
        asked = _Asked(loaded, connection, loaded.bundle.threshold_for(sensitivity), ())
    rows, cells = _explained(asked.loaded, asked.threshold, (*named, *asked.films))
    written = _write(rows, cells, out, lambda path: path, lambda _, path: Path(path).name)
    if asked.loaded.run_id:
        _log(asked, rows, cells, split if count else "films", workspace)
    wrong = sum(row.label not in (None, row.answer) for row in rows)
    if (chosen := asked.chosen) is None:
        return Explanation(tuple(rows), wrong, *written)
    return Explanation(tuple(rows), wrong, *written, chosen.left_out, chosen.own_known, chosen.looks)


def picture_each(loaded: registry.Loaded, threshold: float, films: Sequence[Path], folder: Path) -> list[Path]:
    """Write a picture of each film with its heat map into the new folder; returns the files in order.

    Raises:
        DataError: a film cannot be read, or a file not written.
    """
    written = []
    for number, path in enumerate(films):
        (row,), (cell,) = _explained(loaded, threshold, ((path, None),))
        page = sheet([Cell(cell.film, cell.heat, (path.name, _caption(row)))], HEADS)
        written.append(folder / f"{number + 1:04d}-{path.stem[:80]}.png")
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            page.save(written[-1])
    return written


def _worst(
    model: str,
    workspace: Workspace,
    split: str,
    count: int,
    data: str | None,
    why: str | None,
    device: str,
    place: Place,
    sensitivity: float | None,
    elsewhere: Elsewhere,
) -> _Asked:
    """The films farthest on the wrong side of the threshold; behind them the least sure ones."""
    chosen = select(model, split, workspace, data, why, device, place, sensitivity, elsewhere)
    cases = cases_of(chosen.loaded, chosen.manifest, chosen.films)
    chosen.end(levels(cases, chosen.threshold)[0].values("test"))
    beyond = logit(cases.films.probabilities) - float(logit(np.array([chosen.threshold]))[0])
    order = np.argsort(beyond * (2 * cases.films.labels - 1), kind="stable")[:count]
    classes = chosen.loaded.bundle.classes
    films = tuple((chosen.paths[place], classes[chosen.films[place].label]) for place in order)
    return _Asked(chosen.loaded, chosen.connection, chosen.threshold, films, chosen)


def _explained(
    loaded: registry.Loaded, threshold: float, films: Sequence[tuple[Path, str | None]]
) -> tuple[list[Explained], list[Cell]]:
    predictor, bundle = loaded.predictor, loaded.bundle
    pictures, squares = [], []
    for path, _ in films:
        try:
            native = decode(path)
        except BadFilm as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        pictures.append(shown(native))
        squares.append(to_square(native, bundle.cache_side))
    logits, maps = grad_cam(predictor.network, np.stack(squares), bundle.image_size, predictor.device)
    probabilities = probability(logits, bundle.temperature)
    called = (probabilities >= threshold).astype(np.int64)
    rows = [
        Explained(str(path), float(value), threshold, bundle.classes[answer], label)
        for (path, label), value, answer in zip(films, probabilities, called, strict=True)
    ]
    heat = towards(maps, 2 * called - 1)
    return rows, [Cell(picture, own, ()) for picture, own in zip(pictures, heat, strict=True)]


def _write(
    rows: Sequence[Explained],
    cells: Sequence[Cell],
    folder: Path,
    name: Callable[[str], str],
    title: Callable[[int, str], str],
) -> tuple[Path, Path]:
    """The sheet, films under the ``title`` made of number and path, and its table, under the ``name`` made of paths."""
    captions = [(title(number, row.path), _caption(row)) for number, row in enumerate(rows, start=1)]
    page = sheet([Cell(cell.film, cell.heat, lines) for cell, lines in zip(cells, captions, strict=True)], HEADS)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) | {"path": name(row.path)} for row in rows)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        page.save(folder / SHEET)
        (folder / TABLE).write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
    return folder / SHEET, folder / TABLE


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}; name another folder") from error


def _caption(row: Explained) -> str:
    text = f"{row.answer} at {row.probability:.3f}"
    if row.label is None:
        return text
    return f"{text}, label {row.label}" + ("" if row.label == row.answer else ": wrong")


def _log(asked: _Asked, rows: Sequence[Explained], cells: Sequence[Cell], what: str, workspace: Workspace) -> None:
    """The same among the artifacts of the model's run: the sheet numbers its films, as reports show it.

    In a store elsewhere the table has pseudonyms.
    """
    own = (lambda path: path) if asked.connection.local else Pseudonyms(workspace).film
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        for path in _write(rows, cells, Path(folder), own, lambda number, _: f"film {number}"):
            log_run_file(asked.connection, asked.loaded.run_id, path, f"explain-{what}")
