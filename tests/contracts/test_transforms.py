"""Every layer, activation and loss passes every transform, in eager and as one graph, against a reference.

``python -m tests.contracts.test_transforms`` runs every cell and writes docs/transforms.md from what came out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import fnn
from fnn import tree
from fnn.layers.base import ArgumentError, ShapeError
from tests.contracts import cases, cases_models
from tests.contracts.case import numbers

PAGE = Path(__file__).parents[2] / "docs" / "transforms.md"
STEP = 1e-6  # of central differences in float64


class Setting:
    """A case, a random cotangent that makes it scalar, and tangents."""

    def __init__(self, name: str):
        self.function, self.reference, self.params, self.x = cases.CASES[name]()
        self.out = self.reference(self.params, self.x)
        self.cotangent = numbers(20, *self.out.shape)
        self.tangent = tree.map(lambda leaf: numbers(21, *leaf.shape), self.params)
        self.stack = tree.stack([self.params, self.tangent, tree.scale(0.5, self.params)])

    def scalar(self, params: Any, x: Tensor) -> Tensor:
        out = self.function(params, x)
        return (out * self.cotangent[: len(out)]).sum() if out.dim() else out * self.cotangent

    def autograd(self, params: Any) -> Any:
        """The gradient of the reference by ordinary autograd."""
        leaves = [leaf.detach().clone().requires_grad_() for leaf in tree.leaves(params)]
        (self.reference(tree.structure(params).unflatten(leaves), self.x) * self.cotangent).sum().backward()
        return tree.structure(params).unflatten(
            [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        )

    def moved(self, step: float) -> Any:
        return tree.map(lambda p, t: p + step * t, self.params, self.tangent)

    def samples(self) -> Tensor:
        return self.x[:, None]


def forward(s: Setting, params: Any, x: Tensor, tangent: Any, stack: Any) -> Any:
    return s.function(params, x)


def gradient(s: Setting, params: Any, x: Tensor, tangent: Any, stack: Any) -> Any:
    return grad(s.scalar)(params, x)


def per_sample(s: Setting, params: Any, x: Tensor, tangent: Any, stack: Any) -> Any:
    return vmap(grad(s.scalar), (None, 0))(params, x[:, None])


def forward_mode(s: Setting, params: Any, x: Tensor, tangent: Any, stack: Any) -> Any:
    return jvp(lambda p: s.function(p, x), (params,), (tangent,))[1]


def hessian_product(s: Setting, params: Any, x: Tensor, tangent: Any, stack: Any) -> Any:
    return jvp(lambda p: grad(s.scalar)(p, x), (params,), (tangent,))[1]


def ensemble(s: Setting, params: Any, x: Tensor, tangent: Any, stack: Any) -> Any:
    return vmap(lambda p: s.function(p, x))(stack)


def differences(function: Callable, s: Setting) -> Any:
    high, low = function(s.moved(STEP)), function(s.moved(-STEP))
    return tree.map(lambda a, b: (a - b) / (2 * STEP), high, low)


# transform -> (how a user writes it, reference made another way, relative tolerance)
TRANSFORMS: dict[str, tuple[Callable, Callable[[Setting], Any], float]] = {
    "apply": (forward, lambda s: s.out, 1e-12),
    "grad": (gradient, lambda s: s.autograd(s.params), 1e-10),
    "vmap(grad)": (
        per_sample,
        lambda s: tree.stack([grad(s.scalar)(s.params, s.x[i : i + 1]) for i in range(len(s.x))]),
        1e-10,
    ),
    "jvp": (forward_mode, lambda s: differences(lambda p: s.reference(p, s.x), s), 1e-6),
    "jvp(grad)": (hessian_product, lambda s: differences(s.autograd, s), 1e-5),
    "vmap over params": (ensemble, lambda s: torch.stack([s.reference(p, s.x) for p in tree.unstack(s.stack)]), 1e-10),
}


def assert_close(ours: Any, reference: Any, tolerance: float) -> None:
    def check(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))

    tree.map(check, ours, reference)


def check_transform(name: str, transform: str) -> None:
    s = Setting(name)
    function, reference, tolerance = TRANSFORMS[transform]
    assert_close(function(s, s.params, s.x, s.tangent, s.stack), reference(s), tolerance)


def check_gradient_of_jvp(name: str) -> None:
    s = Setting(name)
    slope = lambda params: jvp(lambda p: s.scalar(p, s.x).sum(), (params,), (s.tangent,))[1]
    assert_close(grad(slope)(s.params), differences(s.autograd, s), 1e-5)


LARGE_GRAPHS = ("models.lenet", "models.lenet5", "models.gpt", "models.vit")
LARGE_GRAPHS += ("transformer", "transformer_encoder", "transformer_decoder", "transformer_decoder_layer")
LARGE_GRAPHS += ("transformer_decoder_layer, norm_first, is_causal", "attention_cache", "multi_head_attention, cache")
LARGE_GRAPHS += ("remat, nested, with state", "lstm, projected, two directions, lengths")
GRAPHS = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE_GRAPHS)) for name in cases.CASES]


def check_graph(name: str) -> None:
    s = Setting(name)

    def everything(*args: Any) -> list:
        return [function(s, *args) for function, _, _ in TRANSFORMS.values()]

    args = (s.params, s.x, s.tangent, s.stack)
    compiled = fnn.jit(everything)
    assert_close(compiled(*args), everything(*args), 1e-10)
    compiled(*args)
    assert fnn.compile_count(compiled) == 1


CHECKS: dict[str, Callable[[str], None]] = {
    **{transform: (lambda name, transform=transform: check_transform(name, transform)) for transform in TRANSFORMS},
    "grad(jvp)": check_gradient_of_jvp,
    "jit of each": check_graph,
}
FOUND: dict[tuple[str, str], bool] = {}  # the cells that were tried in this run


def run_cell(name: str, column: str) -> None:
    FOUND[name, column] = False
    CHECKS[column](name)
    FOUND[name, column] = True


@pytest.mark.parametrize("column", [column for column in CHECKS if column != "jit of each"])
@pytest.mark.parametrize("name", cases.CASES)
def test_equal_to_the_reference(name: str, column: str) -> None:
    run_cell(name, column)


@pytest.mark.parametrize("name", GRAPHS)
def test_one_graph_of_every_transform_equals_eager(name: str) -> None:
    run_cell(name, "jit of each")


@pytest.mark.parametrize("name", ["models.mlp", "models.lenet", "cross_entropy, weight and smoothing, classes"])
def test_generated_code_of_every_transform_equals_eager(name: str) -> None:
    s = Setting(name)
    args = (s.params, s.x, s.tangent, s.stack)
    for function, _, _ in list(TRANSFORMS.values())[1::3]:  # grad and jvp(grad)
        assert_close(fnn.jit(lambda *a, f=function: f(s, *a))(*args), function(s, *args), 1e-9)


@pytest.mark.parametrize("name", cases.CASES)
def test_pure_and_dtypes_kept(name: str) -> None:
    s = Setting(name)
    before = tree.map(torch.clone, (s.params, s.x))
    state = torch.random.get_rng_state()
    first, second = (s.function(s.params, s.x) for _ in range(2))
    gradient(s, s.params, s.x, None, None)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(tree.leaves(tree.map(torch.equal, (s.params, s.x), before)))
    assert first.dtype == torch.float64
    single = tree.cast((s.params, s.x), torch.float32)
    # losses of float32 logits take float64 targets' dtype here, and mixed_precision says its dtypes
    if name not in cases.LOSSES and name != "mixed_precision":
        assert s.function(*single).dtype == torch.float32
        assert s.function(*tree.cast(single, torch.bfloat16)).dtype == torch.bfloat16


def test_params_of_another_kind_are_a_sentence() -> None:
    tried = swapped = 0
    for name in cases.CASES:
        s = Setting(name)
        if name in cases.LOSSES or not isinstance(s.params, dict) or not s.params:
            continue
        if "scale" in s.params or name == "embedding_bag, sum, weights":
            continue  # the row reads its params itself
        tried += 1
        for wrong in (torch.ones(2), [torch.ones(2)], 3, None):
            with pytest.raises((ArgumentError, ShapeError), match="expects"):
                s.function(wrong, s.x)
        if s.function.__module__.startswith("fnn."):  # other rows use the inputs before the layer gets them
            swapped += 1
            with pytest.raises(ArgumentError, match=r"expects its params as a dict|params come first"):
                s.function(s.x, s.params)
    assert tried > 100
    assert swapped > 40


def test_every_public_name_is_in_the_table() -> None:
    listed = {name.split(",")[0] for name in cases.CASES}
    public = set(fnn.layers.__all__) - cases.NOT_LAYERS
    public |= set(fnn.losses.__all__)
    public |= {f"models.{name}" for name in fnn.models.__all__} - cases_models.LARGE
    assert public == listed


def page(cells: dict[tuple[str, str], str]) -> str:
    header = ["", *CHECKS]
    introduction = """
