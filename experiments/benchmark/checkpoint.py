"""The section of a pretrained model: what a user does with it, beside the usual libraries.

`python -m experiments.benchmark.checkpoint '{"work": ...}'` measures one work in a process of its
own, on as many cores as asked for, and prints one line of JSON; `measure` calls it.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from experiments.benchmark import pinned
from experiments.benchmark.config import Gpt2

MEMBERS = 8
TOLERANCE = 1e-4  # of losses, and of mean log-probs of a token, in nats
CORES = (1, 2)


class Work(NamedTuple):
    """A work of the section.

    Attributes:
      unit: the unit of the work.
      packages: what the other ways need.
      num_ways: the number of ways if they are installed, and if they are not.
      seconds: a rough cost of one turn of all ways on one idle core, beside compiling.
      memory: whether the memory of each way is measured in a process of its own.
    """

    unit: str
    packages: tuple[str, ...]
    num_ways: tuple[int, int]
    seconds: float
    memory: bool = False


_TRL = ("torch", "transformers", "trl")
_PEFT = (*_TRL, "peft")
WORKS = {
    "matrix product": Work("product", ("torch",), (2, 1), 1.0),
    "score": Work("text", ("torch", "transformers"), (2, 1), 18.0),
    "LoRA DPO": Work("pair", _PEFT, (2, 1), 6.0, memory=True),
    "LoRA DPO, last quarter": Work("pair", _PEFT, (2, 1), 4.0, memory=True),
    "DPO": Work("pair", _TRL, (2, 1), 9.0, memory=True),
    "ILHF": Work("pair", _TRL, (2, 1), 9.0),
    "sample 8": Work("token", ("torch", "transformers"), (2, 1), 12.0),
    "sample 1": Work("token", ("torch", "transformers"), (2, 1), 8.0),
    "8 adapters": Work("step", _PEFT, (4, 2), 15.0),
    "first token": Work("start", ("torch", "transformers"), (2, 1), 15.0),
}


def sizes(folder: str, *, num_samples: int = 8) -> Gpt2:
    """Returns the sizes of the work with a pretrained model.

    A step has 4 pairs of 64 tokens with prompts of 16, and a sample 64 new tokens after a prompt of
    16.

    Args:
      folder: the model's folder.
      num_samples: the number of samples at once.
    """
    from experiments.benchmark import finetune

    config, _ = finetune.load(folder)
    return Gpt2(
        config.width,
        num_pairs=4,
        length=min(64, config.max_length),
        prompt_length=min(16, config.max_length // 4),
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        num_samples=num_samples,
        num_new_tokens=min(64, config.max_length // 2),
        folder=folder,
    )


def measure(work: str, folder: str, cores: int, seed: int, repeats: int) -> dict[str, Any]:
    """Measures the ways of one work in a fresh process.

    Args:
      work: a name in `WORKS`.
      folder: the model's folder.
      cores: the number of cores that the process may use.
      seed: seed of texts, pairs, prompts and adapters.
      repeats: R, number of times that each way is measured.

    Returns:
      As `pinned.measure`.
    """
    spec = {"work": work, "folder": folder, "cores": cores, "seed": seed, "repeats": repeats}
    run = partial(pinned.run_apart, module="experiments.benchmark.checkpoint")
    answer = run(spec)
    for way in answer["ways"] if WORKS[work].memory and cores == 1 else ():
        memory = run(spec | {"only": way["name"], "repeats": 1})["memory"]
        way["process_bytes"] = memory["process"]
    return answer


def places() -> list[tuple[str, int]]:
    """Returns every work with a number of cores, of those that the process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return [(work, cores) for work in WORKS for cores in CORES if cores <= max(available, 1)]


def num_ways(work: str) -> int:
    """Returns the number of ways of a work with the packages that are installed."""
    return WORKS[work].num_ways[bool(pinned.absent(WORKS[work].packages))]


def answer(spec: dict[str, Any], only_sizes: Gpt2 | None = None) -> dict[str, Any]:
    """Builds the ways, checks that they compute the same, and times them.

    Args:
      spec: the arguments of `measure`; with the name of a way as "only", the memory of that way is
        measured instead.
      only_sizes: the sizes; None = those of `sizes`.

    Returns:
      See `pinned.timed`.
    """
    from experiments.benchmark import checkpoint_ways

    work, only = spec["work"], spec.get("only")
    missing = pinned.absent(WORKS[work].packages)
    pinned.import_peers(() if only == "shatter" else WORKS[work].packages, missing)
    chosen = only_sizes or sizes(spec["folder"], num_samples=1 if work == "sample 1" else 8)
    makers: dict[str, Callable[..., Any]] = {
        "matrix product": checkpoint_ways.product,
        "score": checkpoint_ways.score,
        "LoRA DPO": partial(checkpoint_ways.train, "LoRA DPO"),
        "LoRA DPO, last quarter": partial(checkpoint_ways.train, "LoRA DPO, last quarter"),
        "DPO": partial(checkpoint_ways.train, "DPO"),
        "ILHF": partial(checkpoint_ways.train, "ILHF"),
        "sample 8": checkpoint_ways.sample,
        "sample 1": checkpoint_ways.sample,
        "8 adapters": checkpoint_ways.members,
        "first token": checkpoint_ways.first_token,
    }
    make = partial(makers[work], chosen, spec["seed"], only, alone=bool(missing))
    return pinned.timed(spec, missing, make)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    pinned.pin(asked["cores"])
    print(json.dumps(answer(asked)))
