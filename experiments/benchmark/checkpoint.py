"""The sections of a pretrained model: what a user does with it, beside the usual libraries.

`python -m experiments.benchmark.checkpoint 1` reads lines of JSON such as `{"work": ...}`, measures
each of these works on one core, and prints one line of JSON for each; `measure` calls it. The
libraries, the model and the pairs are then loaded once for all works.
"""

import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
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
      apart: whether every way starts processes of its own, so that this one imports nothing.
    """

    unit: str
    packages: tuple[str, ...]
    num_ways: tuple[int, int]
    seconds: float
    memory: bool = False
    apart: bool = False


_TRL = ("torch", "transformers", "trl")
_PEFT = (*_TRL, "peft")
WORKS = {
    "matrix product": Work("product", ("torch",), (2, 1), 1.0),
    "score": Work("text", ("torch", "transformers"), (2, 1), 9.0),
    "LoRA DPO": Work("pair", _PEFT, (2, 1), 6.0, memory=True),
    "LoRA DPO, last quarter": Work("pair", _PEFT, (2, 1), 3.5, memory=True),
    "DPO": Work("pair", _TRL, (2, 1), 8.0, memory=True),
    "ILHF": Work("pair", _TRL, (2, 1), 9.0),
    "sample 8": Work("token", ("torch", "transformers"), (2, 1), 10.0),
    "sample 1": Work("token", ("torch", "transformers"), (2, 1), 5.0),
    "8 adapters": Work("step", _PEFT, (3, 2), 11.5),
    "first token": Work("start", ("torch", "transformers"), (2, 1), 8.0, apart=True),
    "import": Work("start", ("transformers", "trl"), (6, 2), 12.0, apart=True),
}
"""The works of the section checkpoint."""
ONLINE = {
    "LoRA GRPO": Work("completion", _PEFT, (2, 1), 20.0),
    "LoRA GRPO, completions": Work("completion", _PEFT, (2, 1), 13.0),
    "LoRA GRPO, update": Work("completion", _PEFT, (2, 1), 8.0),
    "GRPO": Work("completion", _TRL, (2, 1), 22.0),
    "GRPO, completions": Work("completion", _TRL, (2, 1), 12.0),
    "GRPO, update": Work("completion", _TRL, (2, 1), 10.0),
}
"""The works of the section online; those of one model follow each other and share it."""


def work_of(name: str) -> Work:
    """Returns a work of either section by its name."""
    return (WORKS | ONLINE)[name]


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
        steps=2,
        folder=folder,
    )


def measure(work: str, folder: str, cores: int, seed: int, repeats: int) -> dict[str, Any]:
    """Measures the ways of one work, in the process that measures all works on so many cores.

    Where the memory is measured, each way also runs in a fresh process.

    Args:
      work: a name in `WORKS` or `ONLINE`.
      folder: the model's folder.
      cores: the number of cores that the process may use.
      seed: seed of texts, pairs, prompts and adapters.
      repeats: R, number of times that each way is measured.

    Returns:
      As `pinned.measure`.
    """
    spec = {"work": work, "folder": folder, "cores": cores, "seed": seed, "repeats": repeats}
    answer = _ask(_worker(cores), spec)
    for way in answer["ways"] if work_of(work).memory and cores == 1 else ():
        worker = _start(cores)
        memory = _ask(worker, spec | {"only": way["name"], "repeats": 0})["memory"]
        way["process_bytes"] = memory["process"]
        _end(worker)
    return answer


class Worker(NamedTuple):
    """A process that measures works, and the file of its messages."""

    process: subprocess.Popen[str]
    messages: Any


_workers: dict[int, Worker] = {}  # at most one, by its number of cores


def _worker(cores: int) -> Worker:
    """Returns the process for so many cores, and ends the one for another number."""
    if cores not in _workers:
        while _workers:
            _end(_workers.popitem()[1])
        _workers[cores] = _start(cores)
    return _workers[cores]


def _start(cores: int) -> Worker:
    path = os.pathsep.join(filter(None, [str(pinned.ROOT), os.environ.get("PYTHONPATH")]))
    messages = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.benchmark.checkpoint", str(cores)],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=messages,
        text=True,
    )
    return Worker(process, messages)


def _ask(worker: Worker, spec: dict[str, Any]) -> dict[str, Any]:
    """Returns what a process answers.

    Raises:
      RuntimeError: with the end of its messages, if the process ends instead.
    """
    process = worker.process
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(spec) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        worker.messages.seek(0)
        raise RuntimeError(f"measuring {spec} failed:\n{worker.messages.read()[-4000:]}")
    found: dict[str, Any] = json.loads(line)
    return found


def _end(worker: Worker) -> None:
    worker.process.communicate()  # closes its input, at whose end it ends
    worker.messages.close()


def places(works: Iterable[str] = tuple(WORKS)) -> list[tuple[str, int]]:
    """Returns every work with a number of cores, of those that the process may use.

    Imports, which hardly use a second core, are measured on one.

    Args:
      works: the names of the works.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return [
        (work, cores)
        for cores in CORES
        for work in works
        if cores <= max(available, 1) and (cores == 1 or work != "import")
    ]


def num_ways(work: str) -> int:
    """Returns the number of ways of a work with the packages that are installed."""
    return work_of(work).num_ways[bool(pinned.absent(work_of(work).packages))]


def answer(spec: dict[str, Any], only_sizes: Gpt2 | None = None) -> dict[str, Any]:
    """Builds the ways, checks that they compute the same, and times them.

    Args:
      spec: the arguments of `measure`; with the name of a way as "only", the memory of that way is
        measured instead.
      only_sizes: the sizes; None = those of `sizes`.

    Returns:
      See `pinned.timed`.
    """
    from experiments.benchmark import checkpoint_ways, grpo

    work, only = spec["work"], spec.get("only")
    missing = pinned.absent(work_of(work).packages)
    skipped = only == "shatter" or work_of(work).apart
    pinned.import_peers(() if skipped else work_of(work).packages, missing)
    chosen = only_sizes or sizes(spec["folder"], num_samples=1 if work == "sample 1" else 8)
    if spec["cores"] > 1:  # the second steps were compared on one core
        chosen = dataclasses.replace(chosen, steps=1)
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
        "import": checkpoint_ways.imports,
        **{name: partial(grpo.ways, name) for name in ONLINE},
    }
    make = partial(makers[work], chosen, spec["seed"], only, alone=bool(missing))
    return pinned.timed(spec, missing, make)


def _serve(cores: int) -> None:
    """Answers every line of the input; what libraries print goes to the messages."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pinned.pin(cores)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
        gc.collect()  # a trainer of TRL is a cycle


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
