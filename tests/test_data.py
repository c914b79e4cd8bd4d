import builtins
import collections
import os
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F

import fnn
from fnn.data import batches, from_dataset, load_dataset, resize

ROOT = os.environ.get("FNN_DATA")
needs_mnist = pytest.mark.skipif(ROOT is None, reason="FNN_DATA names no folder with MNIST")


def test_digits_are_the_uci_test_set() -> None:
    data = load_dataset("digits")
    images = torch.cat([data.train[0], data.test[0]])
    labels = torch.cat([data.train[1], data.test[1]])
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.shape == (1797, 1, 8, 8)
    # class counts and the mean of 4.8842 of 16 inks, as the repository's description and scikit-learn give them
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert abs(float(images.double().mean()) * 16 - 4.884165) < 1e-5
    assert set((images * 16).unique().tolist()) == set(range(17))
    assert len({image.numpy().tobytes() for image in images}) == 1797


def test_digits_split_is_stratified_and_fixed() -> None:
    data, again = load_dataset("digits"), load_dataset("digits")
    share = data.test[1].bincount() / torch.cat([data.train[1], data.test[1]]).bincount()
    assert ((share - 0.2).abs() < 0.005).all()
    assert torch.equal(data.test[0], again.test[0])


@needs_mnist
@pytest.mark.parametrize(("name", "first"), [("mnist", [5, 0, 4, 1, 9]), ("fashion_mnist", [9, 0, 0, 3, 0])])
def test_mnist_files(name: str, first: list[int]) -> None:
    data = load_dataset(name, ROOT, size=32)
    assert data.train[0].shape == (60000, 1, 32, 32)
    assert data.test[0].shape == (10000, 1, 32, 32)
    assert data.train[1][:5].tolist() == first
    assert float(data.train[0].max()) == 1.0
    assert len(data.classes) == 10


def test_missing_files_say_where_they_belong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.*into .*MNIST/raw.*root="):
        load_dataset("mnist", tmp_path, download=False)


def test_unknown_name_and_missing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'digits', 'mnist', 'fashion_mnist'"):
        load_dataset("cifar")  # type: ignore[arg-type]
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name == "torchvision":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'fnn\[recipes\]'"):
        load_dataset("mnist")


def test_batches_cover_every_row_once_in_the_order_of_the_key() -> None:
    arrays = {"x": torch.arange(10.0), "y": torch.arange(10)}
    seen = [batch["y"].tolist() for batch in batches(arrays, 4, fnn.random.key(3))]
    assert [len(rows) for rows in seen] == [4, 4, 2]
    assert sorted(row for rows in seen for row in rows) == list(range(10))
    assert seen == [batch["y"].tolist() for batch in batches(arrays, 4, fnn.random.key(3))]
    assert seen != [batch["y"].tolist() for batch in batches(arrays, 4, fnn.random.key(4))]
    assert all(torch.equal(b["x"], b["y"].float()) for b in batches(arrays, 4, fnn.random.key(3)))
    assert [len(b["y"]) for b in batches(arrays, 4, drop_last=True)] == [4, 4]


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
@pytest.mark.parametrize("key", [None, fnn.random.key(3)])
def test_batches_are_slices_of_the_order(rows: int, key: torch.Tensor | None) -> None:
    arrays = {"x": torch.arange(2 * rows).reshape(rows, 2)}
    order = torch.arange(rows) if key is None else fnn.random.permutation(key, rows)
    for size in range(1, 8):
        pieces = [order[start : start + size] for start in range(0, rows, size)]
        for drop_last in (False, True):
            whole = [piece for piece in pieces if not drop_last or len(piece) == size]
            if not whole:
                with pytest.raises(ValueError, match=f"drop_last leaves none of {rows} rows in batches of {size}"):
                    batches(arrays, size, key, drop_last=drop_last)
                continue
            found = [batch["x"] for batch in batches(arrays, size, key, drop_last=drop_last)]
            assert all(torch.equal(a, arrays["x"][b]) for a, b in zip(found, whole, strict=True))


