"""The deliberate faults of tests/mutants.py can still be put into the code."""

from pathlib import Path

import fnn
from tests.mutants import MUTANTS


def test_the_text_of_every_fault_stands_once_in_its_file() -> None:
    files = {name: Path(fnn.__file__).parent / name for name, _, _ in MUTANTS}
    stale = [(name, old) for name, old, _ in MUTANTS if files[name].read_text().count(old) != 1]
    assert not stale
