"""The cases of layers over sequences: attention, positions, Transformers, embeddings, recurrent layers."""

# ruff: noqa: E501 (one case a line)

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from fnn import layers
from tests.contracts.case import Case, function, numbers

KEY = fnn.random.key(11)
Call = Callable[[Tensor], tuple[tuple, dict]]  # the positional and named arguments of a call, made from x


def alone(x: Tensor) -> tuple[tuple, dict]:
    return (x,), {}


def joined(result: Any) -> Tensor:
    """The tensors of a result side by side, the batch first; a module gives None for weights that nobody wants."""
    parts = [part for part in result if part is not None] if isinstance(result, tuple) else [result]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)


def against(
    layer: fnn.Layer, net: nn.Module, shape: tuple[int, ...], ours: Call = alone, theirs: Call | None = None
) -> Case:
    """A layer against a torch module of the same params, of which none is zero."""
    params = fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)
    params = fnn.tree.map(lambda leaf: leaf + 0.3 * numbers(6, *leaf.shape), params)
    net = net.double()

    def apply(params: Any, x: Tensor) -> Tensor:
        args, kwargs = ours(x)
        return joined(layer.apply(params, *args, **kwargs))

    def reference(params: Any, x: Tensor) -> Tensor:
        return joined(torch.func.functional_call(net, fnn.tree.to_state_dict(params), *(theirs or ours)(x)))

    return Case(apply, reference, params, numbers(1, *shape))


def future(x: Tensor) -> Tensor:
    """True where a position would look ahead."""
    return torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)


def padding(x: Tensor) -> Tensor:
    """True for some positions, but never for the first."""
    return (x[..., 0] > 0.3) & (torch.arange(x.shape[-2], device=x.device) > 0)


def each_head(x: Tensor) -> Tensor:
    """An additive mask for each sample and each of two heads: (batch * 2, L, L), with a forbidden corner."""
    pairs = x @ x.transpose(-2, -1)
    return torch.stack([pairs, 2 * pairs], 1).flatten(0, 1).masked_fill(future(x).tril(1), -math.inf)


def attention(
    inputs: Callable[[Tensor], tuple] = lambda x: (x, x, x),
    call: Callable[[Tensor], dict] = lambda x: {},
    theirs: Callable[[Tensor], dict] | None = None,
    causal: bool = False,
    **options: Any,
) -> Case:
    """``options`` are those of the makers; ``call`` gives the named arguments of both, or torch's are ``theirs``."""
    layer = layers.multi_head_attention(6, 2, causal=causal, **options)
    net = nn.MultiheadAttention(6, 2, batch_first=True, **options)
    return against(
        layer, net, (3, 4, 6), lambda x: (inputs(x), call(x)),
        lambda x: (inputs(x), {"need_weights": False} | (theirs or call)(x)),
    )  # fmt: skip


def crossed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x, x[:, 1:, :5].sin(), x[:, 1:, 2:].cos()


def dropped_attention() -> Case:
    """Dropout of the weights, by its definition: those that are kept are divided by the rate of keeping."""

    def reference(params: Any, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, params["in_proj_weight"], params["in_proj_bias"]).unflatten(-1, (3, 2, 3)).unbind(-3)
        weights = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(3), -1)
        kept = fnn.random.uniform(KEY, weights.shape) < 0.7
        mixed = torch.einsum("bhij,bjhd->bihd", weights * kept / 0.7, v).flatten(-2)
        return F.linear(mixed, params["out_proj"]["weight"], params["out_proj"]["bias"])

    case = attention(dropout=0.3)
    layer = layers.multi_head_attention(6, 2, 0.3)
    return case._replace(function=lambda p, x: layer.apply(p, x, key=KEY), reference=reference)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions as a product of complex numbers, with halves of the features as pairs."""
    half = x.shape[-1] // 2
    frequencies = 100.0 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angles = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None] * frequencies
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def rotary_attention() -> Case:
    def reference(params: Any, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, params["in_proj_weight"], params["in_proj_bias"]).unflatten(-1, (3, 2, 4)).unbind(-3)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True).transpose(1, 2).flatten(-2)
        return F.linear(mixed, params["out_proj"]["weight"], params["out_proj"]["bias"])

    layer = layers.multi_head_attention(8, 2, causal=True, rotary_base=100.0)
    return against(layer, nn.MultiheadAttention(8, 2), (3, 4, 8))._replace(reference=reference)


def decoded() -> Case:
    """Every position by itself, from the cache, against torch's full pass."""
    layer = layers.multi_head_attention(6, 2, causal=True)

    def apply(params: Any, x: Tensor) -> Tensor:
        cache = layers.attention_cache(len(x), 5, 6, 2, x.dtype, x.device)
        first, cache = layer.apply(params, x[:, :2], cache=cache)
        outputs = [first]
        for token in x[:, 2:].split(1, 1):
            y, cache = layer.apply(params, token, cache=cache)
            outputs.append(y)
        return torch.cat(outputs, 1)

    return attention(causal=True, theirs=lambda x: {"attn_mask": future(x)})._replace(function=apply)


