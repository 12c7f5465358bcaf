"""Classical fits to the three surveys: the figures that a language model is compared with.

Every function fits to some people and is judged by others; all figures are in nats.
`python -m experiments.inclusive.baselines` prints them for random halves of the published files.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import softmax

from experiments.common import sources
from experiments.inclusive import classical, people, plackett_luce
from experiments.inclusive.arrays import Floats, Ints
from experiments.inclusive.data import Survey, load_nonvoters
from experiments.inclusive.likings import load_cuisines, load_starwars
from shatter.cli.common import binary

ANSWERS = (30, 100, 300, 1000, 3000)  # to each question
GROUP_PRIOR = 30.0  # pseudo-respondents who draw a group's shares towards everybody's
MIXTURE_COMPONENTS = 4
MIXTURE_SEEDS = 4  # starts of the fit, of which the most likely end is used


def survey_baselines(fit: Survey, held: Survey) -> dict[str, float]:
    """Returns KL(held-out people's shares || prediction), the mean over questions, by prediction.

    "people" predicts the shares of the people fitted to: the floor for all that learns from them.
    """
    shares = people.survey_shares(fit)
    truth = people.survey_shares(held)
    return {
        "people": _mean_kl(truth, shares),
        "uniform": _mean_kl(truth, [np.full(len(share), 1 / len(share)) for share in shares]),
        "majority": _mean_kl(truth, [classical.majority(share) for share in shares]),
    }


def survey_group_baselines(fit: Survey, held: Survey, attribute: str) -> dict[str, float]:
    """Returns KL(held-out group's shares || prediction), the mean over questions and groups.

    "groups" predicts the group's shares among the people fitted to, shrunk towards everybody's;
    "everybody" predicts everybody's shares for every group.
    """
    shares = people.survey_shares(fit)
    groups = people.survey_group_shares(fit, attribute, prior_strength=GROUP_PRIOR)
    truth = people.survey_group_shares(held, attribute)
    return {
        "groups": _mean_kl(truth, groups),
        "everybody": _mean_kl(truth, shares),
        "uniform": _mean_kl(truth, [np.full(len(share), 1 / len(share)) for share in shares]),
    }


def survey_bradley_terry(
    fit: Survey, held: Survey, num_answers: int, *, ridge: float, seed: int
) -> float:
    """Returns the KL of `survey_baselines` for a Bradley-Terry fit to each question's answers.

    Args:
      fit: The people who answer (see `people.sample_wins`).
      held: The people to judge by.
      num_answers: How many pairwise answers each question gets.
      ridge: Precision of the fit's prior; 1 is a standard normal prior on utilities.
      seed: Seed of NumPy's default generator for the answers.

    Returns:
      The mean KL in nats.
    """
    rng = np.random.default_rng(seed)
    wins = [people.sample_wins(share, num_answers, rng) for share in people.survey_shares(fit)]
    fits = [softmax(classical.fit_bradley_terry(counts, ridge=ridge)) for counts in wins]
    return _mean_kl(people.survey_shares(held), fits)


def ranking_baselines(fit: Ints, held: Ints, *, seed: int = 0) -> dict[str, float]:
    """Fits laws to complete rankings and judges them by other people's pairs and first places.

    Args:
      fit: [R, N] item indices, best first.
      held: [R', N] likewise.
      seed: The first seed of the mixture's fits.

    Returns:
      "pair ...": the log-loss per held-out pair; "first ...": KL(held-out shares of first places ||
      prediction). The fits are Bradley-Terry from all pairs, a free table of pairs, Plackett-Luce
      and a mixture of Plackett-Luce laws; "people" predicts the shares of the people fitted to.
    """
    fit_wins, held_wins = people.wins_from_rankings(fit), people.wins_from_rankings(held)
    bradley_terry = classical.fit_bradley_terry(fit_wins)
    mixtures = [
        plackett_luce.fit_mixture_plackett_luce(fit, MIXTURE_COMPONENTS, seed=seed + i)
        for i in range(MIXTURE_SEEDS)
    ]
    mixture = max(mixtures, key=lambda m: m.log_likelihood)
    first = {
        "Bradley-Terry": softmax(bradley_terry),
        "Plackett-Luce": softmax(plackett_luce.fit_plackett_luce(fit)),
        "mixture": mixture.weights @ softmax(mixture.utilities, axis=1),
        "people": _first_shares(fit),
        "uniform": np.full(fit.shape[1], 1 / fit.shape[1]),
    }
    truth = _first_shares(held)
    return {
        **_pair_losses(fit_wins, held_wins),
        **{f"first {name}": float(classical.kl(truth, p)) for name, p in first.items()},
    }


def rating_baselines(fit: Ints, held: Ints) -> dict[str, float]:
    """Returns the "pair ..." figures of `ranking_baselines` for ratings [R, N], <= 0 for none."""
    return _pair_losses(
        people.wins_from_ratings(fit, fit > 0), people.wins_from_ratings(held, held > 0)
    )


def _pair_losses(fit_wins: Floats, held_wins: Floats) -> dict[str, float]:
    utilities = classical.fit_bradley_terry(fit_wins)
    tables = {
        "Bradley-Terry": classical.luce_pair_table(utilities),
        "table": classical.fit_pair_table(fit_wins),
    }
    return {
        f"pair {name}": classical.pair_log_loss(table, held_wins) for name, table in tables.items()
    }


def _first_shares(rankings: Ints) -> Floats:
    return np.bincount(rankings[:, 0], minlength=rankings.shape[1]) / len(rankings)


def _mean_kl(truth: Sequence[Floats], prediction: Sequence[Floats]) -> float:
    """Returns the mean KL over questions, and over groups where the shares are [G, K]."""
    pairs = zip(truth, prediction, strict=True)
    return float(np.mean([np.mean(classical.kl(t, p)) for t, p in pairs]))


def _survey_figures(survey: Survey, fit: Ints, held: Ints, seed: int) -> dict[str, float]:
    parts = survey.take(fit), survey.take(held)
    by_party = survey_group_baselines(*parts, "party")
    return {
        **survey_baselines(*parts),
        **{f"by party: {name}": value for name, value in by_party.items()},
        **{
            f"Bradley-Terry, {n} answers, ridge {ridge}": survey_bradley_terry(
                *parts, n, ridge=ridge, seed=seed
            )
            for ridge in (0.0, 1.0)
            for n in ANSWERS
        },
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """Fits to three surveys; prints mean and standard deviation over random halves of people."""

    data_dir: str = ""
    """Folder of the data; if not given, $SHATTER_DATA_DIR, else a cache filled by download."""

    num_splits: int = 5
    """How many random halves."""

    seed: int = 0
    """Seed of the first half."""


def print_baselines(config: Config) -> None:
    """Prints every baseline.

    Raises:
      UsageError: if data is missing or damaged; the message says how to mend it.
    """
    binary.at_least(config, num_splits=1)
    try:
        survey = load_nonvoters(sources.locate("nonvoters", config.data_dir))
        films = load_starwars(sources.locate("starwars", config.data_dir)).rankings
        cuisines = load_cuisines(sources.locate("cuisines", config.data_dir)).ratings
    except sources.SourceError as error:
        raise binary.UsageError(str(error)) from error
    studies: dict[str, tuple[int, Callable[[Ints, Ints, int], dict[str, float]]]] = {
        "Non-voters": (len(survey.rid), lambda f, h, s: _survey_figures(survey, f, h, s)),
        "Star Wars": (len(films), lambda f, h, s: ranking_baselines(films[f], films[h], seed=s)),
        "Cuisines": (len(cuisines), lambda f, h, s: rating_baselines(cuisines[f], cuisines[h])),
    }
    for title, (size, figures) in studies.items():
        print(f"{title}: {size} people, {config.num_splits} random halves (mean, sd; nats)")
        seeds = range(config.seed, config.seed + config.num_splits)
        rows = [figures(*people.split_people(size, seed=s), s) for s in seeds]
        for name in rows[0]:
            values = [row[name] for row in rows]
            print(f"  {name:42s} {np.mean(values):.4f} {np.std(values):.4f}")


if __name__ == "__main__":
    binary.main(Config, print_baselines)
