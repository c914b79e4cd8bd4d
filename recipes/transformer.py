"""Train a language model of characters and let it write: ``python -m recipes.transformer``.

A decoder-only Transformer predicts each next character of 22 sonnets by William Shakespeare (1609, in modern spelling,
public domain; recipes/data/sonnets.txt). Losses are in nats per character. The last part of the text is held out, and
the params with the least loss on it are kept in params.safetensors. These write the samples, one character at a time:
the keys and values of earlier characters come from a cache, and the random numbers from a key.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

import fnn
from recipes import command_line, files, plots

TEXT = Path(__file__).parent / "data" / "sonnets.txt"


@dataclass
class Flags(command_line.RunFlags):
    """Train a Transformer on the characters of a text, and draw samples from it."""

    text: Annotated[Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the sonnets)")] = TEXT
    """The text, in UTF-8."""
    held_out: command_line.Share = 0.15
    """Share of the text, at its end, that is not trained on."""
    steps: command_line.Count = 1000
    every: command_line.Count = 50
    """Steps between two measurements of the losses."""
    batch_size: command_line.Count = 12
    """Number of passages in a step."""
    length: command_line.Count = 64
    """Number of characters in a passage and in a sample."""
    width: command_line.Count = 64
    """Size of the vectors that stand for characters."""
    heads: command_line.Count = 4
    """Number of attention heads; it has to divide the width."""
    layers: command_line.Count = 2
    dropout: command_line.Momentum = 0.0
    """Probability of dropout while training; its random numbers make the steps slower."""
    learning_rate: command_line.Positive = 3e-3
    """Highest learning rate of AdamW; it rises over a twentieth of the steps, then falls by a cosine schedule."""
    samples: command_line.Count = 6
    """Number of samples to draw."""
    temperature: command_line.Positive = 0.8
    """Logits are divided by this before a character is drawn: less than 1 makes the samples more cautious."""


def train(flags: Flags) -> dict[str, Any]:
    """Train, write the files, and return what is in metrics.json."""
    device = command_line.begin(flags, many=True)
    if flags.batch_size % fnn.distributed.world_size():
        count = fnn.distributed.world_size()
        raise SystemExit(f"--batch-size {flags.batch_size}: give a multiple of {count}, the number of processes")
    if flags.width % flags.heads:
        raise SystemExit(f"--heads {flags.heads}: give a number that divides --width {flags.width}")
    characters, learned, held_out = read(flags, device)
    output = files.open_output(flags, "transformer")
    model = make_model(flags, characters)
    init_key, step_key, sample_key = fnn.random.split(fnn.random.key(flags.seed), 3).to(device)
    params = fnn.tree.to(model.init(init_key), device)
    decay = fnn.optim.schedules.cosine(flags.learning_rate, flags.steps)
    schedule = fnn.optim.schedules.warmup(decay, max(1, flags.steps // 20))
    optimizer = fnn.optim.chain(fnn.optim.clip_by_global_norm(1.0), fnn.optim.adamw(schedule))
    opt_state = optimizer.init(params)

    def loss(params: fnn.tree.Tree, passages: Tensor, key: Tensor | None = None) -> Tensor:
        logits = model.apply(params, passages[:, :-1], key=key)
        return fnn.losses.cross_entropy(logits.flatten(0, 1), passages[:, 1:].flatten())

    gradient = fnn.distributed.data_parallel(fnn.grad(loss))  # of all processes, if there are several

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, text: Tensor, key: Tensor) -> tuple:
        place_key, dropout_key = fnn.random.split(key)
        starts = fnn.random.randint(place_key, (flags.batch_size, 1), 0, len(text) - flags.length)
        passages = text[starts + torch.arange(flags.length + 1, device=text.device)]
        grads = gradient(params, fnn.distributed.local(passages), dropout_key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    value = fnn.jit(loss)
    history: list[dict[str, float]] = []
    print(f"device {device}\n{fnn.summary(params)}")
    for number in command_line.progress(range(flags.steps + 1), "steps", flags.steps + 1):
        if number % flags.every == 0 or number == flags.steps:
            row: dict[str, float] = {"step": number}
            for name, text in (("train_loss", learned), ("held_out_loss", held_out)):
                row[name] = float(value(params, in_passages(text, flags.length)))
            history.append(row)
            if row == min(history, key=lambda row: row["held_out_loss"]) and fnn.distributed.rank() == 0:
                fnn.checkpoint.save(output / "params.safetensors", params)
            print("step {step:5d}  train loss {train_loss:.3f}  held-out loss {held_out_loss:.3f}".format(**row))
        if number < flags.steps:
            params, opt_state = step(params, opt_state, learned, fnn.random.fold_in(step_key, number))
    if fnn.distributed.rank() > 0:
        return {"history": history}
    params = fnn.checkpoint.load(output / "params.safetensors", params, str(device))
    start = torch.full((flags.samples, 1), max(0, characters.find("\n")), device=device)
    samples = [
        "".join(characters[i] for i in line) for line in sample(model, params, start, flags, sample_key).tolist()
    ]
    counts = torch.bincount(learned, minlength=len(characters)) + 1.0
    frequencies = float(fnn.losses.cross_entropy(counts.log().expand(len(held_out), -1), held_out))
    best = min(history, key=lambda row: row["held_out_loss"])
    result = {"history": history, "best": best, "loss_of_frequencies": frequencies, "samples": samples}
    files.write_metrics(output, result)
    files.write_text(output / "samples.txt", "\n\n".join(text.strip("\n") for text in samples) + "\n")
    plots.language_model(output / "curves.png", history, math.log(len(characters)), frequencies)
    print(f"least held-out loss {best['held_out_loss']:.3f} nats per character, after step {best['step']}")
    print((output / "samples.txt").read_text(), end="")
    print(f"wrote {output}")
    return result


def read(flags: Flags, device: torch.device) -> tuple[str, Tensor, Tensor]:
    """Return the characters of the text in order, and the two parts of the text as numbers of characters."""
    try:
        text = flags.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"--text {flags.text}: {error}") from error
    characters = "".join(sorted(set(text)))
    numbers = torch.tensor([characters.index(character) for character in text], dtype=torch.long, device=device)
    cut = round(len(text) * (1 - flags.held_out))
    if min(cut, len(text) - cut) < flags.length + 1:
        raise SystemExit(
            f"--length {flags.length}: both parts of the text need {flags.length + 1} characters; they have {cut} and "
            f"{len(text) - cut}"
        )
    return characters, numbers[:cut].clone(), numbers[cut:].clone()


def make_model(flags: Flags, characters: str) -> fnn.Layer:
    return fnn.models.gpt(len(characters), flags.length, flags.width, flags.heads, flags.layers, p=flags.dropout)


def in_passages(text: Tensor, length: int) -> Tensor:
    """The text in passages (passages, length + 1); the last character of one is the first of the next."""
    return text.unfold(0, length + 1, length).clone()


def sample(model: fnn.Layer, params: fnn.tree.Tree, start: Tensor, flags: Flags, key: Tensor) -> Tensor:
    """Draw ``flags.length`` characters after each of ``start``: (samples, 1) -> (samples, length).

    The model sees one new character at a time; the cache has the keys and values of all earlier ones.
    """

    def draw(params: fnn.tree.Tree, cache: fnn.tree.Tree, token: Tensor, key: Tensor) -> tuple[fnn.tree.Tree, Tensor]:
        logits, cache = model.apply(params, token, cache=cache)
        return cache, fnn.random.categorical(key, logits / flags.temperature)

    next_character = fnn.jit(draw, donate_argnums=1)
    cache = fnn.models.gpt_cache(len(start), flags.length, flags.width, flags.heads, flags.layers, device=start.device)
    tokens = [start]
    for one in fnn.random.split(key, flags.length):
        cache, token = next_character(params, cache, tokens[-1], one)
        tokens.append(token)
    return torch.cat(tokens[1:], 1)


if __name__ == "__main__":
    command_line.main(train, Flags())
