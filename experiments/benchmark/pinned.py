"""Measures fine-tuning and generation in a process of its own, on one core: A B A B ...

`python -m experiments.benchmark.pinned '{"section": ...}'` prints one line of JSON; `measure` calls
it. It needs its own process because both libraries create their threads at the start, from the
cores that the process may use then.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # jax must not be imported before the core is chosen
    from experiments.benchmark.ways import Made

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "dpo": ("torch", "transformers", "trl"),
    "ilhf": ("torch", "transformers", "trl"),
    "generation": ("torch", "transformers"),
    "vocabulary": ("torch", "transformers", "trl"),
}
APART = {"vocabulary": ("shatter", "shatter, logits held whole", "PyTorch", "TRL")}
TOLERANCE = 1e-4  # of losses in float32
HALF_TOLERANCE = 2e-2


def measure(work: str, gpt2: str, seed: int, repeats: int) -> dict[str, Any]:
    """Measures the ways of one work in fresh processes.

    Args:
      work: "dpo", "ilhf" or "generation".
      gpt2: a name in `GPT2S`.
      seed: seed of weights, pairs and prompts.
      repeats: R, number of times that each way is measured.

    Returns:
      "ways": the fields of each `Way` without `run`; "seconds" `[R, ways]`; "notes": sentences on
      what was checked and what is missing.
    """
    spec = {"work": work, "gpt2": gpt2, "seed": seed, "repeats": repeats}
    if work in APART:
        return _measure_apart(spec)
    answer = run_apart(spec)
    for way in answer["ways"]:
        memory = run_apart(spec | {"only": way["name"], "repeats": 1})["memory"]
        way["process_bytes"] = memory["process"]
        if way["peak_bytes"] is None:
            way["peak_bytes"] = memory["growth"]
    return answer


def _measure_apart(spec: dict[str, Any]) -> dict[str, Any]:
    """Measures each way of a work in a process of its own, because together they take too much.

    Their times are therefore not in turn.
    """
    names = APART[spec["work"]][: num_ways(spec["work"])]
    answers = [run_apart(spec | {"only": name}) for name in names]
    first, notes = answers[0], answers[0]["notes"]
    for name, answer in zip(names, answers, strict=True):
        way, memory = answer["ways"][0], answer["memory"]
        way["process_bytes"] = memory["process"]
        # Of all ways what the process grows by, because PyTorch plans nothing.
        notes.append(f"{name}: the process grows by {memory['growth'] / 1e6:.0f} MB")
        way["peak_bytes"] = way["peak_bytes"] or memory["growth"]
        if answer is not first:
            _check_losses(name, answer["losses"], first["losses"], TOLERANCE)
    seconds = [[answer["seconds"][row][0] for answer in answers] for row in range(spec["repeats"])]
    return {
        "ways": [answer["ways"][0] for answer in answers],
        "seconds": seconds,
        "notes": notes,
    }


def _check_losses(name: str, losses: Any, first: Any, tolerance: float) -> float:
    """Returns how far a way's losses are from those of the first way.

    Raises:
      ValueError: if they are further than the tolerance.
    """
    apart = max(abs(one - other) for one, other in zip(losses, first, strict=True))
    if not apart <= tolerance:
        raise ValueError(
            f"expected the losses of shatter, {first}, within the tolerance, found {losses} from "
            f"{name}: the ways do not do the same work"
        )
    return float(apart)


def missing(work: str) -> list[str]:
    """Returns the packages that the other ways of a work need and that are not installed."""
    return absent(PACKAGES[work])


def absent(packages: Iterable[str]) -> list[str]:
    """Returns those of some packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def num_ways(work: str) -> int:
    """Returns the number of ways of a work."""
    if work in APART:
        return 2 if missing(work) else len(APART[work])
    return 1 if missing(work) else {"dpo": 4, "ilhf": 3, "generation": 2}[work]


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages that shatter is compared with."""
    packages = sorted({"peft"}.union(*PACKAGES.values()))
    return {
        name: importlib.metadata.version(name)
        for name in packages
        if importlib.util.find_spec(name) is not None
    }


def run_apart(spec: dict[str, Any], module: str = "experiments.benchmark.pinned") -> dict[str, Any]:
    """Runs a module in a fresh process; returns the object that it prints for a spec.

    Args:
      spec: the spec, which can be written as JSON.
      module: the name of the module.

    Raises:
      RuntimeError: with the end of its messages, if the process fails.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(spec)],
        env=os.environ | {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring {spec} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def pin(cores: int = 1) -> None:
    """Keeps this process and its future threads on some cores, the last ones that it may use.

    Like the command `shatter`, the process keeps the memory that it frees. With an NVIDIA GPU it is
    not pinned, because there the cores only launch kernels.
    """
    from shatter.cli.common.memory import keep_freed_memory

    keep_freed_memory()
    if Path("/dev/nvidia0").exists() or not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))


def answer(spec: dict[str, Any], gpt2: Any = None) -> dict[str, Any]:
    """Builds the ways, checks that they compute the same, and times them.

    Args:
      spec: the arguments of `measure`; with the name of a way as "only", that way alone is built,
        and the memory of the process is measured.
      gpt2: the sizes; None = those of the name in the spec.

    Returns:
      See `measure`; "losses" of the first steps; with "only" also "memory": the bytes of the
      "process" and its "growth".
    """
    from experiments.benchmark import config, finetune

    work, only = spec["work"], spec.get("only")
    sizes, lacking = gpt2 or config.gpt2(spec["gpt2"]), missing(work)
    is_ours = only is not None and only.startswith("shatter")
    import_peers(() if is_ours else PACKAGES[work], lacking)
    if work == "generation":
        sizes = finetune.with_room_to_generate(sizes)
        make = partial(compare_generation, sizes, spec["seed"], only, bool(lacking))
    else:
        make = partial(_finetune, sizes, work, spec["seed"], only, bool(lacking))
    return timed(spec, lacking, make)


