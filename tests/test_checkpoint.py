import itertools
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch

import fnn
from fnn.checkpoint import load, load_metadata, save, save_in_background


class State(NamedTuple):
    count: torch.Tensor
    rest: tuple


TREE = {
    "key": fnn.random.key(3),
    "state": State(torch.tensor(5), (torch.ones(2, dtype=torch.bfloat16), torch.tensor([True, False]))),
    "w": torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T,
}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_round_trip_keeps_every_bit_and_container(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "tree.safetensors", TREE, {"epoch": "3"})
    back = load(tmp_path / "deep" / "tree.safetensors", TREE)
    assert type(back["state"]) is State
    for (path, a), (other, b) in zip(fnn.tree.items(TREE), fnn.tree.items(back), strict=True):
        assert path == other
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert load_metadata(tmp_path / "deep" / "tree.safetensors") == {"epoch": "3"}
    save(tmp_path / "one", torch.ones(2))
    assert load(tmp_path / "one").tolist() == [1.0, 1.0]


def test_shared_storage_is_saved_twice(tmp_path: Path) -> None:
    x = torch.arange(4.0)
    save(tmp_path / "t", {"a": x, "b": x, "c": x[1:]})
    assert load(tmp_path / "t")["c"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("write", [save, lambda path, tree: torch.save(tree, path)], ids=["safetensors", "torch.save"])
def test_a_loaded_tree_owns_its_leaves(write: Callable, tmp_path: Path) -> None:
    x = torch.arange(4.0)
    write(tmp_path / "tied", {"a": x, "b": x, "c": x[1:], "d": x.view(2, 2)})  # torch.save writes one memory for all
    loaded = load(tmp_path / "tied")
    assert len({leaf.untyped_storage().data_ptr() for leaf in loaded.values()}) == 4
    loaded["a"].zero_()
    assert [loaded[name].flatten().tolist() for name in "bcd"] == [[0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]


def test_torch_state_dicts_move_both_ways(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net")
    model = fnn.models.mlp(4, 3, 2)
    params = load(tmp_path / "net", like=model.init(fnn.random.key(0)))
    x = torch.rand(5, 4)
    assert torch.equal(model.apply(params, x), net(x))
    save(tmp_path / "back", params)
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "back"))


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_shape_and_layout(dtype: torch.dtype, tmp_path: Path) -> None:
    base = torch.arange(12).reshape(3, 4).to(torch.float32).to(dtype)
    given = {
        "whole": base,
        "view": base[:, 1:3].T,
        "scalar": base[1, 1],
        "empty": base[:0],
        "wide": base[:1].expand(5, 4),
    }
    save(tmp_path / "t", given)
    for name, leaf in load(tmp_path / "t", given, torch.device("cpu")).items():
        assert leaf.dtype == dtype
        bits = lambda tensor: tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
        assert bits(leaf) == bits(given[name])
        assert leaf.shape == given[name].shape


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "t", {"a": torch.ones(1)})

    for step, error in itertools.product(
        ("fsync", "replace", "fdopen"), (OSError("disk full"), KeyboardInterrupt("now"))
    ):

        def fail(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(type(error), match=str(error)):
                save(tmp_path / "t", {"a": torch.zeros(1)})
        assert load(tmp_path / "t")["a"].tolist() == [1.0]
        assert names(tmp_path) == ["t"]


KILLED = """
import os, sys, torch, fnn
print("ready", flush=True)
os.fsync = lambda *args: sys.stdin.read()  # stops with the part written
fnn.checkpoint.save(sys.argv[1], {"a": torch.zeros(1000)})
"""


def test_the_next_save_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "t"
    save(target, {"a": torch.ones(1)})
    others = [
        "t.12345678.part.old", "t.1234567.part", "t.123456789.part", "t.12345678.parts", "t.1234567x.part",
        "t.mine.part", "t.part", "t2.12345678.part", "u.part", "x.t.12345678.part",
    ]  # fmt: skip
    for other in others:
        (tmp_path / other).write_text("mine")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    while not (parts := sorted(set(names(tmp_path)) - {"t", *others})):
        assert process.poll() is None
    save(target, {"a": torch.ones(2)})  # while the other is at work, its part stays
    assert parts[0] in names(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert parts[0] in names(tmp_path)
    save(target, {"a": torch.ones(3)})
    assert names(tmp_path) == sorted(["t", *others])
    assert load(target)["a"].tolist() == [1.0, 1.0, 1.0]


def test_many_savers_at_once(tmp_path: Path) -> None:
    failures = []

    def work(value: int) -> None:
        try:
            for _ in range(20):
                save(tmp_path / "t", {"a": torch.full((100,), value)})
                found = load(tmp_path / "t")["a"]
                assert bool((found == found[0]).all())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names(tmp_path) == ["t"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_permissions_follow_the_umask_and_are_kept(tmp_path: Path) -> None:
    mode = lambda path: stat.S_IMODE(path.stat().st_mode)
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            save(tmp_path / f"{mask}", {"a": torch.ones(1)})
        finally:
            os.umask(before)
        assert mode(tmp_path / f"{mask}") == 0o666 & ~mask
    for kept in (0o664, 0o600, 0o640):
        (tmp_path / "18").chmod(kept)
        save(tmp_path / "18", {"a": torch.ones(1)})
        assert mode(tmp_path / "18") == kept


def test_links_are_followed_and_the_home_folder_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "here").mkdir()
    for name in ("old", "dangling"):
        (tmp_path / "here" / name).symlink_to(Path("..") / "real" / name)
    save(tmp_path / "real" / "old", {"a": torch.ones(1)})
    for name in ("old", "dangling"):
        save(tmp_path / "here" / name, {"a": torch.zeros(1)})
        assert (tmp_path / "here" / name).is_symlink()
        assert load(tmp_path / "real" / name)["a"].tolist() == [0.0]
    assert names(tmp_path / "here") == ["dangling", "old"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    save("~/params", {"a": torch.ones(1)}, {"k": "v"})
    assert load("~/params")["a"].tolist() == [1.0]
    assert load_metadata("~/params") == {"k": "v"}
    assert "~" not in names(tmp_path / "here")


def test_what_was_loaded_does_not_depend_on_the_file(tmp_path: Path) -> None:
    save(tmp_path / "t", {"a": torch.ones(100_000), "b": torch.ones(3)})
    loaded = load(tmp_path / "t")
    with (tmp_path / "t").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 300_000)
        file.truncate(300)
    assert bool((loaded["a"] == 1).all())
    storages = [loaded[name].untyped_storage() for name in ("a", "b")]
    assert [storage.nbytes() for storage in storages] == [400_000, 12]


def test_an_altered_or_cut_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "t", {"a": torch.arange(50.0), "b": {"c": torch.ones(3)}}, {"epoch": "3"})
    good = (tmp_path / "t").read_bytes()
    generator = random.Random(0)
    for _ in range(300):
        bad = bytearray(good)
        place = generator.randrange(len(bad))
        bad[place] ^= 1 << generator.randrange(8)
        (tmp_path / "bad").write_bytes(bad)
        for read in (load, load_metadata):
            with pytest.raises(ValueError, match=r"bad is not (the file that was saved|a readable)"):
                read(tmp_path / "bad")
    for length in range(0, len(good), 7):
        (tmp_path / "bad").write_bytes(good[:length])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            load(tmp_path / "bad")
    # files of other programs have no checksum
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "other", {"format": "pt"})
    assert load(tmp_path / "other")["a"].tolist() == [1.0, 1.0]
    assert load_metadata(tmp_path / "other") == {"format": "pt"}
    # and other programs read ours
    assert safetensors.torch.load_file(tmp_path / "t")["b.c"].tolist() == [1.0, 1.0, 1.0]
    length = int.from_bytes(good[:8], "little")
    assert json.loads(good[8 : 8 + length])["__metadata__"]["epoch"] == "3"


