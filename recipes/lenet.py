"""Train LeNet on images: ``python -m recipes.lenet``."""

import fnn
from recipes import command_line
from recipes.training import Flags, run

if __name__ == "__main__":
    defaults = Flags(optimizer="adam", learning_rate=1e-3)
    command_line.main(lambda flags: run("lenet", fnn.models.lenet(), 32, flags), defaults)
