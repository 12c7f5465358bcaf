"""The run of one seed of one arm: demonstrations, updates, measurements."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.agency.config import Config
from experiments.common.chunks import Chunk, Process
from shatter import documents, environments, losses, models
from shatter.numerics import masked_sum
from shatter.types import Array, Key, Metrics, Params

_HELD_OUT = 5  # one question in so many
_TRIES = 64  # keys among which there is one with a question of the wanted part


class Setting(NamedTuple):
    """What all seeds share.

    Attributes:
      config: the config.
      lm: the model.
      environment: questions of the training part, and a calculator.
      held_out: the same with the questions of the other part.
      expert: the script, at the config's quality.
      limits: of an episode.
    """

    config: Config
    lm: models.LanguageModel
    environment: environments.Environment
    held_out: environments.Environment
    expert: Any
    limits: dict[str, int]


class State(NamedTuple):
    """What a seed carries from round to round.

    Attributes:
      params: the model's.
      opt_state: Adam's, of the phase that the arm is in.
      reference: the parameters at the start of RL.
      shown: the demonstrations.
      key: the source of all draws, by the number of the round.
    """

    params: Params
    opt_state: Any
    reference: Params
    shown: environments.Transcript
    key: Key


def make_setting(config: Config) -> Setting:
    """Returns the model, the environment and its expert."""
    sizes = environments.ArithmeticConfig(config.num_operations, config.max_operand, config.price)
    environment = environments.arithmetic(sizes)
    _, question = environment.reset(jax.random.key(0))
    turns = config.num_operations + 2  # one more than the expert needs
    turn = sizes.max_action_length + 2 + sizes.num_digits  # an action and the calculator's answer
    length = question.tokens.shape[0] + turns * turn
    lm = models.transformer(
        models.TransformerConfig(
            vocab_size=len(environments.ARITHMETIC_VOCABULARY),
            max_length=length,
            width=config.width,
            num_layers=config.num_layers,
            num_heads=4,
        )
    )
    limits = {
        "max_turns": turns,
        "max_action_length": sizes.max_action_length,
        "max_length": length,
        "end_of_action": environments.ARITHMETIC_END,
    }
    expert = environments.arithmetic_expert(sizes, quality=config.quality)
    train, held_out = (with_questions(environment, held_out=part) for part in (False, True))
    return Setting(config, lm, train, held_out, expert, limits)


def with_questions(
    environment: environments.Environment, *, held_out: bool
) -> environments.Environment:
    """Returns an environment whose questions are of one part: a fifth of all are held out."""

    def is_held_out(state: environments.ArithmeticState) -> Array:
        numbers = jnp.concatenate([state.operands, state.operators])
        return jnp.sum(numbers * (1 + 2 * jnp.arange(numbers.size))) % _HELD_OUT == 0

    def reset(key: Key) -> tuple[Any, environments.Tokens]:
        keys = jax.random.split(key, _TRIES)
        states, _ = jax.vmap(environment.reset)(keys)
        fits = jax.vmap(is_held_out)(states) == held_out
        return environment.reset(keys[jnp.argmax(fits)])

    return environment._replace(reset=reset)


def demonstrations(setting: Setting, key: Key, number: int) -> environments.Transcript:
    """Returns episodes of the expert, `[number]` on every leaf."""
    show = lambda key: environments.scripted_rollout(
        setting.expert, key, setting.environment, **setting.limits
    )
    return jax.vmap(show)(jax.random.split(key, number))


def episodes(
    setting: Setting,
    environment: environments.Environment,
    params: Params,
    key: Key,
    num_questions: int,
    num_tries: int,
) -> environments.Transcript:
    """Returns the model's episodes, several of every question, `[num_questions, num_tries]`."""
    question_key, draw_key = jax.random.split(key)

    def of_question(question: Key, draws: Key) -> environments.Transcript:
        same = environment._replace(reset=lambda _: environment.reset(question))
        play = lambda key: environments.rollout(setting.lm, params, key, same, **setting.limits)
        return jax.vmap(play)(draws)

    draws = jax.random.split(draw_key, (num_questions, num_tries))
    return jax.vmap(of_question)(jax.random.split(question_key, num_questions), draws)


def agency_process(setting: Setting, arm: str) -> Process:
    """Returns the run of one seed; its input is a key."""
    return Process(partial(_start, setting), partial(_rounds, setting, arm))


_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


def _is_rl(config: Config, arm: str, number: Array) -> Array:
    """Returns whether a round learns from the model's own episodes."""
    first = {"imitation": config.num_rounds, "rl": 0, "imitation_rl": config.imitation_rounds}
    return number >= first[arm]


