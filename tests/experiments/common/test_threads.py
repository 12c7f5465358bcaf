import os
import threading
import time

import jax
import numpy as np
import pytest

from experiments.common import threads


def test_results_are_in_order_and_items_are_worked_on_together():
    """Two items that wait for each other end only if they are worked on at once."""
    together = threading.Barrier(2)

    def run(item):
        together.wait(timeout=60)
        return 10 * item

    assert list(threads.in_threads(run, range(4), 2)) == [0, 10, 20, 30]


def test_what_has_not_begun_when_the_caller_stops_is_never_begun():
    begun = []

    def run(item):
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        time.sleep(0.1)

    with pytest.raises(ValueError, match="the first"):
        list(threads.in_threads(run, range(50), 1))
    assert len(begun) < 50


def test_small_states_are_worked_on_by_all_cores_and_large_ones_one_at_a_time(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    small = {"params": jax.numpy.zeros(5), "rounds": 2}
    assert threads.num_at_once(small) == 3
    assert threads.num_at_once((small, np.zeros(2**25 + 1, np.float32))) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert threads.num_at_once(small) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert threads.num_at_once(small) == 1
