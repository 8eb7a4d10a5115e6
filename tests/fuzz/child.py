"""The process in which readers read: ``child.py MODULE:FUNCTION MEGABYTES SECONDS``; cases in, verdicts out."""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import struct
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from harness import receive  # noqa: E402

from xray_opt.errors import XrayError  # noqa: E402


def verdict(reader, given):
    """What came of one case."""
    try:
        reader(given)
    except XrayError as error:
        if "more memory than there is" in str(error) or isinstance(error.__cause__, MemoryError):
            return "fault", "out of memory"
        return "refused", str(error)
    except MemoryError:
        return "fault", "out of memory"
    except BaseException:
        return "fault", traceback.format_exc()
    return "accepted", ""


def limit(megabytes: int) -> None:
    """No more address space than what is used now and so much beside it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reader prints is no verdict
    module, _, function = sys.argv[1].partition(":")
    reader = getattr(importlib.import_module(module), function)
    getattr(reader, "ready", lambda: None)()  # what every case needs and may take any memory
    limit(int(sys.argv[2]))

    def answer(told):
        body = pickle.dumps(told)
        answers.write(struct.pack("<Q", len(body)) + body)
        answers.flush()

    answer(("ready", ""))
    while (given := receive(sys.stdin.buffer)) is not None:
        start = time.process_time()
        told = verdict(reader, given)
        seconds = time.process_time() - start
        answer(told if seconds <= float(sys.argv[3]) else ("fault", f"a hang: {seconds:.0f} s of the processor"))


if __name__ == "__main__":
    main()
