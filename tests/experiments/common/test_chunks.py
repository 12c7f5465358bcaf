"""A run that is cut, killed and resumed gives the numbers of the uninterrupted one, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import chunks
from shatter.cli.common import checkpoints, run_folder
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # takes long to compile

NUM_SEEDS = 3


def walk(step_scale=1.0):
    """A random walk whose state holds a typed key, an integer and a tuple."""

    def start(key):
        carry = (key, (jnp.zeros(()), jnp.zeros((), int)))
        return carry, {"place": jnp.zeros(()), "path": jnp.zeros(2)}

    def rounds(carry, first_round, chunk):
        def step(carry, t):
            key, (place, count) = carry
            place += step_scale * jax.random.normal(jax.random.fold_in(key, t))
            place += jnp.sin(count * chunk.num_queries)
            metrics = {"place": place, "path": jnp.stack([place, place**2])}
            return (key, (place, count + 1)), metrics

        return jax.lax.scan(step, carry, first_round + jnp.arange(chunk.num_rounds))

    return chunks.Process(start, rounds)


def keys():
    return jax.random.split(jax.random.key(3), NUM_SEEDS)


class Killed(Exception):
    pass


def killer(after):
    done = []

    def progress(rounds):
        done.append(rounds)
        if sum(done) >= after:
            raise Killed

    return progress


def test_a_cut_run_is_the_uncut_one(tmp_path):
    whole = chunks.run_seeds(walk(), keys(), tmp_path / "whole", chunks.equal_chunks(7, 2, 7))
    cut = chunks.run_seeds(walk(), keys(), tmp_path / "cut", chunks.equal_chunks(7, 2, 3))
    assert whole["place"].shape == (NUM_SEEDS, 8)
    assert whole["path"].shape == (NUM_SEEDS, 8, 2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name])
    assert np.unique(whole["place"][:, -1]).size == NUM_SEEDS


def test_seeds_in_batches_are_the_seeds_at_once(tmp_path):
    plan = chunks.equal_chunks(6, 2, 3)
    together = chunks.run_seeds(walk(), keys(), tmp_path / "together", plan)
    for at_once in (1, 2, 4):
        folder = tmp_path / str(at_once)
        parted = chunks.run_seeds(walk(), keys(), folder, plan, seeds_at_once=at_once)
        for name in together:
            np.testing.assert_allclose(parted[name], together[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("after", [2, 4])
def test_a_killed_run_resumes_from_its_last_chunk(tmp_path, after):
    plan = chunks.equal_chunks(6, 2, 2)
    whole = chunks.run_seeds(walk(), keys(), tmp_path / "whole", plan)
    with pytest.raises(Killed):
        chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan, progress=killer(after))
    calls = []
    resumed = chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan, progress=calls.append)
    assert calls[0] == after
    assert sum(calls) == 6
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])


def test_what_seeds_share_is_passed_on_and_not_saved(tmp_path):
    start, rounds = walk()
    shared = jnp.arange(100_000.0)

    def begin(key, shared):
        carry, metrics = start(key)
        return carry, metrics | {"sum": jnp.sum(shared)}

    def go_on(carry, first_round, chunk, shared):
        carry, metrics = rounds(carry, first_round, chunk)
        return carry, metrics | {"sum": jnp.full(chunk.num_rounds, jnp.sum(shared))}

    process, plan = chunks.Process(begin, go_on), chunks.equal_chunks(4, 2, 2)
    folder = tmp_path / "cut"
    with pytest.raises(Killed):
        chunks.run_seeds(process, keys(), folder, plan, shared=(shared,), progress=killer(2))
    saved = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert saved < shared.nbytes
    found = chunks.run_seeds(process, keys(), folder, plan, shared=(shared,))
    np.testing.assert_array_equal(found["sum"], np.full((NUM_SEEDS, 5), float(jnp.sum(shared))))
    alone = chunks.run_seeds(walk(), keys(), tmp_path / "alone", plan)
    np.testing.assert_array_equal(found["place"], alone["place"])


def test_a_finished_run_is_read_not_run(tmp_path):
    plan = chunks.equal_chunks(4, 2, 2)
    first = chunks.run_seeds(walk(), keys(), tmp_path, plan)
    again = chunks.run_seeds(walk(step_scale=100.0), keys(), tmp_path, plan)
    np.testing.assert_array_equal(first["place"], again["place"])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.npz"]


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "metrics.npz").write_bytes(b"PK no archive")
    with pytest.raises(UsageError, match=r"metrics\.npz is damaged .*: delete it"):
        chunks.run_seeds(walk(), keys(), tmp_path, chunks.equal_chunks(4, 2, 2))


def test_a_damaged_checkpoint_without_checksums_is_named(tmp_path):
    plan = chunks.equal_chunks(4, 2, 2)
    with pytest.raises(Killed):
        chunks.run_seeds(walk(), keys(), tmp_path, plan, progress=killer(2))
    (tmp_path / "checkpoints" / "2" / "SHA256SUMS").unlink()
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"checkpoint of round 2 .* cannot be read"):
        chunks.run_seeds(walk(), keys(), tmp_path, plan)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def largest_file(folder):
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "SHA256SUMS"]
    return max(files, key=lambda file: file.stat().st_size)


def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog):
    plan = chunks.equal_chunks(8, 2, 2)
    whole = chunks.run_seeds(walk(), keys(), tmp_path / "whole", plan)
    with pytest.raises(Killed):
        chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan, progress=killer(6))
    damaged = largest_file(tmp_path / "killed" / "checkpoints" / "6")
    flip_a_bit(damaged)
    calls = []
    resumed = chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan, progress=calls.append)
    assert str(damaged) in caplog.text and "is damaged" in caplog.text
    assert calls == [4, 2, 2]
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])


def test_a_renamed_checkpoint_is_not_gone_on_from(tmp_path, caplog):
    """Rounds that were never run would else be zeros in the result."""
    plan = chunks.equal_chunks(8, 2, 2)
    whole = chunks.run_seeds(walk(), keys(), tmp_path / "whole", plan)
    with pytest.raises(Killed):
        chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan, progress=killer(4))
    checkpoints = tmp_path / "killed" / "checkpoints"
    (checkpoints / "4").rename(checkpoints / "60")
    resumed = chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan)
    assert "checkpoints/60 is the one that was saved as 4, renamed" in caplog.text
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])


@pytest.mark.parametrize("damaged", ["2", "4"])
@pytest.mark.parametrize("content", ["[]", "null", "{"])
def test_metadata_that_orbax_cannot_open_is_damage_too(tmp_path, caplog, damaged, content):
    plan = chunks.equal_chunks(6, 2, 2)
    whole = chunks.run_seeds(walk(), keys(), tmp_path / "whole", plan)
    with pytest.raises(Killed):
        chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan, progress=killer(4))
    file = tmp_path / "killed" / "checkpoints" / damaged / "_CHECKPOINT_METADATA"
    file.write_text(content)
    resumed = chunks.run_seeds(walk(), keys(), tmp_path / "killed", plan)
    if damaged == "4" or content == "[]":  # orbax opens the others without an error
        assert f"{file} is damaged" in caplog.text
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])


def test_where_no_checkpoint_is_sound_the_way_on_is_said(tmp_path):
    plan = chunks.equal_chunks(4, 2, 2)
    with pytest.raises(Killed):
        chunks.run_seeds(walk(), keys(), tmp_path, plan, progress=killer(2))
    flip_a_bit(largest_file(tmp_path / "checkpoints" / "2"))
    with pytest.raises(UsageError, match=r"is damaged.*delete .*checkpoints to begin again"):
        chunks.run_seeds(walk(), keys(), tmp_path, plan)
    run_folder.remove_folder(tmp_path / "checkpoints")
    assert chunks.run_seeds(walk(), keys(), tmp_path, plan)["place"].shape == (NUM_SEEDS, 5)


def test_a_checkpoint_of_other_software_is_refused(tmp_path, monkeypatch):
    plan = chunks.equal_chunks(4, 2, 2)
    with pytest.raises(Killed):
        chunks.run_seeds(walk(), keys(), tmp_path, plan, progress=killer(2))
    monkeypatch.setattr(checkpoints, "software", lambda: {"jax": "99.0"})
    with pytest.raises(UsageError, match=rf"jax: found '{jax.__version__}', now '99.0'"):
        chunks.run_seeds(walk(), keys(), tmp_path, plan)


def test_a_run_that_goes_astray_is_stopped(tmp_path):
    with pytest.raises(UsageError, match=r"is not finite at seed 0, round 1"):
        chunks.run_seeds(walk(np.inf), keys(), tmp_path, chunks.equal_chunks(2, 2, 1))


def test_equal_chunks():
    assert [c.num_rounds for c in chunks.equal_chunks(7, 5, 3)] == [3, 3, 1]
    assert {c.num_queries for c in chunks.equal_chunks(7, 5, 3)} == {5}