def sinusoids(x: Tensor) -> Tensor:
    table = [
        [f(place / 10000 ** (2 * i / x.shape[-1])) for i in range(x.shape[-1] // 2) for f in (math.sin, math.cos)]
        for place in range(x.shape[-2])
    ]
    return x + torch.tensor(table, dtype=x.dtype, device=x.device)


def learned() -> Case:
    layer = layers.learned_positions(5, 3)
    return Case(layer.apply, lambda p, x: x + p["weight"][:4], {"weight": numbers(3, 5, 3)}, numbers(1, 3, 4, 3))


def learned_at_places() -> Case:
    layer, places = layers.learned_positions(5, 3), torch.tensor([4, 0, 0, 2])
    return Case(
        lambda p, x: layer.apply(p, x, positions=places.to(x.device)), lambda p, x: x + p["weight"][places.to(x.device)],
        {"weight": numbers(3, 5, 3)}, numbers(1, 3, 4, 3),
    )  # fmt: skip


SMALL: dict = {"d_model": 4, "nhead": 2, "dim_feedforward": 5}


def encoder_layer(ours: Call = alone, theirs: Call | None = None, causal: bool = False, **options: Any) -> Case:
    layer = layers.transformer_encoder_layer(**SMALL, **options, causal=causal)
    net = nn.TransformerEncoderLayer(**SMALL, **options, dropout=0.0, batch_first=True)
    return against(layer, net, (3, 4, 4), ours, theirs)


def with_memory(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x[:, 1:].sin()


def decoder_layer(
    call: Callable[[Tensor], dict] = lambda x: {}, theirs: Callable[[Tensor], dict] | None = None, **options: Any
) -> Case:
    layer = layers.transformer_decoder_layer(**SMALL, **options)
    net = nn.TransformerDecoderLayer(**SMALL, **options, dropout=0.0, batch_first=True)
    return against(
        layer, net, (3, 4, 4), lambda x: (with_memory(x), call(x)), lambda x: (with_memory(x), (theirs or call)(x))
    )


def encoder() -> Case:
    layer = layers.transformer_encoder(layers.transformer_encoder_layer(**SMALL), 2, layers.layer_norm(4))
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(**SMALL, dropout=0.0, batch_first=True), 2, nn.LayerNorm(4))
    return against(layer, net, (3, 3, 4), lambda x: ((x,), {"mask": future(x)}))


def decoder() -> Case:
    layer = layers.transformer_decoder(layers.transformer_decoder_layer(**SMALL), 2)
    net = nn.TransformerDecoder(nn.TransformerDecoderLayer(**SMALL, dropout=0.0, batch_first=True), 2)
    return against(layer, net, (3, 3, 4), lambda x: (with_memory(x), {"tgt_mask": future(x)}))


def transformer() -> Case:
    options: dict = {**SMALL, "num_encoder_layers": 1, "num_decoder_layers": 1, "norm_first": True}
    net = nn.Transformer(**options, dropout=0.0, batch_first=True)
    named = lambda x: {"src_key_padding_mask": padding(x[:, 1:]), "memory_key_padding_mask": padding(x[:, 1:])}
    return against(
        layers.transformer(**options), net, (3, 3, 4),
        lambda x: (with_memory(x)[::-1], {"tgt_is_causal": True} | named(x)),
        lambda x: (with_memory(x)[::-1], {"tgt_mask": future(x)} | named(x)),
    )  # fmt: skip


def looked_up(layer: fnn.Layer, net: nn.Module, *arguments: Callable[[Tensor], Any]) -> Case:
    """An embedding of (bags, size) = (4, 3) integers, or what is made of them."""
    case = against(layer, net, (4, 3), *[lambda x: (tuple(make(x) for make in arguments), {})] * bool(arguments))
    return case._replace(x=torch.tensor([[0, 6, 6], [1, 2, 3], [5, 5, 5], [3, 0, 1]]))


def clipped_rows() -> Case:
    """torch renormalises in place, so that the reference is its formula."""

    def reference(params: Any, x: Tensor) -> Tensor:
        norms = params["weight"].abs().sum(-1, keepdim=True)
        return torch.where(norms > 2.0, params["weight"] * (2.0 / (norms + 1e-7)), params["weight"])[x]

    layer = layers.embedding(7, 3, max_norm=2.0, norm_type=1.0)
    return looked_up(layer, nn.Embedding(7, 3))._replace(reference=reference)


def weighted_bags() -> Case:
    """Weights of the dtype of the params, made from the integers."""
    layer, net = layers.embedding_bag(7, 3, mode="sum"), nn.EmbeddingBag(7, 3, mode="sum")
    weights = lambda p, x: (x + 1.0).sqrt().to(p["weight"].dtype)
    call = lambda p, x: torch.func.functional_call(net, p, (x, None, weights(p, x)))
    return looked_up(layer, net)._replace(function=lambda p, x: layer.apply(p, x, None, weights(p, x)), reference=call)


def recurrent(
    name: str,
    net: type[nn.Module],
    call: Callable[[Tensor], dict] = lambda x: {},
    lengths: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> Case:
    """A recurrent layer of 3 inputs and 2 hidden units, with the output and the states of each sample side by side."""
    module = net(3, 2, batch_first=True, **options)
    layer = getattr(layers, name)(3, 2, **options)

    def flat(result: tuple) -> Tensor:
        output, state = result
        states = state if isinstance(state, tuple) else (state,)
        return joined((output, *[part.transpose(0, 1) for part in states]))

    def apply(params: Any, x: Tensor) -> Tensor:
        return flat(layer.apply(params, x, *call(x).values(), lengths=None if lengths is None else lengths(x)))

    def reference(params: Any, x: Tensor) -> Tensor:
        packed: Any = x
        if lengths is not None:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths(x), batch_first=True, enforce_sorted=False)
        output, state = torch.func.functional_call(module, fnn.tree.to_state_dict(params), (packed, *call(x).values()))
        if lengths is not None:
            output = nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])[0]
        return flat((output, state))

    return against(layer, module, (3, 4, 3))._replace(function=apply, reference=reference)


