"""The laws that the language model is compared with, on the same divisions of the people."""

from collections.abc import Sequence

import numpy as np
from scipy.special import entr, log_expit, softmax

from experiments.inclusive import classical, people, plackett_luce
from experiments.inclusive.arrays import Bools, Floats
from experiments.inclusive.populations import Population

GROUP_PRIOR = 30.0  # pseudo-people who draw a group's shares towards everybody's
SMALLEST_SHARE = 1e-12  # of an option in a predicted law, so that a KL stays finite
RIDGES = (0.0, 1.0)
Curves = dict[str, np.ndarray]


def curves(population: Population, budgets: Sequence[int], *, seed: int) -> dict[str, Curves]:
    """Fits Bradley-Terry to every prompt alone, at the language model's numbers of answers.

    Args:
      population: the recorded people.
      budgets: B numbers of answers a prompt.
      seed: of the draws of answers.

    Returns:
      By name, `[S, B]`: "kl", "choice_log_loss" and "best_known", and "answers", the budgets.
    """
    num_divisions = len(population.weights)
    result = {}
    for ridge in RIDGES:
        table = np.zeros((3, num_divisions, len(budgets)))
        for s in range(num_divisions):
            rng = np.random.default_rng((seed, s))
            for b, budget in enumerate(budgets):
                table[:, s, b] = _fit(population, s, budget, ridge, rng)
        named = dict(zip(("kl", "choice_log_loss", "best_known"), table, strict=True))
        result[f"Bradley-Terry, ridge {ridge:g}"] = {
            **named,
            "answers": np.tile(budgets, (num_divisions, 1)),
        }
    return result


def points(population: Population, pretrained: Floats, betas: Sequence[float]) -> dict[str, Curves]:
    """Returns the measures of laws that do not depend on a number of answers.

    Args:
      population: the recorded people.
      pretrained: [S, P, K] the pretrained model's shares of the options.
      betas: KL coefficients of the agglomerative optimum p0 q^(1/beta) / Z.

    Returns:
      By name: "people", the shares of those who answer (the floor); "people, shrunk" and
      "everybody" where prompts are put to groups; Bradley-Terry and Plackett-Luce fits to all
      rankings where there are some; "majority"; the agglomerative optima. For each of them "kl",
      "choice_log_loss", "best_known" and "entropy", [S], and "prediction", [S, P, K].
    """
    # An option that nobody of this half chose gets a share of 1 in 1000, so that KL stays finite.
    own = np.maximum(population.own, 1e-3 * (population.truth > 0))
    own = own / own.sum(axis=-1, keepdims=True)
    laws = {"people": own, "majority": np.stack([_majorities(row) for row in own])}
    if population.answers.ndim == 3:
        laws |= _ranking_fits(population)
    everybody = _everybody(population)
    if everybody is not None:
        sizes = (population.answers[None] >= 0) * population.weights[:, None]
        size = sizes.sum(axis=-1)[..., None]
        laws["people, shrunk"] = (size * own + GROUP_PRIOR * everybody) / (size + GROUP_PRIOR)
        laws["everybody"] = everybody
    for beta in betas:
        laws[f"agglomerative, beta {beta:g}"] = np.stack(
            [
                [_agglomerative(p0, q, beta) for p0, q in zip(p0s, qs, strict=True)]
                for p0s, qs in zip(pretrained, own, strict=True)
            ]
        )
    return {name: _measures(population, law) for name, law in laws.items()}


def kl_by_group(population: Population, law: Floats) -> Curves:
    """Returns KL(judges' shares || law) by group, the mean over the group's prompts.

    Args:
      population: the recorded people.
      law: [S, P, K] predicted shares.

    Returns:
      By group, [S]; empty where prompts are not put to groups.
    """
    kl = _prompt_kl(population.truth, law)
    names = np.asarray(population.groups)
    return {group: kl[:, names == group].mean(axis=1) for group in dict.fromkeys(population.groups)}


