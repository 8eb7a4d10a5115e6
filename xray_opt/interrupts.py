"""Interrupts that are not lost: Python ignores what a handler raises within a finalizer.

It says so, and goes on; a call of ``tune`` then waited for its slots until it killed them.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import partial

#: Exit code of a process that was told to end.
INTERRUPTED = 130
#: Seconds after which an interrupt that was ignored comes again.
AGAIN = 0.05


def insist(before: Callable[[], None] = lambda: None) -> None:
    """From now on a KeyboardInterrupt of this process's main thread that is ignored comes again, by SIGTERM.

    Args:
        before: called first; the handler of SIGTERM must raise once more.
    """
    sys.unraisablehook = partial(_unraisable, sys.unraisablehook, before)


def _unraisable(
    usual: Callable[[sys.UnraisableHookArgs], object], before: Callable[[], None], what: sys.UnraisableHookArgs
) -> None:
    if not issubclass(what.exc_type, KeyboardInterrupt):
        usual(what)
        return
    before()
    # Not at once: it would be within the same callback.
    main = threading.main_thread().ident or 0
    timer = threading.Timer(AGAIN, signal.pthread_kill, (main, signal.SIGTERM))
    timer.daemon = True
    timer.start()
