"""The forms that rules have on GPU and TPU, run on the CPU.

`jax.lax.platform_dependent` is replaced by a function that takes the branch of another platform.
"""

import contextlib

import jax
import pytest

# Rules whose program is not the same on all platforms.
DEPENDENT = [
    "avg_pool", "conv", "conv_transpose", "depthwise_conv", "dot_product_attention", "dropout",
    "embedding", "linear_cross_entropy", "max_pool", "softmax_cross_entropy",
]  # fmt: skip
PLATFORMS = ["tpu", "cuda"]
platform = jax.make_user_context(default_value="")  # part of the cache key of `jax.jit`


@contextlib.contextmanager
def as_on(name):
    """Runs what rules compute on the platform of this name."""

    def chosen(*args, default=None, **own):
        return own.get(name, default)(*args)

    with pytest.MonkeyPatch.context() as patch, platform(name):
        patch.setattr(jax.lax, "platform_dependent", chosen)
        yield