def flipped(good: bytes, generator: random.Random, stop: int) -> bytes:
    """One bit before ``stop`` is another."""
    bad = bytearray(good)
    bad[generator.randrange(stop)] ^= 1 << generator.randrange(8)
    return bytes(bad)


def blank(good: bytes, generator: random.Random, stop: int) -> bytes:
    """A block of zeros, as a crash of the machine can leave."""
    start = generator.randrange(stop)
    return good[:start] + bytes(len(good[start : start + 512])) + good[start + 512 :]


def swapped(good: bytes, generator: random.Random, stop: int) -> bytes:
    bad = bytearray(good)
    one, other = generator.randrange(stop), generator.randrange(stop)
    bad[one], bad[other] = bad[other], bad[one]
    return bytes(bad)


DAMAGES = {
    "flipped": flipped,
    "cut": lambda good, generator, stop: good[: generator.randrange(stop)],
    "blank": blank,
    "swapped": swapped,
    "a byte more": lambda good, generator, stop: good[: (at := generator.randrange(stop))] + b"\x00" + good[at:],
    "a byte less": lambda good, generator, stop: good[: (at := generator.randrange(stop))] + good[at + 1 :],
}


READERS = {  # who wrote the file, and what reads it
    "fnn": ("fnn", load),
    "torch": ("torch", load),
    "torch, by interop": ("torch", fnn.interop.read_state_dict),
}


