"""From the name of a model to a file that other runtimes read, written whole or not at all, and only if it agrees."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from xray_opt import __version__, registry
from xray_opt.augment import IMAGENET_MEAN, IMAGENET_STD
from xray_opt.calibration import probability
from xray_opt.config import Workspace
from xray_opt.dataset import decode, to_square
from xray_opt.errors import ConfigError, ModelError, XrayError, one_line
from xray_opt.evaluate import predict_logits
from xray_opt.export.formats import FORMATS, Ask
from xray_opt.export.network import FilmNetwork
from xray_opt.mlflow_client import connect
from xray_opt.phantom import make_phantoms
from xray_opt.places import Place

#: Largest difference of a probability from that of ``predict``. Made-up films that every file is checked on.
TOLERANCE, CHECKED = 1e-4, 8
#: Where rounding to float32 moves the probability by more, so many times that is allowed, and never more than the most.
ROUNDING, MOST = 4.0, 0.01
#: Relative change of every grey that stands for rounding on another way through the network.
SHAKE = 1e-6
WARNING = "Not for clinical use. A research result on one set of films."
INPUT = (
    "(N, cache_side, cache_side) uint8: decode the film upright as 8-bit grey, squash it to the square with Pillow's "
    "resize((cache_side, cache_side), Image.Resampling.BILINEAR)"
)


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        sha256: of the file; ``source_sha256`` is that of the adapter bundle, as its record names it.
        version: registered version, ``NAME/NUMBER``; empty for runs and folders.
        difference: largest one of a probability from ``predict``'s, on made-up films.
    """

    path: str
    format: str
    bytes: int
    sha256: str
    source: str
    source_sha256: str
    run: str
    version: str
    difference: float


def export(
    model: str, kind: str, out: Path, workspace: Workspace, place: Place = Place(), force: bool = False
) -> Exported:
    """Write ``model``, its adapter merged, as a file of the format ``kind``, after its own runtime was asked.

    Args:
        model: MLflow model URI, ``runs:/RUN_ID`` or the folder of a bundle.
        kind: ``onnx``, ``torch-export`` or ``safetensors``.
        out: the file, which ends as the format's files do.
        force: write over a file.

    Raises:
        ConfigError: unknown format, wrong ending, the file exists or cannot be written, or a package is missing.
        ModelError: what was made does not agree with the model; nothing is written.
        TrackingError: no such model.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind}: known are {', '.join(FORMATS)}")
    one = FORMATS[kind]
    if out.suffix != one.suffix:
        raise ConfigError(f"--out {out}: files of the format {kind} end in {one.suffix}")
    _require_absent(out, force)
    if lacking := [name for name in one.needs if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--format {kind} needs {', '.join(lacking)}: pip install 'xray-opt[{kind}]'")
    connection = connect(place.tracking(workspace), workspace)
    loaded = registry.load(connection, model, torch.device("cpu"))
    try:
        content = one.write(FilmNetwork(loaded.predictor.network, loaded.bundle), facts(loaded, model))
        difference = checked(loaded, one.read(content, loaded.bundle))
    except XrayError:
        raise
    except Exception as error:  # exporters and runtimes raise whatever they like
        raise ModelError(f"{model} cannot be exported as {kind}: {one_line(error)}") from error
    _write(content, out, force)
    digest = hashlib.sha256(content).hexdigest()
    origin = (loaded.run_id, loaded.version)
    return Exported(str(out), kind, len(content), digest, model, loaded.bundle.sha256, *origin, difference)


def facts(loaded: registry.Loaded, model: str) -> dict[str, str]:
    """What a reader of the file must know, as texts: the same names in every format."""
    bundle = loaded.bundle
    where = {"run": loaded.run_id, "version": loaded.version}
    source = Path(model).name if not re.match(r"(models|runs):/", model) else model
    return {
        "warning": WARNING,
        "made_by": f"xray-opt {__version__}",
        "source": source,
        "source_sha256": bundle.sha256,
        "base_sha256": bundle.base_sha256,
        "classes": json.dumps(bundle.classes),
        "threshold": repr(float(bundle.threshold)),
        "thresholds": json.dumps(dict(bundle.thresholds), sort_keys=True),
        "temperature": repr(float(bundle.temperature)),
        "image_size": str(bundle.image_size),
        "cache_side": str(bundle.cache_side),
        "input": INPUT,
        "preprocessing": bundle.preprocessing,
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
        "scores": json.dumps(dict(bundle.scores), sort_keys=True),
    } | {name: value for name, value in where.items() if value}


def checked(loaded: registry.Loaded, ask: Ask) -> float:
    """The largest difference of a probability on made-up films, asked together and one alone.

    Where rounding moves ``predict`` itself, what counts is how near the answer is to that of double precision.

    Raises:
        ModelError: it is beyond the tolerance, and beyond what rounding explains.
    """
    films = made_up(CHECKED, loaded.bundle.cache_side)
    predictor = loaded.predictor
    logits = predict_logits(predictor.network, films, loaded.bundle.image_size, predictor.device)
    wanted = probability(logits, loaded.bundle.temperature)
    found = np.concatenate([ask(films), ask(films[:1])])
    differences = np.abs(found - np.append(wanted, wanted[0]))
    difference = float(differences.max())
    if not difference <= TOLERANCE:  # NaN is beyond it too
        exact = in_double(loaded, films)
        moved = rounding(loaded, films, wanted, exact)
        allowed = np.minimum(TOLERANCE + ROUNDING * np.append(moved, moved[0]), MOST)
        nearest = np.minimum(differences, np.abs(found - np.append(exact, exact[0])))
        if not (nearest <= allowed).all():
            raise ModelError(f"the exported model differs from predict by {difference:.2g} in probability: not written")
    return difference


def rounding(
    loaded: registry.Loaded, films: NDArray[np.uint8], wanted: NDArray[np.float64], exact: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,) how far rounding may move ``predict``'s (N,) probabilities, as those of double precision and of shaken
    greys tell.
    """
    shaken = [in_double(loaded, films, seed) for seed in range(2)]
    differences: NDArray[np.float64] = np.abs(np.stack([wanted, *shaken]) - exact)
    moved: NDArray[np.float64] = differences.max(axis=0)
    return moved


