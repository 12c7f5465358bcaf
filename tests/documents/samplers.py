"""What the tests of sampling draw from: two small models, and a call with few arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.documents import Samples, sample
from shatter.models import LanguageModel, TransformerConfig, tabular, transformer

V, L, EOS = 3, 3, 1
PROMPT = (2, 0)
MODELS = {
    "tabular": tabular(vocab_size=V, max_length=1 + L, num_prompts=V),
    "transformer": transformer(
        TransformerConfig(vocab_size=V, max_length=8, width=8, num_layers=1, num_heads=2)
    ),
}
every_model = pytest.mark.parametrize("kind", list(MODELS))


def make_params(lm: LanguageModel):
    """Draws parameters far from uniform, with NumPy because compiling an init takes longer."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.array(rng.standard_normal(leaf.shape)), shapes)


def small(key=None, prompt=(0,), lm=MODELS["tabular"], params=None, **changes) -> Samples:
    arguments = {"num_samples": 4, "max_length": 2} | changes
    params = make_params(lm) if params is None else params
    key = jax.random.key(0) if key is None else key
    return sample(lm, params, key, jnp.array(prompt), **arguments)
