"""Second derivatives of every operation of torch's own table, under two losses, against finite differences in float64.

The references are central differences of the function, of its gradient and of its output. A call may raise one of fnn's
own errors (a refusal), but it may not give another number.
"""

import collections
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import fnn
from fnn.curvature import dense_hessian, ggn_diagonal, ggn_operator, ggn_product, hessian_diagonal, hvp
from fnn.jacobian import (
    blocks_to_matrix,
    dense_jacobian,
    directional_derivatives,
    jacobian_operator,
    jmp,
    laplacian,
    linearize_by_vjp,
    mjp,
)
from fnn.jacobian.torch_rules import MissingRuleError

table = pytest.importorskip("torch.testing._internal.common_methods_invocations")
OPERATIONS = {
    f"{op.name}.{op.variant_test_name}".rstrip("."): op
    for op in table.op_db
    if op.supports_autograd and torch.float64 in op.dtypes
}
# operations that torch has had wrong, or without a rule, in at least one mode
FAST = [
    "nn.functional.layer_norm", "nn.functional.batch_norm", "nn.functional.instance_norm", "nn.functional.group_norm",
    "nn.functional.mse_loss", "nn.functional.huber_loss", "nn.functional.soft_margin_loss", "nn.functional.glu",
    "nn.functional.hardsigmoid", "nn.functional.scaled_dot_product_attention", "cdist", "triangular_solve",
    "scatter_reduce.prod", "linalg.householder_product", "cholesky_inverse", "masked_select", "softmax",
    "nn.functional.linear_cross_entropy.chunked", "linalg.solve", "linalg.det", "linalg.slogdet",
]  # fmt: skip
# torch's rules give nan at samples of these operations (a power of zero, a norm at zero)
NOT_A_NUMBER = {"__rpow__", "linalg.norm.subgradients_at_zero", "masked.logaddexp", "linalg.eig", "pow", "float_power"}
LOSSES = {"mse": F.mse_loss, "cubic": lambda y, t: ((y - t) ** 3).mean()}
NUMBERS = 40  # of the arguments, in all; of larger samples a few entries of each tensor are the arguments
SOME = 6  # entries of a tensor that is too large
OUTPUTS = 130  # numbers of the output, in all; of more a few entries of each tensor are the output


