"""`python -m experiments.benchmark.run`: see README.md beside this file."""

import os
import platform
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmark import (
    accelerator,
    checkpoint,
    measure,
    members,
    others,
    pinned,
    plot,
    ways,
    work,
)
from experiments.benchmark.config import (
    CHECKPOINT,
    GPT2S,
    ON_DEMAND,
    ONLINE,
    SECTIONS,
    WORKS,
    Config,
    Sizes,
    sizes,
)
from experiments.benchmark.measure import Group
from experiments.benchmark.ways import Way
from shatter.cli.common import binary, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console, progress_bar
from shatter.types import Key


def check(config: Config) -> None:
    """Raises a UsageError if a flag has a value that it cannot have.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("section", config.sections, (*SECTIONS, *ON_DEMAND))
    binary.choose("work", config.works, WORKS)
    binary.choose("gpt2", config.gpt2s, GPT2S)
    folder = config.checkpoint
    needy = [section for section in (CHECKPOINT, ONLINE) if section in config.sections]
    if needy and (folder is None or not Path(folder).is_dir()):
        raise UsageError(
            f"--sections {needy[0]} needs --checkpoint, the folder of a pretrained model, found "
            f"{folder}"
        )
    for name in ("repeats", "num_rounds", "num_members", "num_seeds", "seeds_per_call", "depths"):
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number < 1:
                raise UsageError(f"--{name} must be at least 1, found {number}")


class Part(NamedTuple):
    """A group of ways that is not compiled yet.

    Attributes:
      name: the name of the work.
      unit: the unit of the work.
      make: compiles the ways.
      num_ways: the number of ways that `make` will return.
      seconds: a rough cost on 2 CPU cores, compilation included.
      pinned: measures the ways in a process of its own instead, see `pinned.measure`; None = the
        ways are measured in this process.
    """

    name: str
    unit: str
    make: Callable[[], list[Way]]
    num_ways: int
    seconds: float
    pinned: Callable[[], dict[str, Any]] | None = None


COMPILE_SECONDS = {"tabular": 5.0, "transformer": 9.0}  # of one program
ROUND_SECONDS = {"tabular": 2e-3, "transformer": 40e-3}  # of one seed with 16 members
DEPTH_SECONDS = 0.7  # to compile one more looped layer
IMPORT_SECONDS = 1.2
PINNED = (
    ("finetune", "dpo", "pair"),
    ("finetune", "ilhf", "pair"),
    ("generation", "generation", "token"),
)
ADAPTERS = 8
ADAPTER_SECONDS = {"small": 8.0, "wide": 10.0, "gpt2": 120.0}  # of one group with 5 repeats
CHECKPOINT_SECONDS = 5.0  # to compile a way, or to load its model; twice that in a fresh process
PINNED_SECONDS = 12.0  # of one way: two processes that import and build it


def plan(config: Config) -> list[Part]:
    """Returns the groups of ways that the config names, in order, without compiling them."""
    passes = config.repeats + 1
    parts = []
    for name in config.works:
        size = sizes(config, name)
        a_seed = ROUND_SECONDS[name] * size.num_rounds * config.num_members / 16
        compiling = COMPILE_SECONDS[name]
        if "rounds" in config.sections:
            make, seconds = partial(_rounds, config, name), 2 * compiling + 5 * passes * a_seed
            num_ways = 2 + others.has_torch()
            parts.append(Part(f"{name}, one seed", "seed-round", make, num_ways, seconds))
        for seeds in config.num_seeds if "seeds" in config.sections else ():
            chunks = [chunk for chunk in config.seeds_per_call if chunk < seeds]
            done = min(seeds, ways.ONE_BY_ONE) + seeds * (1 + len(chunks))
            seconds = (1 + len(chunks)) * compiling + passes * done * a_seed
            make = partial(_seeds, config, name, seeds, chunks)
            label = f"{name}, seeds: {seeds}"
            parts.append(Part(label, "seed-round", make, 2 + len(chunks), seconds))
    for depth in config.depths if "layers" in config.sections else ():
        make = partial(others.layers, sizes(config, "transformer"), depth)
        parts.append(Part(f"layers: {depth}", "gradient", make, 2, 5 + DEPTH_SECONDS * depth))
    if "imports" in config.sections:
        seconds = 2 * passes * IMPORT_SECONDS
        parts.append(Part("import", "start", others.imports, 2, seconds))
    for section, work_name, unit in PINNED:
        for name in config.gpt2s if section in config.sections else ():
            run = partial(pinned.measure, work_name, name, config.seed, config.repeats)
            num_ways = pinned.num_ways(work_name)
            seconds = num_ways * (PINNED_SECONDS + 0.5 * passes)
            parts.append(Part(f"{work_name}, {name}", unit, list, num_ways, seconds, run))
    if "vocabulary" in config.sections:
        run = partial(pinned.measure, "vocabulary", "vocabulary", config.seed, config.repeats)
        ways_there = pinned.num_ways("vocabulary")
        seconds = ways_there * (3 * PINNED_SECONDS + 10 * passes)
        parts.append(Part("DPO, vocabulary 262,144", "pair", list, ways_there, seconds, run))
    for name in config.gpt2s if "adapters" in config.sections else ():
        for utility in members.UTILITIES:
            make = partial(members.member_ways, members.sizes(name), utility, ADAPTERS, config.seed)
            title = f"adapters, {utility}, {name}"
            parts.append(Part(title, "step", make, members.num_ways(name), ADAPTER_SECONDS[name]))
    if CHECKPOINT in config.sections:
        parts += [_checkpoint_part(config, *place) for place in checkpoint.places()]
    if ONLINE in config.sections:
        places = checkpoint.places(checkpoint.ONLINE)
        parts += [_checkpoint_part(config, *place) for place in places]
    if "accelerator" in config.sections:
        chosen, rounds = accelerator.PLANS[config.accelerator_size], sizes(config, "tabular")
        parts += [Part(*part) for part in accelerator.parts(chosen, rounds, config.seed)]
    return parts


def _checkpoint_part(config: Config, name: str, cores: int) -> Part:
    """Returns the group of a work with the pretrained model on some cores."""
    work, folder = checkpoint.work_of(name), str(config.checkpoint)
    args = (name, folder, cores, config.seed, config.repeats)
    run, num_ways = partial(checkpoint.measure, *args), checkpoint.num_ways(name)
    seconds = num_ways * CHECKPOINT_SECONDS + (config.repeats + 2) * work.seconds / cores
    alone = num_ways * 2 * CHECKPOINT_SECONDS + 2 * work.seconds  # the memory of each way
    cost = seconds + alone * (work.memory and cores == 1)
    return Part(f"{name}, {cores} core{'s' * (cores > 1)}", work.unit, list, num_ways, cost, run)


@cache
def _seed_program(size: Sizes, seed: int) -> tuple[work.Frozen, Key, ways.Program]:
    frozen_key, run_key = jax.random.split(jax.random.key(seed))
    frozen = jax.jit(partial(work.draw_frozen, size))(frozen_key)
    return frozen, run_key, ways.compile_seed(size, frozen, run_key)


def _rounds(config: Config, name: str) -> list[Way]:
    size = sizes(config, name)
    frozen, key, program = _seed_program(size, config.seed)
    made = [
        ways.one_scan(size, frozen, key, program),
        ways.python_loop(size, frozen, key),
    ]
    if others.has_torch():
        made.append(others.torch_eager(size, frozen, config.seed))
    return made


def _seeds(config: Config, name: str, num_seeds: int, chunks: list[int]) -> list[Way]:
    size = sizes(config, name)
    frozen, key, program = _seed_program(size, config.seed)
    keys = jax.random.split(key, num_seeds)
    return [
        ways.one_by_one(size, frozen, keys, program),
        ways.all_at_once(size, frozen, keys),
        *(ways.in_chunks(size, frozen, keys, chunk) for chunk in chunks),
    ]


def experiment(config: Config) -> None:
    """Times every way of every group, then writes and prints the results."""
    check(config)
    console = open_console()
    parts = plan(config)
    cost = sum(part.seconds for part in parts) / 60
    console.print(
        f"{len(parts)} groups, {config.repeats} repeats, on {jax.default_backend()}: about "
        f"{cost:.1f} minutes on 2 idle CPU cores"
    )
    if "rounds" in config.sections and not others.has_torch():
        console.print("PyTorch is not installed, so its rows are left out: pip install torch")
    with run_folder.open_run_folder(config.run_dir, config) as folder:
        began = time.perf_counter()
        results = _measure(parts, config, console)
        rows = [row for group, seconds in results for row in measure.summarise(group, seconds)]
        run_folder.write_csv(folder / "metrics.csv", _csv_rows(results))
        summary: dict[str, Any] = {"machine": _machine(), "rows": rows}
        if "imports" in config.sections:
            summary["imports_tensorflow_probability"] = others.imports_tensorflow_probability()
        run_folder.write_json(folder / "summary.json", summary)
        figure = plot.draw(rows, folder)
        console.print(_table(rows))
        if "imports" in config.sections:
            imported = "yes" if summary["imports_tensorflow_probability"] else "no"
            console.print(f"import shatter imports tensorflow_probability: {imported}")
        console.print(
            f"{time.perf_counter() - began:.0f} s. Results in {folder}: metrics.csv, summary.json, "
            f"{figure.name}"
        )


def _measure(parts: list[Part], config: Config, console: Console) -> list[tuple[Group, np.ndarray]]:
    results = []
    with progress_bar(console, sum(config.repeats * part.num_ways for part in parts)) as advance:
        for part in parts:
            if part.pinned:
                advance(part.name, 0)
                results.append(_pinned(part, console))
                _print(*results[-1], console)
                advance(part.name, config.repeats * part.num_ways)
                continue
            advance(f"{part.name}: compiling", 0)
            fit, exhausted = measure.warm_up(part.make())
            for name in exhausted:
                console.print(f"{part.name}: {name} ran out of memory")
            advance(part.name, config.repeats * len(exhausted))
            if fit:
                seconds = measure.time_in_turn(fit, config.repeats, partial(advance, part.name))
                timed = [way._replace(run=_nothing) for way in fit]  # frees the memory they hold
                results.append((Group(part.name, part.unit, timed), seconds))
                _print(*results[-1], console)
                del fit
    return results


def _print(group: Group, seconds: np.ndarray, console: Console) -> None:
    """Prints a group's figures as soon as there are some, because a whole run may take long."""
    for row in measure.summarise(group, seconds):
        ratio = f"{row['ratio']:.3g} [{row['ratio_low']:.3g}, {row['ratio_high']:.3g}]"
        speed = f"{1 / row['seconds_a_unit']:.3g} {group.unit}s/s"
        console.print(f"{group.name}: {row['way']}: {speed}, time {ratio}", markup=False)


