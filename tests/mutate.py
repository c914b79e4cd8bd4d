"""Put deliberate faults into fnn, one at a time, and see whether the tests notice them.

    python -m tests.mutate                 # all of tests/mutants.py: an hour on an idle machine
    python -m tests.mutate optim random/   # the files in fnn/ whose names start so
    python -m tests.mutate 17 118          # single mutants, by their numbers
    python -m tests.mutate list.json       # faults that tests/pick_mutants.py has picked

The working tree is copied to a temporary folder. For each mutant a text in one file of the copy is replaced, the tests
and the doctests of that file run until the first failure, and the file is restored. A mutant without a failure has
survived: either it changes nothing that a user could see, or a test is missing. This script is not part of the tests,
nor of ``.ci/run``.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import scipy.stats  # noqa: F401 - what the tests import is loaded once, for all runs
import torch.fx.experimental.proxy_tensor  # noqa: F401
import torchvision  # noqa: F401

from tests.mutants import MUTANTS

ROOT = Path(__file__).parent.parent
TESTS = {  # the tests of the files whose names in fnn/ start so; the first entry that fits counts
    "tree/": "tree",
    "random/": "test_random.py",
    "init": "test_init.py",
    "losses/ctc": "test_ctc.py test_losses.py test_loss_edges.py",
    "losses": "test_losses.py test_loss_edges.py test_errors.py contracts/test_transforms.py",
    "metrics": "test_metrics.py test_values.py test_errors.py",
    "layers/combinators": "test_combinators.py test_layers.py test_errors.py",
    "layers/structure": "test_structure.py test_combinators.py",
    "layers/recurrent": "test_recurrent.py contracts/test_transforms.py",
    "layers/": "test_layers.py test_init.py test_values.py test_errors.py test_activations.py test_attention.py "
    "test_embedding.py test_spatial.py contracts/test_transforms.py",
    "gradients/value_and_grad": "gradients/test_value_and_grad.py test_values.py test_errors.py",
    "gradients/ghost": "gradients/test_per_sample.py gradients/test_hidden_uses.py",
    "gradients/layer": "gradients/test_per_sample.py gradients/test_hidden_uses.py",
    "gradients/": "gradients/test_per_sample.py gradients/test_privacy.py",
    "_samples": "gradients/test_per_sample.py test_layers.py",
    "_memory": "gradients/test_value_and_grad.py contracts/test_memory.py",
    "jacobian/check_grads": "jacobian/test_checks.py",
    "jacobian/custom_derivatives": "jacobian/test_custom_derivatives.py contracts/test_memory.py",
    "jacobian/dense": "jacobian/test_dense.py jacobian/test_products.py",
    "jacobian/sparse": "jacobian/test_sparse.py",
    "jacobian/implicit": "jacobian/test_implicit.py",
    "jacobian/torch_rules": "curvature/test_every_operation.py jacobian/test_products.py",
    "jacobian/": "jacobian/test_ranks.py jacobian/test_products.py jacobian/test_dense.py "
    "linalg/test_linear_operator.py",
    "curvature/": "jacobian/test_ranks.py curvature jacobian/test_products.py linalg/test_linear_operator.py",
    "linalg/linear_operator": "linalg/test_linear_operator.py",
    "linalg/vector_space": "linalg",
    "linalg/lanczos": "linalg/test_lanczos.py",
    "linalg/lobpcg": "linalg/test_lobpcg.py",
    "linalg/estimators": "linalg/test_estimators.py",
    "linalg/": "linalg/test_solvers.py",
    "optim/backtracking": "optim/test_line_searches.py optim/test_rules.py optim/test_against_optax.py",
    "optim/zoom": "optim/test_line_searches.py optim/test_rules.py optim/test_against_optax.py",
    "optim/line_search": "optim/test_line_search.py optim/test_rules.py optim/test_against_torch.py",
    "optim/projections": "optim/test_projections.py",
    "optim/": "optim/test_rules.py optim/test_schedules.py optim/test_parts.py optim/test_states.py "
    "optim/test_against_torch.py optim/test_contracts.py optim/test_against_optax.py",
    "compile/scan": "compile/test_scan.py",
    "compile/watch": "compile/test_watch.py",
    "compile/in_place": "compile/test_in_place.py compile/test_jit.py",
    "compile/nearest": "compile/test_nearest.py",
    "compile/jit": "compile/test_jit.py compile/test_watch.py compile/test_trace.py",
    "compile/": "compile/test_jit.py compile/test_trace.py contracts/test_memory.py contracts/test_donation.py",
    "debug": "compile/test_trace.py",
    "devices": "test_devices.py",
    "checkpoint": "test_checkpoint.py",
    "data/transforms": "test_transforms.py",
    "data/": "test_data.py test_own_images.py",
    "training/interrupts": "test_training.py distributed/test_torchrun.py distributed/test_faults.py",
    "training/": "test_training.py",
    "models/": "test_models.py contracts/test_transforms.py",
    "interop/": "interop",
    "distributed/": "distributed",
    "_transforms": "test_handed_on.py",
    "_configs": "test_structure.py test_combinators.py",
    "_argnums": "gradients/test_value_and_grad.py jacobian/test_dense.py gradients/test_per_sample.py",
    "_numerics": "test_values.py gradients/test_per_sample.py test_losses.py",
    "_tracing": "compile/test_jit.py compile/test_trace.py test_values.py compile/test_scan.py",
    "_torch": "compile/test_jit.py compile/test_trace.py test_torch.py gradients/test_value_and_grad.py",
    "summary": "test_summary.py test_errors.py",
}
EVERYWHERE = "test_limits.py test_refusals.py test_odd_values.py test_defaults.py"
# the slowest tests, which compare graphs and generated code with eager code
LEFT_OUT = "one_graph_of or generated_code_of or thousand"
TIME_LIMIT = 900  # seconds for each mutant


def main(chosen: list[str]) -> None:
    if len(chosen) == 1 and chosen[0].endswith(".json"):
        rows = [(str(number), *picked(fault)) for number, fault in enumerate(json.loads(Path(chosen[0]).read_text()))]
    else:
        numbered = [
            (str(number), name, old, new, f"{old!r} -> {new!r}") for number, (name, old, new) in enumerate(MUTANTS)
        ]
        rows = [row for row in numbered if not chosen or row[0] in chosen or row[1].startswith(tuple(chosen))]
    counts = {"noticed": 0, "survived": 0, "stale": 0}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fnn"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for number, name, old, new, shown in rows:
            start = time.monotonic()
            verdict, where = try_mutant(copy, name, old, new)
            counts[verdict] += 1
            seconds = time.monotonic() - start
            print(f"{number:>3} {verdict:<8} {seconds:4.0f} s  {name}: {shown}  {where}", flush=True)
    print(f"{counts}: {100 * counts['noticed'] / max(len(rows), 1):.0f} % of {len(rows)} noticed")


def picked(fault: dict) -> tuple[str, str, str, str]:
    """A file, its text up to the end of a fault that was picked, the same with the fault, and what is changed."""
    lines = (ROOT / "fnn" / fault["file"]).read_text().splitlines(keepends=True)
    before = "".join(lines[: fault["line"] - 1])
    return (
        fault["file"],
        before + "".join(lines[fault["line"] - 1 : fault["last"]]),
        before + fault["text"],
        fault["what"],
    )


def try_mutant(copy: Path, name: str, old: str, new: str) -> tuple[str, str]:
    """Return "noticed" with the first failure, "survived", or "stale" if the text is not in the file once."""
    file = copy / "fnn" / name
    text = file.read_text() if file.exists() else ""
    if text.count(old) != 1:
        return "stale", ""
    file.write_text(text.replace(old, new))
    try:
        failure = first_failure(copy, name)
    finally:
        file.write_text(text)
    return ("noticed", failure) if failure else ("survived", "")


def first_failure(copy: Path, name: str) -> str:
    """Run the tests and the doctests of a file in fnn/. Return the first failure, or "" if there is none."""
    tests = next(tests for prefix, tests in TESTS.items() if name.startswith(prefix))
    # doctests in a process of their own: pytest imports fnn/summary.py as fnn.summary, which hides the function
    for files in ([f"tests/{test}" for test in f"{tests} {EVERYWHERE}".split()], [f"fnn/{name}"]):
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
        status = pytest.main(
            ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow", "-k", f"not ({LEFT_OUT})", *files]
        )
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
