"""Answers in, the ensemble updated from where it stands, measures on held-out comparisons."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from experiments.common import run_folder
from experiments.common.binary import UsageError
from experiments.common.learners import table_comparisons
from experiments.finetune import baselines
from experiments.label import plot
from experiments.label.answers import Answer, Asked, check_known, current_answers
from experiments.label.folder import answer_file, known_queries
from experiments.label.project import Bench, Ensemble, item_key, save, utilities
from experiments.label.project import learn as learn_members
from shatter import data, evaluation, training
from shatter.data.files import json_line, write_atomically

JOINT_DRAWS = 256


def standing_answers(folder: Path) -> tuple[dict[str, Asked], list[Answer]]:
    """The queries of a project and the answers that stand.

    Raises:
      UsageError: if an answer is about a query that no file has, or of the wrong size.
    """
    queries = known_queries(folder)
    answers = current_answers(answer_file(folder))
    check_known(answers, queries)
    return queries, answers


def learn(bench: Bench) -> Bench:
    """Updates the ensemble by all answers that stand; without a new one nothing changes.

    Where every answer was taken back the members are those of the start again.

    Each member weighs an answer by its own draw, made of the answer's id: the same in every call.
    A call that is killed has done nothing; the next does it whole.

    Args:
      bench: the project.

    Returns:
      The project after it, its measures written.

    Raises:
      UsageError: if there is no answer, or one is about an unknown query.
    """
    bench = learn_side_by_side([bench], [True])[0]
    report(bench)
    return bench


def learn_side_by_side(benches: Sequence[Bench], which: Sequence[bool]) -> list[Bench]:
    """Several projects at once, as `learn` does one.

    All are computed even where only some shall learn or have new answers: what a project becomes
    depends, to the bit, on its own answers and on how many learn beside it, whichever of the others
    a killed call had finished.

    Args:
      benches: projects that differ in their seeds alone and hold one table.
      which: those that learn; the others stay as they are.

    Returns:
      The projects after it, on disk with their measures; `report` writes the rest.

    Raises:
      UsageError: as `learn` does; where members are not finite the projects before have learned.
    """
    benches = [_begun(bench) for bench in benches]
    found = [standing_answers(bench.folder) for bench in benches]
    due = [
        wanted and bench.ensemble.history[-1]["answers_sha256"] != _digest(answers)
        for bench, wanted, (_, answers) in zip(benches, which, found, strict=True)
    ]
    after = _taught(benches, found) if any(due) else benches
    return [
        _kept(taught, answers) if new else bench
        for bench, taught, new, (_, answers) in zip(benches, after, due, found, strict=True)
    ]


def _begun(bench: Bench) -> Bench:
    """The project with the measures of its start."""
    if bench.ensemble.history:
        return bench
    if not standing_answers(bench.folder)[1]:
        raise UsageError(
            f"{answer_file(bench.folder)} has no answer that stands: answer some queries first"
        )
    return bench._replace(ensemble=bench.ensemble._replace(history=[measure(bench, [])]))


def _taught(
    benches: Sequence[Bench], found: Sequence[tuple[dict[str, Asked], list[Answer]]]
) -> list[Bench]:
    """The projects with members that have learned; the start's where no answer stands."""
    some = [n for n, (_, answers) in enumerate(found) if answers]
    num_answers = max(len(answers) for _, answers in found)
    asked = (query for queries, _ in found for query in queries.values())
    num_slots = max(len(query.completions) for query in asked)
    stores, keys = [], []
    for n in some:
        key = jax.random.fold_in(jax.random.key(benches[n].config.seed), 6)
        stores.append(_store(benches[n], *found[n], key, (num_answers, num_slots)))
        keys.append(jax.random.fold_in(key, benches[n].ensemble.number + 1))
    members = [bench.start for bench in benches]
    if some:
        taught = learn_members([benches[n] for n in some], stores, keys)
        for n, after in zip(some, taught, strict=True):
            members[n] = after
    return [
        bench._replace(ensemble=bench.ensemble._replace(members=after))
        for bench, after in zip(benches, members, strict=True)
    ]


def _kept(bench: Bench, answers: Sequence[Answer]) -> Bench:
    """The project, measured and on disk."""
    if not np.isfinite(utilities(bench, np.arange(len(bench.pool.items)))).all():
        raise UsageError(
            f"after {len(answers)} answers the members' utilities are not finite; nothing of "
            f"{bench.folder} was saved: begin a project with a lower --learning_rate and import "
            "the answers there"
        )
    history = [*bench.ensemble.history, measure(bench, answers)]
    bench = save(bench, Ensemble(bench.ensemble.members, bench.ensemble.number + 1, history))
    _write_metrics(bench)
    return bench


