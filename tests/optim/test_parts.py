"""Hyperparameters by name, parts of the params, wrappers: what the table of optimizers does not show."""

import copy
import math

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fnn
from fnn import optim, tree

PARAMS = {
    "body": {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bias": torch.tensor([5.0, 6.0])},
    "head": {"weight": torch.tensor([[7.0, 8.0]]), "bias": torch.tensor([9.0])},
}
SAM = optim.sam(optim.sgd(0.1))
GRADS = tree.map(lambda p: 0.1 * p, PARAMS)


def test_hyperparameters_are_read_and_set_by_name() -> None:
    opt = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(0.1, betas=(0.8, 0.9)))
    state = opt.init(PARAMS)
    values = {name: float(value) for name, value in optim.get_hyperparams(state).items()}
    expected = {"max_norm": 1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.01, "learning_rate": 0.1}
    assert values == expected
    changed = optim.set_hyperparams(state, learning_rate=0.3, beta1=0.5)
    other = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(0.3, betas=(0.5, 0.9)))
    ours, theirs = opt.update(GRADS, changed, PARAMS)[0], other.update(GRADS, other.init(PARAMS), PARAMS)[0]
    assert tree.allclose(ours, theirs, rtol=0, atol=0)
    assert float(optim.get_hyperparams(state)["learning_rate"]) == 0.1  # the given state is as it was
    with pytest.raises(ValueError, match=r"no hyperparameter 'momentum'.*learning_rate"):
        optim.set_hyperparams(state, momentum=0.9)
    with pytest.raises(ValueError, match=r"0-d tensor, got one of shape \(2,\)"):
        optim.set_hyperparams(state, learning_rate=torch.ones(2))


def test_names_in_several_parts_carry_their_place() -> None:
    opt = optim.multi_transform({"body": optim.sgd(0.1), "head": optim.adam(0.2)}, lambda path: path.split(".")[0])
    state = opt.init(PARAMS)
    names = optim.get_hyperparams(state)
    rates = {name: float(value) for name, value in names.items() if "learning_rate" in name}
    assert rates == {"parts.body.0.learning_rate": 0.1, "parts.head.1.learning_rate": 0.2}
    one = optim.get_hyperparams(optim.set_hyperparams(state, **{"parts.body.0.learning_rate": 0.5}))
    assert [float(one[name]) for name in rates] == [0.5, 0.2]
    both = optim.get_hyperparams(optim.set_hyperparams(state, learning_rate=0.7))
    assert [float(both[name]) for name in rates] == [0.7, 0.7]


def test_multi_transform_gives_each_leaf_its_optimizer() -> None:
    opt = optim.multi_transform(
        {"slow": optim.sgd(0.1), "fast": optim.sgd(1.0)}, lambda path, leaf: "fast" if leaf.dim() > 1 else "slow"
    )
    updates, _ = opt.update(GRADS, opt.init(PARAMS), PARAMS)
    torch.testing.assert_close(updates["body"]["weight"], -GRADS["body"]["weight"])
    torch.testing.assert_close(updates["head"]["bias"], -0.1 * GRADS["head"]["bias"])
    with pytest.raises(
        ValueError, match=r"'body.bias' has the label 'none', but the optimizers are \['fast', 'slow'\]"
    ):
        optim.multi_transform({"slow": optim.sgd(0.1), "fast": optim.sgd(1.0)}, lambda path: "none").init(PARAMS)


def test_frozen_leaves_do_not_move_decay_or_count_in_the_norm() -> None:
    inner = optim.chain(optim.clip_by_global_norm(0.5), optim.adamw(0.1, weight_decay=0.1))
    opt = optim.freeze(inner, lambda path: path.startswith("body"))
    state = opt.init(PARAMS)
    updates, after = opt.update(GRADS, state, PARAMS)
    assert not any(bool(leaf.any()) for leaf in tree.leaves(updates["body"]))
    head = {"head": PARAMS["head"]}
    alone, _ = inner.update({"head": GRADS["head"]}, inner.init(head), head)
    assert tree.allclose({"head": updates["head"]}, alone, rtol=0, atol=0)
    held = [leaf for path, leaf in tree.items(after) if "mean" in path]
    assert sum(leaf.numel() for leaf in held) == tree.size(PARAMS["head"])


