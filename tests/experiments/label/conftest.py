import pytest

from experiments.label.answers import Asked


def asked(n, num=2, **fields):
    completions = tuple(f"response {n}.{k}" for k in range(num))
    return Asked(f"r0000-q{n:03}", f"prompt {n}", completions, **fields)


@pytest.fixture
def queries():
    """Four queries of two responses and one of three, by their id."""
    made = [asked(n, 3 if n == 2 else 2) for n in range(5)]
    return {query.query_id: query for query in made}
