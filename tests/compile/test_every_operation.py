"""The functions of torch.nn.functional in torch's own table, replayed, have the bits of eager code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import fnn

table = pytest.importorskip("torch.testing._internal.common_methods_invocations")
RANDOM = (
    "dropout",
    "rrelu",
    "fractional_max_pool",
    "scaled_dot_product_attention",
    "gumbel",
)  # by the global generator
OPERATIONS = {
    f"{op.name}.{op.variant_test_name}".rstrip("."): op
    for op in table.op_db
    if op.name.startswith("nn.functional.")
    and torch.float32 in op.dtypes
    and not any(word in op.name for word in RANDOM)
}
# torch takes this apart into other operations when it traces
ROUNDED = {"nn.functional.binary_cross_entropy_with_logits"}


def samples(op: Any) -> list[tuple[Callable, list[Tensor]]]:
    """Three functions of a list of tensors to a list of tensors, with their arguments, spread over the table."""
    found = []
    for sample in op.sample_inputs("cpu", torch.float32):
        leaves, spec = tree_flatten((sample.input, list(sample.args), dict(sample.kwargs)))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def function(given: list[Tensor], leaves=leaves, spec=spec, places=places) -> list[Tensor]:
            values = list(leaves)
            for i, x in zip(places, given, strict=True):
                values[i] = x
            first, args, kwargs = tree_unflatten(values, spec)
            return [y for y in tree_flatten(op.get_op()(first, *args, **kwargs))[0] if isinstance(y, Tensor)]

        found.append((function, [leaves[i] for i in places]))
    return found[:: max(1, len(found) // 3)][:3]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "loss" in name else [pytest.mark.slow]) for name in OPERATIONS]
)
def test_replay_has_the_bits_of_eager_code(name: str) -> None:
    for function, given in samples(OPERATIONS[name]):
        expected = function([x.clone() for x in given])
        try:
            results = fnn.jit(function)([x.clone() for x in given])
        except TypeError as error:  # jit refuses what depends on values
            if "value" not in str(error):
                raise
            continue
        tolerance = 1e-5 if name in ROUNDED else 0.0
        for ours, theirs in zip(results, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