@pytest.mark.parametrize(
    "choice",
    [
        lambda path: path == "head.bias",
        lambda path, wanted="head.bias": path == wanted,
        lambda path, leaf: path == "head.bias" and leaf.dim() == 1,
        lambda path, leaf, wanted="head.bias": path == wanted and leaf.numel() == 1,
    ],
)
def test_a_choice_gets_the_path_and_the_leaf_if_it_asks_for_both(choice) -> None:
    for opt in (
        optim.mask(optim.scale(0.0), choice, rest="pass"),
        optim.multi_transform({True: optim.scale(0.0), False: optim.identity()}, choice),
        optim.freeze(optim.identity(), choice),
    ):
        updates, _ = opt.update(GRADS, opt.init(PARAMS), PARAMS)
        assert {path for path, leaf in tree.items(updates) if not leaf.any()} == {"head.bias"}


@pytest.mark.parametrize(("p", "g"), [(0.0, 0.0), (0.0, 3.0), (2.0, 0.0), (2.0, 3.0)])
def test_a_trust_ratio_without_a_norm_is_one(p: float, g: float) -> None:
    params, grads = (
        {"w": torch.tensor([p, 0.0]), "other": torch.ones(3)},
        {"w": torch.tensor([0.0, g]), "other": torch.ones(3)},
    )
    opt = optim.scale_by_trust_ratio(0.5)
    updates, _ = opt.update(grads, opt.init(params), params)
    assert updates["w"].tolist() == pytest.approx([0.0, 0.5 * p if p and g else g])
    assert updates["other"].tolist() == pytest.approx([0.5] * 3)


def test_nans_become_zero_and_infinities_stay() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -2.0])
    updates, _ = optim.zero_nans().update({"w": values}, optim.zero_nans().init({"w": values}))
    assert updates["w"].tolist() == [0.0, math.inf, -math.inf, 0.0, -2.0]


def test_mask_says_what_the_rest_gets() -> None:
    weights = lambda path: path.endswith("weight")
    passed = optim.mask(optim.scale(3.0), weights, rest="pass")
    updates, _ = passed.update(GRADS, passed.init(PARAMS), PARAMS)
    torch.testing.assert_close(updates["body"]["weight"], 3 * GRADS["body"]["weight"])
    assert torch.equal(updates["body"]["bias"], GRADS["body"]["bias"])
    nothing = optim.mask(optim.scale(3.0), weights, rest="zero")
    assert not nothing.update(GRADS, nothing.init(PARAMS), PARAMS)[0]["body"]["bias"].any()
    with pytest.raises(ValueError, match=r'"zero" .* or "pass"'):
        optim.mask(optim.scale(3.0), weights, rest="keep")


def test_parts_of_lists_and_tuples() -> None:
    params = [(torch.ones(2), torch.ones(3)), {"b": torch.ones(1), "a": torch.ones(1)}]
    opt = optim.multi_transform(
        {"x": optim.sgd(1.0), "y": optim.sgd(2.0), "z": optim.sgd(3.0)},
        lambda path: {"0.0": "x", "1.a": "y"}.get(path, "z"),
    )
    updates, _ = opt.update(params, opt.init(params), params)
    assert [float(leaf[0]) for leaf in tree.leaves(updates)] == [-1, -3, -2, -3]
    assert list(updates[1]) == ["b", "a"]
    assert isinstance(updates[0], tuple)


def test_accumulated_micro_batches_equal_the_whole_batch() -> None:
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    loss = lambda params, batch: ((batch[0] @ params["w"] - batch[1]) ** 2).mean()
    params = other = {"w": torch.zeros(3, dtype=torch.float64)}
    micro, whole = optim.accumulate(optim.adam(0.1), 4), optim.adam(0.1)
    state, other_state = micro.init(params), whole.init(other)
    for i in range(8):
        rows = slice(3 * (i % 4), 3 * (i % 4) + 3)
        updates, state = micro.update(fnn.grad(loss)(params, (x[rows], y[rows])), state, params)
        assert bool(updates["w"].any()) is (i % 4 == 3)
        params = optim.apply_updates(params, updates)
        if i % 4 == 3:
            updates, other_state = whole.update(fnn.grad(loss)(other, (x, y)), other_state, other)
            other = optim.apply_updates(other, updates)
            torch.testing.assert_close(params, other, rtol=1e-12, atol=1e-12)


