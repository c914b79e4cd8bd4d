"""Networks of torch, torchvision, timm and Hugging Face as functions: outputs, derivatives and training.

References are the modules themselves, loops over samples, finite differences in float64, torch.optim and Opacus.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from fnn.interop import from_module

KEY = fnn.random.key(5)


class Problem(NamedTuple):
    """A module, a batch of inputs, keywords of its forward, and the tensor to look at in its outputs."""

    module: nn.Module
    x: Tensor
    keywords: dict[str, Any]
    pick: Callable[[Any], Tensor]


class Seen(NamedTuple):
    """The converted module as a function of params, inputs and key, in evaluation unless a key is given."""

    apply: Callable[..., Tensor]
    params: Any
    state: Any
    problem: Problem


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def words(*shape: int) -> Tensor:
    # Word 0 is BERT's padding, whose embedding has no gradient; so the Hessian would not be symmetric.
    return torch.randint(1, 13, shape, generator=torch.Generator().manual_seed(1))


def resnet18() -> Problem:
    torchvision = pytest.importorskip("torchvision")
    return Problem(torchvision.models.resnet18(num_classes=3), draw(3, 3, 32, 32), {}, lambda out: out)


def timm_vit() -> Problem:
    timm = pytest.importorskip("timm")
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3,
        proj_drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2,
    )  # fmt: skip
    return Problem(module, draw(3, 3, 16, 16), {}, lambda out: out)


def gpt2() -> Problem:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return Problem(transformers.GPT2LMHeadModel(config), words(3, 5), {"use_cache": False}, lambda out: out.logits)


def bert() -> Problem:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=10,
        max_position_embeddings=8,
    )  # fmt: skip
    return Problem(transformers.BertModel(config), words(3, 5), {}, lambda out: out.pooler_output)


def llama() -> Problem:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=10, max_position_embeddings=8, attention_dropout=0.3, pad_token_id=0,
    )  # fmt: skip
    return Problem(transformers.LlamaForCausalLM(config), words(3, 5), {"use_cache": False}, lambda out: out.logits)


class Attending(nn.Module):
    """torch's own attention with a mask, and its Transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(6, 3, 5, 0.2, batch_first=True, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(4, 4, dtype=torch.bool, device=x.device).triu(1)
        y, weights = self.attention(x, x, x, attn_mask=mask)
        return self.layer(x + y) + weights.sum()


