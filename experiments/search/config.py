"""The config of `experiments.search.run`."""

import dataclasses

SEARCHES = (
    "best_of_n",
    "beam",
    "beam_by_value",
    "guided",
    "smc",
    "smc_without_twist",
    "tree_gumbel",
    "tree_muzero",
)
TRAINED = "rloo"
BEST_OF_TRAINED = "rloo_best_of_n"
"""What comes with `rloo`: the best of n samples of the trained policy, computed exactly."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What does a search with a learned reward give for its tokens, beside training with it?

    A small model is given, of which every document can be enumerated, and a reward model that has
    learned from a few choices between its samples. Every search looks for documents that this
    reward likes, at budgets of tokens; a policy that is trained with it says one document. What
    counts is the gold reward, by which the choices were made.
    """

    arms: tuple[str, ...] = (*SEARCHES, TRAINED)
    """Arms to run: best_of_n, beam, beam_by_value, guided, smc, smc_without_twist, tree_gumbel,
    tree_muzero, rloo. best_of_n is always among them."""

    run_dir: str = "runs/search"
    """Run folder; one that exists is resumed, given the same flags, and may get more arms."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, each with its own model, gold reward and choices; all run in one call an arm."""

    num_draws: int = 64
    """Searches of every seed at every budget, with keys of their own."""

    vocab_size: int = 5
    """Tokens; token 0 ends a document."""

    max_length: int = 5
    """The largest number of tokens of a document."""

    budgets: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320, 640)
    """Budgets of a search: laws of a next token. Trees need two a token, so they begin there."""

    num_comparisons: int = 100
    """Choices between two samples of the model that the reward model learns from."""

    misfit: float = 0.5
    """Share of the gold reward's variance, about, that no reward model can learn here, because it
    is not linear in the counts of tokens and of pairs of tokens."""

    beta: float = 0.3
    """KL coefficient: of the twists, of the trees and of the trained policy. Rewards have a
    standard deviation of about 1 under the model."""

    twist: str = "learned"
    """learned: by `losses.contrastive_twist_loss` from samples of the model. exact: by
    enumeration, as a control."""

    twist_steps: int = 200
    """Adam steps of the learned twist."""

    twist_rate: float = 0.1
    """Adam's, of the learned twist."""

    policy_steps: int = 400
    """Adam steps of the policy, trained by RLOO with the KL from the model."""

    policy_rate: float = 0.05
    """Adam's, of the policy."""

    batch_size: int = 32
    """Samples a step, of the twist and of the policy."""
