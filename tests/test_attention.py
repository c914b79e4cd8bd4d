"""Attention and Transformers beyond the contract tables: masked rows, caches, fused kernels, dropout, names, errors."""

# ruff: noqa: E501 (one case a line)

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

import fnn
from fnn import layers, losses, random, tree
from tests.contracts.case import numbers

KEY = random.key(0)
SMALL: dict = {"d_model": 8, "nhead": 2, "dim_feedforward": 6}


def params_of(layer: fnn.Layer) -> Any:
    """Params in float64 of which none is zero."""
    params = tree.cast(layer.init(KEY), torch.float64)
    return tree.map(lambda leaf: leaf + 0.3 * numbers(6, *leaf.shape), params)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_a_row_that_is_masked_whole_is_zero_with_zero_derivatives(kind: str) -> None:
    q, k, v = numbers(1, 2, 3, 4), numbers(2, 2, 5, 4), numbers(3, 2, 5, 4)
    allowed = torch.ones(3, 5, dtype=torch.bool)
    allowed[1] = False
    mask = allowed if kind == "boolean" else torch.where(allowed, 0.0, -math.inf)
    attend = lambda q, k, v: layers.scaled_dot_product_attention(q, k, v, mask)
    y = attend(q, k, v)
    assert not y[:, 1].any()
    torch.testing.assert_close(y[:, [0, 2]], F.scaled_dot_product_attention(q[:, [0, 2]], k, v))
    slopes = grad(lambda q, k, v: attend(q, k, v).square().sum(), (0, 1, 2))
    assert not slopes(q, k, v)[0][:, 1].any()
    assert all(leaf.isfinite().all() for leaf in slopes(q, k, v))
    assert all(leaf.isfinite().all() for leaf in jvp(slopes, (q, k, v), (k[:, :3], v, k))[1])


def test_a_sample_of_padding_alone_gives_the_bias_of_the_last_projection() -> None:
    layer = layers.multi_head_attention(8, 2)
    params, x = params_of(layer), numbers(1, 2, 3, 8)
    padding = torch.tensor([[False, False, True], [True, True, True]])
    y, weights = layer.apply(params, x, key_padding_mask=padding, need_weights=True)
    torch.testing.assert_close(y[1], params["out_proj"]["bias"].expand(3, 8))
    assert not weights[1].any()
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(3).double())
    slope = grad(lambda p: layer.apply(p, x, key_padding_mask=padding).square().sum())(params)
    assert all(leaf.isfinite().all() for leaf in tree.leaves(slope))


STACK = layers.transformer_encoder(
    layers.transformer_encoder_layer(**SMALL, causal=True, rotary_base=50.0), 2, layers.layer_norm(8)
)
DECODER = layers.transformer_decoder(layers.transformer_decoder_layer(**SMALL, norm_first=True), 2)
MEMORY = numbers(9, 3, 4, 8)
# the full pass, a step with its cache, and the number of caches, None for one that is not in a dict
DECODING: dict[str, tuple[fnn.Layer, Callable, Callable, int | None]] = {
    "attention": (
        (layer := layers.multi_head_attention(8, 2, rotary_base=50.0, causal=True)),
        lambda p, x: layer.apply(p, x),
        lambda p, x, cache: layer.apply(p, x, cache=cache),
        None,
    ),
    "encoder": (STACK, STACK.apply, lambda p, x, cache: STACK.apply(p, x, cache=cache), 2),
    "decoder": (
        DECODER,
        lambda p, x: DECODER.apply(p, x, MEMORY, tgt_is_causal=True),
        lambda p, x, cache: DECODER.apply(p, x, MEMORY, tgt_is_causal=True, cache=cache),
        2,
    ),
}


@pytest.mark.parametrize("name", DECODING)
def test_decoding_with_a_cache_equals_the_full_pass_and_traces_once(name: str) -> None:
    model, full, step, count = DECODING[name]
    params, x = params_of(model), numbers(1, 3, 6, 8)
    one = layers.attention_cache(3, 6, 8, 2, torch.float64)
    cache: Any = one if count is None else {str(i): one for i in range(count)}
    before = tree.map(torch.clone, cache)
    first, later = step(params, x[:, :2], cache)  # a prompt of two, then one by one
    assert all(tree.leaves(tree.map(torch.equal, cache, before)))
    outputs, jitted = [first], fnn.jit(step)
    for token in x[:, 2:].split(1, 1):
        y, later = jitted(params, token, later)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), full(params, x))
    assert fnn.compile_count(jitted) == 1
    for run in (step, jitted):
        with pytest.raises(IndexError):  # the cache is full
            run(params, x[:, :1], later)


