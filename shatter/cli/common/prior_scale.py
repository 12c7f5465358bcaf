"""The scale of the prior of an ensemble of adapters, in the adapters' own units."""

import jax
import jax.numpy as jnp
import numpy as np

from shatter import ensembles, evaluation, models
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import Table
from shatter.cli.common.learners import Setting, make_learner
from shatter.types import Array, Key, Params


def adapter_prior_scale(
    key: Key,
    setting: Setting,
    transformer: models.TransformerConfig,
    base: Params,
    table: Table,
    pairs: np.ndarray,
) -> float:
    """Finds the scale of the adapters' prior at which members spread as `setting` says.

    Their log-odds of pairs of texts then have the standard deviation sqrt(2) times
    `setting.prior_scale`, as those of heads on features of unit variance have.

    Args:
      key: a typed key; draws the members.
      setting: a setting of adapters.
      transformer: the config of the frozen model.
      base: its parameters above the table's hidden states.
      table: the table of the texts.
      pairs: int `[P, 2]`, pairs of texts. A text that is in several is computed once.

    Returns:
      The scale.
    """
    numbers, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    target = 2**0.5 * setting.prior_scale

    def find(key: Key, base: Params, table: Table) -> Array:
        def spread(prior_scale: Array) -> Array:
            learner = make_learner(
                setting, transformer, base, num_features=0, prior_scale=prior_scale
            )
            shared, own = learner.ensemble.init(key)
            utilities = learner.utilities((shared, table), own, jnp.arange(numbers.size))
            return evaluation.disagreement(utilities[:, places])

        return ensembles.prior_scale_for(spread, target, low=1e-3, high=1e2, num_steps=14)

    of_pairs = {name: values[numbers] for name, values in table.items()}
    # Compiled with the base as an argument, because it would otherwise be copied into the program.
    return float(jax.jit(find, compiler_options=compiler_options())(key, base, of_pairs))
