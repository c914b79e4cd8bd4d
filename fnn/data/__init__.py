"""Data sets as tensors, and batches of them."""

from fnn.data.arrays import batches, from_dataset, length, resize
from fnn.data.image_sets import DIGITS, FASHION_MNIST_CLASSES, Images, load_dataset

__all__ = ["DIGITS", "FASHION_MNIST_CLASSES", "Images", "batches", "from_dataset", "length", "load_dataset", "resize"]
