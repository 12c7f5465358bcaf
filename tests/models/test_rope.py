"""Rotary positions, without the rest of a transformer."""

import jax.numpy as jnp
import numpy as np

from shatter.models.rope import Rope, cos_sin, rotate


def test_scores_depend_on_relative_positions_alone(float64: None):
    rng = np.random.default_rng(0)
    query, key = (jnp.array(rng.standard_normal((1, 5, 2, 6))) for _ in range(2))

    def scores(of_query: int, of_key: int) -> np.ndarray:
        places = (jnp.arange(5)[None] + shift for shift in (of_query, of_key))
        turns = (cos_sin(Rope(theta=100.0), place, 6) for place in places)
        turned = [rotate(x, turn) for x, turn in zip((query, key), turns, strict=True)]
        return np.einsum("bths,buhs->bhtu", *turned)

    np.testing.assert_allclose(scores(7, 7), scores(0, 0), atol=1e-13)
    assert np.abs(scores(7, 0) - scores(0, 0)).max() > 0.1
