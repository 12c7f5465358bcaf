"""The frozen base of the tests: a model folder with two blocks."""

import pytest

from tests.experiments.online.worlds import WORDS


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    make_model(path, 2, words=WORDS, seed=7)
    return path
