"""Put deliberate faults into fnn, one at a time, and see whether the tests notice them.

    python tests/mutate.py                 # all of tests/mutants.py: about an hour
    python tests/mutate.py optim random    # two rooms
    python tests/mutate.py 17 118          # single mutants, by their numbers

The working tree is copied to a temporary folder. For each mutant a text in one file of the copy is replaced, the
doctests of that file and the tests of its room run until the first failure, and the file is restored. A mutant without
a failure has survived: either it changes nothing that a user could see, or a test is missing. This script is not part
of the tests, nor of ``.ci/run``.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch.fx.experimental.proxy_tensor  # noqa: F401 - loads what fnn needs of torch once, for all runs
from mutants import MUTANTS

ROOT = Path(__file__).parent.parent
TESTS = {  # the fast files first; a file that is named after the mutated one comes before all others
    "tree": "tests/tree/test_tree.py tests/tree/test_treedef.py tests/test_values.py tests/test_errors.py",
    "random": "tests/test_random.py tests/contracts/test_meta.py",
    "init": "tests/test_init.py tests/test_layers.py",
    "losses": "tests/test_losses.py tests/test_values.py tests/contracts/test_transforms.py",
    "metrics": "tests/test_values.py tests/test_losses.py tests/test_errors.py tests/contracts/test_meta.py",
    "layers": "tests/test_layers.py tests/test_init.py tests/test_values.py tests/test_errors.py "
    "tests/contracts/test_transforms.py tests/contracts/test_donation.py tests/contracts/test_meta.py",
    "gradients": "tests/test_values.py tests/gradients/test_value_and_grad.py tests/gradients/test_per_sample.py "
    "tests/test_errors.py tests/gradients/test_hidden_uses.py tests/gradients/test_per_sample_peers.py",
    "jacobian": "tests/jacobian/test_sparse.py tests/jacobian/test_checks.py tests/jacobian/test_dense.py "
    "tests/jacobian/test_custom_derivatives.py tests/jacobian/test_products.py tests/jacobian/test_tutorial.py",
    "curvature": "tests/curvature/test_kronecker.py tests/curvature/test_networks.py tests/curvature/test_kfac.py "
    "tests/curvature/test_every_operation.py",
    "linalg": "tests/linalg/test_linear_operator.py tests/linalg/test_solvers.py tests/linalg/test_lanczos.py "
    "tests/linalg/test_estimators.py",
    "optim": "tests/optim/test_rules.py tests/optim/test_schedules.py tests/optim/test_parts.py "
    "tests/optim/test_against_torch.py tests/optim/test_states.py tests/optim/test_contracts.py "
    "tests/optim/test_against_optax.py tests/test_errors.py",
    "compile": "tests/compile/test_closed_over.py tests/compile/test_trace.py tests/compile/test_jit.py "
    "tests/compile/test_watch.py tests/contracts/test_donation.py tests/compile/test_scan.py tests/test_errors.py",
    "checkpoint": "tests/test_checkpoint.py",
    "data": "tests/test_data.py",
    "summary": "tests/test_values.py tests/test_errors.py",
}
TIME_LIMIT = 900  # seconds for each mutant


def main(chosen: list[str]) -> None:
    numbered = [(number, *mutant) for number, mutant in enumerate(MUTANTS)]
    rows = [row for row in numbered if not chosen or row[1] in chosen or str(row[0]) in chosen]
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fnn"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for room in dict.fromkeys(row[1] for row in rows):
            if failure := first_failure(copy, room, *{row[2] for row in rows if row[1] == room}):
                sys.exit(f"the tests of {room} fail without a fault: {failure}")
        for number, room, name, old, new in rows:
            start = time.monotonic()
            verdict, where = try_mutant(copy, room, name, old, new)
            counts[verdict] = counts.get(verdict, 0) + 1
            seconds = time.monotonic() - start
            print(f"{number:>3} {verdict:<8} {seconds:4.0f} s  {name}: {old!r} -> {new!r}  {where}", flush=True)
    noticed = counts.get("noticed", 0)
    print(f"{counts}: {100 * noticed / max(len(rows), 1):.0f} % of {len(rows)} noticed")


def try_mutant(copy: Path, room: str, name: str, old: str, new: str) -> tuple[str, str]:
    """Return "noticed" with the first failure, "survived", or "stale" if the text is not in the file once."""
    file = copy / "fnn" / name
    text = file.read_text()
    if text.count(old) != 1:
        return "stale", ""
    file.write_text(text.replace(old, new))
    try:
        failure = first_failure(copy, room, name)
    finally:
        file.write_text(text)
    return ("noticed", failure) if failure else ("survived", "")


def first_failure(copy: Path, room: str, *names: str) -> str:
    """Run the doctests of some files and the tests of a room. Return the first failure, or "" if there is none."""
    # in processes of their own: pytest imports fnn/summary.py as fnn.summary, which hides the function of that name
    tests = sorted(TESTS[room].split(), key=lambda test: not any(Path(name).stem in test for name in names))
    for files in ([f"fnn/{name}" for name in names], tests):
        output = copy.parent / "output"
        child = os.fork()  # a fork has imported torch already
        if not child:
            run_pytest(copy, output, files)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, 5):  # 5: the file has no doctests
            found = [line for line in output.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
            return (found or [f"exit status {status}"])[0]
    return ""


def run_pytest(copy: Path, output: Path, files: list[str]) -> None:
    """Run pytest in this process, and end it with pytest's exit status, or with a signal after the time limit."""
    signal.alarm(TIME_LIMIT)
    os.chdir(copy)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = 1
    try:
        status = pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow", *files])
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
