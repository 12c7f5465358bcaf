"""Adam as every objective uses it."""

import optax

from experiments.rlhf.config import Config

TRANSFORMER_RATE = 0.1  # a transformer's share of the learning rate of a table's logits


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """Returns Adam for a table; its learning rate falls to 0 within `num_steps` by a cosine."""
    return _adam(config.learning_rate, num_steps)


def make_policy_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """Returns Adam for the policy, which may be a transformer."""
    scale = 1.0 if config.model == "tabular" else TRANSFORMER_RATE
    return _adam(scale * config.learning_rate, num_steps)


def _adam(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