def uneven(x: Tensor) -> Tensor:
    """Lengths from 1 to the length of the sequence."""
    return 1 + (x[:, 1:, 0] > 0).sum(1)


def started(count: int, *sizes: int) -> Callable[[Tensor], dict]:
    """A first state, made from x: (count, batch, size) for each size."""

    def make(x: Tensor) -> dict:
        parts: Any = tuple(x.mean(1)[:, :size].cos().expand(count, len(x), size).contiguous() for size in sizes)
        return {"state": parts if len(parts) > 1 else parts[0]}

    return make


def cell(name: str, net: nn.Module, arguments: Callable[[Tensor], tuple] = lambda x: (x,)) -> Case:
    return against(getattr(layers, name)(3, 2), net, (4, 3), lambda x: (arguments(x), {}))


LAYERS: dict[str, Callable[[], Case]] = {
    "embedding": lambda: looked_up(layers.embedding(7, 3), nn.Embedding(7, 3)),
    "embedding, max_norm": clipped_rows,
    "embedding_bag": lambda: looked_up(layers.embedding_bag(7, 3, padding_idx=0), nn.EmbeddingBag(7, 3, padding_idx=0)),
    "embedding_bag, sum, weights": weighted_bags,
    "embedding_bag, max": lambda: looked_up(layers.embedding_bag(7, 3, mode="max"), nn.EmbeddingBag(7, 3, mode="max")),
    **{
        f"embedding_bag, {mode}, offsets": lambda mode=mode: looked_up(
            layers.embedding_bag(7, 3, mode=mode), nn.EmbeddingBag(7, 3, mode=mode),
            lambda x: x.flatten(), lambda x: 3 * torch.arange(len(x), device=x.device),
        )
        for mode in ("mean", "max")
    },
    "rnn": lambda: recurrent("rnn", nn.RNN),
    "rnn, relu, two layers, state": lambda: recurrent("rnn", nn.RNN, started(2, 2), num_layers=2, nonlinearity="relu"),
    "lstm": lambda: recurrent("lstm", nn.LSTM, started(1, 2, 2)),
    "lstm, projected, two directions, lengths": lambda: recurrent(
        "lstm", nn.LSTM, lengths=uneven, bidirectional=True, proj_size=1
    ),
    "gru": lambda: recurrent("gru", nn.GRU, bias=False),
    "gru, state, lengths": lambda: recurrent("gru", nn.GRU, started(1, 2), uneven),
    "rnn_cell": lambda: cell("rnn_cell", nn.RNNCell(3, 2)),
    "lstm_cell": lambda: cell("lstm_cell", nn.LSTMCell(3, 2), lambda x: (x, (x[:, :2].sin(), x[:, 1:]))),
    "gru_cell": lambda: cell("gru_cell", nn.GRUCell(3, 2), lambda x: (x, x[:, :2])),
    "multi_head_attention": lambda: attention(),
    "multi_head_attention, causal, no bias": lambda: attention(causal=True, bias=False, theirs=lambda x: {"attn_mask": future(x)}),
    "multi_head_attention, is_causal, weights": lambda: attention(
        call=lambda x: {"is_causal": True, "need_weights": True},
        theirs=lambda x: {"attn_mask": future(x), "need_weights": True},
    ),
    "multi_head_attention, masks, weights of each head": lambda: attention(
        call=lambda x: {
            "attn_mask": each_head(x), "key_padding_mask": padding(x).to(x.dtype) * -2.0, "need_weights": True,
            "average_attn_weights": False,
        }
    ),
    "multi_head_attention, boolean masks, added keys": lambda: attention(
        call=lambda x: {"attn_mask": future(x), "key_padding_mask": padding(x)}, add_bias_kv=True, add_zero_attn=True,
    ),
    "multi_head_attention, cross-attention": lambda: attention(
        inputs=lambda x: (x, x[:, 1:].sin(), x[:, 1:].cos()), call=lambda x: {"key_padding_mask": padding(x[:, 1:])},
    ),
    "multi_head_attention, kdim, vdim": lambda: attention(inputs=crossed, kdim=5, vdim=4, add_bias_kv=True),
    "multi_head_attention, dropout": dropped_attention,
    "multi_head_attention, rotary": rotary_attention,
    "multi_head_attention, cache": decoded,
    "scaled_dot_product_attention": lambda: function(
        lambda x: layers.scaled_dot_product_attention(x, x.sin(), x[..., 1:]),
        lambda x: F.scaled_dot_product_attention(x, x.sin(), x[..., 1:]), 3, 4, 5,
    ),
    "scaled_dot_product_attention, mask, scale, heads": lambda: function(
        lambda x: layers.scaled_dot_product_attention(x, x[:, :2].sin(), x[:, :2], ~future(x), scale=0.7, enable_gqa=True),
        lambda x: F.scaled_dot_product_attention(x, x[:, :2].sin(), x[:, :2], ~future(x), scale=0.7, enable_gqa=True), 3, 4, 3, 2,
    ),
    "attention_cache": decoded,
    "rotary_positions": lambda: function(lambda x: layers.rotary_positions(x, base=100.0), rotated, 3, 4, 6),
    "rotary_positions, interleaved": lambda: function(
        lambda x: layers.rotary_positions(x, torch.arange(4, device=x.device), 100.0, interleaved=True),
        lambda x: rotated(torch.cat([x[..., 0::2], x[..., 1::2]], -1)).unflatten(-1, (2, 3)).transpose(-2, -1).flatten(-2), 3, 4, 6,
    ),
    "sinusoidal_positions": lambda: function(lambda x: layers.sinusoidal_positions(4).apply({}, x), sinusoids, 3, 5, 4),
    "learned_positions": learned,
    "learned_positions, given": learned_at_places,
    "transformer_encoder_layer": lambda: encoder_layer(
        lambda x: ((x,), {"src_mask": future(x), "src_key_padding_mask": padding(x)})
    ),
    "transformer_encoder_layer, norm_first, gelu, causal, no bias": lambda: encoder_layer(
        alone, lambda x: ((x, future(x)), {}), causal=True, norm_first=True, activation="gelu", bias=False, layer_norm_eps=1e-3,
    ),
    "transformer_decoder_layer": lambda: decoder_layer(
        lambda x: {
            "tgt_mask": future(x), "memory_mask": future(x)[:, 1:], "tgt_key_padding_mask": padding(x),
            "memory_key_padding_mask": padding(x[:, 1:]),
        },
    ),
    "transformer_decoder_layer, norm_first, is_causal": lambda: decoder_layer(
        lambda x: {"tgt_is_causal": True}, lambda x: {"tgt_mask": future(x)}, norm_first=True, activation=torch.tanh,
    ),
    "transformer_encoder": encoder,
    "transformer_decoder": decoder,
    "transformer": transformer,
}  # fmt: skip


