"""The table of a network, against the numbers of PyTorch's tutorials and of the operations that really run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fnn
from fnn import layers, tree

META = fnn.random.key(0, "meta")


def test_the_numbers_of_the_tutorials() -> None:
    for model, shape, count in (
        (fnn.models.lenet(), (1, 1, 32, 32), 81_194),
        (fnn.models.mlp(784, 512, 512, 10), (1, 784), 669_706),
        (fnn.models.mlp(2352, 20, 10), (1, 2352), 47_270),
    ):
        table = fnn.summary(model, model.init(META), torch.zeros(shape))
        assert table.total.parameters == sum(row.parameters for row in table.rows) == count
        assert table.total.bytes == 4 * count
        assert table.total.shape == (1, 10)


def network() -> fnn.StatefulLayer:
    gate = layers.connect(
        lambda parts, x: parts.a(x) * torch.sigmoid(x @ torch.ones_like(x).mT @ x), a=layers.linear(8, 8)
    )
    return layers.sequential(
        conv=layers.conv2d(1, 4, 3), norm=layers.batch_norm(4), flat=layers.flatten,
        body=layers.residual(layers.linear(64, 8), layers.linear(64, 8, bias=False)),
        tower=layers.repeat(layers.residual(layers.linear(8, 8)), 3), again=layers.remat(gate),
        head=layers.linear(8, 2),
    )  # fmt: skip


def test_rows_and_totals_are_what_runs() -> None:
    model = network()
    params, state = model.init(fnn.random.key(0))
    x = torch.ones(5, 1, 6, 6)
    table = fnn.summary(model, params, state, x)
    assert all(not leaf.requires_grad for leaf in tree.leaves(params))
    leaves = [leaf.detach().requires_grad_() for leaf in tree.leaves(params)]
    with FlopCounterMode(display=False) as forward:
        y, _ = model.apply(tree.structure(params).unflatten(leaves), state, x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert table.total.forward_flops == forward.get_total_flops()
    assert table.total.backward_flops == backward.get_total_flops()
    for name in ("parameters", "bytes", "forward_flops", "backward_flops"):
        assert sum(getattr(row, name) for row in table.rows) == getattr(table.total, name), name
    assert [(row.path, row.layer, row.shape) for row in table.rows] == [
        ("conv", "conv2d(1, 4, 3)", (5, 4, 4, 4)),
        ("norm", "batch_norm(4)", (5, 4, 4, 4)),
        ("flat", "flatten", (5, 64)),
        ("body.layer", "linear(64, 8)", (5, 8)),
        ("body.shortcut", "linear(64, 8, bias=False)", (5, 8)),
        ("tower", "repeat(..., 3)", (5, 8)),
        ("again", "remat(...)", (5, 8)),
        ("head", "linear(8, 2)", (5, 2)),
    ]
    assert table.rows[0].forward_flops == 2 * 5 * 4 * 16 * 9
    assert table.rows[0].backward_flops == table.rows[0].forward_flops  # the images have no gradient
    assert table.rows[-1].backward_flops == 2 * table.rows[-1].forward_flops


def test_what_runs_outside_of_parts_is_a_row() -> None:
    inner = layers.linear(4, 4)
    own = layers.connect(lambda parts, x: parts.a(x) @ torch.ones(4, 3, device=x.device), a=inner)
    table = fnn.summary(own, own.init(META), torch.ones(2, 4))
    assert table.rows[-1].path == "(outside)"
    assert table.rows[-1].forward_flops == 2 * 2 * 4 * 3
    plain = fnn.Layer(inner.init, lambda params, x, *, key=None: inner.apply(params, x))
    (row,) = fnn.summary(plain, plain.init(META), torch.ones(2, 4)).rows
    assert (row.path, row.parameters, row.forward_flops) == ("", 20, 2 * 2 * 16)


def test_what_has_no_gradient_costs_nothing_backward() -> None:
    """Params that the output does not use, and an output without a gradient."""
    used = layers.linear(4, 3)
    own = {
        "one unused": fnn.Layer(
            lambda key: used.init(key) | {"unused": torch.ones(5)}, lambda params, x: x @ params["weight"].mT
        ),
        "no gradient": fnn.Layer(used.init, lambda params, x: (x @ params["weight"].mT).argmax(-1)),
    }
    shown = {name: fnn.summary(layer, layer.init(fnn.random.key(0)), torch.ones(2, 4)) for name, layer in own.items()}
    costs = {name: (t.total.parameters, t.total.forward_flops, t.total.backward_flops) for name, t in shown.items()}
    assert costs == {"one unused": (20, 48, 48), "no gradient": (15, 48, 0)}


def test_a_table_of_params_alone() -> None:
    params = {"a": torch.ones(2, 3), "b": {"c": torch.tensor(1.0)}}
    table = fnn.summary(params)
    assert " ".join(str(table).split()) == "path shape parameters bytes a (2, 3) 6 24 b.c () 1 4 total 7 28"
    assert [row.parameters for row in table.rows] == [6, 1]
    with pytest.raises(TypeError, match=r"write summary\(model, params, state, x\)"):
        fnn.summary(network())


def test_a_table_of_params_has_the_numbers_of_every_leaf() -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64)
    params = {str(dtype).removeprefix("torch."): torch.ones(3, 500, dtype=dtype) for dtype in dtypes}
    params |= {"scalar": torch.ones(()), "empty": torch.ones(0, 2)}
    table = fnn.summary(params)
    assert [row.path for row in table.rows] == list(fnn.tree.paths(params))
    for row in table.rows:
        leaf = params[row.path]
        assert (row.shape, row.parameters, row.bytes) == (leaf.shape, leaf.numel(), leaf.untyped_storage().nbytes())
    assert table.total.parameters == 10_501
    assert table.total.bytes == sum(leaf.untyped_storage().nbytes() for leaf in params.values())
    for row, line in zip([*table.rows, table.total], str(table).splitlines()[1:], strict=True):
        assert line.split()[0] == row.path
        assert line.split()[-2:] == [f"{row.parameters:,}", f"{row.bytes:,}"]
