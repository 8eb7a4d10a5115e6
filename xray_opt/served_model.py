"""The file that MLflow runs to serve a registered adapter (models from code): a DataFrame in, a DataFrame out.

In: column ``image`` (base64 text or bytes of a JPEG, PNG or DICOM file), or ``path`` (a file below the folder that
``XRAY_OPT_SERVE_ROOT`` names; refused where that is not set). Out: ``probability`` of pneumonia, ``label`` (PNEUMONIA
where ``probability >= threshold``), ``threshold``. Whatever is wrong with the input is an error that names the row.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

ROOT = "XRAY_OPT_SERVE_ROOT"


class XrayModel(PythonModel):
    """Chest films → probability of pneumonia; the very path of the recorded validation scores."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the model's own base weights and adapter bundle.

        The package is imported here: its copy among the model's files is on the path only now.
        """
        from xray_opt.adapter import load_bundle
        from xray_opt.backbone import read_base, resolve_device
        from xray_opt.evaluate import Predictor

        base = read_base(Path(context.artifacts["base"]))
        network, bundle = load_bundle(Path(context.artifacts["bundle"]), base)
        self._predictor = Predictor(network, bundle, resolve_device("auto"))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row out for each row in, in order."""
        from xray_opt.errors import BadFilm

        films = film_bytes(model_input)
        try:
            probabilities = self._predictor.probabilities(films)
        except BadFilm as error:
            raise _first_bad(films) from error
        bundle = self._predictor.bundle
        threshold = bundle.threshold
        return pd.DataFrame(
            {
                "probability": probabilities,
                "label": [bundle.classes[int(value >= threshold)] for value in probabilities],
                "threshold": [float(threshold)] * len(probabilities),
            }
        )


def film_bytes(table: pd.DataFrame) -> list[bytes]:
    """The bytes of each row's film.

    Raises:
        MlflowException: (a server answers 400) neither or both columns are filled in a row, or a cell is no film.
    """
    if not {"image", "path"} & set(table.columns):
        raise _refusal("the input needs a column image (base64 or bytes) or path")
    missing = [None] * len(table)
    images, paths = table.get("image", missing), table.get("path", missing)
    return [_row(number, image, path) for number, (image, path) in enumerate(zip(images, paths, strict=True))]


def _row(number: int, image: object, path: object) -> bytes:
    if _empty(image) == _empty(path):
        raise _refusal(f"row {number}: give either image or path")
    if _empty(image):
        return _file_below_root(number, path)
    if isinstance(image, str):
        try:
            return base64.b64decode("".join(image.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refusal(f"row {number}: image is not base64") from error
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    raise _refusal(f"row {number}: image must be base64 text or bytes, not {type(image).__name__}")


def _empty(cell: object) -> bool:
    """Whether a cell has no value; pandas writes None or NaN there."""
    return cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell)


def _file_below_root(number: int, path: object) -> bytes:
    """Read a file that lies, links followed, below the served folder; what lies elsewhere is not even looked for."""
    root = os.environ.get(ROOT)
    if not root:
        raise _refusal(f"row {number}: path is refused, as this server has no {ROOT}; send the film as image")
    if not isinstance(path, str) or not path or "\0" in path or ".." in Path(path).parts:
        raise _refusal(f"row {number}: path must be a file name without '..' below {ROOT}")
    try:
        file = Path(root, path).resolve()
        if not file.is_relative_to(Path(root).resolve()):
            raise _refusal(f"row {number}: path lies outside {ROOT}")
        if not file.is_file():
            raise _refusal(f"row {number}: no such file below {ROOT}")
        return file.read_bytes()
    except (OSError, RuntimeError) as error:
        raise _refusal(f"row {number}: path cannot be read ({type(error).__name__})") from error


def _first_bad(films: list[bytes]) -> MlflowException:
    """The refusal of the first film that cannot be decoded, by its row."""
    from xray_opt.dataset import decode
    from xray_opt.errors import BadFilm

    for number, film in enumerate(films):
        try:
            decode(film, f"row {number}")
        except BadFilm as error:
            return _refusal(f"row {number}: {error}")
    return _refusal("a film cannot be read")


def _refusal(message: str) -> MlflowException:
    refusal: MlflowException = MlflowException.invalid_parameter_value(message)
    return refusal


set_model(XrayModel())
