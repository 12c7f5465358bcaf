"""Environments of the host inside a program: the same episodes, and errors with turn and text."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.environments import (
    HostEnvironment,
    as_tokens,
    character_codec,
    host_rollout,
    host_scripted_rollout,
    in_program,
    library,
    library_expert,
    library_words,
    make_corpus,
    on_host,
    rollout,
    scripted_rollout,
    word_codec,
)
from shatter.models import TransformerConfig, transformer
from tests.environments.worlds import (
    ECHO,
    END,
    LIMITS,
    MODELS,
    assert_equal_transcripts,
    jitted,
    make_params,
    row,
)

KEYS = jax.random.split(jax.random.key(7), 6)
CORPUS = make_corpus(jax.random.key(0))
WORDS = library_words(CORPUS)
CODEC = word_codec(WORDS)
IN_LIBRARY = {"max_turns": 10, "max_action_length": 10, "end_of_action": 0}
ROOM = {name: LIMITS[name] for name in ("max_turns", "max_action_length", "end_of_action")}


def wrapped(environment: HostEnvironment, **changes):
    room = ROOM | {"max_observation_length": 3} | changes
    return in_program(environment, **room)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tabular", pytest.param("transformer", marks=pytest.mark.slow)])
def test_a_program_on_the_host_in_a_program_is_itself(kind: str):
    """Lanes under two vmaps, of which one shares its keys, against the environment itself."""
    lm = MODELS[kind]
    params = make_params(lm)

    def drawn(environment):
        same = lambda draw: environment._replace(reset=lambda key: environment.reset(draw))
        run = lambda draw, key: rollout(lm, params, key, same(draw), **LIMITS)
        many = jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))
        return jax.jit(many)(KEYS[:3], KEYS)

    found = drawn(wrapped(on_host(ECHO, max_action_length=3)))
    assert_equal_transcripts(found, drawn(ECHO), tolerance=1e-6)
    assert found.tokens.shape[:2] == (3, 6) and found.num_invalid.sum() > 0


@pytest.mark.slow
def test_both_drivers_read_the_same_library():
    """A tiny transformer writes nonsense: every word of it is the same, and what is said to it."""
    sizes = {"vocab_size": len(WORDS), "max_length": 96, "width": 8, "num_layers": 1}
    lm = transformer(TransformerConfig(**sizes, num_heads=2))
    params = make_params(lm)
    environment = library(CORPUS)
    inside = in_program(environment, max_observation_length=16, codec=CODEC, **IN_LIBRARY)
    limits = IN_LIBRARY | {"max_length": 96}
    run = jax.jit(jax.vmap(lambda key: rollout(lm, params, key, inside, **limits)))
    found = run(KEYS[:2])
    for i in range(2):
        driven = host_rollout(jitted(lm), params, KEYS[i], environment, codec=CODEC, **limits)
        assert_equal_transcripts(driven, row(found, i), tolerance=1e-5)
    assert found.num_turns.min() > 2


def test_the_script_of_a_library_is_read_from_its_actions():
    """The expert's actions, given again in a program, lead to the reward that they led to."""
    expert, environment = library_expert(CORPUS), library(CORPUS, split="entities")
    limits = IN_LIBRARY | {"max_length": 120}
    shown = host_scripted_rollout(expert, KEYS[0], environment, codec=CODEC, **limits)
    assert shown.done
    written = np.asarray(shown.is_action)
    turns = np.asarray(shown.turns)
    said = [
        np.asarray(shown.tokens)[written & (turns == turn)].tolist()
        for turn in range(int(shown.num_turns))
    ]
    actions = jnp.stack([as_tokens(action, size=10).tokens for action in said])
    lengths = jnp.asarray([len(action) for action in said])
    inside = in_program(environment, max_observation_length=16, codec=CODEC, **IN_LIBRARY)
    again = lambda key, state: as_tokens([0])._replace(
        tokens=actions[state.turn], length=lengths[state.turn]
    )
    found = jax.jit(lambda key: scripted_rollout(again, key, inside, **limits))(KEYS[0])
    assert_equal_transcripts(found, shown, tolerance=1e-6)


class _Counted(NamedTuple):
    environment: HostEnvironment
    steps: list


def counted() -> _Counted:
    """An environment that notes which actions it is asked about."""
    inner, steps = on_host(ECHO, max_action_length=3), []

    def step(state, action):
        steps.append(tuple(action))
        return inner.step(state, action)

    return _Counted(inner._replace(step=step), steps)


def test_only_whole_actions_are_asked_about_and_each_once():
    found = counted()
    act = lambda key, state: as_tokens([1, 1, END])
    run = lambda key: scripted_rollout(act, key, wrapped(found.environment), **LIMITS)
    transcripts = jax.jit(jax.vmap(run))(jnp.stack([KEYS[0]] * 4))
    jax.block_until_ready(transcripts)
    assert found.steps == [(1, 1, END)] * 2
    assert transcripts.num_turns.tolist() == [2] * 4


