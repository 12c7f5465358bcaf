"""An open project: the model, the pool, the table of its texts, the state of the ensemble."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from shatter import training
from shatter.cli.common import checksums, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Item, Table, weights_hash
from shatter.cli.label.candidates import sample_candidates
from shatter.cli.label.checkpoints import EnsembleState, restored
from shatter.cli.label.compiled import programs
from shatter.cli.label.config import ProjectConfig, project_of, setting_of
from shatter.cli.label.folder import (
    assert_answers_there,
    candidate_file,
    imported,
    known_queries,
    mend_by_import,
    remove_leftovers,
    verify,
)
from shatter.cli.label.inputs import Inputs, assert_encodable_imports, assert_unchanged, read_inputs
from shatter.cli.label.pool import Pool, make_pool
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.records import (
    PATHS,
    as_recorded,
    check_records,
    recorded_facts,
    remember_paths,
    with_known_paths,
)
from shatter.cli.label.start import make_start, make_table
from shatter.data.atomic import write_atomically
from shatter.data.layouts import text_key

SAMPLING = ("num_samples", "max_completion_length")  # flags without effect after the sampling
ADAPTERS = ("utility", "utility_scale", "lora_r", "lora_target_modules", "adapted_layers")


class Project(NamedTuple):
    """An open project.

    Attributes:
      config: the project's flags.
      folder: its folder.
      inputs: the frozen model and the files.
      pool: what can be asked about.
      items: the pool's texts, then those of the held-out files, then those of imported queries.
      item_numbers: the number of each text in `items`, by `item_key`.
      prior_scale: the scale of the prior, in the ensemble's own units.
      start: the members before any answer.
      state: the present state of the ensemble.
    """

    config: ProjectConfig
    folder: Path
    inputs: Inputs
    pool: Pool
    items: list[Item]
    item_numbers: dict[str, int]
    prior_scale: float
    start: training.Members
    state: EnsembleState


def open_project(config: ProjectConfig, like: Project | None = None) -> Project:
    """Opens a project, or begins it.

    Args:
      config: its flags; if the folder exists, it must have been made with the same.
      like: an open project whose inputs are used again if its flags are the same but for the seed,
        and whose table is used again if its texts are the same.

    Returns:
      The project with the present state of its ensemble.

    Raises:
      UsageError: if a file cannot be used, the folder is that of another project, or the model or a
        file has changed since the project was begun. A project that cannot begin leaves no folder.
    """
    check_records(config.project)
    assert_answers_there(Path(config.project))
    config = _with_idle_flags(with_known_paths(project_of(config)))
    if like and replace(config, seed=0, project="") != replace(like.config, seed=0, project=""):
        like = None
    inputs = like.inputs if like else read_inputs(config)
    assert_unchanged(config, inputs)
    _begin_or_resume(config, inputs)
    folder, prompts = Path(config.project), inputs.pool_file.prompts
    is_shared = like is not None and not prompts  # candidates are sampled by each seed's own key
    pool = like.pool if like and is_shared else make_pool(inputs.pool_file, candidate_file(folder))
    queries = imported(known_queries(folder))
    items, numbers = _all_items(pool, inputs, queries)
    if like and (like.items, like.pool.items) == (items, pool.items):
        table: Table = like.start.shared[1]
    else:
        try:
            table = jax.device_put(make_table(config, inputs, items, len(pool.items)))
        except UsageError:
            assert_encodable_imports(config, inputs.model, queries)
            raise
    start = make_start(config, inputs, pool, table)
    state = restored(folder, start.members)
    return Project(
        config, folder, inputs, pool, items, numbers, start.prior_scale, start.members, state
    )


def _with_idle_flags(config: ProjectConfig) -> ProjectConfig:
    """Returns a config in which the flags that have no effect any more are as they were at first.

    These are the flags of sampling once there are candidates, the flags of adapters for another
    kind of ensemble, and the scale of utilities that have none.
    """
    recorded = recorded_facts(config.project) or {}
    is_sampled = candidate_file(Path(config.project)).exists()
    idle = [*(SAMPLING if is_sampled else ()), *(ADAPTERS if config.ensemble != "adapters" else ())]
    idle += [] if config.utility == "ratio" else ["utility_scale"]
    values: dict[str, Any] = {
        name: tuple(recorded[name]) if isinstance(recorded[name], list) else recorded[name]
        for name in idle
        if name in recorded
    }
    return replace(config, **values)


def _begin_or_resume(config: ProjectConfig, inputs: Inputs) -> None:
    """Makes the folder of a project, or compares it with the flags and removes leftovers in it."""
    folder, is_new = Path(config.project), recorded_facts(config.project) is None
    candidates, prompts = candidate_file(folder), inputs.pool_file.prompts
    # Before the folder is made, because a project that cannot begin leaves none.
    needs_candidates = bool(prompts) and not candidates.exists()
    sampled = sample_candidates(config, inputs.model, prompts) if needs_candidates else None
    run_folder.begin_or_resume(
        config.project,
        as_recorded(config),
        apart=("project", *PATHS),
        flag="--project",
        template_date=config.template_date,
        **inputs.facts,
    )
    if is_new:
        checksums.seal(folder / "config.json")
    remember_paths(config, folder, inputs.held_out_facts)
    remove_leftovers(folder)
    if sampled is not None:
        write_atomically(candidates, sampled)
        checksums.seal(candidates)
    if prompts:
        verify(candidates, mend_by_import(folder))


def _all_items(
    pool: Pool, inputs: Inputs, queries: Sequence[TextQuery]
) -> tuple[list[Item], dict[str, int]]:
    """Returns all texts of a project, each once, and their numbers by `item_key`."""
    items = list(pool.items)
    numbers = {item_key(item): number for number, item in enumerate(items)}
    rows = (row for rows in inputs.held_out.values() for row in rows)
    others = [(row.prompt, text) for row in rows for text in row.completions]
    others += [(query.prompt, text) for query in queries for text in query.completions]
    for item in others:
        if numbers.setdefault(item_key(item), len(items)) == len(items):
            items.append(item)
    return items, numbers


def utilities(project: Project, items: np.ndarray) -> np.ndarray:
    """Returns each member's utility of texts, `[M, ...]`, nats.

    Args:
      project: the project.
      items: int `[...]`, the numbers of the texts. A text that is there several times is computed
        once; the texts are padded to a power of two inside, so that few sizes are compiled.

    Returns:
      The utilities.
    """
    numbers, places = np.unique(items, return_inverse=True)
    padded = np.zeros(power_of_two(numbers.size, 16), np.int64)
    padded[: numbers.size] = numbers
    run = programs(setting_of(project.config), project.inputs.model.config).utilities
    members = project.state.members
    values = np.asarray(run(project.prior_scale, members.shared, members.states.params, padded))
    return values[:, places.reshape(items.shape)]


def item_key(item: Item) -> str:
    """Returns a dict key for a prompt and a completion."""
    return json.dumps([text_key(part) for part in item])


def members_hash(project: Project) -> str:
    """Returns the sha256 of the frozen model and of all members."""
    params = project.state.members.states.params
    both = project.inputs.facts["weights"] + weights_hash(params)
    return hashlib.sha256(both.encode()).hexdigest()


def power_of_two(number: int, smallest: int) -> int:
    """Returns the smallest power of two that is at least a number, and at least the smallest."""
    return 1 << (max(number, smallest) - 1).bit_length()
