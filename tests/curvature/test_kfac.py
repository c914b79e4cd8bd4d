"""KFAC and EKFAC in float64 against blocks of the dense Fisher information by torch.func.jacrev, and curvlinops."""

import pytest
import torch
import torch.nn.functional as F

import fnn
from fnn.curvature import ekfac, empirical_fisher_operator, fisher_operator, kfac

key = fnn.random.key


def mlp():
    return fnn.models.mlp(4, 5, 3, activation=fnn.layers.tanh), (4,)


def linear_network():
    return fnn.layers.sequential(*(fnn.layers.linear(n, m, bias=m == 5) for n, m in ((4, 5), (5, 6), (6, 3)))), (4,)


def convolutions():
    layers = [
        fnn.layers.conv2d(2, 4, 3, stride=2, padding=1, bias=False), fnn.layers.tanh,
        fnn.layers.conv2d(4, 3, (2, 1), dilation=(2, 1), padding="same"), fnn.layers.tanh,
        fnn.layers.max_pool2d(2), fnn.layers.flatten, fnn.layers.linear(12, 3),
    ]  # fmt: skip
    return fnn.layers.sequential(*layers), (2, 7, 7)


def sequence():
    """Position by position: logits (batch, classes, positions)."""
    positionwise = fnn.layers.sequential(fnn.layers.linear(4, 5), fnn.layers.tanh, fnn.layers.linear(5, 3))
    return fnn.Layer(positionwise.init, lambda p, x: positionwise.apply(p, x).movedim(-1, 1)), (6, 4)


def linear_sequence():
    """Linear layers over positions: outputs (batch, classes, positions)."""
    positionwise = fnn.layers.sequential(fnn.layers.linear(4, 5), fnn.layers.linear(5, 3, bias=False))
    return fnn.Layer(positionwise.init, lambda p, x: positionwise.apply(p, x).movedim(-1, 1)), (6, 4)


def pooled_linear_network():
    """Linear layers over positions, their mean, and a linear layer."""
    positionwise = fnn.layers.sequential(fnn.layers.linear(4, 5), fnn.layers.linear(5, 3, bias=False))
    head = fnn.layers.linear(3, 2)

    def apply(p, x):
        return head.apply(p["head"], positionwise.apply(p["positions"], x).mean(1))

    init = lambda key: {"positions": positionwise.init(key), "head": head.init(fnn.random.fold_in(key, 1))}
    return fnn.Layer(init, apply), (6, 4)


def attention():
    """Logits (batch, classes, positions) that depend on all positions."""
    layers = fnn.layers.sequential(fnn.layers.multi_head_attention(4, 2), fnn.layers.tanh, fnn.layers.linear(4, 2))
    return fnn.Layer(layers.init, lambda p, x: layers.apply(p, x).movedim(-1, 1)), (3, 4)


