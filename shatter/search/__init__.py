"""Search over a language model with a reward, at a budget of tokens and without training.

A next-token model is the dynamics: it says which responses there are, and a reward says which of
them are good. All functions have one signature, `(lm, params, key, prompt, *, reward, budget,
max_length, ...) -> Found`.
"""

from shatter.search.base import Found, Reward
from shatter.search.beam import beam_search
from shatter.search.sampling import best_of_n, sequential_monte_carlo, value_guided
from shatter.search.tree import tree_search
from shatter.search.tree_policies import TreePolicy, gumbel_muzero, muzero

__all__ = [
    "Found",
    "Reward",
    "TreePolicy",
    "beam_search",
    "best_of_n",
    "gumbel_muzero",
    "muzero",
    "sequential_monte_carlo",
    "tree_search",
    "value_guided",
]
