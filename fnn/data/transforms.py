"""Transforms of batches of images: pure functions, on the device of the images.

Each function here makes a transform. A transform takes images (batch, channels, height, width) and returns images. One
that is random takes a key as well, ``transform(images, key=key)``, and draws for each image on its own; without a key
it returns the images as they are, so that the same transform serves training and evaluation. All but
:func:`to_float` expect floating-point images. They run under ``fnn.jit``, ``vmap`` and ``grad``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import random
from fnn.layers.base import as_pair, as_size

__all__ = [
    "compose",
    "cutout",
    "mixup",
    "normalize",
    "one_hot",
    "pad",
    "random_crop",
    "random_flip",
    "random_rotation",
    "resize",
    "to_float",
]

Transform = Callable[..., Tensor]


def compose(*transforms: Callable[..., Tensor]) -> Transform:
    """Apply transforms one after the other. A key is split into one key for each random transform.

    Functions of one tensor are transforms, too, ``torchvision.transforms.v2`` among them; the random ones of
    torchvision draw once for a whole batch, from torch's global generator.

    >>> augment = compose(random_crop(28, padding=2), random_flip(), normalize(0.5, 0.5))
    >>> augment(torch.ones(4, 1, 28, 28), key=random.key(0)).shape
    torch.Size([4, 1, 28, 28])
    """

    def apply(images: Tensor, *, key: Tensor | None = None) -> Tensor:
        keys = None if key is None else random.split(key, max(len(transforms), 1))
        for i, transform in enumerate(transforms):
            if getattr(transform, "takes_key", False):
                images = transform(images, key=None if keys is None else keys[i])
            else:
                images = transform(images)
        return images

    return _random(apply)


def to_float() -> Transform:
    """Turn uint8 images, 0 to 255, into float32 images, 0 to 1. Floating-point images stay as they are.

    >>> to_float()(torch.full((1, 1, 1, 2), 255, dtype=torch.uint8))
    tensor([[[[1., 1.]]]])
    """

    def apply(images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            return images.float() / 255
        if images.is_floating_point():
            return images
        raise TypeError(f"to_float expects uint8 or floating-point images, got {images.dtype}")

    return apply


def normalize(mean: float | Sequence[float], std: float | Sequence[float]) -> Transform:
    """(x - mean) / std, with one number, or one number for each channel. Raises ``ValueError`` for a std that is 0.

    >>> normalize(0.5, 0.25)(torch.ones(1, 1, 1, 1))
    tensor([[[[2.]]]])
    """
    means, stds = ([value] if isinstance(value, (int, float)) else [*value] for value in (mean, std))
    if not all(value > 0 for value in stds):
        raise ValueError(f"normalize: std must be positive, got {std}")

    def apply(images: Tensor) -> Tensor:
        _check("normalize", images)
        for name, values in (("mean", means), ("std", stds)):
            if len(values) not in (1, images.shape[1]):
                raise ValueError(
                    f"normalize: {name} has {len(values)} numbers for images of {images.shape[1]} channels"
                )
        shift, scale = (images.new_tensor(values)[:, None, None] for values in (means, stds))
        return (images - shift) / scale

    return apply


def one_hot(classes: int) -> Callable[[Tensor], Tensor]:
    """Turn labels (batch,) of 0 to classes - 1 into float32 rows (batch, classes) with a single 1.

    >>> one_hot(3)(torch.tensor([2, 0]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    classes = as_size("one_hot", "classes", classes)

    def apply(labels: Tensor) -> Tensor:
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"one_hot expects integer labels, got {labels.dtype}")
        return (labels[..., None] == torch.arange(classes, device=labels.device)).float()

    return apply


def resize(
    size: int | tuple[int, int], mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear", antialias: bool = True
) -> Transform:
    """Scale images to (height, width), or to a square, as ``torchvision.transforms.v2.Resize((height, width))`` does.

    >>> resize(14)(torch.ones(2, 1, 28, 28)).shape
    torch.Size([2, 1, 14, 14])
    """
    size = as_pair("resize", "size", size)
    if mode not in ("bilinear", "bicubic", "nearest"):
        raise ValueError(f"resize: mode is 'bilinear', 'bicubic' or 'nearest', got {mode!r}")

    def apply(images: Tensor) -> Tensor:
        _check("resize", images)
        return F.interpolate(images, size, mode=mode, antialias=antialias and mode != "nearest")

    return apply


def pad(
    padding: int | tuple[int, int],
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant",
    value: float = 0.0,
) -> Transform:
    """Add rows above and below and columns left and right: (rows, columns), or one number for both.

    >>> pad(2)(torch.ones(1, 1, 28, 28)).shape
    torch.Size([1, 1, 32, 32])
    """
    rows, columns = as_pair("pad", "padding", padding, 0)

    def apply(images: Tensor) -> Tensor:
        _check("pad", images)
        margins = (columns, columns, rows, rows)
        return F.pad(images, margins, mode, value) if mode == "constant" else F.pad(images, margins, mode)

    return apply


def random_crop(size: int | tuple[int, int], padding: int | tuple[int, int] = 0) -> Transform:
    """Cut a part of (height, width) at a random place out of each image, after adding zeros around it.

    Without a key the middle is cut out. Raises ``ValueError`` for images that are smaller.

    >>> random_crop(28, padding=4)(torch.ones(2, 1, 28, 28), key=random.key(0)).shape
    torch.Size([2, 1, 28, 28])
    """
    height, width = as_pair("random_crop", "size", size)
    add = pad(padding)

    def apply(images: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check("random_crop", images)
        images = add(images)
        free = images.shape[2] - height, images.shape[3] - width
        if min(free) < 0:
            raise ValueError(
                f"random_crop: size {(height, width)} does not fit into images of {tuple(images.shape[2:])}"
            )
        if key is None:
            top, left = (room // 2 for room in free)
            return images[:, :, top : top + height, left : left + width].clone()
        keys = random.split(key)
        tops, lefts = (random.randint(keys[i], (len(images), 1), 0, room + 1) for i, room in enumerate(free))
        rows = (tops + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (lefts + torch.arange(width, device=images.device))[:, None, None, :]
        rows = rows.expand(-1, images.shape[1], -1, images.shape[3])
        columns = columns.expand(-1, images.shape[1], height, -1)
        return images.gather(2, rows).gather(3, columns)

    return _random(apply)


def random_flip(probability: float = 0.5, vertical: bool = False) -> Transform:
    """Mirror each image left to right, or top to bottom, with this probability.

    >>> random_flip(1.0)(torch.tensor([[[[0.0, 1.0]]]]), key=random.key(0))
    tensor([[[[1., 0.]]]])
    """
    _check_probability("random_flip", probability)

    def apply(images: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check("random_flip", images)
        if key is None:
            return images.clone()
        chosen = random.uniform(key, (len(images), 1, 1, 1)) < probability
        return torch.where(chosen, images.flip(2 if vertical else 3), images)

    return _random(apply)


def random_rotation(degrees: float) -> Transform:
    """Turn each image about its middle by a random angle between -degrees and degrees, bilinearly, zeros outside.

    >>> random_rotation(10)(torch.ones(2, 1, 8, 8), key=random.key(0)).shape
    torch.Size([2, 1, 8, 8])
    """
    if not 0 <= degrees <= 180:
        raise ValueError(f"random_rotation: degrees is between 0 and 180, got {degrees}")
    most = math.radians(degrees)

    def apply(images: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check("random_rotation", images)
        if key is None:
            return images.clone()
        angle = random.uniform(key, (len(images),), images.dtype, -most, most)
        height, width = images.shape[2:]
        cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # grid_sample's coordinates run from -1 to 1 along both axes
        first = torch.stack([cosine, -sine * (height / width), zero], -1)
        second = torch.stack([sine * (width / height), cosine, zero], -1)
        grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)

    return _random(apply)


def cutout(size: int | tuple[int, int], value: float = 0.0) -> Transform:
    """Fill a rectangle of (height, width) around a random pixel of each image (DeVries and Taylor, 2017).

    The rectangle may reach over the edge.

    >>> cutout(2)(torch.ones(2, 1, 8, 8), key=random.key(0)).shape
    torch.Size([2, 1, 8, 8])
    """
    sides = as_pair("cutout", "size", size)

    def apply(images: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check("cutout", images)
        if key is None:
            return images.clone()
        inside = []
        for part, side, extent in zip(random.split(key), sides, images.shape[2:], strict=True):
            middle = random.randint(part, (len(images), 1), 0, extent)
            distance = torch.arange(extent, device=images.device) - (middle - side // 2)
            inside.append((distance >= 0) & (distance < side))
        return torch.where((inside[0][:, :, None] & inside[1][:, None, :])[:, None], value, images)

    return _random(apply)


def mixup(alpha: float = 0.2) -> Callable[..., tuple[Tensor, Tensor]]:
    """Mix each image and its target with those of another sample of the batch (Zhang et al., 2018).

    ``mix(images, targets, key=key)`` returns x = w x_i + (1 - w) x_j and the same mixture of the targets, with one w of
    the Beta(alpha, alpha) distribution for each sample and a random j. Targets are probabilities (batch, classes), such
    as those of :func:`one_hot`. Without a key both are returned as they are.

    >>> images, targets = mixup()(torch.ones(4, 1, 8, 8), one_hot(10)(torch.arange(4)), key=random.key(0))
    >>> targets.sum(-1)
    tensor([1., 1., 1., 1.])
    """
    if not alpha > 0:
        raise ValueError(f"mixup: alpha must be positive, got {alpha}")
    values = _beta_distribution(alpha)

    def apply(images: Tensor, targets: Tensor, *, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check("mixup", images)
        if not targets.is_floating_point() or targets.dim() != 2:
            raise ValueError(
                f"mixup expects targets (batch, classes) of probabilities, got {tuple(targets.shape)} of "
                f"{targets.dtype}; write one_hot(classes)(labels)"
            )
        if key is None:
            return images.clone(), targets.clone()
        keys = random.split(key)
        order = random.permutation(keys[0], len(images)).to(images.device)
        share = _beta(keys[1], len(images), alpha, values.to(images.device))
        image_share = share.to(images.dtype).reshape(-1, 1, 1, 1)
        target_share = share.to(targets.dtype)[:, None]
        mixed = image_share * images + (1 - image_share) * images[order]
        return mixed, target_share * targets + (1 - target_share) * targets[order]

    return _random(apply)


def _beta_distribution(alpha: float) -> Tensor:
    """The distribution function of s = (2 y)^alpha, at equal steps of s, for y the smaller of w and 1 - w.

    The density of s is proportional to (1 - y)^(alpha - 1), which is smooth, where that of w has poles.
    """
    y = torch.linspace(0, 1, 2049, dtype=torch.float64) ** (1 / alpha) / 2
    density = (1 - y) ** (alpha - 1)
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), (density[1:] + density[:-1]).cumsum(0)])
    return steps / steps[-1]


def _beta(key: Tensor, count: int, alpha: float, distribution: Tensor) -> Tensor:
    """Draw from Beta(alpha, alpha), by inverting the distribution function."""
    uniform = random.uniform(key, (count,), torch.float64)
    level = 2 * torch.minimum(uniform, 1 - uniform)
    above = torch.searchsorted(distribution, level, right=True).clamp(1, len(distribution) - 1)
    low, high = distribution[above - 1], distribution[above]
    s = (above - 1 + (level - low) / (high - low)) / (len(distribution) - 1)
    smaller = s ** (1 / alpha) / 2
    return torch.where(uniform < 0.5, smaller, 1 - smaller)


def _random(apply: Any) -> Any:
    """Mark a transform that takes a key, for :func:`compose`."""
    apply.takes_key = True
    return apply


def _check(name: str, images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(
            f"{name} expects images (batch, channels, height, width), got {tuple(images.shape)}; one image is a batch "
            "images[None]"
        )
    if not images.is_floating_point():
        raise TypeError(f"{name} expects floating-point images, got {images.dtype}; write to_float() before it")


def _check_probability(name: str, probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"{name}: probability is between 0 and 1, got {probability}")
