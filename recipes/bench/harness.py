"""Interleaved timing, peak memory, and the report that each benchmark writes into docs/performance.md."""

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

import torch

import fnn

REPORT = Path(__file__).parents[2] / "docs" / "performance.md"


def begin(keep_memory: bool = True) -> None:
    """One thread; and freed memory stays with the process, for all rivals, unless its peak is to be measured."""
    global _kept
    torch.set_num_threads(1)
    if keep_memory:
        _kept = fnn.keep_freed_memory()


_kept = False


def interleave(
    rivals: dict[str, Callable[[], object]], rounds: int = 30, inner: int = 1, lead: int = 0, warm: int = 2
) -> dict[str, float]:
    """Median seconds of one call of each rival; every round runs each of them once, ``inner`` calls a time.

    The order changes from round to round, because a rival pays for the memory and caches that the one before it left;
    ``lead`` untimed calls before each timing let it find its own.

    Each rival is called ``warm`` times beforehand, so that compilation and caches are not measured.
    """
    for call in rivals.values():
        for _ in range(warm):
            call()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds):
        for name, call in random.Random(number).sample(list(rivals.items()), len(rivals)):
            for _ in range(lead):
                call()
            times[name].append(timed(call, inner) / inner)
    return {name: statistics.median(values) for name, values in times.items()}


def timed(call: Callable[[], object], inner: int = 1) -> float:
    """Seconds of ``inner`` calls and their results: by the device's events where there is CUDA, else by the clock."""
    synchronize()
    if torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _run(call, inner)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    _run(call, inner)
    return time.perf_counter() - start


def _run(call: Callable[[], object], inner: int) -> None:
    for _ in range(inner - 1):
        call()
    wait(call())


def wait(value: object) -> None:
    """JAX computes on streams and threads of its own, which no event of torch's sees."""
    getattr(value, "block_until_ready", lambda: None)()


def plan(rivals: dict[str, Callable[[], object]], seconds: float) -> dict[str, int]:
    """Settings of :func:`interleave`, 5 to 21 rounds of 1 to 10 calls, for rivals that were called before.

    About ``seconds`` are spent, unless 5 rounds take longer.
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
    """The largest resident size, in bytes, of ``python ARGUMENTS`` run as a process of its own."""
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
    """Resident memory of this process in bytes: "VmRSS" now, "VmHWM" at most since :func:`reset_peak`. Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Give free memory back, and let the peak count from now on. Linux only."""
    trim()
    Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Give memory that is allocated to nothing back to the system."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def machine(packages: Sequence[str] = ()) -> str:
    """One line that says on what a figure was measured."""
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
    """A table of columns that may lack rows."""
    names = list(dict.fromkeys(row for column in columns.values() for row in column))
    return table(["", *columns], [[name, *(column.get(name, "-") for column in columns.values())] for name in names])


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tf32", action="store_true", help="float32 products in TF32, on CUDA")


def prepare(options: argparse.Namespace) -> torch.dtype:
    """Do what the flags say, and return the dtype in which layers are computed."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here")
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = options.tf32
    return getattr(torch, options.dtype)


def where(options: argparse.Namespace) -> str:
    """The end of a section's title."""
    return f", {options.device.upper()}, {options.dtype}{' (TF32)' if options.tf32 else ''}"


def section(bench: str, part: str, options: argparse.Namespace) -> str:
    """The name of a section: another device or dtype has one of its own."""
    usual = options.device == "cpu" and options.dtype == "float32"
    words = [] if usual else [options.device, options.dtype, *["tf32"] * options.tf32]
    return " ".join([bench, *part.split(), *words])


def report(name: str, title: str, body: str, packages: Sequence[str] = ()) -> None:
    """Print the section and put it in docs/performance.md, in place of the section of the same name.

    The first word of the name is the module's.
    """
    command = f"python -m recipes.bench {name.split()[0]} {' '.join(sys.argv[1:])}".strip()
    section = f"## {title}\n\n`{command}`\n\n{machine(packages)}\n\n{body.strip()}\n"
    print(section)
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = REPORT.read_text() if REPORT.exists() else "# Performance\n"
    block = f"{begin}\n{section}{end}\n"
    if begin in text:
        before, rest = text.split(begin, 1)
        text = before + block + rest.split(end + "\n", 1)[1]
    else:
        text = text.rstrip("\n") + "\n\n" + block
    part = REPORT.with_suffix(".part")
    part.write_text(text)
    os.replace(part, REPORT)
