"""How the members judge held-out comparisons, how far they are apart, and what they think."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from shatter import data, evaluation
from shatter.cli.common.votes import score, to_pairs
from shatter.cli.label.project import Bench, item_key, utilities
from shatter.data.atomic import write_atomically
from shatter.data.files import json_line

JOINT_DRAWS = 256


def measures_of(bench: Bench) -> dict[str, float]:
    """Returns how the members judge the held-out comparisons, and how far they are apart.

    Of each held-out file: log_loss (nats a vote that decides), accuracy and calibration_error of
    the members' mixture (`shatter.cli.common.votes.score`); joint_log_loss, the dyadic joint
    log-loss of 10 labels, nats; disagreement, nats. Of the pool disagreement alone.

    Args:
      bench: the project.

    Returns:
      The measures by name.
    """
    row = {"disagreement": _disagreement(bench, _pool_pairs(bench))}
    for name, rows in bench.inputs.held_out.items():
        found = _scores(bench, rows)
        row |= {f"{name}/{measure}": v for measure, v in found.items() if np.isfinite(v)}
    return row


def _scores(bench: Bench, rows: Sequence[data.Row]) -> dict[str, float]:
    items = np.array(
        [[bench.numbers[item_key((row.prompt, text))] for text in row.completions] for row in rows]
    )
    members = utilities(bench, items)
    # The mixture's log-probs of the choice are utilities that give its probabilities.
    mixture = logsumexp(log_softmax(members, axis=-1), axis=0) - np.log(len(members))
    found = score(rows, mixture)
    pairs = to_pairs(rows)
    decided = pairs.votes[:, :2].sum(axis=1) > 0
    members = members[:, pairs.rows[decided]]
    with np.errstate(divide="ignore"):
        votes = pairs.votes[decided, :2]
        law = np.log(votes / votes.sum(axis=1, keepdims=True))
    keys = jax.random.split(jax.random.key(0), JOINT_DRAWS)
    joint = _joint_log_losses(
        keys, jnp.asarray(members), jnp.asarray(np.maximum(law, -1e30), jnp.float32)
    )
    found |= {"joint_log_loss": float(jnp.mean(joint))}
    return found | {"disagreement": float(evaluation.disagreement(jnp.asarray(members)))}


_joint_log_losses = jax.jit(jax.vmap(evaluation.dyadic_joint_log_loss, in_axes=(0, None, None)))


def _pool_pairs(bench: Bench) -> np.ndarray:
    """Returns some pairs of the pool, always the same."""
    rng = np.random.default_rng(bench.config.seed)
    able = [items for items in bench.pool.by_prompt if len(items) > 1]
    chosen = [able[rng.integers(len(able))] for _ in range(256)]
    return np.array([rng.choice(items, 2, replace=False) for items in chosen])


def _disagreement(bench: Bench, pairs: np.ndarray) -> float:
    return float(evaluation.disagreement(jnp.asarray(utilities(bench, pairs))))


def write_scores(bench: Bench) -> None:
    """scores.jsonl: of every text of the pool what the members think, and how sure they are."""
    members = utilities(bench, np.arange(len(bench.pool.items)))
    lines = []
    for prompt_id, numbers in enumerate(bench.pool.by_prompt):
        shares = softmax(members[:, numbers], axis=1)
        best = members[:, numbers] == members[:, numbers].max(axis=1, keepdims=True)
        centred = members[:, numbers] - members[:, numbers].mean(axis=1, keepdims=True)
        for k, number in enumerate(numbers):
            record = {
                "prompt": bench.items[number][0],
                "completion": bench.items[number][1],
                "prompt_id": prompt_id,
                "utility": float(centred[:, k].mean()),
                "utility_deviation": float(centred[:, k].std()),
                "share": float(shares[:, k].mean()),
                "probability_best": float(best[:, k].mean()),
            }
            lines.append(json_line(record))
    write_atomically(bench.folder / "scores.jsonl", b"".join(lines))
