"""Makes the inputs of all seeds: divisions of the data, and what the frozen model says of texts."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.active.config import Setting
from experiments.active.process import Problem
from experiments.active.splits import Division, load_divisions
from experiments.common.features import components, text_features
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Frozen, hidden_table
from shatter.cli.common.learners import layers_of
from shatter.cli.common.prior_scale import adapter_prior_scale
from shatter.cli.common.votes import Item
from shatter.types import Params

SCALE_PAIRS = 64  # pairs of the pool by which the prior scale of adapters is set


def make_inputs(setting: Setting, model: Frozen, folder: Path) -> Problem:
    """Makes the inputs of all seeds.

    Args:
      setting: of the ensemble that learns.
      model: the frozen model.
      folder: of the run, which keeps the hidden states of adapters.

    Returns:
      Problems with a leading axis S on every leaf; features have mean 0 and mean square 1 over the
      texts of the seed's pool.

    Raises:
      UsageError: if the data cannot be used, or the pool is smaller than the budget.
    """
    config = setting.config
    seeds = range(config.seed, config.seed + setting.num_seeds)
    items, division = load_divisions(
        config.dataset, seeds, data_dir=config.data_dir, held_out_pairs=setting.held_out_pairs
    )
    smallest = int((division.pool.votes.sum(axis=-1) > 0).sum(axis=-1).min())
    if setting.budget > smallest:
        raise UsageError(
            f"--until ends at {setting.budget} queries, and a pool of {config.dataset} has "
            f"{smallest}: lower --until"
        )
    features = text_features(
        model, items, num_depths=config.num_depths, max_length=config.max_length
    )
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(np.array(seeds))
    division = _with_int32(division)
    log_prob = features["log_prob"][division.texts]
    base: Params = ()
    scale: Params = np.full(len(seeds), setting.prior_scale, np.float32)
    if setting.kind == "adapters":
        table, base, scale = _adapter_inputs(setting, model, items, division, folder)
    else:
        of_seeds = [
            components(features["features"][texts], in_pool, config.num_components)
            for texts, in_pool in zip(division.texts, division.in_pool, strict=True)
        ]
        table = {"features": np.stack(of_seeds)}
    return Problem(keys, table, log_prob, division, base, scale)


def _with_int32(division: Division) -> Division:
    """Returns the division with int64 arrays cast to int32, which is what JAX makes of them."""
    cast = lambda a: a.astype(np.int32) if a.dtype == np.int64 else a
    return jax.tree.map(cast, division)


def _adapter_inputs(
    setting: Setting, model: Frozen, items: list[Item], division: Division, folder: Path
) -> tuple[dict[str, np.ndarray], Params, np.ndarray]:
    """Returns tables of hidden states, the base above them, and the prior's scales, all `[S]`."""
    num_seeds = setting.num_seeds
    hidden = hidden_table(
        model,
        items,
        max_length=setting.config.adapter_length,
        layer=setting.learner.cut(model.config.num_layers),
        file=folder / "hidden.npz",
    )
    base = layers_of(setting.learner, model.config).upper_params(model.params)
    pairs = division.texts[0][division.pool.items[0, :SCALE_PAIRS]]
    key = jax.random.key(setting.config.seed)
    scale = adapter_prior_scale(key, setting.learner, model.config, base, hidden, pairs)
    table = {name: values[division.texts] for name, values in hidden.items()}
    copies = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_seeds, *leaf.shape)), base)
    return table, copies, np.full(num_seeds, scale, np.float32)
