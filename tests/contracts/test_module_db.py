"""Every counterpart of a module runs on torch's own inputs: values and derivatives, in training and in evaluation.

``python -m tests.contracts.test_module_db`` runs all inputs and writes docs/module_db.md; the tests run a few of each
module, and all of them with ``-m slow``.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from docs import make_torch_nn
from fnn import tree
from tests.contracts.case import numbers
from tests.contracts.module_db import Subject, modules, subjects

PAGE = Path(__file__).parents[2] / "docs" / "module_db.md"
STEP = 1e-6  # of central differences in float64


class Setting:
    """A subject, a direction in which its values move, and cotangents that make a scalar of its outputs."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.values = subject.values
        self.tangent = tree.map(lambda leaf: numbers(31, *leaf.shape), self.values)
        self.expected = floating(subject.theirs(self.values))
        self.cotangents = [numbers(32, *leaf.shape) for leaf in self.expected]

    def scalar(self, outputs: Any) -> Tensor:
        return sum(((a * b).sum() for a, b in zip(floating(outputs), self.cotangents, strict=True)), torch.zeros(()))

    def ours(self, values: Any) -> Tensor:
        return self.scalar(self.subject.ours(values))

    def theirs(self, values: Any) -> Any:
        """The gradient of torch's module by ordinary autograd."""
        leaves = [leaf.detach().clone().requires_grad_() for leaf in tree.leaves(values)]
        value = self.scalar(self.subject.theirs(tree.structure(values).unflatten(leaves)))
        found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return tree.structure(values).unflatten(list(found))

    def differences(self, f: Callable[[Any], Any]) -> Any:
        moved = [tree.map(lambda v, t, s=s: v + s * t, self.values, self.tangent) for s in (STEP, -STEP)]
        high, low = (f(values) for values in moved)
        return tree.map(lambda a, b: (a - b) / (2 * STEP), high, low)


def floating(outputs: Any) -> list[Tensor]:
    leaves = [outputs] if isinstance(outputs, Tensor) else tree.leaves(outputs)
    return [leaf for leaf in leaves if leaf is not None and leaf.is_floating_point()]


def slope(s: Setting, values: Any) -> Tensor:
    return jvp(s.ours, (values,), (s.tangent,))[1]


def per_copy(s: Setting) -> Any:
    halves = tree.map(lambda leaf: torch.stack([leaf, 0.5 * leaf]), s.values)
    return vmap(grad(s.ours))(halves)


# what is run -> (by fnn, by torch or by differences of torch, tolerance)
RUNS: dict[str, tuple[Callable[[Setting], Any], Callable[[Setting], Any], float]] = {
    "output": (lambda s: floating(s.subject.ours(s.values)), lambda s: s.expected, 1e-10),
    "grad": (lambda s: grad(s.ours)(s.values), lambda s: s.theirs(s.values), 1e-9),
    "vmap(grad)": (
        per_copy,
        lambda s: tree.stack([s.theirs(s.values), s.theirs(tree.scale(0.5, s.values))]),
        1e-9,
    ),
    "jvp": (
        lambda s: jvp(lambda v: floating(s.subject.ours(v)), (s.values,), (s.tangent,))[1],
        lambda s: s.differences(lambda v: floating(s.subject.theirs(v))),
        1e-5,
    ),
    "jvp(grad)": (
        lambda s: jvp(grad(s.ours), (s.values,), (s.tangent,))[1],
        lambda s: s.differences(s.theirs),
        1e-5,
    ),
    "grad(jvp)": (lambda s: grad(lambda v: slope(s, v))(s.values), lambda s: s.differences(s.theirs), 1e-5),
}


class Found:
    """What came out: inputs tried, the largest relative difference, refusals and errors."""

    def __init__(self) -> None:
        self.tried = 0
        self.exact = self.by_differences = 0.0
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, make: Callable[[], Subject], label: str) -> None:
        self.tried += 1
        try:
            s = Setting(make())
            s.subject.ours(s.values)
        except (ValueError, TypeError) as error:
            if "unexpected keyword argument" in str(error):
                self.wrong.append(f"{label}: {error}")
            self.refused[str(error).splitlines()[0]] += 1
            return
        for transform, (ours, reference, tolerance) in RUNS.items():
            if not tree.leaves(s.values) and transform != "output":
                continue
            size = largest_difference(ours(s), reference(s), exact=tolerance < 1e-6)
            if not size <= tolerance:
                self.wrong.append(f"{label}: {transform} differs by {size:.1e}")
            elif tolerance < 1e-6:  # not by differences
                self.exact = max(self.exact, size)
            else:
                self.by_differences = max(self.by_differences, size)


