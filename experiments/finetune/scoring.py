"""Scores of whole data sets: the reference's log-probs, kept on disk, and held-out utilities."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import rel_entr, softmax

from experiments.common import run_folder, sources
from experiments.common.binary import UsageError
from experiments.common.chunks import compiler_options
from experiments.common.frozen import weights_hash
from experiments.finetune import baselines
from experiments.finetune.config import Config
from experiments.finetune.learning import Numbers, Trainable, assemble, numbers, score
from experiments.finetune.objectives import OBJECTIVES
from experiments.finetune.task import Pretrained
from shatter import data, losses
from shatter.types import Array, Params


def _over_rows(
    config: Config,
    encoded: Sequence[data.Encoded],
    function: Callable[[Numbers], Array],
    ref_log_probs: np.ndarray | None = None,
) -> np.ndarray:
    """`function` of every row, `[rows, K]`, by batches of few shapes; 0 in empty slots."""
    num_slots = _num_slots(encoded)
    result = np.zeros((len(encoded), num_slots), np.float32)
    ref = np.zeros_like(result) if ref_log_probs is None else ref_log_probs
    for batch in _batches(config, encoded, num_slots):
        real = batch.row >= 0
        result[batch.row[real]] = np.asarray(function(numbers(batch, ref)))[real]
    slots = np.asarray([len(row.completions) for row in encoded])
    return np.where(np.arange(num_slots) < slots[:, None], result, 0.0).astype(np.float32)


def _num_slots(encoded: Sequence[data.Encoded]) -> int:
    return max(len(row.completions) for row in encoded)


def _batches(
    config: Config, encoded: Sequence[data.Encoded], num_slots: int
) -> Iterator[data.Batch]:
    plan = data.plan_batches(
        [row.length for row in encoded],
        batch_size=config.per_device_eval_batch_size,
        seed=0,
        epoch=0,
        buckets=data.length_buckets(config.max_length),
    )
    for length, rows in plan:
        yield data.collate(encoded, rows, length=length, num_slots=num_slots)


def held_out_scores(encoded: Sequence[data.Encoded], utilities: np.ndarray) -> dict[str, float]:
    """Judges utilities by held-out comparisons; `baselines.score` where all of them are pairs.

    Of rankings: log_loss is the mean of -log of their Plackett-Luce probability, nats a ranking
    (ties are unresolved orders); accuracy the share of their strictly ordered pairs that the
    utilities order so, equal ones counting one half; share_kl the mean of KL(shares of the votes ||
    model) over comparisons with vote counts, nats.

    Args:
      encoded: the rows.
      utilities: `[rows, K]`, nats.

    Returns:
      Measures by name.
    """
    if all(len(row.completions) == 2 and min(row.ranks) >= 0 for row in encoded):
        return baselines.score([row.row for row in encoded], utilities)
    ranks = np.full(utilities.shape, -1)
    for number, row in enumerate(encoded):
        ranks[number, : len(row.ranks)] = row.ranks
    weight = np.asarray([row.weight for row in encoded])
    each = np.asarray(losses.ilhf_ranking_loss(jnp.asarray(utilities), jnp.asarray(ranks)))
    shown = ranks >= 0
    ordered = (ranks[:, :, None] < ranks[:, None, :]) & shown[:, :, None] & shown[:, None, :]
    is_right = 0.5 + 0.5 * np.sign(utilities[:, :, None] - utilities[:, None, :])
    num_ordered = ordered.sum(axis=(1, 2))
    total = weight[num_ordered > 0].sum()
    found = {
        "log_loss": float((weight * each)[num_ordered > 0].sum() / total),
        "accuracy": float(
            (weight @ (ordered * is_right).sum(axis=(1, 2))) / (weight @ num_ordered)
        ),
    }
    voted = {row.row.source: n for n, row in enumerate(encoded) if row.votes is not None}
    if voted:
        found["share_kl"] = float(
            np.mean([_share_kl(encoded[n], utilities[n]) for n in voted.values()])
        )
    return found


def _share_kl(row: data.Encoded, utilities: np.ndarray) -> float:
    assert row.votes is not None
    num = len(row.completions)
    votes, own = np.asarray(row.votes[:num]), utilities[:num].astype(float)
    shares = votes / max(votes.sum(), 1e-9)
    return float(np.sum(rel_entr(shares, softmax(own))))


def reference_log_probs(
    config: Config, model: Pretrained, splits: dict[str, list[data.Encoded]]
) -> dict[str, np.ndarray]:
    """The frozen model's log-prob of every completion, computed once and kept in the user's cache.

    The file's name is a hash of weights, tokenizer, tokens and type of computation, so that the
    log-probs of another model or file are never taken for these.

    Args:
      config: the config.
      model: the pretrained model.
      splits: rows by name.

    Returns:
      `[rows, K]` by name, nats, summed over a completion's tokens; 0 in empty slots.

    Raises:
      UsageError: if a file of the cache is damaged.
    """
    weights = weights_hash(model.params)
    jitted = jax.jit(
        lambda params, batch: score(model, params, None, batch).log_probs,
        compiler_options=compiler_options(),
    )
    found = {}
    for name, encoded in splits.items():
        digest = hashlib.sha256(f"{weights}{model.tokenizer.fingerprint()}".encode())
        digest.update(f"{model.config}{config.per_device_eval_batch_size}".encode())
        for row in encoded:
            for ids in (row.prompt, *row.completions):
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        file = sources.cache_dir() / "reference" / f"{digest.hexdigest()}.npz"
        if not file.exists():
            log_probs = _over_rows(config, encoded, lambda batch: jitted(model.params, batch))
            run_folder.save_arrays(file, {"log_probs": log_probs})
        found[name] = run_folder.load_arrays(file)["log_probs"]
    return found


def no_reference(encoded: Sequence[data.Encoded]) -> np.ndarray:
    """Zeros `[rows, K]`, where no log-prob of the reference is read."""
    return np.zeros((len(encoded), _num_slots(encoded)), np.float32)


def check_reference(
    config: Config, model: Pretrained, encoded: Sequence[data.Encoded], ref_log_probs: np.ndarray
) -> None:
    """Refuses log-probs of the reference that are not those of the model before the first step.

    Raises:
      UsageError: naming the row and both values.
    """
    some = list(encoded[: config.per_device_eval_batch_size])
    jitted = jax.jit(lambda params, batch: score(model, params, None, batch).log_probs)
    again = _over_rows(config, some, lambda batch: jitted(model.params, batch))
    gap = np.abs(again - ref_log_probs[: len(some)]).max(axis=1)
    limit = 1e-3 if not config.bf16 else 1.0
    if gap.max() > limit:
        row = int(gap.argmax())
        raise UsageError(
            f"the reference's log-probs of {some[row].row.source} are {ref_log_probs[row]}, the "
            f"model's before training {again[row]}: the margin at step 0 would not be 0; delete "
            f"{sources.cache_dir() / 'reference'}"
        )


def make_utilities(config: Config, model: Pretrained) -> Callable[..., np.ndarray]:
    """Utilities of held-out responses under a model, by one compiled program a shape.

    Args:
      config: the config.
      model: the pretrained model.

    Returns:
      `(trainable, pretrained params or None, encoded, ref_log_probs) -> [rows, K]`, nats.
    """

    @partial(jax.jit, compiler_options=compiler_options())
    def run(trainable: Trainable, pretrained: Params | None, batch: Numbers) -> Array:
        params = assemble(model, trainable, pretrained)
        scores = score(model, params, trainable.head, batch)
        return OBJECTIVES[config.objective].utilities(config, scores)

    def utilities(
        trainable: Trainable,
        pretrained: Params | None,
        encoded: Sequence[data.Encoded],
        ref_log_probs: np.ndarray,
    ) -> np.ndarray:
        call = lambda batch: run(trainable, pretrained, batch)
        return _over_rows(config, encoded, call, ref_log_probs)

    return utilities
