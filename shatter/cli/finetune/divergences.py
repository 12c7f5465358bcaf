"""How far a model has moved from its reference, in both directions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from shatter import documents
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Sampled, compiler_options, forward_kl
from shatter.cli.finetune.task import Pretrained
from shatter.types import Params


def make_divergences(
    config: Config, model: Pretrained
) -> Callable[[Params, Sampled, Sampled], dict[str, float]]:
    """Both divergences of a model from the reference, with standard errors, nats a document.

    `kl` is KL(model || reference), the mean of log pi(x) - log p0(x) over samples of the model, the
    quantity of KL-regularised RL; `kl_forward` is KL(reference || model), exact along every sample
    of the reference, ILHF's regulariser.

    Args:
      config: the config.
      model: the pretrained model, which is the reference.

    Returns:
      `(params, samples of the reference, samples of the model) -> numbers by name`.
    """

    @partial(jax.jit, compiler_options=compiler_options(model))
    def chunk(params: Params, pretrained: Params, ref: Sampled, own: Sampled) -> tuple:
        logits = model.lm.apply(pretrained, own.tokens, valid=own.valid)
        reverse = own.log_probs - documents.log_prob(logits, own.tokens, own.mask)
        return forward_kl(model, params, pretrained, ref), reverse

    def divergences(params: Params, ref: Sampled, own: Sampled) -> dict[str, float]:
        num = min(len(ref.tokens), len(own.tokens))
        size = min(config.kl_batch_size, num)
        found: list[Any] = []
        for first in range(0, num - size + 1, size):
            take = lambda leaf, first=first: leaf[first : first + size]
            parts = (jax.tree.map(take, ref), jax.tree.map(take, own))
            found.append(chunk(params, model.params, *parts))
        forward, reverse = (np.concatenate(column) for column in zip(*found, strict=True))
        error = lambda values: float(np.std(values) / np.sqrt(len(values)))
        return {
            "kl": float(np.mean(reverse)),
            "kl_standard_error": error(reverse),
            "kl_forward": float(np.mean(forward)),
            "kl_forward_standard_error": error(forward),
        }

    return divergences
