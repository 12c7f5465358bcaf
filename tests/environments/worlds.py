"""A tiny environment that repeats what is said, models for it, and what a transcript must be."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter.environments import Environment, Tokens, Transcript
from shatter.models import LanguageModel, TransformerConfig, tabular, transformer
from shatter.types import Array

V, END = 4, 3
LIMITS = {"max_turns": 2, "max_action_length": 3, "max_length": 9, "end_of_action": END}
MODELS = {
    "tabular": tabular(vocab_size=V, max_length=LIMITS["max_length"] - 1, num_prompts=2),
    "transformer": transformer(
        TransformerConfig(vocab_size=V, max_length=9, width=8, num_layers=1, num_heads=2)
    ),
}


class EchoState(NamedTuple):
    prompt: Array
    num_steps: Array
    is_invalid: Array


def reset(key):
    prompt = jax.random.randint(key, (), 0, 2, int)
    state = EchoState(prompt, jnp.zeros((), int), jnp.zeros((), bool))
    return state, Tokens(prompt[None], jnp.ones((), int))


def step(state, action):
    """Says the action without its end; an end alone ends the episode; a 2 is ill-formed."""
    inside = jnp.arange(action.tokens.shape[0]) < action.length
    is_end = action.tokens[jnp.maximum(action.length - 1, 0)] == END
    ones = jnp.sum(inside & (action.tokens == 1))
    reward = ones + 0.25 * state.prompt - 0.125
    state = state._replace(
        num_steps=state.num_steps + 1, is_invalid=jnp.any(inside & (action.tokens == 2))
    )
    return state, Tokens(action.tokens, action.length - is_end), reward, action.length == is_end


ECHO = Environment(reset, step, lambda state: state.is_invalid)


def uncached(lm: LanguageModel) -> LanguageModel:
    return lm._replace(init_cache=None, decode=None)


def jitted(lm: LanguageModel) -> LanguageModel:
    decode = None if lm.decode is None else jax.jit(lm.decode)
    return lm._replace(apply=jax.jit(lm.apply), decode=decode)


def make_params(lm: LanguageModel):
    """Draws parameters with NumPy, because compiling an init takes longer."""
    scale = 1.0 if lm.decode is None else 0.5
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.array(scale * rng.standard_normal(leaf.shape)), shapes)


def row(transcripts: Transcript, i: int) -> Transcript:
    return jax.tree.map(lambda leaf: leaf[i], transcripts)


def actions(transcript: Transcript) -> list[list[int]]:
    """Returns the tokens of every action."""
    turns, written = np.asarray(transcript.turns), np.asarray(transcript.is_action)
    tokens = np.asarray(transcript.tokens)
    return [tokens[written & (turns == turn)].tolist() for turn in range(int(transcript.num_turns))]


def check_transcript(transcript: Transcript, *, max_action_length: int, end_of_action: int) -> None:
    """Checks what holds for every transcript, whoever drove it."""
    valid, written = np.asarray(transcript.valid), np.asarray(transcript.is_action)
    length, num_turns = int(valid.sum()), int(transcript.num_turns)
    assert valid.tolist() == [True] * length + [False] * (valid.size - length)
    assert not written[0]
    assert written[length - 1]
    assert not (written & ~valid).any()
    assert np.all(np.asarray(transcript.tokens)[~valid] == 0)
    assert np.all(np.asarray(transcript.log_probs)[~written] == 0)
    turns = np.asarray(transcript.turns)[valid]
    assert np.all(np.diff(turns) >= 0)
    assert turns[-1] + 1 == num_turns
    assert np.all(np.isfinite(transcript.rewards))
    assert np.all(np.asarray(transcript.rewards)[num_turns:] == 0)
    assert not np.asarray(transcript.is_invalid)[num_turns:].any()
    assert int(transcript.num_invalid) == int(np.sum(transcript.is_invalid))
    said = actions(transcript)
    assert len(said) == num_turns
    for turn, action in enumerate(said):
        assert 1 <= len(action) <= max_action_length
        assert end_of_action not in action[:-1]
        if action[-1] != end_of_action:
            assert len(action) == max_action_length
            assert transcript.is_invalid[turn]


def assert_equal_transcripts(first: Transcript, second: Transcript, tolerance: float = 0) -> None:
    for name, a, b in zip(Transcript._fields, first, second, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        check = partial(np.testing.assert_allclose, rtol=0, atol=tolerance, err_msg=name)
        check(np.asarray(a, float), np.asarray(b, float))
