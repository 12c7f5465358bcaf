"""Runs over many seeds, cut into chunks on the host to show progress, to save and to resume."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import meshes, threads
from shatter import training
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import Checkpoints, assert_same_software
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.run_folder import load_arrays, remove_folder, save_arrays


class Chunk(NamedTuple):
    """A piece of a run: `num_rounds` rounds of `num_queries` queries each."""

    num_rounds: int
    num_queries: int


class Process(NamedTuple):
    """A run of one seed as a function of its input, a key with what else differs between seeds.

    Attributes:
      start: `(input) -> (carry, metrics)`, with the metrics before the first round.
      rounds: `(carry, first_round, chunk) -> (carry, metrics[num_rounds])`; the chunk is static.

    Where a run has something that all seeds share, both take it last.
    """

    start: Callable[..., tuple[Any, dict[str, jax.Array]]]
    rounds: Callable[..., tuple[Any, dict[str, jax.Array]]]


def equal_chunks(num_rounds: int, num_queries: int, chunk_rounds: int) -> list[Chunk]:
    """Cuts a run of equal rounds into chunks; the last may be shorter.

    Args:
      num_rounds: rounds of the run.
      num_queries: queries a round.
      chunk_rounds: rounds a chunk.

    Returns:
      The chunks.
    """
    firsts = range(0, num_rounds, chunk_rounds)
    return [Chunk(min(chunk_rounds, num_rounds - first), num_queries) for first in firsts]


def run_seeds(
    process: Process,
    inputs: Any,
    folder: Path,
    plan: Sequence[Chunk],
    *,
    shared: tuple[Any, ...] = (),
    seeds_at_once: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] = lambda rounds: None,
) -> dict[str, np.ndarray]:
    """Runs all seeds, a jitted call for a batch of seeds and a chunk; resumes from the last chunk.

    After every chunk but the last the state and the metrics so far are saved; a save that is
    interrupted leaves the one before as it was. The result is written to `metrics.npz`, from which
    it is read when it is asked for again. A resumed run has the same number of seeds, so that its
    numbers are those of the uninterrupted run to the bit.

    Args:
      process: the run of one seed.
      inputs: the seeds' inputs, `[S]` on every leaf.
      folder: the folder for the files of this run.
      plan: the chunks.
      shared: what all seeds share, as further arguments of the process, for example the parameters
        of a large frozen model; it is neither repeated by seed nor saved.
      seeds_at_once: how many seeds are vmapped, on each device; the batches follow each other.
        None = all.
      mesh: the devices that share the seeds and the members; None = one device. Another mesh gives
        the same numbers up to rounding.
      progress: called with the number of rounds done since the last call.

    Returns:
      metrics `[S, 1 + rounds, ...]`, before the first round and after each.

    Raises:
      UsageError: if a metric is not finite, or a file of the run is damaged.
    """
    done = folder / "metrics.npz"
    num_rounds = sum(chunk.num_rounds for chunk in plan)
    if done.exists():
        metrics = load_arrays(done)
        progress(num_rounds)
        return metrics

    @partial(jax.jit, static_argnums=2, compiler_options=compiler_options())
    def rounds(carries: Any, first_round: jax.Array, chunk: Chunk, shared: Any) -> tuple[Any, Any]:
        one_seed = lambda carry: process.rounds(carry, first_round, chunk, *shared)
        return _over_seeds(one_seed, seeds_at_once, mesh)(carries)

    # Without a mesh the host calls a batch of seeds at a time: on a CPU `jax.lax.map` is slower
    # with large models, and leaves cores idle with small ones.
    by_batches = partial(_by_batches, seeds_at_once if mesh is None else None)
    if mesh is not None:
        inputs = training.put(inputs, meshes.shardings(mesh, inputs))
    start = _jitted_start(process.start, seeds_at_once, mesh)
    carry, first = by_batches(start, inputs, shared)
    history = {
        name: jnp.zeros((len(value), 1 + num_rounds, *value.shape[1:])).at[:, 0].set(value)
        for name, value in first.items()
    }
    with Checkpoints(folder / "checkpoints", parts=("default",)) as checkpoints:
        saved = checkpoints.newest_sound()
        if saved:
            assert_same_software(checkpoints.path(saved))
            carry, history = _restore(checkpoints, saved, (carry, history))
            progress(saved)
        first_round = 0
        for chunk in plan:
            next_round = first_round + chunk.num_rounds
            if next_round > saved:
                number = jnp.asarray(first_round)
                carry, metrics = by_batches(rounds, carry, number, chunk, shared)
                columns = slice(1 + first_round, 1 + next_round)
                history = {k: v.at[:, columns].set(metrics[k]) for k, v in history.items()}
                _check_finite(history, columns)
                if next_round < num_rounds:
                    checkpoints.save(next_round, {"default": (carry, history)})
                progress(chunk.num_rounds)
            first_round = next_round
    result = {name: np.asarray(values) for name, values in history.items()}
    save_arrays(done, result)
    remove_folder(checkpoints.folder)
    return result


@cache
def _jitted_start(
    start: Callable[..., Any], seeds_at_once: int | None, mesh: jax.sharding.Mesh | None
) -> Callable[[Any, Any], Any]:
    """Returns `start` over seeds, jitted; arms that share a `start` share the program."""

    def every(inputs: Any, shared: Any) -> Any:
        return _over_seeds(lambda one: start(one, *shared), seeds_at_once, mesh)(inputs)

    return jax.jit(every, compiler_options=compiler_options())


def _by_batches(at_once: int | None, program: Any, seeds: Any, *rest: Any) -> Any:
    """Calls a jitted program on every batch of seeds, and joins what it returns."""
    num_seeds = len(jax.tree.leaves(seeds)[0])
    size = at_once or num_seeds
    firsts = range(0, num_seeds, size)
    batch = lambda first: jax.tree.map(lambda leaf: leaf[first : first + size], seeds)
    if len(firsts) == 1:
        return program(seeds, *rest)
    for first in {0, firsts[-1]}:  # the last batch may be smaller
        program.lower(batch(first), *rest).compile()
    run = lambda first: jax.block_until_ready(program(batch(first), *rest))
    found = list(threads.in_threads(run, firsts, threads.num_at_once((batch(0), rest))))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)


def _over_seeds(
    one_seed: Callable[[Any], Any], at_once: int | None, mesh: jax.sharding.Mesh | None
) -> Callable[[Any], Any]:
    """Returns a function of a batch of seeds; each device of a mesh computes its own, in turn."""
    vmapped = jax.vmap(one_seed)
    alone = lambda seeds: jax.tree.map(
        lambda leaf: leaf[None], one_seed(jax.tree.map(lambda leaf: leaf[0], seeds))
    )
    if mesh is None:
        return alone if at_once == 1 else vmapped
    num = training.axis_size(mesh, "seed")

    def spread(seeds: Any) -> Any:
        if at_once is None:
            carries, metrics = vmapped(seeds)
        else:
            # Batches of seeds follow each other on every device, so devices cut the seeds first.
            parts = jax.tree.map(lambda leaf: leaf.reshape(num, -1, *leaf.shape[1:]), seeds)
            in_turn = lambda part: jax.lax.map(one_seed, part, batch_size=at_once)
            join = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
            carries, metrics = jax.tree.map(join, jax.vmap(in_turn)(parts))
        places = meshes.shardings(mesh, carries)
        return jax.lax.with_sharding_constraint(carries, places), metrics

    return spread


def _restore(checkpoints: Checkpoints, step: int, target: Any) -> Any:
    try:
        return checkpoints.restore(step, {"default": target})["default"]
    except UsageError as error:
        raise UsageError(
            f"the checkpoint of round {step} is damaged: {error}: delete {checkpoints.folder} to "
            "begin this arm again"
        ) from error


def _check_finite(history: dict[str, jax.Array], columns: slice) -> None:
    for name, values in history.items():
        bad = np.argwhere(~np.isfinite(np.asarray(values)[:, columns]))
        if bad.size:
            seed, column = bad[0][:2]
            raise UsageError(
                f"{name} is not finite at seed {seed}, round {columns.start + column}: training "
                "diverged; try a lower --learning_rate"
            )
