import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.common import sources
from experiments.judgements import datasets, splits
from experiments.judgements.captions import MAX_RATERS, caption_votes
from experiments.judgements.datasets import load_judgements
from experiments.judgements.splits import Pair
from shatter.cli.common.binary import UsageError
from shatter.data import Row, read_rows
from tests.experiments.judgements.files import json_lines

Item = tuple[object, object]


def items(rows: list[Row]) -> set[Item]:
    return {(row.prompt, completion) for row in rows for completion in row.completions}


def couples(rows: list[Row]) -> set[tuple[object, frozenset]]:
    return {(row.prompt, frozenset(row.completions)) for row in rows}


def some_pairs(num_prompts: int, num_items: int) -> list[Pair]:
    return [
        Pair(f"p{p}", (f"{p} {a}", f"{p} {b}"), (2, 1, 1), "")
        for p in range(num_prompts)
        for a in range(num_items)
        for b in range(a)
    ]


def test_humour_is_read(humour: Path):
    got = load_judgements("ukp_humour", data_dir=humour)
    votes = Counter()
    for row in [*got.train, *got.known, *got.new]:
        assert row.prompt == ""
        a, b = (int(text.removeprefix("joke ")) for text in row.completions)
        assert row.votes == (a % 4, 1 + b)
        assert row.weight == {(1, 2): a % 4, (2, 1): 1 + b}[row.ranks] > 0
        votes[a, b] += row.weight
    assert all(count == a % 4 + 1 + b for (a, b), count in votes.items())
    assert len(items(got.new)) == 4  # a fifth of 20
    assert len(items(got.train)) == 16
    assert [len(couples(part)) for part in got[:3]] == [108, 12, 6]  # of 16 * 15 / 2 = 120
    assert got.attribution == "ukp_humour: Simpson et al., ACL 2019 (CC BY 4.0)"


def all_votes(got: datasets.Judgements) -> dict[tuple[object, object], tuple[float, ...]]:
    """Returns the votes on every pair of a data set."""
    rows = [*got.train, *got.known, *got.new]
    return {(row.prompt, row.completions): tuple(row.votes) for row in rows}


def test_three_annotators_and_their_ties_are_read(publish: Callable[[str, str], Path]):
    answers = ([1, 2, 0], [2, 2, 2], [0, 0, 1], [1, 1, 1], [0, 0, 0])
    records = [
        {"id": n, "prompt": f"Say {n}", "completions": [f"yes {n}", True], "answers": answers[n]}
        for n in range(5)
    ]
    folder = publish("pandalm", json_lines(records))
    got = load_judgements("pandalm", data_dir=folder)
    assert all_votes(got) == {
        (f"Say {n}\nAnswer:", (f" yes {n}", " True")): votes
        for n, votes in enumerate([(1, 1, 1), (0, 3, 0), (1, 0, 2), (3, 0, 0), (0, 0, 3)])
    }
    assert len(couples(got.new)) == 1  # a fifth of the prompts
    assert got.attribution.endswith("(Apache-2.0)")


def test_a_surveys_options_are_compared_by_shares(publish: Callable[[str, str], Path]):
    records = [
        {
            "question": f"Q{number}?",
            "options": ["a", "b", "c"],
            "group": {"attribute": attribute, "value": "all"},
            "distribution": [0.5, 0.3, 0.2],
            "n_eff": 100.0,
        }
        for number in range(5)
        for attribute in ("all", "party")
    ]
    got = load_judgements("survey_opinions", data_dir=publish("shares", json_lines(records)))
    assert all_votes(got) == {
        (f"Q{number}?\nAnswer:", texts): votes
        for number in range(5)
        for texts, votes in {
            (" a", " b"): (50, 30),
            (" a", " c"): (50, 20),
            (" b", " c"): (30, 20),
        }.items()
    }
    assert {row.prompt for row in got.new}.isdisjoint(row.prompt for row in got.train)


def test_agreement_with_statements_is_read(publish: Callable[[str, str], Path]):
    publish("polis_conversations", '{"town": {"topic": "Our town"}}')
    statements = [{"conversation": "town", "id": n, "text": f"Cars {n}."} for n in range(5)]
    publish("polis_statements", json_lines(statements))
    shares = [
        {"conversation": "town", "id": n, "group": group, "distribution": law, "n": 10}
        for n in range(5)
        for group, law in {"all": [0.5, 0.3, 0.2], "0": [1.0, 0.0, 0.0]}.items()
    ]
    got = load_judgements("polis", data_dir=publish("polis_shares", json_lines(shares)))
    assert all_votes(got) == {
        (f"Our town\nStatement: Cars {n}.\nI", (" agree", " disagree")): (5, 3, 2) for n in range(5)
    }
    assert [len(couples(part)) for part in got[:3]] == [4, 0, 1]


