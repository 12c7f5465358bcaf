"""What an ensemble starts from: the table of texts, the scale of its prior and its members."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shatter import training
from shatter.cli.common import checksums, run_folder
from shatter.cli.common.frozen import Item, Table, feature_table, hidden_table, standardised
from shatter.cli.common.prior_scale import adapter_prior_scale
from shatter.cli.label.compiled import programs, width
from shatter.cli.label.config import ProjectConfig, setting_of
from shatter.cli.label.folder import verify
from shatter.cli.label.inputs import Inputs
from shatter.cli.label.keys import Use, project_key
from shatter.cli.label.pool import Pool, draw_queries

SCALE_PAIRS = 64  # pairs of the pool by which the prior scale of adapters is set


class Start(NamedTuple):
    """An ensemble before any answer.

    Attributes:
      prior_scale: the scale of the prior, in the ensemble's own units.
      members: the members and their learners; `shared` is `(the ensemble's shared, table)`.
    """

    prior_scale: float
    members: training.Members


def make_table(
    config: ProjectConfig, inputs: Inputs, items: Sequence[Item], num_pool: int
) -> Table:
    """Returns what the frozen model computes for every text; that of the pool is computed once.

    Args:
      config: the project's flags.
      inputs: the model.
      items: the texts, those of the pool first.
      num_pool: how many texts are of the pool; they standardise the features.

    Returns:
      With adapters as in `hidden_table`, else the features `[N, F]`.

    Raises:
      UsageError: if a file of the project is damaged, or a text cannot be encoded.
    """
    setting, model = setting_of(config), inputs.model
    folder = Path(config.project) / "tables"
    folder.mkdir(exist_ok=True)
    parts = []
    for name, texts in (("pool", items[:num_pool]), ("others", items[num_pool:])):
        file = folder / f"{name}.npz"
        if not texts:
            continue
        if setting.kind == "adapters":
            layer = setting.cut(model.config.num_layers)
            parts.append(
                hidden_table(model, texts, max_length=config.max_length, layer=layer, file=file)
            )
        else:
            parts.append(feature_table(model, texts, max_length=config.max_length, file=file))
    table = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    if setting.kind != "adapters":
        features = table.pop("features")
        return {"features": standardised(features, features[:num_pool]).astype(np.float32)}
    return table


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Joins arrays of texts `[N, ...]`, those of tokens `[N, T, ...]` padded to the longest T."""
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    rest = [(0, 0)] * (parts[0].ndim - 2)
    pad = lambda part: np.pad(part, [(0, 0), (0, width - part.shape[1]), *rest])
    return np.concatenate([pad(part) for part in parts])


def make_start(config: ProjectConfig, inputs: Inputs, pool: Pool, table: Table) -> Start:
    """Draws the members of a project from their prior.

    Args:
      config: the project's flags.
      inputs: the model.
      pool: the pool.
      table: the table of its texts, by `make_table`.

    Returns:
      The ensemble before any answer.
    """
    setting = setting_of(config)
    prior_scale = _prior_scale(config, inputs, pool, table)
    init = programs(setting, inputs.model.config).init
    key = project_key(config.seed, Use.MEMBERS)
    members = init(inputs.base, width(table), prior_scale, key)
    # The base itself, because `init` returns a copy of it.
    shared = inputs.base if setting.kind == "adapters" else members.shared[0]
    return Start(prior_scale, members._replace(shared=(shared, table)))


def _prior_scale(config: ProjectConfig, inputs: Inputs, pool: Pool, table: Table) -> float:
    """Returns --prior_scale, which for adapters is translated to their own units once."""
    setting = setting_of(config)
    if setting.kind != "adapters":
        return setting.prior_scale
    file = Path(config.project) / "prior_scale.json"
    if not file.exists():
        rng = np.random.default_rng(config.seed)
        pairs = draw_queries(
            pool, rng, num=SCALE_PAIRS, num_responses=2, asked=set(), recorded=False
        )
        key = project_key(config.seed, Use.PRIOR_SCALE)
        scale = adapter_prior_scale(
            key, setting, inputs.model.config, inputs.base, table, np.asarray(pairs)
        )
        run_folder.write_json(file, scale)
        checksums.seal(file)
    verify(file, "delete it, and it is computed anew")
    return float(run_folder.read_json(file, float))
