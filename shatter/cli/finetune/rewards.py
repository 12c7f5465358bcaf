"""Rewards of completions, and the user's functions that give them."""

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shatter.cli.common.binary import UsageError
from shatter.data.layouts import Text


class Completion(NamedTuple):
    """A completion that the model wrote.

    Attributes:
      prompt: as it stands in the file.
      text: the completion.
      source: "file:line" of the prompt.
      tokens: prompt and completion, and the token that ended it if one did.
      num_prompt: how many of the tokens are the prompt's.
      finished: whether a token ended it.
    """

    prompt: Text
    text: str
    source: str
    tokens: list[int]
    num_prompt: int
    finished: bool


class Reward(NamedTuple):
    """A source of rewards.

    Attributes:
      name: as metrics show it.
      digest: a checksum of a model's weights, or of a function's name; a resumed run shares it.
      weight: its weight in the sum of all rewards.
      score: `completions -> rewards [n]`, finite; it raises `UsageError` with a bad one.
    """

    name: str
    digest: str
    weight: float
    score: Callable[[Sequence[Completion]], np.ndarray]


def score_all(
    rewards: Sequence[Reward], completions: Sequence[Completion]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores completions by all rewards.

    Args:
      rewards: the rewards.
      completions: n completions.

    Returns:
      The weighted sum, float64 `[n]`, and each reward's own `[n]` by name.

    Raises:
      UsageError: if a function fails, or a reward is not a finite number.
    """
    each = {reward.name: reward.score(completions) for reward in rewards}
    total = np.asarray(sum(r.weight * each[r.name] for r in rewards), np.float64)
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(total.astype(np.float32))
    if not is_finite.all():
        first = int(np.argmin(is_finite))
        raise UsageError(
            f"the weighted sum of rewards must fit into float32, found {total[first]!r}, for "
            f"{_shown(completions[first])}: scale the rewards down, and the same command goes on"
        )
    return total, each


def open_function(name: str) -> Reward:
    """Imports a reward function; the present folder comes first.

    Args:
      name: MODULE:FUNCTION.

    Returns:
      The reward, of weight 1.

    Raises:
      UsageError: if it cannot be imported.
    """
    example = "pass --reward_function=MODULE:FUNCTION of a module in the present folder"
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"--reward_function: expected MODULE:FUNCTION, found {name!r}: {example}")
    try:
        _look_here()
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"--reward_function={name}: the module {module_name} cannot be imported from "
            f"{Path.cwd()} or the installed packages ({type(error).__name__}: {error}): {example}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "no such name" if function is None else repr(function)
        raise UsageError(
            f"--reward_function={name}: expected a function {attribute} in {module_name}, found "
            f"{found}: {example}"
        )
    # By its name alone, because a function that failed has to be mended before the run goes on.
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Reward(name, digest, 1.0, lambda found: _call(name, function, found))


def _look_here() -> None:
    """Looks for modules in the present folder first, where a command would not look.

    It stays so, because a reward function may import when it is called.
    """
    if sys.path[:1] != [str(Path.cwd())]:
        sys.path.insert(0, str(Path.cwd()))


def _call(name: str, function: Callable[..., Any], completions: Sequence[Completion]) -> np.ndarray:
    """Calls a reward function, and checks that it returns a finite number for each completion."""
    try:
        values = list(function(*_arguments(completions)))
    except (Exception, SystemExit) as error:  # a script may exit
        culprit = _first_to_fail(function, completions)
        raise UsageError(
            f"--reward_function={name} raised {type(error).__name__}: {error}, for "
            f"{_shown(culprit)}: mend the function, and the same command goes on"
        ) from error
    if len(values) != len(completions):
        raise UsageError(
            f"--reward_function={name}: expected {len(completions)} numbers, one for each "
            f"completion, found {len(values)}: {values[:8]}; the first was {_shown(completions[0])}"
            ": mend the function, and the same command goes on"
        )
    for value, completion in zip(values, completions, strict=True):
        check_finite(f"--reward_function={name}", value, completion)
    return np.asarray([float(value) for value in values], np.float64)


def _arguments(completions: Sequence[Completion]) -> tuple[list[Any], list[str]]:
    """Returns prompts, texts or lists of messages, and completions."""
    plain = lambda prompt: prompt if isinstance(prompt, str) else [dict(m) for m in prompt]
    return [plain(c.prompt) for c in completions], [c.text for c in completions]


def _first_to_fail(function: Callable[..., Any], completions: Sequence[Completion]) -> Completion:
    """Returns the first completion on which a function fails alone; the first, if none."""
    for completion in completions:
        try:
            list(function(*_arguments([completion])))
        except (Exception, SystemExit):
            return completion
    return completions[0]


def check_finite(flag: str, value: Any, completion: Completion) -> None:
    """Raises a UsageError if a reward is not a finite number.

    Args:
      flag: the flag that names its source, with its value.
      value: the reward.
      completion: what it was given for.
    """
    try:
        is_finite = math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        is_finite = False
    if not is_finite:
        raise UsageError(
            f"{flag}: expected a finite number, found {value!r}, for {_shown(completion)}: mend "
            "the reward, and the same command goes on"
        )


def _shown(completion: Completion) -> str:
    prompt, text = completion.prompt, completion.text
    return f"the prompt {prompt!r} ({completion.source}) and the completion {text!r}"
