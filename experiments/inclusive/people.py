"""Turns respondents into data to fit models to: halves, weighted shares, counts of wins."""

import numpy as np

from experiments.inclusive.arrays import Bools, Floats, Ints
from experiments.inclusive.data import Survey
from experiments.inclusive.tables import Attribute


def split_people(num_people: int, *, seed: int, fraction: float = 0.5) -> tuple[Ints, Ints]:
    """Divides the respondents at random into those to fit to and those to judge by.

    Args:
      num_people: R.
      seed: Seed of NumPy's default generator.
      fraction: The part to fit to, rounded down to whole people.

    Returns:
      Two sorted arrays of indices, disjoint, together all of 0..R-1, neither empty.

    Raises:
      ValueError: if one of the two would be empty.
    """
    num_fit = int(num_people * fraction)
    if not 0 < num_fit < num_people:
        raise ValueError(
            f"cannot divide {num_people} people with fraction {fraction}: a part is empty"
        )
    order = np.random.default_rng(seed).permutation(num_people)
    return np.sort(order[:num_fit]), np.sort(order[num_fit:])


def weighted_counts(answers: Ints, weights: Floats, num_options: int) -> Floats:
    """Sums the weights of the respondents who chose each option.

    Args:
      answers: [R] option indices, -1 for none.
      weights: [R] survey weights.
      num_options: K.

    Returns:
      [K] sums of weights.
    """
    answered = answers >= 0
    counts = np.bincount(answers[answered], weights[answered], minlength=num_options)
    return np.asarray(counts, np.float64)


def weighted_shares(answers: Ints, weights: Floats, num_options: int) -> Floats:
    """Returns the weighted shares [K] of those who answered; raises ValueError if nobody did."""
    counts = weighted_counts(answers, weights, num_options)
    if counts.sum() <= 0:
        raise ValueError("nobody answered: there are no shares")
    return counts / counts.sum()


def group_shares(
    answers: Ints,
    weights: Floats,
    groups: Attribute,
    num_options: int,
    *,
    prior_strength: float = 0.0,
) -> Floats:
    """Returns the weighted shares of each option in each group, shrunk towards everybody's.

    They are (counts + prior_strength * overall shares) / (sum of counts + prior_strength), the
    posterior mean under a Dirichlet prior worth `prior_strength` respondents.

    Args:
      answers: [R] option indices, -1 for none.
      weights: [R] survey weights.
      groups: The division into G groups; people of no known group count in everybody's shares only.
      num_options: K.
      prior_strength: Pseudo-respondents who answer as everybody does, >= 0.

    Returns:
      [G, K] rows that sum to 1.

    Raises:
      ValueError: if nobody answered in a group and prior_strength is 0.
    """
    overall = weighted_shares(answers, weights, num_options)
    members = [groups.codes == group for group in range(len(groups.values))]
    counts = np.stack([weighted_counts(answers[m], weights[m], num_options) for m in members])
    counts += prior_strength * overall
    totals = counts.sum(axis=1, keepdims=True)
    if (totals <= 0).any():
        empty = [groups.values[group] for group in np.flatnonzero(totals[:, 0] <= 0)]
        raise ValueError(f"nobody answered in groups {empty}: give a prior_strength above 0")
    return counts / totals


def survey_shares(survey: Survey) -> tuple[Floats, ...]:
    """Returns the weighted shares [K] of the options of every question of the survey."""
    return tuple(
        weighted_shares(answers, survey.weights, len(question.options))
        for question, answers in zip(survey.questions, survey.answers, strict=True)
    )


def survey_group_shares(
    survey: Survey, attribute: str, *, prior_strength: float = 0.0
) -> tuple[Floats, ...]:
    """Returns the shares [G, K] by group of every question; see `group_shares`."""
    groups = survey.attributes[attribute]
    return tuple(
        group_shares(
            answers, survey.weights, groups, len(question.options), prior_strength=prior_strength
        )
        for question, answers in zip(survey.questions, survey.answers, strict=True)
    )


def wins_from_rankings(rankings: Ints) -> Floats:
    """Counts [N, N] how often item i stands above item j in rankings [R, N], best first."""
    return wins_from_ratings(-np.argsort(rankings, axis=1))


def wins_from_ratings(ratings: Ints | Floats, rated: Bools | None = None) -> Floats:
    """Counts how often a respondent rates item i above item j; equal ratings count for neither.

    Args:
      ratings: [R, N], larger is better.
      rated: [R, N], false where the respondent gave no rating; None if every rating was given.

    Returns:
      wins [N, N], its diagonal 0.
    """
    if rated is None:
        rated = np.ones(ratings.shape, bool)
    wins = np.zeros((ratings.shape[1], ratings.shape[1]))
    for item in range(ratings.shape[1]):
        above = ratings[:, item, None] > ratings
        wins[item] = (above & rated[:, item, None] & rated).sum(axis=0)
    return wins


def sample_wins(shares: Floats, num_answers: int, rng: np.random.Generator) -> Floats:
    """Draws pairwise answers of a population in which every member has one favourite option.

    A pair {i, j} is drawn uniformly, then a respondent by weight among those whose answer is i or
    j; so i wins with probability s_i / (s_i + s_j), which is Luce's rule exactly. Pairs that nobody
    chose from are not asked. Respondents are drawn with replacement.

    Args:
      shares: [K] weighted shares of the options.
      num_answers: The number of answers.
      rng: A generator; its state advances.

    Returns:
      wins [K, K]: how often i was chosen over j.
    """
    return draw_wins(np.repeat(shares[:, None], len(shares), axis=1), num_answers, rng)


def draw_wins(wins: Floats, num_answers: int, rng: np.random.Generator) -> Floats:
    """Draws answers about uniform pairs, each by the pair's recorded choices.

    Args:
      wins: [K, K] how often, or with what weight, i is chosen over j; a pair without any choice is
        not asked.
      num_answers: The number of answers.
      rng: A generator; its state advances.

    Returns:
      [K, K] how often i was chosen over j.
    """
    first, second = np.nonzero(np.triu(wins + wins.T, 1))
    drawn = np.zeros_like(wins)
    if not first.size:
        return drawn
    asked = rng.multinomial(num_answers, np.full(first.size, 1 / first.size))
    chance = wins[first, second] / (wins[first, second] + wins[second, first])
    won = rng.binomial(asked, chance)
    drawn[first, second], drawn[second, first] = won, asked - won
    return drawn