def tied():
    """A matrix used twice with its bias, x @ weight, a signal, and groups."""

    def init(key):
        keys = fnn.random.split(key, 5)
        shapes = {"twice": (4, 4), "bias": (4,), "matmul": (4, 6), "signal": (6, 2, 2), "grouped": (6, 3, 2, 3)}
        return {name: fnn.random.normal(k, shape) / 2 for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def apply(p, x):  # (batch, 4)
        for _ in range(2):
            x = F.linear(x, p["twice"], p["bias"]).tanh()
        signal = (x @ p["matmul"]).reshape(-1, 2, 3)
        signal = F.conv1d(signal, p["signal"], None, padding=1).tanh()  # (batch, 6, 4)
        return F.conv2d(signal[:, :, None], p["grouped"], None, padding=(1, 0), groups=2).tanh().sum((2, 3))

    return fnn.Layer(init, apply), (4,)


def frames():
    """Several images a sample."""
    conv, head = fnn.layers.conv2d(1, 2, 2), fnn.layers.linear(4, 3)

    def apply(p, x):
        features = conv.apply(p["conv"], x.flatten(0, 1)).tanh().amax((2, 3))
        return head.apply(p["head"], features.reshape(len(x), -1))

    return fnn.Layer(lambda key: {"conv": conv.init(key), "head": head.init(key)}, apply), (2, 1, 3, 4)


NETWORKS = {
    f.__name__: f
    for f in (
        mlp, linear_network, convolutions, sequence, linear_sequence, pooled_linear_network, attention, frames, tied
    )
}  # fmt: skip


class Case:
    def __init__(self, name, samples=6):
        model, shape = NETWORKS[name]()
        self.apply = model.apply
        self.params = fnn.tree.cast(model.init(key(0)), torch.float64)
        self.x = fnn.random.normal(key(1), (samples, *shape), torch.float64)
        self.vector, self.unravel = fnn.tree.ravel(self.params)
        self.batches = [self.x[:2], self.x[2:]]

    def fisher(self, likelihood="categorical"):
        """J^T F J / samples, with the output's F as a dense matrix."""
        output = self.apply(self.params, self.x)
        jacobian = torch.func.jacrev(lambda v: self.apply(self.unravel(v), self.x).flatten(1))(self.vector)
        total = torch.zeros(len(self.vector), len(self.vector), dtype=torch.float64)
        for out, J in zip(output, jacobian, strict=True):
            total = total + J.T @ output_fisher(likelihood, out) @ J
        return total / len(self.x)

    def places(self, path):
        paths = fnn.tree.paths(self.params)
        sizes = [leaf.numel() for leaf in fnn.tree.leaves(self.params)]
        return torch.arange(sum(sizes)).split(sizes)[paths.index(path)]

    def joint(self, path, block):
        """The places of a layer's joint matrix [weight, bias]: ([groups,] out, in + 1)."""
        weight = fnn.tree.get(self.params, path)
        places = self.places(path).reshape(weight.shape)
        places = places.T if block.transposed else places.flatten(1)
        if block.bias is not None:
            bias = self.places(fnn.tree.paths(self.params)[block.bias])
            places = torch.cat([places, bias[:, None]], 1)
        return places.unflatten(0, (block.groups, -1)) if block.groups > 1 else places

    def blocks(self, operator):
        """The places of each layer, group by group, as vectors."""
        joints = {path: self.joint(path, block) for path, block in operator.blocks.items()}
        return [group.flatten() for joint in joints.values() for group in (joint if joint.dim() == 3 else joint[None])]

    def block_diagonal(self, matrix, operator):
        kept = torch.zeros_like(matrix)
        for places in self.blocks(operator):
            kept[places[:, None], places] = matrix[places[:, None], places]
        return kept


def output_fisher(likelihood, out):
    if likelihood == "normal":
        return torch.eye(out.numel(), dtype=out.dtype)
    if likelihood == "bernoulli":
        return torch.diag((out.sigmoid() * (1 - out.sigmoid())).flatten())
    p = out.softmax(0).reshape(len(out), -1)
    blocks = torch.diag_embed(p.T) - p.T[:, :, None] * p.T[:, None]  # one for each position
    full = torch.zeros(*p.shape, *p.shape, dtype=out.dtype)
    for position, block in enumerate(blocks):
        full[:, position, :, position] = block
    return full.reshape(p.numel(), p.numel())


@pytest.mark.parametrize("likelihood", ["categorical", "normal", "bernoulli"])
def test_kfac_is_exact_for_one_sample(likelihood):
    case = Case("mlp", samples=1)
    K = kfac(case.apply, case.params, case.x, likelihood=likelihood)
    expected = case.block_diagonal(case.fisher(likelihood), K)
    torch.testing.assert_close(K.dense(), expected, rtol=1e-11, atol=1e-13)
    assert K.symmetric
    if likelihood != "categorical":  # one number for each sample
        number = lambda p, x: case.apply(p, x)[:, 0]
        K = kfac(number, case.params, case.x, likelihood=likelihood)
        expected = fisher_operator(number, case.params, case.x, likelihood=likelihood).dense()
        torch.testing.assert_close(K.dense(), case.block_diagonal(expected, K), rtol=1e-11, atol=1e-13)


def test_kfac_is_exact_for_a_linear_network_with_squared_error():
    case = Case("linear_network")
    K = kfac(case.apply, case.params, batches=case.batches, likelihood="normal", chunk_size=2)
    expected = case.block_diagonal(case.fisher("normal"), K)
    torch.testing.assert_close(K.dense(), expected, rtol=1e-11, atol=1e-13)


def test_kfac_reduce_is_exact_for_a_linear_network_with_pooling_and_kfac_expand_for_one_without():
    for name, exact, other in (("pooled_linear_network", "reduce", "expand"), ("linear_sequence", "expand", "reduce")):
        case = Case(name)
        likelihood = {"likelihood": "normal", "batches": case.batches, "chunk_size": 1}
        K = kfac(case.apply, case.params, **likelihood, weight_sharing=exact)
        expected = case.block_diagonal(case.fisher("normal"), K)
        torch.testing.assert_close(K.dense(), expected, rtol=1e-11, atol=1e-13)
        away = kfac(case.apply, case.params, **likelihood, weight_sharing=other).dense() - expected
        assert away.norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_ekfac_has_the_true_diagonal_and_is_nearer(name):
    case = Case(name)
    K = kfac(case.apply, case.params, case.x)
    E = ekfac(case.apply, case.params, batches=case.batches, chunk_size=2)
    fisher = case.block_diagonal(case.fisher(), K)
    assert 1e-6 < (E.dense() - fisher).norm() <= (K.dense() - fisher).norm()
    for path, block in E.factors.items():
        joint = case.joint(path, E.blocks[path])
        for group, places in enumerate(joint if joint.dim() == 3 else joint[None]):
            V, U, values = (part[group] if joint.dim() == 3 else part for part in (block.output, block.input, block[2]))
            basis, flat = torch.kron(V, U), places.flatten()
            expected = (basis.T @ fisher[flat[:, None], flat] @ basis).diagonal()
            torch.testing.assert_close(values.flatten(), expected, rtol=1e-9, atol=1e-12, msg=path)
    torch.testing.assert_close(E.dense().trace(), fisher.trace())


@pytest.mark.parametrize("make", [kfac, ekfac])
@pytest.mark.parametrize("name", ["mlp", "tied"])
def test_inverse_and_log_determinant_are_exact(name, make):
    case = Case(name)
    K = make(case.apply, case.params, case.x)
    identity = torch.eye(len(case.vector), dtype=torch.float64)
    for damping in (1e-2, torch.tensor(2.0).double()):
        damped = K.dense() + damping * identity
        torch.testing.assert_close(K.inverse(damping).dense() @ damped, identity, rtol=0, atol=1e-11)
        torch.testing.assert_close(K.log_determinant(damping), torch.linalg.slogdet(damped)[1])
    torch.testing.assert_close(K.decomposed().dense(), K.dense(), rtol=1e-11, atol=1e-13)
    again = K.inverse(0.5).inverse(0.5).dense()  # (inverse + damping)^-1
    torch.testing.assert_close(again, (torch.linalg.inv(K.damped(0.5).dense()) + 0.5 * identity).inverse())
    assert K.log_determinant() == -torch.inf or K.log_determinant() < K.log_determinant(1e-9)


def test_monte_carlo_takes_the_draws_of_the_fisher_operator():
    case = Case("mlp")
    data = {"batches": case.batches, "key": key(3), "draws": 4}
    fisher = fisher_operator(case.apply, case.params, **data)
    E = ekfac(case.apply, case.params, **data, chunk_size=3)
    torch.testing.assert_close(E.dense().trace(), fisher.dense().trace())
    layer = Case("mlp", samples=1)
    drawn = kfac(layer.apply, layer.params, layer.x, likelihood="bernoulli", key=key(4))
    expected = fisher_operator(layer.apply, layer.params, layer.x, likelihood="bernoulli", key=key(4)).dense()
    torch.testing.assert_close(drawn.dense(), layer.block_diagonal(expected, drawn), rtol=1e-11, atol=1e-13)


def test_a_function_of_a_part_of_the_params():
    """With the embedding and the normalisation left out, as the error says."""
    model = fnn.layers.sequential(fnn.layers.embedding(5, 4), fnn.layers.layer_norm(4), fnn.layers.linear(4, 3))
    params, x = model.init(key(0)), torch.arange(5)
    with pytest.raises(ValueError, match=r"params\['0'\]\['weight'\] is the table of an embedding.*partition") as error:
        kfac(model.apply, params, x)
    assert "path not in ['0.weight', '1.bias', '1.weight']" in str(error.value)
    part, rest = fnn.tree.partition(params, lambda path: path not in ["0.weight", "1.bias", "1.weight"])
    K = kfac(lambda part, batch: model.apply(fnn.tree.combine(part, rest), batch), part, x)
    assert list(K.factors) == ["2.weight"]
    assert K.shape == (15, 15)


def test_compiled_and_put_together_again():
    case = Case("mlp")

    def step(params, x, v):
        K = kfac(case.apply, params, x, key=key(3))
        return K.factors, K.inverse(0.1)(v), K.log_determinant(0.1)

    v = fnn.random.like(key(4), case.params)
    factors, solution, volume = fnn.jit(step)(case.params, case.x, v)
    K = kfac(case.apply, case.params, case.x, key=key(3))
    assert fnn.tree.allclose(factors, K.factors)
    assert fnn.tree.allclose(solution, K.inverse(0.1) @ v)
    torch.testing.assert_close(volume, K.log_determinant(0.1))
    other = kfac(case.apply, case.params, case.x, key=key(5))
    averaged = K.with_factors(fnn.tree.map(lambda a, b: (a + b) / 2, factors, other.factors))
    A, B = ((a + b) / 2 for a, b in zip(K.factors["2.weight"], other.factors["2.weight"], strict=True))
    places = case.joint("2.weight", K.blocks["2.weight"]).flatten()
    torch.testing.assert_close(averaged.dense()[places][:, places], torch.kron(B, A))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tied", "attention"])
def test_ekfac_compiled(name):
    case = Case(name)
    volume = lambda params, x: ekfac(case.apply, params, x, chunk_size=2).log_determinant(0.1)
    expected = volume(case.params, case.x)
    torch.testing.assert_close(fnn.jit(volume)(case.params, case.x), expected)


def losses(apply):
    return lambda params, batch: fnn.losses.cross_entropy(apply(params, batch[0]), batch[1], reduction="none")


def test_empirical_fisher_of_one_sample():
    case = Case("mlp", samples=1)
    batch = (case.x, torch.tensor([2]))
    K = kfac(losses(case.apply), case.params, batch, likelihood="empirical")
    expected = empirical_fisher_operator(losses(case.apply), case.params, batch).dense()
    torch.testing.assert_close(K.dense(), case.block_diagonal(expected, K), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["mlp", "tied"])
def test_16_bits(name):
    """Factors are float32, so that they can be decomposed; products have the dtype of params, and own their memory."""
    case = Case(name)
    params, x = fnn.tree.cast(case.params, torch.bfloat16), case.x.bfloat16()
    K, exact = (
        kfac(case.apply, params, x, likelihood="normal"),
        kfac(case.apply, case.params, case.x, likelihood="normal"),
    )
    assert {leaf.dtype for leaf in fnn.tree.leaves(K.factors)} == {torch.float32}
    expected = exact.inverse(0.1) @ case.params
    solution = K.inverse(0.1) @ params
    assert fnn.tree.result_type(solution) == torch.bfloat16
    difference = fnn.tree.global_norm(fnn.tree.sub(fnn.tree.cast(solution, torch.float64), expected))
    assert difference < 0.05 * fnn.tree.global_norm(expected)
    memory = [leaf.untyped_storage().data_ptr() for leaf in fnn.tree.leaves((solution, params))]
    assert len(set(memory)) == len(memory)


class Positionwise(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x).movedim(-1, 1)


class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3, bias=False))
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.positions(x).mean(1))


