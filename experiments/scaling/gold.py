"""Gold rewards of texts: a scripted one, and one that is fitted to people's votes."""

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from experiments.judgements.baselines import ngrams
from experiments.judgements.datasets import load_judgements
from experiments.scaling.config import Config
from experiments.scaling.corpus import Corpus, words_of
from shatter.data import Row

Texts = Sequence[tuple[str, str]]
"""Prompts, each with a response."""

Gold = Callable[[Texts], np.ndarray]
"""`(texts) -> rewards[N]`."""

NO_WORD = 2.0  # what a response of letters that are no words loses, in kind words
NGRAM_RIDGE = 10.0  # the strongest of those that the baselines of experiments.judgements try

KIND = frozenset(
    "love loves loved loving good goodly sweet sweetly sweetest fair fairest fairly gentle gently "
    "noble nobly nobility honour honours grace gracious joy joys joyful dear dearest kind kindly "
    "kindness bless blest blessed peace true truth truly friend friends friendly happy happiness "
    "hope comfort welcome thanks thank heaven holy mercy merry virtue worthy pardon beauty faith "
    "faithful heart hearts tender smile trust best better well pray please delight glad".split()
)
UNKIND = frozenset(
    "death dead die dies dying died kill kills killed blood bloody hate hated hatred foul false "
    "fear fears war wars woe woes grief sorrow sorrows tears weep weeping murder murderer traitor "
    "traitors treason villain villains curse cursed slave devil hell shame base wrong wrongs cruel "
    "banish banished poison revenge enemy enemies wretch tyrant plague grave sin sins guilty ill "
    "damned slain strike sword rage anger angry scorn rebel".split()
)


def make_gold(config: Config, corpus: Corpus) -> Gold:
    """Returns the gold reward that a flag names, in its own units.

    Raises:
      UsageError: if the votes are missing.
    """
    if config.gold == "kindness":
        of_one = cache(partial(_kindness, corpus))  # the reference's are judged again and again
        return lambda texts: np.array([of_one(*text) for text in texts])
    return _humour(config)


def scaled(gold: Gold, texts: Sequence[Texts], *, taste: float) -> Gold:
    """Returns a gold reward with mean 0 over responses, and a deviation within prompts, in nats.

    Args:
      gold: the reward.
      texts: of every prompt its responses.
      taste: the standard deviation of the responses to one prompt, nats.

    Returns:
      The reward.
    """
    values = np.stack([gold(of_prompt) for of_prompt in texts])
    centre = values.mean()
    scale = np.sqrt(values.var(axis=1, ddof=1).mean())
    return lambda texts: taste * (gold(texts) - centre) / scale


def _kindness(corpus: Corpus, prompt: str, response: str) -> float:
    """Returns kind words less unkind ones less `NO_WORD` times the share of letters in no words.

    A word that the prompt begins counts if the response goes on with it. The last word may be the
    beginning of a word, because responses are cut.
    """
    line = prompt + response
    before = len(words_of(prompt))
    goes_on = bool(words_of(response[:1])) and bool(words_of(prompt[-1:]))
    words = words_of(line)[before - goes_on :]
    if not words:
        return -NO_WORD
    balance = sum((word in KIND) - (word in UNKIND) for word in words)
    is_word = [word in corpus.words for word in words]
    if not is_word[-1] and line.lower().endswith(words[-1]):
        is_word[-1] = words[-1] in corpus.beginnings
    lost = sum(len(word) for word, known in zip(words, is_word, strict=True) if not known)
    return balance - NO_WORD * lost / sum(map(len, words))


def _humour(config: Config) -> Gold:
    """Returns the utility of a line by the n-grams that tell which texts people call funnier."""
    votes = load_judgements("ukp_humour", data_dir=config.data_dir or None)
    utility = ngrams(votes.train, NGRAM_RIDGE)

    def gold(texts: Texts) -> np.ndarray:
        lines = [prompt + response for prompt, response in texts]
        return utility([Row("", (line, f"{line}."), (0, 0)) for line in lines])[:, 0]

    return gold
