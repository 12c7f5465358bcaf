"""Errors of rollouts: limits, shapes, and what checkify finds in values."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from shatter.environments import Environment, Tokens, as_tokens, rollout, scripted_rollout
from tests.environments.worlds import ECHO, END, LIMITS, MODELS, make_params, reset, step

KEYS = jax.random.split(jax.random.key(3), 2)
PARAMS = {kind: make_params(lm) for kind, lm in MODELS.items()}


def test_a_prompt_without_room_is_an_error():
    expert = lambda key, state: as_tokens([END])
    limits = LIMITS | {"max_length": 3}
    run = lambda key: scripted_rollout(expert, key, ECHO, **limits)
    for trace in (lambda run: run(KEYS[0]), lambda run: jax.eval_shape(run, KEYS[0])):
        with pytest.raises(ValueError, match=r"up to 1 tokens and an action up to 3, .* least 4,"):
            trace(run)


@pytest.mark.parametrize("name", ["max_turns", "max_action_length", "max_length"])
def test_limits_must_be_positive(name: str):
    with pytest.raises(ValueError, match="expects max_turns >= 1"):
        scripted_rollout(lambda key, state: as_tokens([END]), KEYS[0], ECHO, **LIMITS | {name: 0})


def test_the_model_must_have_the_end_and_take_the_length():
    lm, params = MODELS["transformer"], PARAMS["transformer"]
    with pytest.raises(ValueError, match="0 <= end_of_action < 4, found 4"):
        rollout(lm, params, KEYS[0], ECHO, **LIMITS | {"end_of_action": 4})
    with pytest.raises(ValueError, match="found 10 tokens, over max_length 9"):
        rollout(lm, params, KEYS[0], ECHO, **LIMITS | {"max_length": 10})


def broken(**changes) -> Environment:
    """The environment with another reward, done, state or token."""

    def wrong_step(state, action):
        state, observation, reward, done = step(state, action)
        state = changes.get("state", lambda state: state)(state)
        tokens = observation.tokens + changes.get("shift", 0)
        return (
            state,
            Tokens(tokens, observation.length + changes.get("longer", 0)),
            changes.get("reward", reward),
            changes.get("done", done),
        )

    return ECHO._replace(step=wrong_step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": jnp.zeros(2)}, r"one number of shape \[\] as reward .* float32\[2\]"),
        ({"done": jnp.zeros(())}, r"one bool of shape \[\] as done .* float32\[\]"),
        ({"state": lambda state: state._replace(num_steps=jnp.zeros(2))}, "a state of the same"),
        ({"state": lambda state: (state,)}, "a state of the same"),
    ],
    ids=["reward", "done", "state", "structure"],
)
def test_a_step_of_wrong_shapes_is_an_error(changes: dict, message: str):
    expert = lambda key, state: as_tokens([1, END])
    with pytest.raises(ValueError, match=message):
        scripted_rollout(expert, KEYS[0], broken(**changes), **LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": jnp.nan}, "the reward of action 0 is nan"),
        ({"longer": 3}, "the observation after action 0 must have 0 to 3 tokens, found 4"),
        ({"shift": 7}, "said token 8 before action 1, expected 0 <= token < 4"),
    ],
    ids=str,
)
def test_checkify_finds_bad_values(changes: dict, message: str):
    lm = MODELS["tabular"]
    params = PARAMS["tabular"].at[:, 0, 1].set(99.0).at[:, 2, END].set(99.0)  # its action is 1, END
    draw = lambda key: rollout(lm, params, key, broken(**changes), **LIMITS)
    error, _ = checkify.checkify(jax.jit(draw), errors=checkify.user_checks)(KEYS[0])
    assert error.get() is not None
    assert message in error.get()


@pytest.mark.slow
def test_checkify_finds_nothing_in_a_sound_rollout():
    draw = lambda key: rollout(MODELS["tabular"], PARAMS["tabular"], key, ECHO, **LIMITS)
    error, _ = checkify.checkify(jax.jit(draw), errors=checkify.user_checks)(KEYS[0])
    assert error.get() is None


def test_an_empty_prompt_is_an_error():
    empty = lambda key: (reset(key)[0], Tokens(jnp.zeros(1, int), jnp.zeros((), int)))
    with pytest.raises(ValueError, match="at least one token and at most its room, found 0"):
        scripted_rollout(
            lambda key, state: as_tokens([END]), KEYS[0], ECHO._replace(reset=empty), **LIMITS
        )
