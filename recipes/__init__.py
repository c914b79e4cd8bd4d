"""Example programs that run as ``python -m recipes.NAME`` from a clone of the repository."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# With this setting, new tensors of 2 MB and more use huge pages on Linux. Without it, there is a page fault for every
# 4 KB, which takes most of the time of writing large results. torch reads the variable once, while it is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Context manager: Ctrl-C inside the block ends the program with one line and status 130."""
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if os.environ.get("RANK", "0") == "0":  # the first of several processes speaks
            print(f"\nstopped{interrupt}", file=sys.stderr)
        raise SystemExit(130) from None


def _stop_at_once(*_: object) -> None:
    os.write(2, b"\nstopped\n")
    os._exit(130)


# Libraries written in C can lose a KeyboardInterrupt while they are imported, so Ctrl-C ends the program directly until
# the imports are done. Python sets sys.argv[0] to "-m" until it has found the recipe; if another program imports this
# package, its handler for Ctrl-C is left alone.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop_at_once)
