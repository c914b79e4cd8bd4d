"""What the contract tables do not show of losses: saturation, infinities, empty batches, every argument of torch's."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, hessian, jacrev, jvp, vmap

import fnn
from fnn import losses
from tests.contracts import cases_losses

E = torch.finfo(torch.float32).eps


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_cross_entropy_of_any_arguments_is_torchs(data: st.DataObject) -> None:
    draw = data.draw
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rest = draw(st.sampled_from([(), (3,), (2, 2)]))
    one = not rest and draw(st.booleans())  # a single sample without the batch axis
    shape = (classes,) if one else (batch, classes, *rest)
    logits = draw(st.sampled_from([1.0, 50.0])) * numbers(draw(st.integers(0, 9)), *shape)
    options = {
        "weight": draw(st.sampled_from([None, numbers(1, classes).abs() + 0.1])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if draw(st.booleans()):
        targets = torch.softmax(numbers(2, *shape), 0 if one else 1)
    else:
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        targets = torch.randint(0, classes, shape[:0] if one else (batch, *rest), generator=generator)
        options["ignore_index"] = draw(st.sampled_from([-100, 0, classes]))
    ours = lambda z: losses.cross_entropy(z, targets, **options)
    theirs = lambda z: F.cross_entropy(z, targets, **options)
    torch.testing.assert_close(ours(logits), theirs(logits), equal_nan=True)
    if options["reduction"] != "none":
        torch.testing.assert_close(grad(ours)(logits), grad(theirs)(logits), equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["mse", "l1", "huber", "smooth_l1", "bce_with_logits", "cross_entropy", "nll"])
def test_an_empty_batch_gives_what_torch_gives(name: str, reduction: losses.Reduction) -> None:
    theirs = {
        "mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss, "smooth_l1": F.smooth_l1_loss,
        "bce_with_logits": F.binary_cross_entropy_with_logits, "cross_entropy": F.cross_entropy, "nll": F.nll_loss,
    }[name]  # fmt: skip
    x, classes = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    for target in [classes] if name == "nll" else [classes, x] if name == "cross_entropy" else [x]:
        ours = getattr(losses, name)(x, target, reduction=reduction)
        torch.testing.assert_close(ours, theirs(x, target, reduction=reduction), equal_nan=True)


def test_nothing_left_to_count_is_not_a_number_as_in_torch() -> None:
    assert math.isnan(losses.cross_entropy(torch.ones(2, 3), torch.tensor([-100, -100])))
    assert float(losses.cross_entropy(torch.ones(2, 3), torch.tensor([-100, -100]), reduction="sum")) == 0


def test_a_class_that_is_ruled_out_by_minus_infinity() -> None:
    logits, target = torch.tensor([[1.0, -math.inf, 2.0]]), torch.tensor([0])
    loss = lambda z: losses.cross_entropy(z, target)
    torch.testing.assert_close(loss(logits), F.cross_entropy(logits, target))
    torch.testing.assert_close(grad(loss)(logits), torch.tensor([[-0.7310586, 0.0, 0.7310586]]))


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bce_of_saturated_logits_has_its_derivatives(target: float, dtype: torch.dtype) -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 40.0, -40.0, 120.0, -120.0, 1e4, -1e4], dtype=dtype)
    weight = 3.0
    y = torch.full_like(z, target)
    slope = grad(lambda z: losses.bce_with_logits(z, y, reduction="sum", pos_weight=torch.tensor(weight, dtype=dtype)))
    s = torch.sigmoid(z.double())
    first = (1 - target) * s - weight * target * (1 - s)
    second = (1 - target + weight * target) * s * (1 - s)
    torch.testing.assert_close(slope(z).double(), first, rtol=4 * E, atol=4 * E)
    torch.testing.assert_close(jvp(slope, (z,), (torch.ones_like(z),))[1].double(), second, rtol=4 * E, atol=4 * E)


@pytest.mark.parametrize("name", ["cross_entropy", "bce_with_logits", "mse", "huber"])
def test_a_hessian_per_sample_in_one_graph(name: str) -> None:
    logits = numbers(0, 4, 3)
    target = torch.tensor([0, 2, 1, 1]) if name == "cross_entropy" else numbers(1, 4, 3).sigmoid()
    loss = lambda z, y: getattr(losses, name)(z[None], y[None])
    expected = vmap(hessian(loss))(logits, target)
    assert expected.shape == (4, 3, 3)
    # twice in reverse: torch refuses a graph of vmap over forward mode ("_fw_primal INTERNAL ASSERT FAILED")
    each = fnn.jit(vmap(jacrev(jacrev(loss))))
    torch.testing.assert_close(each(logits, target), expected)
    if name == "cross_entropy":  # diag(p) - p p^T, whatever the class
        p = torch.softmax(logits, -1)
        torch.testing.assert_close(expected, torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


@pytest.mark.parametrize("name", ["l1", "huber", "smooth_l1"])
def test_kinks_have_the_middle_slope(name: str) -> None:
    loss = lambda z: getattr(losses, name)(z, torch.zeros_like(z), reduction="sum")
    z = torch.tensor([0.0, 1.0, -1.0, 2.0])
    torch.testing.assert_close(grad(loss)(z), torch.tensor([0.0, 1.0, -1.0, 1.0]))
    assert bool(jvp(grad(loss), (z,), (torch.ones_like(z),))[1].isfinite().all())


def test_mse_by_forward_over_reverse_which_torch_refuses_or_gets_wrong() -> None:
    z, y, v = numbers(0, 5), numbers(1, 5), numbers(2, 5)
    torch.testing.assert_close(jvp(grad(lambda z: losses.mse(z, y)), (z,), (v,))[1], 2 * v / 5)


LOSSES = {
    "cross_entropy": (F.cross_entropy, lambda dtype: torch.arange(300) % 200),
    "nll": (F.nll_loss, lambda dtype: torch.arange(300) % 200),
    "cross_entropy, probabilities": (F.cross_entropy, lambda dtype: torch.softmax(numbers(1, 300, 200), 1).to(dtype)),
    "mse": (F.mse_loss, lambda dtype: (3 * numbers(1, 300, 200)).to(dtype)),
    "l1": (F.l1_loss, lambda dtype: (3 * numbers(1, 300, 200)).to(dtype)),
    "huber": (F.huber_loss, lambda dtype: (3 * numbers(1, 300, 200)).to(dtype)),
    "smooth_l1": (F.smooth_l1_loss, lambda dtype: (3 * numbers(1, 300, 200)).to(dtype)),
    "bce_with_logits": (F.binary_cross_entropy_with_logits, lambda dtype: (numbers(1, 300, 200) > 0).to(dtype)),
    "poisson_nll": (F.poisson_nll_loss, lambda dtype: (3 * numbers(1, 300, 200)).abs().floor().to(dtype)),
    "soft_margin": (F.soft_margin_loss, lambda dtype: numbers(1, 300, 200).sign().to(dtype)),
    "hinge_embedding": (F.hinge_embedding_loss, lambda dtype: numbers(1, 300, 200).sign().to(dtype)),
    "multi_margin": (F.multi_margin_loss, lambda dtype: torch.arange(300) % 200),
    "multilabel_margin": (F.multilabel_margin_loss, lambda dtype: LABELS),
    "multilabel_soft_margin": (F.multilabel_soft_margin_loss, lambda dtype: (numbers(1, 300, 200) > 0).to(dtype)),
}
LABELS = torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(i)) for i in range(300)])
LABELS[torch.arange(300), torch.arange(300) % 7] = -1


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_16_bits_are_summed_in_32(name: str, dtype: torch.dtype, autocast: bool) -> None:
    theirs, make = LOSSES[name]
    ours = getattr(losses, name.split(",")[0])
    logits, target = (3 * numbers(0, 300, 200)).to(dtype), make(dtype)
    exact = theirs(logits.double(), target.double() if target.is_floating_point() else target)
    with torch.autocast("cpu", dtype, enabled=autocast):
        value = ours(logits, target)
        assert value.dtype == (torch.float32 if autocast else dtype)
    assert float(value) == pytest.approx(float(exact), rel=1e-5 if autocast else 1.1 * torch.finfo(dtype).eps)
    slope = grad(lambda z: ours(z, target))(logits)
    assert slope.dtype == dtype
    # reduction "sum" in fp16 would overflow if it were summed in 16 bits
    total = ours(logits.float(), target, reduction="sum")
    with torch.autocast("cpu", dtype, enabled=True):
        assert float(ours(logits, target, reduction="sum")) == pytest.approx(float(total), rel=1e-4)


CLASS_WEIGHTS = {
    "cross_entropy": lambda weight: losses.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 2]), weight),
    "cross_entropy, pixels": lambda weight: losses.cross_entropy(
        torch.zeros(2, 3, 4), torch.zeros(2, 4).long(), weight
    ),
    "cross_entropy, probabilities": lambda weight: losses.cross_entropy(torch.zeros(2, 3), torch.ones(2, 3), weight),
    "nll": lambda weight: losses.nll(torch.zeros(2, 3), torch.tensor([0, 2]), weight),
    "multi_margin": lambda weight: losses.multi_margin(torch.zeros(2, 3), torch.tensor([0, 2]), weight=weight),
}


@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (), (3, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("name", CLASS_WEIGHTS)
def test_a_weight_has_one_entry_for_each_class(name: str, shape: tuple[int, ...]) -> None:
    CLASS_WEIGHTS[name](torch.ones(3))
    with pytest.raises(ValueError, match=r"one entry per class, shape \(3,\), got"):
        CLASS_WEIGHTS[name](torch.ones(shape))


@pytest.mark.parametrize("smoothing", [-0.1, 1.01, 5.0, math.nan, math.inf])
def test_smoothing_is_a_share(smoothing: float) -> None:
    for target in (torch.tensor([0, 2]), torch.full((2, 3), 1 / 3)):
        with pytest.raises(ValueError, match="0 <= label_smoothing <= 1, got"):
            losses.cross_entropy(torch.zeros(2, 3), target, label_smoothing=smoothing)


PER_ENTRY = ["mse", "l1", "huber", "smooth_l1", "bce_with_logits", "soft_margin", "poisson_nll", "kl_div"]


@pytest.mark.parametrize(
    "shapes", [((4, 3), (3, 4)), ((4, 3), (12,)), ((4, 1), (4,)), ((4,), (4, 1)), ((2, 3), (3,)), ((3,), ())]
)
@pytest.mark.parametrize("name", PER_ENTRY)
def test_shapes_that_torch_would_broadcast_are_refused(name: str, shapes: tuple) -> None:
    with pytest.raises(ValueError, match=rf"{name} expects"):
        getattr(losses, name)(*map(torch.ones, shapes))


NAMED_ITSELF = {"nll", "kl_div", "ctc"}  # whose cases fail in the log_softmax of the case
COMPLEX = {
    name: make
    for name, make in cases_losses.LOSSES.items()
    if name.split(",")[0] not in NAMED_ITSELF and make().x.is_floating_point()
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_are_right_or_refused_by_name(name: str) -> None:
    case = COMPLEX[name]()
    x = torch.complex(case.x, 0.5 * case.x)
    params = fnn.tree.map(lambda leaf: leaf.to(x.dtype), case.params)
    if name.split(",")[0] == "l1":
        torch.testing.assert_close(case.function(params, x), case.reference(params, x))
        return
    with pytest.raises(
        TypeError, match=rf"{name.split(',')[0].split('_with')[0]}\w* is for real numbers, got torch.complex"
    ):
        case.function(params, x)


def test_a_rate_of_smooth_l1_that_is_zero() -> None:
    z, y = numbers(0, 5), numbers(1, 5)
    torch.testing.assert_close(losses.smooth_l1(z, y, beta=0.0), F.smooth_l1_loss(z, y, beta=0.0))
