import dataclasses
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from shatter.cli.label.config import ProposeConfig
from shatter.cli.label.learn import learn
from shatter.cli.label.project import open_project
from shatter.cli.label.propose import propose
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.records import remember_paths
from tests.cli.label.projects import POOL, SIZES, VOTES, answer_all, write


@pytest.fixture(autouse=True, scope="module")
def fresh_caches(request: pytest.FixtureRequest, freed_at_the_end: None) -> Iterator[None]:
    """Keeps the programs from module to module, because most share those of one tiny project."""
    yield
    if request.path.stem == "test_adapters":  # whose programs are its own, and large
        free_programs()


@pytest.fixture(scope="package")
def freed_at_the_end() -> Iterator[None]:
    yield
    free_programs()


def free_programs() -> None:
    jax.clear_caches()
    gc.collect()


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


def make_config(folder: Path, model_folder: Path) -> ProposeConfig:
    """Returns the flags of a tiny project, whose files are written into a folder."""
    return ProposeConfig(
        project=str(folder / "project"),
        pool=write(folder / "pool.jsonl", POOL),
        eval_files=(write(folder / "held.jsonl", VOTES[:4]),),
        model_name_or_path=str(model_folder),
        num_queries=4,
        num_candidates=40,
        **SIZES,
    )


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> ProposeConfig:
    return make_config(tmp_path, model_folder)


@pytest.fixture(scope="session")
def answered_once(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ProposeConfig:
    config = make_config(tmp_path_factory.mktemp("answered"), model_folder)
    propose(open_project(config), config)
    answer_all(config)
    return config


@pytest.fixture(scope="session")
def learned_once(
    answered_once: ProposeConfig, tmp_path_factory: pytest.TempPathFactory
) -> ProposeConfig:
    config = copied(answered_once, tmp_path_factory.mktemp("learned"))
    learn(open_project(config))
    propose(open_project(config), config)
    answer_all(config)
    learn(open_project(config))
    return config


def copied(once: ProposeConfig, folder: Path) -> ProposeConfig:
    """Returns the flags of a copy of a project and of its files."""
    project = folder / "project"
    shutil.copytree(once.project, project)
    pool, *held_out = (shutil.copy(file, folder) for file in (once.pool, *once.eval_files))
    config = dataclasses.replace(
        once, project=str(project), pool=str(pool), eval_files=tuple(map(str, held_out))
    )
    remember_paths(config, project, {})
    return config


@pytest.fixture
def answered(answered_once: ProposeConfig, tmp_path: Path) -> ProposeConfig:
    """A project with four answers that were not learned from yet."""
    return copied(answered_once, tmp_path)


@pytest.fixture
def learned(learned_once: ProposeConfig, tmp_path: Path) -> ProposeConfig:
    """A project that has learned twice, from eight answers."""
    return copied(learned_once, tmp_path)