def import_peers(packages: Iterable[str], lacking: list[str]) -> None:
    """Imports the packages that the other ways of a work need, if all of them are installed."""
    if lacking:
        return
    for name in packages:
        importlib.import_module(name)
    if "transformers" in packages:
        importlib.import_module("transformers").utils.logging.set_verbosity_error()


def timed(spec: dict[str, Any], lacking: list[str], make: Callable[[], "Made"]) -> dict[str, Any]:
    """Makes the ways of a work and times them in turn.

    Args:
      spec: has "repeats"; with "only" there is one way, and the memory of this process is measured.
      lacking: the packages of the other ways that are not installed.
      make: makes the ways and compares what they compute.

    Returns:
      See `measure`; "losses" of the first steps; with "only" also "memory": the bytes of the
      "process" and its "growth".
    """
    from experiments.benchmark import measure as timing
    from experiments.benchmark import peers

    only = spec.get("only")
    before = peers.resident_peak() if only else 0
    made = make()
    notes = made.notes
    if lacking:
        notes.append(
            f"{', '.join(lacking)} not installed, so their rows are left out: "
            "pip install 'shatter-lm[benchmark]'"
        )
    ways, exhausted = (made.ways, []) if made.is_warm else timing.warm_up(made.ways)
    notes.extend(f"{name} ran out of memory" for name in exhausted)
    seconds = timing.time_in_turn(ways, spec["repeats"]).tolist()
    rows = [{k: v for k, v in way._asdict().items() if k != "run"} for way in ways]
    result = {"ways": rows, "seconds": seconds, "notes": notes, "losses": list(made.losses)}
    if only:
        peak = peers.resident_peak()
        result["memory"] = {"process": peak, "growth": peak - before}
    return result


def _finetune(sizes: Any, work: str, seed: int, only: str | None, alone: bool) -> "Made":
    from experiments.benchmark import finetune, peers

    params = finetune.init(sizes, seed)
    batch = finetune.make_batch(sizes, params, seed)
    makers = {}
    if work in APART:
        work = "dpo"
        makers[finetune.WHOLE_LOGITS] = lambda: finetune.trainer(
            sizes, work, params, batch, whole_logits=True
        )
    makers["shatter"] = lambda: finetune.trainer(sizes, work, params, batch)
    if not alone:
        makers["PyTorch"] = lambda: peers.torch_trainer(sizes, work, params, batch)
        makers["TRL"] = lambda: peers.trl_trainer(sizes, work, params, batch, seed)
    if not alone and work == "dpo":
        makers["TRL, reference every step"] = lambda: peers.trl_trainer(
            sizes, work, params, batch, seed, precompute=False
        )
    return compare_trainers(makers, sizes, only)


def compare_trainers(
    makers: dict[str, Callable[[], Any]], sizes: Any, only: str | None, steps: int | None = None
) -> "Made":
    """Makes trainers and checks that their first losses are the same.

    Args:
      makers: what makes each trainer, by its name.
      sizes: the sizes of the model and the batch.
      only: the one that is made; None = all.
      steps: the number of steps in a call of a way; None = that of the sizes.

    Returns:
      The ways, sentences on what was checked, and the first losses of the first trainer.

    Raises:
      ValueError: if the losses differ.
    """
    from experiments.benchmark import finetune
    from experiments.benchmark.ways import Made

    made = [make() for name, make in makers.items() if only in (None, name)]
    losses = [finetune.first_losses(trainer, sizes.steps).tolist() for trainer in made]
    notes, tolerance = [], HALF_TOLERANCE if sizes.half else TOLERANCE
    for trainer, others in list(zip(made, losses, strict=True))[1:]:
        apart = _check_losses(trainer.name, others, losses[0], tolerance)
        notes.append(
            f"losses of {sizes.steps} steps, {trainer.name}: within {apart:.1e} of shatter's"
        )
    ways = [finetune.way(trainer, sizes.num_pairs, steps or sizes.steps) for trainer in made]
    return Made(ways, notes, losses[0], is_warm=True)


def compare_generation(sizes: Any, seed: int, only: str | None, alone: bool) -> "Made":
    """Makes the ways to generate, and compares their greedy continuations.

    Args:
      sizes: the sizes, with room for what is generated.
      seed: seed of weights and prompts.
      only: the name of the one way that is wanted; None = all.
      alone: whether transformers is missing.

    Returns:
      The ways, and sentences on what was checked.
    """
    from experiments.benchmark import finetune, peers
    from experiments.benchmark.ways import Made

    params = finetune.init(sizes, seed)
    prompts = finetune.draw_prompts(sizes, seed)
    makers = {"shatter": lambda: finetune.generation_way(sizes, params, prompts)}
    if not alone:
        makers["transformers"] = lambda: peers.generation_way(sizes, params, prompts)
    ways = [make() for name, make in makers.items() if only in (None, name)]
    if len(ways) < 2:
        return Made(ways, [])
    same = finetune.greedy(sizes, params, prompts) == peers.greedy(sizes, params, prompts)
    return Made(ways, [f"greedy continuations: {same.mean():.2%} of the tokens are equal"])


if __name__ == "__main__":
    pin()
    print(json.dumps(answer(json.loads(sys.argv[1]))))
