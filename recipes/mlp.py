"""Train a multilayer perceptron on images: ``python -m recipes.mlp``."""

import fnn
from recipes import command_line
from recipes.training import Flags, run

if __name__ == "__main__":
    make_model = lambda classes: fnn.models.mlp(28 * 28, 512, 512, classes)
    command_line.main(lambda flags: run("mlp", make_model, 28, flags), Flags())
