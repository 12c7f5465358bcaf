"""What adapters of a population, its groups and its persons are worth beside heads.

experiments/people/README.md has the results and the cost.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.common.sources import attribution, digest, model_folder
from experiments.people import config as heads
from experiments.people.adapters.config import Config, check
from experiments.people.adapters.division import run_division
from experiments.people.adapters.inputs import draw_followed, option_table, without_followed
from experiments.people.adapters.programs import make_programs
from experiments.people.adapters.saving import save_levels
from experiments.people.inputs import make_inputs
from experiments.people.persons import Followed
from experiments.people.polls import Poll, draw_questions, load_poll
from experiments.people.process import run_seed
from shatter.cli.common import run_folder
from shatter.cli.common.frozen import Frozen, load_frozen, weights_hash
from shatter.cli.common.progress import open_console, progress_bar

FREE = ("run_dir", "data_dir", "save")


def experiment(config: Config) -> None:
    """Runs every division, then writes and prints the tables."""
    check(config)
    console, began = open_console(), time.perf_counter()
    poll = load_poll(config.dataset, data_dir=config.data_dir)
    poll = draw_questions(poll, config.max_questions, np.random.default_rng(config.seed))
    seeds = range(config.seed, config.seed + config.num_seeds)
    followed = {seed: draw_followed(config, poll, seed) for seed in seeds}
    name = model_folder(config.model_name_or_path, config.data_dir)
    model = load_frozen(name)
    facts = {"data_sha256": digest(poll), "weights": weights_hash(model.params)}
    root = f"{config.run_dir}/{config.dataset}"
    with run_folder.open_run_folder(root, config, free=FREE, **facts) as folder:
        found = _divisions(config, poll, followed, model, name, folder)
        summary = summarise([{**one["heads"], **one["adapters"]} for one in found])
        run_folder.write_json(folder / "summary.json", summary)
        for made in tables(config, summary):
            console.print(made)
        console.print(f"{time.perf_counter() - began:.0f} s. Results in {folder}")
        console.print(f"Data: {attribution(config.dataset)}")


def _divisions(
    config: Config,
    poll: Poll,
    followed: dict[int, Followed],
    model: Frozen,
    name: str,
    folder: Path,
) -> list[dict[str, Any]]:
    """Returns the measures of heads and of adapters on every division, learned or read."""
    flags, known = dataclasses.asdict(config), {f.name for f in dataclasses.fields(heads.Config)}
    beside = heads.Config(**{flag: value for flag, value in flags.items() if flag in known})
    files = {seed: folder / "seeds" / f"seed{seed}.json" for seed in followed}
    saved = folder / "adapters"
    todo = [seed for seed, file in files.items() if not file.exists()]
    if config.save and not saved.exists():
        todo = sorted({config.seed, *todo})
    with progress_bar(open_console(), len(todo)) as advance:
        if todo:
            advance("the frozen model", 0)
            table, valid = option_table(
                model, poll, max_length=config.max_length, file=folder / "hidden.npz"
            )
            programs = make_programs(config, model, table, valid)
            inputs = make_inputs(beside, poll, model)
        for seed in todo:
            persons = followed[seed]
            found, levels = run_division(config, poll, programs, persons, seed)
            if config.save and seed == config.seed:
                save_levels(config, levels, poll, persons.judged, model, name, saved)
            others = without_followed(poll, persons, seed)
            of_heads = run_seed(beside, others, inputs, seed, persons)["measures"]
            run_folder.write_json(files[seed], {"adapters": found, "heads": _renamed(of_heads)})
            advance(f"division {seed}", 1)
    return [run_folder.read_json(file) for file in files.values()]


def _renamed(found: dict[str, float]) -> dict[str, float]:
    """Returns measures of heads, whose persons' are not taken for those of adapters."""
    return {name.replace("persons/", "head_persons/"): value for name, value in found.items()}


def summarise(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns means over the divisions, and differences taken division by division."""
    column = lambda name: np.array([one[name] for one in found])
    summary = {name: mean_interval(column(name)) for name in found[0]}
    for kind in ("persons", "head_persons"):
        for name in found[0]:
            number = name.removeprefix(f"{kind}/log_loss_")
            if number.isdigit():
                saved = column(f"{kind}/log_loss_0") - column(name)
                summary[f"{kind}/gain_{number}"] = mean_interval(saved)
            if f"{kind}/group_loss_{number}" in found[0]:
                saved = column(f"{kind}/group_loss_{number}") - column(name)
                summary[f"{kind}/own_gain_{number}"] = mean_interval(saved)
        saved = column(f"{kind}/blind_log_loss_0") - column(f"{kind}/log_loss_0")
        summary[f"{kind}/gain_group"] = mean_interval(saved)
    heads_of_groups = "group_difference/group_kl"
    pairs = {
        "adapters less head/kl": ("adapters/kl", "head/kl"),
        "adapters less group_difference/group_kl": ("adapters/group_kl", heads_of_groups),
        "population less groups/group_kl": ("adapters/blind_group_kl", "adapters/group_kl"),
    }
    for name in found[0]:
        kind, _, measure = name.partition("/")
        if kind == "persons" and "log_loss" in measure and f"head_{name}" in found[0]:
            pairs[f"adapters less heads/{measure}"] = (name, f"head_{name}")
    for title, (one, other) in pairs.items():
        summary[title] = mean_interval(column(one) - column(other))
    return summary


def tables(config: Config, summary: dict[str, Any]) -> list[Table]:
    """Returns the table of shares and that of persons."""
    shares = Table(
        title=f"{config.dataset}, new questions: means over {config.num_seeds} divisions [95%]",
        caption="KL(people's shares || model) in nats",
    )
    for title in ("method", "KL, everybody", "KL, each group"):
        shares.add_column(title, justify="left" if title == "method" else "right")
    of_shares = {
        "uniform": ("uniform/kl", "uniform/group_kl"),
        "head": ("head/kl", "head/group_kl"),
        "head, group_difference": ("group_difference/kl", "group_difference/group_kl"),
        "the population's adapter": ("adapters/kl", "adapters/blind_group_kl"),
        "each group's adapter": ("", "adapters/group_kl"),
        "population's less each group's": ("", "population less groups/group_kl"),
        "population's less head": ("adapters less head/kl", ""),
        "each group's less group_difference": ("", "adapters less group_difference/group_kl"),
    }
    for title, names in of_shares.items():
        shares.add_row(title, *(format_interval(summary.get(name)) for name in names))
    persons = Table(
        title="log-loss of a person's answer to a new question, nats",
        caption="saved: over 0 answers; own: over the group's adapter of the same fit; the same "
        "persons for adapters and heads",
    )
    persons.add_column("known answers of the person")
    for title in ("adapters", "saved", "own", "heads", "saved", "adapters less heads"):
        persons.add_column(title, justify="right")
    of_persons = {
        str(n): (f"log_loss_{n}", f"gain_{n}" if n else "", f"own_gain_{n}")
        for n in sorted({0, *config.numbers_of_answers})
    }
    of_persons["0, without the group"] = ("blind_log_loss_0", "", "")
    for title, (loss, gain, own) in of_persons.items():
        shown = [f"persons/{loss}", f"persons/{gain}", f"persons/{own}"]
        shown += [f"head_persons/{loss}", f"head_persons/{gain}", f"adapters less heads/{loss}"]
        persons.add_row(title, *(format_interval(summary.get(name)) for name in shown))
    return [shares, persons]
