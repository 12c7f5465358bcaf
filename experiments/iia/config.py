"""The config of `experiments.iia.run`."""

import dataclasses

from experiments.common.didactic import ModelKind


@dataclasses.dataclass(frozen=True)
class Config:
    """What near-duplicates do to everything that rests on Luce's rule.

    Messages are of two types, substitutes within a type; a share of the raters wants type 1. A
    query shows one message of type 1 and K - 1 of type 2. What each objective makes of the answers
    is computed exactly, and learned by language models from sampled choices; then the same where
    the messages of type 2 are less than perfect substitutes, where raters declare ties, and where
    they rank everything. Sizes, objectives' hyper-parameters and learners are ours.
    """

    share: float = 0.4
    """Share of the raters who want type 1, between 0 and 1; below a half they are the minority."""

    sizes: tuple[int, ...] = (2, 3, 4, 8, 16, 32)
    """Messages in a query, K; one of them is of type 1."""

    correlations: tuple[float, ...] = (0.0, 0.5, 0.75)
    """Correlations of a rater's utilities of two messages of type 2, between 0 (Luce's rule is
    true) and 1 (perfect substitutes); 1 is always among them."""

    objectives: tuple[str, ...] = ()
    """Objectives to fit and to train; none = all. Known: reward_model, ilhf, dpo, dpo_choice, ipo,
    slic."""

    run_dir: str = "runs/iia"
    """Run folder; one that exists is resumed, given the same flags."""

    learner: ModelKind = "tabular"
    """The language model that learns."""

    vocab_size: int = 8
    """Tokens V, even; a message is two of them, its type the half that the first is in, so there
    are V * V / 2 messages of either type."""

    beta: float = 0.5
    """KL coefficient of the trained objectives and of the policy that a reward model leads to."""

    delta: float = 1.0
    """The margin of slic, nats."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds; all of them, at every size and correlation, in one vmapped call an objective."""

    num_rounds: int = 20
    """Rounds of learning, with measures after each."""

    num_steps: int = 20
    """Adam steps a round."""

    num_queries: int = 64
    """Fresh queries a step, each answered by one choice."""

    learning_rate: float = 0.1
    """Adam's first, on logits, falling to 0 by a cosine; a transformer's is a twentieth of it."""

    chunk_rounds: int = 10
    """Rounds between checkpoints."""
