"""What a check finds, and how checks are run so that none can raise or hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from xray_opt.config import redacted
from xray_opt.errors import XrayError, one_line

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis: ``status`` is ok, warning or error; ``fix`` is empty where all is well."""

    status: str
    what: str
    text: str
    fix: str = ""


#: Check → what mends it where its error's line does not say so itself.
FIXES = {
    "tracking": "start the server, or correct MLFLOW_TRACKING_URI and its login in .env",
    "storage": "start the database, or correct XRAY_OPT_STORAGE in .env",
    "weights": "fetch them again: xray-opt weights",
}

Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Mapping[str, Check], patience: float) -> list[Finding]:
    """The findings of all checks, in order; one that takes longer than ``patience`` seconds is an error.

    A thread that hangs is left behind: as a daemon it holds up nobody's end.
    """
    found: dict[str, list[Finding]] = {}
    threads = []
    for name, check in checks.items():
        threads.append(threading.Thread(target=_run, args=(name, check, found), name=f"doctor-{name}", daemon=True))
        threads[-1].start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no answer within {patience:.0f} s"
    fix = "see what it waits for: a network, a disk, a server that accepts but does not answer"
    return [finding for name in checks for finding in found.get(name, [Finding(ERROR, name, late, fix)])]


def _run(name: str, check: Check, found: dict[str, list[Finding]]) -> None:
    try:
        result = list(check())
    except XrayError as error:
        text = redacted(" ".join(str(error).split()))
        result = [Finding(ERROR, name, text, FIXES.get(name, "mend what this line names"))]
    except Exception as error:
        text = redacted(f"{type(error).__name__}: {one_line(error)}")
        result = [Finding(ERROR, name, text, "this check itself failed: please report it")]
    found[name] = result
