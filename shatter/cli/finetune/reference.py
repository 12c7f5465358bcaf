"""Log-probs of the data under the reference, which is the frozen model: computed once and kept."""

import functools
import hashlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from shatter import data
from shatter.cli.common import cache
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import weights_hash
from shatter.cli.finetune.batches import StepBatch
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import score
from shatter.cli.finetune.places import describe, mesh_of, put_params
from shatter.cli.finetune.plan import Plan, first_epoch
from shatter.cli.finetune.pretrained import Pretrained, compiler_options, without_arrays
from shatter.cli.finetune.scoring import count_slots, held_out_plan, over_rows
from shatter.types import Array, Params


def reference_log_probs(
    config: Config, model: Pretrained, splits: dict[str, list[data.Encoded]]
) -> dict[str, np.ndarray]:
    """Computes the frozen model's log-prob of every completion, once, in the user's cache.

    The rows to learn from ("train") are scored in the batches of the first epoch. Then the first
    steps compare a model with its reference as computed in the same shapes, and the margins are
    exactly 0, whatever bfloat16 or another order of summation would make of them. The name of the
    cached file is a hash of everything that decides the bits: weights, tokenizer, tokens, batches,
    devices, type of computation, version of the compiler.

    Args:
      config: the config.
      model: the pretrained model.
      splits: rows by name.

    Returns:
      `[rows, K]` by name, nats, summed over a completion's tokens; 0 in empty slots.
    """
    weights = model.weights or weights_hash(model.params)
    facts = f"{weights}{model.tokenizer.fingerprint()}{model.config}{jax.__version__}"
    facts += describe(mesh := mesh_of(config)) + f"{mesh.devices.flat[0].device_kind}"
    score_rows = _make_scorer(config, model)
    log_probs = {}
    for name, encoded in splits.items():
        is_train = name == "train"
        plan = first_epoch(config, encoded) if is_train else held_out_plan(config, encoded)
        file = f"reference/{_digest(facts, plan, encoded)}.npz"
        make = lambda e=encoded, p=plan: {"log_probs": score_rows(e, p)}
        log_probs[name] = cache.cached_arrays(file, make)["log_probs"]
    return log_probs


def _digest(facts: str, plan: Plan, encoded: Sequence[data.Encoded]) -> str:
    digest = hashlib.sha256(facts.encode())
    for length, rows in plan:
        digest.update(f"{length} {rows.tolist()}".encode())
    for row in encoded:
        digest.update(f"{row.skipped}".encode())
        for ids in (row.prompt, *row.completions):
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()


def _make_scorer(
    config: Config, model: Pretrained
) -> Callable[[Sequence[data.Encoded], Plan], np.ndarray]:
    """Makes `(encoded, plan) -> log_probs[rows, K]` of the frozen model, on the devices."""
    run = _program(without_arrays(model))
    params = put_params(config, model.params)

    def score_rows(encoded: Sequence[data.Encoded], plan: Plan) -> np.ndarray:
        return over_rows(encoded, plan, lambda batch: run(params, batch))

    return score_rows


@functools.cache
def _program(model: Pretrained) -> Callable[[Params, StepBatch], Array]:
    """Compiles `(params, batch) -> log_probs[B, K]`."""
    return jax.jit(
        lambda params, batch: score(model, params, None, batch).log_probs,
        compiler_options=compiler_options(model),
    )


def no_reference(encoded: Sequence[data.Encoded]) -> np.ndarray:
    """Returns zeros `[rows, K]`, for objectives that do not read the reference's log-probs."""
    return np.zeros((len(encoded), count_slots(encoded)), np.float32)


def check_reference(
    config: Config, model: Pretrained, encoded: list[data.Encoded], ref_log_probs: np.ndarray
) -> None:
    """Raises an error if the reference's log-probs are not the untrained model's.

    The first batch is computed again and compared.

    Args:
      config: the config.
      model: the pretrained model.
      encoded: the rows to learn from.
      ref_log_probs: their log-probs under the reference, `[rows, K]`, nats.

    Raises:
      UsageError: naming the row and both values.
    """
    first = first_epoch(config, encoded)[:1]
    again = _make_scorer(config, model)(encoded, first)
    rows = first[0][1][first[0][1] >= 0]
    gap = np.abs(again - ref_log_probs)[rows].max(axis=1)
    is_near = gap <= (1.0 if config.bf16 else 1e-3)  # false for NaN
    if not is_near.all():
        row = int(rows[is_near.argmin()])
        raise UsageError(
            f"the reference's log-probs of {encoded[row].row.source} are {ref_log_probs[row]}, but "
            f"the model's before training are {again[row]}: the margin at step 0 would not be 0; "
            f"delete {cache.cache_dir() / 'reference'}, and they are computed again"
        )
