"""Data sets as whole tensors, and batches of them."""

from fnn.data.arrays import batches, length, resize, stack
from fnn.data.images import DIGITS, FASHION_MNIST_CLASSES, Images, load

__all__ = ["DIGITS", "FASHION_MNIST_CLASSES", "Images", "batches", "length", "load", "resize", "stack"]
