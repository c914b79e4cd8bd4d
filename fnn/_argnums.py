"""Which positional arguments a transform is about."""

from collections.abc import Sequence

Argnums = int | Sequence[int]
"""One position or several. Negative ones count from the end."""


def positions(argnums: Argnums, count: int, name: str) -> tuple[int, ...]:
    """The positions among ``count`` arguments, none negative.

    Raises ``ValueError`` for a position that is not there and for one that is named twice.

    >>> positions((0, -1), 3, "grad")
    (0, 2)
    """
    given = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in given:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name}: a position is an integer, got {number!r}")
        if not -count <= number < count:
            raise ValueError(
                f"{name}: argument {number} is asked for, but the function got {count} positional arguments"
            )
    places = tuple(number % count for number in given)
    if len(set(places)) < len(places):
        raise ValueError(f"{name}: each argument may be named once, got {argnums!r}")
    return places