def without_params(function: Callable[[Tensor], Tensor]) -> fnn.Layer:
    return fnn.Layer(lambda key: {}, lambda params, x, *, key=None: function(x))


def given_memory(layer: fnn.Layer) -> fnn.Layer:
    return layer._replace(apply=lambda params, x, *, key=None: layer.apply(params, x, x.sin(), key=key))


def given_masks(layer: fnn.Layer) -> fnn.Layer:
    def apply(params: Any, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        y, weights = layer.apply(
            params, x, attn_mask=each_head(x), key_padding_mask=padding(x), is_causal=True, need_weights=True
        )
        return joined((y, weights))

    return layer._replace(apply=apply)


def decoding(layer: fnn.Layer) -> fnn.Layer:
    def apply(params: Any, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        cache = layers.attention_cache(len(x), 6, 4, 2, device=x.device)
        first, cache = layer.apply(params, x, cache=cache)
        return torch.cat([first, layer.apply(params, x, cache=cache)[0]], 1)

    return layer._replace(apply=apply)


def with_integers(layer: fnn.Layer, offsets: bool = False) -> fnn.Layer:
    def apply(params: Any, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        numbers = x[0].long().abs() % 7
        return layer.apply(params, numbers.flatten(), numbers[:, 0]) if offsets else layer.apply(params, numbers)

    return layer._replace(apply=apply)


def with_lengths(layer: fnn.Layer) -> fnn.Layer:
    return layer._replace(apply=lambda params, x, *, key=None: layer.apply(params, x, lengths=uneven(x), key=key))


def first_result(layer: fnn.Layer) -> fnn.Layer:
    return layer._replace(apply=lambda params, x, *, key=None: layer.apply(params, x, key=key)[0])


MADE: dict[str, fnn.Layer] = {  # those that ON_META wraps
    "transformer_decoder_layer": layers.transformer_decoder_layer(4, 2, 3),
    "transformer_decoder": layers.transformer_decoder(layers.transformer_decoder_layer(4, 2, 3), 1),
    "transformer": layers.transformer(4, 2, 1, 1, 3),
    "embedding_bag": layers.embedding_bag(7, 3, 1.0, mode="max", padding_idx=1),
    "gru": layers.gru(4, 2, bidirectional=True, return_state=False),
    "lstm_cell": layers.lstm_cell(4, 2),
}
# layers of inputs (2, 3, 4) that tests/contracts/test_meta.py runs on the meta device
ON_META: dict[str, fnn.Layer] = {
    "multi_head_attention": layers.multi_head_attention(4, 2, 0.3, causal=True, rotary_base=10.0),
    "multi_head_attention, added keys": layers.multi_head_attention(4, 2, add_bias_kv=True, add_zero_attn=True),
    "multi_head_attention, masks": given_masks(layers.multi_head_attention(4, 2)),
    "scaled_dot_product_attention": without_params(
        lambda x: layers.scaled_dot_product_attention(x, x, x, is_causal=True)
    ),
    "attention_cache": decoding(layers.multi_head_attention(4, 2, causal=True)),
    "rotary_positions": without_params(layers.rotary_positions),
    "sinusoidal_positions": layers.sinusoidal_positions(4),
    "learned_positions": layers.learned_positions(5, 4),
    "transformer_encoder_layer": layers.transformer_encoder_layer(4, 2, 3, causal=True),
    "transformer_decoder_layer": given_memory(MADE["transformer_decoder_layer"]),
    "transformer_encoder": layers.transformer_encoder(
        layers.transformer_encoder_layer(4, 2, 3), 1, layers.layer_norm(4)
    ),
    "transformer_decoder": given_memory(MADE["transformer_decoder"]),
    "transformer": given_memory(MADE["transformer"]),
    "embedding_bag": with_integers(MADE["embedding_bag"]),
    "embedding_bag, offsets": with_integers(layers.embedding_bag(7, 3, mode="max", scale_grad_by_freq=True), True),
    "rnn": layers.rnn(4, 2, return_state=False),
    "lstm": layers.lstm(4, 3, 2, dropout=0.3, bidirectional=True, proj_size=2, return_state=False),
    "gru": with_lengths(MADE["gru"]),
    "rnn_cell": layers.rnn_cell(4, 2),
    "lstm_cell": first_result(MADE["lstm_cell"]),
    "gru_cell": layers.gru_cell(4, 2),
}
SHAPES_ON_META = {name.split(",")[0]: (2, 3, 4) for name in ON_META}
