import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.common import sources
from experiments.common.sources import SourceError
from experiments.inclusive import likings
from experiments.inclusive.likings import load_cuisines, load_starwars

DEMOGRAPHICS = ["Gender", "Age", "Household Income", "Education", "Location (Census Region)"]
PERSON = ["Male", "> 60", "", "Graduate degree", "Pacific"]
CUISINES = [
    "Please rate how much you like the traditional cuisine of Algeria:",
    "Please rate how much you like the traditional cuisine ofÊAustralia.",
    "Please rate how much you like the traditional cuisine of the Netherlands.",
]


def write(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="cp1252") as file:
        csv.writer(file).writerows(rows)
    return path


def starwars_rows(*people: tuple[int, list[str], str]) -> list[list[str]]:
    """Returns the file's two headers and a row for each (id, ranks, fan)."""
    films = list(likings._FILMS)
    header = ["RespondentID", "Seen any?", likings._FAN, "Seen", *[""] * 5, "Rank", *[""] * 5]
    rows = [
        [*header, *DEMOGRAPHICS],
        ["", "Response", "Response", *films, *films, *["Response"] * 5],
    ]
    for rid, ranks, fan in people:
        rows.append([str(rid), "Yes", fan, films[0], *[""] * 5, *ranks, *PERSON])
    return rows


def test_rankings_are_best_first(tmp_path: Path):
    rows = starwars_rows(
        (5, list("654312"), "Yes"), (6, ["1", *[""] * 5], ""), (7, list("123456"), "")
    )
    rankings = load_starwars(write(tmp_path / "films.csv", *rows))
    assert rankings.rankings.tolist() == [[4, 5, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]]
    assert rankings.rid.tolist() == [5, 7]
    assert rankings.seen.tolist() == [[True, *[False] * 5]] * 2
    assert rankings.attributes["fan"].codes.tolist() == [1, -1]
    assert rankings.attributes["age"].values[rankings.attributes["age"].codes[0]] == "> 60"
    assert rankings.attributes["income"].codes.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ("123457", r"line 3, field 'column 15': expected one of '', '1', .*, found '7'"),
        ("123455", r"line 3: expected the ranks 1 to 6 once each, found \[1, 2, 3, 4, 5, 5\]"),
    ],
)
def test_bad_ranks_are_named(tmp_path: Path, ranks: str, message: str):
    path = write(tmp_path / "films.csv", *starwars_rows((5, list(ranks), "Yes")))
    with pytest.raises(SourceError, match=message):
        load_starwars(path)


def test_other_films_are_refused(tmp_path: Path):
    rows = starwars_rows((5, list("123456"), "Yes"))
    rows[1][9] = "Spaceballs"
    with pytest.raises(SourceError, match=r"line 2: expected the films .*, found \('Spaceballs'"):
        load_starwars(write(tmp_path / "films.csv", *rows))


def test_ratings(tmp_path: Path):
    header = ["RespondentID", *CUISINES, *DEMOGRAPHICS]
    path = write(tmp_path / "food.csv", header, ["3", "5", "N/A", "", *PERSON])
    ratings = load_cuisines(path)
    assert ratings.items == ("Algeria", "Australia", "Netherlands")
    assert ratings.ratings.tolist() == [[5, 0, -1]]
    assert ratings.attributes["gender"].codes.tolist() == [1]


def test_bad_ratings_are_named(tmp_path: Path):
    header = ["RespondentID", *CUISINES, *DEMOGRAPHICS]
    path = write(tmp_path / "food.csv", header, ["3", "6", "1", "2", *PERSON])
    with pytest.raises(SourceError, match=r"line 2, field 'Please .* of Algeria:': .*, found '6'"):
        load_cuisines(path)
    path = write(tmp_path / "food.csv", ["RespondentID", *DEMOGRAPHICS], ["3", *PERSON])
    with pytest.raises(SourceError, match="expected columns 'Please rate"):
        load_cuisines(path)


def test_the_real_rankings(data_dir: Path):
    rankings = load_starwars(sources.locate("starwars", data_dir))
    assert rankings.rankings.shape == rankings.seen.shape == (834, 6)
    in_order = (rankings.rankings == np.arange(6)).all(axis=1)
    assert in_order.mean() == pytest.approx(0.085, abs=0.001)


def test_the_real_ratings(data_dir: Path):
    ratings = load_cuisines(sources.locate("cuisines", data_dir))
    assert ratings.ratings.shape == (1373, 40)
    assert ratings.items[23] == "Netherlands"
    assert (ratings.ratings.min(), ratings.ratings.max()) == (-1, 5)
