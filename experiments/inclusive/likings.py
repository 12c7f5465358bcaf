"""Two surveys of what people like: rankings of six films and ratings of forty cuisines."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.sources import SourceError
from experiments.inclusive.arrays import UNKNOWN, Bools, Ints
from experiments.inclusive.tables import (
    Attribute,
    Table,
    attribute,
    codes,
    identifiers,
    numbered,
    read_table,
)


class Rankings(NamedTuple):
    """Complete strict rankings.

    Attributes:
      items: [N] names.
      rankings: [R, N] item indices, best first.
      seen: [R, N] whether the respondent has seen the item.
      rid: [R] the file's identifiers of the respondents.
      attributes: Groups of respondents by name ("gender", "age", ...).
    """

    items: tuple[str, ...]
    rankings: Ints
    seen: Bools
    rid: Ints
    attributes: dict[str, Attribute]


class Ratings(NamedTuple):
    """Ratings of items.

    Attributes:
      items: [N] names.
      ratings: [R, N] 1 to 5, 5 the best; 0 where the respondent is unfamiliar with the item, -1
        where the cell is blank.
      rid: [R] the file's identifiers of the respondents.
      attributes: Groups of respondents by name ("gender", "age", ...).
    """

    items: tuple[str, ...]
    ratings: Ints
    rid: Ints
    attributes: dict[str, Attribute]


_FILMS = (
    "Star Wars: Episode I The Phantom Menace",
    "Star Wars: Episode II Attack of the Clones",
    "Star Wars: Episode III Revenge of the Sith",
    "Star Wars: Episode IV A New Hope",
    "Star Wars: Episode V The Empire Strikes Back",
    "Star Wars: Episode VI Return of the Jedi",
)
_SEEN, _RANK = range(3, 9), range(9, 15)  # the films' columns
_FAN = "Do you consider yourself to be a fan of the Star Wars film franchise?"
_LIKING = re.compile(
    r"^Please rate how much you like the traditional cuisine of[\sÊ]*(?:the )?(.+?)[:.]$"
)
_AGES = ("18-29", "30-44", "45-60", "> 60")
_INCOMES = (
    "$0 - $24,999",
    "$25,000 - $49,999",
    "$50,000 - $99,999",
    "$100,000 - $149,999",
    "$150,000+",
)
_DEGREES = (
    "Less than high school degree",
    "High school degree",
    "Some college or Associate degree",
    "Bachelor degree",
    "Graduate degree",
)
_REGIONS = (
    "New England",
    "Middle Atlantic",
    "East North Central",
    "West North Central",
    "South Atlantic",
    "East South Central",
    "West South Central",
    "Mountain",
    "Pacific",
)


def load_starwars(path: str | Path) -> Rankings:
    """Reads the rankings of the 834 people in the 2014 Star Wars survey who ranked all six films.

    Args:
      path: The original `StarWars.csv` (Windows-1252, two header lines).

    Returns:
      The rankings, best first (many people rank films that they have not seen; about 8.5% give the
      order of the questionnaire), with the attributes gender, age, income, education, region and
      fan. Respondents with a blank rank are left out.

    Raises:
      SourceError: as in `read_table` and `codes`, or if the header names other films, or six ranks
        are not 1 to 6.
    """
    table = read_table(path, encoding="cp1252", has_subheader=True)
    for columns in (_SEEN, _RANK):
        names = tuple(" ".join(table.subheader[column].split()) for column in columns)
        if names != _FILMS:
            raise SourceError(
                f"{table.path}, line 2: expected the films {_FILMS}, found {names}. Use the file "
                "as it was published."
            )
    values = {"": UNKNOWN, **numbered(len(_FILMS), first=1)}
    ranks = np.stack([codes(table, column, values) for column in _RANK], axis=1)
    seen = [codes(table, column, {"": 0, table.subheader[column]: 1}) for column in _SEEN]
    complete = np.flatnonzero((ranks != UNKNOWN).all(axis=1))
    for row in complete:
        if len(set(ranks[row])) != len(_FILMS):
            raise SourceError(
                f"{table.path}, line {table.lines[row]}: expected the ranks 1 to 6 once each, "
                f"found {(ranks[row] + 1).tolist()}. Correct them or leave one blank."
            )
    attributes = {**_demographics(table), "fan": attribute(table, _FAN, ("No", "Yes"))}
    return Rankings(
        items=_FILMS,
        rankings=np.argsort(ranks[complete], axis=1),
        seen=np.stack(seen, axis=1)[complete].astype(bool),
        rid=identifiers(table, "RespondentID")[complete],
        attributes={name: division.take(complete) for name, division in attributes.items()},
    )


def load_cuisines(path: str | Path) -> Ratings:
    """Reads the ratings of all 1,373 people in the 2014 survey on national cuisines.

    Args:
      path: The original `food-world-cup-data.csv` (Windows-1252; a no-break space of another
        encoding reads as "Ê").

    Returns:
      The ratings of 40 cuisines, with the attributes gender, age, income, education and region;
      people who rated none are among them.

    Raises:
      SourceError: as in `read_table` and `codes`, or if there is no column of ratings.
    """
    table = read_table(path, encoding="cp1252")
    names = {
        index: match[1] for index, name in enumerate(table.header) if (match := _LIKING.match(name))
    }
    if not names:
        raise SourceError(
            f"{table.path}, line 1: expected columns 'Please rate how much you like ...', found "
            "none. Use the file as it was published."
        )
    values = {"": UNKNOWN, "N/A": 0, **{str(rating): rating for rating in range(1, 6)}}
    return Ratings(
        items=tuple(names.values()),
        ratings=np.stack([codes(table, index, values) for index in names], axis=1),
        rid=identifiers(table, "RespondentID"),
        attributes=_demographics(table),
    )


def _demographics(table: Table) -> dict[str, Attribute]:
    """Returns the attributes that both surveys asked for in the same words."""
    return {
        "gender": attribute(table, "Gender", ("Female", "Male")),
        "age": attribute(table, "Age", _AGES),
        "income": attribute(table, "Household Income", _INCOMES),
        "education": attribute(table, "Education", _DEGREES),
        "region": attribute(table, "Location (Census Region)", _REGIONS),
    }
