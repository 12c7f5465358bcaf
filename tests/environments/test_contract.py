"""What holds in every environment of the package, driven by scripts and by models."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.environments import (
    ARITHMETIC_END,
    ARITHMETIC_VOCABULARY,
    LIBRARY_ALPHABET,
    SPLITS,
    ArithmeticConfig,
    Codec,
    HostEnvironment,
    arithmetic,
    arithmetic_expert,
    character_codec,
    host_rollout,
    host_scripted_rollout,
    library,
    library_expert,
    make_corpus,
    on_host,
    rollout,
)
from shatter.models import TransformerConfig, transformer
from tests.environments.worlds import (
    actions,
    assert_equal_transcripts,
    check_transcript,
    jitted,
    make_params,
)

CONFIG = ArithmeticConfig()
ROOM = CONFIG.max_action_length
PURE = arithmetic(CONFIG)
FAST = PURE._replace(reset=jax.jit(PURE.reset), step=jax.jit(PURE.step))
CORPUS = make_corpus(jax.random.key(0))
KEYS = jax.random.split(jax.random.key(4), 4)


class World(NamedTuple):
    """An environment with its limits, and actions that are right or ill-formed in it."""

    environment: HostEnvironment
    expert: Callable[[Any, Any], Any]
    nonsense: Any
    vocab_size: int
    max_action_length: int
    max_length: int
    end_of_action: int
    codec: Codec | None

    @property
    def limits(self) -> dict[str, Any]:
        names = ("max_action_length", "max_length", "end_of_action", "codec")
        return {name: getattr(self, name) for name in names}


def arithmetic_world() -> World:
    act = jax.jit(arithmetic_expert(CONFIG))

    def expert(key, state):
        action = act(key, state)
        return action.tokens[: int(action.length)]

    environment = on_host(FAST, max_action_length=ROOM)
    size = len(ARITHMETIC_VOCABULARY)
    return World(environment, expert, [1, 2], size, ROOM, 60, ARITHMETIC_END, None)


def library_world(split: str) -> World:
    environment, expert = library(CORPUS, split=split), library_expert(CORPUS)
    codec, size = character_codec(LIBRARY_ALPHABET), len(LIBRARY_ALPHABET)
    return World(environment, expert, "hello", size, 60, 700, 0, codec)


WORLDS = {"arithmetic": arithmetic_world()} | {split: library_world(split) for split in SPLITS}
every_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


@pytest.mark.slow
@every_world
def test_equal_keys_give_equal_episodes_and_others_do_not(world: World):
    run = lambda key: host_scripted_rollout(
        world.expert, key, world.environment, max_turns=12, **world.limits
    )
    first = run(KEYS[0])
    assert_equal_transcripts(first, run(KEYS[0]))
    assert any(np.any(first.tokens != run(key).tokens) for key in KEYS[1:])


@every_world
def test_an_expert_ends_with_the_reward_of_one_minus_the_price(world: World):
    transcript = host_scripted_rollout(
        world.expert, KEYS[1], world.environment, max_turns=12, **world.limits
    )
    check_transcript(
        transcript, max_action_length=world.max_action_length, end_of_action=world.end_of_action
    )
    assert transcript.done
    rewards = np.asarray(transcript.rewards)[: int(transcript.num_turns)]
    price = -rewards[0]
    assert price > 0
    np.testing.assert_allclose(rewards, [-price] * (len(rewards) - 1) + [1 - price], atol=1e-6)


@every_world
def test_nonsense_is_invalid_and_costs_as_much_as_any_step(world: World):
    transcript = host_scripted_rollout(
        lambda key, state: world.nonsense, KEYS[2], world.environment, max_turns=3, **world.limits
    )
    check_transcript(
        transcript, max_action_length=world.max_action_length, end_of_action=world.end_of_action
    )
    assert (int(transcript.num_turns), int(transcript.num_invalid)) == (3, 3)
    assert not transcript.done
    rewards = np.asarray(transcript.rewards)
    assert rewards[0] < 0
    assert np.all(rewards == rewards[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arithmetic", pytest.param("train", marks=pytest.mark.slow)])
def test_a_model_plays(name: str):
    """A tiny transformer writes nonsense; its transcript is sound and its rewards are exact."""
    world = WORLDS[name]
    limits = world.limits | {"max_length": 96, "max_action_length": ROOM}
    lm = jitted(make_model(world.vocab_size))
    params = make_params(lm)
    for key in KEYS[:2]:
        transcript = host_rollout(lm, params, key, world.environment, max_turns=3, **limits)
        check_transcript(transcript, max_action_length=ROOM, end_of_action=world.end_of_action)
        assert len(actions(transcript)) >= 1
        assert jnp.all(jnp.where(transcript.is_action, transcript.log_probs < 0, True))


@pytest.mark.slow
def test_both_drivers_agree_in_arithmetic():
    lm = make_model(len(ARITHMETIC_VOCABULARY))
    params = make_params(lm)
    limits = {"max_turns": 3, "max_length": 60, "end_of_action": ARITHMETIC_END}
    run = jax.jit(lambda key: rollout(lm, params, key, PURE, max_action_length=ROOM, **limits))
    environment = WORLDS["arithmetic"].environment
    for key in KEYS[:2]:
        driven = host_rollout(
            jitted(lm), params, key, environment, max_action_length=ROOM, **limits
        )
        assert_equal_transcripts(driven, run(key), tolerance=1e-5)


def make_model(vocab_size: int):
    return transformer(
        TransformerConfig(vocab_size=vocab_size, max_length=96, width=8, num_layers=1, num_heads=2)
    )
