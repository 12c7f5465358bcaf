"""The law from which samples are drawn, compared with the filters of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.documents import sampling_logits
from shatter.numerics import LOG_ZERO

torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
generation = pytest.importorskip(
    "transformers.generation.logits_process", reason="parity needs transformers"
)

WARPERS = {
    "temperature": "TemperatureLogitsWarper",
    "top_k": "TopKLogitsWarper",
    "top_p": "TopPLogitsWarper",
    "min_p": "MinPLogitsWarper",
}
"""In the order in which transformers applies them."""


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": 0.7},
        {"top_k": 2},
        {"top_k": 7},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"min_p": 0.1},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.8, "top_k": 9, "top_p": 0.8, "min_p": 0.3},
    ],
    ids=str,
)
def test_filters(filters: dict, ties: bool):
    """40 rows of 50 logits; rounded to halves in one case, so that many tie.

    Which of tied tokens top-p leaves out is torch's unstable sort's affair: there the probabilities
    that are left are compared, not their places.
    """
    logits = np.random.default_rng(3).normal(size=(40, 50)).astype(np.float32) * 2
    if ties:
        logits = np.round(2 * logits) / 2
    theirs = torch.tensor(logits)
    for name, warper in WARPERS.items():
        if name in filters:
            theirs = getattr(generation, warper)(filters[name])(None, theirs)
    ours = np.asarray(jax.jit(lambda x: sampling_logits(x, **filters))(jnp.array(logits)))
    ours, theirs = np.where(ours == LOG_ZERO, -np.inf, ours), theirs.numpy()
    if ties and "top_p" in filters:
        ours, theirs = np.sort(ours), np.sort(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert np.isinf(ours).any() == (filters.keys() != {"temperature"})
