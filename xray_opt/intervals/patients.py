"""A bootstrap of patients, vectorised: films of one patient are alike, so patients are drawn, not films.

It is a cluster bootstrap (Field and Welsh 2007). A resample is a count for each patient, and a score under a resample
is that score with films weighted by counts. Thousands of them are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xray_opt.intervals.records import Floats

#: Score → (B,) values under (B, N) weights of the films.
Statistic = Callable[[Floats], Mapping[str, Floats]]

RESAMPLES = 2000
#: Numbers in one block of weights: about 32 MB.
BLOCK = 4_000_000


class Patients:
    """Who was filmed: draws resamples of patients, the same ones whatever is scored.

    Attributes:
        codes: (N,) patient of each film, counted from 0.
        count: number of patients.
    """

    def __init__(self, groups: Sequence[str], seed: int = 0) -> None:
        names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        self.codes: NDArray[np.int64] = codes.astype(np.int64)
        self.count = len(names)
        self.seed = seed

    def draws(self, resamples: int = RESAMPLES) -> Iterator[NDArray[np.int64]]:
        """(b, P) blocks of counts, ``resamples`` rows in all; equal seeds give equal rows."""
        chance = np.random.default_rng(self.seed)
        rows = max(1, BLOCK // max(len(self.codes), 1))
        for first in range(0, resamples, rows):
            block = min(rows, resamples - first)
            drawn = chance.integers(0, self.count, (block, self.count)) + self.count * np.arange(block)[:, None]
            yield np.bincount(drawn.ravel(), minlength=block * self.count).reshape(block, self.count)

    def having(self, films: ArrayLike) -> int:
        """Number of patients with one of these films; (N,) booleans."""
        return len(np.unique(self.codes[np.asarray(films, dtype=bool)]))

    def number(self, films: ArrayLike) -> Floats:
        """(P,) how many of these films each patient has; (N,) booleans."""
        films = np.asarray(films, dtype=np.float64)
        return np.bincount(self.codes, weights=films, minlength=self.count).astype(np.float64)


def resampled(statistic: Statistic, patients: Patients, resamples: int = RESAMPLES) -> dict[str, Floats]:
    """Score → (B,) values of a statistic over resamples of patients."""
    blocks = [statistic(counts[:, patients.codes].astype(np.float64)) for counts in patients.draws(resamples)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
