"""The survey of voters and non-voters: 40 questions, their answers, and who gave them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.shares import load_shares
from experiments.common.sources import SourceError
from experiments.inclusive.arrays import UNKNOWN, Floats, Ints
from experiments.inclusive.tables import (
    Attribute,
    Table,
    attribute,
    codes,
    identifiers,
    numbered,
    positive_numbers,
    read_table,
)


class Question(NamedTuple):
    """A multiple-choice question."""

    id: str
    text: str
    options: tuple[str, ...]


class Survey(NamedTuple):
    """Answers to multiple-choice questions.

    Attributes:
      questions: [Q].
      answers: [Q, R] the chosen option's index, or -1 where the respondent gave none.
      weights: [R] survey weights, above 0, of mean about 1.
      rid: [R] the file's identifiers of the respondents.
      attributes: Groups of respondents by name ("party", "age", ...).
    """

    questions: tuple[Question, ...]
    answers: Ints
    weights: Floats
    rid: Ints
    attributes: dict[str, Attribute]

    def take(self, people: Ints) -> "Survey":
        """Returns the survey of the people with these indices."""
        return Survey(
            questions=self.questions,
            answers=self.answers[:, people],
            weights=self.weights[people],
            rid=self.rid[people],
            attributes={name: value.take(people) for name, value in self.attributes.items()},
        )


PARTIES = ("Republican", "Democrat", "Independent", "Other party", "No preference")
_AGES = {"18-34": range(18, 35), "35-54": range(35, 55), "55+": range(55, 120)}  # years
_LEVELS = {
    "race": ("White", "Black", "Hispanic", "Other/Mixed"),
    "gender": ("Female", "Male"),
    "education": ("High school or less", "Some college", "College"),
    "income": ("Less than $40k", "$40-75k", "$75-125k", "$125k or more"),
    "voting": ("rarely/never", "sporadic", "always"),
}
_ORIGINAL_COLUMNS = {"education": "educ", "income": "income_cat", "voting": "voter_category"}
# Number of options, by column, of the opinion questions that take one answer and were put to all.
_QUESTIONS = {
    **{f"Q2_{i}": 4 for i in (1, 2, 3, 6, 8, 9, 10)},
    **{f"Q3_{i}": 4 for i in (1, 2, 3, 5, 6)},
    **{f"Q4_{i}": 4 for i in (1, 2, 3, 4, 6)},
    **{"Q6": 4, "Q7": 2},
    **{f"Q8_{i}": 4 for i in range(1, 9)},
    **{"Q9_1": 4, "Q9_2": 4, "Q9_4": 4, "Q14": 5, "Q15": 5, "Q16": 4},
    **{f"Q17_{i}": 4 for i in range(1, 5)},
    **{"Q23": 3, "Q24": 4, "Q25": 4},
}


def load_nonvoters(path: str | Path, shares_path: str | Path | None = None) -> Survey:
    """Reads the 2020 survey of voters and non-voters in the United States.

    Args:
      path: The original `nonvoters_data.csv` (5,836 respondents; 1-based answers, -1 for none), or
        the prepared `nonvoters_respondents.csv` (2,912 of them drawn at random; 0-based answers,
        blank for none). The header says which of the two it is.
      shares_path: A file of population shares whose ids "nonvoters:<column>" give the texts of
        questions and options. Without it, the texts are the column's name and "option 1",
        "option 2", ...

    Returns:
      The survey, with the attributes party, age, race, gender, education, income and voting.

    Raises:
      SourceError: as in `read_table`, `codes` and `load_shares`, or if `shares_path` lacks the text
        of a question.
    """
    table = read_table(path)
    is_original = "RespId" in table.header
    questions = _plain_questions() if shares_path is None else _worded_questions(shares_path)
    first, missing = (1, "-1") if is_original else (0, "")
    answers = [
        codes(
            table, question.id, {missing: UNKNOWN, **numbered(len(question.options), first=first)}
        )
        for question in questions
    ]
    return Survey(
        questions=questions,
        answers=np.stack(answers),
        weights=positive_numbers(table, "weight"),
        rid=identifiers(table, "RespId" if is_original else "rid"),
        attributes=_original_attributes(table) if is_original else _prepared_attributes(table),
    )


def _plain_questions() -> tuple[Question, ...]:
    return tuple(
        Question(name, name, tuple(f"option {i + 1}" for i in range(size)))
        for name, size in _QUESTIONS.items()
    )


def _worded_questions(shares_path: str | Path) -> tuple[Question, ...]:
    known = {record.id: record for record in load_shares(shares_path)}
    questions = []
    for name, size in _QUESTIONS.items():
        record = known.get(f"nonvoters:{name}")
        if record is None or len(record.completions) != size:
            found = "no such id" if record is None else f"{len(record.completions)} options"
            raise SourceError(
                f"{shares_path}, id 'nonvoters:{name}': expected {size} options, found {found}. "
                "Correct the file, or delete it to use the columns' names instead of texts."
            )
        questions.append(Question(name, record.prompt, record.completions))
    return tuple(questions)


def _prepared_attributes(table: Table) -> dict[str, Attribute]:
    levels = {"party": PARTIES, "age": tuple(_AGES), **_LEVELS}
    return {name: attribute(table, name, values) for name, values in levels.items()}


def _original_attributes(table: Table) -> dict[str, Attribute]:
    """Returns the attributes of the original file, where party is column Q30 and age in years."""
    years = {str(year): group for group, span in enumerate(_AGES.values()) for year in span}
    party = codes(table, "Q30", {"-1": UNKNOWN, **numbered(len(PARTIES), first=1)})
    return {
        "party": Attribute(PARTIES, party),
        "age": Attribute(tuple(_AGES), codes(table, "ppage", years)),
        **{
            name: attribute(table, _ORIGINAL_COLUMNS.get(name, name), values)
            for name, values in _LEVELS.items()
        },
    }
