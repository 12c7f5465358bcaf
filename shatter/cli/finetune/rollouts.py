"""Completions that the model writes in training, with log-probs by the training forward pass."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter import data, documents, models, training
from shatter.cli.common import processes
from shatter.cli.common.sampling import Sampling, response_text
from shatter.cli.finetune import learning, places
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Trainable
from shatter.cli.finetune.pretrained import Pretrained, compiler_options, without_arrays
from shatter.cli.finetune.prompts import longest_prompt
from shatter.cli.finetune.rewards import Completion
from shatter.cli.finetune.token_scores import policy_and_values
from shatter.types import Array, Key, Params


class Rollouts(NamedTuple):
    """N completions of each of B prompts.

    Attributes:
      tokens: int `[B, N, T]`: padding, prompt, completion, padding.
      mask: bool `[B, N, T]`, true on the completion, with the token that ended it.
      valid: bool `[B, N, T]`, false on padding.
      log_probs: `[B, N, T]`, of the completion's tokens under the policy that drew them, computed
        by the forward pass of training, nats; 0 elsewhere. None = nothing reads them.
      ref_log_probs: `[B, N, T]`, under the reference, nats. None = nothing reads them.
      drawn_log_probs: `[B, N]`, of completions under the law that they were drawn from, as the
        sampler computed them, nats.
      values: `[B, N, T]`, of the states in which the completion's tokens were chosen; None = there
        is no value head.
    """

    tokens: Array
    mask: Array
    valid: Array
    log_probs: Array | None
    ref_log_probs: Array | None
    drawn_log_probs: Array
    values: Array | None = None


def make_sampling(config: Config, model: Pretrained, num_samples: int) -> Sampling:
    """Returns how completions are drawn.

    Args:
      config: the config.
      model: the pretrained model, with its tokenizer.
      num_samples: completions of each prompt.
    """
    ends = models.end_tokens(model.config, model.tokenizer)
    length, filters = config.max_completion_length, (config.top_k, config.top_p, config.min_p)
    return Sampling(num_samples, length, ends, config.temperature, *filters)


Draw = Callable[[Trainable, Key, Sequence[data.Encoded], int], Rollouts]
"""Draws completions of prompts that are padded to a length."""


class Passes(NamedTuple):
    """Whose log-probs of completions are computed; each costs a forward pass.

    Attributes:
      policy: those of the policy that drew, and its values.
      reference: those of the reference.
    """

    policy: bool
    reference: bool


BOTH = Passes(policy=True, reference=True)


def passes_in_training(config: Config) -> Passes:
    """Returns whose log-probs the updates of a step read.

    A step of one update takes the policy's from its own forward pass. Nothing weighs the
    reference's where beta is 0.
    """
    is_ppo = config.objective == "ppo"
    return Passes(is_ppo or config.num_iterations > 1, is_ppo or config.beta > 0)


def make_draw(config: Config, model: Pretrained, num_samples: int, passes: Passes = BOTH) -> Draw:
    """Makes a function that draws completions; it compiles one program per length of prompts.

    Args:
      config: the config.
      model: the pretrained model, on the devices; it is the reference.
      num_samples: completions of each prompt.
      passes: whose log-probs of the completions are computed.

    Returns:
      `(trainable, key, prompts[B], length) -> rollouts`, on the host. B is a multiple of the
      devices that share a batch.
    """
    run = _program(without_arrays(model), make_sampling(config, model, num_samples), passes)
    mesh = places.mesh_of(config)

    def draw(
        trainable: Trainable, key: Key, prompts: Sequence[data.Encoded], length: int
    ) -> Rollouts:
        ids = [row.prompt.tolist() for row in prompts]
        padded = documents.pad_prompts(ids, buckets=[min(length, longest_prompt(config))])
        tokens, valid = training.put_rows(mesh, padded, len(ids))
        rollouts: Rollouts = processes.fetch(run(trainable, model.params, key, tokens, valid))
        return rollouts

    return draw


@functools.cache
def _program(model: Pretrained, sampling: Sampling, passes: Passes) -> Callable[..., Rollouts]:
    """Compiles `(trainable, pretrained, key, tokens[B, P], valid[B, P]) -> rollouts`."""

    @partial(jax.jit, compiler_options=compiler_options(model))
    def run(
        trainable: Trainable, pretrained: Params, key: Key, tokens: Array, valid: Array
    ) -> Rollouts:
        params = learning.assemble(model, trainable, pretrained)
        settings: dict[str, Any] = vars(sampling)
        samples = documents.sample(model.lm, params, key, tokens, valid=valid, **settings)
        before = jnp.pad(valid, ((0, 0), (0, sampling.max_length)))
        whole = samples.mask | before[:, None]
        score = lambda p: policy_and_values(
            model, p, trainable.head, samples.tokens, samples.mask, whole, sampling.temperature
        )
        log_probs, values = score(params) if passes.policy else (None, None)
        ref_log_probs = score(pretrained)[0] if passes.reference else None
        return Rollouts(
            samples.tokens,
            samples.mask,
            whole,
            log_probs,
            ref_log_probs,
            samples.log_probs,
            values,
        )

    return run


def completions_of(
    model: Pretrained, prompts: Sequence[data.Encoded], rollouts: Rollouts
) -> list[Completion]:
    """Returns the completions as texts, prompt by prompt.

    Args:
      model: the pretrained model, with its tokenizer.
      prompts: the B prompts.
      rollouts: their completions, on the host.

    Returns:
      B N completions.
    """
    ends, found = models.end_tokens(model.config, model.tokenizer), []
    for row, tokens, mask in zip(prompts, rollouts.tokens, rollouts.mask, strict=True):
        prompt = row.prompt.tolist()
        for ids, is_own in zip(tokens, mask, strict=True):
            response = np.asarray(ids)[np.asarray(is_own)].tolist()
            finished = response[-1] in ends
            text = response_text(
                model.tokenizer.decode, prompt, response[:-1] if finished else response
            )
            about = row.row.prompt, text, row.row.source
            found.append(Completion(*about, prompt + response, len(prompt), finished))
    return found
