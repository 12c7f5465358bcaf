"""A small made-up library: pages about companies, people and towns, and questions about them."""

from typing import NamedTuple

import jax
import numpy as np

from shatter.types import Key

_FIRST = ("Bar", "Del", "Fen", "Gol", "Hul", "Kar", "Lom", "Mir", "Nor", "Pel", "Ras", "Sol", "Tam")
_SECOND = ("ab", "ed", "ik", "os", "un", "avi", "elo", "imu", "oka", "ute")
_TRADES = ("baker", "printer", "weaver", "painter", "mason", "sailor", "tailor", "smith")
_GOODS = ("glass", "paper", "rope", "lamps", "clocks", "boots", "bricks", "cloth")

# kind of question -> the wordings for training, then the new one
_WORDINGS = {
    "birthplace": (
        "Where was the founder of {} born?",
        "In which town was the person born who founded {}?",
        "Name the birthplace of whoever set up {}.",
    ),
    "trade": (
        "What was the trade of the founder of {}?",
        "Which trade did the person have who founded {}?",
        "Say how whoever set up {} earned a living before.",
    ),
    "river": (
        "On which river is the seat of {}?",
        "Which river flows through the town where {} has its seat?",
        "Name the water next to the headquarters of {}.",
    ),
}
SPLITS = ("train", "questions", "entities", "phrasings")
"""The splits of the questions: those for training; new questions about companies, in phrasings,
that are known from training; companies that no question of the other splits is about; phrasings
that no question of the other splits has."""


class Evidence(NamedTuple):
    """Where a fact is found.

    Attributes:
      title: the page.
      paragraph: the place of the paragraph in the page, from 0.
    """

    title: str
    paragraph: int


class Question(NamedTuple):
    """A question whose answer takes two facts, on two pages.

    Attributes:
      text: the question.
      company: the company that it is about.
      kind: "birthplace", "trade" or "river".
      phrasing: the place of its wording among those of its kind; the last one is the new one.
      answer: a single word.
      evidence: where the first fact is, which names the page of the second, and the second.
    """

    text: str
    company: str
    kind: str
    phrasing: int
    answer: str
    evidence: tuple[Evidence, Evidence]


class Corpus(NamedTuple):
    """A library and the questions about it.

    Attributes:
      pages: the paragraphs of every page by its title, a single word.
      questions: the questions of every split.
    """

    pages: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[Question, ...]]


def make_corpus(key: Key, *, num_companies: int = 12) -> Corpus:
    """Draws a library: names, who founded what, who was born where, what lies on which river.

    A company's page names its founder and its seat; a person's page the trade and the birthplace;
    a town's page the river. The last third of the companies, with founders and seats of their own,
    is held out for the split "entities". Of every other company one kind of question is held out
    for the split "questions".

    Args:
      key: a typed key.
      num_companies: the number of companies, 3 to 30; there are as many people and towns.

    Returns:
      The library.

    Raises:
      ValueError: if the number of companies is out of its range.
    """
    if not 3 <= num_companies <= 30:
        raise ValueError(f"expected 3 <= num_companies <= 30, found {num_companies}")
    name_key, fact_key = jax.random.split(key)
    stems = [first + second for first in _FIRST for second in _SECOND]
    order = np.asarray(jax.random.permutation(name_key, len(stems)))[: 4 * num_companies]
    names = [stems[place] for place in order]
    companies, people, towns, rivers = (names[start::4] for start in range(4))
    companies = [f"{name}corp" for name in companies]
    towns, rivers = [f"{name}ville" for name in towns], [f"{name}water" for name in rivers]
    drawn = np.asarray(jax.random.randint(fact_key, (3, num_companies), 0, 1 << 20))
    pages: dict[str, tuple[str, ...]] = {}
    facts: dict[str, dict[str, tuple[str, tuple[Evidence, Evidence]]]] = {}
    for i, (company, person, town, river) in enumerate(
        zip(companies, people, towns, rivers, strict=True)
    ):
        trade, goods = _TRADES[drawn[0, i] % len(_TRADES)], _GOODS[drawn[1, i] % len(_GOODS)]
        birthplace = towns[drawn[2, i] % num_companies]
        pages[company] = (
            f"{company} is a company that makes {goods}.",
            f"{company} was founded by {person}.",
            f"{company} has its seat in {town}.",
        )
        pages[person] = (f"{person} was a {trade}.", f"{person} was born in {birthplace}.")
        pages[town] = (f"{town} is a town.", f"{town} lies on the river {river}.")
        founder, seat = Evidence(company, 1), Evidence(company, 2)
        facts[company] = {
            "birthplace": (birthplace, (founder, Evidence(person, 1))),
            "trade": (trade, (founder, Evidence(person, 0))),
            "river": (river, (seat, Evidence(town, 1))),
        }
    return Corpus(pages, _split(companies, facts))


def _split(
    companies: list[str], facts: dict[str, dict[str, tuple[str, tuple[Evidence, Evidence]]]]
) -> dict[str, tuple[Question, ...]]:
    """Returns the questions of every split."""
    questions: dict[str, list[Question]] = {split: [] for split in SPLITS}
    kinds, num_old = tuple(_WORDINGS), len(companies) - len(companies) // 3
    for i, company in enumerate(companies):
        for kind, (answer, evidence) in facts[company].items():
            *known, new = (
                Question(wording.format(company), company, kind, place, answer, evidence)
                for place, wording in enumerate(_WORDINGS[kind])
            )
            is_held_out = kind == kinds[i % len(kinds)]
            split = "entities" if i >= num_old else "questions" if is_held_out else "train"
            questions[split] += known
            if split == "train":
                questions["phrasings"].append(new)
    return {split: tuple(asked) for split, asked in questions.items()}
