"""The filtered laws against their definition in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter.documents import sampling_logits
from shatter.numerics import LOG_ZERO


def kept_by_definition(logits, temperature=1.0, top_k=None, top_p=None, min_p=None) -> list[int]:
    """Returns the tokens that stay, by filtering a list sorted by logit and id."""
    x = np.asarray(logits, float) / temperature
    kept = sorted(range(len(x)), key=lambda v: (x[v], v))
    if top_k == 1:
        return [int(np.argmax(x))]
    if top_k is not None:
        least = x[kept[-min(top_k, len(kept))]]
        kept = [v for v in kept if x[v] >= least]
    if top_p is not None:
        probs = np.exp(x[kept] - x.max())
        probs /= probs.sum()
        sizes = [n for n in range(1, len(kept) + 1) if probs[len(kept) - n :].sum() >= top_p]
        kept = kept[len(kept) - min(sizes, default=len(kept)) :]
    if min_p is not None:
        kept = [v for v in kept if np.exp(x[v] - x.max()) >= min_p]
    return sorted(kept)


FILTERS = [
    {},
    {"temperature": 0.3},
    *({"top_k": k} for k in (1, 2, 5, 40)),
    *({"top_p": p} for p in (1e-6, 0.3, 0.9, 1.0)),
    *({"min_p": p} for p in (0.0, 0.05, 0.4)),
    {"temperature": 0.7, "top_k": 6},
    {"top_k": 4, "top_p": 0.7},
    {"temperature": 0.7, "top_k": 8, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 2.5, "top_k": 9, "top_p": 0.6, "min_p": 0.5},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_definition(float64: None, filters: dict):
    """On 60 random rows: spread out, flat, with many ties, and with forbidden tokens."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, 15, 12)) * np.array([3.0, 0.3, 1.0, 2.0])[:, None, None]
    logits[2] = np.round(2 * logits[2]) / 2
    logits[3][rng.random((15, 12)) < 0.3] = -np.inf
    found = np.asarray(jax.jit(lambda x: sampling_logits(x, **filters))(logits))
    sizes = set()
    for row, out in zip(logits.reshape(-1, 12), found.reshape(-1, 12), strict=True):
        kept = kept_by_definition(row, **filters)
        possible = [v for v in kept if np.isfinite(row[v])]
        np.testing.assert_array_equal(np.flatnonzero(out > LOG_ZERO / 10), possible)
        np.testing.assert_allclose(
            out[possible], row[possible] / filters.get("temperature", 1.0), rtol=1e-14
        )
        filtered = [v for v in range(12) if v not in kept]
        np.testing.assert_array_equal(out[filtered], LOG_ZERO)
        sizes.add(len(possible))
    assert sizes == {1} or len(sizes) > 2


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 2}, [0, 1, 3]),  # ties at the second value
        ({"top_p": 0.47}, [0]),
        ({"top_p": 0.49}, [0, 3]),  # one of the tied is enough
        ({"top_p": 0.73}, [0, 1, 3]),
        ({"top_k": 2, "top_p": 0.49}, [0]),  # .48 of the .96 that top-k left
        ({"min_p": 0.51}, [0]),
        ({"min_p": 0.49}, [0, 1, 3]),
        ({"top_p": 0.97, "min_p": 0.05}, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_by_hand(filters: dict, kept: list[int]):
    """With the probabilities .48, .24, .04, .24."""
    found = sampling_logits(jnp.log(jnp.array([0.48, 0.24, 0.04, 0.24])), **filters)
    np.testing.assert_array_equal(np.flatnonzero(found > LOG_ZERO), kept)


@pytest.mark.slow
def test_half_precision_comes_out_in_float32():
    assert sampling_logits(jnp.zeros(3, jnp.bfloat16), top_p=0.5).dtype == jnp.float32


def test_greedy_is_a_point_mass_where_tokens_tie():
    law = jax.nn.log_softmax(sampling_logits(jnp.array([1.0, 2.0, 2.0]), top_k=1))
    np.testing.assert_array_equal(jnp.exp(law), [0.0, 1.0, 0.0])


@pytest.mark.slow
def test_hyper_parameters_may_be_vmapped():
    logits = jnp.array([2.0, 1.0, 0.5, -1.0])
    values = jnp.array([[0.5, 0.6, 0.0], [1.5, 0.99, 0.3]])
    run = lambda t, p, q: sampling_logits(logits, temperature=t, top_p=p, min_p=q)
    lifted = jax.vmap(run)(*values.T)
    for out, row in zip(lifted, values, strict=True):
        np.testing.assert_allclose(out, run(*row.tolist()), rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, found 0.0"),
        ({"top_k": 0}, "top_k must be >= 1, found 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, found 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, found 1.1"),
        ({"min_p": -0.1}, "min_p must be at least 0 and at most 1, found -0.1"),
        ({"min_p": float("nan")}, "min_p must be at least 0 and at most 1, found nan"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(bad: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sampling_logits(jnp.zeros(3), **bad)
    if "top_k" not in bad:
        checked = checkify.checkify(lambda bad: sampling_logits(jnp.zeros(3), **bad))
        assert message[:-4] in jax.jit(checked)(bad)[0].get()


def test_wrong_shapes_and_types_are_refused():
    with pytest.raises(AssertionError):
        sampling_logits(jnp.zeros(3, int))
    with pytest.raises(AssertionError):
        sampling_logits(jnp.zeros(3), top_p=jnp.ones(3))