def test_infinite_gradients_are_skipped_and_counted() -> None:
    opt = optim.apply_if_finite(optim.adam(0.1), max_in_a_row=2)
    params = {"w": torch.ones(2)}
    good, bad = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.inf])}
    _, first = opt.update(good, opt.init(params), params)
    state = first
    for count in (1, 2):
        updates, state = opt.update(bad, state, params)
        assert not updates["w"].any()
        assert int(state.skipped) == count
        assert tree.allclose(state.inner, first.inner, rtol=0, atol=0)
    updates, _ = opt.update(bad, state, params)
    assert not bool(updates["w"].isfinite().all())
    updates, state = opt.update(good, state, params)
    assert bool(updates["w"].all())
    assert int(state.in_a_row) == 0


def test_average_of_params_equals_torch() -> None:
    net = torch.nn.Linear(3, 2)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    params = {name: leaf.detach().clone() for name, leaf in net.named_parameters()}
    opt = optim.ema_params(optim.sgd(0.1), 0.9)
    state, sgd = opt.init(params), torch.optim.SGD(net.parameters(), 0.1)
    for i in range(5):
        grads = {name: torch.full_like(leaf, 0.1 * (i + 1)) for name, leaf in params.items()}
        for name, leaf in net.named_parameters():
            leaf.grad = grads[name].clone()
        sgd.step()
        theirs.update_parameters(net)
        updates, state = opt.update(grads, state, params)
        params = optim.apply_updates(params, updates)
    expected = dict(theirs.module.named_parameters())
    for name, leaf in state.average.items():
        torch.testing.assert_close(leaf, expected[name].detach())


@pytest.mark.parametrize(("start", "every"), [(0, 1), (3, 1), (2, 3), (50, 1)])
def test_equal_average_of_params_equals_torch(start: int, every: int) -> None:
    net = torch.nn.Linear(3, 2, dtype=torch.float64)
    theirs = AveragedModel(net)
    params = {name: leaf.detach().clone() for name, leaf in net.named_parameters()}
    opt = optim.average_params(optim.sgd(0.1), start, every)
    state, sgd = opt.init(params), torch.optim.SGD(net.parameters(), 0.1)
    taken = 0
    for i in range(12):
        grads = {name: (leaf + i).sin() for name, leaf in params.items()}
        for name, leaf in net.named_parameters():
            leaf.grad = grads[name].clone()
        sgd.step()
        if i >= start and (i + 1 - start) % every == 0:
            theirs.update_parameters(net)
            taken += 1
        updates, state = opt.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        expected = dict((theirs.module if taken else net).named_parameters())
        for name, leaf in state.average.items():
            torch.testing.assert_close(leaf, expected[name].detach(), rtol=1e-14, atol=1e-15)


def test_polyak_scales_its_step_and_stops_at_a_minimum() -> None:
    params = {"w": torch.tensor([3.0, 4.0])}
    for scaling, top, expected in ((1.0, 1.0, 0.2), (0.5, 1.0, 0.1), (1.0, 0.1, 0.1), (0.5, 0.1, 0.05)):
        opt = optim.polyak_sgd(top, scaling, f_min=1.0)
        updates, _ = opt.update(params, opt.init(params), params, value=torch.tensor(6.0))
        torch.testing.assert_close(updates["w"], -expected * params["w"])
    below = {variant: optim.polyak_sgd(variant=variant) for variant in ("sps", "sps+")}
    steps = {k: opt.update(params, opt.init(params), params, value=-25.0)[0]["w"] for k, opt in below.items()}
    torch.testing.assert_close(steps["sps"], params["w"])
    assert not bool(steps["sps+"].any())
    still, opt = tree.zeros_like(params), optim.polyak_sgd()
    assert not bool(opt.update(still, opt.init(params), params, value=torch.tensor(6.0))[0]["w"].any())


def test_bfloat16_params_learn_with_a_float32_state() -> None:
    # a thousandth of a running mean is lost in eight bits of precision
    params = {"w": torch.ones(4, dtype=torch.bfloat16)}
    grads = {"w": torch.ones(4, dtype=torch.bfloat16)}
    exact, kept = optim.adam(0.1), optim.with_state_dtype(optim.adam(0.1), torch.float32)
    wide = tree.cast(params, torch.float32)
    state, expected, rounded = kept.init(params), exact.init(wide), exact.init(params)
    for _ in range(50):
        updates, state = kept.update(grads, state, params)
        _, expected = exact.update(tree.cast(grads, torch.float32), expected, wide)
        _, rounded = exact.update(grads, rounded, params)
    assert updates["w"].dtype == torch.bfloat16
    square = lambda state: float(state[0].slots["square"]["w"][0])
    assert square(state) == pytest.approx(square(expected), rel=1e-6)
    assert square(rounded) != pytest.approx(square(expected), rel=1e-3)
    half = optim.with_state_dtype(optim.adam(0.1), torch.bfloat16)
    assert half.init(wide)[0].slots["mean"]["w"].dtype == torch.bfloat16
    assert half.update(tree.cast(grads, torch.float32), half.init(wide), wide)[0]["w"].dtype == torch.float32


