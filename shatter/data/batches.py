"""Makes batches of few shapes: shuffled by a seed, bucketed by length, sharded and resumable."""

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shatter.data.encoding import Encoded

if TYPE_CHECKING:
    import grain


class Batch(NamedTuple):
    """B rows of K documents, right-padded to T tokens.

    No document is empty, so that every loss is finite: a row with fewer than K documents repeats
    its first one, with rank -1, and a batch with fewer than B rows repeats its first one, with
    weight 0 and all ranks -1.

    Attributes:
      tokens: int32 `[B, K, T]`: prompt, completion, padding.
      mask: bool `[B, K, T]`, true on the tokens that the loss counts: the completion with its EOS,
        without the turns that `Encoded.skipped` leaves out.
      valid: bool `[B, K, T]`, false on padding.
      ranks: int32 `[B, K]`, smaller is better; < 0 = not shown, or a repeated document (-1).
      weight: float32 `[B]`.
      row: int32 `[B]`, the index of the encoded row; -1 = the row only fills up the batch.
      all_rows: int32, the same for the whole batch, where this is one process's part of it.
    """

    tokens: np.ndarray
    mask: np.ndarray
    valid: np.ndarray
    ranks: np.ndarray
    weight: np.ndarray
    row: np.ndarray
    all_rows: np.ndarray


