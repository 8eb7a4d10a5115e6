"""The record of an adapter bundle: everything but the weights, with a digest of itself."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from xray_opt.backbone import Base
from xray_opt.config import Config, DataConfig, flatten
from xray_opt.config.dotted import Scalar
from xray_opt.errors import ConfigError, ModelError, one_line

FORMAT = 3
#: Name under which ``bundle.json`` holds the digest of its other fields.
DIGEST = "sha256"
RESAMPLE = "decode grey, antialiased squash to cache_side, antialiased bilinear to image_size, ImageNet mean and std"


@dataclass(frozen=True)
class Bundle:
    """What a reader must know to predict with an adapter.

    Attributes:
        strategy, batch_norm, dropout: how the network is built.
        base_sha256, base_origin: the only base it fits.
        image_size, cache_side: pixels of the network's input, and of the squashed film it is resampled from.
        threshold: probability from which a film is called pneumonia, of best F1 on validation.
        temperature: divides the logit before the sigmoid; fitted on validation.
        thresholds: wanted sensitivity (``0.95``) → highest probability that reached it on validation.
        config: every setting of the run by its dotted name.
        scores: validation scores at 0.5 (``val.f1`` …) and the best epoch.
        files: file name → SHA-256, of all other files of the bundle.
    """

    strategy: str
    batch_norm: str
    dropout: float
    base_sha256: str
    base_origin: str
    image_size: int
    cache_side: int
    threshold: float = 0.5
    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Scalar] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    preprocessing: str = RESAMPLE
    format: int = FORMAT

    @property
    def classes(self) -> tuple[str, str]:
        """Class names in the order of their label."""
        usual = DataConfig()
        negative, positive = self.config.get("data.negative"), self.config.get("data.positive")
        return str(negative or usual.negative), str(positive or usual.positive)

    @property
    def sha256(self) -> str:
        """Digest of the record, which holds those of all other files: the one that ``bundle.json`` names."""
        return content_sha256(asdict(self))

    def threshold_for(self, sensitivity: float | None) -> float:
        """The threshold for a wanted sensitivity (rounded up to a whole percent); none means that of best F1.

        Raises:
            ConfigError: none is known for it.
        """
        if sensitivity is None:
            return self.threshold
        percent = math.ceil(sensitivity * 100 - 1e-9) if math.isfinite(sensitivity) else 0
        known = self.thresholds.get(f"{percent / 100:.2f}")
        if known is None:
            have = f"{min(self.thresholds)} to {max(self.thresholds)}" if self.thresholds else "none"
            raise ConfigError(
                f"--sensitivity {sensitivity:g}: this model has thresholds fixed on validation for {have}"
            )
        return known

    def to_json(self) -> str:
        """The text of ``bundle.json``: the fields and their digest."""
        document = asdict(self)
        return json.dumps(document | {DIGEST: content_sha256(document)}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Bundle:
        """Read ``bundle.json``; every field must be there, with its type, and all as they were written.

        What may differ is spelling that means the same: spaces, the order of names, escapes, ``5e-1`` for ``0.5``.

        Raises:
            ModelError: one line that says what is wrong.
        """
        try:
            document = json.loads(text)
            found = content_sha256(document) if isinstance(document, dict) else ""
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where} is not JSON ({one_line(error)})") from error
        if not isinstance(document, dict):
            raise ModelError(f"{where} is not a JSON object")
        if document.get("format") != FORMAT:
            raise ModelError(f"{where} has format {str(document.get('format'))[:40]!r}; this version reads {FORMAT}")
        if document.get(DIGEST) != found:
            raise ModelError(f"{where} was changed or damaged: its content does not have the SHA-256 it names")
        for item in fields(cls):
            if not _fits(document.get(item.name), str(item.type)):
                raise ModelError(f"{where}: {item.name} is missing or no {item.type}")
        _check_ranges(document, where)
        return cls(**{item.name: document[item.name] for item in fields(cls)})


def content_sha256(document: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON (sorted names, no spaces) of all fields but the digest itself."""
    rest = {name: value for name, value in document.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_bundle(base: Base, config: Config, cache_side: int) -> Bundle:
    """The bundle record of a network trained with ``config`` on ``base``."""
    # Where the films lay is nobody's business but this machine's.
    settings = {name: value for name, value in flatten(config).items() if name not in ("data.root", "tracking.uri")}
    if "/" in config.model.base or "\\" in config.model.base:
        settings["model.base"] = base.origin
    return Bundle(
        strategy=config.model.strategy,
        batch_norm=config.model.batch_norm,
        dropout=config.model.dropout,
        base_sha256=base.sha256,
        base_origin=base.origin,
        image_size=config.image.size,
        cache_side=cache_side,
        config=settings,
    )


def _fits(value: Any, declared: str) -> bool:
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    if declared.startswith("Mapping"):
        inner = declared.removesuffix("]").split(", ")[1]
        if not isinstance(value, dict):
            return False
        return inner == "Scalar" or all(_fits(item, inner) for item in value.values())
    return isinstance(value, kinds[declared]) and not isinstance(value, bool)


def _check_ranges(document: dict[str, Any], where: str) -> None:
    if document["strategy"] not in ("lora", "linear", "full") or document["batch_norm"] not in ("frozen", "train"):
        raise ModelError(f"{where}: unknown strategy or batch_norm")
    sides_fit = 16 <= document["image_size"] <= 4096 and 16 <= document["cache_side"] <= 8192
    shares = all(0 <= value <= 1 for value in (document["threshold"], *document["thresholds"].values()))
    if not sides_fit or not shares or not 0 < document["temperature"] <= 1000:
        raise ModelError(f"{where}: image_size, cache_side, threshold, thresholds or temperature is out of range")
