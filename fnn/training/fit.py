"""A training loop around one's own pure step."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._processes import all_values, check_agreement, digests, rank, world_size
from fnn.layers.base import as_size
from fnn.training.evaluate import add
from fnn.training.interrupts import Interrupts
from fnn.training.run_folder import RunFolder
from fnn.tree import Tree


class Epoch(NamedTuple):
    """What :func:`fit` yields after each epoch.

    number: from 1. state: the state after the epoch; the next epoch may donate its tensors. metrics: the means over
    the epoch of what the step returned, and what ``evaluate`` returned, as Python numbers.
    """

    number: int
    state: tuple
    metrics: dict[str, float]


def fit(
    step: Callable[..., tuple],
    state: tuple,
    batches: Callable[[int], Iterable[Tree]],
    epochs: int,
    *,
    evaluate: Callable[..., Mapping[str, float]] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    save_every: int | None = None,
    keep: int = 1,
    metadata: Mapping[str, str] | None = None,
    score: Callable[[dict[str, float]], float] | None = None,
    patience: int | None = None,
    check_finite: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
) -> Iterator[Epoch]:
    """Run a train step over epochs of batches, and yield an :class:`Epoch` after each.

    ``step(*state, batch)`` returns ``(*state, metrics)``, where metrics is the loss, a 0-d tensor, or a dict of
    tensors; a jitted step may donate its state. The first part of the state is the params. A key for dropout belongs
    into the state, from which the step returns the next one. ``batches(epoch)`` returns the batches of an epoch, the
    same ones each time it is called with the same number; epochs count from 0. ``evaluate(*state)`` returns more
    metrics for the row of an epoch.

    With ``folder`` the run writes ``metrics.jsonl`` with a line for each epoch, checkpoints after each epoch, every
    ``save_every`` steps and on Ctrl-C or SIGTERM, while the training goes on, and ``params.safetensors``, the params
    under torch's names with the strings of ``metadata``. The last ``keep`` checkpoints stay. ``score(metrics)`` is a
    number that is smaller for better epochs: the params of the best are kept in ``best.safetensors``, and the run stops
    after ``patience`` epochs without a better one. With ``resume`` the run goes on from its last checkpoint, in the
    middle of an epoch too, with the numbers of an unbroken run; without one it starts anew. ``tensorboard`` writes
    event files into the folder. ``progress`` shows a bar with the loss and the speed on a terminal (needs tqdm).

    In several processes (:mod:`fnn.distributed`) all of them call this with the same state, whose step combines the
    results of all, and with their parts of the batches; the first one writes the files. They are resumed together, by
    any number of processes that see the folder. Ctrl-C or SIGTERM in one of them stops all of them after the same step,
    at the latest the next but one.

    ``check_finite`` looks at the metrics of every step, which waits for the device, and stops at the first that is not
    finite with ``FloatingPointError``; it names the step and the path of the first such leaf of the state, and the
    batch is kept in the folder. Ctrl-C and SIGTERM end the step that is running, write a checkpoint and raise
    ``KeyboardInterrupt``. Raises ``FileExistsError`` if the folder holds a run that is not to be resumed,
    ``PermissionError`` if it cannot be written, ``ValueError`` for a checkpoint that does not fit, for an epoch without
    batches, for arguments out of range, and for a state that differs between processes, and ``TypeError`` if the step
    does not return the parts of the state and the metrics.

    >>> import fnn
    >>> model, optimizer = fnn.models.mlp(4, 3), fnn.optim.sgd(0.1)
    >>> def step(params, opt_state, batch):
    ...     loss = lambda params: fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])
    ...     value, grads = fnn.value_and_grad(loss)(params)
    ...     updates, opt_state = optimizer.update(grads, opt_state, params)
    ...     return fnn.optim.apply_updates(params, updates), opt_state, value
    >>> params = model.init(fnn.random.key(0))
    >>> data = fnn.random.normal(fnn.random.key(1), (10, 4)), torch.arange(10) % 3
    >>> order = lambda epoch: fnn.data.batches(data, 4, fnn.random.fold_in(fnn.random.key(2), epoch))
    >>> [epoch.number for epoch in fit(step, (params, optimizer.init(params)), order, epochs=3)]
    [1, 2, 3]
    """
    epochs, keep = as_size("fit", "epochs", epochs), as_size("fit", "keep", keep)
    save_every = None if save_every is None else as_size("fit", "save_every", save_every)
    patience = None if patience is None else as_size("fit", "patience", patience)
    if not isinstance(state, tuple) or not state:
        raise TypeError(f"fit: state is a tuple such as (params, opt_state), got {_tree.describe(state)}")
    if folder is None and (resume or save_every or tensorboard):
        raise ValueError("fit: resume, save_every and tensorboard need a folder")
    if patience and score is None:
        raise ValueError("fit: patience needs score, such as score=lambda metrics: metrics['test_loss']")
    files = None if folder is None else RunFolder(folder, keep, metadata or {})
    if files:
        files.open()
    if files and all_values(bool(files.steps()) and not resume)[0]:  # the first of several processes decides
        raise FileExistsError(f"fit: {files.path} holds a run; give resume=True to go on with it, or another folder")
    loop = _Loop(step, state, batches, epochs, evaluate, files, save_every, score, patience, check_finite)
    return loop.run(resume, progress, tensorboard)


class _Loop:
    """The state of one run of :func:`fit`."""

    def __init__(
        self,
        step: Callable[..., tuple],
        state: tuple,
        batches: Callable[[int], Iterable[Tree]],
        epochs: int,
        evaluate: Callable[..., Mapping[str, float]] | None,
        files: RunFolder | None,
        save_every: int | None,
        score: Callable[[dict[str, float]], float] | None,
        patience: int | None,
        check_finite: bool,
    ) -> None:
        self.step, self.state, self.batches, self.epochs = step, state, batches, epochs
        self.evaluate, self.files, self.save_every = evaluate, files, save_every
        self.score, self.patience, self.check_finite = score, patience, check_finite
        self.steps = 0  # since the start of the run
        self.epoch = 0  # of finished epochs
        self.batch = 0  # of batches of this epoch
        self.samples = 0  # of samples of this epoch
        self.totals: dict[str, Tensor] = {}
        self.rows: list[dict[str, float]] = []

    def run(self, resume: bool, progress: bool, tensorboard: bool) -> Iterator[Epoch]:
        if resume and self.files:
            self._resume()
        if world_size() > 1:
            leaves = _tree.leaves(self.state)
            check_agreement(
                "the state of fit, which every process holds whole (fnn.distributed.save writes parts),",
                [f"step {self.steps}", *digests([f"state{path}" for path in _tree.keystrs(self.state)], leaves)],
            )
        interrupts = Interrupts()
        with ExitStack() as stack:
            stack.callback(interrupts.close)
            events = self.files.path if tensorboard and self.files and rank() == 0 else None
            writer = stack.enter_context(_tensorboard(events)) if events else None
            if self.files:
                stack.callback(self.files.finish)
            while self.epoch < self.epochs and not self._is_enough():
                with interrupts.noted():
                    self._run_epoch(interrupts, progress)
                row = self.rows[-1]
                if writer:
                    for name, value in row.items():
                        writer.add_scalar(name, value, self.epoch)
                yield Epoch(self.epoch, self.state, dict(row))

    def _run_epoch(self, interrupts: Interrupts, progress: bool) -> None:
        start = time.perf_counter()
        taken = self.batch
        source = self.batches(self.epoch)
        total = len(source) if hasattr(source, "__len__") else None  # pyright: ignore[reportArgumentType]
        with _bar(progress, f"epoch {self.epoch + 1}", total, taken) as show:
            for batch in islice(source, taken, None):
                self._run_step(batch)
                show(self.totals, self.samples)
                if interrupts.after_a_step():
                    self._save()
                    self._stop(interrupts)
                if self.save_every and self.steps % self.save_every == 0:
                    self._save()
        if not self.batch:
            raise ValueError(f"fit: batches({self.epoch}) has no batches")
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.steps}
        row |= {name: float(value) / self.samples for name, value in self.totals.items()}
        row |= {} if self.evaluate is None else self.evaluate(*self.state)
        row["seconds"] = time.perf_counter() - start
        self.rows.append(row)
        self.epoch, self.batch, self.samples, self.totals = self.epoch + 1, 0, 0, {}
        if self.files:
            self.files.write_metrics(self.rows)
            if self.score and self._best() == len(self.rows) - 1:
                self.files.save_best(self.state[0], row)
            self._save()
        if interrupts.now():
            self._stop(interrupts)

    def _run_step(self, batch: Tree) -> None:
        results = self.step(*self.state, batch)
        if not isinstance(results, tuple) or len(results) != len(self.state) + 1:
            raise TypeError(
                f"fit: step must return the {len(self.state)} parts of the state and the metrics, got "
                f"{_tree.describe(results)}"
            )
        *parts, metrics = results
        self.state = tuple(parts)
        metrics = metrics if isinstance(metrics, Mapping) else {"loss": metrics}
        count = _tree.leaves(batch)[0].shape[0] * world_size()
        self.totals = add(self.totals, metrics, count)
        self.steps, self.batch, self.samples = self.steps + 1, self.batch + 1, self.samples + count
        if self.check_finite:
            for name, value in metrics.items():
                if not bool(torch.as_tensor(value).isfinite().all()):
                    raise FloatingPointError(self._describe_nan(name, value, batch))

    def _describe_nan(self, name: str, value: Any, batch: Tree) -> str:
        text = f"fit: {name} is {torch.as_tensor(value).detach().float().mean():g} at step {self.steps} "
        text += f"(epoch {self.epoch + 1}, batch {self.batch})"
        places = zip(_tree.keystrs(self.state), _tree.leaves(self.state), strict=True)
        bad = [place for place, leaf in places if leaf.is_floating_point() and not bool(leaf.isfinite().all())]
        if bad:
            text += f"; after it, state{bad[0]} is the first of {len(bad)} leaves that are not finite"
        if self.files:
            text += f"; the batch is kept in {self.files.keep_batch(batch)}"
        return text + "; run the step on it inside `with fnn.debug.nans():` to find the operation"

    def _save(self) -> None:
        if self.files is None:
            return
        where = {"step": self.steps, "epoch": self.epoch, "batch": self.batch, "samples": self.samples}
        self.files.save(self.state, self.totals, where | {"rows": self.rows})

    def _stop(self, interrupts: Interrupts) -> None:
        """End an interrupted run. No process ends before the checkpoint is on the disk."""
        if self.files:
            self.files.finish()
        interrupts.now()  # waits for the other processes
        raise KeyboardInterrupt

    def _resume(self) -> None:
        assert self.files is not None
        found = self.files.load(self.state)
        if found is None:
            return
        self.state, self.totals, where = found
        self.steps, self.epoch, self.batch = where["step"], where["epoch"], where["batch"]
        self.samples, self.rows = where["samples"], where["rows"]
        self.files.write_metrics(self.rows)

    def _best(self) -> int:
        """The index of the best row; the first of equally good ones."""
        assert self.score is not None
        scores = [self.score(row) for row in self.rows]
        return min(range(len(scores)), key=lambda i: math.inf if math.isnan(scores[i]) else scores[i])

    def _is_enough(self) -> bool:
        return bool(self.patience and self.rows and len(self.rows) - 1 - self._best() >= self.patience)


@contextmanager
def _bar(progress: bool, label: str, total: int | None, taken: int) -> Iterator[Callable[[dict, int], None]]:
    """A progress bar with the mean loss and the speed, if standard error is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        progress = False
    if not progress or not sys.stderr.isatty() or rank() > 0:
        yield lambda totals, samples: None
        return
    with tqdm(total=total, desc=label, initial=taken, leave=False, unit="batch") as bar:
        shown = time.monotonic()

        def show(totals: dict[str, Tensor], samples: int) -> None:
            nonlocal shown
            bar.update()
            if time.monotonic() - shown > 0.2:  # reading a number waits for the device
                shown = time.monotonic()
                bar.set_postfix({name: f"{float(value) / samples:.4g}" for name, value in totals.items()})

        yield show


@contextmanager
def _tensorboard(path: Path) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("fit writes for TensorBoard through its package: pip install tensorboard") from error
    writer = SummaryWriter(str(path))
    try:
        yield writer
    finally:
        writer.close()
