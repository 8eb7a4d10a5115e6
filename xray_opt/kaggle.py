"""Fetches Kaggle's *Chest X-Ray Images (Pneumonia)* with kagglehub, an optional extra."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from xray_opt.errors import DataError, one_line

DATASET = "paultimothymooney/chest-xray-pneumonia"
BY_HAND = "or download it in a browser and unzip it by hand (see data/README.md)"


def download_chest_xray(target: Path) -> Path:
    """Download into ``target``, which must not exist yet or be empty; returns it.

    Raises:
        DataError: kagglehub is not installed, no token, no network, or the target is in use.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(
            f"{target} is not empty; name a new folder, or use what is there: xray-opt data prepare {target}"
        )
    try:
        import kagglehub
    except ImportError as error:
        raise DataError(f"kagglehub is not installed: pip install 'xray-opt[download]', {BY_HAND}") from error
    if not has_token():
        raise DataError(
            "no Kaggle token: make one under Settings on the Kaggle site, save it as ~/.kaggle/kaggle.json or set "
            f"KAGGLE_USERNAME and KAGGLE_KEY, {BY_HAND}"
        )
    try:
        fetched = Path(kagglehub.dataset_download(DATASET))
    except Exception as error:  # kagglehub raises its HTTP client's own errors, of many kinds
        raise DataError(f"the download of {DATASET} failed ({one_line(error, 200)}); try again, {BY_HAND}") from error
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(fetched, part)
    if target.exists():
        target.rmdir()
    part.rename(target)
    return target


def has_token() -> bool:
    """Whether kagglehub will find credentials: variables, or a file in Kaggle's folder."""
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    variables = "KAGGLE_API_TOKEN" in os.environ or {"KAGGLE_USERNAME", "KAGGLE_KEY"} <= os.environ.keys()
    return variables or any((folder / name).is_file() for name in ("kaggle.json", "access_token"))