@pytest.mark.parametrize("name", READERS)
def test_two_hundred_damages_none_of_which_is_loaded(name: str, tmp_path: Path) -> None:
    writer, read = READERS[name]
    params = fnn.models.mlp(8, 16, 4).init(fnn.random.key(0))
    state = {"params": params, "opt": fnn.optim.adam(1e-3).init(params), "key": fnn.random.key(1)}
    if writer == "fnn":
        save(tmp_path / "good", state, {"progress": "{}", "flags": '{"epochs": 3}'})
    else:
        torch.save(fnn.tree.to_state_dict(state), tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    whole = fnn.tree.to_state_dict(load(tmp_path / "good"))
    header = 8 + int.from_bytes(good[:8], "little") if writer == "fnn" else len(good)
    generator, tried, alike = random.Random(0), 0, 0
    while tried < 200:
        kind = list(DAMAGES)[tried % len(DAMAGES)]
        stop = (len(good), header, 8)[tried // len(DAMAGES) % 3]  # anywhere, in the header, in its length
        bad = DAMAGES[kind](good, generator, stop)
        if bad == good:
            continue
        tried += 1
        (tmp_path / "bad").write_bytes(bad)
        message = ""
        try:
            found = fnn.tree.to_state_dict(read(tmp_path / "bad"))
        except ValueError as error:
            message = str(error)
        if message:
            assert str(tmp_path / "bad") in message
        else:  # the archives of torch have bytes that nothing reads
            assert writer == "torch", kind
            assert sorted(found) == sorted(whole)
            assert all(torch.equal(found[name], whole[name]) for name in whole)
            alike += 1
    assert alike < 50


def test_archives_of_torch_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(3.0)}, tmp_path / "t")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load(tmp_path / "t")["w"].tolist() == [0.0, 1.0, 2.0]


