"""Compute the spectrum of the Hessian before and after training: ``python -m recipes.hessian_spectrum``.

The matrices are the Hessian and the Gauss-Newton matrix of a perceptron's loss over a whole training set. Their
spectral densities are estimated by stochastic Lanczos quadrature (Ghorbani, Krishnan and Xiao, 2019), and their extreme
eigenvalues by Lanczos with restarts; no matrix is formed. As a check, the same functions first run on a perceptron that
is small enough for ``torch.linalg.eigvalsh`` of its dense matrices in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import fnn
from fnn.curvature import dense_hessian, ggn_operator, hessian_operator
from fnn.jacobian import blocks_to_matrix, dense_jacobian
from fnn.linalg import LinearOperator, eigenpairs, spectral_density
from recipes import command_line, files, plots

Batch = tuple[Tensor, Tensor]


@dataclass
class Flags(command_line.ImageFlags):
    """Draw the spectra of a perceptron's Hessian and Gauss-Newton matrix before and after training."""

    samples: command_line.Count = 1438
    """Number of training images; the loss is the mean over them. At most all are used."""
    width: command_line.Count = 64
    """Width of the two hidden layers."""
    small: command_line.CountOrZero = 8
    """Width of the hidden layer of the small network for the comparison with dense matrices; 0 skips the comparison."""
    epochs: command_line.CountOrZero = 30
    batch_size: command_line.Count = 64
    learning_rate: command_line.Positive = 1e-3
    """Learning rate of Adam."""
    probes: command_line.Count = 4
    """Number of random vectors of the quadrature."""
    steps: command_line.Count = 60
    """Lanczos steps, each one product with the matrix, for each random vector."""
    top: command_line.Count = 5
    """Number of largest eigenvalues that are computed."""


class Problem:
    """A perceptron, its loss, and the Hessian and Gauss-Newton matrix of the loss over a data set."""

    def __init__(self, *sizes: int) -> None:
        self.model = fnn.models.mlp(*sizes, activation=fnn.layers.tanh)

    def predict(self, params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return self.model.apply(params, batch[0])

    def compare(self, logits: Tensor, batch: Batch) -> Tensor:
        return fnn.losses.cross_entropy(logits, batch[1])

    def loss(self, params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return self.compare(self.predict(params, batch), batch)

    def operators(self, params: fnn.tree.Tree, data: Batch) -> dict[str, LinearOperator]:
        return {
            "Hessian": hessian_operator(self.loss, params, data),
            "Gauss-Newton": ggn_operator(self.predict, self.compare, params, data),
        }

    def dense(self, params: fnn.tree.Tree, data: Batch) -> dict[str, Tensor]:
        J = blocks_to_matrix(dense_jacobian(self.predict, chunk_size=256)(params, data), params)
        logits = self.predict(params, data)
        probabilities = torch.softmax(logits, 1)
        middle = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
        rows = J.unflatten(0, tuple(logits.shape))
        return {
            "Hessian": blocks_to_matrix(dense_hessian(self.loss, chunk_size=64)(params, data), params),
            "Gauss-Newton": torch.einsum("nap,nab,nbq->pq", rows, middle, rows) / len(logits),
        }

    def train(self, params: fnn.tree.Tree, data: Batch, flags: Flags, key: Tensor) -> fnn.tree.Tree:
        optimizer = fnn.optim.adam(flags.learning_rate)

        def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
            updates, opt_state = optimizer.update(fnn.grad(self.loss)(params, batch), opt_state, params)
            return fnn.optim.apply_updates(params, updates), opt_state

        step, opt_state = command_line.jit(train_step, flags), optimizer.init(params)
        for epoch in command_line.progress(range(flags.epochs), "training, epochs", flags.epochs):
            for batch in fnn.data.batches(data, flags.batch_size, fnn.random.fold_in(key, epoch)):
                params, opt_state = step(params, opt_state, batch)
        return params


def compared(problem: Problem, params: fnn.tree.Tree, data: Batch, top: int, key: Tensor) -> dict[str, dict]:
    """The largest eigenvalues of each matrix by Lanczos, and those of the dense matrix in float64."""
    exact = problem.dense(*fnn.tree.cast((params, data), torch.float64))
    result = {}
    for name, operator in problem.operators(params, data).items():
        values = torch.linalg.eigvalsh(exact[name]).flip(0)[:top]
        found = eigenpairs(operator, top, key).values.double()
        error = float(((found - values).abs() / values.abs()).max())
        result[name] = {"lanczos": found.tolist(), "dense": values.tolist(), "relative_difference": error}
    return result


def spectra(flags: Flags) -> dict:
    """Train, draw the spectra, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    (images, labels), test, classes = command_line.load_images(flags, device)
    output = files.open_output(flags, "hessian_spectrum")
    data = images[: flags.samples], labels[: flags.samples]
    pixels = images[0].numel()
    init_key, order_key, probe_key = fnn.random.split(fnn.random.key(flags.seed), 3).to(device)
    start = lambda problem: fnn.tree.to(problem.model.init(init_key), device)

    result: dict = {}
    if flags.small:
        little = Problem(pixels, flags.small, len(classes))
        params = little.train(start(little), data, flags, order_key)
        result["small"] = compared(little, params, data, flags.top, probe_key)
        print(f"{fnn.tree.size(params)} parameters, trained: float32 products against eigvalsh of the float64 matrix")
        for name, row in result["small"].items():
            for by in ("lanczos", "dense"):
                print(f"  {name:13s} {by:8s}", " ".join(f"{value:10.6g}" for value in row[by]))

    problem = Problem(pixels, flags.width, flags.width, len(classes))
    before = start(problem)
    after = problem.train(before, data, flags, order_key)
    print(f"{fnn.tree.size(before)} parameters", flush=True)
    densities = {}
    for moment, params in {"before": before, "after": after}.items():
        row: dict = {"loss": float(problem.loss(params, data))}
        row["test_accuracy"] = float(fnn.metrics.accuracy(problem.predict(params, test), test[1]))
        for name, operator in problem.operators(params, data).items():
            A = LinearOperator(command_line.jit(operator.matvec, flags), params, symmetric=True)
            density = spectral_density(A, probe_key, flags.probes, flags.steps)
            densities[name, moment] = fnn.tree.to(density, "cpu")
            largest = eigenpairs(A, flags.top, probe_key, tolerance=1e-4).values
            smallest = eigenpairs(A, 1, probe_key, "smallest", tolerance=1e-4).values
            row[name] = {
                "top": largest.tolist(),
                "smallest": float(smallest[0]),
                "trace": float((density.nodes * density.weights).sum()) * A.shape[0],
                "negative": float(density.weights[density.nodes < -1e-3 * largest[0]].sum()),
            }
        result[moment] = row
        print("{}: loss {loss:.4f}, test accuracy {test_accuracy:.2%}".format(moment, **row), flush=True)
        for name in ("Hessian", "Gauss-Newton"):
            top = " ".join(f"{value:.4g}" for value in row[name]["top"])
            print("  {:13s} largest {}   smallest {smallest:.2g}   trace {trace:.4g}".format(name, top, **row[name]))
    files.write_metrics(output, result)
    largest = {(name, moment): result[moment][name]["top"] for name, moment in densities}
    plots.spectra(output / "spectrum.png", densities, largest, fnn.tree.size(before))
    print(f"wrote {output}")
    return result


if __name__ == "__main__":
    command_line.main(spectra, Flags())