def test_caches_under_vmap_and_with_padded_prompts() -> None:
    layer = layers.multi_head_attention(8, 2, causal=True)
    params, x = params_of(layer), numbers(1, 3, 5, 8)
    caches = tree.stack([layers.attention_cache(1, 5, 8, 2, torch.float64)] * 3)
    y, _ = vmap(lambda x, cache: layer.apply(params, x, cache=cache))(x[:, None], caches)
    torch.testing.assert_close(y[:, 0], layer.apply(params, x))
    padding = torch.arange(5) < torch.tensor([0, 1, 2])[:, None]  # at the left, as prompts are padded
    cache = layers.attention_cache(3, 5, 8, 2, torch.float64)
    prompt, cache = layer.apply(params, x[:, :3], cache=cache, key_padding_mask=padding)
    rest, _ = layer.apply(params, x[:, 3:], cache=cache, key_padding_mask=padding)
    torch.testing.assert_close(torch.cat([prompt, rest], 1), layer.apply(params, x, key_padding_mask=padding))


def test_rotary_products_depend_on_the_difference_of_positions() -> None:
    q, k = numbers(1, 4, 6), numbers(2, 4, 6)
    for interleaved in (False, True):
        product = lambda shift, i=interleaved: (
            layers.rotary_positions(q, torch.arange(4) + shift, interleaved=i)
            @ layers.rotary_positions(k, torch.arange(4) + shift, interleaved=i).T
        )
        torch.testing.assert_close(product(0), product(1000))
        assert not torch.allclose(product(0), q @ k.T)
    places = torch.tensor([[0, 1, 2, 3], [3, 0, 0, 1]])
    each = layers.rotary_positions(q.expand(2, 4, 6), places)
    torch.testing.assert_close(each[1], layers.rotary_positions(q, places[1]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("masks", ["none", "causal", "boolean", "additive", "all"])
def test_fused_attention_has_the_same_values_and_gradient(masks: str) -> None:
    options: dict = {"causal": masks in ("causal", "all"), "add_zero_attn": masks == "all"}
    plain, fused = (layers.multi_head_attention(8, 2, **options, fused=choice) for choice in (False, True))
    params, x = params_of(plain), numbers(1, 3, 4, 8)
    call: dict = {}
    if masks in ("boolean", "all"):
        call["key_padding_mask"] = torch.arange(4) >= torch.tensor([4, 2, 3])[:, None]
    if masks in ("additive", "all"):
        call["attn_mask"] = numbers(3, 4, 4)
    run = lambda layer: lambda p: layer.apply(p, x, **call)
    torch.testing.assert_close(run(fused)(params), run(plain)(params))
    loss = lambda layer: lambda p: run(layer)(p).square().sum()
    tree.map(torch.testing.assert_close, grad(loss(fused))(params), grad(loss(plain))(params))
    each = vmap(grad(lambda p, x: fused.apply(p, x).square().sum()), (None, 0))
    if not call:
        torch.testing.assert_close(tree.map(lambda g: g.sum(0), each(params, x)), grad(loss(fused))(params))


def test_what_fused_attention_gives_up_is_refused() -> None:
    layer = layers.multi_head_attention(8, 2, 0.1, fused=True)
    params, x = layer.init(KEY), torch.ones(3, 4, 8)
    assert layer.apply(params, x).shape == x.shape
    with pytest.raises(TypeError, match="draws its dropout from torch's global generator; write fused=False"):
        layer.apply(params, x, key=KEY)
    with pytest.raises(TypeError, match="has no weights to return; write fused=False"):
        layer.apply(params, x, need_weights=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        jvp(lambda p: layer.apply(p, x), (params,), (params,))


def test_sixteen_bits_and_autocast() -> None:
    x = numbers(1, 3, 40, 8)
    exact = F.scaled_dot_product_attention(20 * x, x, x)
    for dtype in (torch.float16, torch.bfloat16):
        y = layers.scaled_dot_product_attention(20 * x.to(dtype), x.to(dtype), x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=60 * torch.finfo(dtype).eps)
    layer = layers.transformer_encoder_layer(**SMALL, causal=True)
    params, x = layer.init(KEY), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.apply(params, x)
    torch.testing.assert_close(y.float(), layer.apply(params, x), rtol=0.05, atol=0.05)


# a key is split into one for each part, in the order of torch's modules
ENCODER_PARTS = ["self_attn", "linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2"]
DECODER_PARTS = ["self_attn", "multihead_attn", *ENCODER_PARTS[1:6], "norm3", "dropout1", "dropout2", "dropout3"]


@pytest.mark.parametrize("norm_first", [False, True])
def test_dropout_of_transformer_layers_by_its_definition(norm_first: bool) -> None:
    x, memory = numbers(1, 3, 4, 8), MEMORY
    drop = lambda x, key: torch.where(random.uniform(key, x.shape) < 0.6, x / 0.6, 0.0)

    def sums(p: Any, x: Tensor, parts: list[Callable]) -> Tensor:
        for i, part in enumerate(parts):
            norm = lambda x, p=p[f"norm{i + 1}"]: F.layer_norm(x, (8,), p["weight"], p["bias"])
            x = x + part(norm(x)) if norm_first else norm(x + part(x))
        return x

    def feed_forward(p: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        hidden = drop(F.relu(F.linear(x, **p["linear1"])), first)
        return drop(F.linear(hidden, **p["linear2"]), second)

    attention = layers.multi_head_attention(8, 2, 0.4)
    encoder = layers.transformer_encoder_layer(**SMALL, dropout=0.4, norm_first=norm_first)
    p, keys = params_of(encoder), dict(zip(ENCODER_PARTS, random.split(KEY, 8), strict=True))
    parts = [
        lambda x: drop(attention.apply(p["self_attn"], x, key=keys["self_attn"]), keys["dropout1"]),
        lambda x: feed_forward(p, x, keys["dropout"], keys["dropout2"]),
    ]
    torch.testing.assert_close(encoder.apply(p, x, key=KEY), sums(p, x, parts))

    decoder = layers.transformer_decoder_layer(**SMALL, dropout=0.4, norm_first=norm_first)
    d, keys = params_of(decoder), dict(zip(DECODER_PARTS, random.split(KEY, 11), strict=True))
    parts = [
        lambda x: drop(attention.apply(d["self_attn"], x, key=keys["self_attn"]), keys["dropout1"]),
        lambda x: drop(attention.apply(d["multihead_attn"], x, memory, key=keys["multihead_attn"]), keys["dropout2"]),
        lambda x: feed_forward(d, x, keys["dropout"], keys["dropout3"]),
    ]
    torch.testing.assert_close(decoder.apply(d, x, memory, key=KEY), sums(d, x, parts))


def test_every_layer_of_a_stack_draws_its_own_dropout() -> None:
    model = layers.transformer(8, 2, 2, 2, 6)
    params, x = model.init(KEY), torch.ones(2, 3, 8)
    same = tree.map(torch.clone, params)
    for half in ("encoder", "decoder"):
        same[half]["layers"]["1"] = same[half]["layers"]["0"]
    run = lambda key: model.apply(same, x, x, key=key)
    assert torch.equal(run(KEY), run(KEY))
    assert not torch.allclose(run(KEY), run(random.key(1)))
    assert torch.equal(model.apply(same, x, x), model.apply(same, x, x))
    stack, keys = (
        layers.transformer_encoder(layers.transformer_encoder_layer(**SMALL), 2),
        random.split(random.split(KEY, 1)[0]),
    )
    one = layers.transformer_encoder_layer(**SMALL)
    p = stack.init(KEY)
    by_hand = one.apply(p["layers"]["1"], one.apply(p["layers"]["0"], x, key=keys[0]), key=keys[1])
    assert torch.equal(stack.apply(p, x, key=KEY), by_hand)


BIG: dict = {"d_model": 32, "nhead": 4, "dim_feedforward": 40}
NETS: dict[str, tuple[Callable[[], fnn.Layer], Callable[[], nn.Module]]] = {
    "attention": (lambda: layers.multi_head_attention(32, 4), lambda: nn.MultiheadAttention(32, 4)),
    "attention, kdim, added": (
        lambda: layers.multi_head_attention(32, 4, add_bias_kv=True, kdim=24, vdim=48),
        lambda: nn.MultiheadAttention(32, 4, add_bias_kv=True, kdim=24, vdim=48),
    ),
    "attention, no bias": (
        lambda: layers.multi_head_attention(32, 4, bias=False), lambda: nn.MultiheadAttention(32, 4, bias=False),
    ),
    "encoder layer": (
        lambda: layers.transformer_encoder_layer(**BIG), lambda: nn.TransformerEncoderLayer(**BIG, batch_first=True)
    ),
    "decoder layer, no bias": (
        lambda: layers.transformer_decoder_layer(**BIG, bias=False),
        lambda: nn.TransformerDecoderLayer(**BIG, bias=False, batch_first=True),
    ),
    "encoder": (
        lambda: layers.transformer_encoder(layers.transformer_encoder_layer(**BIG), 2, layers.layer_norm(32)),
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**BIG, batch_first=True), 2, nn.LayerNorm(32)),
    ),
    "transformer": (lambda: layers.transformer(32, 4, 1, 2, 40), lambda: nn.Transformer(32, 4, 1, 2, 40, batch_first=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_names_and_first_values_are_torchs(name: str) -> None:
    make, make_net = NETS[name]
    ours, net = tree.to_state_dict(make().init(KEY)), make_net()
    for path, theirs in net.state_dict().items():
        assert ours[path].shape == theirs.shape
        if theirs.unique().numel() < 3:
            assert torch.equal(ours[path], theirs)
        else:
            few = theirs.numel() < 200
            assert float(ours[path].std()) == pytest.approx(float(theirs.std()), rel=0.5 if few else 0.1)
            assert float(ours[path].abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.5 if few else 0.15)
    net.load_state_dict(ours)  # strict: no name is missing and none is left


def test_weights_of_a_torch_transformer_compute_the_same_here() -> None:
    net = nn.Transformer(8, 2, 1, 2, 6, batch_first=True, dtype=torch.float64).eval()
    params = tree.from_state_dict({name: leaf.detach() for name, leaf in net.state_dict().items()})
    src, tgt = numbers(1, 3, 5, 8), numbers(2, 3, 4, 8)
    ours = layers.transformer(8, 2, 1, 2, 6).apply(params, src, tgt, tgt_is_causal=True)
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    torch.testing.assert_close(ours, net(src, tgt, tgt_mask=mask).detach())
    alone = layers.transformer(8, 2, 1, 2, 6).apply(params, src[0], tgt[0], tgt_is_causal=True)
    torch.testing.assert_close(alone, ours[0])


def test_ghost_norms_see_the_matrices_of_a_transformer() -> None:
    model = layers.sequential(
        layers.embedding(9, 8), layers.sinusoidal_positions(8),
        layers.transformer_encoder(layers.transformer_encoder_layer(**SMALL, dropout=0.0, causal=True), 1),
        layers.flatten, layers.linear(24, 3),
    )  # fmt: skip
    params = tree.cast(model.init(KEY), torch.float64)
    batch = random.randint(KEY, (5, 3), 0, 9), torch.tensor([0, 1, 2, 2, 1])
    loss = lambda p, batch: losses.cross_entropy(model.apply(p, batch[0]), batch[1])
    plan = fnn.gradients.ghost_plan(loss)(params, batch)
    matrices = {path for path, leaf in tree.items(params) if leaf.dim() == 2}
    assert {path for path, leaf in plan.items() if leaf.method != "exact"} == matrices
    each = fnn.per_sample_grad(loss)(params, batch)
    norms = torch.stack([tree.global_norm(one) for one in tree.unstack(each)])
    torch.testing.assert_close(fnn.gradients.per_sample_norms(loss, method="ghost")(params, batch), norms)


MHA = layers.multi_head_attention(8, 2)
CAUSAL = layers.multi_head_attention(8, 2, causal=True)
X = torch.ones(3, 4, 8)


def call(layer: fnn.Layer, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: layer.apply(layer.init(KEY), *args, **options)


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "heads": (lambda: layers.multi_head_attention(6, 4), "num_heads=4 must divide embed_dim=6"),
    "rotary, odd": (lambda: layers.multi_head_attention(6, 2, rotary_base=10.0), "heads of an even size, got 3"),
    "dropout": (lambda: layers.multi_head_attention(6, 2, True), "expects dropout as a number, got True; write causal=True by name"),
    "keys": (call(MHA, X, X[..., :5]), r"expects keys of shape \(batch, sequence, 8\), got \(3, 4, 5\)"),
    "values": (call(MHA, X, X, X[:, :2]), r"one value for each key, got .* keys of shape \(3, 4, 8\) and values of shape \(3, 2, 8\)"),
    "batch": (call(MHA, X, X[:2]), r"one batch size, .* got a query of shape \(3, 4, 8\), keys of shape \(2, 4, 8\)"),
    "mask": (call(MHA, X, attn_mask=X[0, :, :3] > 0), r"attn_mask of a shape that broadcasts to \(3, 2, 4, 4\), got \(4, 3\)"),
    "mask of heads": (
        call(MHA, X, attn_mask=X[..., :4] > 0), r"attn_mask of shape \(4, 4\), \(6, 4, 4\) \(batch \* heads first\) .* got \(3, 4, 4\)"
    ),
    "mask of integers": (call(MHA, X, attn_mask=X[0, :, :4].long()), r"attn_mask to be boolean or floating, got torch.int64; write attn_mask.bool\(\)"),
    "padding": (call(MHA, X, key_padding_mask=X[0, :, 0] > 0), r"key_padding_mask of shape \(3, 4\), got \(4,\)"),
    "cache, not causal": (call(MHA, X, cache={}), "takes a cache in causal self-attention only; write causal=True"),
    "cache, other": (call(CAUSAL, X, cache={}), r"a cache of attention_cache\(...\), with key, value and length"),
    "cache, size": (
        call(CAUSAL, X, cache=layers.attention_cache(2, 5, 8, 2)), r"a cache of shape \(3, 2, 5, 4\) and torch.float32, got \(2, 2, 5, 4\)"
    ),
    "cache, heads": (lambda: layers.attention_cache(2, 5, 8, 3), "num_heads=3 must divide embed_dim=8"),
    "query and keys": (lambda: layers.scaled_dot_product_attention(X, X[..., :2], X), r"\(\.\.\., L, d\) and keys of shape \(\.\.\., S, d\), got \(3, 4, 8\) and \(3, 4, 2\)"),
    "keys and values": (lambda: layers.scaled_dot_product_attention(X, X, X[:, :2]), "one value for each key"),
    "groups": (lambda: layers.scaled_dot_product_attention(X, X[:2], X[:2], enable_gqa=True), "to be a multiple of those of keys and values"),
    "complex": (lambda: layers.scaled_dot_product_attention(X + 0j, X, X), "expects real numbers, got torch.complex64"),
    "path": (call(layers.transformer_encoder_layer(8, 2), X[..., :3]), r"params\['self_attn'\]: multi_head_attention expects inputs"),
    "path in a stack": (call(STACK, X[..., :3]), r"params\['layers'\]\['0'\]\['self_attn'\]: multi_head_attention expects"),
    "path in a transformer": (
        call(layers.transformer(8, 2, 1, 1, 6), X, X[..., :3]), r"params\['decoder'\]\['layers'\]\['0'\]\['self_attn'\]: multi_head_"
    ),
    "names": (
        lambda: layers.transformer_encoder_layer(8, 2).apply({"norm3": X}, X), "transformer_encoder_layer has no 'norm3': these params"
    ),
    "more layers": (
        lambda: layers.transformer_encoder(layers.transformer_encoder_layer(**SMALL), 1).apply(STACK.init(KEY), X), "transformer_encoder has no 'norm'"
    ),
    "activation": (lambda: layers.transformer_decoder_layer(8, 2, activation="swish"), "'relu', 'gelu' or a function, got 'swish'"),
    "a function for a layer": (lambda: layers.transformer_encoder(layers.relu, 2), r"transformer_encoder expects a layer, got <function relu .* write transformer_encoder\(transformer_encoder_layer"),  # type: ignore[arg-type]
    "caches": (call(STACK, X, cache={}), r"one cache for each of the layers \['0', '1'\]"),
    "positions": (lambda: layers.sinusoidal_positions(8).apply({}, X, positions=torch.arange(3)), r"each of the 4 places of a sequence, got positions of shape \(3,\)"),
    "positions, floating": (lambda: layers.rotary_positions(X, X[0, :, 0]), "positions as an int64 or int32 tensor"),
    "too long": (call(layers.learned_positions(3, 8), X), "has 3 positions and got a sequence of 4"),
    "odd": (lambda: layers.rotary_positions(X[..., :3]), "an even number of features"),
    "no sequence": (lambda: layers.sinusoidal_positions(8).apply({}, X[0, 0]), r"\(\.\.\., sequence, features\), got \(8,\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    provoke, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        provoke()
