"""Image data sets as tensors."""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fnn.data.arrays import resize

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

Name = Literal["digits", "mnist", "fashion_mnist"]


class Images(NamedTuple):
    """``train`` and ``test`` are pairs (images, labels): float32 (n, 1, height, width) in [0, 1], and int64 (n,)."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]


def load_dataset(name: Name, root: str | Path | None = None, download: bool = True, size: int | None = None) -> Images:
    """Load a data set of images by name.

    - "digits": 1,797 handwritten digits of 8x8 pixels, 1,438 to train and 359 to test, in the package. This is the
      test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
      Repository, doi 10.24432/C50P49, CC BY 4.0.
    - "mnist", "fashion_mnist": 60,000 and 10,000 images of 28x28 pixels, read by torchvision from the folder ``root``
      (default: the environment variable FNN_DATA, or ~/.cache/fnn). With ``download`` missing files are downloaded.

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
    }
    if name not in readers:
        raise ValueError(f"no data set {name!r}; there are {', '.join(map(repr, readers))}")
    train, test, classes = readers[name]()
    if size is None:
        return Images(train, test, classes)
    return Images((resize(train[0], size), train[1]), (resize(test[0], size), test[1]), classes)


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
        raw = folder / name / "raw"
        files = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        if all((raw / file).exists() for file in files):
            starts = ", ".join(f"{file} starts with {(raw / file).open('rb').read(12)!r}" for file in files)
            raise ValueError(
                f"{name}: a file in {raw} is not in the IDX format or was cut ({type(error).__name__}: {error}; "
                f"{starts}); remove it and download it anew"
            ) from error
        tried = "reading and downloading" if download else "reading, without downloading,"
        raise FileNotFoundError(
            f"{name}: {tried} failed ({error}). Put {', '.join(files)} (or the same with .gz) into {raw}, "
            "or name the folder that holds them: load_dataset(..., root=...)"
        ) from error
    for part, which in zip(parts, ("train", "test"), strict=True):
        images, labels = tuple(part.data.shape), tuple(part.targets.shape)
        if len(images) != 3 or labels != images[:1] or not images[0]:
            raise ValueError(
                f"{name}: the {which} set in {folder / name / 'raw'} has images of shape {images} and labels of shape "
                f"{labels}, not (n, height, width) and (n,); the files do not belong together"
            )
    train, test = [(part.data[:, None].to(torch.float32) / 255.0, part.targets.to(torch.int64)) for part in parts]
    return Images(train, test, classes)


_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AssertionError, EOFError, struct.error, zlib.error)
