"""Answers in, the ensemble updated from where it stands, measures on held-out comparisons."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter import training
from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import assert_same_software
from shatter.cli.common.learners import table_comparisons
from shatter.cli.label import plot
from shatter.cli.label.answers import Answer, check_known, current_answers
from shatter.cli.label.checkpoints import Ensemble, checkpoint_folder, save
from shatter.cli.label.folder import answer_file, import_command, known_queries
from shatter.cli.label.measures import measures_of, write_scores
from shatter.cli.label.project import Bench, item_key, utilities
from shatter.cli.label.project import learn as learn_members
from shatter.cli.label.queries import Asked


def standing_answers(folder: Path) -> tuple[dict[str, Asked], list[Answer]]:
    """Returns the queries of a project and the answers that stand.

    Raises:
      UsageError: if an answer is about a query that no file has, or of the wrong size.
    """
    queries = known_queries(folder)
    answers = current_answers(answer_file(folder))
    check_known(answers, queries)
    return queries, answers


def learn(bench: Bench) -> Bench:
    """As `update`, and writes what `report` writes."""
    bench = update(bench)
    report(bench)
    return bench


def update(bench: Bench) -> Bench:
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
    queries, answers = standing_answers(bench.folder)
    if not bench.ensemble.history:
        if not answers:
            raise UsageError(
                f"{answer_file(bench.folder)} has no answer that stands: answer some queries first"
            )
        start = measure(bench, [])
        bench = bench._replace(ensemble=bench.ensemble._replace(history=[start]))
    if bench.ensemble.history[-1]["answers_sha256"] != _digest(answers):
        if bench.ensemble.number:
            assert_same_software(checkpoint_folder(bench.folder, bench.ensemble.number))
        members = _updated_members(bench, queries, answers) if answers else bench.start
        bench = bench._replace(ensemble=bench.ensemble._replace(members=members))
        bench = _saved(bench, answers)
    return bench


def _updated_members(
    bench: Bench, queries: dict[str, Asked], answers: Sequence[Answer]
) -> training.Members:
    """Returns the members after they have learned from all answers."""
    key = jax.random.fold_in(jax.random.key(bench.config.seed), 6)
    store = _store(bench, queries, answers, key)
    return learn_members(bench, store, jax.random.fold_in(key, bench.ensemble.number + 1))


def _saved(bench: Bench, answers: Sequence[Answer]) -> Bench:
    """Measures the members and saves them; raises an error if they are not finite."""
    if not np.isfinite(utilities(bench, np.arange(len(bench.pool.items)))).all():
        raise UsageError(
            f"after {len(answers)} answers the members' utilities are not finite; nothing of "
            f"{bench.folder} was saved: begin another project with a lower --learning_rate, and: "
            f"{import_command(bench.folder)}"
        )
    history = [*bench.ensemble.history, measure(bench, answers)]
    ensemble = Ensemble(bench.ensemble.members, bench.ensemble.number + 1, history)
    save(bench.folder, ensemble)
    bench = bench._replace(ensemble=ensemble)
    _write_metrics(bench)
    return bench


def measure(bench: Bench, answers: Sequence[Answer]) -> dict[str, Any]:
    """One row of the metrics: what was learned from, and `measures_of` the members after it."""
    row: dict[str, Any] = {
        "answers": len(answers),
        "annotators": len({answer.annotator for answer in answers}),
        "answers_sha256": _digest(answers),
    }
    return row | measures_of(bench)


def report(bench: Bench) -> None:
    """Writes metrics.csv, summary.json, scores.jsonl and label.png from the ensemble's history."""
    _write_metrics(bench)
    write_scores(bench)
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


def _store(
    bench: Bench,
    queries: dict[str, Asked],
    answers: Sequence[Answer],
    key: jax.Array,
) -> training.Store:
    """Returns all answers with the members' weights, padded to a power of two.

    Few sizes are compiled that way.
    """
    num_slots = max(len(query.completions) for query in queries.values())
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
    capacity = 1 << max(len(answers) - 1, 63).bit_length()
    blank = jax.tree.map(lambda leaf: leaf[0], comparisons)
    store = training.empty_store(blank, num_members=bench.config.num_members, capacity=capacity)
    return training.add_comparisons(store, comparisons, weights)


def _digest(answers: Sequence[Answer]) -> str:
    digest = hashlib.sha256()
    for answer in sorted(answer.event_id for answer in answers):
        digest.update(f"{answer}\0".encode())
    return digest.hexdigest()
