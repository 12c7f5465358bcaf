"""Updates the ensemble by the answers, and measures it on held-out comparisons."""

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
from shatter.cli.common.frozen import Table
from shatter.cli.common.learners import response_places, table_comparisons
from shatter.cli.label import plot
from shatter.cli.label.answers import Answer, check_known, current_answers
from shatter.cli.label.checkpoints import EnsembleState, checkpoint_folder, save
from shatter.cli.label.compiled import programs
from shatter.cli.label.config import setting_of
from shatter.cli.label.folder import answer_file, import_command, known_queries
from shatter.cli.label.keys import Use, project_key
from shatter.cli.label.measures import claim_measures, measures_of, write_scores
from shatter.cli.label.project import Project, item_key, power_of_two, utilities
from shatter.cli.label.queries import TextQuery, is_audit
from shatter.types import Array, Comparison, Key


def learn(project: Project) -> Project:
    """Updates the ensemble as `update` does and writes its results as `report` does."""
    project = update(project)
    report(project)
    return project


def update(project: Project) -> Project:
    """Updates the ensemble by all answers that stand, and saves it.

    Answers to audits are kept apart. Without a new answer nothing changes. If every answer was
    taken back, the members are those of the start again. A call that is killed leaves no trace; the
    next one does the whole update.

    Args:
      project: the project.

    Returns:
      The project after it, with its measures written.

    Raises:
      UsageError: if there is no answer, or one is about an unknown query.
    """
    queries, standing = standing_answers(project.folder)
    answers = [answer for answer in standing if not is_audit(queries[answer.query_id])]
    if not project.state.history:
        if not standing:
            raise UsageError(
                f"{answer_file(project.folder)} has no answer that stands: answer some queries "
                "first"
            )
        history = [measure(project, [])]
        project = project._replace(state=project.state._replace(history=history))
    if project.state.history[-1]["answers_sha256"] != _digest(answers):
        if project.state.num_updates:
            assert_same_software(checkpoint_folder(project.folder, project.state.num_updates))
        members = _updated_members(project, queries, answers) if answers else project.start
        project = project._replace(state=project.state._replace(members=members))
        project = _saved(project, answers)
    return project


def standing_answers(folder: Path) -> tuple[dict[str, TextQuery], list[Answer]]:
    """Returns the queries of a project and the answers that stand.

    Raises:
      UsageError: if an answer is about a query that is in no file, or has other texts or sizes.
    """
    queries = known_queries(folder)
    answers = current_answers(answer_file(folder))
    check_known(answers, queries)
    return queries, answers


def _updated_members(
    project: Project, queries: dict[str, TextQuery], answers: Sequence[Answer]
) -> training.Members:
    """Returns the members after they have learned from all answers."""
    config, key = project.config, project_key(project.config.seed, Use.LEARNING)
    comparisons, numbers = _comparisons(project, queries, answers)
    weights = _weights(key, answers, config.num_members)
    capacity = power_of_two(len(answers), 64)  # so that few sizes are compiled
    blank = jax.tree.map(lambda leaf: leaf[0], comparisons)
    store = training.empty_store(blank, num_members=config.num_members, capacity=capacity)
    store = training.add_comparisons(store, comparisons, weights)
    run = programs(setting_of(config), project.inputs.model.config).learn
    members = project.state.members
    batch_key = jax.random.fold_in(key, project.state.num_updates + 1)
    base, table = members.shared
    shared = (base, _answered(table, numbers, config.batch_size * comparisons.ranks.shape[1]))
    states = run(project.prior_scale, shared, members.anchors, members.states, store, batch_key)
    return members._replace(states=states)


def _answered(table: Table, numbers: np.ndarray, at_once: int) -> Table:
    """Returns the rows of some texts of a table, with `response_places` where they take less time.

    Args:
      table: the table of the project.
      numbers: of the texts in it.
      at_once: the number of texts in a batch.
    """
    rows = {name: values[numbers] for name, values in table.items()}
    if "mask" in rows:
        is_first = np.arange(numbers.size) < np.unique(numbers).size  # the others repeat these
        places = response_places(np.asarray(rows["mask"]) & is_first[:, None])
        if places.size <= at_once * rows["mask"].shape[1]:
            rows["places"] = jnp.asarray(places)
    return rows


