"""The Vision Transformer (Dosovitskiy et al., 2020)."""

from typing import Any

import torch
from torch import Tensor

from fnn import init
from fnn.layers import connect, conv2d, dropout, gelu, layer_norm, linear, multi_head_attention, sequential
from fnn.layers.base import Layer, ShapeError, as_size, check_params, check_tensor, factory
from fnn.layers.combinators import Parts


@factory
def vit(
    image_size: int,
    patch_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    mlp_dim: int,
    p: float = 0.0,
    attention_dropout: float = 0.0,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> Layer:
    """A Transformer on square patches of an image, with the parameter names and initial values of torchvision.

    x: (batch, in_channels, image_size, image_size) -> logits (batch, num_classes). A class token is put before the
    patches, and its output is classified. A key turns on dropout with the probabilities ``p`` and
    ``attention_dropout``. Raises ``ValueError`` if the patches do not fill the image, and ``ShapeError`` for other
    inputs.

    >>> import fnn
    >>> model = vit(8, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)
    >>> model.apply(model.init(fnn.random.key(0)), torch.ones(5, 3, 8, 8)).shape
    torch.Size([5, 3])
    """
    image_size, patch_size = as_size("vit", "image_size", image_size), as_size("vit", "patch_size", patch_size)
    if image_size % patch_size:
        raise ValueError(f"vit: patch_size={patch_size} must divide image_size={image_size}")
    blocks = {
        f"encoder_layer_{i}": _block(num_heads, hidden_dim, mlp_dim, p, attention_dropout) for i in range(num_layers)
    }
    encoder = {
        "pos_embedding": _added((image_size // patch_size) ** 2 + 1, hidden_dim),
        "dropout": dropout(p), "layers": sequential(**blocks), "ln": layer_norm(hidden_dim, 1e-6),
    }  # fmt: skip
    std = (in_channels * patch_size**2) ** -0.5
    head = linear(hidden_dim, num_classes, weight_init=init.zeros(), bias_init=init.zeros())

    def forward(parts: Parts, x: Any) -> Tensor:
        check_tensor("vit", x)
        if x.dim() != 4 or tuple(x.shape[1:]) != (in_channels, image_size, image_size):
            wanted = f"(batch, {in_channels}, {image_size}, {image_size})"
            raise ShapeError(f"vit expects images of shape {wanted}, got {tuple(x.shape)}")
        patches = parts.conv_proj(x).flatten(2).mT  # (batch, patches, hidden_dim)
        return parts.heads(parts.encoder(parts.class_token(patches))[:, 0])

    return connect(
        forward,
        conv_proj=conv2d(
            in_channels, hidden_dim, patch_size, patch_size,
            weight_init=init.truncated_normal(std=std), bias_init=init.zeros(),
        ),
        class_token=_class_token(hidden_dim),
        encoder=connect(_chain, **encoder),
        heads=sequential(head=head),
    )  # fmt: skip


@factory
def vit_b_16(num_classes: int = 1000, image_size: int = 224, p: float = 0.0, attention_dropout: float = 0.0) -> Layer:
    """ViT-B/16: :func:`vit` with 12 layers of 12 heads, 768 features and patches of 16 x 16. 86,567,656 parameters.

    >>> import fnn
    >>> fnn.tree.size(vit_b_16().init(fnn.random.key(0, "meta")))
    86567656
    """
    return vit(image_size, 16, 12, 12, 768, 3072, p, attention_dropout, num_classes)


def _chain(parts: Parts, x: Tensor) -> Tensor:
    return parts.ln(parts.layers(parts.dropout(parts.pos_embedding(x))))


def _block(num_heads: int, hidden_dim: int, mlp_dim: int, p: float, attention_dropout: float) -> Layer:
    xavier: dict[str, Any] = {"weight_init": init.xavier_uniform(), "bias_init": init.normal(std=1e-6)}
    return connect(
        _block_forward,
        ln_1=layer_norm(hidden_dim, 1e-6),
        self_attention=multi_head_attention(hidden_dim, num_heads, attention_dropout),
        dropout=dropout(p),
        ln_2=layer_norm(hidden_dim, 1e-6),
        mlp=sequential(
            linear(hidden_dim, mlp_dim, **xavier), gelu, dropout(p), linear(mlp_dim, hidden_dim, **xavier), dropout(p)
        ),
    )


def _block_forward(parts: Parts, x: Tensor) -> Tensor:
    x = x + parts.dropout(parts.self_attention(parts.ln_1(x)))
    return x + parts.mlp(parts.ln_2(x))


def _class_token(features: int) -> Layer:
    """Put one learned vector before each sequence. Its params are the vector itself, (1, 1, features)."""

    def apply(params: Any, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("vit", {"class_token": params}, class_token=(1, 1, features))
        return torch.cat([params.expand(len(x), -1, -1), x], 1)

    return Layer(lambda key=None: init.zeros()(key, (1, 1, features)), apply)


def _added(length: int, features: int) -> Layer:
    """Add a learned vector at each position. Its params are these vectors, (1, length, features)."""

    def apply(params: Any, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("vit", {"pos_embedding": params}, pos_embedding=(1, length, features))
        return x + params

    return Layer(lambda key=None: init.normal(std=0.02)(key, (1, length, features)), apply)
