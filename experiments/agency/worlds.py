"""What agents act in: arithmetic with a calculator, or a library; with an expert's episodes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.agency.config import Config
from shatter import environments
from shatter.cli.common.binary import UsageError
from shatter.environments import Environment, Transcript
from shatter.types import Array, Key

_HELD_OUT = 5  # one question of arithmetic in so many
_KEYS = 1 << 13  # draws of a question, among which every part of the questions has its own
_LIBRARY_KEYS = 1 << 11
_POOL = 2  # demonstrations in all, over those of a seed
_LIBRARY_TURNS = 10  # one more than the expert needs


class World(NamedTuple):
    """An environment and what its expert has shown.

    Attributes:
      environment: the environment, of all questions.
      train: keys `[N]` whose resets ask a question of the training part.
      held_out: keys whose resets ask other questions, by what is new in these; the first is the
        measure.
      pool: episodes of the expert about questions of the training part, `[D]` on every leaf.
      pages: the pages of the library, in tokens; none in arithmetic.
      limits: of an episode.
      vocabulary: the words of the tokens, for a model of our own; none where a tokenizer writes.
      prompt_room: the largest number of tokens of a question.
    """

    environment: Environment
    train: Key
    held_out: dict[str, Key]
    pool: Transcript
    pages: tuple[tuple[int, ...], ...]
    limits: dict[str, int]
    vocabulary: tuple[str, ...]
    prompt_room: int


def arithmetic_world(config: Config) -> World:
    """Returns arithmetic with a calculator; a fifth of its questions is held out.

    Args:
      config: the config.

    Returns:
      The world.

    Raises:
      UsageError: if numbers would have too many digits.
    """
    try:
        sizes = environments.ArithmeticConfig(
            config.num_operations, config.max_operand, config.price
        )
    except ValueError as error:
        raise UsageError(f"--num_operations, --max_operand: {error}") from error
    environment = environments.arithmetic(sizes)
    keys, show_keys = _keys(config)
    states, _ = jax.jit(jax.vmap(environment.reset))(keys)
    numbers = np.concatenate([states.operands, states.operators], axis=1)
    is_new = np.sum(numbers * (1 + 2 * np.arange(numbers.shape[1])), axis=1) % _HELD_OUT == 0
    prompt_room = environment.reset(keys[0])[1].tokens.shape[0]
    turns = config.num_operations + 2  # one more than the expert needs
    turn = sizes.max_action_length + 2 + sizes.num_digits  # an action and the calculator's answer
    limits = {
        "max_turns": turns,
        "max_action_length": sizes.max_action_length,
        "max_length": prompt_room + turns * turn,
        "end_of_action": environments.ARITHMETIC_END,
    }
    expert = environments.arithmetic_expert(sizes, quality=config.quality)
    train = keys[np.flatnonzero(~is_new)]
    show = lambda key: environments.scripted_rollout(
        expert, key, asking(environment, train, key), **limits
    )
    pool, limits = _tight(jax.jit(jax.vmap(show))(show_keys), limits)
    held_out = {"questions": keys[np.flatnonzero(is_new)]}
    vocabulary = environments.ARITHMETIC_VOCABULARY
    return World(environment, train, held_out, pool, (), limits, vocabulary, prompt_room)


def asking(environment: Environment, keys: Key, key: Key) -> Environment:
    """Returns an environment that asks one question, drawn from those of some keys.

    Args:
      environment: the environment.
      keys: `[N]`.
      key: a typed key, by which one of them is drawn.

    Returns:
      The environment, whose reset has no randomness.
    """
    place = jax.random.randint(jax.random.fold_in(key, 7), (), 0, keys.shape[0])
    first = environment.reset(keys[place])
    return environment._replace(reset=lambda _: first)


def library_world(config: Config, codec: environments.Codec | None = None) -> World:
    """Returns a library with questions of its four splits.

    Args:
      config: the config.
      codec: how a pretrained model writes; None = a token for every word.

    Returns:
      The world.

    Raises:
      UsageError: if the codec cannot write what is said, or an action's end is not one token.
    """
    corpus = environments.make_corpus(jax.random.key(0), num_companies=config.num_companies)
    words = environments.library_words(corpus)
    vocabulary = words if codec is None else ()
    codec = environments.word_codec(words) if codec is None else codec
    end = codec.encode(environments.LIBRARY_END)[-1:]
    if codec.decode(end) != environments.LIBRARY_END:
        raise UsageError(
            f"--model_name_or_path={config.model_name_or_path}: expected a tokenizer with a token "
            f"for the end of a line, which ends an action, found {codec.decode(end)!r}: take "
            "another model, or none"
        )
    room, said, prompt = _library_room(corpus, codec)
    most = max(said, prompt)
    limits = room | {"max_length": prompt + _LIBRARY_TURNS * (room["max_action_length"] + said)}
    asked_of = {split: corpus.questions[split] for split in environments.SPLITS}
    everything = tuple(question for asked in asked_of.values() for question in asked)
    whole = corpus._replace(questions={"all": everything})
    host = environments.library(whole, split="all", price=config.price)
    inside = environments.in_program(host, max_observation_length=most, codec=codec, **room)
    keys, show_keys = _keys(config)
    parts = _parts(asked_of, host, keys[:_LIBRARY_KEYS])
    teaching = environments.library(corpus, split="train", price=config.price)
    expert = environments.library_expert(corpus, quality=config.quality)
    show = lambda key: environments.host_scripted_rollout(
        expert, key, teaching, codec=codec, **limits
    )
    shown = [show(key) for key in show_keys]
    pool, limits = _tight(jax.tree.map(lambda *leaves: jnp.stack(leaves), *shown), limits)
    pages = [
        tuple(codec.encode("".join(f"{text}\n" for text in page))) for page in corpus.pages.values()
    ]
    train = parts.pop("train")
    return World(inside, train, parts, pool, tuple(pages), limits, vocabulary, most)


def _library_room(
    corpus: environments.Corpus, codec: environments.Codec
) -> tuple[dict[str, int], int, int]:
    """Returns the limits of a turn, and the tokens of the longest answer and question."""
    size = lambda text: len(codec.encode(f"{text}\n"))
    lines = [text for paragraphs in corpus.pages.values() for text in paragraphs]
    asked = [q.text for split in environments.SPLITS for q in corpus.questions[split]]
    titles = sorted(corpus.pages, key=size)[-3:]
    room = {
        "max_turns": _LIBRARY_TURNS,
        "max_action_length": max(size(f"quote {text}") for text in lines),
        "end_of_action": codec.encode(environments.LIBRARY_END)[-1],
    }
    found = f"found: {', '.join(titles)}"
    said = [found, *lines, "error: search, open, next, quote or answer?"]
    return room, max(map(size, said)), max(map(size, asked))


def _parts(
    asked_of: dict[str, tuple[environments.Question, ...]],
    environment: environments.HostEnvironment,
    keys: Key,
) -> dict[str, Key]:
    """Returns the keys whose resets of the whole library ask a question of each split."""
    split_of = {question.text: split for split, asked in asked_of.items() for question in asked}
    found = np.array([split_of[environment.reset(key)[0].question.text] for key in keys])
    return {split: keys[np.flatnonzero(found == split)] for split in asked_of}


def _keys(config: Config) -> tuple[Key, Key]:
    """Returns the keys of questions, and those of demonstrations."""
    questions, shown = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    number = _POOL * config.num_demonstrations
    return jax.random.split(questions, _KEYS), jax.random.split(shown, number)


def _tight(pool: Transcript, limits: dict[str, int]) -> tuple[Transcript, dict[str, int]]:
    """Cuts the padding that only longer episodes than the expert's would need.

    Almost all of the cost of an update is that of its padded length. An action more than in the
    longest episode of the expert has room, so that none of its own turns is cut.

    Returns:
      The episodes and the limits.
    """
    longest = int(np.max(np.sum(np.asarray(pool.valid), axis=-1)))
    length = min(limits["max_length"], longest + limits["max_action_length"])
    cut = {
        name: getattr(pool, name)[:, :length]
        for name in ("tokens", "is_action", "valid", "log_probs", "turns")
    }
    return pool._replace(**cut), limits | {"max_length": length}


def page_rows(world: World, length: int, rng: np.random.Generator, num_rows: int = 512) -> Array:
    """Returns pages one after the other in random orders, as rows of plain text.

    Args:
      world: the world.
      length: T, the tokens of a row.
      rng: the source of the orders.
      num_rows: N.

    Returns:
      int `[N, T]`; without rows where there are no pages.
    """
    if not world.pages:
        return jnp.zeros((0, length), int)
    rows = []
    for _ in range(num_rows):
        row: list[int] = []
        while len(row) < length:
            row += world.pages[rng.integers(len(world.pages))]
        rows.append(row[:length])
    return jnp.asarray(rows, int)


def shown_first(world: World, question: environments.Tokens, key: Key, num_shown: int) -> Any:
    """Returns a question that comes after episodes of the expert.

    Args:
      world: the world.
      question: the question.
      key: a typed key, by which the episodes are drawn.
      num_shown: the number of episodes.

    Returns:
      A text.
    """
    pool = world.pool
    rows = jax.random.choice(key, pool.tokens.shape[0], (num_shown,), replace=False)
    lengths = jnp.sum(pool.valid, axis=-1)
    shown = [environments.Tokens(pool.tokens[row], lengths[row]) for row in rows]
    return environments.join([*shown, question])