# Layers and transforms

`python -m tests.contracts.test_transforms` runs every cell in float64 and writes the result here: forward and
gradient against `torch.nn` and ordinary autograd, `vmap(grad)` against a loop, `jvp`, `jvp(grad)` and `grad(jvp)`
against central differences, `vmap` over params against a loop of `torch.nn`, and one graph of all against eager.
`yes` means equal to the reference; anything else is the error. The tests run the same cells and compare them with this
page. torch """
    lines = [
        f"{introduction.lstrip()}{torch.__version__.split('+')[0]}.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *["| " + " | ".join([name, *[cells[name, column] for column in CHECKS]]) + " |" for name in cases.CASES],
    ]
    return "\n".join(lines) + "\n"


def documented() -> dict[tuple[str, str], str]:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    columns = [column.strip() for column in rows[0]]
    return {(row[0], column): cell for row in rows[1:] for column, cell in zip(columns, row[1:], strict=True)}


def test_the_documented_table_says_what_was_found() -> None:
    cells = documented()
    assert {name for name, _ in cells} == set(cases.CASES), "write it anew: python -m tests.contracts.test_transforms"
    assert {column for _, column in cells} == set(CHECKS)
    for cell, passed in FOUND.items():  # those of this process, in the order of the file
        assert (cells[cell] == "yes") == passed, cell


def outcome(name: str, column: str) -> str:
    try:
        run_cell(name, column)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}".replace("|", "/")
    return "yes"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page({(name, column): outcome(name, column) for name in cases.CASES for column in CHECKS}))
