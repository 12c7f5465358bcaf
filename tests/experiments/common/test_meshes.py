"""Seeds and members on several devices give the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import chunks, meshes
from shatter.cli.common.binary import UsageError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=3", "--mesh=seed=3: seed=3 must divide --num_seeds, found 4"),
        ("member=4", "--mesh=member=4: member=4 must divide --num_members, found 6"),
        ("seed=4,member=6", "--mesh: the mesh seed=4,member=6 has 24 devices, and there are 8 of"),
        ("data=2", "--mesh: expected axes among seed, member with their sizes"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        meshes.open_mesh(text, num_seeds=4, num_members=6)
    assert meshes.open_mesh("", num_seeds=4, num_members=6) is None


def process():
    """Members that drift towards their mean, from a seed's key."""

    def start(key):
        members = jax.random.normal(key, (6, 3))
        return {"members": members, "key": key}, {"mean": jnp.mean(members)}

    def rounds(state, first_round, chunk):
        def step(members, t):
            noise = jax.random.normal(jax.random.fold_in(state["key"], t), members.shape)
            members = members + 0.1 * (jnp.mean(members, axis=0)[None] - members + noise)
            return members, {"mean": jnp.mean(members)}

        numbers = first_round + jnp.arange(chunk.num_rounds)
        members, metrics = jax.lax.scan(step, state["members"], numbers)
        return {**state, "members": members}, metrics

    return chunks.Process(start, rounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "at_once"), [("seed=4", None), ("seed=2,member=2", 1), ("member=6", None)]
)
def test_a_mesh_gives_the_numbers_of_one_device(tmp_path, text, at_once):
    keys, plan = jax.random.split(jax.random.key(0), 4), chunks.equal_chunks(4, 1, 2)
    one = chunks.run_seeds(process(), keys, tmp_path / "one", plan, seeds_at_once=at_once)
    mesh = meshes.open_mesh(text, num_seeds=4, num_members=6)
    state = {"members": jnp.zeros((4, 6, 3)), "key": keys}
    spec = meshes.shardings(mesh, state)["members"].spec
    assert [axes for axes in spec if axes is not None] == list(mesh.shape)
    alone = meshes.shardings(mesh, {"members": jnp.zeros((4, 1, 3))})["members"].spec
    assert "member" not in alone  # one policy, which two devices cannot share

    def stop(rounds):
        raise KeyboardInterrupt

    folder = tmp_path / "many"  # is killed on the mesh and goes on there
    with pytest.raises(KeyboardInterrupt):
        chunks.run_seeds(
            process(), keys, folder, plan, seeds_at_once=at_once, mesh=mesh, progress=stop
        )
    many = chunks.run_seeds(process(), keys, folder, plan, seeds_at_once=at_once, mesh=mesh)
    np.testing.assert_allclose(many["mean"], one["mean"], rtol=1e-5, atol=1e-6)
