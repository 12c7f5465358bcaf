"""Scores of whole data sets: the reference's log-probs, kept on disk, and held-out utilities."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import rel_entr, softmax

from shatter import data, losses
from shatter.cli.common import cache, votes
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import weights_hash
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import (
    Numbers,
    Trainable,
    assemble,
    compiler_options,
    numbers,
    score,
)
from shatter.cli.finetune.objectives import OBJECTIVES
from shatter.cli.finetune.plan import Plan, devices, first_epoch, spread
from shatter.cli.finetune.task import Pretrained
from shatter.types import Array, Params


def _over_rows(
    encoded: Sequence[data.Encoded],
    plan: Plan,
    function: Callable[[Numbers], Array],
    ref_log_probs: np.ndarray | None = None,
) -> np.ndarray:
    """`function` of the rows of a plan, `[rows, K]`; 0 in other rows and in empty slots."""
    most = _num_slots(encoded)
    result = np.zeros((len(encoded), most), np.float32)
    ref = np.zeros_like(result) if ref_log_probs is None else ref_log_probs
    for length, rows in plan:
        batch = data.collate(encoded, rows, length=length, num_slots=most)
        real = batch.row >= 0
        result[batch.row[real]] = np.asarray(function(numbers(batch, ref)))[real]
    slots = np.asarray([len(row.completions) for row in encoded])
    return np.where(np.arange(most) < slots[:, None], result, 0.0).astype(np.float32)


def _num_slots(encoded: Sequence[data.Encoded]) -> int:
    return max(len(row.completions) for row in encoded)


def _ranks(encoded: Sequence[data.Encoded]) -> np.ndarray:
    """The rows' ranks, int `[rows, K]`; -1 in empty slots."""
    ranks = np.full((len(encoded), _num_slots(encoded)), -1)
    for number, row in enumerate(encoded):
        ranks[number, : len(row.ranks)] = row.ranks
    return ranks


def _held_out_plan(config: Config, encoded: Sequence[data.Encoded]) -> Plan:
    return data.plan_batches(
        [row.length for row in encoded],
        batch_size=config.per_device_eval_batch_size,
        seed=0,
        epoch=0,
        buckets=data.length_buckets(config.max_length),
    )


def held_out_scores(encoded: Sequence[data.Encoded], utilities: np.ndarray) -> dict[str, float]:
    """Judges utilities by held-out comparisons, each kind of row by measures of its own.

    Rows of two completions are pairs, which `votes.score` judges. Of rows of more,
    ranking_log_loss is the mean of -log of their Plackett-Luce probability, nats a ranking (ties
    are unresolved orders); ranking_accuracy the share of their strictly ordered pairs that the
    utilities order so, equal ones counting one half; ranking_share_kl the mean of KL(shares of the
    votes || model) over comparisons with votes, nats. A mean over nothing is absent. Rows of which
    fewer than two completions were shown compare nothing and are left out.

    Args:
      encoded: the rows.
      utilities: `[rows, K]`, nats.

    Returns:
      Measures by name.
    """
    compared = [n for n, row in enumerate(encoded) if sum(rank >= 0 for rank in row.ranks) > 1]
    pairs = [n for n in compared if len(encoded[n].completions) == 2]
    rankings = [n for n in compared if len(encoded[n].completions) > 2]
    found = {}
    if pairs:
        found = votes.score([encoded[n].row for n in pairs], utilities[pairs, :2])
    if rankings:
        measures = _ranking_scores([encoded[n] for n in rankings], utilities[rankings])
        found |= {f"ranking_{name}": value for name, value in measures.items()}
    return found


def _ranking_scores(encoded: Sequence[data.Encoded], utilities: np.ndarray) -> dict[str, float]:
    ranks, weight = _ranks(encoded), np.asarray([row.weight for row in encoded])
    utilities = utilities[:, : ranks.shape[1]]
    each = np.asarray(losses.ilhf_ranking_loss(jnp.asarray(utilities), jnp.asarray(ranks)))
    shown = ranks >= 0
    ordered = (ranks[:, :, None] < ranks[:, None, :]) & shown[:, :, None] & shown[:, None, :]
    is_right = 0.5 + 0.5 * np.sign(utilities[:, :, None] - utilities[:, None, :])
    num_ordered = ordered.sum(axis=(1, 2))
    voted = {row.row.source: n for n, row in enumerate(encoded) if _num_votes(row) > 0}
    share_kl = [_share_kl(encoded[n], utilities[n]) for n in voted.values()]
    return votes.means(
        log_loss=(weight @ np.where(num_ordered > 0, each, 0.0), weight @ (num_ordered > 0)),
        accuracy=(weight @ (ordered * is_right).sum(axis=(1, 2)), weight @ num_ordered),
        share_kl=(sum(share_kl), len(share_kl)),
    )


