import csv
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pytest

from experiments.common import sources
from experiments.inclusive import baselines
from experiments.inclusive.arrays import Floats, Ints
from experiments.inclusive.data import Question, Survey, load_nonvoters
from experiments.inclusive.likings import load_cuisines, load_starwars
from experiments.inclusive.tables import Attribute


def toy_survey() -> Survey:
    """Returns 60 people, two questions, and two groups that answer in opposite ways."""
    answers = np.repeat([[0, 0, 1, 1, 1, 0], [2, 1, 0, 0, 1, 2]], 10, axis=1)
    groups = Attribute(("left", "right"), np.repeat([0, 1], 30))
    questions = (Question("a", "A?", ("x", "y")), Question("b", "B?", ("x", "y", "z")))
    return Survey(questions, answers, np.ones(60), np.arange(60), {"party": groups})


def test_a_survey_predicts_itself():
    survey = toy_survey()
    figures = baselines.survey_baselines(survey, survey)
    assert figures["people"] == pytest.approx(0, abs=1e-12)
    assert figures["uniform"] == pytest.approx(0, abs=1e-12)
    assert figures["majority"] > 0.5
    by_group = baselines.survey_group_baselines(survey, survey, "party")
    assert by_group["groups"] < by_group["everybody"]
    enough = baselines.survey_bradley_terry(survey, survey, 100_000, ridge=0.0, seed=0)
    assert enough < 1e-3


@pytest.mark.slow
def test_main_prints_every_survey(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(baselines, "MIXTURE_SEEDS", 1)
    baselines.print_baselines(baselines.Config(str(data_dir), num_splits=1))
    printed = capsys.readouterr().out
    for title in ("Non-voters: 5836 people", "Star Wars: 834 people", "Cuisines: 1373 people"):
        assert title in printed


# The figures below come from independent code, which fitted to the people of the prepared files and
# judged by the other people of the published files. So these tests also check how files are read.


def split_like(
    prepared: Iterable[Iterable[object]], everybody: Collection[Iterable[object]]
) -> tuple[Ints, Ints]:
    """Returns the positions in `everybody` of the prepared people, in order, and all others."""
    left = enumerate(map(tuple, everybody))
    fit = np.array([next(i for i, person in left if person == tuple(row)) for row in prepared])
    return fit, np.setdiff1d(np.arange(len(everybody)), fit)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def people_of(survey: Survey) -> Floats:
    """Returns [R, columns], all that is known of each respondent except the identifier."""
    codes = [attribute.codes for attribute in survey.attributes.values()]
    return np.concatenate([survey.weights[None], survey.answers, np.stack(codes)]).T


def test_nonvoters_figures(data_dir: Path):
    survey = load_nonvoters(sources.locate("nonvoters", data_dir))
    prepared = load_nonvoters(sources.locate("nonvoters_respondents", data_dir))
    fit, held = map(survey.take, split_like(people_of(prepared), people_of(survey)))
    figures = baselines.survey_baselines(fit, held)
    assert figures["people"] == pytest.approx(0.0014, abs=1e-4)
    assert figures["uniform"] == pytest.approx(0.187, abs=5e-4)
    assert figures["majority"] == pytest.approx(1.10, abs=0.005)
    by_party = baselines.survey_group_baselines(fit, held, "party")
    assert by_party["groups"] == pytest.approx(0.0155, abs=5e-4)
    assert by_party["everybody"] == pytest.approx(0.069, abs=5e-4)
    assert by_party["uniform"] == pytest.approx(0.227, abs=5e-4)
    for num_answers, expected in ((300, 0.0087), (1000, 0.0038), (3000, 0.0022)):
        kl = baselines.survey_bradley_terry(fit, held, num_answers, ridge=1.0, seed=0)
        assert kl == pytest.approx(expected, rel=0.4)  # the answers drawn differ


@pytest.mark.slow
def test_starwars_figures(data_dir: Path):
    films = load_starwars(sources.locate("starwars", data_dir))
    names = ("gender", "age", "education", "region", "fan")
    texts = [np.array([*films.attributes[n].values, ""])[films.attributes[n].codes] for n in names]
    everybody = [
        (" ".join(map(str, order)), "".join(map(str, seen)), *attributes)
        for order, seen, *attributes in zip(
            films.rankings, films.seen.astype(int), *texts, strict=True
        )
    ]
    rows = read_rows(data_dir / "starwars_films" / "rankings.csv")
    prepared = [tuple(row[name] for name in ("order", "seen_mask", *names)) for row in rows]
    fit, held = split_like(prepared, everybody)
    assert (len(fit), len(held)) == (500, 334)
    figures = baselines.ranking_baselines(films.rankings[fit], films.rankings[held])
    assert figures["pair Bradley-Terry"] == pytest.approx(0.640, abs=5e-4)
    assert figures["pair table"] == pytest.approx(0.625, abs=5e-4)
    assert figures["first Bradley-Terry"] == pytest.approx(0.068, abs=5e-4)
    assert figures["first Plackett-Luce"] == pytest.approx(0.087, abs=5e-4)
    assert figures["first mixture"] == pytest.approx(0.025, abs=0.003)
    assert figures["first uniform"] == pytest.approx(0.235, abs=5e-4)


def test_cuisines_figures(data_dir: Path):
    cuisines = load_cuisines(sources.locate("cuisines", data_dir))
    rows = read_rows(data_dir / "world_cuisines" / "ratings.csv")
    prepared = [[int(row[name] or 0) for name in cuisines.items] for row in rows]
    fit, held = split_like(prepared, np.maximum(cuisines.ratings, 0))
    assert len(fit) == 759
    figures = baselines.rating_baselines(cuisines.ratings[fit], cuisines.ratings[held])
    assert figures["pair Bradley-Terry"] == pytest.approx(0.5605, abs=5e-5)
