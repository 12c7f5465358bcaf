"""The truncation of prompts and documents that are too long."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter.data import truncate_prompt
from shatter.data.report import BadRow
from shatter.data.truncation import truncate_document

cheap = settings(derandomize=True, deadline=None, max_examples=100)


@pytest.mark.parametrize(
    ("ids", "limit", "bos", "expected"),
    [
        ([1, 5, 6, 7], 4, 1, [1, 5, 6, 7]),
        ([1, 5, 6, 7], 3, 1, [1, 6, 7]),
        ([1, 5, 6, 7], 2, 1, [1, 7]),
        ([1, 5, 6, 7], 1, 1, [1]),  # a slice [-0:] would keep everything
        ([4, 5, 6, 7], 3, 1, [5, 6, 7]),
        ([4, 5, 6, 7], 1, 1, [7]),
        ([4, 5, 6, 7], 1, None, [7]),
        ([1], 1, 1, [1]),
    ],
)
def test_bos_stays_and_what_follows_it_goes(ids, limit, bos, expected):
    for given_ids in (ids, np.asarray(ids, np.int32)):
        found = truncate_prompt(given_ids, limit, bos=bos)
        assert found == expected and all(type(token) is int for token in found)


@cheap
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 12), st.integers(0, 3))
def test_never_empty_never_too_long_always_the_end(ids, limit, bos):
    found = truncate_prompt(ids, limit, bos=bos)
    assert len(found) == min(len(ids), limit)
    kept = found[1:] if ids[0] == bos else found
    assert ids[0] != bos or found[0] == bos
    assert kept == ids[len(ids) - len(kept) :]


@pytest.mark.parametrize(("ids", "limit"), [([1, 2], 0), ([1, 2], -1), ([], 3)])
def test_what_cannot_be_shortened_is_refused(ids, limit):
    with pytest.raises(ValueError, match=rf"limit >= 1, found {len(ids)} tokens .* of {limit}"):
        truncate_prompt(ids, limit, bos=1)


lengths = st.integers(1, 20)


@cheap
@given(
    lengths,
    st.lists(st.integers(2, 20), min_size=1, max_size=3),
    st.integers(3, 24),
    st.none() | lengths,
)
def test_no_document_overruns_and_every_one_is_closed(prompt, completions, limit, prompt_limit):
    bos, eos = 0, 1
    ids = [bos, *range(2, prompt + 1)]
    whole = [[*range(30, 29 + num), eos] for num in completions]
    limits = {"max_length": limit, "max_prompt_length": prompt_limit}
    try:
        short, cut = truncate_document(ids, whole, **limits, bos=bos, eos=eos)
    except BadRow:
        assert prompt_limit is not None and prompt_limit > limit - 2
        return
    assert short[0] == bos and short == truncate_prompt(ids, len(short), bos=bos)
    assert len(short) <= (prompt_limit or limit)
    for before, after in zip(whole, cut, strict=True):
        assert len(short) + len(after) <= limit
        assert after[-1] == eos and after[:-1] == before[: len(after) - 1]
        assert after == before or len(short) + len(after) == limit
