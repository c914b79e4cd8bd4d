"""Generated code: the numbers of replay, donated memory written by the update itself, files, background."""

import contextlib
import os
import subprocess
import sys
import zipfile

import pytest
import torch

import fnn
from fnn.compile import executable
from fnn.compile.replay import replay

slow = pytest.mark.slow


def momentum(params, state, x):
    state = fnn.tree.map(lambda m, p: 0.9 * m + p * x.sum(), state, params)
    return fnn.tree.map(lambda p, m: p - 0.01 * m, params, state), state, x * 2


def trees():
    params = {"w": torch.arange(6.0).reshape(2, 3).clone(), "b": torch.ones(3)}
    return params, fnn.tree.zeros_like(params), torch.tensor([0.5, 0.25])


@slow
def test_2000_donated_steps_are_the_undonated_ones_bit_for_bit():
    pure, donated = (fnn.jit(momentum, backend="inductor", donate_argnums=d) for d in ((), (0, 1)))
    p, m, x = trees()
    q, n, _ = trees()
    start = {leaf.data_ptr() for leaf in fnn.tree.leaves(q)}
    for _ in range(2000):
        p, m, _ = pure(p, m, x)
        q, n, _ = donated(q, n, x)
    assert all(map(torch.equal, fnn.tree.leaves((p, m)), fnn.tree.leaves((q, n))))
    assert {leaf.data_ptr() for leaf in fnn.tree.leaves(q)} == start


@slow
def test_results_are_those_of_replay():
    hazards = {
        "update": momentum,
        "swap": lambda p, m, x: (m, p, x),
        "old among results": lambda p, m, x: (momentum(p, m, x)[0], m, p["w"][1:]),
        "python values": lambda p, m, x: (p, m, "name", 3.5),
    }
    for function in hazards.values():
        given, expected = trees(), function(*trees())
        out = fnn.jit(function, backend="inductor", donate_argnums=(0, 1))(*given)
        assert fnn.tree.structure(out) == fnn.tree.structure(expected)
        for ours, theirs in zip(fnn.tree.leaves(out), fnn.tree.leaves(expected), strict=True):
            assert torch.allclose(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert all(leaf.is_meta for leaf in fnn.tree.leaves(given[:2]))


@slow
def test_generated_code_writes_the_update_into_the_donated_buffers():
    from torch._inductor.utils import fresh_cache, run_and_get_code

    def code(**settings):
        with fresh_cache():
            return run_and_get_code(fnn.jit(momentum, backend="inductor", **settings), *trees())[1]

    (pure,), (donated,) = code(), code(donate_argnums=(0, 1))
    buffer = "empty_strided_cpu((2, 3)"
    assert pure.count(buffer) == 2
    assert donated.count(buffer) == 0
    assert ".copy_(" not in donated


# For each call the size of the argument, and how often the function has then been traced and compiled. ``None``: that
# depends on a thread.
CALLS = {
    "at once": (False, [(4, 1, 1), (4, 1, 1)]),
    "a size that comes once, and one that comes again": (
        False,
        [(4, 1, 1), (4, 1, 1), (3, 2, 1), (4, 2, 1), (3, 3, 2), (3, 3, 2), (5, 4, 2), (5, 5, 3)],
    ),
    "in the background": (True, [(4, 1, 0), (4, 2, None), (4, 2, None), (3, 3, None), (3, 4, None)]),
    "in the background, to switch at the first call": (1, [(4, 2, 1), (4, 2, 1)]),
    "in the background, to switch at the second call": (2, [(4, 1, 0), (4, 2, 1), (4, 2, 1)]),
    "in the background, to switch at the third call": (3, [(4, 1, 0), (4, 2, None), (4, 2, 1), (4, 2, 1)]),
}


@pytest.mark.parametrize("case", CALLS)
def test_when_a_function_is_traced_and_compiled(monkeypatch, case):
    background, calls = CALLS[case]
    traced, compiled = [], []
    trace = executable.trace_function
    monkeypatch.setattr(executable, "trace_function", lambda *a, **k: traced.append(1) or trace(*a, **k))

    def compile_graph(trace, donated, mode, options):
        run = replay(trace, donated)
        compiled.append(run)
        return run, f"graph {len(compiled)}"

    monkeypatch.setattr(executable, "compile_graph", compile_graph)
    jitted = fnn.jit(lambda x: (x * 2).cos(), backend="inductor", background=background)
    for size, traces, graphs in calls:
        assert torch.equal(jitted(torch.ones(size)), (torch.ones(size) * 2).cos())
        assert len(traced) == traces
        assert graphs in (None, len(compiled))


def test_a_compiler_that_fails_in_the_background_leaves_the_replay(monkeypatch):
    def compile_graph(*_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(executable, "compile_graph", compile_graph)
    jitted = fnn.jit(momentum, backend="inductor", background=3)

    def steps(function, p, m, x):
        for _ in range(5):
            p, m, _ = function(p, m, x)
        return [*p.values(), *m.values()]

    with pytest.warns(UserWarning, match="Inductor failed in the background; the graph is still replayed: no compiler"):
        replayed = steps(jitted, *trees())
    assert all(map(torch.equal, replayed, steps(momentum, *trees())))
    again = fnn.jit(lambda x: x + 1, backend="inductor")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no compiler here"):
            again(torch.ones(2))


@slow
def test_a_short_batch_is_replayed_and_a_size_that_comes_again_is_compiled(monkeypatch):
    made = []
    compile_graph = executable.compile_graph
    monkeypatch.setattr(executable, "compile_graph", lambda *a: made.append(1) or compile_graph(*a))
    jitted = fnn.jit(lambda x: (x * 2).cos(), backend="inductor")
    counts = []
    for size in (4, 4, 3, 4, 3, 3):
        assert torch.allclose(jitted(torch.ones(size)), (torch.ones(size) * 2).cos())
        counts.append(len(made))
    assert counts == [1, 1, 1, 1, 2, 2]


@slow
@pytest.mark.parametrize("background", [True, 5])
def test_the_background_takes_over(background):
    jitted = fnn.jit(momentum, backend="inductor", donate_argnums=(0, 1), background=background)
    p, m, x = trees()
    q, n, _ = trees()
    for _ in range(20):
        p, m, _ = momentum(p, m, x)
        q, n, _ = jitted(q, n, x)
        assert fnn.tree.allclose((p, m), (q, n), rtol=1e-5)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='backend is "replay" or "inductor", got \'xla\''):
        fnn.jit(momentum, backend="xla")
    with pytest.raises(ValueError, match='are for backend="inductor"'):
        fnn.jit(momentum, mode="reduce-overhead")
    with pytest.raises(TypeError, match=r"fnn\.debug\.print works with backend=\"replay\" only"):
        fnn.jit(lambda x: (fnn.debug.print("{}", x), x * 2)[1], backend="inductor")(torch.ones(2))


SHIP = """
import sys, torch, fnn
options = {"cpp_cache_precompile_headers": False}
f = fnn.jit(lambda p: {"w": torch.sin(p["w"]) * 2}, donate_argnums=0, backend="inductor", options=options)
if sys.argv[1] == "load":
    fnn.load_compiled(sys.argv[2])
    import torch._inductor.cpp_builder as builder
    def refuse(*_, **__): raise AssertionError("the C++ compiler was called")
    builder.run_compile_cmd = builder._run_compile_cmd = refuse
print(f({"w": torch.ones(7)}))
if sys.argv[1] == "save":
    f.save(sys.argv[2])
"""


@slow
def test_a_file_spares_another_process_the_compiler(tmp_path):
    def run(action, cache):
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / cache)}
        command = [sys.executable, "-c", SHIP, action, str(tmp_path / "step.bin")]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    assert run("save", "one") == run("load", "two")


