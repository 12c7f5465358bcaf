"""`python -m experiments.people.adapters`: an adapter for each person, around one population's.

README.md in this folder has the results and the cost.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.common.sources import attribution, digest, model_folder
from experiments.people import config as heads
from experiments.people.adapted import Adapting, make_programs, option_table
from experiments.people.adapted_process import Search, run_division
from experiments.people.adapters_config import Config, check
from experiments.people.hierarchy import Levels
from experiments.people.inputs import make_inputs
from experiments.people.persons import Person
from experiments.people.polls import Poll, draw_questions, load_poll
from experiments.people.process import run_seed
from shatter import ensembles, models
from shatter.cli.common import binary, run_folder
from shatter.cli.common.frozen import Frozen, load_frozen, weights_hash
from shatter.cli.common.progress import open_console, progress_bar

FREE = ("run_dir", "data_dir", "save")


def experiment(config: Config) -> None:
    """Runs every division, then writes and prints the tables."""
    check(config)
    console, began = open_console(), time.perf_counter()
    poll = load_poll(config.dataset, data_dir=config.data_dir)
    poll = draw_questions(poll, config.max_questions, np.random.default_rng(config.seed))
    name = model_folder(config.model_name_or_path, config.data_dir)
    model = load_frozen(name)
    facts = {"data_sha256": digest(poll), "weights": weights_hash(model.params)}
    root = f"{config.run_dir}/{config.dataset}"
    with run_folder.open_run_folder(root, config, free=FREE, **facts) as folder:
        found = _divisions(config, poll, model, name, folder)
        summary = summarise([{**one["heads"], **one["adapters"]} for one in found])
        run_folder.write_json(folder / "summary.json", summary)
        for made in tables(config, summary):
            console.print(made)
        console.print(f"{time.perf_counter() - began:.0f} s. Results in {folder}")
        console.print(f"Data: {attribution(config.dataset)}")


def _divisions(
    config: Config, poll: Poll, model: Frozen, name: str, folder: Path
) -> list[dict[str, Any]]:
    """Returns the measures of heads and of adapters on every division, learned or read."""
    lora = models.LoraConfig(config.lora_r, float(config.lora_r), ("mlp_out",))
    adapting = Adapting(lora, config.utility, config.utility_scale)
    search = Search(
        *(config.population_scales, config.group_ratios, config.person_scales),
        *(config.answers_per_question, config.num_steps, config.person_steps),
    )
    beside = heads.Config(
        **{
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(heads.Config)
            if hasattr(config, field.name) and field.name != "max_persons"
        }
    )
    seeds = range(config.seed, config.seed + config.num_seeds)
    files = {seed: folder / "seeds" / f"seed{seed}.json" for seed in seeds}
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
            programs = make_programs(model, adapting, table, valid, seed=config.seed)
            inputs = make_inputs(beside, poll, model)
        for seed in todo:
            numbers, most = config.numbers_of_answers, config.max_persons
            found, levels, persons = run_division(poll, programs, search, numbers, most, seed)
            if config.save and seed == config.seed:
                save_levels(levels, poll, persons, model, lora, name, saved)
            of_heads = run_seed(beside, poll, inputs, seed)["measures"]
            run_folder.write_json(files[seed], {"adapters": found, "heads": _renamed(of_heads)})
            advance(f"division {seed}", 1)
    return [run_folder.read_json(file) for file in files.values()]


def _renamed(found: dict[str, float]) -> dict[str, float]:
    """Returns measures of heads, whose persons' are not taken for those of adapters."""
    return {name.replace("persons/", "head_persons/"): value for name, value in found.items()}


def save_levels(
    levels: Levels,
    poll: Poll,
    persons: Sequence[Person],
    model: Frozen,
    lora: models.LoraConfig,
    base: str,
    folder: Path,
) -> None:
    """Writes every adapter as a PEFT folder: population, group1, ..., and person0, ...

    Args:
      levels: the adapters.
      poll: has the names of the groups, which are written to names.json beside the folders.
      persons: whose adapters these are; the folder of a person has the person's number in the poll.
      model: the frozen model.
      lora: the config of the adapters.
      base: its folder or its name on the hub.
      folder: the folder for all of them.
    """
    num_layers = model.config.num_layers
    is_folder = not base.endswith(".gguf")  # PEFT finds no base in a GGUF file
    named = {"population": levels.population}
    for number in range(len(poll.groups)):
        named[f"group{1 + number}"] = jax.tree.map(lambda x, n=number: x[n], levels.groups)
    for number, person in enumerate(persons):
        named[f"person{person.name}"] = jax.tree.map(lambda x, n=number: x[n], levels.persons)
    for name, own in named.items():
        models.save_lora(
            folder / name,
            model.config,
            ensembles.whole_adapters(own, num_layers - 1),
            lora,
            base=base if is_folder else None,
        )
    groups = {f"group{1 + number}": group for number, group in enumerate(poll.groups)}
    of_person = {f"person{p.name}": f"group{p.group}" if p.group else None for p in persons}
    run_folder.write_json(folder / "names.json", {"groups": groups, "group_of": of_person})


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
    for measure, head in (("kl", "head"), ("group_kl", "group_difference")):
        less = column(f"adapters/{measure}") - column(f"{head}/{measure}")
        summary[f"adapters less {head}/{measure}"] = mean_interval(less)
    return summary


def tables(config: Config, summary: dict[str, Any]) -> list[Table]:
    """Returns the table of shares and that of persons."""
    shares = Table(
        title=f"{config.dataset}, new questions: means over {config.num_seeds} divisions [95%]",
        caption="KL(people's shares || model) in nats",
    )
    for title in ("method", "KL, everybody", "KL, each group"):
        shares.add_column(title, justify="left" if title == "method" else "right")
    rows = {
        "uniform": ("uniform/kl", "uniform/group_kl"),
        "head": ("head/kl", "head/group_kl"),
        "head, group_difference": ("group_difference/kl", "group_difference/group_kl"),
        "the population's adapter": ("adapters/kl", "adapters/blind_group_kl"),
        "each group's adapter": ("", "adapters/group_kl"),
        "adapter less head": ("adapters less head/kl", ""),
        "less group_difference": ("", "adapters less group_difference/group_kl"),
    }
    for title, names in rows.items():
        shares.add_row(title, *(format_interval(summary.get(name)) for name in names))
    persons = Table(
        title="log-loss of a person's answer to a new question, nats",
        caption="saved: over 0 answers; own: over the group's adapter of the same fit",
    )
    persons.add_column("known answers of the person")
    for title in ("adapters", "saved", "own", "heads", "saved"):
        persons.add_column(title, justify="right")

    def add(title: str, own: Sequence[str], of_heads: Sequence[str]) -> None:
        shown = [f"persons/{name}" for name in own] + [f"head_persons/{name}" for name in of_heads]
        persons.add_row(title, *(format_interval(summary.get(name)) for name in shown))

    for n in sorted({0, *config.numbers_of_answers}):
        both = [f"log_loss_{n}", f"gain_{n}"] if n else ["log_loss_0", ""]
        add(str(n), [*both, f"own_gain_{n}"], both)
    without = ["blind_log_loss_0", ""]
    add("0, without the group", [*without, ""], without)
    return [shares, persons]


if __name__ == "__main__":
    binary.main(Config, experiment)
