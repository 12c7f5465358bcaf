"""What a frozen model, and n-grams, say of every option of a poll's questions."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.common.features import text_features
from experiments.people.config import Config
from experiments.people.polls import Item, Poll
from shatter import data
from shatter.cli.common.frozen import Frozen
from shatter.cli.common.votes import Floats, Ints

FEWEST_TEXTS, MOST_GRAMS = 2, 6000  # texts that must contain an n-gram, and n-grams in all
LENGTH_SCALE = 0.3  # the deviation of the two features of the length


class Inputs(NamedTuple):
    """Arrays about the options of Q questions, for everybody and for G groups.

    Attributes:
      features: `[N, F]`, the frozen model's, of every text under every prompt.
      grams: `[N, V]`, those of n-grams.
      log_probs: `[N]`, the frozen model's, summed over the option's tokens, nats.
      places: int `[Q, 1 + G, K]`, the row of each option; under a group's prompt where the poll has
        groups that prompts can say, under everybody's otherwise. 0 in empty slots.
      valid: bool `[Q, K]`, false in empty slots.
    """

    features: np.ndarray
    grams: np.ndarray
    log_probs: Floats
    places: Ints
    valid: np.ndarray


def make_inputs(config: Config, poll: Poll, model: Frozen) -> Inputs:
    """Computes the features and log-probs, or reads them from the user's cache.

    Args:
      config: the config.
      poll: the poll.
      model: the frozen model.

    Returns:
      The inputs.
    """
    numbers: dict[Item, int] = {}
    places = np.zeros(poll.counts.shape, int)
    valid = np.zeros((len(poll.questions), poll.counts.shape[2]), bool)
    for q, question in enumerate(poll.questions):
        valid[q, : len(question.options)] = True
        prompts = [question.prompt]
        for group in poll.groups:
            is_said = config.dataset == "survey_opinions"  # Polis's groups have no description
            prompts.append(
                str(data.with_group(question.prompt, group)) if is_said else question.prompt
            )
        for g, prompt in enumerate(prompts):
            for k, option in enumerate(question.options):
                places[q, g, k] = numbers.setdefault((prompt, option), len(numbers))
    items = list(numbers)
    found = text_features(model, items, num_depths=config.num_depths, max_length=config.max_length)
    rows = [data.Row(prompt, (text,), (0,)) for prompt, text in items]
    encoded, _ = data.encode_rows(rows, model.tokenizer, max_length=config.max_length)
    lengths = np.array([len(row.completions[0]) for row in encoded])
    return Inputs(
        features=found["features"],
        grams=gram_features(items),
        log_probs=found["log_prob"].astype(float) * lengths,
        places=places,
        valid=valid,
    )


def gram_features(items: Sequence[Item]) -> np.ndarray:
    """Returns features of texts that know no language: words, pairs of words, and the length.

    The words of a text count, and those of its prompt together with the whole text, because a short
    option means something else after another question. A feature's value is 1 over the root of the
    number of the text's features.

    Args:
      items: N texts, each with its prompt.

    Returns:
      float32 `[N, V]`.
    """
    bags = [sorted(_grams(prompt, text)) for prompt, text in items]  # the same in every process
    counts = Counter(gram for bag in bags for gram in bag)
    kept = [gram for gram, count in counts.most_common(MOST_GRAMS) if count >= FEWEST_TEXTS]
    columns = {gram: n for n, gram in enumerate(kept)}
    features = np.zeros((len(items), len(kept) + 2), np.float32)
    for row, (bag, (_, text)) in enumerate(zip(bags, items, strict=True)):
        own = [columns[gram] for gram in bag if gram in columns]
        features[row, own] = 1 / max(len(own), 1) ** 0.5
        features[row, -2:] = len(text) / 100, np.log(1 + len(text))
    return features


def gram_components(features: np.ndarray, in_pool: np.ndarray, number: int) -> np.ndarray:
    """Returns the first principal components of n-grams, of mean square 1 together over the pool.

    The features are not scaled one by one, unlike a model's, because a rare n-gram would then weigh
    as much as a common one.

    Args:
      features: `[N, V]`, those of n-grams, then two of the length.
      in_pool: bool `[N]`, the texts that may be looked at.
      number: P, of the components.

    Returns:
      `[N, P]`, or fewer components where there are no more.
    """
    centred = features - features[in_pool].mean(axis=0)
    centred[:, -2:] *= LENGTH_SCALE / (centred[in_pool, -2:].std(axis=0) + 1e-9)
    *_, rotation = np.linalg.svd(centred[in_pool], full_matrices=False)
    found = centred @ rotation[:number].T
    return found / np.sqrt(np.mean(np.square(found[in_pool])))


def _grams(prompt: str, text: str) -> set[str]:
    words, before = (re.findall(r"\w+|[^\w\s]", part.lower()) for part in (text, prompt))
    pairs = {f"{a} {b}" for a, b in itertools.pairwise(words)}
    return {*words} | pairs | {f"{text.strip().lower()} | {word}" for word in before}
