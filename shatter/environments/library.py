"""A library to be searched, driven from the host: search, open, next, quote, answer."""

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from shatter.environments.base import HostEnvironment
from shatter.environments.corpus import SPLITS, Corpus, Evidence, Question
from shatter.types import Key

LIBRARY_END = "\n"
"""The character that ends an action of `library`, and everything that it says."""
LIBRARY_ALPHABET = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?"
"""The characters of all texts of `library`; the end of an action is the first."""
_MAX_FOUND = 3
_SAID = """found: nothing, quoted. nowhere error: the line has no end. there is no such page.
no page is open. the page ends here. the paragraph does not say so.
search, open, next, quote or answer?"""


class LibraryState(NamedTuple):
    """What the environment remembers.

    Attributes:
      question: the question.
      found: the titles that the last search found.
      shown: the page and paragraph that were shown last, or None.
      quotes: what was quoted, and where.
      is_invalid: whether the last action was answered by an error.
    """

    question: Question
    found: tuple[str, ...] = ()
    shown: Evidence | None = None
    quotes: tuple[tuple[Evidence, str], ...] = ()
    is_invalid: bool = False


def library(
    corpus: Corpus, *, split: str = "train", price: float = 0.02, unquoted_reward: float = 0.5
) -> HostEnvironment:
    """Makes an environment that asks a question which only the pages of a library can answer.

    The prompt is the question. The commands, a line each, with what is said to them:
    `search WORDS`: `found: TITLES`, up to three pages that hold all the words, titles first;
    `open TITLE`: the first paragraph of the page;
    `next`: the paragraph after the one shown last, or an error after the last one;
    `quote TEXT`: `quoted.`, if the text is in the paragraph shown last;
    `answer WORD`: nothing, and the episode ends.
    Everything else, such as a line without an end, a page that does not exist or a quote that is
    not shown, is answered by `error: ...` and is invalid. The reward of an action is minus the
    price, plus 1 for the right answer if it was quoted from the paragraph that proves it, or
    `unquoted_reward` if not.

    Args:
      corpus: the library.
      split: the split whose questions are asked, one of `SPLITS`.
      price: what every action costs.
      unquoted_reward: the reward of a right answer without a quote.

    Returns:
      The environment, on strings of the characters in `LIBRARY_ALPHABET`.

    Raises:
      ValueError: if the split has no questions, or the price is negative.
    """
    if not corpus.questions.get(split):
        raise ValueError(f"expected a split with questions, one of {SPLITS}, found {split!r}")
    if not price >= 0:
        raise ValueError(f"price must not be negative, found {price}")
    questions = corpus.questions[split]

    def reset(key: Key) -> tuple[LibraryState, str]:
        # By a hash, because a callback of a running program must not compute with jax.
        digest = hashlib.blake2b(np.asarray(jax.random.key_data(key)).tobytes(), digest_size=8)
        question = questions[int(digest.hexdigest(), 16) % len(questions)]
        return LibraryState(question), question.text + LIBRARY_END

    def step(state: LibraryState, action: str) -> tuple[LibraryState, str, float, bool]:
        command, _, text = action.removesuffix(LIBRARY_END).partition(" ")
        if not action.endswith(LIBRARY_END):
            after, said = state, "error: the line has no end."
        elif command == "answer" and text:
            reward = 0.0
            if text == state.question.answer:
                proof = state.question.evidence[1]
                is_quoted = any(at == proof and text in quote for at, quote in state.quotes)
                reward = 1.0 if is_quoted else unquoted_reward
            return state._replace(is_invalid=False), "", reward - price, True
        elif command in _COMMANDS and bool(text) == (command != "next"):
            after, said = _COMMANDS[command](corpus, state, text)
        else:
            after, said = state, "error: search, open, next, quote or answer?"
        is_invalid = said.startswith("error:")
        return after._replace(is_invalid=is_invalid), said + LIBRARY_END, -price, False

    return HostEnvironment(reset, step, lambda state: state.is_invalid)


