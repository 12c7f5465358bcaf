"""What every model learns from and is judged by: prompts, demonstrations and comparisons."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import expit

from experiments.scaling.config import Config
from experiments.scaling.corpus import Corpus, drawn_prompts, prompts_of
from experiments.scaling.gold import Gold, scaled
from experiments.scaling.language import Language, encode_prompts, read_responses
from experiments.scaling.streams import Use, generator, keys_of
from shatter import documents
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.run_folder import read_json, write_json
from shatter.types import Key, Params

CALIBRATION_PROMPTS = 256
_AT_ONCE = 64  # prompts whose responses are drawn together


class Task(NamedTuple):
    """A seed's texts.

    Attributes:
      prompts: N, to learn from.
      pairs: two responses to each.
      choices: 0 or 1, which of a pair is chosen.
      demonstrations: the best of several responses to each prompt.
      evaluated: E prompts of held-out lines.
      references: several responses of the reference to each of them.
    """

    prompts: list[str]
    pairs: list[list[str]]
    choices: list[int]
    demonstrations: list[str]
    evaluated: list[str]
    references: list[list[str]]


class Judge(NamedTuple):
    """How texts are judged.

    Attributes:
      corpus: the text that prompts come from.
      gold: the gold reward, in nats, of mean 0 over responses of the reference.
      draw: `(prompts, key) -> responses`, of the reference, `num_drawn` to each prompt.
    """

    corpus: Corpus
    gold: Gold
    draw: Callable[[list[str], Key], list[list[str]]]


def make_judge(
    config: Config, corpus: Corpus, gold: Gold, reference: Language, params: Params
) -> Judge:
    """Returns the gold reward in nats, scaled on responses of the reference to its own prompts."""
    draw = partial(_draw, config, reference, params)
    prompts = prompts_of(config, corpus.text)
    number, rng = min(CALIBRATION_PROMPTS, len(prompts)), generator(config, 0, Use.CALIBRATE)
    prompts = drawn_prompts(prompts, number, rng)
    said = draw(prompts, keys_of(config, [0], Use.CALIBRATE)[0])
    texts = [[(prompt, text) for text in row] for prompt, row in zip(prompts, said, strict=True)]
    return Judge(corpus, scaled(gold, texts, taste=config.taste), draw)


def load_task(config: Config, judge: Judge, number: int, path: Path) -> Task:
    """Draws the texts of a seed, or reads them from a file.

    People choose by Luce's rule on the gold reward.

    Args:
      config: the config.
      judge: the gold reward and the reference.
      number: of the seed.
      path: the JSON file that keeps the texts.

    Raises:
      UsageError: if the file is damaged.
    """
    if path.exists():
        return Task(**read_json(path))
    rng = generator(config, number, Use.TEXTS)
    learn_key, judge_key = jax.random.split(keys_of(config, [number], Use.TEXTS)[0])
    prompts = drawn_prompts(prompts_of(config, judge.corpus.text), config.num_prompts, rng)
    said = judge.draw(prompts, learn_key)
    values = np.stack([golds(judge, prompts, texts) for texts in zip(*said, strict=True)], axis=1)
    second = expit(values[:, 1] - values[:, 0])
    best = np.argmax(values, axis=1)
    evaluated = drawn_prompts(prompts_of(config, judge.corpus.held_out), config.num_evaluated, rng)
    task = Task(
        prompts,
        [row[:2] for row in said],
        (rng.random(len(prompts)) < second).astype(int).tolist(),
        [row[i] for row, i in zip(said, best, strict=True)],
        evaluated,
        judge.draw(evaluated, judge_key),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, task._asdict())
    return task


def golds(judge: Judge, prompts: list[str], responses: Any) -> np.ndarray:
    """Returns the gold rewards of one response to each prompt, `[N]`, nats."""
    return judge.gold(list(zip(prompts, responses, strict=True)))


@cache
def _drawing(config: Config, language: Language) -> Callable[..., documents.Samples]:
    """Compiles `(params, key, tokens[B, P], valid[B, P]) -> samples[B, num_drawn]`."""

    @partial(jax.jit, compiler_options=compiler_options())
    def draw(params: Params, key: Key, tokens: Any, valid: Any) -> documents.Samples:
        return documents.sample(
            language.lm,
            params,
            key,
            tokens,
            num_samples=config.num_drawn,
            max_length=config.response_length,
            eos=language.ends,
            valid=valid,
        )

    return draw


def _draw(
    config: Config, language: Language, params: Params, prompts: list[str], key: Key
) -> list[list[str]]:
    """Draws `num_drawn` responses of a model of the family to every prompt."""
    program = _drawing(config, language)
    length = len(language.start) + 2 * config.prompt_length
    tokens, valid = encode_prompts(language, prompts, length=length)
    rows = np.arange(-(-len(prompts) // _AT_ONCE) * _AT_ONCE) % len(prompts)
    said: list[list[str]] = []
    for place in range(0, len(rows), _AT_ONCE):
        some = rows[place : place + _AT_ONCE]
        drawn = program(params, jax.random.fold_in(key, place), tokens[some], valid[some])
        for row, of_prompt, mask in zip(
            some, np.asarray(drawn.tokens), np.asarray(drawn.mask), strict=True
        ):
            again = [prompts[row]] * config.num_drawn
            most = config.response_length
            said.append(read_responses(language, again, of_prompt, mask, most=most))
    return said[: len(prompts)]
