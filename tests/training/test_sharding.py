"""Meshes are read from texts, and arrays lie on them in the parts that their axes say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import training


def mesh(text):
    return training.make_mesh(training.mesh_sizes(text))


def test_sizes_are_in_one_order_whatever_the_order_of_the_text():
    sizes = training.mesh_sizes("tensor=2, data=4")
    assert list(sizes.items()) == [("data", 4), ("tensor", 2)]
    assert mesh("tensor=2,data=4").shape == {"data": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected axes among seed, member, .* such as seed=2,member=2, found '' in ''"),
        ("rows=2", "found 'rows=2' in 'rows=2'"),
        ("data=2,", "found '' in 'data=2,'"),
        ("data", "expected a whole number of at least 1 as the size of data, found '' in 'data'"),
        ("data=0", "as the size of data, found '0'"),
        ("data=-1", "as the size of data, found '-1'"),
        ("data=1.5", "as the size of data, found '1.5'"),
        ("data=2,fsdp=2,data=2", "expected every axis once, found data twice"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        training.mesh_sizes(text)


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="data=4,fsdp=4 has 16 devices, and there are 8 of"):
        mesh("data=4,fsdp=4")


def test_rows_are_shared_by_data_and_fsdp():
    whole = mesh("data=2,fsdp=2,tensor=2")
    rows = training.put_rows(whole, {"a": np.arange(12.0).reshape(4, 3)}, 4)["a"]
    assert {shard.data.shape for shard in rows.addressable_shards} == {(1, 3)}
    np.testing.assert_array_equal(rows, np.arange(12.0).reshape(4, 3))
    assert training.rows_of_process(whole, 4) == (0, 1)


def rule(path, shape):
    return ("tensor", ("data", "fsdp")) if path.endswith("w") else (None,) * len(shape)


def test_a_dimension_that_its_axes_do_not_divide_stays_whole():
    devices = mesh("data=2,fsdp=2,tensor=2")
    tree = {"a": {"w": jnp.ones((4, 8))}, "b": {"w": jnp.ones((3, 6))}, "c": jnp.ones(())}
    tree = {**tree, "key": jax.random.key(0)}
    places = training.shardings_of(devices, tree, rule)
    held = training.put(tree, places)
    shapes = lambda leaf: {shard.data.shape for shard in leaf.addressable_shards}
    assert shapes(held["a"]["w"]) == {(2, 2)}
    assert shapes(held["b"]["w"]) == {(3, 6)}
    assert shapes(held["c"]) == {()}
    for one, other in zip(jax.tree.leaves(held), jax.tree.leaves(tree), strict=True):
        assert (one == other).all()


def test_axes_that_a_mesh_lacks_share_nothing():
    devices = mesh("data=8")
    spec = training.place(devices, "seed", ("data", "fsdp")).spec
    assert spec == jax.sharding.PartitionSpec(None, "data")
    assert training.axis_size(devices, "data", "fsdp", "tensor") == 8
