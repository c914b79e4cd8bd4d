"""Data sets as tensors or streams, batches of them, and transforms of images."""

from fnn.data import transforms
from fnn.data.batches import Batches, Stream, batches, length
from fnn.data.datasets import from_dataset
from fnn.data.image_sets import (
    CIFAR10_CLASSES,
    DIGITS,
    FASHION_MNIST_CLASSES,
    KMNIST_CLASSES,
    Images,
    load_dataset,
    resize,
)
from fnn.data.own_images import ImageReader, OwnImages, from_csv, from_folder

__all__ = [
    "CIFAR10_CLASSES",
    "DIGITS",
    "FASHION_MNIST_CLASSES",
    "KMNIST_CLASSES",
    "Batches",
    "ImageReader",
    "Images",
    "OwnImages",
    "Stream",
    "batches",
    "from_csv",
    "from_dataset",
    "from_folder",
    "length",
    "load_dataset",
    "resize",
    "transforms",
]
