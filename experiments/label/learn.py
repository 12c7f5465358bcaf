"""Answers in, the ensemble updated from where it stands, measures on held-out comparisons."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import run_folder
from experiments.common.binary import UsageError
from experiments.common.checkpoints import assert_same_software
from experiments.common.learners import table_comparisons
from experiments.label import plot
from experiments.label.answers import Answer, check_known, current_answers
from experiments.label.checkpoints import Ensemble, checkpoint_folder, save
from experiments.label.folder import answer_file, import_command, known_queries
from experiments.label.measures import measures_of, write_scores
from experiments.label.project import Bench, item_key, utilities
from experiments.label.project import learn as learn_members
from experiments.label.queries import Asked
from shatter import training


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
    for bench in benches if any(due) else ():
        if bench.ensemble.number:
            assert_same_software(checkpoint_folder(bench.folder, bench.ensemble.number))
    after = _taught(benches, found) if any(due) else benches
    return [
        _kept(taught, answers) if new else bench
        for bench, taught, new, (_, answers) in zip(benches, after, due, found, strict=True)
    ]


def _begun(bench: Bench) -> Bench:
    """Returns the project with the measures of its start."""
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
    """Returns the projects with members that have learned; the start's where no answer stands."""
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
    """Returns the project, measured and on disk."""
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
    sizes: tuple[int, int],
) -> training.Store:
    """Returns all answers with the members' weights, padded to some number of answers and slots.

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


def _digest(answers: Sequence[Answer]) -> str:
    digest = hashlib.sha256()
    for answer in sorted(answer.event_id for answer in answers):
        digest.update(f"{answer}\0".encode())
    return digest.hexdigest()
