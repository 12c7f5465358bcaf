"""Steps of reinforcement learning: completions, their rewards, and updates."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter import data, training
from shatter.cli.finetune import learning, optimizer, places, plan, policy, values
from shatter.cli.finetune.config import Config, program_config
from shatter.cli.finetune.learning import Frozen, Trainable
from shatter.cli.finetune.objectives import Mean
from shatter.cli.finetune.policy import PolicyBatch
from shatter.cli.finetune.pretrained import Pretrained, without_arrays
from shatter.cli.finetune.rewards import score_all
from shatter.cli.finetune.rollouts import (
    Rollouts,
    completions_of,
    make_draw,
    passes_in_training,
)
from shatter.cli.finetune.task import Task
from shatter.cli.finetune.updates import Measured, Update, on_devices
from shatter.cli.finetune.values import Estimates, Scored
from shatter.types import Key

_ROLLOUTS = 0x726F6C6C
"""Folded into the seed's key, so that no key serves twice."""


class _Part(NamedTuple):
    """A batch of a step.

    Attributes:
      rollouts: completions, on the host.
      rewards: float64 `[B, N]`.
      each: the rewards of every source by name, `[B, N]`.
      finished: bool `[B, N]`, whether a token ended each completion.
      is_real: bool `[B]`; false = the prompt fills up the batch.
      num_tokens: the tokens of its real documents.
    """

    rollouts: Rollouts
    rewards: np.ndarray
    each: dict[str, np.ndarray]
    finished: np.ndarray
    is_real: np.ndarray
    num_tokens: int


