"""From a source to a manifest: index, open every film once, group, split, limit; and remembering what was prepared."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset.films import Facts, dicom_patient, inspect, may_be_dicom
from xray_opt.dataset.index import Listing, index
from xray_opt.dataset.manifest import Manifest, manifest_name, settings_of, write_atomic
from xray_opt.dataset.names import GRAMMAR, patient_key, read_name, shown, subtype_of
from xray_opt.dataset.records import Entry, Film, LeftOut
from xray_opt.dataset.split import grouped, redealt, split_films
from xray_opt.errors import BadFilm, ConfigError, DataError, one_line

Progress = Callable[[int, int], None]


def prepare(config: DataConfig, progress: Progress | None = None) -> Manifest:
    """Index, check, group and split the films of ``config.root``.

    Args:
        progress: called with (films done, films in all) after each film.

    Raises:
        DataError: no root, an unknown layout, films that cannot be used (unless ``skip_bad``), file names that
            tell no patient, or too few patients for the split.
    """
    if config.root is None:
        raise DataError("data.root is not set; name a folder of films or a CSV, for example --set data.root=chest_xray")
    return _prepare(index(config.root, config.classes), config, progress)


def prepared(config: DataConfig, workspace: Workspace, progress: Progress | None = None) -> Manifest:
    """The manifest of these settings: the saved one while its source is untouched, else a new one, saved.

    Raises:
        DataError: as ``prepare``; or no root is set and nothing was prepared in this workspace.
    """
    config = settled(config, workspace)
    listing = index(config.root or "", config.classes)
    saved, untouched = _kept(listing, config, workspace.manifests)
    if saved is not None and untouched:
        return saved
    manifest = _prepare(listing, config, progress)
    manifest.save(workspace.manifests)
    return manifest


def unsplit(config: DataConfig, workspace: Workspace) -> Manifest:
    """All films of ``config.root``, grouped and in no split (``""``): films that are scored and never trained on.

    Three patients of each class, which a split needs, are not asked of them. What was read before is not read again
    while the source is untouched; it is kept among ``workspace.outside``, as a manifest holds no test split there.

    Raises:
        DataError: as ``prepare``, but for the split.
    """
    listing = index(config.root or "", config.classes)
    for place in (workspace.manifests, workspace.outside):
        saved, untouched = _kept(listing, config, place)
        if saved is not None and untouched:
            return _in_no_split(saved)
    found = _examined_set(listing, config, None)
    if not found.films:
        bad = found.left_out
        raise DataError(f"none of {len(bad)} files in {listing.root} can be used: {bad[0].path}: {bad[0].reason}")
    manifest = _in_no_split(found)
    manifest.save(workspace.outside)
    return manifest


def _in_no_split(manifest: Manifest) -> Manifest:
    films = sorted(grouped(manifest.films), key=lambda film: film.path)
    return dataclasses.replace(manifest, films=tuple(dataclasses.replace(film, split="") for film in films))


def same_films(config: DataConfig, workspace: Workspace, sha256: str) -> Manifest:
    """The manifest as :func:`prepared` gives it, of films that another process has seen, perhaps on another machine.

    Args:
        sha256: the manifest's digest there.

    Raises:
        DataError: as :func:`prepared`; or the films here are others.
    """
    manifest = prepared(config, workspace)
    if manifest.sha256 != sha256:
        raise DataError(
            f"the films in {manifest.source} on {socket.gethostname()} are not those of the study: their digest is "
            f"{manifest.sha256[:12]}, not {sha256[:12]}; copy the same films to it"
        )
    return manifest


def kept_manifest(config: DataConfig, workspace: Workspace) -> tuple[Manifest | None, bool]:
    """The saved manifest of these settings, and whether it and its source are untouched; opens no film.

    None and true where these settings were not prepared yet, none and false where the file is damaged.

    Raises:
        DataError: no root is set and nothing was prepared, or the source is gone.
    """
    config = settled(config, workspace)
    return _kept(index(config.root or "", config.classes), config, workspace.manifests)


def _kept(listing: Listing, config: DataConfig, folder: Path) -> tuple[Manifest | None, bool]:
    path = folder / manifest_name(str(listing.source), settings_of(config))
    if not path.is_file():
        return None, True
    saved = _saved(path)
    return saved, saved is not None and saved.fingerprint == listing.fingerprint()


def resplit(manifest: Manifest, config: DataConfig) -> Manifest:
    """The films of ``manifest`` split under other settings; no film is opened again.

    Raises:
        DataError: the films cannot be split so.
    """
    placed, left_out = split_films(manifest.films, config)
    return dataclasses.replace(manifest, films=placed, left_out=left_out, settings=settings_of(config))


def redrawn(manifest: Manifest, seed: int) -> Manifest:
    """Train and val of ``manifest`` dealt anew by patient; the sealed test split is not in it at all.

    Raises:
        DataError: the films cannot be split so.
    """
    placed = redealt(manifest.of("train") + manifest.of("val"), seed, manifest.classes)
    return dataclasses.replace(manifest, films=placed, left_out=(), settings=manifest.settings | {"seed": seed})


def _saved(path: Path) -> Manifest | None:
    try:
        return Manifest.load(path)
    except DataError:  # derived from the source: a damaged or older one is made anew
        return None


def remember(manifest: Manifest, workspace: Workspace) -> None:
    """Make this set the one that ``data.root: null`` stands for in the workspace (``data prepare`` calls it)."""
    source = Path(manifest.source or manifest.root)
    inside = source.is_relative_to(workspace.root)  # a workspace may be moved with the data in it
    root = source.relative_to(workspace.root).as_posix() if inside else str(source)
    note = json.dumps({"root": root, "settings": manifest.settings}, indent=2)
    write_atomic(workspace.data / "prepared.json", note.encode() + b"\n")


def settled(config: DataConfig, workspace: Workspace) -> DataConfig:
    """The config with its root filled in. Without a root it is the set prepared last, and every ``data.*`` setting that
    stands at its default is taken from there too; a setting of one's own stays.

    Raises:
        DataError: nothing was prepared, or what was remembered cannot be read.
    """
    if config.root is not None:
        return config
    path = workspace.data / "prepared.json"
    if not path.is_file():
        raise DataError(f"no data was prepared in {workspace.root}; run xray-opt data prepare FOLDER, or set data.root")
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        known = {f"data.{name}": note["settings"][name] for name in _untouched(config)}
        root = {"data.root": str(workspace.root / note["root"])}
        return override(Config(data=config), known | root).data
    except (OSError, ValueError, LookupError, TypeError, RecursionError, ConfigError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}; run xray-opt data prepare FOLDER again") from error


def _untouched(config: DataConfig) -> list[str]:
    default = settings_of(DataConfig())
    same = [name for name, value in settings_of(config).items() if value == default[name]]
    shares = [name for name in default if name.endswith("_fraction")]
    whole = all(name in same for name in shares)  # the three shares sum to 1 only together
    return [name for name in same if whole or name not in shares]


def _prepare(listing: Listing, config: DataConfig, progress: Progress | None) -> Manifest:
    found = _examined_set(listing, config, progress)
    placed, unplaced = split_films(found.films, config)
    left_out = tuple(sorted((*found.left_out, *unplaced), key=lambda item: item.path))
    return dataclasses.replace(found, films=placed, left_out=left_out)


def _examined_set(listing: Listing, config: DataConfig, progress: Progress | None) -> Manifest:
    """Every film of a source, neither grouped nor split, and the bad ones as left out."""
    fingerprint = listing.fingerprint()  # before reading: what changes meanwhile is seen the next time
    films, bad = _examined(listing, config.classes, progress)
    if bad and not config.skip_bad:
        worst = shown([item.path for item in bad], room=200, reasons=[item.reason for item in bad])
        raise DataError(
            f"{len(bad)} of {len(listing.entries)} films in {listing.root} cannot be used: {worst}; "
            "mend them, or leave them out with --skip-bad"
        )
    if nameless := [film.path for film in films if not film.patient]:
        raise DataError(
            f"{len(nameless)} file names in {listing.root} tell no patient: {shown(nameless)}; name them {GRAMMAR}, "
            "or give a CSV path,label,patient"
        )
    return Manifest(str(listing.root), tuple(films), tuple(bad), settings_of(config), str(listing.source), fingerprint)


def _examined(
    listing: Listing, classes: tuple[str, str], progress: Progress | None
) -> tuple[list[Film], list[LeftOut]]:
    films, bad = [], []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(lambda entry: _examine(listing.root, entry, classes), listing.entries)
        for done, result in enumerate(results, start=1):
            if isinstance(result, Film):
                films.append(result)
            else:
                bad.append(result)
            if progress:
                progress(done, len(listing.entries))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for thousands of films
    return films, bad


def _examine(root: Path, entry: Entry, classes: tuple[str, str]) -> Film | LeftOut:
    try:
        facts = inspect(root / entry.path)
        name = read_name(Path(entry.path).name)
        patient = entry.patient or _patient(root / entry.path, facts) or (name.patient if name else "")
    except BadFilm as error:
        return LeftOut(entry.path, str(error))
    return Film(
        path=entry.path,
        label=entry.label,
        patient=patient,
        subtype=entry.subtype or subtype_of(entry.label, name, classes),
        folder=entry.folder,
        group=patient,
        split="",
        sha256=facts.sha256,
        bytes=facts.bytes,
        width=facts.width,
        height=facts.height,
        mode=facts.mode,
    )


def _patient(path: Path, facts: Facts) -> str:
    """Patient of a DICOM header, empty for other films and where the header was anonymised."""
    return patient_key(dicom_patient(path)) if facts.mode.startswith("DICOM") else ""


def patient_of(path: Path) -> str:
    """Whose film a file is, as DICOM's header or the file's name tells; empty where neither does."""
    if may_be_dicom(path):
        with suppress(BadFilm):  # its header cannot be read
            if key := patient_key(dicom_patient(path)):
                return key
    name = read_name(path.name)
    return name.patient if name else ""