def cases(op, count: int):
    """Functions ``tuple of tensors -> list of tensors`` and their arguments, from the samples of torch's table.

    Small samples come first, in steps over the table; ``4 * count`` are tried at most.
    """
    small, large = [], []
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        leaves, spec = tree_flatten((sample.input, list(sample.args), dict(sample.kwargs)))
        tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        if any(there and leaf.layout != torch.strided for there, leaf in zip(tensors, leaves, strict=True)):
            continue
        chosen = [
            i for i, leaf in enumerate(leaves) if tensors[i] and leaf.dtype == torch.float64 and leaf.requires_grad
        ]
        size = sum(leaves[i].numel() for i in chosen)
        if size > 0:
            fixed = [leaf.detach() if there else leaf for there, leaf in zip(tensors, leaves, strict=True)]
            (small if size <= NUMBERS else large).append((sample, fixed, chosen, spec, size > NUMBERS))
    spread = [part[:: max(1, len(part) // count)] for part in (small, large)]
    for sample, fixed, chosen, spec, partly in (spread[0] + spread[1])[: 4 * count]:
        places = {i: some(fixed[i].numel()) for i in chosen} if partly else {}

        def outputs(primals, sample=sample, fixed=fixed, chosen=chosen, spec=spec, places=places):
            given = list(fixed)
            for i, primal in zip(chosen, primals, strict=True):
                given[i] = primal
                if i in places:
                    given[i] = fixed[i].reshape(-1).index_copy(0, places[i], primal).reshape(fixed[i].shape)
            first, args, kwargs = tree_unflatten(given, spec)
            result = sample.output_process_fn_grad(op.gradcheck_wrapper(op.get_op(), first, *args, **kwargs))
            found = [y for y in tree_flatten(result)[0] if isinstance(y, Tensor)]
            ys = [torch.view_as_real(y.resolve_conj()) if y.is_complex() else y for y in found]
            ys = [y for y in ys if y.dtype == torch.float64]
            if sum(y.numel() for y in ys) > OUTPUTS:
                ys = [y.reshape(-1)[some(y.numel())] for y in ys]
            return ys

        yield (
            outputs,
            tuple(fixed[i].reshape(-1)[places[i]].clone() if i in places else fixed[i].clone() for i in chosen),
        )


def some(size: int) -> Tensor:
    """A few places in a tensor of so many numbers, from the first to the last."""
    return torch.linspace(0, size - 1, min(size, SOME)).round().long()


def differences(f, x: Tensor) -> Tensor | None:
    """The Jacobian (outputs, inputs) of a function of a vector; None where it is not smooth within the steps."""

    def columns(h: float) -> Tensor:
        return torch.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in torch.eye(len(x)).double()], 1)

    fine, coarse = columns(1e-5), columns(2e-5)
    smooth = (fine - coarse).abs().max() <= 1e-5 * max(1.0, float(fine.abs().max()))
    return (4 * fine - coarse) / 3 if smooth else None


def check(op, name: str, count: int) -> collections.Counter:
    """What came of ``count`` samples of an operation, all derivatives under both losses."""
    seen: collections.Counter = collections.Counter()
    used = 0
    for outputs, x in cases(op, count):
        try:
            ys, again = outputs(x), outputs(x)
        except Exception:
            continue
        if not ys or any(y.numel() == 0 or not y.isfinite().all() for y in ys):
            continue
        if all(torch.equal(a, b) for a, b in zip(ys, again, strict=True)):  # not random
            before = seen["compared"]
            for kind in LOSSES:
                check_case(outputs, x, ys, kind, name, seen)
            used += seen["compared"] > before
        if used == count:
            break
    return seen


def flat(tree) -> Tensor:
    return fnn.tree.ravel(tree)[0]


def rows(stacked) -> Tensor:
    return torch.stack([flat(fnn.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(2)])


def check_case(outputs, x, ys, kind: str, name: str, seen: collections.Counter) -> None:
    vector, unravel = fnn.tree.ravel(x)
    targets = [torch.full_like(y, 0.3) for y in ys]

    def compare(out):
        return sum(LOSSES[kind](y, t) for y, t in zip(out, targets, strict=True))

    def f(p):
        return compare(outputs(p))

    def gradient(v):
        return flat(torch.func.grad(f)(unravel(v)))

    try:
        slope = gradient(vector)
    except RuntimeError:  # torch.func itself cannot differentiate it once
        seen["no gradient"] += 1
        return
    numeric = differences(lambda v: f(unravel(v)).reshape(1), vector)
    H = differences(gradient, vector)
    J = differences(lambda v: flat(outputs(unravel(v))), vector)
    if numeric is None or H is None or J is None:
        seen["not smooth"] += 1
        return
    if (numeric[0] - slope).abs().max() > 1e-5 * (1 + slope.abs().max()):
        seen["no derivative, or not torch's"] += 1
        return
    seen["compared"] += 1
    y, unravel_output = fnn.tree.ravel(ys)
    sizes = torch.cat([torch.full((t.numel(),), float(t.numel())) for t in ys]).double()
    middle = (torch.full_like(y, 2.0) if kind == "mse" else 6 * (y - 0.3)) / sizes
    G = J.T @ (middle[:, None] * J)
    v = fnn.random.normal(fnn.random.key(0), (len(vector),), torch.float64)
    u = fnn.random.normal(fnn.random.key(1), (len(y),), torch.float64)
    t = unravel(v)
    stack = tuple(torch.stack([leaf, -2.0 * leaf]) for leaf in t)
    cotangents = [torch.stack([leaf, -2.0 * leaf]) for leaf in unravel_output(u)]
    two = torch.tensor([1.0, -2.0]).double()[:, None]
    # the function has one argument, a tuple of tensors
    calls = {
        "hvp": lambda: (flat(hvp(f, (x,), (t,))[1]), H @ v),
        "hvp, forward over reverse": lambda: (flat(hvp(f, (x,), (t,), "forward-over-reverse")[1]), H @ v),
        "hvp, reverse over forward": lambda: (flat(hvp(f, (x,), (t,), "reverse-over-forward")[1]), H @ v),
        "dense_hessian": lambda: (blocks_to_matrix(dense_hessian(f)(x), x), H),
        "hessian_diagonal": lambda: (flat(hessian_diagonal(f)(x)), H.diagonal()),
        "ggn_product": lambda: (flat(ggn_product(outputs, compare, (x,), (t,))[1]), G @ v),
        "ggn_operator": lambda: (flat(ggn_operator(outputs, compare, x) @ t), G @ v),
        "ggn_diagonal": lambda: (flat(ggn_diagonal(outputs, compare)(x)), G.diagonal()),
        "laplacian": lambda: (laplacian(f)(x).reshape(1), H.trace().reshape(1)),
        "directional_derivatives": lambda: (
            torch.stack(directional_derivatives(f, (x,), (t,))),
            torch.stack([f(x), slope @ v, v @ H @ v]),
        ),
    }
    if kind == "mse":  # the derivatives of the outputs, once
        calls |= {
            "jmp": lambda: (rows(jmp(outputs, (x,), (stack,))[1]), two * (J @ v)),
            "mjp": lambda: (rows(mjp(outputs, (x,), cotangents)[1]), two * (u @ J)),
            "linearize_by_vjp": lambda: (flat(linearize_by_vjp(outputs, x)[1](t)), J @ v),
            "dense_jacobian, forward": lambda: (blocks_to_matrix(dense_jacobian(outputs, 0, "forward")(x), x), J),
            "dense_jacobian, reverse": lambda: (blocks_to_matrix(dense_jacobian(outputs, 0, "reverse")(x), x), J),
            "jacobian_operator": lambda: (flat(jacobian_operator(outputs, x) @ t), J @ v),
        }
    for what, call in calls.items():
        try:
            ours, theirs = call()
        except MissingRuleError:
            seen[f"refused: {what}"] += 1
            continue
        if not ours.isfinite().all():
            assert name in NOT_A_NUMBER, f"{what} of {name} under {kind} is {ours}"
            seen["nan"] += 1
            continue
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-2)
        assert error < 1e-4, f"{what} of {name} under {kind} is off by {float(error):.2g}"
        seen["right"] += 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in FAST if name in OPERATIONS])
def test_operations_that_torch_has_wrong_or_lacks(name):
    seen = check(OPERATIONS[name], name, 1)
    assert seen.total() > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_operation(part, record_property):
    total: collections.Counter = collections.Counter()
    wrong = []
    for name in list(OPERATIONS)[part::8]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                total += check(OPERATIONS[name], name, 1)
            except AssertionError as error:
                wrong.append(str(error))
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}"[:300])
    record_property("cases", dict(total))
    print(dict(total))
    assert not wrong, "\n".join(wrong)
