"""The positions of the arguments that a transform differentiates."""

from collections.abc import Sequence
from typing import Any

Argnums = int | Sequence[int]
"""One position or several. Negative positions count from the end."""


def as_tuple(argnums: Argnums, name: str) -> tuple[int, ...]:
    """The positions as they were given, one or several. Raises ``TypeError`` for anything but integers."""
    given: tuple[Any, ...] = tuple(argnums) if isinstance(argnums, (tuple, list, range)) else (argnums,)
    for number in given:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name}: a position is an integer, got {number!r}")
    return given


def positions(argnums: Argnums, count: int, name: str) -> tuple[int, ...]:
    """Return the positions among ``count`` arguments as integers that are not negative.

    Raises ``TypeError`` for a position that is not an integer, and ``ValueError`` for a position out of range and for
    one that is given twice. The messages start with ``name``.

    >>> positions((0, -1), 3, "grad")
    (0, 2)
    """
    given = as_tuple(argnums, name)
    for number in given:
        if not -count <= number < count:
            raise ValueError(
                f"{name}: argument {number} is asked for, but the function got {count} positional arguments"
            )
    result = tuple(number % count for number in given)
    if len(set(result)) < len(result):
        raise ValueError(f"{name}: each argument may be named once, got {argnums!r}")
    return result