def library_words(corpus: Corpus) -> tuple[str, ...]:
    """Returns the words and marks of a library, for `word_codec`.

    Args:
      corpus: the library.

    Returns:
      The end of an action, then the words of pages, questions, commands and errors, sorted.
    """
    asked = [question.text for split in SPLITS for question in corpus.questions[split]]
    shown = [text for paragraphs in corpus.pages.values() for text in paragraphs]
    return (LIBRARY_END, *sorted({*re.findall(r"\w+|[^\w\s]", " ".join([*asked, *shown, _SAID]))}))


def _search(corpus: Corpus, state: LibraryState, text: str) -> tuple[LibraryState, str]:
    words = text.lower().split()
    holds = lambda words_of: all(word in words_of for word in words)
    titles = [title for title in corpus.pages if holds(title.lower().split())]
    others = [
        title
        for title, paragraphs in corpus.pages.items()
        if title not in titles
        and holds(" ".join(paragraphs).lower().replace(".", "").replace(",", "").split())
    ]
    found = (titles + others)[:_MAX_FOUND]
    return state._replace(found=tuple(found)), f"found: {', '.join(found) or 'nothing'}"


def _open(corpus: Corpus, state: LibraryState, text: str) -> tuple[LibraryState, str]:
    if text not in corpus.pages:
        return state, "error: there is no such page."
    return state._replace(shown=Evidence(text, 0)), corpus.pages[text][0]


def _next(corpus: Corpus, state: LibraryState, text: str) -> tuple[LibraryState, str]:
    del text
    if state.shown is None:
        return state, "error: no page is open."
    title, paragraph = state.shown
    if paragraph + 1 == len(corpus.pages[title]):
        return state, "error: the page ends here."
    shown = Evidence(title, paragraph + 1)
    return state._replace(shown=shown), corpus.pages[title][paragraph + 1]


def _quote(corpus: Corpus, state: LibraryState, text: str) -> tuple[LibraryState, str]:
    if state.shown is None:
        return state, "error: no page is open."
    if text not in corpus.pages[state.shown.title][state.shown.paragraph]:
        return state, "error: the paragraph does not say so."
    return state._replace(quotes=(*state.quotes, (state.shown, text))), "quoted."


_COMMANDS = {"search": _search, "open": _open, "next": _next, "quote": _quote}


def library_expert(corpus: Corpus, *, quality: float = 1.0) -> Callable[[Key, LibraryState], str]:
    """Makes a script that answers the questions of a library, or fails at a given rate.

    It goes to the page of the first fact, from there to that of the second, quotes this and
    answers. An action is a mistake with probability 1 - q, independently: in the place of the right
    answer a wrong one, and in the place of any other command a search that finds nothing. With
    turns enough it is right with probability q, and mistakes before the answer cost steps.

    Args:
      corpus: the library.
      quality: q, between 0 and 1.

    Returns:
      `(key, state) -> action`.

    Raises:
      ValueError: if the quality is not between 0 and 1.
    """
    if not 0 <= quality <= 1:
        raise ValueError(f"quality must be between 0 and 1, found {quality}")

    def act(key: Key, state: LibraryState) -> str:
        slips = not bool(jax.random.bernoulli(key, quality))
        return (_mistake if slips else _right_command)(corpus, state) + LIBRARY_END

    return act


def _mistake(corpus: Corpus, state: LibraryState) -> str:
    del corpus
    if not state.quotes:
        return "search nowhere"
    return f"answer {state.question.company}"


def _right_command(corpus: Corpus, state: LibraryState) -> str:
    """Returns the next command on the shortest way to the answer."""
    if state.quotes:
        return f"answer {state.question.answer}"
    first, second = state.question.evidence
    title, paragraph = state.shown or Evidence("", 0)
    if title == second.title:
        if paragraph == second.paragraph:
            return f"quote {corpus.pages[title][paragraph]}"
        return "next" if paragraph < second.paragraph else f"open {title}"
    if second.title in state.found:
        return f"open {second.title}"
    if title == first.title:
        if paragraph == first.paragraph:
            return f"search {second.title}"
        return "next" if paragraph < first.paragraph else f"open {title}"
    return f"{'open' if first.title in state.found else 'search'} {first.title}"
