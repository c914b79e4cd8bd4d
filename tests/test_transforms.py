"""Transforms of images: against torchvision, plain loops and distributions, with and without a key."""

import functools
import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as theirs

import fnn
from fnn.data import transforms

KEY = fnn.random.key(5)
pytestmark = pytest.mark.filterwarnings("error")  # torch warns of options whose defaults it has changed


def images(channels: int = 2, height: int = 7, width: int = 6, count: int = 50) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


RANDOM = {
    "crop": transforms.random_crop((5, 6), padding=(1, 2)),
    "flip": transforms.random_flip(),
    "flip, vertical": transforms.random_flip(0.3, vertical=True),
    "rotation": transforms.random_rotation(30),
    "cutout": transforms.cutout((3, 2)),
    "composed": transforms.compose(transforms.pad(2), transforms.random_crop(7), transforms.random_flip()),
}
FIXED = {
    "to_float": (transforms.to_float(), lambda x: x),
    "normalize": (transforms.normalize((0.4, 0.5), (0.2, 0.3)), v2.Normalize([0.4, 0.5], [0.2, 0.3])),
    "normalize, one number": (transforms.normalize(0.4, 0.2), v2.Normalize([0.4, 0.4], [0.2, 0.2])),
    "resize": (transforms.resize((4, 9)), v2.Resize((4, 9))),
    "pad": (transforms.pad((1, 2)), v2.Pad((2, 1))),
    "pad, reflect": (transforms.pad(2, "reflect"), v2.Pad(2, padding_mode="reflect")),
    "crop of the middle": (transforms.random_crop((5, 4)), v2.CenterCrop((5, 4))),
    "composed": (
        transforms.compose(transforms.resize(8), transforms.normalize(0.5, 0.5)),
        v2.Compose([v2.Resize((8, 8)), v2.Normalize([0.5, 0.5], [0.5, 0.5])]),
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed_transforms_are_torchvisions(name: str) -> None:
    ours, expected = FIXED[name]
    torch.testing.assert_close(ours(images()), expected(images()))


@pytest.mark.parametrize("name", RANDOM)
def test_contract_of_random_transforms(name: str) -> None:
    transform, x = RANDOM[name], images()
    before = x.clone()
    y = transform(x, key=KEY)
    assert torch.equal(x, before)
    assert torch.equal(y, transform(x, key=KEY))
    assert not torch.equal(y, transform(x, key=fnn.random.key(6)))
    assert torch.equal(y, fnn.jit(lambda x: transform(x, key=KEY))(x))
    alone = transform(x[:1], key=KEY)
    assert alone.shape[1:] == y.shape[1:]
    same = transform(x[:1].expand(50, -1, -1, -1), key=KEY)  # each image has a draw of its own
    assert len({tuple(image.flatten().tolist()) for image in same}) > 1
    assert transform(x.to("meta"), key=KEY.to("meta")).shape == y.shape
    y.zero_()
    transform(x).zero_()  # without a key, and its result is not the argument
    assert torch.equal(x, before)


def test_a_crop_is_a_part_of_its_image_and_places_are_uniform() -> None:
    x = images(1, 4, 4, 2000)
    found = transforms.random_crop(3)(x, key=KEY)
    places = []
    for image, part in zip(x, found, strict=True):
        matches = [(i, j) for i in range(2) for j in range(2) if torch.equal(image[:, i : i + 3, j : j + 3], part)]
        assert len(matches) == 1
        places += matches
    counts = [places.count((i, j)) for i in range(2) for j in range(2)]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("vertical", [False, True])
def test_flips_are_drawn_with_their_probability(vertical: bool) -> None:
    x = images(count=3000)
    y = transforms.random_flip(0.3, vertical)(x, key=KEY)
    turned = torch.tensor([torch.equal(a.flip(1 if vertical else 2), b) for a, b in zip(x, y, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(x, y, strict=True)])
    assert bool((turned ^ kept).all())
    assert scipy.stats.binomtest(int(turned.sum()), 3000, 0.3).pvalue > 1e-3


def test_rotation_is_torchvisions_by_the_drawn_angle() -> None:
    x = images(1, 9, 7, 40)
    y = transforms.random_rotation(60)(x, key=KEY)
    angles = fnn.random.uniform(KEY, (40,), torch.float32, -math.pi / 3, math.pi / 3)
    for image, found, angle in zip(x, y, angles, strict=True):
        both = [theirs.rotate(image, sign * math.degrees(angle), v2.InterpolationMode.BILINEAR) for sign in (1, -1)]
        assert min(float((found - other).abs().max()) for other in both) < 1e-4


def test_cutout_fills_one_rectangle() -> None:
    x = images(2, 8, 8, 300) + 1
    y = transforms.cutout((3, 4), value=-1.0)(x, key=KEY)
    for image, found in zip(x, y, strict=True):
        gone = found[0] == -1
        assert torch.equal(gone, found[1] == -1)
        assert torch.equal(found[:, ~gone], image[:, ~gone])
        rows, columns = gone.any(1).nonzero(), gone.any(0).nonzero()
        height, width = (int(where.max() - where.min()) + 1 for where in (rows, columns))
        assert int(gone.sum()) == height * width
        assert height <= 3
        assert width <= 4
    assert int((y[:, 0] == -1).sum((1, 2)).max()) == 12


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_from_the_beta_distribution(alpha: float) -> None:
    count = 4000
    targets = torch.eye(count)
    x, mixed = transforms.mixup(alpha)(torch.eye(count)[:, None, None], targets, key=KEY)
    torch.testing.assert_close(x[:, 0, 0], mixed)
    torch.testing.assert_close(mixed.sum(1), torch.ones(count))
    own = mixed.diagonal().double()
    others = mixed.sum(0) - own  # each sample is the partner of one
    partner = (mixed - torch.diag(mixed.diagonal())).argmax(1)
    assert len(set(partner[own < 1 - 1e-6].tolist())) >= int((own < 1 - 1e-6).sum()) - 2
    assert float(others.sum()) > 0
    inside = own[(own > 1e-6) & (own < 1 - 1e-6)]
    distribution = scipy.stats.beta(alpha, alpha)
    below = distribution.cdf(1e-6)
    expected = lambda x: (distribution.cdf(x) - below) / (1 - 2 * below)
    assert scipy.stats.kstest(inside.numpy(), expected).pvalue > 1e-3


def test_mixup_without_a_key_keeps_everything() -> None:
    x, targets = images(), torch.eye(50)
    same = transforms.mixup()(x, targets)
    assert torch.equal(same[0], x)
    assert torch.equal(same[1], targets)


def test_bytes_and_labels() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    torch.testing.assert_close(transforms.to_float()(x), theirs.to_dtype(x, torch.float32, scale=True))
    labels = torch.tensor([3, 0, 2])
    assert torch.equal(transforms.one_hot(4)(labels), F.one_hot(labels, 4).float())


MISTAKES = {
    "bytes": (lambda: transforms.normalize(0.5, 0.5)(images().byte()), TypeError, "write to_float"),
    "one image": (lambda: transforms.random_flip()(images()[0]), ValueError, r"got \(2, 7, 6\).*images\[None\]"),
    "channels": (
        lambda: transforms.normalize((1, 2, 3), 0.5)(images()),
        ValueError,
        "3 numbers for images of 2",
    ),
    "std": (lambda: transforms.normalize(0.0, 0.0), ValueError, "std must be positive"),
    "crop": (lambda: transforms.random_crop(9)(images(), key=KEY), ValueError, r"\(9, 9\) does not fit"),
    "size": (lambda: transforms.resize(0), ValueError, "size >= 1"),
    "mode": (lambda: transforms.resize(2, "cubic"), ValueError, "mode is"),  # type: ignore[arg-type]
    "probability": (lambda: transforms.random_flip(1.5), ValueError, "between 0 and 1"),
    "degrees": (lambda: transforms.random_rotation(-3), ValueError, "between 0 and 180"),
    "labels": (lambda: transforms.one_hot(3)(torch.ones(2)), TypeError, "integer labels"),
    "mixup of labels": (lambda: transforms.mixup()(images(), torch.arange(50)), ValueError, "write one_hot"),
    "alpha": (lambda: transforms.mixup(0.0), ValueError, "alpha must be positive"),
    "integers": (lambda: transforms.to_float()(torch.ones(1, 1, 1, 1, dtype=torch.int64)), TypeError, "uint8 or float"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_sentences(name: str) -> None:
    mistake, kind, sentence = MISTAKES[name]
    with pytest.raises(kind, match=sentence):
        mistake()


def test_gradients_flow_through_an_augmentation() -> None:
    x = images(1, 6, 6, 3).double()
    augment = functools.partial(RANDOM["composed"], key=KEY)
    assert torch.autograd.gradcheck(augment, x.requires_grad_())
