"""Train LeNet on images: ``python -m recipes.lenet``.

What reaches 99 % on MNIST and 91 % on Fashion-MNIST, in four minutes on one core each:
``--dataset mnist --epochs 8 --learning-rate 2e-3 --schedule cosine --augment`` and
``--dataset fashion_mnist --epochs 12 --learning-rate 2e-3 --schedule cosine``.
"""

import fnn
from recipes import command_line
from recipes.training import Flags, run

if __name__ == "__main__":
    defaults = Flags(optimizer="adam", learning_rate=1e-3)
    command_line.main(lambda flags: run("lenet", fnn.models.lenet, 32, flags), defaults)
