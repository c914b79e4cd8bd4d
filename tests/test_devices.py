"""The choice of a device, with and without an accelerator."""

import pytest
import torch

import fnn


def pretend(monkeypatch: pytest.MonkeyPatch, found: str | None, count: int = 2) -> None:
    """Make torch say that the machine has some accelerators of one type, or none."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found and torch.device(found))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if found else 0)


@pytest.mark.parametrize("found", [None, "cuda", "mps"])
def test_auto_is_the_accelerator_or_the_cpu(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    pretend(monkeypatch, found)
    assert fnn.device() == torch.device(found or "cpu")
    assert fnn.device("cpu") == torch.device("cpu")
    assert fnn.device("meta") == torch.device("meta")


def test_a_device_that_is_there_is_returned_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda")
    assert fnn.device("cuda") == torch.device("cuda")
    assert fnn.device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("found", "name", "sentence"),
    [
        (None, "cuda", "torch finds no accelerator here, and no device 'cuda'"),
        ("mps", "cuda", "torch finds mps here, and no device 'cuda'"),
        ("cuda", "cuda:2", "torch finds 2 of cuda here, and no device 'cuda:2'"),
        ("cuda", "gpu", "torch has no device 'gpu'; write 'auto'"),
    ],
)
def test_a_device_that_is_not_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, found: str | None, name: str, sentence: str
) -> None:
    pretend(monkeypatch, found)
    with pytest.raises(ValueError, match=sentence):
        fnn.device(name)