def _nothing() -> None:
    """Stands for the work of a way that has been timed."""


def _pinned(part: Part, console: Console) -> tuple[Group, np.ndarray]:
    assert part.pinned is not None
    answer = part.pinned()
    for note in answer["notes"]:
        console.print(f"{part.name}: {note}")
    made = [Way(run=_nothing, **fields) for fields in answer["ways"]]
    return Group(part.name, part.unit, made), np.asarray(answer["seconds"])


def _csv_rows(results: list[tuple[Group, np.ndarray]]) -> Iterable[tuple]:
    """Returns rows of the usual columns: arm = way, seed = repeat, step = units of work."""
    for group, seconds in results:
        for column, way in enumerate(group.ways):
            start = (group.name, group.unit, way.name)
            for repeat, value in enumerate(seconds[:, column]):
                yield *start, repeat, way.units, "seconds", f"{value:.6g}"
            for metric in ("compile_seconds", "peak_bytes", "process_bytes"):
                if getattr(way, metric) is not None:
                    yield *start, "", way.units, metric, f"{getattr(way, metric):.6g}"


def _machine() -> dict[str, Any]:
    """Returns the machine and the versions of the software that the numbers belong to."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "device": str(jax.devices()[0].device_kind),
        "cores": os.cpu_count(),
        "load": load,
        "jax": jax.__version__,
        "python": platform.python_version(),
        **pinned.versions(),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="the same work in different ways",
        caption="time: ratio to the group's first row, median \\[range] of repeats in turn. peak: "
        "memory that the compiler plans (arguments, outputs, temporaries); for PyTorch, the growth "
        "of a fresh process, or the memory allocated on a GPU. process: peak memory of a fresh "
        "process that does nothing else, libraries included",
    )
    table.add_column("work")
    table.add_column("way")
    for name in ("time", "units/s", "compile s", "peak MB", "process MB"):
        table.add_column(name, justify="right")
    for before, row in zip([None, *rows], rows, strict=False):
        first = before is None or before["group"] != row["group"]
        if first and before is not None:
            table.add_section()
        compile_seconds, peak = row["compile_seconds"], row["peak_bytes"]
        process = row["process_bytes"]
        table.add_row(
            f"{row['group']} ({row['unit']}s)" if first else "",
            row["way"],
            "1"
            if first
            else f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]",
            f"{1 / row['seconds_a_unit']:.3g}",
            "" if compile_seconds is None else f"{compile_seconds:.1f}",
            "" if peak is None else f"{peak / 1e6:.1f}",
            "" if process is None else f"{process / 1e6:.0f}",
        )
    return table


if __name__ == "__main__":
    # A compilation cache would make the compile seconds those of reading a file.
    jax.config.update("jax_enable_compilation_cache", False)
    # PyTorch needs some of the memory of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    binary.main(Config, experiment)