def test_noise_has_its_variance_and_new_draws() -> None:
    opt = optim.add_noise(fnn.random.key(1), eta=lambda count: 4.0 + 0 * count, gamma=2.0)
    zeros = {"w": torch.zeros(200, 100), "b": torch.zeros(100)}
    first, state = opt.update(zeros, opt.init(zeros))
    second, state = opt.update(zeros, state)
    for updates, std in ((first, 2.0), (second, 1.0)):  # sqrt(eta / t^gamma)
        assert float(updates["w"].std()) == pytest.approx(std, rel=0.02)
        assert abs(float(updates["w"].mean())) < 0.05
    assert abs(float((first["w"] * second["w"]).mean())) < 0.05
    assert not torch.equal(first["w"][0], first["b"])
    assert float(optim.get_hyperparams(state)["eta"]) == 4.0


def test_muon_is_nearly_orthogonal_and_names_what_is_no_matrix() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optim.orthogonalize(x).float())
    assert bool(((values > 0.6) & (values < 1.3)).all())
    with pytest.raises(ValueError, match=r"'bias' has shape \(3,\); use muon"):
        optim.scale_by_muon().init({"bias": torch.ones(3)})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: optim.sgd(-0.1), "learning_rate must not be negative, got -0.1"),
        (lambda: optim.sgd(0.1, nesterov=True), "nesterov needs momentum > 0"),
        (lambda: optim.adam(betas=(0.9, 1.0)), r"beta2 must be in \[0, 1\), got 1.0"),
        (lambda: optim.adam(torch.ones(2)).init(PARAMS), r"learning_rate must be .* shape \(2,\).*vmap"),
        (lambda: optim.adamw().update(GRADS, optim.adamw().init(PARAMS)), "weight decay needs the params"),
        (lambda: SAM.update(GRADS, SAM.init(PARAMS), PARAMS), "loss=lambda"),
        (lambda: optim.lbfgs(line_search_fn="armijo"), "strong_wolfe"),
        (lambda: optim.polyak_sgd().update(GRADS, optim.polyak_sgd().init(PARAMS), PARAMS), "value=value"),
        (lambda: optim.polyak_sgd(variant="sps-"), 'variant must be "sps" or "sps\\+", got \'sps-\''),
        (lambda: optim.dog(init_step=("size", 1.0)), "init_step must be a pair .* got 'size'"),
        (lambda: optim.dog().update(GRADS, optim.dog().init(PARAMS)), "dog needs the params"),
        (lambda: optim.prodigy(estim_lr0=0.0), "estim_lr0 must be positive, got 0.0"),
        (lambda: optim.schedules.cyclic(0.1, 0.2, 3, mode="exp"), "mode must be one of"),
        (lambda: optim.schedules.one_cycle(0.1, 100, 0.6, three_phase=True), "three phases needs .* got 0.6"),
        (lambda: optim.average_params(optim.sgd(0.1), every=0), "every must be at least 1, got 0"),
        (lambda: optim.accumulate(optim.sgd(0.1), 0), "every must be at least 1, got 0"),
        (lambda: optim.with_state_dtype(optim.sgd(0.1), torch.int32), "floating dtype"),
        (lambda: optim.muon(adjust_lr_fn="rms"), "adjust_lr_fn must be one of"),
        (lambda: optim.chain(optim.sgd(0.1)).update(GRADS, (), PARAMS), "chain of 1 parts got .* a tuple of length 0"),
    ],
)  # fmt: skip
def test_bad_calls_are_sentences(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_line_search_says_that_it_cannot_be_traced() -> None:
    opt = optim.lbfgs(line_search_fn="strong_wolfe")
    loss = lambda params: (params["w"] ** 2).sum()
    params = {"w": torch.ones(2)}
    step = fnn.vmap(lambda p: opt.update(fnn.grad(loss)(p), opt.init(p), p, loss=loss)[0])
    with pytest.raises(ValueError, match="the line search depends on values"):
        step(tree.stack([params, params]))


def test_optimizers_are_values() -> None:
    opt = optim.adam(0.1)
    assert copy.copy(opt) == opt
    assert isinstance(opt, fnn.Optimizer)
