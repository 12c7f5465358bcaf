"""The model as a function of what is trained and what is frozen: objective, samples, distances."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shatter import data, documents, losses, models
from shatter.cli.common import compiling
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import objectives
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.objectives import OBJECTIVES, Mean, Scores
from shatter.cli.finetune.task import Pretrained, Training
from shatter.types import Array, Key, Params


class Trainable(NamedTuple):
    """What is trained: all parameters or the adapters, and the reward head `[D]` if there is."""

    model: Params
    head: Array | None


class Sampled(NamedTuple):
    """N documents drawn from a model, `[N, T]`, and their log-probs under it, `[N]`, nats."""

    tokens: Array
    mask: Array
    valid: Array
    log_probs: Array


class Frozen(NamedTuple):
    """What is not trained: the pretrained parameters where a step reads them, samples of them."""

    params: Params | None
    samples: Sampled | None


class Numbers(NamedTuple):
    """A batch as a step sees it: B comparisons of K documents, each with A answers.

    Attributes:
      tokens: `[B, K, T]`.
      mask: `[B, K, T]`, true on the completion.
      valid: `[B, K, T]`, false on padding.
      ranks: `[B, A, K]`.
      weight: `[B, A]`, over what all answers of the update weigh, in this batch and its others.
      ref_log_probs: `[B, K]`, the reference's, nats.
      part: int `[B]`, the same in all rows: which of its update's batches this is, from 0.
    """

    tokens: Array
    mask: Array
    valid: Array
    ranks: Array
    weight: Array
    ref_log_probs: Array
    part: Array


def numbers(
    batch: data.Batch,
    ref_log_probs: np.ndarray,
    train: Training | None = None,
    total: float | None = None,
    part: int = 0,
) -> Numbers:
    """A batch as a step sees it.

    Args:
      batch: the batch.
      ref_log_probs: the reference's, `[rows, K]`, nats.
      train: the answers to learn from; None = the rows' own.
      total: what all answers of the update weigh; None = the batch is the whole of it.
      part: which of its update's batches this is.

    Returns:
      The arrays, on the host.
    """
    row = np.maximum(batch.row, 0)
    ranks = batch.ranks[:, None] if train is None else train.ranks[row]
    weight = answer_weights(batch, train)
    total = float(weight.sum()) if total is None else total
    weight = (weight / (total if total > 0 else 1.0)).astype(np.float32)
    fields: list[Any] = [batch.tokens, batch.mask, batch.valid, ranks, weight, ref_log_probs[row]]
    fields.append(np.full(len(row), part, np.int32))
    return Numbers(*fields)


def answer_weights(batch: data.Batch, train: Training | None) -> np.ndarray:
    """How many people gave each answer, `[B, A]`; 0 in rows that fill up the batch."""
    if train is None:
        return batch.weight[:, None].astype(np.float64)
    row = np.maximum(batch.row, 0)
    return train.weight[row].astype(np.float64) * (batch.row >= 0)[:, None]


def compiler_options(model: Pretrained) -> dict[str, Any] | None:
    """Options of every program of a run.

    In bfloat16 results are rounded where the model says, and not where the compiler likes: a
    program with gradients and one without would else differ by tenths of a nat a document, and a
    model from its own reference.
    """
    options = compiling.compiler_options() or {}
    if model.config.dtype == "bfloat16":
        options["xla_allow_excess_precision"] = False
    return options or None


def start(config: Config, model: Pretrained, key: Key) -> Trainable:
    """What is trained, before the first step: copies, for the steps consume them."""
    head = jnp.zeros(model.config.width) if config.objective == "reward_model" else None
    if model.lora is None:
        return Trainable(jax.tree.map(jnp.array, model.params), head)
    return Trainable(models.init_lora(key, model.params, model.lora), head)


def assemble(model: Pretrained, trainable: Trainable, pretrained: Params | None) -> Params:
    """Parameters for `model.lm`; the pretrained ones are read where there are adapters."""
    if model.lora is None:
        return trainable.model
    return models.with_lora(pretrained, trainable.model, model.lora)


def score(model: Pretrained, params: Params, head: Array | None, batch: Numbers) -> Scores:
    """What a model says of a batch; with a reward head its log-probs are not computed."""
    lengths = jnp.maximum(jnp.sum(batch.mask, axis=-1), 1)
    if head is None:
        logits = model.lm.apply(params, batch.tokens, valid=batch.valid)
        log_probs = documents.log_prob(logits, batch.tokens, batch.mask)
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
    """Binds the table's objective to the model.

    A batch's loss is its part of the update's: the sum over its answers of their weight, over that
    of all answers in the update, times their loss; and with `kl_weight` its part of the mean
    divergence along the update's samples. Losses and gradients of an update's batches add up.

    Args:
      config: the config.
      model: the pretrained model.

    Returns:
      `(trainable, frozen, key, batch) -> (loss, metrics)`; the metrics are `Mean`s by name over
      the batch's part of the update, "objective" (the loss without the regulariser) among them,
      and "kl", the batch's part of the mean divergence, nats a document.
    """

    def objective(
        trainable: Trainable, frozen: Frozen, key: Key, batch: Numbers
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
    """The samples that a batch reads, and the weights with which they count, `[n]`.

    An update draws `kl_batch_size` samples, by its key alone, and its batches share them out: the
    regulariser of an update is the same however it is cut into batches.
    """
    total = len(samples.tokens)
    num = min(config.kl_batch_size, total)
    drawn = jax.random.choice(key, total, (num,), replace=False)
    size = -(-num // config.gradient_accumulation_steps)
    own = part * size + jnp.arange(size)
    rows = drawn[jnp.minimum(own, num - 1)]
    share = jnp.where(own < num, 1.0 / num, 0.0)
    return jax.tree.map(lambda leaf: leaf[rows], samples), share


def make_schedule(config: Config, num_steps: int) -> optax.Schedule:
    """The learning rate by step of the optimiser."""
    warmup = round(config.warmup_ratio * num_steps)
    rate, rest = config.learning_rate, max(num_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(rate),
        "linear": optax.linear_schedule(rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(rate, rest),
    }[config.lr_scheduler_type]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with clipping."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            schedule,
            b1=config.adam_beta1,
            b2=config.adam_beta2,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        ),
    )


def forward_kl(model: Pretrained, params: Params, pretrained: Params, samples: Sampled) -> Array:
    """KL(reference || model) along documents of the reference, `[N]`, nats a document."""
    apply = lambda p: model.lm.apply(p, samples.tokens, valid=samples.valid)
    ref_logits = apply(jax.lax.stop_gradient(pretrained))
    return losses.forward_kl_loss(ref_logits, apply(params), samples.mask)


def make_sampler(
    model: Pretrained, *, num_samples: int, max_length: int
) -> Callable[[Params, Key, Sequence[np.ndarray]], Sampled]:
    """Draws responses at temperature 1, by one compiled program a length of prompts.

    Args:
      model: the pretrained model.
      num_samples: responses a prompt.
      max_length: their largest number of tokens.

    Returns:
      `(params, key, prompts) -> documents`, prompt by prompt; prompts that leave no room for the
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
    ids = dict.fromkeys((model.tokenizer.eos, *model.config.eos))
    ends = tuple(end for end in ids if end is not None)

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

    def draw(params: Params, key: Key, prompts: Sequence[np.ndarray]) -> Sampled:
        tokens, valid = documents.pad_prompts(
            [data.truncate_prompt(prompt, longest, bos=bos) for prompt in prompts]
        )
        return run(params, key, jnp.asarray(tokens), jnp.asarray(valid))

    return draw
