"""How far a model has moved from its reference, measured in both directions."""

import functools
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from shatter import documents
from shatter.cli.common import processes
from shatter.cli.finetune import learning
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.history import Record
from shatter.cli.finetune.learning import Sampled, Trainable
from shatter.cli.finetune.pretrained import Pretrained, compiler_options, without_arrays
from shatter.cli.finetune.task import Task, unique_prompts
from shatter.types import Params


def make_divergences(config: Config, task: Task) -> tuple[Callable[[Trainable], Record], Sampled]:
    """Samples from the reference, and makes a function that measures divergences from it.

    `kl` is KL(model || reference), the mean of log pi(x) - log p0(x) over samples of the model,
    which KL-regularised reinforcement learning penalises. `kl_forward` is KL(reference || model),
    computed exactly along every sample of the reference, which is ILHF's regulariser.

    Args:
      config: the config.
      task: the model, which is the reference, and the prompts.

    Returns:
      `trainable -> metrics`, both divergences and their standard errors by name, nats a document;
      and the samples of the reference.
    """
    model, prompts = task.model, unique_prompts(task)
    order = np.random.default_rng(config.seed).permutation(len(prompts))[: config.kl_samples]
    sampled = [prompts[n] for n in order]
    draw = learning.make_sampler(
        model, num_samples=-(-config.kl_samples // len(sampled)), max_length=config.kl_length
    )
    measure = _make_measure(config, model)
    ref_key, own_key = jax.random.split(jax.random.key(config.seed))
    samples = draw(model.params, ref_key, sampled)

    def divergences(trainable: Trainable) -> Record:
        params = learning.assemble(model, trainable, model.params)
        return measure(params, samples, draw(params, own_key, sampled))

    return divergences, samples


def _make_measure(
    config: Config, model: Pretrained
) -> Callable[[Params, Sampled, Sampled], Record]:
    """Makes `(params, samples of the reference, samples of the model) -> metrics`."""
    both = _program(without_arrays(model))

    def measure(params: Params, ref: Sampled, own: Sampled) -> Record:
        num = min(len(ref.tokens), len(own.tokens))
        size = min(config.kl_batch_size, num)
        parts = []
        for first in range(0, num - size + 1, size):
            take = lambda leaf, first=first: leaf[first : first + size]
            parts.append(
                both(params, model.params, jax.tree.map(take, ref), jax.tree.map(take, own))
            )
        columns = zip(*processes.fetch(parts), strict=True)
        forward, reverse = (np.concatenate(column) for column in columns)
        standard_error = lambda values: float(np.std(values) / np.sqrt(len(values)))
        return {
            "kl": float(np.mean(reverse)),
            "kl_standard_error": standard_error(reverse),
            "kl_forward": float(np.mean(forward)),
            "kl_forward_standard_error": standard_error(forward),
        }

    return measure


@functools.cache
def _program(model: Pretrained) -> Callable[[Params, Params, Sampled, Sampled], tuple]:
    """Compiles log-ratios along samples of the reference and of the model, forward and reverse."""

    @partial(jax.jit, compiler_options=compiler_options(model))
    def both(params: Params, pretrained: Params, ref: Sampled, own: Sampled) -> tuple:
        ref_log_probs = documents.document_log_probs(
            model.lm, pretrained, own.tokens, own.mask, valid=own.valid
        )
        reverse = own.log_probs - ref_log_probs
        return learning.forward_kl(model, params, pretrained, ref), reverse

    return both
