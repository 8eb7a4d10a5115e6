"""What base weights of one's own were trained on, as the header of their file tells it: by digests, not by names.

Films are known by their SHA-256, patients by a hash of their key that is salted with the digest of their set. Whoever
knows a key can ask for it, and short keys can be guessed: such a file is no more anonymous than pseudonyms are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xray_opt.errors import ModelError, one_line

#: Entries of a file's header: the ancestors as JSON, and the SHA-256 of that text.
TRAINED_ON, TRAINED_ON_SHA256 = "trained_on", "trained_on_sha256"
#: Hexadecimal digits of a film's digest and of a patient's hash that are kept.
DIGITS = 16


@dataclass(frozen=True)
class Ancestor:
    """One training that base weights went through.

    Attributes:
        run, study: MLflow run, and its study; empty for a single run.
        manifest_sha256, data_sha256: digests of the split and of its films.
        image_size: pixels of the input.
        classes: names of the negative and of the positive class.
        film_count, patient_count: films and patients of its train and val splits; val chose the epoch.
        films, patients: these, as digests and hashes; empty in copies that leave the machine.
    """

    run: str
    study: str
    manifest_sha256: str
    data_sha256: str
    image_size: int
    classes: tuple[str, str]
    film_count: int
    patient_count: int
    films: frozenset[str] = field(default=frozenset(), repr=False)
    patients: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def is_listed(self) -> bool:
        """Whether the films can be told one by one."""
        return len(self.patients) == self.patient_count

    def saw_film(self, sha256: str) -> bool:
        """Whether a film of this SHA-256 was among them."""
        return sha256[:DIGITS] in self.films

    def saw_patient(self, key: str) -> bool:
        """Whether a patient of this key was among them."""
        return patient_hash(self.manifest_sha256, key) in self.patients

    def without_lists(self) -> Ancestor:
        """The same with counts alone."""
        return replace(self, films=frozenset(), patients=frozenset())


def ancestor(
    films: Iterable[tuple[str, str]],
    run: str,
    study: str,
    digests: tuple[str, str],
    image_size: int,
    classes: tuple[str, str],
) -> Ancestor:
    """The record of a training.

    Args:
        films: SHA-256 and patient key of every film.
        digests: of the split (its manifest), and of the films whatever their split.
    """
    seen = list(films)
    digested = frozenset(sha256[:DIGITS] for sha256, _ in seen)
    patients = frozenset(patient_hash(digests[0], key) for _, key in seen)
    return Ancestor(run, study, *digests, image_size, classes, len(seen), len(patients), digested, patients)


def patient_hash(salt: str, key: str) -> str:
    """A patient's key as it stands in the file."""
    return hashlib.sha256(f"{salt}:{key}".encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]


def to_header(trained_on: Iterable[Ancestor]) -> dict[str, str]:
    """Entries of a safetensors header; none for weights without ancestors."""
    plain = [
        asdict(one) | {"films": sorted(one.films), "patients": sorted(one.patients), "classes": list(one.classes)}
        for one in trained_on
    ]
    if not plain:
        return {}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return {TRAINED_ON: text, TRAINED_ON_SHA256: hashlib.sha256(text.encode()).hexdigest()}


def from_header(header: Mapping[str, str], where: str) -> tuple[Ancestor, ...]:
    """The ancestors that :func:`to_header` wrote.

    Raises:
        ModelError: what stands there was changed or damaged; nothing is known then of what the weights have seen.
    """
    text = header.get(TRAINED_ON)
    if text is None and TRAINED_ON_SHA256 not in header:
        return ()
    try:
        if text is None or hashlib.sha256(text.encode()).hexdigest() != header.get(TRAINED_ON_SHA256):
            raise ValueError("it does not have the SHA-256 of its header")
        return tuple(_ancestor(item) for item in json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"{where}: the record of the films that its weights were trained on is damaged ({one_line(error)}); "
            "export it again with xray-opt base export"
        ) from error


def _ancestor(item: dict[str, Any]) -> Ancestor:
    negative, positive = item["classes"]
    lists = {name: frozenset(item[name]) for name in ("films", "patients")}
    return Ancestor(**{**item, **lists, "classes": (negative, positive)})
