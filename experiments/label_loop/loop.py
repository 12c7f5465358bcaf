"""The whole cycle unattended: recorded votes or a rater model in place of people."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from experiments.label_loop.config import Config
from shatter import data, documents, models
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import Frozen, load_frozen
from shatter.cli.label import asking
from shatter.cli.label.answers import Event
from shatter.cli.label.folder import answer_file, known_queries, proposed
from shatter.cli.label.learn import report, update
from shatter.cli.label.pool import Votes, num_comparisons
from shatter.cli.label.project import Bench, open_project
from shatter.cli.label.propose import asked_items, propose
from shatter.cli.label.queries import Asked, texts_digest
from shatter.cli.label.writer import open_writer
from shatter.types import Array, Params

RaterModel = Callable[[Asked, np.random.Generator], tuple[int, ...]]
"""`(query, rng) -> ranks[K]`."""


def run(config: Config, progress: Callable[[str, int], None]) -> list[Bench]:
    """Runs rounds of propose, answer and learn, one seed after the other.

    A project that has had its rounds learns nothing more; one that was killed goes on where it was
    and ends in the same bits.

    Args:
      config: the flags.
      progress: called with a message and the rounds done since the last call.

    Returns:
      The projects, a seed each.

    Raises:
      UsageError: if a file cannot be used or the pool runs out.
    """
    seeds = range(config.seed, config.seed + config.num_seeds)
    configs = [
        replace(config, seed=seed, project=str(Path(config.project) / f"seed{seed}"))
        if config.num_seeds > 1
        else config
        for seed in seeds
    ]
    benches: list[Bench] = []
    for one in configs:
        if benches and one.template_date is None:  # one date for all, so that they share a table
            one = replace(one, template_date=benches[0].config.template_date)
        benches.append(open_project(one, benches[0] if benches else None))
    if config.rater == "recorded" and not benches[0].pool.rows:
        raise UsageError(
            f"--rater=recorded: {config.pool} has no answers (ranks, ratings, votes, or chosen and "
            "rejected) to draw from: pass such a file, or --rater=model"
        )
    for bench in benches:
        _assert_enough(bench, config)
    date = benches[0].config.template_date
    rater = _rater_model(config, date) if config.rater == "model" else None
    for n, one in enumerate(configs):
        for number in range(config.num_rounds):
            message = f"seed {one.seed}, round {number + 1}"
            progress(message, 0)
            if benches[n].ensemble.number <= number:
                _answer_round(benches[n], one, rater)
                benches[n] = update(benches[n])
            progress(message, 1)
        report(benches[n])
    return benches


def _assert_enough(bench: Bench, config: Config) -> None:
    """Refuses rounds for which the pool has not comparisons enough."""
    queries, is_recorded = known_queries(bench.folder), config.rater == "recorded"
    number, asked = bench.ensemble.number, asked_items(bench, queries)
    begun = [query for query in proposed(queries).values() if query.round == number]
    num_rounds = config.num_rounds - number - bool(begun)
    there = num_comparisons(bench.pool, config.num_responses, recorded=is_recorded)
    left = there - sum(min(items) >= 0 and _is_of_pool(bench, config, items) for items in asked)
    if num_rounds * config.num_queries > left:
        raise UsageError(
            f"--num_rounds={config.num_rounds} with --num_queries={config.num_queries}: "
            f"{config.pool} has {left} comparisons that were not asked ({len(asked)} were), "
            f"expected {num_rounds * config.num_queries} for the {num_rounds} rounds to come: "
            "lower one of the two, or begin another project with more candidates"
        )


def _is_of_pool(bench: Bench, config: Config, items: tuple[int, ...]) -> bool:
    """Returns whether a comparison that was asked is one of those that the loop asks."""
    if config.rater == "recorded":
        return items in bench.pool.rows
    return len(items) == config.num_responses and max(items) < len(bench.pool.items)


def _answer_round(bench: Bench, config: Config, rater: RaterModel | None) -> None:
    newest = _batch(bench, config, rater is None)
    with open_writer(answer_file(bench.folder)) as writer:
        answered = {event.query_id for event in writer.events}
        for query in newest:
            if query.query_id not in answered:
                writer.append(_event(bench, config, query, rater))


def _batch(bench: Bench, config: Config, recorded: bool) -> Sequence[Asked]:
    """Returns the batch of this round: that which a killed process has left, or a new one."""
    number = bench.ensemble.number
    queries = proposed(known_queries(bench.folder)).values()
    left = [query for query in queries if query.round == number]
    return left or propose(bench, config, recorded=recorded)


def _event(bench: Bench, config: Config, query: Asked, rater: RaterModel | None) -> Event:
    """Returns the rater's answer; its id is made of the query, so that it is never given twice."""
    digest = hashlib.sha256(json.dumps([config.seed, query.query_id]).encode()).hexdigest()
    rng = np.random.default_rng(int(digest[:16], 16))
    if rater is None:
        votes = bench.pool.rows.get(tuple(query.item_ids))
        if votes is None:
            raise UsageError(
                f"{query.source}: {config.pool} has no recorded answer to {query.query_id}: use "
                "another --project for --rater=recorded"
            )
        ranks = _recorded(votes, rng)
    else:
        ranks = rater(query, rng)
    return Event(
        "answer",
        f"{config.rater}-{query.query_id}",
        query.query_id,
        config.rater,
        ranks=ranks,
        time=asking.now(),
        texts=texts_digest(query.prompt, query.completions),
    )