def _ranking_fits(population: Population) -> dict[str, Floats]:
    """Returns fits to all rankings of those who answer, [S, 1, K], of the only prompt."""
    ranks = population.answers[0]
    fits = {
        "Bradley-Terry, all pairs": [
            classical.fit_bradley_terry(wins[0], ridge=1.0) for wins in population.own_wins
        ]
    }
    is_strict = (np.sort(ranks) == np.arange(1, ranks.shape[1] + 1)).all()
    if (ranks >= 0).all() and is_strict:
        fits["Plackett-Luce, all rankings"] = [
            plackett_luce.fit_plackett_luce(np.argsort(ranks[weights > 0], axis=1))
            for weights in population.weights
        ]
    return {name: softmax(np.stack(rows), axis=1)[:, None] for name, rows in fits.items()}


def _fit(
    population: Population, s: int, budget: int, ridge: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    law = np.zeros(population.truth.shape[1:])
    for p, options in enumerate(population.options):
        k = len(options)
        total = round(budget * population.asked[p] * len(population.prompts))
        wins = people.draw_wins(population.own_wins[s, p, :k, :k], total, rng)
        law[p, :k] = softmax(classical.fit_bradley_terry(wins, ridge=ridge))
    measures = _measures(population, law[None], divisions=slice(s, s + 1))
    return measures["kl"][0], measures["choice_log_loss"][0], measures["best_known"][0]


def _measures(population: Population, law: Floats, divisions: slice = slice(None)) -> Curves:
    """Returns the measures of predicted shares [S, P, K]."""
    truth, wins = population.truth[divisions], population.wins[divisions]
    is_option, log_law = _log_law(population, law)
    kl = _prompt_kl(truth, law)
    odds = log_law[..., :, None] - log_law[..., None, :]
    losses = -(wins * log_expit(odds)).sum(axis=(1, 2, 3)) / wins.sum(axis=(1, 2, 3))
    hits = np.where(is_option, law, -1).argmax(-1) == truth.argmax(-1)
    return {
        "kl": kl @ population.judged,
        "choice_log_loss": losses,
        "best_known": hits @ population.judged,
        "entropy": entr(law).sum(axis=-1) @ population.judged,
        "prediction": law,
    }


def _prompt_kl(truth: Floats, law: Floats) -> Floats:
    """Returns KL(truth || law), [S, P]."""
    return classical.kl(truth, np.maximum(law, SMALLEST_SHARE))


def _log_law(population: Population, law: Floats) -> tuple[Bools, Floats]:
    """Returns [P, K], where there is an option, and [S, P, K], the logs of its share, else 0."""
    is_option = np.zeros(law.shape[1:], bool)
    for p, options in enumerate(population.options):
        is_option[p, : len(options)] = True
    return is_option, np.log(np.where(is_option, np.maximum(law, SMALLEST_SHARE), 1.0))


def _majorities(shares: Floats) -> Floats:
    rows = [classical.majority(row[row > 0]) for row in shares]
    table = np.zeros_like(shares)
    for row, shown, law in zip(table, shares, rows, strict=True):
        row[shown > 0] = law
    return table


def _agglomerative(p0: Floats, q: Floats, beta: float) -> Floats:
    shown = q > 0
    law = np.zeros_like(q)
    law[shown] = classical.agglomerative(p0[shown] / p0[shown].sum(), q[shown], beta)
    return law


def _everybody(population: Population) -> Floats | None:
    """Returns the shares of all groups together, [S, P, K]; None where no question has groups."""
    if len(set(population.question)) == len(population.question):
        return None
    table = np.zeros_like(population.own)
    for question in set(population.question):
        rows = np.flatnonzero(population.question == question)
        sizes = (population.answers[rows][None] >= 0) * population.weights[:, None]
        weight = sizes.sum(axis=-1)[..., None]
        table[:, rows] = ((weight * population.own[:, rows]).sum(1) / weight.sum(1))[:, None]
    return table
