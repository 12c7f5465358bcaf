"""Prompts that say who answers: their texts, their weights, and what held-out rows may know."""

from collections import Counter

import numpy as np
import pytest

from shatter import data
from shatter.data import Row, RowsError

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "hello"}
OTHER = {"role": "assistant", "content": "hey"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def answers(num_people: int, num_each: int) -> list[Row]:
    """Returns answers of people in two groups to different questions."""
    return [
        Row(f"q{n} of {p}", (" a", " b"), (1, 2), annotator=f"p{p}", group=f"g{p % 2}")
        for p in range(num_people)
        for n in range(num_each)
    ]


def test_texts_of_prompts():
    assert data.with_group("Q", "over 60") == "Group of the person who answers: over 60\n\nQ"
    assert data.with_annotator("", "ann") == "Person who answers: ann\n\n"
    rows = [Row("1+1 =", (" 2", " 3"), (2, 1)), Row("2+2 =", (" 4",), (0,))]
    assert data.with_examples("3+3 =", rows) == (
        "Earlier answers of the person who answers:\n\n1+1 = 3\n\n2+2 = 4\n\n3+3 ="
    )


def test_conversations():
    first = {"role": "user", "content": "Person who answers: ann\n\nhi"}
    assert data.with_annotator((USER, ANSWER, USER), "ann") == (first, ANSWER, USER)
    system = {"role": "system", "content": "Group of the person who answers: x"}
    assert data.with_group((), "x") == (system,)
    assert data.with_group((ANSWER,), "x") == (system, ANSWER)
    example = Row((SYSTEM, USER), ((ANSWER,), (OTHER,)), (2, 1))
    assert data.with_examples((SYSTEM, USER), [example]) == (SYSTEM, USER, OTHER, USER)
    assert SYSTEM["content"] == "Be brief."  # the rows are left as they were


def mixed_file() -> list[Row]:
    """Returns 30 answers to one question, of which some name a person, a group, both or neither."""
    chances = rng(5)
    rows = []
    for n in range(30):
        about = {"annotator": f"p{n % 6}"} if n % 3 else {}
        about |= {"group": f"g{n % 2}"} if n % 5 else {}
        ranks = (1, 2) if chances.random() < (0.8 if about else 0.2) else (2, 1)
        weight = float(chances.integers(1, 9))
        rows.append(Row("q", (" a", " b"), ranks, weight, source=str(n), **about))
        other = " c" if n % 2 else " d"  # so that persons have answers about something else
        rows.append(Row("q", (" a", other), ranks, weight, source=f"{n}+", **about))
    return rows


def best_share(rows: list[Row], weights: list[float]) -> float:
    """Returns the weighted share of the first completion among answers about a and b."""
    pairs = [(r, w) for r, w in zip(rows, weights, strict=True) if r.completions == (" a", " b")]
    return sum(w for r, w in pairs if r.ranks == (1, 2)) / sum(w for _, w in pairs)


@pytest.mark.parametrize("on", ["group", "annotator", "examples"])
@pytest.mark.parametrize("dropout", [0.2, 0.7])
def test_shares_of_everybody_and_of_groups_are_those_of_all_their_rows(on, dropout):
    rows = mixed_file()
    conditions = data.learn_conditions(rows, on, rng(), dropout=dropout, min_group_size=1)
    found, _ = data.condition_training(conditions, rows, rng(1))
    everybody = [row for row in found if row.prompt == "q"]
    share = best_share(rows, [row.weight for row in rows])
    assert best_share(everybody, [row.weight for row in everybody]) == pytest.approx(share, 1e-12)
    assert [row.source for row in everybody] == [row.source for row in rows]
    for group in ("g0", "g1"):
        of_group = [row for row in rows if row.group == group]
        shown = [row for row in found if row.prompt == data.with_group("q", group)]
        assert [row.source for row in shown] == [row.source for row in of_group]
        expected = best_share(of_group, [row.weight for row in of_group])
        assert best_share(shown, [row.weight for row in shown]) == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("on", ["group", "annotator", "examples"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_parts_of_an_answer_have_its_weight_together_if_it_can_say_everything(on, dropout):
    rows = answers(6, 4)
    rows[0] = rows[0]._replace(annotator=None, group=None, weight=2.0)
    rows[1] = rows[1]._replace(annotator=None, weight=3.0)
    conditions = data.learn_conditions(rows, on, rng(), dropout=dropout, min_group_size=1)
    found, shown = data.condition_training(conditions, rows, rng(1))
    total: Counter[str] = Counter()
    for row in found:
        total[row.prompt.rsplit("\n\n")[-1]] += row.weight
    less = 1 if on == "group" else 2
    expected = {row.prompt: row.weight for row in rows}
    expected[rows[0].prompt] = 2.0 * dropout / less  # as everybody's alone
    expected[rows[1].prompt] = 3.0 * (1.0 if on == "group" else dropout)
    assert total == pytest.approx({name: value for name, value in expected.items() if value})
    plain = {row.prompt: row.weight for row in found if "\n" not in row.prompt}
    if dropout:
        wanted = {row.prompt: row.weight * dropout / less for row in rows}
        assert plain == pytest.approx(wanted)
        assert shown.by_nothing == len(rows)
    else:
        assert not plain
    assert all(row.prompt.endswith(row.origin.prompt) and row.origin in rows for row in found)


def test_rows_of_which_none_can_say_it_and_nothing_less_is_learned():
    rows = [Row(f"q{n}", (" a", " b"), (1, 2), annotator=f"p{n}") for n in range(3)]
    conditions = data.learn_conditions(rows, "examples", rng(), dropout=0.0)
    with pytest.raises(RowsError, match=r"condition_on=examples: .* none of 3.*condition_dropout"):
        data.condition_training(conditions, rows, rng())
    found, _ = data.condition_training(conditions._replace(dropout=0.2), rows, rng())
    assert [row.weight for row in found] == pytest.approx([0.2] * 3)  # as everybody's


def test_examples_are_other_answers_of_the_same_person():
    rows = answers(5, 7)
    rows.append(rows[0]._replace(completions=(" b", " a"), ranks=(2, 1)))  # the same again
    rows.append(rows[1]._replace(ranks=(1, 1), prompt="a tie"))
    conditions = data.learn_conditions(rows, "examples", rng(), num_examples=3, min_group_size=1)
    found, shown = data.condition_training(conditions, rows, rng(1))
    again, _ = data.condition_training(conditions, rows, rng(1))
    assert found == again
    numbers = Counter()
    for row in found:
        *head, own = row.prompt.split("\n\n")
        examples = head[1:]
        if head[:1] == ["Earlier answers of the person who answers:"]:
            assert len(set(examples)) == len(examples)
            assert all(example.endswith(f"of {row.annotator[1:]} a") for example in examples)
            assert own not in [example.removesuffix(" a") for example in examples]
            numbers[len(examples)] += 1
    assert set(numbers) == {1, 2, 3} and sum(numbers.values()) == shown.by_examples == len(rows)


def test_held_out_rows_know_the_training_rows_alone():
    rows = answers(6, 4)
    held = [row._replace(prompt=f"new {row.prompt}") for row in rows[:8]]
    held += [rows[0], Row("x", ("a", "b"), (1, 2), annotator="stranger", group="g0")]
    held += [Row("y", ("a", "b"), (1, 2), annotator="stranger", group="nobody's")]
    texts = {f"{row.prompt} a" for row in rows}
    few = data.learn_conditions(rows, "examples", rng(), num_examples=2, min_group_size=1)
    many = few._replace(num_examples=4)
    (found, shown), (longer, _) = (data.condition_held_out(c, held) for c in (few, many))
    for one, more, row in zip(found[:9], longer[:9], held[:9], strict=True):
        examples = one.prompt.split("\n\n")[1:-1]
        assert len(examples) == 2 and set(examples) <= texts
        assert more.prompt.split("\n\n")[1:3] == examples  # more examples begin with these
        assert f"{row.prompt} a" not in examples and one.weight == row.weight
    assert found[9].prompt == "Group of the person who answers: g0\n\nx"
    assert found[10] == held[10]._replace(origin=held[10])
    assert shown == data.Shown(
        annotators=3, groups=3, unknown_annotators=1, unknown_groups=1,
        by_examples=9, by_annotator=0, by_group=1, by_nothing=1, left_out=0,
    )  # fmt: skip
    named = data.learn_conditions(rows, "annotator", rng(), min_group_size=1)
    found, shown = data.condition_held_out(named, held)
    assert found[0].prompt == f"Person who answers: p0\n\n{held[0].prompt}"
    assert (shown.by_annotator, shown.by_group, shown.by_nothing) == (9, 1, 1)


def test_examples_without_room_are_left_out_and_counted():
    rows = answers(2, 5)
    conditions = data.learn_conditions(rows, "examples", rng(), num_examples=4, min_group_size=1)
    fits = lambda row: row.prompt.count("\n\n") <= 2  # one example
    found, shown = data.condition_held_out(conditions, rows[:1], fits=fits)
    assert len(found[0].prompt.split("\n\n")) == 3 and shown.left_out == 3
    found, shown = data.condition_held_out(conditions, rows[:1], fits=lambda row: False)
    assert found[0].prompt.startswith("Group") and shown.left_out == 4


def test_small_groups_are_refused_by_name():
    rows = answers(7, 3)  # g0 has four people, g1 three
    with pytest.raises(RowsError, match=r"at least 5 people .* found 3 in 'g1' \(1 more groups"):
        data.learn_conditions(rows, "group", rng())
    with pytest.raises(RowsError, match=r"found 3 in 'g1': .*--min_group_size"):
        data.learn_conditions(rows, "annotator", rng(), min_group_size=4)
    assert data.learn_conditions(rows, "group", rng(), min_group_size=3).groups == {"g0", "g1"}
    with pytest.raises(RowsError, match=r"condition_on=group reads the field group: .* none of 1"):
        data.learn_conditions([Row("", ("a", "b"), (1, 2))], "group", rng())
    assert data.learn_conditions(rows, "none", rng()).groups == frozenset()


def test_a_group_of_one_person_is_refused_unless_one_is_enough():
    rows = [*answers(10, 3), *(row._replace(group="g2") for row in answers(1, 9))]
    assert data.group_sizes(rows) == {"g0": 5, "g1": 5, "g2": 1}
    for least in (2, 5):
        with pytest.raises(RowsError, match=rf"at least {least} people .* found 1 in 'g2': what"):
            data.learn_conditions(rows, "group", rng(), min_group_size=least)
    assert "g2" in data.learn_conditions(rows, "group", rng(), min_group_size=1).groups


def test_sizes_of_groups():
    of = lambda **fields: Row("q", ("a", "b"), (1, 2), group="g", **fields)
    assert data.group_sizes([of(annotator="x"), of(annotator="x"), of(annotator="y")]) == {"g": 2}
    assert data.group_sizes([of(weight=3.0), of(weight=4.0)]) == {"g": 7}
    votes = [of(weight=3.0, votes=(3.0, 1.0, 1.0)), of(weight=9.0, votes=(9.0, 0.0))]
    assert data.group_sizes(votes) == {"g": 9}
    assert data.group_sizes([Row("q", ("a", "b"), (1, 2))]) == {}
