"""Routes of matrix products: each equals the float64 product, and is the one that the sizes ask for."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn.compile import products

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
    products.Products(onednn)(traced.graph)
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
    products.Products(True)(traced.graph)
    assert str(traced.graph) == before


def test_the_route_is_part_of_the_cache_key():
    assert products.Products(True).uuid() != products.Products(False).uuid()
    assert products.Products(True).uuid() == products.Products(True).uuid()


def test_the_measurement_is_taken_once(monkeypatch):
    products.onednn_is_faster.cache_clear()
    first = products.onednn_is_faster()
    monkeypatch.setattr(products.time, "perf_counter", lambda: pytest.fail("measured again"))
    assert products.onednn_is_faster() is first


def test_generated_code_takes_the_routes(monkeypatch):
    from torch._inductor.utils import fresh_cache, run_and_get_code

    monkeypatch.setattr(products, "onednn_is_faster", torch.backends.mkldnn.is_available)
    model = fnn.models.mlp(64, 64, 8, 3)
    params = model.init(fnn.random.key(0))
    x = fnn.random.normal(fnn.random.key(1), (16, 64))
    gradient = fnn.grad(lambda params, x: model.apply(params, x).square().mean())
    with fresh_cache():
        found, code = run_and_get_code(fnn.jit(gradient), params, x)
    torch.testing.assert_close(found, gradient(params, x))
    text = "\n".join(code)
    assert "extern_kernels.mm" not in text
    assert "extern_kernels.addmm" not in text
    assert text.count("_linear_pointwise.default(") == (2 if torch.backends.mkldnn.is_available() else 0)
