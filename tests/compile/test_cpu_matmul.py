"""Routes of matrix products: each equals the float64 product, and is the one that the sizes ask for."""

from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn import _torch
from fnn.compile import cpu_matmul

PRODUCTS = {
    "mm": lambda a, b, c: a @ b,
    "transposed": lambda a, b, c: a @ b.T.contiguous().T,
    "both transposed": lambda a, b, c: (b.T @ a.T).T,
    "bias": lambda a, b, c: torch.addmm(c, a, b),
    "bias matrix": lambda a, b, c: torch.addmm(c.expand(a.shape[0], -1), a, b),
}
SIZES = {"small": (5, 7, 3), "one": (1, 1, 1), "large": (40, 64, 50)}


@pytest.mark.parametrize("tracing", ["fake", "symbolic"])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_route_is_the_product(name, size, onednn, tracing):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    rows, inner, columns = SIZES[size]
    keys = fnn.random.split(fnn.random.key(0), 3)
    shapes = [(rows, inner), (inner, columns), (columns,)]
    given = [fnn.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    traced = make_fx(PRODUCTS[name], tracing_mode=tracing)(*given)
    cpu_matmul.Products(onednn)(traced.graph)
    traced.graph.lint()
    traced.recompile()
    targets = {str(node.target) for node in traced.graph.nodes}
    left = {"aten.mm.default", "aten.addmm.default"} & targets
    if size != "large":
        assert "aten.sum.dim_IntList" in targets
    elif onednn:
        assert "mkldnn._linear_pointwise.default" in targets
    assert bool(left) == (size == "large" and not onednn)
    expected = PRODUCTS[name](*[x.double() for x in given])
    assert (traced(*given) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_other_dtypes_are_left_alone():
    a = torch.ones(3, 3, dtype=torch.float64)
    traced = make_fx(lambda a: a @ a, tracing_mode="fake")(a)
    before = str(traced.graph)
    cpu_matmul.Products(True)(traced.graph)
    assert str(traced.graph) == before


def test_the_route_is_part_of_the_cache_key():
    assert cpu_matmul.Products(True).uuid() != cpu_matmul.Products(False).uuid()
    assert cpu_matmul.Products(True).uuid() == cpu_matmul.Products(True).uuid()


@pytest.mark.parametrize(("maker", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_maker_of_the_processor_decides(maker, expected, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: f"vendor_id : {maker}")
    cpu_matmul.onednn_is_faster.cache_clear()
    assert cpu_matmul.onednn_is_faster() == (expected and torch.backends.mkldnn.is_available())
    monkeypatch.undo()
    cpu_matmul.onednn_is_faster.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("route", ["onednn", "mkl"])
def test_generated_code_takes_the_routes(route):
    from torch._inductor.utils import fresh_cache, run_and_get_code

    if route == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    model = fnn.models.mlp(64, 64, 8, 3)
    params = model.init(fnn.random.key(0))
    x = fnn.random.normal(fnn.random.key(1), (16, 64))
    gradient = fnn.grad(lambda params, x: model.apply(params, x).square().mean())
    compiled = fnn.jit(gradient, backend="inductor", options={"cpu_matmul": route})
    with fresh_cache():
        found, code = run_and_get_code(compiled, params, x)
    torch.testing.assert_close(found, gradient(params, x))
    text = "\n".join(code)
    assert text.count("_linear_pointwise.default(") == (2 if route == "onednn" else 0)
    assert ("extern_kernels.mm" in text or "extern_kernels.addmm" in text) == (route == "mkl")
    with pytest.raises(ValueError, match='"cpu_matmul" is "mkl" or "onednn", got \'fast\''):
        fnn.jit(gradient, backend="inductor", options={"cpu_matmul": "fast"})(params, x)


def test_a_route_that_this_torch_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(_torch, "onednn_linear", None)
    with pytest.raises(ValueError, match="built without oneDNN"):
        fnn.jit(lambda x: x @ x, backend="inductor", options={"cpu_matmul": "onednn"})(torch.ones(2, 2))
