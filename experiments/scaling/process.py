"""Runs the arms of one model over the seeds, and judges what was said; each part once."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import expit

from experiments.common import threads
from experiments.common.kept import load_or_run
from experiments.scaling import arms
from experiments.scaling.arms import Said
from experiments.scaling.config import OFFLINE, REWARD_MODEL, UNTRAINED
from experiments.scaling.family import packed, unpacked
from experiments.scaling.language import read_responses
from experiments.scaling.model import Model
from experiments.scaling.objectives import Material, Setting
from experiments.scaling.streams import Use, keys_of
from experiments.scaling.task import Judge, Task, golds
from shatter.cli.common.frozen import count_parameters
from shatter.types import Params

VMAPPED_PARAMETERS = 40_000
"""Seeds are vmapped while they have no more parameters than this together: the operations of
small models are too small for a CPU, and large ones only compete for its caches."""

MEND = ": training diverged; lower the arm's rate"


def seeds_at_once(params: Params) -> int:
    """Returns how many seeds of a model are vmapped."""
    return max(1, VMAPPED_PARAMETERS // count_parameters(params))


def run_arm(
    model: Model, judge: Judge, arm: str, folder: Path, progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Runs an arm, or reads what is in the folder.

    Args:
      model: the model.
      judge: the gold reward.
      arm: one of the config's arms.
      folder: of the model's files: those of a group of seeds are `ARM_SEED.npz`, where SEED is the
        first of them.
      progress: called with the number of seeds done since the last call.

    Returns:
      Measures `[S, rounds]`: gold, share, kl and length; of best_of_n also accuracy `[S, 1]`.

    Raises:
      UsageError: if a measure is not finite, or a file is damaged.
    """
    num_seeds, size = len(model.tasks), seeds_at_once(model.params)
    groups = [range(num_seeds)[first : first + size] for first in range(0, num_seeds, size)]

    def of_group(seeds: range) -> dict[str, np.ndarray]:
        run = partial(_group, model, judge, arm, seeds, folder)
        return load_or_run(folder / f"{arm}_{seeds[0]}.npz", run, mend=MEND)

    parts = [of_group(groups[0])]  # which compiles what the others use
    progress(len(groups[0]))
    at_once = threads.num_at_once(model.params)
    for part in threads.in_threads(of_group, groups[1:], at_once):
        progress(len(groups[len(parts)]))
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _group(
    model: Model, judge: Judge, arm: str, seeds: Sequence[int], folder: Path
) -> dict[str, np.ndarray]:
    """Runs an arm for some seeds and judges what it says."""
    setting, config = model.setting, model.setting.config
    stack = lambda *leaves: np.stack(leaves)
    material = jax.tree.map(stack, *[model.materials[seed] for seed in seeds])
    tasks = [model.tasks[seed] for seed in seeds]
    if arm in UNTRAINED:
        params = jax.tree.map(lambda leaf: np.stack([leaf] * len(seeds)), model.params)
        shots = arm == "prompting"
        keys = keys_of(config, seeds, Use.PROMPTING if shots else Use.BASE)
        said = arms.speak(setting, params, model.params, keys, 0, material, shots=shots)
        return _measures(setting, judge, tasks, jax.tree.map(lambda leaf: leaf[:, None], said))
    if arm in OFFLINE:
        said = arms.train(setting, arm, model.params, seeds, material)
        return _measures(setting, judge, tasks, said)
    train = partial(arms.train_reward_model, setting, model.params, seeds, material)
    arrays = load_or_run(
        folder / f"{REWARD_MODEL}_{seeds[0]}.npz", lambda: packed(train()), mend=MEND
    )
    reward_params = unpacked(arrays, {"model": model.params, "head": 0})
    if arm == "best_of_n":
        return _best_of_n(
            model, judge, tasks, keys_of(config, seeds, Use.BEST_OF_N), material, reward_params
        )
    said = arms.train(setting, arm, model.params, seeds, material, reward_params)
    return _measures(setting, judge, tasks, said)


def _texts(setting: Setting, task: Task, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    return read_responses(
        setting.language, task.evaluated, tokens, mask, most=setting.config.response_length
    )


def _judged(judge: Judge, task: Task, texts: list[str]) -> tuple[float, float]:
    """Returns the mean gold reward, and how often people prefer these to the reference's."""
    gold = golds(judge, task.evaluated, texts)
    others = [golds(judge, task.evaluated, row) for row in zip(*task.references, strict=True)]
    share = expit(gold[None] - np.stack(others))
    return float(gold.mean()), float(share.mean())


def _measures(
    setting: Setting, judge: Judge, tasks: list[Task], said: Said
) -> dict[str, np.ndarray]:
    """Returns the measures of what was said, `[S, rounds]`."""
    tokens, mask, kl = (np.asarray(leaf) for leaf in (said.seen.tokens, said.seen.mask, said.kl))
    judged = np.array(
        [
            [
                _judged(judge, task, _texts(setting, task, *of_round))
                for of_round in zip(of_tokens, of_mask, strict=True)
            ]
            for task, of_tokens, of_mask in zip(tasks, tokens, mask, strict=True)
        ]
    )
    length = mask.sum(axis=-1).mean(axis=-1)
    gold, share = judged[..., 0], judged[..., 1]
    return {"gold": gold, "share": share, "kl": kl.mean(axis=-1), "length": length}


def _best_of_n(
    model: Model,
    judge: Judge,
    tasks: list[Task],
    keys: Any,
    material: Material,
    reward_params: Params,
) -> dict[str, np.ndarray]:
    """Returns the measures of the best of the base's responses by the learned reward, `[S, 1]`.

    The KL is the bound log n - (n - 1) / n. Accuracy says how often the reward model orders two
    responses of the base as the gold reward does.
    """
    setting, number = model.setting, model.setting.config.best_of
    params = jax.tree.map(lambda leaf: np.stack([leaf] * len(keys)), model.params)
    drawn = [
        arms.speak(setting, params, model.params, keys, k, material).seen for k in range(number)
    ]
    rewards = arms.programs(setting).rewards
    learned = np.stack([rewards(reward_params, seen) for seen in drawn], axis=-1)  # [S, E, n]
    tokens, mask = (
        np.stack([getattr(seen, name) for seen in drawn], axis=2) for name in ("tokens", "mask")
    )
    rows = []
    for task, of_tokens, of_mask, values in zip(tasks, tokens, mask, learned, strict=True):
        texts = [_texts(setting, task, of_tokens[:, k], of_mask[:, k]) for k in range(number)]
        best = np.argmax(values, axis=1)
        chosen = [texts[k][e] for e, k in enumerate(best)]
        gold = np.stack([golds(judge, task.evaluated, row) for row in texts], axis=1)
        gap = lambda values: values[:, :, None] - values[:, None, :]
        apart = gap(gold) != 0
        right = (gap(values) > 0)[apart] == (gap(gold) > 0)[apart]
        accuracy = right.mean() if right.size else 0.5
        length = of_mask[np.arange(len(best)), best].sum(axis=-1).mean()
        rows.append([*_judged(judge, task, chosen), length, accuracy])
    gold, share, length, accuracy = np.array(rows).T[..., None]
    kl = np.full_like(gold, np.log(number) - (number - 1) / number)
    return {"gold": gold, "share": share, "kl": kl, "length": length, "accuracy": accuracy}
