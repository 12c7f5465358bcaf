"""Measures of the members: on held-out comparisons, among themselves, and of every text."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from shatter import data, evaluation
from shatter.cli.common.people import split_scores
from shatter.cli.common.votes import to_pairs
from shatter.cli.label.inputs import OF_POOL
from shatter.cli.label.pool import draw_queries
from shatter.cli.label.project import Project, item_key, utilities
from shatter.data.atomic import write_atomically
from shatter.data.files import json_line

JOINT_DRAWS = 256  # of the pairs in the dyadic joint log-loss
CLAIM_PAIRS = 512  # of the pool, by which the members' claims are measured


def measures_of(project: Project) -> dict[str, float]:
    """Returns how well the members predict the held-out comparisons, and how much they disagree.

    For each held-out file there are the measures of the members' mixture that `shatter finetune`
    has (`people.split_scores`), those of groups of five people or more among them; joint_log_loss,
    the dyadic joint log-loss of 10 labels, nats; and disagreement, nats. For the pool there is
    disagreement alone.

    Args:
      project: the project.

    Returns:
      The measures by name.
    """
    row = {"disagreement": _disagreement(project, _pool_pairs(project))}
    for name, rows in project.inputs.held_out.items():
        scores = _scores(project, rows)
        row |= {f"{name}/{measure}": v for measure, v in scores.items() if np.isfinite(v)}
    return row


def _scores(project: Project, rows: Sequence[data.Row]) -> dict[str, float]:
    """Returns the measures on one held-out file."""
    items = np.array(
        [[project.item_numbers[item_key((row.prompt, t))] for t in row.completions] for row in rows]
    )
    members = utilities(project, items)
    # Used as utilities, the mixture's log-probs of the choice give back its probabilities.
    mixture = logsumexp(log_softmax(members, axis=-1), axis=0) - np.log(len(members))
    scores, _ = split_scores(rows, mixture)
    pairs = to_pairs(rows)
    decided = pairs.votes[:, :2].sum(axis=1) > 0
    members = members[:, pairs.rows[decided]]
    with np.errstate(divide="ignore"):
        votes = pairs.votes[decided, :2]
        shares = np.log(votes / votes.sum(axis=1, keepdims=True))
    keys = jax.random.split(jax.random.key(0), JOINT_DRAWS)
    joint = _joint_log_losses(
        keys, jnp.asarray(members), jnp.asarray(np.maximum(shares, -1e30), jnp.float32)
    )
    scores |= {"joint_log_loss": float(jnp.mean(joint))}
    return scores | {"disagreement": float(evaluation.disagreement(jnp.asarray(members)))}


_joint_log_losses = jax.jit(jax.vmap(evaluation.dyadic_joint_log_loss, in_axes=(0, None, None)))


def _pool_pairs(project: Project) -> np.ndarray:
    """Returns 256 random pairs of the pool, `[P, 2]`; the same in every call."""
    rng = np.random.default_rng(project.config.seed)
    able = [items for items in project.pool.by_prompt if len(items) > 1]
    chosen = [able[rng.integers(len(able))] for _ in range(256)]
    return np.array([rng.choice(items, 2, replace=False) for items in chosen])


def claim_measures(project: Project) -> dict[str, float]:
    """Returns the means of `evaluation.claims` over random pairs of the pool, nats."""
    rng = np.random.default_rng(project.config.seed)
    pairs = draw_queries(
        project.pool, rng, num=CLAIM_PAIRS, num_responses=2, asked=set(), recorded=False
    )
    values = np.asarray(utilities(project, np.array(pairs)), np.float64)
    claims = evaluation.claims(log_softmax(values, axis=-1))
    names = ("coin", "expected", "regret")
    return {f"{OF_POOL}/{name}": float(getattr(claims, name).mean()) for name in names}


def _disagreement(project: Project, pairs: np.ndarray) -> float:
    return float(evaluation.disagreement(jnp.asarray(utilities(project, pairs))))


def write_scores(project: Project) -> None:
    """Writes scores.jsonl: the members' opinion of every text of the pool, and how sure they are.

    Args:
      project: the project.
    """
    members = utilities(project, np.arange(len(project.pool.items)))
    lines = []
    for prompt_id, numbers in enumerate(project.pool.by_prompt):
        shares = softmax(members[:, numbers], axis=1)
        best = members[:, numbers] == members[:, numbers].max(axis=1, keepdims=True)
        centred = members[:, numbers] - members[:, numbers].mean(axis=1, keepdims=True)
        for k, number in enumerate(numbers):
            record = {
                "prompt": project.items[number][0],
                "completion": project.items[number][1],
                "prompt_id": prompt_id,
                "utility": float(centred[:, k].mean()),
                "utility_deviation": float(centred[:, k].std()),
                "share": float(shares[:, k].mean()),
                "probability_best": float(best[:, k].mean()),
            }
            lines.append(json_line(record))
    write_atomically(project.folder / "scores.jsonl", b"".join(lines))
