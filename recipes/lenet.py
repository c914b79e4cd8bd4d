"""LeNet on images: ``python -m recipes.lenet``."""

import tyro

import fnn
from recipes.training import Flags, run

if __name__ == "__main__":
    flags = tyro.cli(Flags, default=Flags(optimizer="adam", learning_rate=1e-3))
    run("lenet", fnn.models.lenet(), 32, flags)
