"""Every rule of funcnet under its own checker: is it proved, how accurate is it, what does it cost?

    python scripts/compare_rules.py [--rows 256] [--columns 512] [--rounds 40] [--write]

Both columns of a pair are by hand and by autodiff of the same plain forward (`funcnet.autodiff`).
Error: root mean square over eight random cotangents, in units in the last place of the root mean
square of the cotangent; the worst argument. Kept: bytes between the two passes that are not
arguments. Time: value and gradient in one compiled program, the median and the quartiles of the
ratio, taken in turns. `--write` puts the table into README.md.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import readme
from bench_step import machine
from command_line import check_writable, command, parse

from funcnet import RULES, check_rule, ops, profile_rule
from funcnet.check.report import number


@dataclasses.dataclass(frozen=True)
class Config:
    """Checks and measures every rule."""

    rows: int = 256
    """Examples, an even number."""
    columns: int = 512
    """Features or classes of an example, an even number."""
    rounds: int = 40
    """How often each way to differentiate gets its turn."""
    write: bool = False
    """Whether to put the table into README.md."""


class Call(NamedTuple):
    """A rule at certain arguments."""

    args: tuple[Any, ...]
    static: Mapping[str, Any] = MappingProxyType({})


def calls(n: int, c: int) -> dict[str, Call]:
    """Arguments for every rule, on n rows and c columns, both even."""
    keys = iter(jax.random.split(jax.random.key(0), 32))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    x, y, z = normal(n, c), normal(n, c), normal(n, c)
    w, column, key = normal(c, c) / c**0.5, jnp.ones(c), next(keys)
    p, t = jax.nn.softmax(x), jax.nn.softmax(y)
    labels, weight = jnp.arange(n, dtype=jnp.int32) % c, jnp.float32(0.01)
    image, heads = x.reshape(n // 2, 2, c // 2, 2), [a.reshape(n // 2, 2, c) for a in (x, y, z)]
    kernel, window = normal(2, 2, 2, 2), {"window": (2, 2)}
    d = max(c // 8, 2)  # a row is a step of the recurrent networks
    xs, h0, scale = x[:, :d], normal(d), d**-0.5
    gates = lambda k: (normal(d, k * d) * scale, normal(d, k * d) * scale, normal(k * d))
    elementwise = (
        "identity step sigmoid tanh relu leaky_relu relu6 elu selu gelu silu mish softplus "
        "log_sigmoid hard_sigmoid hard_tanh hard_silu softmax log_softmax"
    )
    return {name: Call((x,)) for name in elementwise.split()} | {
        "swiglu": Call((x, y)),
        "geglu": Call((x, y)),
        "logsumexp": Call((x,), {"axis": -1}),
        "affine": Call((x, w, column)),
        "batch_norm": Call((x, column, column)),
        "batch_norm_inference": Call((x, column, column, column, column)),
        "layer_norm": Call((x, column, column)),
        "rms_norm": Call((x, column)),
        "group_norm": Call((x, column, column), {"groups": 2}),
        "dropout": Call((x, key), {"rate": 0.2}),
        "mean_squared_error": Call((x, y)),
        "sum_squared_error": Call((x, y)),
        "huber": Call((x, y)),
        "cross_entropy": Call((p, t)),
        "kl_divergence": Call((jnp.log(p), t)),
        "sigmoid_binary_cross_entropy": Call((x, t)),
        "softmax_cross_entropy": Call((x, labels)),
        "linear_cross_entropy": Call((x, w, labels)),
        "l1_penalty": Call(({"w": w, "b": column}, weight)),
        "l2_penalty": Call(({"w": w, "b": column}, weight)),
        "elastic_net_penalty": Call(({"w": w, "b": column}, weight, weight)),
        "embedding": Call((labels % n, x)),
        "conv": Call((image, kernel)),
        "conv_transpose": Call((image, kernel), {"strides": 2}),
        "depthwise_conv": Call((image, kernel[0])),
        "max_pool": Call((image,), window),
        "avg_pool": Call((image,), window),
        "global_max_pool": Call((image,)),
        "global_avg_pool": Call((image,)),
        "dot_product_attention": Call((*heads,), {"causal": True}),
        "rope": Call((heads[0], jnp.arange(n // 2))),
        "rnn": Call((xs, h0, *gates(1))),
        "lstm": Call((xs, h0, h0, *gates(4))),
        "gru": Call((xs, h0, *gates(3), normal(3 * d))),
        "linear_recurrence": Call((jax.nn.sigmoid(x), y, normal(c))),
    }


def row(name: str, config: Config) -> str:
    """One line of the table. A small input proves; a large one is measured."""
    small, large = (calls(n, c)[name] for n, c in ((8, 6), (config.rows, config.columns)))
    f = getattr(ops, name)
    report = check_rule(f, *small.args, **small.static)
    p = profile_rule(f, *large.args, rounds=config.rounds, **large.static)
    low, median, high = p.hand.ratio
    return " | ".join(
        [
            f"| `{name}`",
            "proved" if report.ok else "refuted",
            f"{number(p.hand.rms_ulp)}",
            f"{number(p.autodiff.rms_ulp)}",
            f"{p.hand.kept_bytes / 1000:,.1f}",
            f"{p.autodiff.kept_bytes / 1000:,.1f}",
            f"{median:.2f} ({low:.2f}, {high:.2f}) |",
        ]
    )


@command("compare_rules")
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and writes it into README.md if asked to; returns the exit status."""
    config = parse(Config, argv)
    for option, least, step in (("rows", 2, 2), ("columns", 4, 2), ("rounds", 1, 1)):
        value = getattr(config, option)
        if value < least or value % step:
            what = "an even number of" if step == 2 else "a number of"
            raise ValueError(f"--{option} must be {what} at least {least}, got {value}")
    if config.write:
        check_writable("--write", readme.page("compared"))
    names = calls(2, 2)
    assert set(names) == set(RULES), set(names) ^ set(RULES)
    versions = machine()
    where = f"{versions['CPU']}, {versions['device']}, jax {versions['jax']}"
    lines = [
        f"{config.rows} × {config.columns} in float32 on {where}; rnn, lstm and gru have an eighth "
        "of the columns.",
        "",
        "| rule | checker | ulp by hand | ulp autodiff | kB kept by hand | kB autodiff | "
        "time / autodiff |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        lines.append(row(name, config))
        print(lines[-1], flush=True)
    text = "\n".join(lines)
    if config.write:
        readme.write("compared", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
