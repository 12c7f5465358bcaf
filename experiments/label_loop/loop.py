"""Rounds of propose, answer and learn without people, one seed after the other."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.label_loop.config import Config
from experiments.label_loop.coverage import note_round
from experiments.label_loop.raters import TextRater, model_rater, recorded_rater
from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking
from shatter.cli.label.events import Event
from shatter.cli.label.folder import answer_file, known_queries, proposed
from shatter.cli.label.learn import report, update
from shatter.cli.label.pool import num_comparisons
from shatter.cli.label.project import Project, open_project
from shatter.cli.label.propose import asked_items, propose
from shatter.cli.label.queries import TextQuery, texts_digest
from shatter.cli.label.writer import open_writer


def run(config: Config, progress: Callable[[str, int], None]) -> list[Project]:
    """Runs rounds of propose, answer and learn, one seed after the other.

    A project that has had its rounds learns nothing more. One that was killed goes on where it was
    and ends in the same bits.

    Args:
      config: the flags.
      progress: called with a message and the number of rounds done since the last call.

    Returns:
      The projects, one for each seed.

    Raises:
      UsageError: if a file cannot be used or the pool runs out.
    """
    projects = _open_all(config)
    date = projects[0].config.template_date
    rater = model_rater(config, date) if config.rater == "model" else None
    return [_run_seed(project, config, rater, progress) for project in projects]


def _open_all(config: Config) -> list[Project]:
    """Opens the projects of all seeds, which share the model, the files and the table of texts.

    Raises:
      UsageError: if one cannot be opened, or the pool has too few comparisons for the rounds.
    """
    projects: list[Project] = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        folder = Path(config.project) / f"seed{seed}" if config.num_seeds > 1 else config.project
        one = replace(config, seed=seed, project=str(folder))
        if projects and one.template_date is None:  # the same date, so that they share a table
            one = replace(one, template_date=projects[0].config.template_date)
        projects.append(open_project(one, projects[0] if projects else None))
    if config.rater == "recorded" and not projects[0].pool.rows:
        raise UsageError(
            f"--rater=recorded: {config.pool} has no answers (ranks, ratings, votes, or chosen and "
            "rejected) to draw from: pass such a file, or --rater=model"
        )
    for project in projects:
        _assert_enough(project, config)
    return projects


def _run_seed(
    project: Project,
    config: Config,
    rater: TextRater | None,
    progress: Callable[[str, int], None],
) -> Project:
    """Runs the rounds of one seed that are not done yet, and writes its results."""
    config = replace(config, seed=project.config.seed)
    rate = rater or recorded_rater(project.pool, config.pool)
    for number in range(config.num_rounds):
        message = f"seed {config.seed}, round {number + 1}"
        progress(message, 0)
        if config.coverage:
            note_round(project, config.until)
        if project.state.num_updates <= number:
            _answer_round(project, config, rate)
            project = update(project)
        progress(message, 1)
    if config.coverage:
        note_round(project, config.until)
    report(project)
    return project


def _assert_enough(project: Project, config: Config) -> None:
    """Raises an error if the pool has too few comparisons for the rounds to come."""
    queries, is_recorded = known_queries(project.folder), config.rater == "recorded"
    number, asked = project.state.num_updates, asked_items(project, queries)
    begun = [query for query in proposed(queries).values() if query.round == number]
    num_rounds = config.num_rounds - number - bool(begun)
    total = num_comparisons(project.pool, config.num_responses, recorded=is_recorded)
    left = total - sum(min(items) >= 0 and _is_of_pool(project, config, items) for items in asked)
    if num_rounds * config.num_queries > left:
        raise UsageError(
            f"--num_rounds={config.num_rounds} with --num_queries={config.num_queries}: "
            f"{config.pool} has {left} comparisons that were not asked ({len(asked)} were), "
            f"expected {num_rounds * config.num_queries} for the {num_rounds} rounds to come: "
            "lower one of the two, or begin another project with more candidates"
        )


def _is_of_pool(project: Project, config: Config, items: tuple[int, ...]) -> bool:
    """Returns whether a comparison that was asked is one of those that these rounds ask."""
    if config.rater == "recorded":
        return items in project.pool.rows
    return len(items) == config.num_responses and max(items) < len(project.pool.items)


def _answer_round(project: Project, config: Config, rate: TextRater) -> None:
    """Proposes the batch of this round, if a killed process has not, and answers its queries."""
    batch = _batch(project, config)
    with open_writer(answer_file(project.folder)) as writer:
        answered = {event.query_id for event in writer.events}
        for query in batch:
            if query.query_id not in answered:
                writer.append(answer_of(rate, config, query))


def _batch(project: Project, config: Config) -> Sequence[TextQuery]:
    """Returns the batch of this round, which a killed process may have proposed already."""
    number = project.state.num_updates
    queries = proposed(known_queries(project.folder)).values()
    batch = [query for query in queries if query.round == number]
    return batch or propose(project, config, recorded=config.rater == "recorded")


def answer_of(rate: TextRater, config: Config, query: TextQuery) -> Event:
    """Returns the rater's answer to a query.

    Its random numbers and its id are made from the query, so that it is the same in every call and
    is never recorded twice.

    Args:
      rate: the rater.
      config: the flags, with the seed of the project.
      query: the query.

    Returns:
      The answer.
    """
    digest = hashlib.sha256(json.dumps([config.seed, query.query_id]).encode()).hexdigest()
    ranks = rate(query, np.random.default_rng(int(digest[:16], 16)))
    return Event(
        "answer",
        f"{config.rater}-{query.query_id}",
        query.query_id,
        config.rater,
        ranks=ranks,
        time=asking.now(),
        texts=texts_digest(query.prompt, query.completions),
    )