def in_double(loaded: registry.Loaded, films: NDArray[np.uint8], shaken: int | None = None) -> NDArray[np.float64]:
    """(N,) probabilities of (N, side, side) grey squares in double precision; ``shaken`` is a seed of small changes."""
    network = copy.deepcopy(loaded.predictor.network).cpu().double().eval()
    grey = torch.from_numpy(films).double().unsqueeze(1) / 255
    if shaken is not None:
        chance = torch.Generator().manual_seed(shaken)
        grey = grey * (1 + SHAKE * torch.randn(grey.shape, generator=chance, dtype=grey.dtype))
    grey = functional.interpolate(grey, (loaded.bundle.image_size,) * 2, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(one, dtype=torch.float64).view(1, 3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        logits: NDArray[np.float64] = network((grey - mean) / std).squeeze(1).numpy()
    return probability(logits, loaded.bundle.temperature)


def made_up(count: int, side: int) -> NDArray[np.uint8]:
    """(count, side, side) uint8 squares of phantoms: on what looks like no film a network may say anything."""
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        make_phantoms(Path(folder), 12, 0)
        paths = sorted(Path(folder).rglob("*.jpeg"))
        chosen = paths[:: max(len(paths) // count, 1)][:count]
        return np.stack([to_square(decode(path), side) for path in chosen])


def _require_absent(out: Path, force: bool) -> None:
    if os.path.lexists(out) and (out.is_dir() or not force):
        hint = "name another file with --out" if out.is_dir() else "name another file, or write over it with --force"
        raise ConfigError(f"{out} exists already; {hint}")


def _write(content: bytes, out: Path, force: bool) -> None:
    """The whole file or nothing; whoever reads it meanwhile has the old one."""
    part = out.with_name(f".{out.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _require_absent(out, force)
        part.replace(out)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot write {out}: {reason}; check free space and permissions") from error
    finally:
        with suppress(OSError):  # what could not be made cannot be removed
            part.unlink()
