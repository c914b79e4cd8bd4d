"""Stories that run as ``python -m recipes.NAME`` from a clone of the repository."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Linux then gives fresh tensors of 2 MB and more huge pages: a page fault for each 4 KB takes most of the time of
# writing large results. torch reads this once, while it is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Ctrl-C inside ends the program with one line and status 130."""
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"\nstopped{interrupt}", file=sys.stderr)
        raise SystemExit(130) from None


def _stop_at_once(*_: object) -> None:
    os.write(2, b"\nstopped\n")
    os._exit(130)


# Libraries that are written in C lose a KeyboardInterrupt while they are imported. "-m" is what Python puts there until
# it has found the recipe; where something else imports this package, Ctrl-C is its own business.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop_at_once)