MODULES = {
    "pooled_linear_network": lambda nn: Pooled(),
    "mlp": lambda nn: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "sequence": lambda nn: Positionwise(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "convolutions": lambda nn: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.Tanh(),
        nn.Conv2d(4, 3, (2, 1), dilation=(2, 1), padding="same"), nn.Tanh(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fisher_type", ["type-2", "empirical"])
@pytest.mark.parametrize(
    ("name", "weight_sharing"),
    [(name, "expand") for name in MODULES] + [("convolutions", "reduce"), ("pooled_linear_network", "reduce")],
)
def test_equals_curvlinops(name, weight_sharing, fisher_type):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is the reference")
    case = Case(name)
    output = case.apply(case.params, case.x)
    y = fnn.random.randint(key(5), (len(case.x), *output.shape[2:]), 0, output.shape[1])
    batches = [(case.x[:2], y[:2]), (case.x[2:], y[2:])]
    net = MODULES[name](torch.nn).double()
    net.load_state_dict(fnn.tree.to_state_dict(case.params))
    named = dict(net.named_parameters())
    order = torch.cat([case.places(path) for path in named])
    pairs = [(kfac, curvlinops.KFACLinearOperator), (ekfac, curvlinops.EKFACLinearOperator)]
    # its EKFAC takes no outputs with positions; with fewer samples than columns the eigenvectors of A are not unique
    for make, peer in pairs[: 1 if output.dim() == 3 or (name, weight_sharing) == ("convolutions", "reduce") else 2]:
        if fisher_type == "empirical":
            per_sample = lambda p, batch: losses(case.apply)(p, batch).flatten(1).sum(1)
            function = losses(case.apply) if output.dim() == 2 else per_sample
            mine = make(function, case.params, batches=batches, likelihood="empirical", weight_sharing=weight_sharing)
        else:
            mine = make(case.apply, case.params, batches=[x for x, _ in batches], weight_sharing=weight_sharing)
        theirs = peer(
            net,
            torch.nn.CrossEntropyLoss(),
            list(named.values()),
            batches,
            fisher_type=fisher_type,
            kfac_approx=weight_sharing,
            separate_weight_and_bias=False,
        ) @ torch.eye(len(order), dtype=torch.float64)
        terms = output[0, 0].numel()  # curvlinops divides by the number of losses, fnn by that of samples
        actual = mine.dense()[order][:, order] / terms
        torch.testing.assert_close(actual, theirs, rtol=1e-9, atol=1e-12)


W, B, X = torch.ones(3, 2), torch.ones(3), torch.ones(4, 2)
NORM = fnn.layers.batch_norm(3)
LINEAR = lambda p, x: F.linear(x, p["w"], p["b"])
ERRORS = {
    "scale": (
        lambda: kfac(lambda p, x: x @ p["w"].T * p["b"], {"w": W, "b": B}, X),
        r"\['b'\] is a vector used by mul",
    ),
    "bias with two axes": (
        lambda: kfac(LINEAR, {"w": W, "b": B[None]}, X),
        r"\['b'\] is used by addmm, not only as the matrix",
    ),
    "inside vmap": (
        lambda: kfac(lambda p, x: torch.func.vmap(lambda row: LINEAR(p, row))(x), {"w": W, "b": B}, X),
        r"\['b'\] is a vector used by add;",
    ),
    "unused": (lambda: kfac(LINEAR, {"w": W, "b": B, "z": W}, X), r"params\['z'\] is not used by the function"),
    "also otherwise": (
        lambda: kfac(lambda p, x: F.linear(x, p["w"]) + p["w"].sum(), {"w": W}, X),
        r"params\['w'\] is used by sum",
    ),
    "two biases": (
        lambda: kfac(lambda p, x: LINEAR(p, x) + F.linear(x, p["w"]), {"w": W, "b": B}, X),
        r"params\['w'\] is used by layers with different biases",
    ),
    "one bias of two": (
        lambda: kfac(lambda p, x: LINEAR(p, x) + F.linear(x, p["v"], p["b"]), {"w": W, "v": 2 * W, "b": B}, X),
        r"params\['b'\] is the bias of two layers",
    ),
    "both ways": (
        lambda: kfac(lambda p, x: F.linear(x, p["w"]) @ p["w"], {"w": W}, X),
        r"params\['w'\] is used by layers .*as x W",
    ),
    "likelihood": (lambda: kfac(LINEAR, {"w": W, "b": B}, X, likelihood="poisson"), "'empirical', got 'poisson'"),
    "weight sharing": (
        lambda: kfac(LINEAR, {"w": W, "b": B}, X, weight_sharing="mean"),
        "'expand' or 'reduce', got 'mean'",
    ),
    "no draws": (lambda: ekfac(LINEAR, {"w": W, "b": B}, X, key=key(0), draws=0), "draws=0"),
    "empirical with a key": (
        lambda: kfac(LINEAR, {"w": W, "b": B}, X, likelihood="empirical", key=key(0)),
        "leave key",
    ),
    "mean loss": (
        lambda: kfac(lambda p, x: LINEAR(p, x).mean(), {"w": W, "b": B}, X, likelihood="empirical"),
        r"samples as first axis.*gave shape \(\)",
    ),
    "losses of classes": (
        lambda: kfac(LINEAR, {"w": W, "b": B}, X, likelihood="empirical"),
        r"\(batch,\), got \(4, 3\)",
    ),
    "no logits": (lambda: kfac(lambda p, x: LINEAR(p, x).sum(1), {"w": W, "b": B}, X), "needs logits"),
    "no batch": (lambda: kfac(LINEAR, {"w": W, "b": B}), r"batches=\[\.\.\.\]"),
    "an iterator": (lambda: ekfac(LINEAR, {"w": W, "b": B}, batches=iter([X])), r"list\(batches\)"),
    "chunk size": (lambda: kfac(LINEAR, {"w": W, "b": B}, X, chunk_size=0), "chunk_size"),
    "integer leaf": (lambda: kfac(LINEAR, {"w": W, "b": torch.ones(3, dtype=torch.int64)}, X), r"\['b'\]"),
    "damping": (lambda: kfac(LINEAR, {"w": W, "b": B}, X).inverse(-1.0), r"cannot be -1\.0"),
    "batch statistics": (
        lambda: kfac(lambda p, x: NORM.apply(*NORM.init(key(0)), LINEAR(p, x), train=True)[0], {"w": W, "b": B}, X),
        "batch_norm in training mode",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, words = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=words):
        call()


@pytest.mark.parametrize("likelihood", ["categorical", "normal", "bernoulli"])
@pytest.mark.parametrize("drawn", [None, key(1)])
def test_a_fisher_matrix_needs_samples_in_one_tensor(likelihood, drawn):
    models = {
        "dict": lambda p, x: {"y": LINEAR(p, x)},
        "tuple": lambda p, x: (LINEAR(p, x),),
        "0-d tensor": lambda p, x: LINEAR(p, x).sum(),
    }
    for given, model in models.items():
        with pytest.raises(ValueError, match=rf"outputs \(batch, \.\.\.\) .*got a {given}"):
            fisher_operator(model, {"w": W, "b": B}, X, likelihood=likelihood, key=drawn) @ {"w": W, "b": B}
