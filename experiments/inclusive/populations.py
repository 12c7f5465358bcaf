"""Loads a data set as a population: texts, recorded people, and their divisions into halves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from experiments.common import shares, sources
from experiments.inclusive import classical, data, likings, people
from experiments.inclusive.arrays import Floats, Ints
from experiments.inclusive.config import Config
from shatter.cli.common.binary import UsageError


class Population(NamedTuple):
    """Recorded people: P prompts of at most K options, R people, S divisions into two halves.

    One half of a division answers, the other half judges.

    Attributes:
      prompts: P texts.
      options: the options of each prompt.
      asked: [P] how often a prompt is asked about, sums to 1.
      answers: [P, R] the option each person chose (-1 for none), or, of rankings, [P, R, K] ranks
        (smaller is better, -1 unknown).
      weights: [S, R] survey weight of those who answer in this division, 0 for those who judge.
      truth: [S, P, K] the judges' shares; 0 where there is no option.
      own: [S, P, K] the shares of those who answer; 0 where there is no option.
      wins: [S, P, K, K] the judges' pairwise choices, shares or counts.
      own_wins: [S, P, K, K] those of the people who answer.
      judged: [P] weight of each prompt in the measures, sums to 1.
      question: [P] which question a prompt asks; prompts of one question differ by group.
      groups: [P] the group each prompt is put to; empty without groups.
      note: a remark about the data for readers of the results; may be empty.
    """

    prompts: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    asked: Floats
    answers: Ints
    weights: Floats
    truth: Floats
    own: Floats
    wins: Floats
    own_wins: Floats
    judged: Floats
    question: Ints
    groups: tuple[str, ...] = ()
    note: str = ""


def load(config: Config) -> Population:
    """Loads the data set that the config names.

    Args:
      config: the config.

    Returns:
      The population, with `config.num_seeds` divisions.

    Raises:
      UsageError: if data is missing or damaged; the message says how to repair it.
    """
    try:
        match config.dataset:
            case "nonvoters":
                return _survey(config, by_party=False)
            case "parties":
                return _survey(config, by_party=True)
            case "starwars":
                return _starwars(config)
            case "cuisines":
                return _cuisines(config)
            case "shares":
                return _shares(config)
    except sources.SourceError as error:
        raise UsageError(str(error)) from error


def _halves(config: Config, num_people: int) -> list[tuple[Ints, Ints]]:
    return [people.split_people(num_people, seed=config.seed + s) for s in range(config.num_seeds)]


def _survey(config: Config, *, by_party: bool) -> Population:
    data_dir = config.data_dir or None
    wording = sources.find("shares", data_dir)
    survey = data.load_nonvoters(sources.locate("nonvoters", data_dir), wording)
    halves = _halves(config, len(survey.weights))
    weights = np.zeros((len(halves), len(survey.weights)))
    for row, (fit, _) in zip(weights, halves, strict=True):
        row[fit] = survey.weights[fit]
    prompts, options, answers, sizes, asked_of, names = [], [], [], [], [], []
    party = survey.attributes["party"]
    groups = [(name, party.codes == g) for g, name in enumerate(party.values)] if by_party else []
    for q, (question, chosen) in enumerate(zip(survey.questions, survey.answers, strict=True)):
        for name, members in groups or [("", np.ones(len(chosen), bool))]:
            prompts.append(f"{name}: {question.text}" if name else question.text)
            options.append(question.options)
            answers.append(np.where(members, chosen, -1))
            sizes.append(survey.weights[members].sum())
            asked_of.append(q)
            names.append(name)
    recorded = np.stack(answers)
    judges = np.stack([survey.weights - row for row in weights])
    own, truth = (_shares_of(recorded, w, options) for w in (weights, judges))
    asked = np.asarray(sizes) / np.sum(sizes)
    judged = np.full(len(prompts), 1 / len(prompts))
    return Population(
        tuple(prompts),
        tuple(options),
        asked,
        recorded,
        weights,
        truth,
        own,
        _share_wins(truth),
        _share_wins(own),
        judged,
        np.asarray(asked_of),
        tuple(names) if by_party else (),
        ""
        if wording
        else "no survey_opinions/shares.jsonl was found, so columns and numbers stand "
        "for the texts of questions and options",
    )


def _shares(config: Config) -> Population:
    """Returns shares as one pseudo-person an option, weighted by its share, in both halves."""
    if not config.shares_file:
        raise UsageError("--dataset=shares needs --shares_file=FILE, a JSON-lines file of shares")
    records = shares.load_shares(config.shares_file)
    prompts = tuple(f"{r.group.value}: {r.prompt}" if r.group else r.prompt for r in records)
    options = tuple(r.completions for r in records)
    num_options = max(map(len, options))
    # Person (p, k) answers option k of prompt p alone, so that a person needs one weight only.
    answers = np.full((len(records), len(records) * num_options), -1)
    weights = np.zeros(answers.shape[1])
    truth = np.zeros((len(records), num_options))
    for p, record in enumerate(records):
        for k, share in enumerate(record.shares):
            answers[p, p * num_options + k] = k
            weights[p * num_options + k] = share
            truth[p, k] = share
    repeat = lambda array: np.repeat(array[None], config.num_seeds, axis=0)
    even = np.full(len(records), 1 / len(records))
    wins = _share_wins(repeat(truth))
    return Population(
        prompts, options, even, answers, repeat(weights), repeat(truth), repeat(truth), wins, wins,
        even, np.arange(len(records)),
        note="shares without people: nobody is held out, the judges' shares are those that answer",
    )  # fmt: skip


def _starwars(config: Config) -> Population:
    films = likings.load_starwars(sources.locate("starwars", config.data_dir or None))
    halves = _halves(config, len(films.rankings))
    ranks = 1 + np.argsort(films.rankings, axis=1)

    def first(rankings: Ints) -> Floats:
        return np.bincount(rankings[:, 0], minlength=rankings.shape[1]) / len(rankings)

    own, truth = (np.stack([first(films.rankings[h[i]]) for h in halves]) for i in (0, 1))
    wins = [[people.wins_from_rankings(films.rankings[h[i]]) for h in halves] for i in (0, 1)]
    return _one_prompt(
        "Which Star Wars film is best?", films.items, ranks, halves, truth, own, wins
    )


def _cuisines(config: Config) -> Population:
    """Returns the cuisines; the truth is a Bradley-Terry fit, as ratings have no first place."""
    table = likings.load_cuisines(sources.locate("cuisines", config.data_dir or None))
    halves = _halves(config, len(table.ratings))
    rated = table.ratings > 0
    ranks = np.where(rated, 6 - table.ratings, -1)
    wins = [
        [people.wins_from_ratings(table.ratings[h[i]], rated[h[i]]) for h in halves] for i in (0, 1)
    ]
    own, truth = (
        np.stack([softmax(classical.fit_bradley_terry(w, ridge=1.0)) for w in wins[i]])
        for i in (0, 1)
    )
    return _one_prompt("Which cuisine is best?", table.items, ranks, halves, truth, own, wins)


def _one_prompt(
    prompt: str,
    items: Sequence[str],
    ranks: Ints,
    halves: list[tuple[Ints, Ints]],
    truth: Floats,
    own: Floats,
    wins: list[list[Floats]],
) -> Population:
    weights = np.zeros((len(halves), len(ranks)))
    for row, (fit, _) in zip(weights, halves, strict=True):
        row[fit] = 1.0
    own_wins, held_wins = (np.stack(w)[:, None] for w in wins)
    return Population(
        (prompt,),
        (tuple(items),),
        np.ones(1),
        ranks[None],
        weights,
        truth[:, None],
        own[:, None],
        held_wins,
        own_wins,
        np.ones(1),
        np.zeros(1, int),
    )


def _shares_of(answers: Ints, weights: Floats, options: Sequence[Sequence[str]]) -> Floats:
    """Returns the weighted shares, [S, P, K]; 0 where there is no option."""
    table = np.zeros((len(weights), len(answers), max(map(len, options))))
    for p, (chosen, row) in enumerate(zip(answers, options, strict=True)):
        for s, weight in enumerate(weights):
            table[s, p, : len(row)] = people.weighted_shares(chosen, weight, len(row))
    return table


def _share_wins(table: Floats) -> Floats:
    """Returns the chance [..., K, K] of i in {i, j}; 0 if nobody chose one of the two."""
    first, second = table[..., :, None], table[..., None, :]
    shown = (first > 0) & (second > 0) & ~np.eye(table.shape[-1], dtype=bool)
    return np.where(shown, first / np.where(shown, first + second, 1.0), 0.0)
