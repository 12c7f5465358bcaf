"""A model with the texts of all seeds as its tokens, in the same shapes for all seeds."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from experiments.scaling.config import Config
from experiments.scaling.language import (
    Documents,
    Language,
    encode_documents,
    encode_prompts,
    response_tokens,
)
from experiments.scaling.objectives import Material, Setting
from experiments.scaling.streams import Use, generator
from experiments.scaling.task import Task
from shatter.cli.common.binary import UsageError
from shatter.types import Params


class Model(NamedTuple):
    """A model with the seeds' texts as its tokens.

    Attributes:
      setting: what is static.
      params: the pretrained parameters.
      tasks: of every seed.
      materials: of every seed.
    """

    setting: Setting
    params: Params
    tasks: list[Task]
    materials: list[Material]


def make_model(config: Config, language: Language, params: Params, tasks: list[Task]) -> Model:
    """Encodes all seeds' texts for one model, in the same shapes for all seeds.

    Raises:
      UsageError: if the model's context is too short.
    """
    most = config.response_length
    texts = [[*zip(task.prompts, task.demonstrations, strict=True)] for task in tasks]
    longest = max(
        len(response_tokens(language, *text, ends=True)) for of_seed in texts for text in of_seed
    )
    max_length = min(longest, most)
    prompts = [text for task in tasks for text in (*task.prompts, *task.evaluated)]
    needed = encode_prompts(language, prompts)[0].shape[1] + max_length
    if needed > language.context:
        raise UsageError(
            f"{language.name} reads {language.context} tokens, and a prompt with a response takes "
            f"{needed}: raise --context, or lower --prompt_length or --response_length"
        )
    setting = Setting(config, language, max_length)
    materials = [_material(setting, task, number) for number, task in enumerate(tasks)]
    return Model(setting, params, tasks, _same_shapes(setting, materials))


def _material(setting: Setting, task: Task, number: int) -> Material:
    config, language = setting.config, setting.language
    encode = partial(
        encode_documents, language, most=config.response_length, max_length=setting.max_length
    )
    pairs = encode(
        [(p, text) for p, pair in zip(task.prompts, task.pairs, strict=True) for text in pair]
    )
    return Material(
        encode([*zip(task.prompts, task.demonstrations, strict=True)]),
        Documents(*(leaf.reshape(-1, 2, leaf.shape[1]) for leaf in pairs)),
        np.array(task.choices),
        encode_prompts(language, task.prompts),
        encode_prompts(language, task.evaluated),
        encode_prompts(language, _with_shots(setting, task, number)),
    )


def _with_shots(setting: Setting, task: Task, number: int) -> list[str]:
    """Returns the evaluated prompts, each after demonstrations of its own drawing, a line each."""
    config, language = setting.config, setting.language
    rng = generator(config, number, Use.SHOTS)
    room = language.context - setting.max_length - len(language.start)
    found = []
    for prompt in task.evaluated:
        text = prompt
        for i in rng.choice(len(task.prompts), min(config.max_shots, len(task.prompts)), False):
            longer = f"{task.prompts[i]}{task.demonstrations[i]}\n{text}"
            if len(language.encode(longer)) > room:
                break
            text = longer
        found.append(text)
    return found


def _same_shapes(setting: Setting, materials: list[Material]) -> list[Material]:
    """Pads prompts on the left to the longest of all seeds, so that one program serves all."""
    fill = setting.language.ends[0]

    def padded(*leaves: np.ndarray) -> list[np.ndarray]:
        longest = max(leaf.shape[-1] for leaf in leaves)
        wide = [(longest - leaf.shape[-1]) for leaf in leaves]
        return [
            np.pad(
                leaf,
                [(0, 0)] * (leaf.ndim - 1) + [(width, 0)],
                constant_values=False if leaf.dtype == bool else fill,
            )
            for leaf, width in zip(leaves, wide, strict=True)
        ]

    without = [material._replace(choices=None) for material in materials]
    columns = zip(*map(jax.tree.leaves, without), strict=True)
    rows = zip(*(padded(*leaves) for leaves in columns), strict=True)
    structure = jax.tree.structure(without[0])
    return [
        jax.tree.unflatten(structure, row)._replace(choices=material.choices)
        for row, material in zip(rows, materials, strict=True)
    ]
