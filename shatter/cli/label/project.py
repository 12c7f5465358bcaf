"""An open project: the frozen model, the pool, what is known of its texts, the ensemble's state."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter import training
from shatter.cli.common import checksums, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import (
    Frozen,
    Item,
    Table,
    feature_table,
    hidden_table,
    standardised,
    weights_hash,
)
from shatter.cli.common.learners import (
    Setting,
    adapter_prior_scale,
)
from shatter.cli.label.candidates import sample_candidates
from shatter.cli.label.checkpoints import Ensemble, restored
from shatter.cli.label.compiled import programs
from shatter.cli.label.config import Project, project_of, setting_of
from shatter.cli.label.folder import (
    PATHS,
    assert_answers_there,
    check,
    check_records,
    imported,
    known_queries,
    mend_by_import,
    recorded_facts,
    remember_paths,
    tidy,
    with_known_paths,
)
from shatter.cli.label.inputs import Inputs, assert_encodable_imports, assert_unchanged, read_inputs
from shatter.cli.label.pool import Pool, draw_queries, make_pool
from shatter.data.atomic import write_atomically
from shatter.data.layouts import text_key
from shatter.types import Key, Params

SAMPLING = ("num_samples", "max_completion_length")  # flags that count until there are candidates
ADAPTERS = ("utility", "utility_scale", "lora_r", "lora_target_modules", "adapted_layers")
SCALE_PAIRS = 64  # of the pool, by which the prior scale of adapters is set


class Bench(NamedTuple):
    """An open project.

    Attributes:
      config: the project's flags.
      folder: its folder.
      inputs: the frozen model and the files.
      pool: what can be asked about.
      items: the pool's texts, then those of the held-out files, then those of imported queries.
      numbers: the number of each text in `items`, by `item_key`.
      prior_scale: of the ensemble's own function.
      start: the members before any answer.
      ensemble: the ensemble as it stands.
    """

    config: Project
    folder: Path
    inputs: Inputs
    pool: Pool
    items: list[Item]
    numbers: dict[str, int]
    prior_scale: float
    start: training.Members
    ensemble: Ensemble


def utilities(bench: Bench, items: np.ndarray) -> np.ndarray:
    """Returns each member's utility of texts, `[M, ...]`, nats; padded to powers of two inside."""
    flat = np.zeros(_power_of_two(items.size), np.int64)
    flat[: items.size] = items.ravel()
    run = programs(setting_of(bench.config), bench.inputs.model.config).utilities
    members = bench.ensemble.members
    found = run(bench.prior_scale, members.shared, members.states.params, flat)
    return np.asarray(found)[:, : items.size].reshape(-1, *items.shape)


def learn(bench: Bench, store: training.Store, key: Key) -> training.Members:
    """Returns the members of a project after another call of their learner.

    Args:
      bench: the project.
      store: the answers to learn from, with the members' weights.
      key: a typed key.

    Returns:
      The members.
    """
    run = programs(setting_of(bench.config), bench.inputs.model.config).learn
    shared, anchors, states = bench.ensemble.members
    states = run(bench.prior_scale, shared, anchors, states, store, key)
    return bench.ensemble.members._replace(states=states)


def item_key(item: Item) -> str:
    """Returns a text under its prompt, as a key."""
    return json.dumps([text_key(part) for part in item])


def open_project(config: Project, like: Bench | None = None) -> Bench:
    """Opens a project, or begins it.

    Args:
      config: its flags; the folder, if it exists, must have been made by the same.
      like: an open project; where its flags are the same but for the seed its inputs are used
        again, and what is known of its texts where they are the same.

    Returns:
      The project, with the ensemble as it stands.

    Raises:
      UsageError: if a file cannot be used, or the folder is that of another project, or the model
        or the pool has changed since. A project that cannot begin leaves no folder.
    """
    check_records(config.project)
    assert_answers_there(Path(config.project))
    config = _as_begun(with_known_paths(project_of(config)))
    setting, folder = setting_of(config), Path(config.project)
    if like and replace(config, seed=0, project="") != replace(like.config, seed=0, project=""):
        like = None
    inputs = like.inputs if like else read_inputs(config)
    model, found = inputs.model, inputs.pool_file
    assert_unchanged(config, inputs)
    kept, sampled = folder / "candidates.jsonl", None
    if found.prompts and not kept.exists():
        sampled = sample_candidates(config, model, found.prompts)
    _begin(config, folder, inputs)
    if sampled is not None:
        write_atomically(kept, sampled)
        checksums.seal(kept)
    if found.prompts:
        check(kept, mend_by_import(folder))
    pool = like.pool if like and not found.prompts else make_pool(found, kept)
    items = list(pool.items)
    numbers = {item_key(item): number for number, item in enumerate(items)}
    rows = (row for rows in inputs.held_out.values() for row in rows)
    wanted = [(row.prompt, text) for row in rows for text in row.completions]
    queries = imported(known_queries(folder))
    wanted += [(query.prompt, text) for query in queries for text in query.completions]
    for item in wanted:
        if numbers.setdefault(item_key(item), len(items)) == len(items):
            items.append(item)
    if like and (like.items, like.pool.items) == (items, pool.items):
        table = like.start.shared[1]
    else:
        try:
            table = jax.device_put(_table(config, setting, model, folder, items, len(pool.items)))
        except UsageError:
            assert_encodable_imports(config, model, queries)
            raise
    prior_scale = _prior_scale(config, setting, model, pool, folder, inputs.base, table)
    start = _start(config, setting, model, inputs.base, table, prior_scale)
    ensemble = restored(folder, start)
    return Bench(config, folder, inputs, pool, items, numbers, prior_scale, start, ensemble)


