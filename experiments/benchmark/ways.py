"""The ways to run the work in JAX, each as compiled programs."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmark import work
from experiments.benchmark.config import Sizes
from experiments.benchmark.work import Frozen
from shatter.types import Array, Key

ONE_BY_ONE = 8
"""Number of seeds in the loop over seeds; the time of a seed does not depend on it."""


class Way(NamedTuple):
    """One way to do the work.

    Attributes:
      name: its name in the table.
      run: does the work and waits for its end.
      units: the amount of work of one call of `run`, in the unit of its group.
      compile_seconds: time of tracing and compiling once; None if nothing is compiled.
      peak_bytes: peak memory; None if it is not known.
      process_bytes: peak memory of a fresh process that does nothing else, libraries included; None
        if it is not measured.
    """

    name: str
    run: Callable[[], Any]
    units: int
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    process_bytes: int | None = None


class Made(NamedTuple):
    """The ways of one work that were made and compared.

    Attributes:
      ways: the ways.
      notes: sentences on what was checked.
      losses: the losses of the first way's first steps, if it has any.
      is_warm: whether the comparison has run all ways already, so that they need no warm-up.
    """

    ways: list[Way]
    notes: list[str]
    losses: Sequence[float] = ()
    is_warm: bool = False


class Program(NamedTuple):
    """A compiled function."""

    call: Callable[..., Any]
    compile_seconds: float
    peak_bytes: int | None


def compile_program(
    function: Callable[..., Any],
    *args: Any,
    donate: tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
) -> Program:
    """Compiles a function for arguments, which are arrays or their shapes.

    The peak memory is the compiler's plan for arguments, outputs and temporaries. On CPUs the
    compiler options are those of `experiments.common.chunks`, plus `options`.
    """
    chosen = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
    chosen |= options or {}
    began = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=donate, compiler_options=chosen or None)
    program = jitted.lower(*args).compile()
    seconds = time.perf_counter() - began
    plan = program.memory_analysis()
    if plan is None:  # not every backend has one
        return Program(program, seconds, None)
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Program(program, seconds, held + plan.temp_size_in_bytes)


def call_way(name: str, program: Program, args: tuple, units: int) -> Way:
    """Returns the way that calls one program once."""
    return Way(
        name,
        lambda: jax.block_until_ready(program.call(*args)),
        units,
        program.compile_seconds,
        program.peak_bytes,
    )


def compile_seed(sizes: Sizes, frozen: Frozen, key: Key) -> Program:
    """Compiles all rounds of one seed as one program, for `one_scan` and `one_by_one`."""
    return compile_program(partial(work.run_seed, sizes), frozen, key)


def one_scan(sizes: Sizes, frozen: Frozen, key: Key, program: Program) -> Way:
    """Returns the way that runs all rounds of one seed in one jitted scan."""
    return call_way("one jitted scan", program, (frozen, key), sizes.num_rounds)


def python_loop(sizes: Sizes, frozen: Frozen, key: Key) -> Way:
    """Returns the way that loops in Python over jitted propose, rate and learn of one seed."""
    rounds = list(jnp.arange(sizes.num_rounds))
    functions = [partial(f, sizes) for f in (work.start, work.propose, work.learn)]
    start = compile_program(functions[0], frozen, key)
    state, run_key = jax.eval_shape(functions[0], frozen, key)
    propose = compile_program(functions[1], frozen, state, run_key, rounds[0])
    queries, ask_key = jax.eval_shape(functions[1], frozen, state, run_key, rounds[0])
    rate = compile_program(work.rate, frozen, ask_key, queries)
    answers = jax.eval_shape(work.rate, frozen, ask_key, queries)
    learn = compile_program(functions[2], frozen, state, answers, donate=(1,))

    def run() -> Array:
        state, run_key = start.call(frozen, key)
        losses = []
        for t in rounds:
            queries, ask_key = propose.call(frozen, state, run_key, t)
            answers = rate.call(frozen, ask_key, queries)
            state, loss = learn.call(frozen, state, answers)
            losses.append(loss)
        return jax.block_until_ready(jnp.stack(losses))

    programs = (start, propose, rate, learn)
    return Way(
        "Python loop of jitted steps",
        run,
        sizes.num_rounds,
        sum(program.compile_seconds for program in programs),
        max(program.peak_bytes or 0 for program in programs) or None,
    )


def one_by_one(sizes: Sizes, frozen: Frozen, keys: Key, program: Program) -> Way:
    """Returns the way that loops in Python over the jitted runs of the first `ONE_BY_ONE` seeds."""
    first = list(keys[:ONE_BY_ONE])

    def run() -> Array:
        return jax.block_until_ready(jnp.stack([program.call(frozen, key) for key in first]))

    units = len(first) * sizes.num_rounds
    return Way("one by one", run, units, program.compile_seconds, program.peak_bytes)


def all_at_once(sizes: Sizes, frozen: Frozen, keys: Key) -> Way:
    """Returns the way that runs all seeds in one vmapped call."""
    run_seeds = jax.vmap(partial(work.run_seed, sizes), in_axes=(None, 0))
    program = compile_program(run_seeds, frozen, keys)
    return call_way("vmap", program, (frozen, keys), len(keys) * sizes.num_rounds)


def in_chunks(sizes: Sizes, frozen: Frozen, keys: Key, seeds_per_call: int) -> Way:
    """Returns the way that runs all seeds in one call, chunk after vmapped chunk."""

    def run_seeds(frozen: Frozen, keys: Key) -> Array:
        run_seed = partial(work.run_seed, sizes, frozen)
        return jax.lax.map(run_seed, keys, batch_size=seeds_per_call)

    program = compile_program(run_seeds, frozen, keys)
    name = f"lax.map, {seeds_per_call} at a time"
    return call_way(name, program, (frozen, keys), len(keys) * sizes.num_rounds)
