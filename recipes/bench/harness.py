"""What the benchmarks share: interleaved timing, peak memory, and the report in docs/performance_tables.md."""

import argparse
import ctypes
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fnn

REPORT = Path(__file__).parents[2] / "docs" / "performance_tables.md"


def begin(keep_memory: bool = True) -> None:
    """Use one thread, and let the process keep freed memory, unless peak memory is to be measured."""
    global _kept
    torch.set_num_threads(1)
    if keep_memory:
        _kept = fnn.keep_freed_memory()


_kept = False


def interleave(
    rivals: dict[str, Callable[[], object]],
    rounds: int = 30,
    inner: int = 1,
    lead: int = 0,
    warm: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of one call of each rival. In every round each rival is timed once, over ``inner`` calls.

    The order changes from round to round, because the time of a rival depends on the memory and caches that the
    previous one left; ``lead`` untimed calls before each timing reduce this effect. Before the first round, each rival
    is called ``warm`` times, so that compilation is not measured. ``clock=time.process_time`` measures the processor's
    time, which other processes disturb less.
    """
    for call in rivals.values():
        for _ in range(warm):
            call()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds):
        for name, call in random.Random(number).sample(list(rivals.items()), len(rivals)):
            for _ in range(lead):
                call()
            times[name].append(timed(call, inner, clock) / inner)
    return {name: statistics.median(values) for name, values in times.items()}


def timed(call: Callable[[], object], inner: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds until ``inner`` calls are complete: by CUDA events if there is a GPU, else by the clock."""
    synchronize()
    if torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _run(call, inner)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    start = clock()
    _run(call, inner)
    return clock() - start


def _run(call: Callable[[], object], inner: int) -> None:
    for _ in range(inner - 1):
        call()
    wait(call())


def wait(value: object) -> None:
    """Wait for a result of JAX, which computes on its own streams and threads, unknown to torch's events."""
    getattr(value, "block_until_ready", lambda: None)()


def plan(rivals: dict[str, Callable[[], object]], seconds: float) -> dict[str, Any]:
    """Settings of :func:`interleave` that take about ``seconds``, for rivals that have been called before.

    There are 5 to 21 rounds of 1 to 10 calls; 5 rounds may take longer than ``seconds``.
    """
    once = sum(timed(call) for call in rivals.values())
    inner = min(10, max(1, round(seconds / 21 / once)))
    return {"rounds": min(21, max(5, round(seconds / inner / once))), "inner": inner, "warm": 0}


def ratios(seconds: dict[str, float], base: str) -> dict[str, float]:
    """Each time divided by that of ``base``."""
    return {name: value / seconds[base] for name, value in seconds.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(arguments: Sequence[str]) -> int:
    """Run ``python ARGUMENTS`` as a process, and return its peak resident memory in bytes."""
    program = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True) "
        "if not sys.argv[0].endswith('.py') else runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout.rsplit("PEAK", 1)[1])
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


def resident(field: str) -> int:
    """Resident memory of this process in bytes: "VmRSS" now, "VmHWM" the peak since :func:`reset_peak`. Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Return free memory to the system and reset the peak to the present memory. Linux only."""
    trim()
    Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Return memory that has been freed to the system."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def machine(packages: Sequence[str] = ()) -> str:
    """One line that describes the machine, the settings and the versions."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = models[0] if models else processor
    pages = "huge pages" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else "pages of 4 KB"
    memory = ["freed memory kept"] if _kept else []
    parts = [processor, f"{torch.get_num_threads()} thread(s)", pages, *memory]
    if torch.cuda.is_available():
        precise = torch.get_float32_matmul_precision() == "highest"
        parts += [torch.cuda.get_device_name(), "no TF32" if precise else "TF32"]
    for name in ("torch", *packages):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} not installed")
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats are shown with two decimals."""
    shown = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(header), *shown]]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)


def columns_table(columns: Mapping[str, Mapping[str, object]]) -> str:
    """A Markdown table of the columns; a row that a column lacks is shown as "-"."""
    names = list(dict.fromkeys(row for column in columns.values() for row in column))
    return table(["", *columns], [[name, *(column.get(name, "-") for column in columns.values())] for name in names])


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tf32", action="store_true", help="compute float32 products in TF32 on CUDA")


def prepare(options: argparse.Namespace) -> torch.dtype:
    """Apply the device flags, and return the dtype in which the layers compute."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here")
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = options.tf32
    return getattr(torch, options.dtype)


def where(options: argparse.Namespace) -> str:
    """The device and dtype, as the end of the title of a section."""
    return f", {options.device.upper()}, {options.dtype}{' (TF32)' if options.tf32 else ''}"


def section(bench: str, part: str, options: argparse.Namespace) -> str:
    """The name of a section; each device and dtype has its own."""
    usual = options.device == "cpu" and options.dtype == "float32"
    words = [] if usual else [options.device, options.dtype, *["tf32"] * options.tf32]
    return " ".join([bench, *part.split(), *words])


def report(name: str, title: str, body: str, packages: Sequence[str] = (), page: Path | None = None) -> None:
    """Print the section and write it to a page, where it replaces the section of the same name.

    The page is docs/performance_tables.md unless another is given.

    The first word of ``name`` is the name of the module.
    """
    command = f"python -m recipes.bench {name.split()[0]} {' '.join(sys.argv[1:])}".strip()
    section = f"## {title}\n\n`{command}`\n\n{machine(packages)}\n\n{body.strip()}\n"
    print(section)
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = REPORT if page is None else page
    text = page.read_text() if page.exists() else "# Tables of performance\n"
    block = f"{begin}\n{section}{end}\n"
    if begin in text:
        before, rest = text.split(begin, 1)
        text = before + block + rest.split(end + "\n", 1)[1]
    else:
        text = text.rstrip("\n") + "\n\n" + block
    part = page.with_suffix(".part")
    part.write_text(text)
    os.replace(part, page)
