import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.common import sources
from experiments.common.shares import load_shares
from experiments.common.sources import SourceError
from experiments.inclusive import data
from experiments.inclusive.data import load_nonvoters
from experiments.inclusive.people import survey_shares

COLUMNS = list(data._QUESTIONS)
Change = Callable[[dict[str, str]], None]


def original_row(rid: int) -> dict[str, str]:
    groups = {"educ": "College", "race": "White", "gender": "Male", "income_cat": "$40-75k"}
    people = {"Q30": "3", "ppage": "35", "voter_category": "always"}
    answers = dict.fromkeys(COLUMNS, "1")
    return {"RespId": str(rid), "weight": "0.5", **answers, **people, **groups}


def prepared_row(rid: int) -> dict[str, str]:
    groups = {"education": "College", "race": "White", "gender": "Male", "income": "$40-75k"}
    people = {"party": "Independent", "age": "35-54", "voting": "always"}
    answers = dict.fromkeys(COLUMNS, "0")
    return {"rid": str(rid), "weight": "0.5", **people, **groups, **answers}


def write(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_both_layouts_mean_the_same(tmp_path: Path):
    first, second = original_row(7), original_row(8)
    second |= {"Q2_1": "4", "Q7": "-1", "Q30": "-1", "ppage": "55", "weight": "2"}
    original = load_nonvoters(write(tmp_path / "original.csv", first, second))
    first, second = prepared_row(7), prepared_row(8)
    second |= {"Q2_1": "3", "Q7": "", "party": "", "age": "55+", "weight": "2"}
    prepared = load_nonvoters(write(tmp_path / "prepared.csv", first, second))
    for survey in (original, prepared):
        assert survey.answers.shape == (40, 2)
        assert survey.answers[COLUMNS.index("Q2_1")].tolist() == [0, 3]
        assert survey.answers[COLUMNS.index("Q7")].tolist() == [0, -1]
        assert survey.weights.tolist() == [0.5, 2.0]
        assert survey.rid.tolist() == [7, 8]
        assert survey.attributes["party"].values[2] == "Independent"
        assert survey.attributes["party"].codes.tolist() == [2, -1]
        assert survey.attributes["age"].codes.tolist() == [1, 2]
        assert list(survey.attributes["income"].codes) == [1, 1]
        assert survey.take(np.array([1])).weights.tolist() == [2.0]


def test_without_texts_the_columns_stand_for_them(tmp_path: Path):
    survey = load_nonvoters(write(tmp_path / "original.csv", original_row(1)))
    question = survey.questions[COLUMNS.index("Q23")]
    assert question == data.Question("Q23", "Q23", ("option 1", "option 2", "option 3"))


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("Q2_1", "5", "one of '-1', '1', '2', '3', '4', found '5'"),
        ("Q7", "3", "one of '-1', '1', '2', found '3'"),
        ("Q8_1", "", "one of .*, found ''"),
        ("Q30", "6", "one of .*'5', found '6'"),
        ("ppage", "17", "one of '18', '19', '20', '21', '22', ..., '119', found '17'"),
        ("race", "white", "one of '', 'White', .*, found 'white'"),
        ("weight", "0", "a number above 0, found '0'"),
        ("weight", "inf", "a number above 0, found 'inf'"),
        ("weight", "x", "a number above 0, found 'x'"),
        ("RespId", "1", "a number not used on line 2, found '1'"),
        ("RespId", "one", "a whole number, found 'one'"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, column: str, value: str, expected: str):
    bad = original_row(2) | {column: value}
    path = write(tmp_path / "original.csv", original_row(1), bad)
    with pytest.raises(SourceError, match=rf"line 3, field '{column}': expected {expected}\. Corr"):
        load_nonvoters(path)


def test_a_bad_table_is_named(tmp_path: Path):
    row = original_row(1)
    del row["Q16"]
    path = write(tmp_path / "narrow.csv", row)
    with pytest.raises(
        SourceError, match=r"narrow\.csv, line 1: expected a column 'Q16', found Resp"
    ):
        load_nonvoters(path)
    path.write_text("RespId,weight\n1,1.0\n2\n")
    with pytest.raises(SourceError, match="line 3: expected 2 cells as in the header, found 1"):
        load_nonvoters(path)
    path.write_text("RespId,weight\n")
    with pytest.raises(SourceError, match="at least one row, found 1 line"):
        load_nonvoters(path)
    path.write_bytes(b"RespId,weight\n1,\xff\n")
    with pytest.raises(SourceError, match="expected comma-separated text in utf-8"):
        load_nonvoters(path)
    with pytest.raises(SourceError, match=r"absent\.csv: the file cannot be read"):
        load_nonvoters(tmp_path / "absent.csv")


def test_a_question_without_text_is_named(tmp_path: Path):
    path = write(tmp_path / "original.csv", original_row(1))
    shares = tmp_path / "shares.jsonl"
    line = {"id": "nonvoters:Q2_1", "prompt": "?", "completions": list("abc"), "n": 1}
    shares.write_text(json.dumps({**line, "shares": [1, 0, 0]}))
    with pytest.raises(SourceError, match="'nonvoters:Q2_1': expected 4 options, found 3 options"):
        load_nonvoters(path, shares)
    shares.write_text(json.dumps({**line, "id": "other", "shares": [1, 0, 0]}))
    with pytest.raises(SourceError, match="'nonvoters:Q2_1': expected 4 options, found no such id"):
        load_nonvoters(path, shares)


def test_the_real_files(data_dir: Path):
    shares_path = sources.locate("shares", data_dir)
    original = load_nonvoters(sources.locate("nonvoters", data_dir), shares_path)
    prepared = load_nonvoters(sources.locate("nonvoters_respondents", data_dir), shares_path)
    assert original.answers.shape == (40, 5836)
    assert prepared.answers.shape == (40, 2912)
    assert original.questions == prepared.questions
    assert original.questions[-3].options == ("Donald Trump", "Joe Biden", "Unsure")
    published = {record.id: record for record in load_shares(shares_path) if record.group is None}
    for question, shares in zip(prepared.questions, survey_shares(prepared), strict=True):
        np.testing.assert_allclose(shares, published[f"nonvoters:{question.id}"].shares, atol=1e-5)
