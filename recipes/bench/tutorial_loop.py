"""The run of the beginner tutorial, without fnn: ``python tutorial_loop.py DATA_ROOT EPOCHS``.

It uses a data set that makes a tensor of an image each time the image is read, a loader in stored order, a module, SGD
at a learning rate of 1e-3, and batches of 64. After each epoch it computes the loss and accuracy over the test set. The
weights are initialised by torch with seed 0.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential(
            nn.Linear(28 * 28, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.flatten(images))


def train(loader: DataLoader, network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network.train()
    for number, (images, labels) in enumerate(loader):
        value = criterion(network(images), labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number % 100 == 0:
            print(f"loss: {value.item():>7f}  [{number * len(images):>5d}/{len(loader.dataset):>5d}]")  # type: ignore[arg-type]


def test(loader: DataLoader, network: nn.Module, criterion: nn.Module) -> dict[str, float]:
    network.eval()
    loss, right, rows = 0.0, 0.0, 0
    with torch.no_grad():
        for images, labels in loader:
            logits = network(images)
            loss += criterion(logits, labels).item() * len(labels)
            right += (logits.argmax(1) == labels).float().sum().item()
            rows += len(labels)
    print(f"accuracy: {100 * right / rows:>0.1f}%, average loss: {loss / rows:>8f}")
    return {"test_loss": loss / rows, "test_accuracy": right / rows}


def main(root: str, epochs: int) -> None:
    torch.manual_seed(0)
    training = DataLoader(FashionMNIST(root, train=True, transform=ToTensor()), batch_size=64)
    testing = DataLoader(FashionMNIST(root, train=False, transform=ToTensor()), batch_size=64)
    network, criterion = Network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    figures = {}
    for _ in range(epochs):
        start = time.perf_counter()
        train(training, network, criterion, optimizer)
        figures = test(testing, network, criterion) | {"seconds": time.perf_counter() - start}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