class Normed(nn.Module):
    """The norms of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4), nn.Tanh(), nn.InstanceNorm1d(4, affine=True), nn.Tanh(),
            nn.LayerNorm(5), nn.RMSNorm(5), nn.BatchNorm1d(4), nn.Dropout1d(0.3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "resnet18": resnet18,
    "timm vit": timm_vit,
    "gpt2": gpt2,
    "bert": bert,
    "llama": llama,
    "attention": lambda: Problem(Attending(), draw(3, 4, 6), {}, lambda out: out),
    "norms": lambda: Problem(Normed(), draw(3, 4, 5), {}, lambda out: out),
    "lstm": lambda: Problem(
        nn.LSTM(3, 4, 2, dropout=0.4, bidirectional=True, batch_first=True), draw(3, 3, 3), {}, lambda out: out[0]
    ),
    "lstm, projected": lambda: Problem(
        nn.LSTM(3, 4, proj_size=2, bias=False, batch_first=True), draw(3, 3, 3), {}, lambda out: out[0]
    ),
    "gru": lambda: Problem(nn.GRU(3, 4, 2, dropout=0.4, batch_first=True), draw(3, 3, 3), {}, lambda out: out[0]),
    "rnn": lambda: Problem(nn.RNN(3, 4, nonlinearity="relu", batch_first=True), draw(3, 3, 3), {}, lambda out: out[0]),
}  # fmt: skip
every = pytest.mark.parametrize("name", PROBLEMS)
with_keys = pytest.mark.parametrize(
    ("name", "key"),
    [(name, None) for name in PROBLEMS]
    + [(name, KEY) for name in PROBLEMS if name not in ("resnet18", "rnn", "lstm, projected")],
)  # fmt: skip

# The size of steps and the error of finite differences. ResNet-18 has kinks close to each other; in Llama the norms of
# Hugging Face compute in float32 whatever the dtype of their inputs.
DIFFERENCES = {"resnet18": (1e-8, 1e-6), "llama": (1e-3, 2e-3)}


def see(name: str) -> Seen:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = PROBLEMS[name]()
    problem.module.double()
    converted = from_module(problem.module)
    params = fnn.tree.map(lambda leaf: leaf + 0.05 * torch.randn_like(leaf), converted.params)

    def apply(params: Any, x: Tensor, key: Tensor | None = None) -> Tensor:
        if isinstance(converted.layer, fnn.StatefulLayer):
            return problem.pick(converted.layer.apply(params, converted.state, x, key=key, **problem.keywords)[0])
        return problem.pick(converted.layer.apply(params, x, key=key, **problem.keywords))

    return Seen(apply, params, converted.state, problem)


def objective(seen: Seen) -> Callable[..., Tensor]:
    """A loss of one sample or of several: the mean over samples of a random cubic of the outputs."""
    weights = draw(*seen.apply(seen.params, seen.problem.x).shape[1:])

    def loss(params: Any, x: Tensor, key: Tensor | None = None) -> Tensor:
        out = seen.apply(params, x, key) * weights
        return (out + out**2 + out**3 / 3).flatten(1).sum(1).mean()

    return loss


def relative(a: Any, b: Any) -> float:
    return float(fnn.tree.max_difference(a, b)) / max(float(leaf.abs().max()) for leaf in fnn.tree.leaves(b))


@every
def test_the_function_is_the_module(name: str) -> None:
    seen = see(name)
    module = seen.problem.module.eval()
    module.load_state_dict(fnn.interop.state_dict(seen.params, seen.state), strict=False)
    wanted = seen.problem.pick(module(seen.problem.x, **seen.problem.keywords))
    assert relative(seen.apply(seen.params, seen.problem.x), wanted.detach()) < 1e-14


@with_keys
def test_per_sample_gradients_are_those_of_a_loop(name: str, key: Tensor | None) -> None:
    seen = see(name)
    loss, x = objective(seen), seen.problem.x
    if key is None:
        found = fnn.per_sample_grad(loss)(seen.params, x)
        loop = [fnn.grad(loss)(seen.params, row) for row in x.split(1)]
    else:
        found = fnn.per_sample_grad(lambda params, x, *, key: loss(params, x, key))(seen.params, x, key=key)
        keys = fnn.random.split(key, len(x))
        loop = [fnn.grad(loss)(seen.params, row, each) for row, each in zip(x.split(1), keys, strict=True)]
    assert relative(found, fnn.tree.stack(loop)) < 1e-12


@with_keys
def test_second_derivatives_are_finite_differences(name: str, key: Tensor | None) -> None:
    seen = see(name)
    loss, x, params = objective(seen), seen.problem.x, seen.params
    torch.manual_seed(1)
    v = fnn.tree.map(torch.randn_like, params)
    gradient = lambda p: fnn.grad(loss)(p, x, key)
    step, tolerance = DIFFERENCES.get(name, (1e-6, 1e-6))
    at = lambda size: gradient(fnn.tree.map(lambda p, d: p + size * d, params, v))
    ahead, behind = at(step), at(-step)
    wanted = fnn.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    products = {
        "jvp(grad)": fnn.jvp(gradient, (params,), (v,))[1],
        "grad(jvp)": fnn.grad(lambda p: fnn.jvp(lambda q: loss(q, x, key), (p,), (v,))[1])(params),
        "grad(grad)": fnn.grad(lambda p: fnn.tree.dot(gradient(p), v))(params),
        "hvp": fnn.curvature.hvp(lambda p: loss(p, x, key), (params,), (v,))[1]
        if name in ("norms", "gpt2") else wanted,
    }  # fmt: skip
    for order, found in products.items():
        assert relative(found, wanted) < tolerance, order


@every
def test_replay_is_the_function(name: str) -> None:
    seen = see(name)
    loss = objective(seen)
    arguments = seen.params, seen.problem.x, KEY
    wanted, grads = fnn.value_and_grad(loss)(*arguments)
    value, found = fnn.jit(fnn.value_and_grad(loss))(*arguments)
    assert torch.equal(value, wanted)
    assert fnn.tree.max_difference(found, grads) == 0.0


@pytest.mark.parametrize("name", ["norms", "attention", "gpt2"])
def test_ensembles_are_a_loop(name: str) -> None:
    seen = see(name)
    members = [seen.params, fnn.tree.scale(1.1, seen.params)]
    found = fnn.vmap(seen.apply, (0, None))(fnn.tree.stack(members), seen.problem.x)
    torch.testing.assert_close(found, torch.stack([seen.apply(params, seen.problem.x) for params in members]))
    keys = fnn.random.split(KEY)
    found = fnn.vmap(seen.apply, (None, None, 0))(seen.params, seen.problem.x, keys)
    torch.testing.assert_close(found, torch.stack([seen.apply(seen.params, seen.problem.x, key) for key in keys]))
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["resnet18", "timm vit", "gpt2", "bert", "llama"])
def test_ten_donated_steps_are_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    problem = PROBLEMS[name]()
    module, train = problem.module.double(), name == "resnet18"
    layer, params, state = from_module(module)
    options = {"eps": 1e-4}  # with 1e-8, gradients that are zero up to rounding would make steps of full size
    optimizer = fnn.optim.adam(1e-3, **options)
    targets = words(*problem.pick(module.eval()(problem.x, **problem.keywords)).shape[:-1]) % 3

    def loss(params: Any, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        if isinstance(layer, fnn.StatefulLayer):
            out, state = layer.apply(params, state, x, train=train, **problem.keywords)
        else:
            out = layer.apply(params, x, **problem.keywords)
        return fnn.losses.cross_entropy(problem.pick(out).flatten(0, -2), targets.flatten()), state

    @fnn.jit(donate_argnums=(0, 1, 2))
    def step(params: Any, state: Any, opt_state: Any, x: Tensor) -> tuple:
        (value, state), grads = fnn.value_and_grad(loss, has_aux=True)(params, state, x)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), state, opt_state, value

    theirs = torch.optim.Adam(module.train(train).parameters(), lr=1e-3, **options)
    opt_state = optimizer.init(params)
    for _ in range(10):
        params, state, opt_state, value = step(params, state, opt_state, problem.x)
        theirs.zero_grad()
        out = problem.pick(module(problem.x, **problem.keywords))
        wanted = F.cross_entropy(out.flatten(0, -2), targets.flatten())
        wanted.backward()
        theirs.step()
        assert float(value) == pytest.approx(float(wanted), rel=1e-7, abs=1e-9)
    found = fnn.interop.state_dict(params, state)
    for path, leaf in module.state_dict().items():
        if path in found:
            torch.testing.assert_close(found[path], leaf, rtol=1e-5, atol=1e-7)


class SmallImages(nn.Module):
    """A network that Opacus knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(torch.relu(self.norm(self.conv(x))), 3).flatten(1))