LIKE = {"a": torch.ones(2), "b": {"c": torch.ones(3), "d": torch.ones(1, dtype=torch.int64)}}
MISFITS = {
    "missing": ({"a": LIKE["a"]}, [r"missing \['b.c', 'b.d'\]"]),
    "more": (LIKE | {"e": torch.ones(1)}, [r"not in the tree \['e'\]"]),
    "shape": (LIKE | {"a": torch.ones(3)}, [r"'a' is \(3,\) torch.float32, but the tree has \(2,\) torch.float32"]),
    "rank": (LIKE | {"a": torch.ones(2, 1)}, [r"'a' is \(2, 1\)"]),
    "dtype": (LIKE | {"a": torch.ones(2).double()}, [r"'a' is \(2,\) torch.float64, but .* torch.float32"]),
    "all": (
        {"a": torch.ones(3), "b": {"c": torch.ones(3)}, "e": torch.ones(1)},
        [r"missing \['b.d'\]", r"not in the tree \['e'\]", r"'a' is \(3,\)"],
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_file_that_does_not_fit_names_every_path(name: str, tmp_path: Path) -> None:
    saved, messages = MISFITS[name]
    save(tmp_path / "t", saved)
    for message in messages:
        with pytest.raises(ValueError, match=rf"does not fit the tree: .*{message}"):
            load(tmp_path / "t", LIKE)


def donated() -> dict:
    params = {"w": torch.ones(2)}
    fnn.jit(lambda params: fnn.tree.scale(2.0, params), donate_argnums=0)(params)
    return params


BAD = {
    "number": (lambda: {"rate": 0.1}, {}, TypeError, r"'rate' is 0\.1, not a tensor"),
    "none": (lambda: {"rate": None}, {}, TypeError, r"'rate' is None, not a tensor"),
    "donated": (donated, {}, TypeError, "'w' has no data: it was donated to a jitted function"),
    "meta": (lambda: {"w": torch.ones(2, device="meta")}, {}, TypeError, "'w' has no data"),
    "complex": (lambda: {"z": torch.ones(2, dtype=torch.complex128)}, {}, TypeError, r"'z' .*view_as_real\(leaf\)"),
    "sparse": (lambda: {"s": torch.eye(2).to_sparse()}, {}, TypeError, r"'s' .*to_dense\(\)"),
    "reserved": (lambda: {"__metadata__": torch.ones(2)}, {}, ValueError, "keeps for itself"),
    "dots": (lambda: {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, {}, ValueError, "dotted path 'a.b'"),
    "integer metadata": (lambda: LIKE, {"epoch": 3}, TypeError, r"strings, got 'epoch': 3; write str\("),
    "text for metadata": (lambda: LIKE, "epoch 3", TypeError, "dict of strings, got 'epoch 3'"),
    "checksum": (lambda: LIKE, {"fnn.sha256": "1"}, ValueError, "the file's checksum needs"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_saved_is_a_sentence_and_writes_nothing(name: str, tmp_path: Path) -> None:
    make, metadata, error, message = BAD[name]
    with pytest.raises(error, match=message):
        save(tmp_path / "t", make(), metadata)
    assert names(tmp_path) == []


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is not a checkpoint")
    for read in (load, load_metadata):
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            read(tmp_path / "text")
    for call in (lambda: load(tmp_path), lambda: load_metadata(tmp_path), lambda: save(tmp_path, LIKE)):
        with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_state_dicts_of_torch_save_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).to(dtype)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    params = load(tmp_path / "net.pth", like=fnn.tree.from_state_dict(net.state_dict()))
    assert all(torch.equal(leaf, net.state_dict()[path]) for path, leaf in fnn.tree.items(params))
    assert not any(leaf.requires_grad for leaf in fnn.tree.leaves(params))
    with pytest.raises(ValueError, match=r"missing \['0\.extra'\]"):
        load(tmp_path / "net.pth", like=params | {"0": params["0"] | {"extra": torch.ones(1)}})


def test_what_torch_save_should_not_write_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"more than tensors, such as a pickled module.*module\.state_dict\(\)"):
        load(tmp_path / "module.pth")
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "both.pth")
    with pytest.raises(ValueError, match=r"is not a state_dict.*\['epoch', 'model'\]"):
        load(tmp_path / "both.pth")
    whole = (tmp_path / "both.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="was altered or is damaged"):
        load(tmp_path / "cut.pth")


def test_saving_in_the_background_keeps_what_was_given(tmp_path: Path) -> None:
    tree = {"w": torch.zeros(1000, 1000)}
    wait = save_in_background(tmp_path / "w", tree, {"step": "1"})
    tree["w"].fill_(7)
    wait()
    wait()
    assert not load(tmp_path / "w")["w"].any()
    assert load_metadata(tmp_path / "w") == {"step": "1"}
    with pytest.raises(TypeError, match="not a tensor"):
        save_in_background(tmp_path / "x", {"w": 3.0})
    (tmp_path / "file").write_text("")
    wait = save_in_background(tmp_path / "file" / "below", {"w": torch.ones(1)})
    with pytest.raises(OSError, match="file"):
        wait()


def test_a_save_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are flushed, then the file gets its name, then the folder is flushed, so that no power cut tears it."""
    order = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        flush(descriptor)

    def replace(source: object, target: object) -> None:
        order.append("name")
        rename(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(tmp_path / "x.safetensors", {"w": torch.ones(2)})
    assert order == ["file", "name", "folder"]
