import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from shatter.data import (
    Row,
    batches,
    collate,
    encode_rows,
    length_buckets,
    plan_batches,
    read_rows,
)
from shatter.data.encoding import Encoded

EOS = 0


def rows(num=53, *, largest=90):
    """Makes rows whose tokens are all their number; a third of them have three completions."""
    encoded = []
    for n in range(num):
        sizes = [1 + (n * 7 + k * 5) % (largest // 2) for k in range(3 if n % 3 == 0 else 2)]
        prompt = np.full(1 + (n * 11) % (largest // 2), 1000 + n, np.int32)
        completions = tuple(
            np.append(np.full(size, 2000 + 100 * k + n, np.int32), np.int32(EOS))
            for k, size in enumerate(sizes)
        )
        ranks = tuple(range(1, 1 + len(sizes)))
        row = Row("", (), ranks, source=f"f:{n}")
        encoded.append(Encoded(prompt, completions, ranks, 1.0 + n, None, row))
    return encoded


LENGTHS = [row.length for row in rows()]


def iterate(encoded, **changes):
    pytest.importorskip("grain")
    settings = {"batch_size": 4, "seed": 3, "max_length": 96, "num_epochs": 1}
    return batches(encoded, **(settings | changes))


def numbers(found):
    return [batch.row.tolist() for batch in found]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((100,), [16, 24, 32, 48, 64, 96, 100]),
        ((64,), [16, 24, 32, 48, 64]),
        ((16,), [16]),
        ((5,), [5]),
        ((17,), [16, 17]),
    ],
)
def test_buckets_end_with_the_largest_length(arguments, expected):
    assert length_buckets(*arguments) == expected


def test_buckets_are_few_and_tight():
    buckets = length_buckets(4096, smallest=8)
    assert len(buckets) == 19 and buckets[:3] == [8, 12, 16]
    assert all(after <= 1.5 * before for before, after in itertools.pairwise(buckets))
    for wrong in ({"max_length": 0}, {"max_length": 9, "smallest": 7}):
        with pytest.raises(ValueError, match="expected max_length >= 1 and an even smallest"):
            length_buckets(**wrong)


def plan(lengths=LENGTHS, **changes):
    settings = {"batch_size": 4, "seed": 3, "epoch": 0, "buckets": length_buckets(96)}
    return plan_batches(lengths, **(settings | changes))


def test_an_epoch_has_every_row_once_and_at_most_one_batch_is_partly_filled():
    buckets = length_buckets(96)
    for epoch in range(3):
        found = plan(epoch=epoch)
        real = np.concatenate([part[part >= 0] for _, part in found])
        np.testing.assert_array_equal(np.sort(real), np.arange(53))
        assert len(found) == -(-53 // 4)
        for bucket, part in found:
            assert part.shape == (4,) and part[0] >= 0
            longest = max(LENGTHS[row] for row in part[part >= 0])
            assert bucket == min(length for length in buckets if length >= longest)
        assert sum(part.min() < 0 for _, part in found) == 1


def test_no_more_is_padded_than_by_a_partly_filled_batch_in_every_bucket():
    """Every row is in the smallest bucket that fits, except where these are too few for a batch."""
    buckets, rng = length_buckets(96), np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 97, rng.integers(1, 40))
        size = int(rng.integers(1, 9))
        own = np.searchsorted(buckets, lengths)
        found = plan(lengths, batch_size=size)
        padded = size * sum(bucket for bucket, _ in found)
        counts = np.bincount(own, minlength=len(buckets))
        assert padded <= size * np.dot(-(-counts // size), buckets)
        above = [np.sum(buckets[own[row]] < b) for b, part in found for row in part if row >= 0]
        assert np.sum(above) <= len(buckets) * (size - 1)
        assert len(found) == -(-len(lengths) // size)


def as_lists(found):
    return [(bucket, part.tolist()) for bucket, part in found]


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = [as_lists(plan(seed=s, epoch=e)) for s in (0, 1, -1, 2**40) for e in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert as_lists(plan(seed=1, epoch=1)) == orders[3]
    assert len({len(order) for order in orders}) == 1


def test_the_order_stays_in_every_version():
    """A run may be resumed years later, so the order is compared with one by Python integers."""

    def mixed(state):
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    # The first number of SplitMix64 with the seed 1234567 in other implementations.
    assert mixed(1234567 + 0x9E3779B97F4A7C15) == 6457827717110365317

    def order(num, *words):
        state = 0
        for word in words:
            state = mixed((state + 0x9E3779B97F4A7C15 * (word + 1)) % 2**64)
        keys = [mixed((state + 0x9E3779B97F4A7C15 * (n + 1)) % 2**64) for n in range(num)]
        return sorted(range(num), key=keys.__getitem__)

    (only,) = plan([5] * 9, batch_size=9, seed=7, epoch=2)
    assert only[1].tolist() == order(9, 7, 2, 0) == [5, 8, 1, 7, 3, 0, 6, 2, 4]
    ones = [part.item() for _, part in plan([5] * 6, batch_size=1, seed=7, epoch=2)]
    shuffled = order(6, 7, 2, 0)
    assert ones == [shuffled[n] for n in order(6, 7, 2, 1)]


def test_the_order_is_uniform():
    """In 6,000 epochs each of 6 rows is first in a sixth of them, and last in a sixth."""
    epochs = [plan([5] * 6, batch_size=1, epoch=epoch) for epoch in range(3_000)]
    table = np.array([[part.item() for _, part in found] for found in epochs])
    counts = np.stack([(table == row).mean(axis=0) for row in range(6)])
    assert np.all(np.abs(counts - 1 / 6) < 4.5 * np.sqrt(5 / 36 / 3_000))


def test_rows_that_cannot_be_planned():
    with pytest.raises(ValueError, match="row 2 has 97 tokens, the largest bucket 96"):
        plan([1, 2, 97])
    with pytest.raises(ValueError, match="batch_size >= 1 and at least one row, found 4 and 0"):
        plan([])
    with pytest.raises(ValueError, match="found 0 and 53"):
        plan(batch_size=0)


def assert_is_row(batch, b, row, number):
    """Asserts that row b of a batch is this encoded row, padded."""
    num = len(row.completions)
    for k, completion in enumerate(row.completions):
        np.testing.assert_array_equal(batch.tokens[b, k][batch.mask[b, k]], completion)
        is_prompt = batch.valid[b, k] & ~batch.mask[b, k]
        np.testing.assert_array_equal(batch.tokens[b, k][is_prompt], row.prompt)
        end = len(row.prompt) + len(completion)
        np.testing.assert_array_equal(batch.valid[b, k], np.arange(batch.valid.shape[-1]) < end)
    np.testing.assert_array_equal(batch.ranks[b, :num], row.ranks)
    np.testing.assert_array_equal(batch.ranks[b, num:], -1)
    assert batch.weight[b] == row.weight and batch.row[b] == number


def test_batches_hold_their_rows():
    encoded = rows()
    seen = []
    for batch in iterate(encoded):
        types = [leaf.dtype.name for leaf in batch]
        assert types == ["int32", "bool", "bool", "int32", "float32", "int32", "int32"]
        shape = batch.tokens.shape
        assert shape[:2] == (4, 3) and shape == batch.mask.shape == batch.valid.shape
        for b, number in enumerate(batch.row):
            if number >= 0:
                assert_is_row(batch, b, encoded[number], number)
                seen.append(number)
    np.testing.assert_array_equal(np.sort(seen), np.arange(53))


def test_what_fills_up_a_batch_weighs_nothing_and_is_no_empty_document():
    encoded = rows()
    filled = [batch for batch in iterate(encoded) if batch.row.min() < 0]
    assert filled
    for batch in filled:
        fill = batch.row < 0
        np.testing.assert_array_equal(batch.weight[fill], 0.0)
        np.testing.assert_array_equal(batch.ranks[fill], -1)
        for leaf in (batch.tokens, batch.mask, batch.valid):
            for copy in leaf[fill]:
                np.testing.assert_array_equal(copy, leaf[0])
    for batch in iterate(encoded):
        assert batch.mask.any(axis=-1).all()
        empty = (batch.ranks < 0) & (batch.row >= 0)[:, None]
        for b, k in np.argwhere(empty):
            np.testing.assert_array_equal(batch.tokens[b, k], batch.tokens[b, 0])


def test_padding_that_equals_eos_and_prompts_is_told_apart_by_length():
    prompt, completion = np.array([EOS, EOS], np.int32), np.array([EOS, 5, EOS], np.int32)
    row = Encoded(prompt, (completion,), (0,), 1.0, None, Row("", (), (0,)))
    batch = collate([row], [0], length=8, num_slots=1)
    assert batch.mask[0, 0].astype(int).tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert batch.valid[0, 0].astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="at most 1 completions and 4 tokens, found 1 and 5"):
        collate([row], [0], length=4, num_slots=1)


def test_shapes_are_bounded_by_the_buckets():
    shapes = {batch.tokens.shape for batch in iterate(rows(), num_epochs=5)}
    assert shapes <= {(4, 3, bucket) for bucket in length_buckets(96)}
    assert len(shapes) > 1
    fixed = {batch.tokens.shape for batch in iterate(rows(), num_epochs=5, buckets=[96])}
    assert fixed == {(4, 3, 96)}


def test_epochs_follow_each_other_in_other_orders():
    encoded = rows()
    found = numbers(iterate(encoded, num_epochs=3))
    size = len(found) // 3
    epochs = [found[n * size :][:size] for n in range(3)]
    for epoch, order in enumerate(epochs):
        assert order == [part.tolist() for _, part in plan(epoch=epoch)]
    endless = iterate(encoded, num_epochs=None)
    assert numbers(itertools.islice(endless, 3 * size + 1))[:-1] == found
    assert numbers(iterate(encoded, seed=4)) != epochs[0]
    assert numbers(iterate(encoded, num_ahead=0)) == epochs[0]


@pytest.mark.parametrize("num_done", [0, 1, 7, 20])
def test_a_resumed_iterator_goes_on_with_the_same_batches(num_done):
    encoded = rows()
    first = iterate(encoded, num_epochs=2)
    for _ in range(num_done):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = list(first)
    second = iterate(encoded, num_epochs=2)
    next(second)
    second.set_state(state)
    found = list(second)
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_the_processes_are_the_whole(count):
    encoded = rows()
    whole = list(iterate(encoded, num_epochs=2))
    parts = [
        list(iterate(encoded, num_epochs=2, process_index=n, process_count=count))
        for n in range(count)
    ]
    together = [
        jax.tree.map(lambda *leaves: np.concatenate(leaves), *batch)
        for batch in zip(*parts, strict=True)
    ]
    assert len(together) == len(whole)
    for one, other, batch in zip(together, whole, zip(*parts, strict=True), strict=True):
        for part in batch:
            np.testing.assert_array_equal(part.all_rows, other.row)
        one = one._replace(all_rows=other.row)
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_processes_must_divide_the_batch():
    for wrong in (
        {"process_count": 3},
        {"process_index": 2, "process_count": 2},
        {"process_count": 0},
    ):
        with pytest.raises(ValueError, match="a batch_size that process_count divides"):
            iterate(rows(), **wrong)


class Letters:
    """Makes a token of every character."""

    bos, eos, adds_bos, chat_template = 1, 2, True, None

    def encode(self, text):
        return [3 + ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(chr(n - 3) for n in ids)


def test_text_becomes_batches():
    texts = [Row("Q 🦊", (f" {'a' * n}", " b"), (1, 2), source=f"f:{n}") for n in range(2, 9)]
    encoded, _ = encode_rows(texts, Letters(), max_length=32)
    batch = next(iterate(encoded, max_length=32, batch_size=7))
    for b, number in enumerate(batch.row):
        spelt = Letters().decode(batch.tokens[b, 0][batch.mask[b, 0]][:-1])
        assert spelt == texts[number].completions[0]
        assert batch.tokens[b, 0, 0] == 1


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"batches need grain: pip install 'shatter-lm\[data\]'"):
        batches(rows(), batch_size=4, seed=0, max_length=96)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'shatter-lm\[parquet\]'"):
        read_rows(tmp_path / "a.parquet")


def test_the_package_imports_no_extra():
    code = (
        "import sys, shatter.data\n"
        "heavy = {'grain', 'jinja2', 'pyarrow', 'tokenizers', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = str(Path(__file__).resolve().parents[2])
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert (answer.stdout.strip(), answer.returncode) == ("[]", 0), answer.stderr