class SmallText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(13, 4), nn.LayerNorm(4)
        self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.up(self.norm(self.embed(x)))).mean(1))


@pytest.mark.parametrize(
    ("make", "x"), [(SmallImages, draw(5, 3, 8, 8)), (SmallText, words(5, 4))], ids=["images", "text"]
)
def test_ghost_clipping_is_that_of_opacus(make: type[nn.Module], x: Tensor) -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    module = make().double()
    layer, params, _ = from_module(module)
    labels = torch.tensor([0, 1, 2, 0, 1])

    def loss(params: Any, batch: tuple) -> Tensor:
        return fnn.losses.cross_entropy(layer.apply(params, batch[0]), batch[1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = opacus.GradSampleModule(module, loss_reduction="sum")
        F.cross_entropy(wrapped(x), labels, reduction="sum").backward()
        samples = {path.removeprefix("_module."): leaf.grad_sample for path, leaf in wrapped.named_parameters()}
    norms = torch.stack([leaf.flatten(1).norm(dim=1) for leaf in samples.values()]).norm(dim=0)
    bound = float(norms.median())
    factors = (bound / norms).clamp(max=1.0)
    wanted = {path: torch.einsum("s,s...->...", factors, leaf) for path, leaf in samples.items()}
    found = fnn.clipped_grad(loss, bound, method="ghost")(params, (x, labels))
    for path, leaf in fnn.tree.items(found):
        torch.testing.assert_close(leaf, wanted[path], rtol=1e-9, atol=1e-12)
