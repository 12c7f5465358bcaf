"""Errors of the host's driver, with the text and the turn."""

import jax
import jax.numpy as jnp
import pytest

from shatter.environments import (
    Codec,
    HostEnvironment,
    character_codec,
    host_rollout,
    host_scripted_rollout,
    on_host,
)
from tests.environments.worlds import ECHO, LIMITS, MODELS, make_params

KEY = jax.random.key(0)
CODEC = character_codec("abc.")
END = 3


def talking(says: list[str], reward: object = 0.5) -> HostEnvironment:
    """An environment that says one text after the other, the prompt first."""
    step = lambda turn, action: (turn + 1, says[turn + 1], reward, False)
    return HostEnvironment(lambda key: (0, says[0]), step)


def play(environment: HostEnvironment, expert=lambda key, state: "a.", **changes):
    limits = LIMITS | {"end_of_action": END, "codec": CODEC} | changes
    return host_scripted_rollout(expert, KEY, environment, **limits)


def test_strings_are_written_and_read_by_the_codec():
    heard = []

    def step(state, action):
        heard.append(action)
        return state, "bb", 0.5, len(heard) == 2

    transcript = play(HostEnvironment(lambda key: (None, "ab"), step))
    assert heard == ["a.", "a."]
    assert CODEC.decode(transcript.tokens[:8]) == "aba.bba."
    assert transcript.is_action.tolist() == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2 + [
        False
    ]
    assert transcript.rewards.tolist() == [0.5, 0.5]
    assert transcript.done


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (["axb"], r"cannot write the first observation, 'axb': the alphabet has no 'x'; make"),
        (["a", "b?"], r"cannot write the observation after action 0, 'b\?': .* no '\?'"),
        (["a", 7], "expected the observation after action 0 to be a string, .* found 7"),
    ],
    ids=str,
)
def test_text_that_the_tokenizer_cannot_write_is_an_error(says: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        play(talking(says))


def test_text_that_the_tokenizer_changes_is_an_error():
    """A tokenizer with a token for all that is unknown raises nothing itself."""
    codec = Codec(lambda text: ["abc.".find(c) % 4 for c in text], CODEC.decode)
    with pytest.raises(ValueError, match=r"after action 0, 'bx': its tokens read 'b\.'; make"):
        play(talking(["a", "bx"]), codec=codec)


def test_an_action_of_the_script_must_be_writable():
    with pytest.raises(ValueError, match="cannot write action 0 of the script, 'x'"):
        play(talking(["a", "b"]), expert=lambda key, state: "x")


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), [0.5, 0.5], jnp.zeros(1)], ids=str)
def test_a_reward_that_is_not_one_finite_number_is_an_error(reward: object):
    with pytest.raises(ValueError, match="one finite number as the reward of action 0, found"):
        play(talking(["a", "b"], reward))


def test_a_prompt_without_room_is_an_error():
    with pytest.raises(ValueError, match="found 7 tokens: raise max_length to at least 10, or"):
        play(talking(["abababa"]))
    with pytest.raises(ValueError, match=r"at least one token .* found 0 tokens"):
        play(talking([""]))


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match=r"max_turns >= 1, .* found 0, 3 and 9"):
        play(talking(["a"]), max_turns=0)


@pytest.mark.slow
def test_tokens_outside_the_vocabulary_are_an_error():
    lm = MODELS["tabular"]
    says = lambda token: lambda key: (0, [token])
    strange = on_host(ECHO, max_action_length=3)._replace(reset=says(4))
    with pytest.raises(ValueError, match="0 <= token < 4, found 4 in what the environment said at"):
        host_rollout(lm, make_params(lm), KEY, strange, **LIMITS)
    strange = HostEnvironment(says(1), lambda state, action: (state, [-1], 0.0, False))
    with pytest.raises(ValueError, match="found -1 in what the environment said after action 0"):
        host_rollout(lm, make_params(lm), KEY, strange, **LIMITS)


def test_actions_that_never_end_are_cut_and_counted():
    transcript = play(talking(["a", "b", "c"]), expert=lambda key, state: "abcabc")
    assert CODEC.decode(transcript.tokens[:8]) == "aabcbabc"
    assert (int(transcript.num_turns), int(transcript.num_invalid)) == (2, 2)


def test_a_codec_has_every_character_once():
    with pytest.raises(ValueError, match="every character of the alphabet once, found 'aba'"):
        character_codec("aba")