def _start(setting: Setting, key: Key) -> tuple[State, Metrics]:
    init_key, show_key, run_key, measure_key = jax.random.split(key, 4)
    params = setting.lm.init(init_key)
    shown = demonstrations(setting, show_key, setting.config.num_demonstrations)
    state = State(params, _ADAM.init(params), params, shown, run_key)
    return state, _measure(setting, state, measure_key)


def _rounds(
    setting: Setting, arm: str, state: State, first_round: Array, chunk: Chunk
) -> tuple[State, Metrics]:
    numbers = first_round + jnp.arange(chunk.num_rounds)
    return jax.lax.scan(partial(_one_round, setting, arm), state, numbers)


def _one_round(setting: Setting, arm: str, state: State, number: Array) -> tuple[State, Metrics]:
    """Takes the updates of a round and measures."""
    config = setting.config
    update_key, measure_key = jax.random.split(jax.random.fold_in(state.key, number))
    is_rl = _is_rl(config, arm, number)
    begins = is_rl & ~_is_rl(config, arm, number - 1)
    opt_state, reference = jax.tree.map(
        partial(jnp.where, begins),
        (_ADAM.init(state.params), state.params),
        (state.opt_state, state.reference),
    )
    later = config.rl_rate if arm == "imitation_rl" else config.learning_rate
    rate = jnp.where(is_rl, later, config.learning_rate)
    imitate = partial(_imitate, setting, state.shown)
    reinforce = partial(_reinforce, setting, arm, reference)

    def update(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], None]:
        params, opt_state = carry
        # The round is one of all seeds, so that one branch is taken under vmap too.
        slope = jax.lax.cond(is_rl, reinforce, imitate, params, key)
        updates, opt_state = _ADAM.update(slope, opt_state)
        return (jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state), None

    keys = jax.random.split(update_key, config.updates_per_round)
    (params, opt_state), _ = jax.lax.scan(update, (state.params, opt_state), keys)
    state = state._replace(params=params, opt_state=opt_state, reference=reference)
    return state, _measure(setting, state, measure_key)


def _log_probs(setting: Setting, params: Params, seen: environments.Transcript) -> Array:
    """Returns the log-probs of tokens, `[..., T]`."""
    return documents.token_log_probs(setting.lm.apply(params, seen.tokens), seen.tokens)


def _imitate(setting: Setting, shown: environments.Transcript, params: Params, key: Key) -> Params:
    """Returns the gradient of the next-token loss on the expert's actions."""
    config = setting.config
    rows = jax.random.randint(key, (config.batch_size,), 0, config.num_demonstrations)
    seen = jax.tree.map(lambda leaf: leaf[rows], shown)

    def loss(params: Params) -> Array:
        return jnp.mean(losses.sft_loss(_log_probs(setting, params, seen), seen.is_action))

    return jax.grad(loss)(params)


def _reinforce(setting: Setting, arm: str, reference: Params, params: Params, key: Key) -> Params:
    """Returns the gradient of RLOO on the model's own episodes, less the KL from the reference."""
    config = setting.config
    num_questions = config.batch_size // config.num_samples
    seen = episodes(setting, setting.environment, params, key, num_questions, config.num_samples)
    beta = config.beta if arm == "imitation_rl" else 0.0
    score = lambda params: masked_sum(_log_probs(setting, params, seen), seen.is_action)
    penalty = beta * (score(params) - score(reference))
    gains = jnp.sum(seen.rewards, axis=-1) - jax.lax.stop_gradient(penalty)
    return jax.grad(lambda params: jnp.mean(losses.rloo_loss(score(params), gains)))(params)


def _measure(setting: Setting, state: State, key: Key) -> Metrics:
    """Returns measures of the model's episodes on held-out questions."""
    config = setting.config
    seen = episodes(
        setting, setting.held_out, state.params, key, config.num_evaluated, config.num_tries
    )
    returns = jnp.sum(seen.rewards, axis=-1)
    is_right = jnp.max(seen.rewards, axis=-1) > 0.5  # the right answer earns 1 less a price
    score = lambda params: masked_sum(_log_probs(setting, params, seen), seen.is_action)
    return {
        "success": jnp.mean(is_right),
        "best_of_tries": jnp.mean(jnp.any(is_right, axis=1)),
        "return": jnp.mean(returns),
        "actions": jnp.mean(seen.num_turns.astype(float)),
        "invalid": jnp.sum(seen.num_invalid) / jnp.sum(seen.num_turns),
        "kl_from_reference": jnp.mean(score(state.params) - score(state.reference)),
        "tokens": jnp.mean(jnp.sum(seen.is_action, axis=-1).astype(float)),
    }
