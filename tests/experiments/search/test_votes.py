"""Two halves of votes: all votes on a pair are in one of them."""

from experiments.search.votes import halves
from shatter.data import Row


def test_halves_divide_the_pairs_and_lose_no_row():
    pairs = [("", (f"a{number}", "b")) for number in range(9)]
    rows = [Row(prompt, texts, ranks) for prompt, texts in pairs for ranks in ((1, 2), (2, 1))]
    first, second = halves(rows, seed=3)
    of = lambda part: {row.completions for row in part}
    assert of(first).isdisjoint(of(second)) and len(of(first)) == 4
    assert sorted(map(repr, first + second)) == sorted(map(repr, rows))
    assert halves(rows, seed=3) == (first, second) and halves(rows, seed=4) != (first, second)
