"""A run over many seeds, cut into chunks on the host: progress, checkpoints, resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.binary import UsageError
from experiments.common.run_folder import load_arrays, remove_folder, save_arrays


class Process(NamedTuple):
    """A run of one seed as a function of a key.

    Attributes:
      start: `(key) -> (carry, metrics)`, with the metrics before the first round.
      rounds: `(carry, first_round, num_rounds) -> (carry, metrics[num_rounds])`.
    """

    start: Callable[[jax.Array], tuple[Any, dict[str, jax.Array]]]
    rounds: Callable[[Any, jax.Array, int], tuple[Any, dict[str, jax.Array]]]


def run_seeds(
    process: Process,
    keys: jax.Array,
    folder: Path,
    *,
    num_rounds: int,
    chunk_rounds: int,
    progress: Callable[[int], None] = lambda rounds: None,
) -> dict[str, np.ndarray]:
    """Runs all seeds in one jitted vmapped call a chunk, resuming from the last whole chunk.

    After every chunk the state and the metrics so far are on disk; a save that is interrupted does
    not harm the one before. The result lands in `metrics.npz` and is read from there when asked for
    again. A resumed run keeps its number of seeds, so its numbers are those of the uninterrupted
    one to the bit.

    Args:
      process: the run of one seed.
      keys: typed keys `[S]`.
      folder: where this run's files go.
      num_rounds: how many rounds.
      chunk_rounds: rounds a chunk; the last chunk may be shorter.
      progress: called with the number of rounds done since the last call.

    Returns:
      metrics `[S, 1 + num_rounds]`, before the first round and after each.

    Raises:
      UsageError: if a metric is not finite, or a file of the run is damaged.
    """
    done = folder / "metrics.npz"
    if done.exists():
        metrics = load_arrays(done)
        progress(num_rounds)
        return metrics
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    start = jax.jit(jax.vmap(process.start), compiler_options=options)
    rounds = jax.jit(
        jax.vmap(process.rounds, in_axes=(0, None, None)),
        static_argnums=2,
        compiler_options=options,
    )
    carry, first = start(keys)
    history = {
        name: jnp.full((len(keys), 1 + num_rounds), jnp.nan).at[:, 0].set(value)
        for name, value in first.items()
    }
    checkpoints = folder / "checkpoints"
    with ocp.CheckpointManager(
        checkpoints.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
    ) as manager:
        next_round = manager.latest_step() or 0
        if next_round:
            carry, history = _restore(manager, next_round, (carry, history), checkpoints)
            progress(next_round)
        while next_round < num_rounds:
            size = min(chunk_rounds, num_rounds - next_round)
            carry, metrics = rounds(carry, jnp.asarray(next_round), size)
            columns = slice(1 + next_round, 1 + next_round + size)
            history = {name: history[name].at[:, columns].set(metrics[name]) for name in history}
            _check_finite(history, columns)
            next_round += size
            manager.save(next_round, args=ocp.args.StandardSave((carry, history)))
            progress(size)
    result = {name: np.asarray(values) for name, values in history.items()}
    save_arrays(done, result)
    remove_folder(checkpoints)
    return result


def _restore(manager: ocp.CheckpointManager, step: int, target: Any, folder: Path) -> Any:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:
        raise UsageError(
            f"the checkpoint of round {step} in {folder} cannot be read ({error}): delete that "
            "folder to begin this arm again"
        ) from error


def _check_finite(history: dict[str, jax.Array], columns: slice) -> None:
    for name, values in history.items():
        bad = np.argwhere(~np.isfinite(np.asarray(values)[:, columns]))
        if bad.size:
            seed, column = bad[0]
            raise UsageError(
                f"{name} is {values[seed, columns.start + column]} at seed {seed}, round "
                f"{columns.start + column}: the run went astray; lower --learning_rate?"
            )