def _as_begun(config: Project) -> Project:
    """Returns a config in which flags that cannot change anything any more are as they were."""
    found = recorded_facts(config.project) or {}
    kept = (Path(config.project) / "candidates.jsonl").exists()
    idle = [*(SAMPLING if kept else ()), *(ADAPTERS if config.ensemble != "adapters" else ())]
    known: dict[str, Any] = {
        name: tuple(found[name]) if isinstance(found[name], list) else found[name]
        for name in idle
        if name in found
    }
    return replace(config, **known)


def _begin(config: Project, folder: Path, inputs: Inputs) -> None:
    """Makes the folder of a project, or compares it, and removes what killed processes left."""
    found = recorded_facts(folder)
    facts: dict[str, Any] = dict(inputs.facts)
    if found is None:
        facts["template_date"] = config.template_date
    else:  # an older version recorded fewer
        facts = {name: fact for name, fact in facts.items() if name in found}
    apart = ("project", *PATHS)
    run_folder.begin_or_resume(config.project, config, apart=apart, flag="--project", **facts)
    if found is None:
        checksums.seal(folder / "config.json")
    remember_paths(config, folder, inputs.held_out_facts)
    tidy(folder)


def members_hash(bench: Bench) -> str:
    """sha256 of the frozen model and of all members."""
    params = bench.ensemble.members.states.params
    both = bench.inputs.facts["weights"] + weights_hash(params)
    return hashlib.sha256(both.encode()).hexdigest()


def _table(
    config: Project,
    setting: Setting,
    model: Frozen,
    folder: Path,
    items: Sequence[Item],
    num_pool: int,
) -> Table:
    """Returns what the frozen model says of all texts; that of the pool is computed once."""
    (folder / "tables").mkdir(exist_ok=True)
    parts = []
    for name, some in (("pool", items[:num_pool]), ("others", items[num_pool:])):
        file = folder / "tables" / f"{name}.npz"
        if not some:
            continue
        if setting.kind == "adapters":
            layer = model.config.num_layers - setting.adapted_layers
            parts.append(
                hidden_table(model, some, max_length=config.max_length, layer=layer, file=file)
            )
        else:
            parts.append(feature_table(model, some, max_length=config.max_length, file=file))
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if setting.kind != "adapters":
        features = table.pop("features")
        return {"features": standardised(features, features[:num_pool]).astype(np.float32)}
    return table


def _prior_scale(
    config: Project,
    setting: Setting,
    model: Frozen,
    pool: Pool,
    folder: Path,
    base: Params,
    table: Table,
) -> float:
    """Of heads and epinets the config's; of adapters found in function space, once."""
    if setting.kind != "adapters":
        return setting.prior_scale
    file = folder / "prior_scale.json"
    if not file.exists():
        rng = np.random.default_rng(config.seed)
        pairs = draw_queries(
            pool, rng, num=SCALE_PAIRS, num_responses=2, asked=set(), recorded=False
        )
        key = jax.random.fold_in(jax.random.key(config.seed), 3)
        found = adapter_prior_scale(key, setting, model.config, base, table, jnp.asarray(pairs))
        run_folder.write_json(file, float(found))
        checksums.seal(file)
    check(file, "delete it, and it is computed anew")
    return float(run_folder.read_json(file, float))


def _start(
    config: Project,
    setting: Setting,
    model: Frozen,
    base: Params,
    table: Table,
    prior_scale: float,
) -> training.Members:
    """Returns the members before any answer."""
    init = programs(setting, model.config).init
    width = table["features"].shape[-1] if "features" in table else 0
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    members = init(base, width, prior_scale, key)
    drawn = base if setting.kind == "adapters" else members.shared[0]
    return members._replace(shared=(drawn, table))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 15).bit_length()