def largest_difference(ours: Any, reference: Any, exact: bool) -> float:
    """The largest difference of two trees over the larger of 1 and the largest entry of the reference's leaf.

    Infinities and nan must be equal, unless the reference is a difference quotient, which has none of its own.
    """
    worst = 0.0
    pairs = list(zip(tree.leaves(ours), tree.leaves(reference), strict=True))
    for a, b in pairs:
        assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
        finite = b.isfinite()
        if exact and not torch.equal(a[~finite].nan_to_num(nan=7.0), b[~finite].nan_to_num(nan=7.0)):
            return float("inf")
        a, b = a[finite], b[finite]
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1.0)))
            worst = worst if bool(a.isfinite().all()) else float("inf")
    return worst


def found(name: str, limit: int | None = None) -> Found:
    result = Found()
    for training in (True, False):
        for number, make in enumerate(subjects(name, training, limit)):
            result.run(make, f"{name}, input {number}, {'training' if training else 'evaluation'}")
    return result


@pytest.mark.parametrize("limit", [1, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", modules())
def test_equal_to_the_module(name: str, limit: int | None) -> None:
    result = found(name, limit)
    assert not result.wrong, "\n".join(result.wrong)
    assert result.tried > 0
    documented = rows()[name]
    if limit is None and documented["torch"] == torch.__version__.split("+")[0]:
        assert result.tried == int(documented["inputs"])
        assert sum(result.refused.values()) == int(documented["refused"])


def rows() -> dict[str, dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")][1:]
    version = PAGE.read_text().split("With torch ")[1].split(":")[0]
    return {row[0].strip("`"): {"inputs": row[2], "refused": row[5], "torch": version} for row in lines}


def test_every_counterpart_in_torchs_table_is_documented() -> None:
    assert set(modules()) <= set(rows())  # older versions of torch have fewer


def test_a_wrong_function_is_noticed() -> None:
    (make, *_) = subjects("ELU", True)
    right = make()
    for name, wrong in {
        "value": lambda v: right.ours(v) + 1e-6,
        "first derivative": lambda v: tree.map(torch.detach, right.ours(v)),
        "second derivative": lambda v: (right.ours(v).detach() + right.ours(v) - right.ours(v).detach()) * 1.0001,
    }.items():
        result = Found()
        result.run(lambda wrong=wrong: right._replace(ours=wrong), "wrong")
        assert result.wrong, name


@pytest.mark.parametrize("name", make_torch_nn.classes())
def test_every_class_of_torch_nn_has_its_line(name: str) -> None:
    line = make_torch_nn.row(name)
    assert not line.endswith(f"{make_torch_nn.MISSING} |")
    assert line in make_torch_nn.PAGE.read_text(), "run python docs/make_torch_nn.py"


def page(results: dict[str, Found]) -> str:
    total = sum(result.tried for result in results.values())
    refused = sum(sum(result.refused.values()) for result in results.values())
    wrong = [line for result in results.values() for line in result.wrong]
    version = torch.__version__.split("+")[0]
    introduction = f"""
# Layers and losses on torch's own inputs

`python -m tests.contracts.test_module_db` runs every counterpart of a module on the inputs of torch's own tests,
`torch.testing._internal.common_modules.module_db`, in float64, in training and in evaluation, with the same arguments:
outputs, `grad` and `vmap(grad)` against the module and ordinary autograd (difference A), `jvp`, `jvp(grad)` and
`grad(jvp)` against central differences of them (difference B). Differences are relative to the larger of 1 and the
largest entry. Derivatives are taken with respect to params and floating inputs, but not targets.
With torch {version}: of {total} inputs, {refused} were refused with a sentence, and {len(wrong)} came out wrong.

| `torch.nn` | fnn | inputs | difference A | difference B | refused |
|---|---|---|---|---|---|
"""
    lines = [introduction.strip()]
    for name, result in results.items():
        cells = [f"`{name}`", f"`{make_torch_nn.counterpart(name)}`", str(result.tried)]
        cells += [f"{result.exact:.0e}", f"{result.by_differences:.0e}", str(sum(result.refused.values()))]
        lines.append("| " + " | ".join(cells) + " |")
    sentences = [
        f"- `{name}`, {count}: {sentence}"
        for name, result in results.items()
        for sentence, count in result.refused.items()
    ]
    listed = ["", "Refused:", "", *sentences] if sentences else []
    return "\n".join([*lines, *listed, *wrong]) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page({name: found(name) for name in modules()}))