@pytest.mark.slow
def test_a_library_answers_while_many_programs_wait_for_it():
    """A callback that ran jax itself would wait for a place behind what waits for its program."""
    inside = in_program(library(CORPUS), max_observation_length=16, codec=CODEC, **IN_LIBRARY)
    act = lambda key, state: as_tokens([WORDS.index("next"), 0])
    play = lambda key: scripted_rollout(act, key, inside, max_length=60, **IN_LIBRARY)
    run = jax.jit(lambda keys: jax.lax.map(lambda key: jax.vmap(play)(key), keys))
    waiting = run(jax.random.split(KEYS[0], (8, 40))).num_turns
    for _ in range(100):
        waiting = waiting + 1
    assert int(waiting.min()) > 100


def talking(says: list, reward: object = 0.5) -> HostEnvironment:
    step = lambda turn, action: (turn + 1, says[turn + 1], reward, False)
    return HostEnvironment(lambda key: (0, says[0]), step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "reward", "message"),
    [
        (["a", "x"], 0.5, r"the observation after action 0, 'x': the alphabet has no 'x'"),
        (["x"], 0.5, "cannot write the first observation, 'x'"),
        (["a", "abab"], 0.5, r"at most 3 tokens .* found 4 after action 0, 'abab': raise max_"),
        (["abab"], 0.5, r"at most 3 tokens .* found 4 at first, 'abab'"),
        (["a", "b"], float("nan"), "one finite number as the reward of action 0, found"),
        (["a", "b"], 0.5, r"cannot answer action 1, 'aa\.': IndexError"),
    ],
    ids=str,
)
def test_errors_name_the_turn_and_the_text(says: list, reward: float, message: str):
    inside = wrapped(talking(says, reward), codec=character_codec("abc."))
    act = lambda key, state: as_tokens([0, 0, END])
    run = jax.jit(lambda key: scripted_rollout(act, key, inside, **LIMITS))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(run(KEYS[0]))


def test_a_token_that_the_codec_does_not_have_is_named():
    inside = wrapped(talking(["a", "b"]), codec=character_codec("abc."))
    act = lambda key, state: as_tokens([7, END])
    run = jax.jit(lambda key: scripted_rollout(act, key, inside, **LIMITS))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"cannot read action 0, \[7, 3\]: Index"):
        jax.block_until_ready(run(KEYS[0]))


def test_a_reset_that_fails_says_so():
    broken = HostEnvironment(lambda key: {}["question"], lambda state, action: (state, "", 0, True))
    inside = wrapped(broken, codec=character_codec("abc."))
    with pytest.raises(jax.errors.JaxRuntimeError, match="cannot begin an episode: KeyError"):
        jax.block_until_ready(jax.jit(inside.reset)(KEYS[0]))


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="max_observation_length 0"):
        wrapped(talking(["a"]), max_observation_length=0)


def test_words_are_written_and_read():
    text = "Where was the founder of Rascorp born?\nfound: Rascorp, Delab\n"
    words = ["\n", *"?:,", "Where", "was", "the", "founder", "of", "Rascorp", "born", "found"]
    codec = word_codec([*words, "Delab"])
    assert len(codec.encode(text)) == 15
    assert codec.decode(codec.encode(text)) == text
    with pytest.raises(ValueError, match="the vocabulary has no 'Fen', 'ville'"):
        codec.encode("Fen ville was")
    for wrong in (["a", "a"], ["a b"], [" "], [".."]):
        with pytest.raises(ValueError, match="single words and marks, each once, found"):
            word_codec(wrong)


def test_the_words_of_a_library_are_all_that_is_said_in_it():
    """Every question, page, title and error, and every mistake of the expert."""
    assert WORDS[0] == "\n" and len(set(WORDS)) == len(WORDS)
    texts = [text for page in CORPUS.pages.values() for text in page]
    texts += [asked.text for split in CORPUS.questions.values() for asked in split]
    environment = library(CORPUS)
    state, _ = environment.reset(KEYS[0])
    title = next(iter(CORPUS.pages))
    commands = ["search nowhere", "next", "quote a", f"search {title}", f"open {title}", "quote x"]
    for command in [*commands, "next", "next", "next", "dance", "open it", f"quote {title}"]:
        state, said, *_ = environment.step(state, f"{command}\n")
        texts.append(said)
    texts.append(environment.step(state, "next")[1])
    for text in [*texts, *commands[:2], "answer quote open search next nowhere"]:
        if "quote a" != text:
            assert CODEC.decode(CODEC.encode(text)) == text