def test_the_order_is_another_one_every_epoch() -> None:
    key = fnn.random.key(0)
    rows = torch.arange(50)
    orders = [
        torch.cat([batch["y"] for batch in batches({"y": rows}, 7, fnn.random.fold_in(key, epoch))])
        for epoch in range(5)
    ]
    assert all(torch.equal(order.sort().values, rows) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 5


def test_batches_of_what_is_not_tensors() -> None:
    encoding = collections.UserDict({"x": torch.ones(3)})
    assert [batch["x"].shape[0] for batch in batches(encoding, 2)] == [2, 1]
    with pytest.raises(TypeError, match=r"arrays\['1'\] is a ndarray, not a tensor; write torch\.as_tensor"):
        batches((torch.ones(3), numpy.ones(3)), 2)
    with pytest.raises(TypeError, match=r"batch_size as an integer, got 2\.5"):
        batches((torch.ones(3),), 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaves none of 3 rows in batches of 4"):
        batches((torch.ones(3),), 4, drop_last=True)
    assert len(list(batches((torch.ones(3),), numpy.int64(2)))) == 2  # type: ignore[arg-type]


def idx(values: torch.Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + values.to(torch.uint8).numpy().tobytes()


IMAGES, LABELS = torch.arange(3 * 28 * 28).reshape(3, 28, 28) % 255, torch.tensor([4, 1, 7])
HTML = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
BROKEN = {
    "empty": ("train-labels-idx1-ubyte", b""),
    "empty images": ("t10k-images-idx3-ubyte", b""),
    "HTML": ("train-images-idx3-ubyte", HTML),
    "HTML for labels": ("t10k-labels-idx1-ubyte", HTML),
    "cut": ("train-images-idx3-ubyte", idx(IMAGES)[:-100]),
    "cut header": ("train-images-idx3-ubyte", idx(IMAGES)[:6]),
    "cut labels": ("train-labels-idx1-ubyte", idx(LABELS)[:-1]),
    "few labels": ("train-labels-idx1-ubyte", idx(LABELS[:1])),
    "labels for images": ("t10k-images-idx3-ubyte", idx(LABELS)),
    "images for labels": ("t10k-labels-idx1-ubyte", idx(IMAGES)),
    "nothing in it": ("t10k-images-idx3-ubyte", idx(IMAGES[:0])),
}


@pytest.mark.parametrize("name", [None, *BROKEN])
def test_files_of_another_kind_are_a_sentence(name: str | None, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(IMAGES))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    if name is None:
        data = load_dataset("mnist", tmp_path, download=False)
        assert torch.equal(data.test[0], IMAGES[:, None] / 255.0)
        assert torch.equal(data.train[1], LABELS)
        return
    file, contents = BROKEN[name]
    (raw / file).write_bytes(contents)
    if name == "nothing in it":
        (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:0]))
    with pytest.raises(ValueError, match=r"MNIST: (a file in .*IDX format.*starts with|the (train|test) set in)"):
        load_dataset("mnist", tmp_path, download=False)


def test_batches_refuse_bad_input_at_once() -> None:
    with pytest.raises(ValueError, match="batch_size >= 1, got 0"):
        batches((torch.ones(3),), 0)
    with pytest.raises(ValueError, match=r"one common length.*\(3,\).*\(4,\)"):
        batches((torch.ones(3), torch.ones(4)), 2)


def test_resize_pads_small_margins_and_interpolates_large_ones() -> None:
    image = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    padded = resize(image, 32)
    assert torch.equal(padded[..., 2:30, 2:30], image)
    assert float(padded.double().sum()) == pytest.approx(float(image.double().sum()))
    assert resize(image, 28) is image
    torch.testing.assert_close(resize(torch.ones(1, 1, 8, 8), 28), torch.ones(1, 1, 28, 28))
    for before, after in ((2, 3), (3, 4), (8, 12), (28, 20)):  # a frame of zeros would be much of a small image
        small = torch.rand(1, 1, before, before, generator=torch.Generator().manual_seed(0))
        expected = F.interpolate(small, size=(after, after), mode="bilinear", align_corners=False)
        assert torch.equal(resize(small, after), expected)
    with pytest.raises(ValueError, match=r"\(batch, channels, height, width\), got \(8, 8\)"):
        resize(torch.ones(8, 8), 28)


def test_from_dataset_takes_any_dataset() -> None:
    dataset = torch.utils.data.TensorDataset(torch.rand(4, 2), torch.arange(4))
    x, y = from_dataset(dataset)
    assert torch.equal(x, dataset.tensors[0])
    assert torch.equal(y, dataset.tensors[1])
    with pytest.raises(ValueError, match="without rows"):
        from_dataset([])
