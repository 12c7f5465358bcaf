"""The model as a function of what is trained and what is frozen: objective, samples, distances."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.chunks import compiler_options
from experiments.finetune import objectives
from experiments.finetune.config import Config
from experiments.finetune.objectives import OBJECTIVES, Scores
from experiments.finetune.task import Pretrained, Training
from shatter import data, documents, losses, models
from shatter.types import Array, Key, Metrics, Params


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
      weight: `[B, A]`.
      ref_log_probs: `[B, K]`, the reference's, nats.
    """

    tokens: Array
    mask: Array
    valid: Array
    ranks: Array
    weight: Array
    ref_log_probs: Array


def numbers(batch: data.Batch, ref_log_probs: np.ndarray, train: Training | None = None) -> Numbers:
    """A batch with its rows of the reference's log-probs, and of the answers in training."""
    row = np.maximum(batch.row, 0)
    ranks, weight = batch.ranks[:, None], batch.weight[:, None]
    if train is not None:
        ranks, weight = train.ranks[row], train.weight[row] * (batch.row >= 0)[:, None]
    fields: list[Any] = [batch.tokens, batch.mask, batch.valid, ranks, weight, ref_log_probs[row]]
    return Numbers(*fields)


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


def make_objective(config: Config, model: Pretrained) -> Callable[..., tuple[Array, Metrics]]:
    """The table's objective as `(trainable, frozen, key, batch) -> (loss, metrics)`."""

    def objective(
        trainable: Trainable, frozen: Frozen, key: Key, batch: Numbers
    ) -> tuple[Array, Metrics]:
        params = assemble(model, trainable, frozen.params)
        scores = score(model, params, trainable.head, batch)
        num_answers, num_slots = batch.ranks.shape[1:]
        scores = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_answers, axis=0), scores)
        ranks, weight = batch.ranks.reshape(-1, num_slots), batch.weight.reshape(-1)
        each = OBJECTIVES[config.objective].losses(config, scores, ranks)
        loss = jnp.sum(weight * each) / jnp.maximum(jnp.sum(weight), 1e-9)
        metrics = objectives.metrics(config, scores, ranks, weight)
        if config.kl_weight:
            assert frozen.samples is not None
            num = len(frozen.samples.tokens)
            rows = jax.random.choice(key, num, (min(config.kl_batch_size, num),), replace=False)
            some = jax.tree.map(lambda leaf: leaf[rows], frozen.samples)
            kl = jnp.mean(forward_kl(model, params, frozen.params, some))
            loss, metrics = loss + config.kl_weight * kl, {**metrics, "kl": kl}
        return loss, metrics

    return objective


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
    """AdamW with clipping, and accumulation of batches."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            schedule,
            b1=config.adam_beta1,
            b2=config.adam_beta2,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        ),
    )
    every = config.gradient_accumulation_steps
    return optimizer if every == 1 else optax.MultiSteps(optimizer, every).gradient_transformation()


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
      `(params, key, prompts) -> documents`, prompt by prompt.
    """
    ids = dict.fromkeys((model.tokenizer.eos, *model.config.eos))
    ends = tuple(end for end in ids if end is not None)

    @partial(jax.jit, compiler_options=compiler_options())
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

    longest = model.config.max_length - max_length

    def draw(params: Params, key: Key, prompts: Sequence[np.ndarray]) -> Sampled:
        tokens, valid = documents.pad_prompts([prompt[-longest:].tolist() for prompt in prompts])
        return run(params, key, jnp.asarray(tokens), jnp.asarray(valid))

    return draw


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

    @partial(jax.jit, compiler_options=compiler_options())
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