@slow
def test_a_function_saves_only_its_own_code(tmp_path):
    options = {"cpp_cache_precompile_headers": False}
    sine, cosine, other = (
        fnn.jit(f, backend="inductor", options=options)
        for f in (lambda x: x.sin() + 1, lambda x: x.cos() * 3, lambda x: x.cos() * 3)
    )
    x = torch.ones(9)
    sine(x), cosine(x), cosine(torch.ones(4, 2)), other(x)
    names = {}
    for name, save in {"sine": sine.save, "cosine": cosine.save, "other": other.save, "all": fnn.save_compiled}.items():
        save(tmp_path / name)
        names[name] = set(zipfile.ZipFile(tmp_path / name).namelist())
    graphs = {name: {file for file in files if file.startswith("graphs/")} for name, files in names.items()}
    assert [len(graphs[name]) for name in ("sine", "cosine", "other")] == [1, 2, 1]
    assert graphs["other"] < graphs["cosine"]  # the same graph
    assert graphs["sine"].isdisjoint(graphs["cosine"])
    assert names["sine"] | names["cosine"] <= names["all"]
    kernels = {name: {file for file in files if ".main." in file} for name, files in names.items()}
    assert kernels["sine"]
    assert kernels["sine"].isdisjoint(kernels["cosine"])
    assert kernels["other"] < kernels["cosine"]  # found although another function had loaded it first
    with pytest.raises(ValueError, match="nothing has been compiled"):
        fnn.jit(lambda x: x, backend="inductor").save(tmp_path / "none")


def written(path):
    from fnn.compile.artifacts import _digest

    contents = {"graphs/" + "0" * 64: bytes(range(256)) * 40}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        archive.writestr("sha256", _digest(contents))
    return path


def test_a_file_that_was_cut_or_altered_is_refused(tmp_path, monkeypatch):
    from fnn.compile import artifacts

    monkeypatch.setattr(artifacts, "_loaded", {})
    file = written(tmp_path / "step.bin")
    fnn.load_compiled(file)
    assert len(artifacts._loaded) == 1
    whole = file.read_bytes()
    for length in range(0, len(whole), 37):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"load_compiled: .*step\.bin"):
            fnn.load_compiled(file)
    accepted = []
    for place in range(0, len(whole), 11):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        artifacts._loaded.clear()
        with contextlib.suppress(ValueError):  # any other exception fails the test
            fnn.load_compiled(file)
            accepted.append(dict(artifacts._loaded))
    assert all(loaded == {"0" * 64: bytes(range(256)) * 40} for loaded in accepted)  # what was hit means nothing
    file.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"step\.bin is not a file of save_compiled"):
        fnn.load_compiled(file)
    with pytest.raises(FileNotFoundError):
        fnn.load_compiled(tmp_path / "none.bin")


def test_save_compiled_without_anything_compiled_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fnn.compile.artifacts._made", {})
    with pytest.raises(ValueError, match="nothing has been compiled"):
        fnn.save_compiled(tmp_path / "step.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_views_of_results_that_the_compiler_lays_out_otherwise():
    def f(x, y):
        whole = torch.cat([x.permute(1, 0, 2)], -1)
        return whole.view(3, 8), torch.cat([whole, y.permute(1, 0, 2)], -1).view(12, 5), torch.stack([x.mT]).view(-1)

    x, y = torch.arange(24.0).view(4, 3, 2), torch.arange(36.0).view(4, 3, 3)
    for ours, theirs in zip(fnn.jit(f, backend="inductor")(x, y), f(x, y), strict=True):
        assert torch.equal(ours, theirs)