def _recorded(votes: Votes, rng: np.random.Generator) -> tuple[int, ...]:
    """One of the recorded answers, in proportion to its weight."""
    weights = np.array(list(votes.values()))
    return list(votes)[rng.choice(len(weights), p=weights / weights.sum())]


def _opened_rater(config: Config, date: str | None) -> tuple[Frozen, np.ndarray | None]:
    """Returns the model of --rater_model, and its reward head if it has one.

    Raises:
      UsageError: if one cannot be read, or has no positions for --max_length.
    """
    when = date and binary.date("template_date", date)
    try:
        frozen = load_frozen(config.rater_model, date=when or None)
    except UsageError as error:
        message = str(error).replace("--model_name_or_path", "--rater_model", 1)
        raise UsageError(message) from error
    if config.max_length > frozen.config.max_length:
        raise UsageError(
            f"--max_length={config.max_length}: expected at most the {frozen.config.max_length} "
            f"tokens of --rater_model={config.rater_model}"
        )
    file = Path(config.rater_model) / "reward_head.safetensors"
    if not file.is_file():
        return frozen, None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        head = load_file(file)["score.weight"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UsageError(f"--rater_model: {file} cannot be read: {error}") from error
    if head.shape != (1, frozen.config.width) or not np.isfinite(head).all():
        raise UsageError(
            f"--rater_model: {file}: score.weight: expected finite numbers [1, "
            f"{frozen.config.width}], found {head.dtype} {list(head.shape)}"
        )
    return frozen, head[0]


def _rater_model(config: Config, date: str | None) -> RaterModel:
    """Returns a rater that chooses by Luce's rule on a model's mean log-prob or its rewards."""
    frozen, head = _opened_rater(config, date)
    lm = models.transformer(frozen.config)

    def score(params: Params, tokens: Array, mask: Array, valid: Array) -> Array:
        if head is None:
            found = documents.log_prob(lm.apply(params, tokens, valid=valid), tokens, mask)
            return found / mask.sum(axis=-1)
        assert lm.features is not None
        features = lm.features(params, tokens, valid=valid)
        last = valid.sum(axis=-1) - 1
        return (features[np.arange(len(tokens)), last] * head[None]).sum(axis=-1)

    jitted = jax.jit(score, compiler_options=compiler_options())

    def rater(query: Asked, rng: np.random.Generator) -> tuple[int, ...]:
        num = len(query.completions)
        row = data.Row(query.prompt, query.completions, (0,) * num)
        try:
            encoded, _ = data.encode_rows([row], frozen.tokenizer, max_length=config.max_length)
        except ValueError as error:
            raise UsageError(f"--rater_model: {error}") from error
        batch = data.collate(encoded, [0], length=config.max_length, num_slots=num)
        arrays = (batch.tokens[0], batch.mask[0], batch.valid[0])
        utilities = config.rater_scale * np.asarray(jitted(frozen.params, *arrays))
        if not np.isfinite(utilities).all():
            raise UsageError(f"--rater_model: its utilities of {query.query_id} are not finite")
        chosen = int(np.argmax(utilities + rng.gumbel(size=num)))
        return tuple(1 if k == chosen else 2 for k in range(num))

    return rater