def _comparisons(
    project: Project, queries: dict[str, TextQuery], answers: Sequence[Answer]
) -> tuple[Comparison, np.ndarray]:
    """Returns the answers as comparisons of texts, and the numbers of these texts in the project.

    The comparisons `[B, K]` number the texts by their places among the numbers `[N]`, of which
    there are a power of two, some of them twice, so that few sizes are compiled.
    """
    num_slots = max(len(query.completions) for query in queries.values())
    items = np.full((len(answers), num_slots), -1)
    ranks = np.full((len(answers), num_slots), -1)
    for n, answer in enumerate(answers):
        query = queries[answer.query_id]
        numbers = [project.item_numbers[item_key((query.prompt, t))] for t in query.completions]
        items[n, : len(numbers)], ranks[n, : len(numbers)] = numbers, answer.ranks
    weight = jnp.asarray([answer.weight for answer in answers])
    texts = np.unique(items[items >= 0])
    places = np.where(items >= 0, np.searchsorted(texts, items), -1)
    comparisons = table_comparisons(jnp.asarray(places), jnp.asarray(ranks), weight)
    return comparisons, np.resize(texts, power_of_two(texts.size, 16))


def _weights(key: Key, answers: Sequence[Answer], num_members: int) -> Array:
    """Returns each member's own Exp(1) weight on every answer, `[M, B]`.

    It is drawn from the answer's id, so that it is the same in every call.
    """
    seeds = [int(hashlib.sha256(a.event_id.encode()).hexdigest()[:8], 16) for a in answers]
    draw = lambda seed: jax.random.exponential(jax.random.fold_in(key, seed), (num_members,))
    return jax.vmap(draw)(jnp.asarray(seeds, jnp.uint32)).T


def _saved(project: Project, answers: Sequence[Answer]) -> Project:
    """Measures the members and saves them; raises an error if they are not finite."""
    if not np.isfinite(utilities(project, np.arange(len(project.pool.items)))).all():
        raise UsageError(
            f"after {len(answers)} answers the members' utilities are not finite; nothing of "
            f"{project.folder} was saved: begin another project with a lower --learning_rate, and: "
            f"{import_command(project.folder)}"
        )
    history = [*project.state.history, measure(project, answers)]
    state = EnsembleState(project.state.members, project.state.num_updates + 1, history)
    save(project.folder, state)
    project = project._replace(state=state)
    _write_metrics(project)
    return project


def measure(project: Project, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns one row of the metrics.

    It has the counts of the answers, `measures_of` the members, and `claim_measures`.
    """
    row: dict[str, Any] = {
        "answers": len(answers),
        "annotators": len({answer.annotator for answer in answers}),
        "answers_sha256": _digest(answers),
    }
    return row | measures_of(project) | claim_measures(project)


def report(project: Project) -> None:
    """Writes metrics.csv, summary.json, scores.jsonl and label.png."""
    _write_metrics(project)
    write_scores(project)
    plot.draw(project.state.history, project.folder / "label.png")


def _write_metrics(project: Project) -> None:
    history, folder = project.state.history, project.folder
    ensemble, seed = project.config.ensemble, project.config.seed
    rows = (
        ("", ensemble, "", seed, measures["answers"], name, f"{value:.8g}")
        for measures in history
        for name, value in measures.items()
        if isinstance(value, float)
    )
    run_folder.write_csv(folder / "metrics.csv", rows)
    run_folder.write_json(folder / "summary.json", {"before": history[0], "after": history[-1]})


def _digest(answers: Sequence[Answer]) -> str:
    """Returns a hash of the ids of some answers, which tells whether there is a new one."""
    digest = hashlib.sha256()
    for event_id in sorted(answer.event_id for answer in answers):
        digest.update(f"{event_id}\0".encode())
    return digest.hexdigest()