def test_the_seed_decides_the_split(humour: Path):
    one, again, other = (load_judgements("ukp_humour", seed=s, data_dir=humour) for s in (0, 0, 1))
    assert one == again
    assert items(one.new) != items(other.new)
    assert couples(one.known) != couples(other.known)


def test_arguments_keep_their_sides_and_ties(publish: Callable[[str, str], Path]):
    topics = [{"topic": f"t{i}", "title": "A ball?", "stance": f"side {i}"} for i in range(5)]
    texts = [{"id": i, "topic": f"t{i // 4}", "text": f"because {i}"} for i in range(20)]
    texts[1]["text"] = texts[0]["text"]  # one item under two ids
    votes = {(a, b): [a, 1, 2] for a in range(20) for b in range(20) if a < b and a // 4 == b // 4}
    votes[0, 2], votes[1, 2], votes[2, 3] = [1, 2, 3], [10, 20, 30], [0, 0, 4]
    swapped = [(a, b) if (a, b) != (1, 2) else (b, a) for a, b in votes]
    pairs = [
        {"topic": f"t{a // 4}", "a": a, "b": b, "votes": v}
        for (a, b), v in zip(swapped, votes.values(), strict=True)
    ]
    publish("ukp_convarg_topics", json_lines(topics))
    publish("ukp_convarg_arguments", json_lines(texts))
    folder = publish("ukp_convarg_pairs", json_lines(pairs))
    got = load_judgements("ukp_convarg", data_dir=folder)
    prompts = [{row.prompt for row in part} for part in got[:3]]
    assert [len(prompts[0]), len(prompts[2])] == [4, 1]
    assert prompts[0].isdisjoint(prompts[2])
    rows = [row for part in got[:3] for row in part]
    assert all(row.completions[0].startswith(" because ") for row in rows)
    side = [row for row in rows if row.prompt == "A ball?\nStance: side 0\nArgument:"]
    merged = {r.ranks: r for r in side if r.completions == (" because 0", " because 2")}
    # 0 against 2: 1, 2, 3; 2 against 0 under its other id: 10, 20, 30
    assert {ranks: row.weight for ranks, row in merged.items()} == {
        (1, 2): 21,
        (2, 1): 12,
        (1, 1): 33,
    }
    assert {row.votes for row in merged.values()} == {(21, 12, 33)}
    only_ties = [row for row in side if row.completions == (" because 2", " because 3")]
    assert [(row.ranks, row.weight) for row in only_ties] == [((1, 1), 4)]
    assert all(row.completions[0] != row.completions[1] for row in rows)


def test_captions_are_paired_within_their_cartoon(publish: Callable[[str, str], Path]):
    captions = [
        {"contest": c, "caption": f"{c} {i}", "ratings": [20 + i, 10, 10]}
        for c, size in ((7, 40), ("8r2", 10))
        for i in range(size)
    ]
    cartoons = {"7": "A cat writes", "8r2": "tags: office; shark"}
    publish("newyorker_contests", json.dumps({"cartoon": cartoons}))
    folder = publish("newyorker_captions", json_lines(captions))
    got = load_judgements("newyorker_captions", data_dir=folder)
    for row in [*got.train, *got.known, *got.new]:
        contest = {
            "Cartoon: A cat writes\nCaption:": "7",
            "Cartoon: office; shark\nCaption:": "8r2",
        }
        assert all(text.startswith(f" {contest[row.prompt]} ") for text in row.completions)
        assert sum(row.votes) == pytest.approx(MAX_RATERS)
        assert row.weight == row.votes[datasets.ANSWERS.index(row.ranks)]
    assert len(items(got.train)) == 40
    assert len(items(got.new)) == 10
    assert len(couples(got.train)) + len(couples(got.known)) in range(70, 81)  # 2 circles of 40
    assert couples(got.train).isdisjoint(couples(got.known))


def test_no_rating_of_a_caption_is_used_twice(publish: Callable[[str, str], Path]):
    # The one funny rating of a caption puts it first in one pair at most, in whichever part.
    captions = [{"contest": 7, "caption": f"c{i}", "ratings": [19, 0, 1]} for i in range(50)]
    publish("newyorker_contests", json.dumps({"cartoon": {"7": "A cat writes"}}))
    folder = publish("newyorker_captions", json_lines(captions))
    got = load_judgements("newyorker_captions", data_dir=folder)
    rows = [row for part in got[:3] for row in part]
    first = Counter(row.completions[row.ranks.index(1)] for row in rows if row.ranks != (1, 1))
    assert len(first) > 40
    assert set(first.values()) == {1}
    assert {round(sum(row.votes)) for row in rows} <= {5, 6, 7}  # 20 ratings in 4 pairs, or 3


def test_caption_votes_are_expected_counts():
    got = caption_votes(np.array([5, 3, 2]), np.array([2, 0, 2]))
    # 4 raters, for the second has 4 ratings; shares .5 .3 .2 against .5 0 .5
    np.testing.assert_allclose(got, [4 * (0.3 + 0.2) * 0.5, 4 * (0.5 + 0.3) * 0.5, 4 * 0.35])
    many = caption_votes(np.array([50, 30, 20]), np.array([20, 0, 20]))
    np.testing.assert_allclose(sum(many), MAX_RATERS)
    assert caption_votes(np.array([0, 0, 0]), np.array([2, 0, 2])) == (0, 0, 0)
    np.testing.assert_allclose(np.array(many) / MAX_RATERS, np.array(got) / 4)


@pytest.mark.parametrize("by_prompt", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_no_part_leaks_into_another(seed: int, by_prompt: bool):
    pairs = some_pairs(num_prompts=10, num_items=4)  # few pairs an item: known could empty train
    rng = np.random.default_rng(seed)
    train, known, new = splits.split_pairs(pairs, rng, by_prompt=by_prompt)
    shown, unseen = (
        {item for pair in part for item in splits.pair_items(pair)} for part in (train, new)
    )
    assert known
    assert shown.issuperset(item for pair in known for item in splits.pair_items(pair))
    assert shown.isdisjoint(unseen)
    assert set(train).isdisjoint(known)
    if by_prompt:
        assert len(train) + len(known) + len(new) == len(pairs)
        assert len({pair.prompt for pair in new}) == 2


def test_a_pair_whose_item_would_vanish_stays():
    pairs = [Pair("", (f"a{i}", f"b{i}"), (1, 0), "") for i in range(30)]  # each item once
    train, known = splits.split_known(pairs, np.random.default_rng(0))
    assert (train, known) == (pairs, [])


def test_written_rows_read_the_same(humour: Path, tmp_path: Path):
    got = load_judgements("ukp_humour", data_dir=humour)
    datasets.write_judgements(tmp_path / "rows", got)
    for part in ("train", "known", "new"):
        rows, report = read_rows(tmp_path / "rows" / f"{part}.jsonl")
        assert report.skipped == 0
        assert [row._replace(source="") for row in rows] == [
            row._replace(source="") for row in getattr(got, part)
        ]


def test_missing_data_says_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UsageError) as error:
        load_judgements("ukp_humour", data_dir=tmp_path)
    for part in ("FOLDER/ukp_humour/items.jsonl", "--data_dir=FOLDER", "SHATTER_DATA_DIR=FOLDER"):
        assert part in str(error.value)
    with pytest.raises(UsageError, match="'humour'; the known ones are: ukp_humour, newyorker"):
        load_judgements("humour", data_dir=tmp_path)
    with pytest.raises(UsageError, match=r"absent.*\(from data_dir\) does not exist"):
        load_judgements("ukp_humour", data_dir=tmp_path / "absent")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_items", "num_new", "num_pairs"),
    [
        ("ukp_humour", 3627, range(600, 726), range(11_000, 13_000)),
        ("newyorker_captions", 5963, range(1191, 1194), range(11_900, 11_927)),
        ("ukp_convarg", 847, range(100, 250), range(10_892, 10_893)),  # 26 sides, 5 of them new
        ("pandalm", 722, range(100, 190), range(700, 999)),
        ("survey_opinions", 389, range(60, 100), range(700, 720)),
        ("polis", 2380, range(476, 477), range(1190, 1191)),
    ],
)
def test_the_real_files(
    data_dir: Path, name: str, num_items: int, num_new: range, num_pairs: range
):
    got = load_judgements(name, data_dir=data_dir)
    assert len(items(got.new)) in num_new
    assert len(items(got.train)) + len(items(got.new)) <= num_items
    assert items(got.train).isdisjoint(items(got.new))
    assert items(got.known) <= items(got.train)
    assert couples(got.train).isdisjoint(couples(got.known))
    assert sum(len(couples(part)) for part in got[:3]) in num_pairs
    for row in [*got.train, *got.known, *got.new]:
        assert row.weight > 0
        assert all(text.startswith(" ") == bool(row.prompt) for text in row.completions)
    ties = (1, 1) in {row.ranks for row in got.train}
    assert ties == (name not in ("ukp_humour", "survey_opinions"))
