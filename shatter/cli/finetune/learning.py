"""The model as a function of its trained and its frozen parameters: objective, samples, KL."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter import data, documents, losses, models
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import objectives
from shatter.cli.finetune.batches import StepBatch
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.objectives import OBJECTIVES, Mean, Scores
from shatter.cli.finetune.pretrained import Pretrained, compiler_options, without_arrays
from shatter.types import Array, Key, Params


class Trainable(NamedTuple):
    """What is trained.

    Attributes:
      model: all parameters of the model, or the adapters.
      head: the reward head `[D]`; or the value head `[D + 1]`, whose last number is the bias;
        None = the objective has none.
    """

    model: Params
    head: Array | None


class Sampled(NamedTuple):
    """N documents drawn from a model, `[N, T]`, and their log-probs under it, `[N]`, nats."""

    tokens: Array
    mask: Array
    valid: Array
    log_probs: Array


class Frozen(NamedTuple):
    """What a training step reads and does not train.

    Attributes:
      params: the pretrained parameters; None = a step does not read them.
      samples: samples of the pretrained model; None = there is no regulariser.
    """

    params: Params | None
    samples: Sampled | None


def start(config: Config, model: Pretrained, key: Key) -> Trainable:
    """Returns what is trained before the first step: copies, because training donates its buffers.

    Args:
      config: the config.
      model: the pretrained model.
      key: a typed key, for the adapters.
    """
    sizes = {"reward_model": model.config.width, "ppo": model.config.width + 1}
    head = jnp.zeros(sizes[config.objective]) if config.objective in sizes else None
    if model.lora is None:
        return Trainable(jax.tree.map(jnp.array, model.params), head)
    return Trainable(models.init_lora(key, model.params, model.lora), head)


def assemble(model: Pretrained, trainable: Trainable, pretrained: Params | None) -> Params:
    """Returns the parameters for `model.lm`; only adapters read the pretrained ones."""
    if model.lora is None:
        return trainable.model
    return models.with_lora(pretrained, trainable.model, model.lora)


def score(model: Pretrained, params: Params, head: Array | None, batch: StepBatch) -> Scores:
    """Scores the documents of a batch: by their log-probs, or by the reward head if there is one.

    Args:
      model: the pretrained model.
      params: parameters for `model.lm`.
      head: the reward head `[D]`; with one, log-probs are not computed and are 0.
      batch: the batch.

    Returns:
      The scores.
    """
    lengths = jnp.maximum(jnp.sum(batch.mask, axis=-1), 1)
    if head is None:
        log_probs = documents.document_log_probs(
            model.lm, params, batch.tokens, batch.mask, valid=batch.valid
        )
        return Scores(log_probs, lengths, batch.ref_log_probs, jnp.zeros_like(log_probs))
    assert model.lm.features is not None
    features = model.lm.features(params, batch.tokens, valid=batch.valid)
    last = jnp.maximum(jnp.sum(batch.valid, axis=-1), 1) - 1
    features = jnp.take_along_axis(features, last[..., None, None], axis=-2)[..., 0, :]
    rewards = (features @ head.astype(features.dtype)).astype(head.dtype)
    return Scores(jnp.zeros_like(rewards), lengths, batch.ref_log_probs, rewards)


def make_objective(
    config: Config, model: Pretrained
) -> Callable[..., tuple[Array, dict[str, Any]]]:
    """Binds the objective to the model.

    The loss of a batch is its part of the update's loss: the sum over its answers of their share of
    the update's weight times their loss. With `kl_weight` its part of the mean divergence along the
    update's samples is added. The losses and gradients of an update's batches add up.

    Args:
      config: the config.
      model: the pretrained model.

    Returns:
      `(trainable, frozen, key, batch) -> (loss, metrics)`. The metrics are `Mean`s over the batch's
      part of the update, by name, among them "objective" (the loss without the regulariser); and
      "kl", the batch's part of the mean divergence, nats a document.
    """

    def objective(
        trainable: Trainable, frozen: Frozen, key: Key, batch: StepBatch
    ) -> tuple[Array, dict[str, Any]]:
        params = assemble(model, trainable, frozen.params)
        scores = score(model, params, trainable.head, batch)
        num_answers, num_slots = batch.ranks.shape[1:]
        scores = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_answers, axis=0), scores)
        ranks, weight = batch.ranks.reshape(-1, num_slots), batch.weight.reshape(-1)
        loss = jnp.sum(weight * OBJECTIVES[config.objective].losses(config, scores, ranks))
        metrics: dict[str, Any] = dict(objectives.metrics(config, scores, ranks, weight))
        metrics["objective"] = Mean(loss, jnp.sum(weight))
        if config.kl_weight:
            assert frozen.samples is not None
            samples, share = _part_of_samples(config, frozen.samples, key, jnp.max(batch.part))
            kl = jnp.sum(share * forward_kl(model, params, frozen.params, samples))
            loss, metrics["kl"] = loss + config.kl_weight * kl, kl
        return loss, metrics

    return objective


def _part_of_samples(
    config: Config, samples: Sampled, key: Key, part: Array
) -> tuple[Sampled, Array]:
    """Returns the samples that a batch reads, and their weights `[n]`.

    An update draws `kl_batch_size` samples by its key alone, and its batches share them out.
    Therefore the regulariser of an update is the same however it is cut into batches.
    """
    total = len(samples.tokens)
    num = min(config.kl_batch_size, total)
    drawn = jax.random.choice(key, total, (num,), replace=False)
    size = -(-num // config.gradient_accumulation_steps)
    own = part * size + jnp.arange(size)
    rows = drawn[jnp.minimum(own, num - 1)]
    share = jnp.where(own < num, 1.0 / num, 0.0)
    return jax.tree.map(lambda leaf: leaf[rows], samples), share


def forward_kl(model: Pretrained, params: Params, pretrained: Params, samples: Sampled) -> Array:
    """Computes KL(reference || model) along documents of the reference, `[N]`, nats a document."""
    logits = lambda p: models.lazy_logits(model.lm, p, samples.tokens, valid=samples.valid)
    ref_logits = logits(jax.lax.stop_gradient(pretrained))
    return losses.forward_kl_loss(ref_logits, logits(params), samples.mask)


def make_sampler(
    model: Pretrained, *, num_samples: int, max_length: int
) -> Callable[[Params, Key, Sequence[np.ndarray]], Sampled]:
    """Makes a sampler of responses at temperature 1; it compiles one program per prompt length.

    Args:
      model: the pretrained model.
      num_samples: responses per prompt.
      max_length: the largest number of tokens of a response.

    Returns:
      `(params, key, prompts) -> documents`, prompt by prompt. Prompts that leave no room for the
      response are shortened by `shatter.data.truncate_prompt`.

    Raises:
      UsageError: if responses of that length leave no position for a prompt.
    """
    positions = model.config.max_length
    longest = positions - max_length
    if longest < 1:
        raise UsageError(
            "--kl_length and --max_completion_length must be at most "
            f"{positions - 1}, because the model has {positions} positions and a prompt needs one; "
            f"found {max_length}"
        )
    bos = model.tokenizer.eos if model.tokenizer.bos is None else model.tokenizer.bos
    ends = models.end_tokens(model.config, model.tokenizer)
    run = _sampler(without_arrays(model), num_samples, max_length, ends)

    def draw(params: Params, key: Key, prompts: Sequence[np.ndarray]) -> Sampled:
        tokens, valid = documents.pad_prompts(
            [data.truncate_prompt(prompt, longest, bos=bos) for prompt in prompts]
        )
        return run(params, key, jnp.asarray(tokens), jnp.asarray(valid))

    return draw


@functools.cache
def _sampler(
    model: Pretrained, num_samples: int, max_length: int, ends: tuple[int, ...]
) -> Callable[[Params, Key, Array, Array], Sampled]:
    """Compiles `(params, key, tokens[B, P], valid[B, P]) -> documents`."""

    @partial(jax.jit, compiler_options=compiler_options(model))
    def run(params: Params, key: Key, tokens: Array, valid: Array) -> Sampled:
        samples = documents.sample(
            model.lm,
            params,
            key,
            tokens,
            num_samples=num_samples,
            max_length=max_length,
            eos=ends,
            valid=valid,
        )
        mask = samples.mask.reshape(-1, samples.mask.shape[-1])
        before = jnp.repeat(valid, num_samples, axis=0)
        before = jnp.pad(before, ((0, 0), (0, mask.shape[1] - before.shape[1])))
        tokens = samples.tokens.reshape(mask.shape)
        return Sampled(tokens, mask, mask | before, samples.raw_log_probs.reshape(-1))

    return run
