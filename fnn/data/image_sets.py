"""Image data sets as tensors."""

import gzip
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn.layers.base import as_size

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Name = Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10"]


class Images(NamedTuple):
    """``train`` and ``test`` are pairs (images, labels); ``classes`` are the names of the labels.

    Images are float32 (n, channels, height, width) in [0, 1], labels int64 (n,).
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]


def load_dataset(name: Name, root: str | Path | None = None, download: bool = True, size: int | None = None) -> Images:
    """Load a data set of images by name.

    - "digits": 1,797 handwritten digits of 8x8 pixels, 1,438 to train and 359 to test, in the package. This is the
      test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
      Repository, doi 10.24432/C50P49, CC BY 4.0.
    - "mnist", "fashion_mnist", "kmnist": 60,000 and 10,000 grey images of 28x28 pixels.
    - "cifar10": 50,000 and 10,000 coloured images of 32x32 pixels.

    All but the digits are read by torchvision from the folder ``root`` (default: the environment variable FNN_DATA, or
    ~/.cache/fnn). With ``download`` missing files are downloaded.

    ``size`` resizes the images to size x size (:func:`resize`). Raises ``ValueError`` for another name, ``ImportError``
    without torchvision, ``FileNotFoundError`` for files that are missing, and ``ValueError`` for files that are damaged
    or do not belong together.

    >>> digits = load_dataset("digits")
    >>> digits.train[0].shape, digits.test[1].shape
    (torch.Size([1438, 1, 8, 8]), torch.Size([359]))
    """
    readers: dict[str, Callable[[], Images]] = {
        "digits": _digits,
        "mnist": lambda: _torchvision("MNIST", root, download, DIGITS),
        "fashion_mnist": lambda: _torchvision("FashionMNIST", root, download, FASHION_MNIST_CLASSES),
        "kmnist": lambda: _torchvision("KMNIST", root, download, KMNIST_CLASSES),
        "cifar10": lambda: _torchvision("CIFAR10", root, download, CIFAR10_CLASSES),
    }
    if name not in readers:
        raise ValueError(f"no data set {name!r}; there are {', '.join(map(repr, readers))}")
    train, test, classes = readers[name]()
    if size is None:
        return Images(train, test, classes)
    return Images((resize(train[0], size), train[1]), (resize(test[0], size), test[1]), classes)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images of shape (batch, channels, height, width) to size x size.

    Square images are padded with zeros if they are smaller by at most 4 pixels and at most a quarter of their size (28
    to 32). All others are interpolated bilinearly (8 to 28). Values stay in the same range. Raises ``ValueError`` for
    other shapes.

    >>> resize(torch.ones(2, 1, 28, 28), 32).shape, resize(torch.ones(2, 1, 8, 8), 28).shape
    (torch.Size([2, 1, 32, 32]), torch.Size([2, 1, 28, 28]))
    """
    size = as_size("resize", "size", size)
    if images.dim() != 4:
        raise ValueError(f"resize expects images of shape (batch, channels, height, width), got {tuple(images.shape)}")
    margin = size - images.shape[-1]
    if margin == 0 and images.shape[-2] == size:
        return images
    if images.shape[-1] == images.shape[-2] and 0 < margin <= min(4, images.shape[-1] // 4):
        before, after = margin // 2, margin - margin // 2
        return F.pad(images, (before, after, before, after))
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def _digits() -> Images:
    raw = gzip.decompress(resources.files("fnn.data").joinpath("digits.gz").read_bytes())
    count = len(raw) // 65
    pixels = torch.frombuffer(bytearray(raw[: count * 64]), dtype=torch.uint8)
    images = pixels.reshape(count, 1, 8, 8).to(torch.float32) / 16.0
    labels = torch.frombuffer(bytearray(raw[count * 64 :]), dtype=torch.uint8).to(torch.int64)
    # test on the middle one of every five images of each class, so that both sets have every class and every writer
    rank = torch.zeros(count, dtype=torch.int64)
    for digit in range(10):
        rows = (labels == digit).nonzero()[:, 0]
        rank[rows] = torch.arange(len(rows))
    test = rank % 5 == 2
    return Images((images[~test], labels[~test]), (images[test], labels[test]), DIGITS)


def _torchvision(name: str, root: str | Path | None, download: bool, classes: tuple[str, ...]) -> Images:
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(
            f"{name} is read through torchvision, which is missing: pip install 'fnn[recipes]'"
        ) from error
    folder = Path(root or os.environ.get("FNN_DATA") or Path.home() / ".cache" / "fnn").expanduser()
    source = getattr(torchvision.datasets, name)
    try:
        parts = [source(folder, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError, *_UNREADABLE) as error:
        raise _unreadable(name, folder, download, error) from error
    pairs = [(torch.as_tensor(part.data), torch.as_tensor(part.targets)) for part in parts]
    for (images, labels), which in zip(pairs, ("train", "test"), strict=True):
        if images.dim() < 3 or labels.shape != images.shape[:1] or not len(images):
            raise ValueError(
                f"{name}: the {which} set in {_files(name, folder)[0]} has images of shape {tuple(images.shape)} and "
                f"labels of shape {tuple(labels.shape)}, not (n, height, width) and (n,); the files do not belong "
                "together"
            )
    train, test = [(_scaled(images), labels.to(torch.int64)) for images, labels in pairs]
    return Images(train, test, classes)


def _scaled(images: Tensor) -> Tensor:
    """Bytes of shape (n, height, width) or (n, height, width, channels) as float32 (n, channels, height, width)."""
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images.to(torch.float32).contiguous() / 255.0


def _files(name: str, folder: Path) -> tuple[Path, list[str]]:
    """The folder and the names of the files of a data set."""
    if name == "CIFAR10":
        return folder / "cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    files = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return folder / name / "raw", files


def _unreadable(name: str, folder: Path, download: bool, error: Exception) -> Exception:
    place, files = _files(name, folder)
    if all((place / file).exists() for file in files):
        starts = ", ".join(f"{file} starts with {(place / file).open('rb').read(12)!r}" for file in files)
        form = "not what torchvision expects" if name == "CIFAR10" else "not in the IDX format or was cut"
        return ValueError(
            f"{name}: a file in {place} is {form} ({type(error).__name__}: {error}; {starts}); remove it and download "
            "it anew"
        )
    tried = "reading and downloading" if download else "reading, without downloading,"
    packed = "" if name == "CIFAR10" else " (or the same with .gz)"
    return FileNotFoundError(
        f"{name}: {tried} failed ({error}). Put {', '.join(files)}{packed} into {place}, "
        f"or name the folder that holds them: load_dataset(..., root=...)"
    )


_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AssertionError,
    EOFError,
    struct.error,
    zlib.error,
    pickle.UnpicklingError,
)
