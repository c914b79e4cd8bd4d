"""A multilayer perceptron on images: ``python -m recipes.mlp``."""

import tyro

import fnn
from recipes.training import Flags, run

if __name__ == "__main__":
    run("mlp", fnn.models.mlp(28 * 28, 512, 512, 10), 28, tyro.cli(Flags))