def demonstration_scores(
    encoded: Sequence[data.Encoded], log_probs: np.ndarray
) -> dict[str, float]:
    """Judges log-probs by held-out demonstrations, or by the best completions of comparisons.

    Args:
      encoded: the rows.
      log_probs: `[rows, K]`, summed over a completion's tokens, nats.

    Returns:
      token_log_loss: the loss of sft, mean of minus the mean log-prob of a completion's token,
      nats. Absent where no row has weight.
    """
    ranks, weight = _ranks(encoded), np.asarray([row.weight for row in encoded])
    lengths = np.ones(ranks.shape)
    for number, row in enumerate(encoded):
        skipped = row.skipped or (0,) * len(row.completions)
        counted = [len(ids) - n for ids, n in zip(row.completions, skipped, strict=True)]
        lengths[number, : len(counted)] = counted
    shown = np.where(ranks >= 0, ranks, np.iinfo(ranks.dtype).max)
    best = (ranks >= 0) & (shown == shown.min(axis=1, keepdims=True))
    num_best = best.sum(axis=1)
    each = np.where(best, -log_probs.astype(float) / lengths, 0.0).sum(axis=1)
    each = each / np.maximum(num_best, 1)
    return votes.means(token_log_loss=(weight @ each, weight @ (num_best > 0)))


def _num_votes(row: data.Encoded) -> float:
    return 0.0 if row.votes is None else float(sum(row.votes[: len(row.completions)]))


def _share_kl(row: data.Encoded, utilities: np.ndarray) -> float:
    assert row.votes is not None
    num = len(row.completions)
    votes, own = np.asarray(row.votes[:num]), utilities[:num].astype(float)
    return float(np.sum(rel_entr(votes / votes.sum(), softmax(own))))


def reference_log_probs(
    config: Config, model: Pretrained, splits: dict[str, list[data.Encoded]]
) -> dict[str, np.ndarray]:
    """The frozen model's log-prob of every completion, computed once and kept in the user's cache.

    The rows to learn from ("train") are scored in the batches of the first epoch, so that the first
    steps compare a model with its reference as computed in the same shapes: the margins are 0, and
    not what bfloat16 or a sum in another order makes of them. The file's name is a hash of all that
    decides the bits: weights, tokenizer, tokens, batches, devices, type of computation, version of
    the compiler.

    Args:
      config: the config.
      model: the pretrained model.
      splits: rows by name.

    Returns:
      `[rows, K]` by name, nats, summed over a completion's tokens; 0 in empty slots.
    """
    facts = f"{weights_hash(model.params)}{model.tokenizer.fingerprint()}{model.config}"
    facts += f"{jax.__version__}{[device.device_kind for device in devices(config)]}"
    score_rows = _make_scorer(config, model)
    found = {}
    for name, encoded in splits.items():
        is_train = name == "train"
        plan = first_epoch(config, encoded) if is_train else _held_out_plan(config, encoded)
        digest = hashlib.sha256(facts.encode())
        for length, rows in plan:
            digest.update(f"{length} {rows.tolist()}".encode())
        for row in encoded:
            digest.update(f"{row.skipped}".encode())
            for ids in (row.prompt, *row.completions):
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        file = f"reference/{digest.hexdigest()}.npz"
        make = lambda e=encoded, p=plan: {"log_probs": score_rows(e, p)}
        found[name] = cache.kept_arrays(file, make)["log_probs"]
    return found


def _make_scorer(
    config: Config, model: Pretrained
) -> Callable[[Sequence[data.Encoded], Plan], np.ndarray]:
    """`(encoded, plan) -> log_probs[rows, K]` of the frozen model, on the devices that train."""
    jitted = jax.jit(
        lambda params, batch: score(model, params, None, batch).log_probs,
        compiler_options=compiler_options(model),
    )
    params = spread(config, model.params, everywhere=True)

    def score_rows(encoded: Sequence[data.Encoded], plan: Plan) -> np.ndarray:
        return _over_rows(encoded, plan, lambda batch: jitted(params, spread(config, batch)))

    return score_rows


def no_reference(encoded: Sequence[data.Encoded]) -> np.ndarray:
    """Zeros `[rows, K]`, where no log-prob of the reference is read."""
    return np.zeros((len(encoded), _num_slots(encoded)), np.float32)


def check_reference(
    config: Config, model: Pretrained, encoded: list[data.Encoded], ref_log_probs: np.ndarray
) -> None:
    """Refuses log-probs of the reference that are not those of the model before the first step.

    The first batch is compared, computed anew.

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
            f"the reference's log-probs of {encoded[row].row.source} are {ref_log_probs[row]}, the "
            f"model's before training {again[row]}: the margin at step 0 would not be 0; delete "
            f"{cache.cache_dir() / 'reference'}"
        )


def make_utilities(config: Config, model: Pretrained) -> Callable[..., np.ndarray]:
    """Utilities of held-out responses under a model, by one compiled program a shape.

    Args:
      config: the config.
      model: the pretrained model.

    Returns:
      `(trainable, pretrained params or None, encoded, ref_log_probs) -> [rows, K]`, nats.
    """

    @partial(jax.jit, compiler_options=compiler_options(model))
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
        return _over_rows(encoded, _held_out_plan(config, encoded), call, ref_log_probs)

    return utilities
