"""How a tree over tokens is searched: the policies of mctx, at a KL coefficient."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from shatter.inference.importance import has_mass
from shatter.types import Array, Key

TreePolicy = Callable[..., Any]
"""`(key, root, recurrent_fn, *, num_simulations, num_actions, max_depth, is_guided) ->
mctx.PolicyOutput`; `is_guided` says whether there is a twist."""


def gumbel_muzero(*, gumbel_scale: float = 1.0, max_num_considered_actions: int = 16) -> TreePolicy:
    """Returns the policy of Gumbel MuZero, at a KL coefficient instead of a rescaled value.

    Among the tokens that sequential halving leaves it takes the one with the largest `g + log p0 +
    Q`, g Gumbel noise and Q the value in units of beta. With the exact Q = log psi of all tokens
    that is a sample of p0 psi, and with `gumbel_scale = 0` its mode. Q is the mean of what was
    found below a token, so it is exact for the last token of a document and below psi before it.

    Source: Danihelka, Guez, Schrittwieser, Silver, Policy improvement by planning with Gumbel,
    https://openreview.net/forum?id=bERaNdoegnO.

    Args:
      gumbel_scale: scale of the noise; 0 = nothing is drawn.
      max_num_considered_actions: tokens that sequential halving starts with.

    Returns:
      The policy.
    """
    mctx = import_mctx()

    def policy(key: Key, root: Any, recurrent_fn: Any, *, is_guided: bool, **sizes: int) -> Any:
        return mctx.gumbel_muzero_policy(
            (),
            key,
            root,
            recurrent_fn,
            sizes["num_simulations"],
            max_depth=sizes["max_depth"],
            qtransform=_guided_values if is_guided else _mixed_values,
            max_num_considered_actions=min(max_num_considered_actions, sizes["num_actions"]),
            gumbel_scale=gumbel_scale,
        )

    return policy


def muzero(
    *, pb_c_init: float = 1.25, dirichlet_fraction: float = 0.0, temperature: float = 0.0
) -> TreePolicy:
    """Returns the policy of MuZero: the token that was visited most, values rescaled to [0, 1].

    Source: Schrittwieser et al., Mastering Atari, Go, Chess and Shogi by Planning with a Learned
    Model, https://arxiv.org/abs/1911.08265.

    Args:
      pb_c_init: how much the prior counts.
      dirichlet_fraction: share of noise in the prior of the root.
      temperature: of the counts by which the token is drawn; 0 = the largest.

    Returns:
      The policy.
    """
    mctx = import_mctx()

    def rescaled(tree: Any, node: Array) -> Array:
        values = _guided_values(tree, node)
        is_possible = has_mass(values)
        low = jnp.min(jnp.where(is_possible, values, jnp.inf))
        high = jnp.max(jnp.where(is_possible, values, -jnp.inf))
        scaled = (values - low) / jnp.maximum(high - low, 1e-8)
        return jnp.where(is_possible, scaled, 0.0)

    def policy(key: Key, root: Any, recurrent_fn: Any, *, is_guided: bool, **sizes: int) -> Any:
        siblings = mctx.qtransform_by_parent_and_siblings
        return mctx.muzero_policy(
            (),
            key,
            root,
            recurrent_fn,
            sizes["num_simulations"],
            max_depth=sizes["max_depth"],
            qtransform=rescaled if is_guided else siblings,
            pb_c_init=pb_c_init,
            dirichlet_fraction=dirichlet_fraction,
            temperature=temperature,
        )

    return policy


def _guided_values(tree: Any, node: Array) -> Array:
    """Returns the value of every action of a node: what was found, or what the twist says."""
    is_visited = tree.children_visits[node] > 0
    return jnp.where(is_visited, tree.qvalues(node), tree.embeddings.log_twists[node])


def _mixed_values(tree: Any, node: Array) -> Array:
    """Returns values completed as in the source, without mctx's scaling by visits."""
    values = import_mctx().qtransform_completed_by_mix_value(
        tree, node, value_scale=1.0, maxvisit_init=1.0, rescale_values=False
    )
    return values / (1.0 + jnp.max(tree.children_visits[node]))


def import_mctx() -> Any:
    """Imports mctx on first use, because it is optional.

    Returns:
      The module.

    Raises:
      ImportError: if it is not installed.
    """
    try:
        import mctx
    except ImportError as error:
        raise ImportError(
            f"shatter.search.tree_search needs mctx, which cannot be imported ({error}): "
            "pip install 'shatter-lm[search]'"
        ) from error
    return mctx