def measure(bench: Bench, answers: Sequence[Answer]) -> dict[str, Any]:
    """How the members judge the held-out comparisons, and how far they are apart.

    Of each held-out file: log_loss (nats a vote that decides), accuracy and calibration_error of
    the members' mixture (`experiments.finetune.baselines.score`); joint_log_loss, the dyadic joint
    log-loss of 10 labels, nats; disagreement, nats. Of the pool disagreement alone.

    Args:
      bench: the project.
      answers: what was learned from.

    Returns:
      One row of the metrics.
    """
    row: dict[str, Any] = {
        "answers": len(answers),
        "annotators": len({answer.annotator for answer in answers}),
        "answers_sha256": _digest(answers),
        "disagreement": _disagreement(bench, _pool_pairs(bench)),
    }
    for name, rows in bench.inputs.held_out.items():
        found = _scores(bench, rows)
        row |= {f"{name}/{measure}": v for measure, v in found.items() if np.isfinite(v)}
    return row


def report(bench: Bench) -> None:
    """Writes metrics.csv, summary.json, scores.jsonl and label.png from the ensemble's history."""
    _write_metrics(bench)
    _write_scores(bench)
    plot.draw(bench.ensemble.history, bench.folder / "label.png")


def _write_metrics(bench: Bench) -> None:
    history, folder = bench.ensemble.history, bench.folder
    rows = (
        ("", bench.config.ensemble, "", bench.config.seed, one["answers"], name, f"{value:.8g}")
        for one in history
        for name, value in one.items()
        if isinstance(value, float)
    )
    run_folder.write_csv(folder / "metrics.csv", rows)
    run_folder.write_json(folder / "summary.json", {"before": history[0], "after": history[-1]})


def _scores(bench: Bench, rows: Sequence[data.Row]) -> dict[str, float]:
    items = np.array(
        [[bench.numbers[item_key((row.prompt, text))] for text in row.completions] for row in rows]
    )
    members = utilities(bench, items)
    # The mixture's log-probs of the choice are utilities that give its probabilities.
    mixture = logsumexp(log_softmax(members, axis=-1), axis=0) - np.log(len(members))
    found = baselines.score(rows, mixture)
    pairs = baselines.to_pairs(rows)
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
    """Some pairs of the pool, always the same."""
    rng = np.random.default_rng(bench.config.seed)
    able = [items for items in bench.pool.by_prompt if len(items) > 1]
    chosen = [able[rng.integers(len(able))] for _ in range(256)]
    return np.array([rng.choice(items, 2, replace=False) for items in chosen])


def _disagreement(bench: Bench, pairs: np.ndarray) -> float:
    return float(evaluation.disagreement(jnp.asarray(utilities(bench, pairs))))


def _store(
    bench: Bench,
    queries: dict[str, Asked],
    answers: Sequence[Answer],
    key: jax.Array,
    sizes: tuple[int, int],
) -> training.Store:
    """All answers with the members' weights, with room for some number of some number of slots.

    Sizes are powers of two, so few are compiled.
    """
    num_answers, num_slots = sizes
    items = np.full((len(answers), num_slots), -1)
    ranks = np.full((len(answers), num_slots), -1)
    for n, answer in enumerate(answers):
        query = queries[answer.query_id]
        known = [bench.numbers[item_key((query.prompt, text))] for text in query.completions]
        items[n, : len(known)], ranks[n, : len(known)] = known, answer.ranks
    seeds = [int(hashlib.sha256(a.event_id.encode()).hexdigest()[:8], 16) for a in answers]
    draw = jax.vmap(
        lambda seed: jax.random.exponential(
            jax.random.fold_in(key, seed), (bench.config.num_members,)
        )
    )
    weights = draw(jnp.asarray(seeds, jnp.uint32)).T
    weight = jnp.asarray([answer.weight for answer in answers])
    comparisons = table_comparisons(jnp.asarray(items), jnp.asarray(ranks), weight)
    capacity = 1 << max(num_answers - 1, 63).bit_length()
    blank = jax.tree.map(lambda leaf: leaf[0], comparisons)
    store = training.empty_store(blank, num_members=bench.config.num_members, capacity=capacity)
    return training.add_comparisons(store, comparisons, weights)


def _write_scores(bench: Bench) -> None:
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


def _digest(answers: Sequence[Answer]) -> str:
    digest = hashlib.sha256()
    for answer in sorted(answer.event_id for answer in answers):
        digest.update(f"{answer}\0".encode())
    return digest.hexdigest()