def length_buckets(max_length: int, *, smallest: int = 16) -> list[int]:
    """Returns lengths to pad to: powers of two times `smallest`, 1.5 times these, and the largest.

    Args:
      max_length: the largest length.
      smallest: the smallest length, even.

    Returns:
      Increasing lengths. Padding from `smallest` on to the next one adds less than half.

    Raises:
      ValueError: if a length is not positive or `smallest` is odd.
    """
    if max_length < 1 or smallest < 2 or smallest % 2:
        found = f"{max_length} and {smallest}"
        raise ValueError(f"expected max_length >= 1 and an even smallest >= 2, found {found}")
    lengths = []
    length = smallest
    while length < max_length:
        lengths += [length, length * 3 // 2]
        length *= 2
    return [length for length in lengths if length < max_length] + [max_length]


def plan_batches(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    buckets: Sequence[int],
) -> list[tuple[int, np.ndarray]]:
    """Plans the batches of an epoch: every row once, rows of similar length together.

    Rows that are too few for a batch of their bucket go to the next bucket, so that at most one
    batch of an epoch is partly filled; in a nearly empty batch a row would count for more. This
    pads no more than a partly filled batch in every bucket would.

    The order is a hash of seed, epoch and row, so that it is the same in every version of every
    library and a run can be resumed at any time.

    Args:
      lengths: the length of every row, in tokens.
      batch_size: B.
      seed: the seed of the order.
      epoch: the number of the epoch, from 0.
      buckets: increasing lengths to pad to.

    Returns:
      The bucket and the rows, int32 `[B]`, of every batch; -1 = the row only fills up the batch.

    Raises:
      ValueError: if the batch size is not positive, there are no rows, or one fits no bucket.
    """
    lengths = np.asarray(lengths)
    if batch_size < 1 or not lengths.size:
        found = f"{batch_size} and {lengths.size}"
        raise ValueError(f"expected batch_size >= 1 and at least one row, found {found}")
    if lengths.max() > buckets[-1]:
        row = lengths.argmax()
        raise ValueError(f"row {row} has {lengths[row]} tokens, the largest bucket {buckets[-1]}")
    order = _shuffled(lengths.size, seed, epoch, 0).astype(np.int32)
    bucket_of = np.searchsorted(buckets, lengths[order])
    batches, left = [], order[:0]
    for number, bucket in enumerate(buckets):
        rows = np.concatenate([order[bucket_of == number], left])  # those left over are shorter
        num_whole = len(rows) - len(rows) % batch_size
        batches += [(bucket, part) for part in rows[:num_whole].reshape(-1, batch_size)]
        left = rows[num_whole:]
    if len(left):
        longest = buckets[np.searchsorted(buckets, lengths[left].max())]
        batches.append((longest, np.pad(left, (0, batch_size - len(left)), constant_values=-1)))
    return [batches[n] for n in _shuffled(len(batches), seed, epoch, 1)]


def _shuffled(num: int, *words: int) -> np.ndarray:
    """Returns a permutation of `num` numbers that the words decide, by the generator SplitMix64.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, figure 16,
    https://doi.org/10.1145/2660193.2660195.
    """
    increment, state = np.uint64(0x9E3779B97F4A7C15), np.zeros(1, np.uint64)
    for word in (*words, None):
        steps = np.arange(1, num + 1) if word is None else np.array([word % 2**63 + 1])
        state = state + increment * steps.astype(np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return np.argsort(state, kind="stable")


def collate(
    encoded: Sequence[Encoded],
    rows: Sequence[int] | np.ndarray,
    *,
    length: int,
    num_slots: int,
    fill: int | None = None,
) -> Batch:
    """Pads rows to one shape.

    Args:
      encoded: all rows.
      rows: the indices of the rows of the batch, `[B]`; -1 = a row that only fills up the batch.
      length: T.
      num_slots: K.
      fill: the index of the row to fill up with; None = the first of `rows`.

    Returns:
      The batch.

    Raises:
      ValueError: if a row has more than `length` tokens or `num_slots` completions.
    """
    rows = np.asarray(rows, np.int32)
    fill = rows[0] if fill is None else fill
    shape = (len(rows), num_slots)
    tokens = np.zeros((*shape, length), np.int32)
    ends, ranks = np.zeros(shape, int), np.full(shape, -1, np.int32)
    starts, weight = np.zeros(shape, int), np.zeros(len(rows), np.float32)
    for b, number in enumerate(rows):
        row = encoded[number if number >= 0 else fill]
        if row.length > length or len(row.completions) > num_slots:
            raise ValueError(
                f"{row.row.source}: expected at most {num_slots} completions and {length} tokens, "
                f"found {len(row.completions)} and {row.length}"
            )
        for k in range(num_slots):
            slot = k if k < len(row.completions) else 0
            completion = row.completions[slot]
            starts[b, k] = len(row.prompt) + (row.skipped[slot] if row.skipped else 0)
            ends[b, k] = len(row.prompt) + len(completion)
            tokens[b, k, : ends[b, k]] = np.concatenate([row.prompt, completion])
        if number >= 0:
            weight[b], ranks[b, : len(row.ranks)] = row.weight, row.ranks
    positions = np.arange(length)
    valid = positions < ends[..., None]
    mask = valid & (positions >= starts[..., None])
    return Batch(tokens, mask, valid, ranks, weight, rows, rows)


def blank(batch: Batch) -> Batch:
    """Returns a batch of the same shapes whose rows all have weight 0.

    Args:
      batch: any batch.

    Returns:
      The batch, from which nothing is learned.
    """
    return batch._replace(
        ranks=np.full_like(batch.ranks, -1),
        weight=np.zeros_like(batch.weight),
        row=np.full_like(batch.row, -1),
        all_rows=np.full_like(batch.all_rows, -1),
    )


def batches(
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    seed: int,
    max_length: int,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    buckets: Sequence[int] | None = None,
    num_ahead: int = 4,
) -> "grain.DatasetIterator[Batch]":
    """Returns an iterator over batches, of which a thread prepares a few ahead, through grain.

    With the same arguments, `get_state()` and `set_state()` of the iterator resume at the exact
    batch. Every process gets its part of each global batch, in the order of the processes.

    Args:
      encoded: all rows, the same in every process.
      batch_size: B of the global batch.
      seed: the seed of the order.
      max_length: the largest length of a document.
      num_epochs: the number of passes over the rows; None = without end.
      process_index: the number of this process, from 0.
      process_count: the number of processes.
      buckets: lengths to pad to; None = `length_buckets(max_length)`.
      num_ahead: how many batches are prepared ahead; 0 = none.

    Returns:
      The iterator over `Batch`es.

    Raises:
      ImportError: if grain is missing.
      ValueError: if a size is out of range.
    """
    if process_count < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            "expected a batch_size that process_count divides and 0 <= process_index < "
            f"process_count, found {batch_size}, {process_count} and {process_index}"
        )
    try:
        import grain
    except ImportError as error:
        raise ImportError("batches need grain: pip install 'shatter-lm[data]'") from error
    lengths = [row.length for row in encoded]
    plan = functools.lru_cache(2)(
        lambda epoch: plan_batches(
            lengths,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            buckets=length_buckets(max_length) if buckets is None else buckets,
        )
    )
    num_a_epoch, size = len(plan(0)), batch_size // process_count
    num_slots = max(len(row.completions) for row in encoded)

    def batch(number: int) -> Batch:
        length, rows = plan(number // num_a_epoch)[number % num_a_epoch]
        own = rows[process_index * size :][:size]
        part = collate(encoded, own, length=length, num_slots=num_slots, fill=rows[0])
        return part._replace(all_rows=rows)

    num = sys.maxsize if num_epochs is None else num_epochs * num_a_epoch
    ahead = grain.ReadOptions(num_threads=min(num_ahead, 1), prefetch_buffer_size=num_ahead)
    return iter(grain.MapDataset.range(num).map(batch).to_iter_dataset(ahead))
