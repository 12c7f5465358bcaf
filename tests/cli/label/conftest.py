from pathlib import Path

import pytest

from shatter.cli.label.config import ProposeConfig
from shatter.cli.label.queries import TextQuery
from tests.cli.label.projects import POOL, SIZES, VOTES, write


def asked(n, num=2, **fields):
    completions = tuple(f"response {n}.{k}" for k in range(num))
    return TextQuery(f"r0000-q{n:03}", f"prompt {n}", completions, **fields)


@pytest.fixture
def queries():
    """Four queries of two responses and one of three, by their id."""
    made = [asked(n, 3 if n == 2 else 2) for n in range(5)]
    return {query.query_id: query for query in made}


@pytest.fixture(scope="session")
def model_folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 2)
    return folder


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> ProposeConfig:
    return ProposeConfig(
        project=str(tmp_path / "project"),
        pool=write(tmp_path / "pool.jsonl", POOL),
        eval_files=(write(tmp_path / "held.jsonl", VOTES[:4]),),
        model_name_or_path=str(model_folder),
        num_queries=4,
        num_candidates=40,
        **SIZES,
    )
