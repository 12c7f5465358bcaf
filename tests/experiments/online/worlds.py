"""A tiny model as the frozen base, its world, and members of it."""

from functools import partial

import jax
import jax.numpy as jnp

from experiments.online import process
from experiments.online.config import Config, settled
from experiments.online.members import make_ensemble
from experiments.online.world import Fixed, Read, all_responses, load_world, read

WORDS = ["a", ".", "saw", "found", "happy", "very", "friend", "mom"]
WORDS += ["dog", "cat", "big", "shiny", "red", "little", "small", "pretty"]
TINY = {
    "prompts": ("saw a", "a dog found a"),
    "num_seeds": 2,
    "max_length": 3,
    "num_members": 2,
    "rank": 2,
    "num_rounds": 2,
    "queries_per_round": 2,
    "num_candidates": 4,
    "num_steps": 1,
    "batch_size": 2,
    "pool_size": 6,
    "num_samples": 4,
    "chunk_rounds": 1,
}


def tiny(folder, tmp_path, **changes):
    values = {"model_name_or_path": str(folder), "run_dir": str(tmp_path / "run"), **TINY}
    return Config(**{**values, **changes})


def load(folder, tmp_path, setting, **changes):
    """Returns the world and its arrays, with a prior scale of 1."""
    world, params = load_world(settled(tiny(folder, tmp_path, setting=setting, **changes)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)
    none, one = jnp.zeros(16), jnp.ones(16)  # two of the model's width
    fixed = Fixed(params, jnp.zeros(()), jnp.ones(()), none, one)
    log_z = jax.jit(partial(process.log_normalisers, world))(fixed, jax.random.key(0))
    return world, fixed._replace(log_z=log_z)


def draw_members(world, fixed, prior_scale=1.0):
    scale = jnp.asarray(prior_scale)
    ensemble = make_ensemble(world, fixed.params, scale, num_members=world.config.num_members)
    return jax.jit(ensemble.init)(jax.random.key(3))[1]


def read_everything(world, fixed):
    return jax.jit(lambda fixed: read(world, fixed, all_responses(world, fixed.params)))(fixed)


def shown(known, prompt, pair):
    """Returns two of the responses to a prompt as a query."""
    _, *others = jax.tree.map(lambda leaf: leaf[prompt], known)
    return Read(jnp.array(prompt), *(leaf[pair] for leaf in others))


def next_laws(world, params):
    """Log-probs of the token after every prompt, without padding."""
    rows = [jnp.array([[1, *world.tokenizer.encode(prompt)]]) for prompt in TINY["prompts"]]
    return jnp.stack([jax.nn.log_softmax(world.lm.apply(params, row)[0, -1]) for row in rows])


def one_of(own, m):
    return jax.tree.map(lambda leaf: leaf[m], own)
