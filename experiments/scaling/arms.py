"""How one model is trained by each arm and what it says: compiled once for all seeds and rates."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.scaling import objectives
from experiments.scaling.config import OFFLINE, Config
from experiments.scaling.language import Documents
from experiments.scaling.objectives import Material, Setting, draw, log_prob, reward
from experiments.scaling.streams import Use, generator, keys_of
from shatter import training
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Params


class Said(NamedTuple):
    """Responses to the evaluated prompts.

    Attributes:
      seen: the prompts alone with the responses, `[..., E, L]`.
      kl: `[..., E]`, log pi - log p0 of each, nats.
    """

    seen: Documents
    kl: Any


class Programs(NamedTuple):
    """The compiled parts of all arms, over S seeds at once; the pretrained parameters are shared.

    Attributes:
      start: `(params[S], keys[S], rate) -> state[S]`, of any of the learners.
      learn: by objective `(state[S], base, own[S], rows[S, k, b]) -> state[S]`, k updates.
      speak: `(params[S], base, keys[S], prompts[S], evaluated[S]) -> said[S]`.
      rewards: `(reward_params[S], documents[S]) -> [S, E]`.
    """

    start: Callable[..., Any]
    learn: dict[str, Callable[..., Any]]
    speak: Callable[..., Said]
    rewards: Callable[..., Array]


@cache
def programs(setting: Setting) -> Programs:
    """Returns the compiled parts of all arms of a model."""
    compiled = partial(jax.jit, compiler_options=compiler_options())
    of_arms = {
        "sft": objectives.sft_loss,
        "pairs": objectives.pairs_loss,
        "reward": objectives.reward_loss,
        "rl": objectives.rl_loss,
    }

    def learn(objective: Callable[..., Any]) -> Callable[..., Any]:
        learner = training.learner(partial(objective, setting), _adam(0.0))

        def some_updates(state: Any, base: Params, own: Any, rows: Array) -> Any:
            step = lambda state, rows: (learner.step(state, (base, own), rows)[0], None)
            return jax.lax.scan(step, state, rows)[0]

        return compiled(jax.vmap(some_updates, in_axes=(0, None, 0, 0)))

    def start(params: Params, key: Key, rate: Array) -> Any:
        state = training.learner(partial(objectives.sft_loss, setting), _adam(0.0)).init(
            params, key
        )
        return state._replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate))

    of_all = compiled(jax.vmap(start, in_axes=(0, 0, None)))
    return Programs(
        # A Python number would have a weak type, and what learns would be compiled twice.
        lambda params, keys, rate: of_all(params, keys, jnp.asarray(rate, float)),
        {name: learn(objective) for name, objective in of_arms.items()},
        compiled(jax.vmap(partial(_speak, setting), in_axes=(0, None, 0, 0, 0))),
        compiled(jax.vmap(partial(reward, setting))),
    )


def order(
    config: Config, seeds: Sequence[int], num_updates: int, size: int, use: Use
) -> np.ndarray:
    """Returns the rows of every update, of pass after pass over the data.

    Args:
      config: the config.
      seeds: the numbers of S seeds.
      num_updates: U.
      size: b, of a batch.
      use: what for: another use has another order.

    Returns:
      int `[S, U, b]`.
    """
    rows, passes = [], -(-num_updates * size // config.num_prompts)
    for seed in seeds:
        rng = generator(config, seed, use)
        numbers = [rng.permutation(config.num_prompts) for _ in range(passes)]
        rows.append(np.concatenate(numbers)[: num_updates * size].reshape(num_updates, size))
    return np.stack(rows)


def train(
    setting: Setting,
    arm: str,
    base: Params,
    seeds: Sequence[int],
    material: Material,
    reward_params: Params | None = None,
) -> Said:
    """Trains a model by an arm and lets it speak after every round.

    `sft_rl` imitates for half of the updates and is measured in the other half, in which the KL in
    the reward is that from where RL began. `Said.kl` is always from the base.

    Args:
      setting: the setting.
      arm: sft, dpo, ilhf, ilhf_sum, rl or sft_rl.
      base: the pretrained parameters.
      seeds: the numbers of S seeds.
      material: their texts, `[S, ...]`.
      reward_params: `[S, ...]`, of the arms that need a reward model.

    Returns:
      `[S, rounds, E, ...]`.
    """
    config, run = setting.config, programs(setting)
    copies = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * len(seeds)), tree)
    params, num_updates = copies(base), config.num_updates
    each = num_updates // config.num_rounds
    if arm == "sft_rl":
        num_updates //= 2
        rows = order(config, seeds, num_updates, config.batch_size, Use.IMITATE)
        state = run.start(params, keys_of(config, seeds, Use.IMITATE), config.sft_rate)
        for first in range(0, num_updates, each):
            state = run.learn["sft"](state, base, material, rows[:, first : first + each])
        params = state.params
    own: Any
    if arm == "sft":
        objective, own, rate, size = "sft", material, config.sft_rate, config.batch_size
    elif arm in OFFLINE:
        scale, share, rate = {
            "dpo": (config.dpo_beta, 0.0, config.dpo_rate),
            "ilhf": (1.0, 0.0, config.ilhf_rate),
            "ilhf_sum": (1.0, 1.0, config.ilhf_rate),
        }[arm]
        objective, own = "pairs", (material, copies(jnp.array([scale, share])))
        size = config.batch_size // 2
    else:
        objective, own = "rl", (material, params, reward_params)
        rate = config.sft_rl_rate if arm == "sft_rl" else config.rl_rate
        size = config.batch_size // config.num_samples
    rows = order(config, seeds, num_updates, size, Use.LEARN)
    state = run.start(params, keys_of(config, seeds, Use.LEARN), rate)
    speak_keys = keys_of(config, seeds, Use.SPEAK)
    said = []
    for first in range(0, num_updates, each):
        state = run.learn[objective](state, base, own, rows[:, first : first + each])
        said.append(speak(setting, state.params, base, speak_keys, first, material))
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *said)


def train_reward_model(
    setting: Setting, base: Params, seeds: Sequence[int], material: Material
) -> Params:
    """Trains reward models `[S]` on comparisons, from the pretrained model and a head of zeros."""
    config, run = setting.config, programs(setting)
    stack = lambda leaf: jnp.stack([leaf] * len(seeds))
    head = jnp.zeros((len(seeds), setting.language.width))
    params = {"model": jax.tree.map(stack, base), "head": head}
    rows = order(config, seeds, config.num_updates, config.batch_size // 2, Use.REWARD_MODEL)
    state = run.start(params, keys_of(config, seeds, Use.REWARD_MODEL), config.reward_rate)
    return run.learn["reward"](state, base, material, rows).params


def speak(
    setting: Setting,
    params: Params,
    base: Params,
    keys: Key,
    salt: int,
    material: Material,
    *,
    shots: bool = False,
) -> Said:
    """Returns one response to every evaluated prompt, `[S, E, ...]`.

    Args:
      setting: the setting.
      params: `[S, ...]`, of who speaks.
      base: the pretrained parameters.
      keys: of S seeds, which no learner folds.
      salt: another number gives other responses.
      material: the prompts, `[S, ...]`.
      shots: whether demonstrations stand before a prompt; the base reads the prompt alone.
    """
    keys = jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys)
    prompts = material.shots if shots else material.evaluated
    return programs(setting).speak(params, base, keys, prompts, material.evaluated)


def _speak(
    setting: Setting, params: Params, base: Params, key: Key, prompts: Any, alone: Any
) -> Said:
    seen, log_probs = draw(setting, params, key, prompts, 1)
    said = jax.tree.map(lambda leaf: leaf[:, 0, -setting.max_length :], seen)
    tokens, valid = alone
    join = lambda before, after: jnp.concatenate([before, after], axis=-1)
    seen = Documents(
        join(tokens, said.tokens),
        join(jnp.zeros_like(valid), said.mask),
        join(valid, said.valid),
    )
    return Said(seen, log_probs[:, 0] - log_prob(setting, base, seen))


def _adam(rate: float) -> optax.GradientTransformation:
    """Returns Adam, whose rate is in its state, so that one program serves all rates."""
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=rate)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)
