"""How many logits are held at once, and from how many on they are not multiplied out."""

import jax

SLICE_SIZE = 2**20
"""The largest number of logits that are held at once: rows times columns of a slice.

Log-probs and gradients for features and vocabulary, as a multiple of the time with whole logits, on
one core of a shared CPU (32 MiB of L3 cache) with slices of 2^18, 2^20, 2^22 and 2^24:
504 x 8,192 logits at width 128: 0.51, 0.54, 0.61, not measured; 1,008 x 49,152 at width 576: 0.90,
0.86, 0.82, 1.02; 504 x 50,257 at width 768: 1.15, 1.12, 1.38, not measured; 1,008 x 262,144 at
width 640: not measured, 0.89, 0.83, 0.90. From 2^20 on, vmapped members multiply a slice's memory.
"""

ACCELERATOR_SLICE_SIZE = 2**25
"""The same on accelerators, whose products of few columns waste most of the device.

A DPO step of GPT-2 small in bfloat16 (16,384 x 50,257 logits) took 126, 75 and 50 ms on one H200
with slices of 2^20, 2^23 and 2^25, and 52 ms with whole logits, which take 9 GB more.
"""

MULTIPLIED_OUT_UP_TO = 2**25
"""The largest number of logits that `shatter.models.lazy_logits` multiplies out.

Slices cost a second product with the vocabulary. It is about as long as what they save where the
logits take 100 MB, as in a small step of GPT-2 small (504 x 50,257).
"""


def slice_size() -> int:
    """Returns the largest number of logits that are held at once on the devices in use.

    Returns:
      `SLICE_SIZE`, or `ACCELERATOR_SLICE_SIZE` if jax's default devices are no CPUs.
    """
    return SLICE_SIZE if jax.default_backend() == "cpu" else ACCELERATOR_SLICE_SIZE
