"""Networks of other libraries, called by ``torch.func.functional_call``, in jitted functions: eager's bits by replay.

transformers and timm come with the extra ``peers``; without them these tests are skipped.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fnn
from fnn import tree

KEY = fnn.random.key(3)
SAMPLES, TOKENS, WORDS, CLASSES = 2, 5, 11, 4


def images(size: int) -> tuple[Tensor, Tensor]:
    return fnn.random.normal(KEY, (SAMPLES, 3, size, size)), fnn.random.randint(KEY, (SAMPLES,), 0, CLASSES)


def language_model(model: str, head: str, **sizes: Any) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network of transformers with random weights that gives each token scores of the next one."""
    transformers = pytest.importorskip("transformers")
    special = {"bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{model}Config")(vocab_size=WORDS, **special, **sizes)
    x = fnn.random.randint(KEY, (SAMPLES, TOKENS), 0, WORDS)
    return getattr(transformers, f"{model}{head}")(config), (x, x.roll(-1, 1))


def gpt2() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return language_model("GPT2", "LMHeadModel", n_layer=2, n_head=2, n_embd=8, n_positions=8)


def bert() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
    return language_model("Bert", "ForMaskedLM", max_position_embeddings=8, **sizes)


def llama() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
    return language_model("Llama", "ForCausalLM", num_key_value_heads=1, max_position_embeddings=8, **sizes)


def vit() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return timm.models.vision_transformer.VisionTransformer(num_classes=CLASSES, **sizes), images(8)


def efficientnet() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    timm = pytest.importorskip("timm")
    return timm.create_model("efficientnet_b0", num_classes=CLASSES), images(32)


def resnet18() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.resnet18(num_classes=CLASSES), images(32)


class LastState(nn.Module):
    """A classifier of sequences by the last output of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def lstm() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return LastState(), (fnn.random.normal(KEY, (SAMPLES, TOKENS, 3)), images(1)[1])


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]]] = {
    "GPT-2": gpt2,
    "BERT": bert,
    "Llama": llama,
    "ViT": vit,
    "EfficientNet-B0": efficientnet,
    "ResNet-18": resnet18,
    "LSTM": lstm,
}


LARGE = ("EfficientNet-B0", "ResNet-18")
SMALL_OR_SLOW = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in MODELS]


def problem(name: str) -> tuple[Callable, Any, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, batch = MODELS[name]()
    module.eval()
    params = {path: leaf.detach() for path, leaf in module.named_parameters()}

    def loss(params: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = batch
        out = torch.func.functional_call(module, params, (x,))
        logits = out if isinstance(out, Tensor) else out.logits
        return fnn.losses.cross_entropy(logits.flatten(0, -2), labels.flatten())

    return loss, params, batch


def equal(first: Any, second: Any) -> bool:
    assert tree.structure(first) == tree.structure(second)
    return all(tree.leaves(tree.map(torch.equal, first, second)))


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str) -> None:
    loss, params, batch = problem(name)
    value_and_grads = fnn.value_and_grad(loss)
    jitted = fnn.jit(value_and_grads)
    expected = value_and_grads(params, batch)
    assert any(leaf.any() for leaf in expected[1].values())
    for _ in range(2):
        assert equal(jitted(params, batch), expected)
    assert fnn.compile_count(jitted) == 1


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", SMALL_OR_SLOW)
def test_per_sample_gradients(name: str) -> None:
    loss, params, batch = problem(name)
    each = fnn.per_sample_grad(loss)
    expected = each(params, batch)
    assert equal(fnn.jit(each)(params, batch), expected)
    alone = [fnn.grad(loss)(params, tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(SAMPLES)]
    assert tree.allclose(expected, tree.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL_OR_SLOW)
def test_donated_adam_steps(name: str) -> None:
    loss, params, batch = problem(name)
    optimizer = fnn.optim.adam(1e-3)

    def step(params: Any, opt_state: Any, batch: tuple[Tensor, Tensor]) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    donated = fnn.jit(step, donate_argnums=(0, 1))
    runs = []
    for function in (step, donated):
        state = tree.map(torch.clone, params), optimizer.init(params)
        values = []
        for _ in range(3):
            *state, value = function(*state, batch)
            values.append(value)
        runs.append((*state, values))
    assert runs[0][2][2] != runs[0][2][0]
    assert equal(runs[1], runs[0])
    assert fnn.compile_count(donated) == 1
