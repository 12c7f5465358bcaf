"""Adapters of a population, its groups and its persons as PEFT folders."""

from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.people.adapters.config import Config
from experiments.people.adapters.hierarchy import Levels
from experiments.people.persons import Person
from experiments.people.polls import Poll
from shatter import ensembles, models
from shatter.cli.common import run_folder
from shatter.cli.common.frozen import Frozen


def save_levels(
    config: Config,
    levels: Levels,
    poll: Poll,
    persons: Sequence[Person],
    model: Frozen,
    base: str,
    folder: Path,
) -> None:
    """Writes every adapter as a PEFT folder: population, group1, ..., and person0, ...

    Args:
      config: has the config of the adapters.
      levels: the adapters.
      poll: has the names of the groups, which are written to names.json beside the folders.
      persons: whose adapters these are; the folder of a person has the person's number in the poll.
      model: the frozen model.
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
            config.lora,
            base=base if is_folder else None,
        )
    groups = {f"group{1 + number}": group for number, group in enumerate(poll.groups)}
    of_person = {f"person{p.name}": f"group{p.group}" if p.group else None for p in persons}
    run_folder.write_json(folder / "names.json", {"groups": groups, "group_of": of_person})
