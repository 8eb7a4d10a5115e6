"""Threads of torch's CPU kernels on a machine whose cores others have as well.

They wait for one another at the end of every kernel. GNU's OpenMP lets them spin meanwhile, 300,000 times: where one's
core was given to another process, the others burn theirs until it comes back, and a step takes ten times as long.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: Turns that a waiting thread spins before it sleeps; docs/performance.md says what other numbers cost.
TURNS = 1000


def sleep_soon(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait sleep soon, in this process and its children; what the user has chosen stays.

    Has no effect once torch is imported, nor where it was built with another OpenMP.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(TURNS))