def make_update(config: Config, task: Task, num_steps: int) -> tuple[training.TrainState, Update]:
    """Makes the state before the first step, and the function that makes a step.

    All random keys of a step are folded from the seed, the number of the step and that of the
    batch, so that a resumed run draws the same completions.

    Args:
      config: the config.
      task: the model and the prompts.
      num_steps: steps of the whole run.

    Returns:
      The state, and `(state, batches) -> (state, measured)`, which donates the state's buffers. It
      raises `UsageError` if a reward fails or is not finite.
    """
    mesh, size = places.mesh_of(config), plan.batch_size(config)
    learner = compile_learner(program_config(config), without_arrays(task.model), num_steps, mesh)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    start = places.put_params(config, learning.start(config, task.model, init_key))
    state = learner.init(start, places.put_everywhere(config, train_key))
    root = jax.random.fold_in(jax.random.key(config.seed), _ROLLOUTS)
    frozen = Frozen(None if task.model.lora is None else task.model.params, None)
    draw = make_draw(config, task.model, config.num_generations, passes_in_training(config))

    def update(
        state: training.TrainState, batches: Sequence[data.Batch]
    ) -> tuple[training.TrainState, Measured]:
        key = jax.random.fold_in(root, int(state.step) // config.num_iterations)
        parts = [
            draw_part(config, task, draw, state.params, jax.random.fold_in(key, number), batch)
            for number, batch in enumerate(batches)
        ]
        arrays = step_batches(config, parts)
        measured: list[Any] = []
        for _ in range(config.num_iterations):
            for batch in arrays:
                state, metrics = learner.step(state, frozen, training.put_rows(mesh, batch, size))
                measured.append(metrics)
        measured = with_largest_difference(measured, len(arrays))
        measured[0] = measured[0] | _metrics(config, parts)
        if estimates := [batch.estimates for batch in arrays if batch.estimates is not None]:
            measured[0] = measured[0] | values.var_explained(_scored(parts), estimates)
        weight = float(sum(part.is_real.sum() for part in parts))
        return state, Measured(measured, weight, sum(part.num_tokens for part in parts))

    return state, update


@functools.cache
def compile_learner(
    config: Config, model: Pretrained, num_steps: int, mesh: jax.sharding.Mesh
) -> training.Learner:
    """Returns the learner of a run, compiled; a step donates the state's buffers."""
    schedule = optimizer.make_schedule(config, num_steps * config.num_iterations)
    learner = training.learner(
        policy.make_objective(config, model),
        optimizer.make_optimizer(config, schedule),
        num_batches=config.gradient_accumulation_steps,
    )
    return on_devices(learner, model, mesh)


def draw_part(
    config: Config,
    task: Task,
    draw: Callable[..., Rollouts],
    trainable: Trainable,
    key: Key,
    batch: data.Batch,
) -> _Part:
    """Draws the completions of a batch of prompts, and scores them."""
    encoded, is_real = task.train.encoded, batch.row >= 0
    shortest = min(range(len(encoded)), key=lambda n: len(encoded[n].prompt))
    fill = next((int(n) for n in batch.row if n >= 0), shortest)
    prompts = [encoded[n if n >= 0 else fill] for n in batch.row]
    rollouts = draw(trainable, key, prompts, batch.tokens.shape[-1])
    shape = rollouts.mask.shape[:2]
    completions = completions_of(task.model, prompts, rollouts)
    real = np.repeat(is_real, shape[1])
    kept = [c for c, is_own in zip(completions, real, strict=True) if is_own]
    rewards, each = np.zeros(shape), {}
    if kept:
        total, found = score_all(task.rewards, kept)
        rewards[is_real] = total.reshape(-1, shape[1])
        each = {name: values.reshape(-1, shape[1]) for name, values in found.items()}
    finished = np.asarray([completion.finished for completion in completions]).reshape(shape)
    num_tokens = sum(len(completion.tokens) for completion in kept)
    return _Part(rollouts, rewards, each, finished, is_real, num_tokens)


def step_batches(config: Config, parts: Sequence[_Part]) -> list[PolicyBatch]:
    """Returns the batches of a step, with what depends on all of them.

    Args:
      config: the config.
      parts: the completions and rewards of each batch.

    Returns:
      The batches, on the host. Their losses add up to that of the step.
    """
    num = config.num_generations * sum(part.is_real.sum() for part in parts)
    lengths = [np.asarray(part.rollouts.mask).sum(-1) for part in parts]
    num_tokens = sum(n[part.is_real].sum() for n, part in zip(lengths, parts, strict=True))
    rewards = np.concatenate([part.rewards[part.is_real] for part in parts])
    whole = deviation(rewards.ravel())
    estimates: Sequence[Estimates | None] = [None] * len(parts)
    if config.objective == "ppo":
        estimates = values.estimate(config, _scored(parts))
    made = []
    for part, length, estimated in zip(parts, lengths, estimates, strict=True):
        shape = part.rewards.shape
        weight = np.where(part.is_real[:, None], 1.0 / num, np.zeros(shape))
        divisor = {
            "dapo": num_tokens / num,
            "grpo": length,
            "dr_grpo": config.max_completion_length,
        }[config.loss_type]
        own = np.asarray([deviation(row) for row in part.rewards])
        gains = part.rewards
        if config.objective == "grpo":  # before float32 rounds them, for deviations may be 0
            gains = gains - gains.mean(axis=1, keepdims=True)
        deviations = np.full(shape[0], whole) if config.scale_rewards == "batch" else own
        numbers: Any = (gains, deviations, weight, weight / divisor)
        fields, drawn = part.rollouts[:5], part.rollouts.drawn_log_probs
        is_whole = (config.top_k, config.top_p, config.min_p) == (None, None, None)
        dtype = np.asarray(drawn).dtype
        rounded = [number.astype(dtype) for number in numbers]
        batch = PolicyBatch(*fields, *rounded)._replace(estimates=estimated)
        made.append(batch._replace(drawn_log_probs=drawn) if is_whole else batch)
    return made


def with_largest_difference(measured: Sequence[Any], num_batches: int) -> list[Any]:
    """Returns the metrics of a step's updates with the largest difference of two log-probs.

    Args:
      measured: the metrics of every batch of every update, with those of `policy.DIFFERENCES`,
        unless samples were filtered.
      num_batches: the batches of the first update, whose policy is the one that drew.

    Returns:
      The metrics, without `policy.DIFFERENCES`, and in the first `sampling/logp_difference_max`.
    """
    rest = [{k: v for k, v in row.items() if k != policy.DIFFERENCES} for row in measured]
    if policy.DIFFERENCES in measured[0]:
        largest = [jnp.max(row[policy.DIFFERENCES]) for row in measured[:num_batches]]
        once = jnp.ones_like(largest[0])
        rest[0]["sampling/logp_difference_max"] = Mean(jnp.max(jnp.stack(largest)), once)
    return rest


def _scored(parts: Sequence[_Part]) -> list[Scored]:
    return [Scored(part.rollouts, part.rewards, part.is_real) for part in parts]


def deviation(values: np.ndarray) -> float:
    """Returns the standard deviation with n - 1 in the denominator, of one number 0."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _metrics(config: Config, parts: Sequence[_Part]) -> dict[str, Mean]:
    """Returns measures of a step's completions and rewards, under TRL's names."""
    real = [part for part in parts if part.is_real.any()]
    of = lambda get: np.concatenate([np.asarray(get(p))[p.is_real] for p in real])
    rewards, finished = of(lambda p: p.rewards), of(lambda p: p.finished)
    lengths = np.concatenate([np.asarray(p.rollouts.mask).sum(-1)[p.is_real].ravel() for p in real])
    found = {
        "reward": rewards.mean(),
        "reward_std": deviation(rewards.ravel()),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": 1.0 - finished.mean(),
    }
    if config.num_generations > 1:
        deviations = np.asarray([deviation(row) for row in rewards])
        found["frac_reward_zero_std"] = np.isclose(deviations, 0.0).mean()
    for name in real[0].each:
        values = np.concatenate([part.each[name].ravel() for part in real])
        found |= {f"rewards/{name}/mean": values.mean(), f"rewards/{name}/std": deviation(values)}
    once: Any = np.float64(1.0)
    return {name: Mean(once * value, once) for name, value in found.items()}
