"""Evaluate a traced function with some of its equations replaced, at any depth.

The checker uses this for the autodiff twin of a function, in which each `custom_vjp` call is
replaced by its plain forward, and for the same function in perturbed-rounding arithmetic
(`funcnet.check.rounding`).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.source_info_util as source
from jax.interpreters.partial_eval import dce_jaxpr

from funcnet.rule import autodiff

Path_ = tuple[int, ...]  # of an equation: its index in each jaxpr on the way down to it
Rewrite = Callable[[Any, Path_, list[Any]], list[Any] | None]
"""(equation, path, inputs) -> outputs, or None to leave the equation unchanged."""


class Site(NamedTuple):
    """A call of a function with a hand-written rule."""

    path: Path_
    rule: str  # the name of the function
    where: str  # the line that calls it, "file.py:12"
    arguments: tuple[str, ...]  # one name per leaf of its arguments


def trace(f: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """The jaxpr of f and the structure of its output."""
    jaxpr, out = jax.make_jaxpr(f, return_shape=True)(*args)
    return jaxpr, jax.tree.structure(out)


def _every(_: Site) -> bool:
    return True


def twin(f: Callable[..., Any], replaced: Callable[[Site], Any] = _every) -> Any:
    """The function f with the rules at selected sites replaced by autodiff.

    `replaced(site)` is True, False, or a set of argument indices. With a set, these arguments get
    their cotangents from autodiff and all other arguments from the rule.
    """

    @functools.wraps(f)
    def g(*args: Any) -> Any:
        jaxpr, tree = trace(autodiff(f) if replaced is _every else f, *args)

        def rewrite(eqn: Any, path: Path_, inputs: list[Any]) -> list[Any] | None:
            plain = plain_forward(eqn)
            if plain is None:
                return None
            choice = replaced(site(eqn, path))
            if choice is False:
                return None
            # The plain forward of a rule may call other rules, which are separate sites.
            auto = lambda *xs: evaluate(plain, rewrite, xs, path, has_rule)
            if choice is True:
                return auto(*inputs)
            hand = lambda *xs: bind(eqn, list(xs))
            return _merge(hand, auto, frozenset(choice))(*inputs)

        return jax.tree.unflatten(
            tree, evaluate(jaxpr, rewrite, jax.tree.leaves(args), (), has_rule)
        )

    return g


def _merge(hand: Any, auto: Any, from_auto: frozenset[int]) -> Any:
    """A function with the cotangents of `auto` for arguments in `from_auto`, else of `hand`."""
    merged = jax.custom_vjp(lambda *xs: auto(*xs))

    def fwd(*xs: Any) -> Any:
        _, by_auto = jax.vjp(auto, *xs)
        out, by_hand = jax.vjp(hand, *xs)
        return out, (by_hand, by_auto)

    def bwd(pullbacks: Any, dout: Any) -> Any:
        pairs = zip(*(pull(dout) for pull in pullbacks), strict=True)
        return tuple(a if i in from_auto else h for i, (h, a) in enumerate(pairs))

    merged.defvjp(fwd, bwd)
    return merged


def sites(f: Callable[..., Any], *args: Any) -> list[Site]:
    """Every call of a hand-written rule in f, at any depth, in the order of evaluation.

    Calls inside the plain forward of another rule are left out, because the outer rule is used.

    Raises:
      TypeError: If f differentiates a rule in forward mode, which fails when f is run.
    """
    jaxpr, _ = trace(f, *args)
    if any(eqn.primitive.name == "custom_lin" for eqn in equations(jaxpr)):
        raise TypeError(
            "a hand-written rule has no forward mode (jax.jvp, jax.jacfwd, jax.linearize); "
            "use funcnet.autodiff(f), which has one"
        )
    return list(_sites(jaxpr, ()))


def reaches(f: Callable[..., Any], *args: Any, tangents: bool = False) -> bool:
    """Whether an output of f depends on a hand-written rule, of cotangents or of `tangents`."""
    jaxpr = trace(f, *args)[0].jaxpr
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    if tangents:
        return any(plain_tangents(eqn) for eqn in equations(used))
    return next(_sites(used, ()), None) is not None


def equations(closed: Any, *, of_rules: bool = False) -> Iterator[Any]:
    """The equations of a jaxpr, at any depth, and with `of_rules` those of plain forwards too."""
    for eqn in opened(closed).eqns:
        yield eqn
        plain = plain_forward(eqn) if of_rules else None
        for inner in inner_jaxprs(eqn) if plain is None else [plain]:
            yield from equations(inner, of_rules=of_rules)


def _sites(closed: Any, path: Path_) -> Iterator[Site]:
    for i, eqn in enumerate(opened(closed).eqns):
        here = (*path, i)
        if plain_forward(eqn) is not None:
            yield site(eqn, here)
        for j, inner in enumerate(inner_jaxprs(eqn)):
            yield from _sites(inner, (*here, j))


def site(eqn: Any, path: Path_) -> Site:
    """The `Site` of an equation that calls a rule."""
    info = plain_forward(eqn).jaxpr.debug_info
    thunk = eqn.params.get("fwd_jaxpr_thunk")
    names = thunk.debug_info.arg_names if thunk else info.arg_names
    count = len(eqn.invars)
    names = tuple(names or ())
    consts = tuple(f"closed over [{i}]" for i in range(max(0, count - len(names))))
    return Site(path, info.func_name, _where(eqn, info), (consts + names)[:count])


def _where(eqn: Any, debug_info: Any) -> str:
    """The innermost line outside funcnet that led to the equation: "file.py:12"."""
    frames = source.summarize(eqn.source_info, num_frames=100).split("\n")
    places = [frame.rsplit(" (", 1)[0].rsplit(":", 1)[0] for frame in frames if ":" in frame]
    own = str(Path(__file__).parents[1])
    users = [p for p in places if not p.startswith(own)]
    defined = debug_info.func_src_info.rpartition(" at ")[2]  # for jit of the rule itself
    place = users[-1] if users else defined
    file, _, line = place.rpartition(":")
    return f"{_relative(file)}:{line}" if file else place


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def plain_forward(eqn: Any) -> Any:
    """The jaxpr of the plain forward if the equation is a call of a rule, else None."""
    if eqn.primitive.name.startswith("custom_vjp_call"):
        return eqn.params["call_jaxpr"]
    prim = eqn.params.get("_prim")  # with JAX_CUSTOM_VJP3=1
    if eqn.primitive.name == "call_hi_primitive" and hasattr(prim, "traced"):
        return prim.traced.jaxpr
    return None


class PlainCall(NamedTuple):
    """A jaxpr and its inputs."""

    jaxpr: Any
    inputs: Sequence[Any]


def plain_tangents(eqn: Any, inputs: Sequence[Any] = ()) -> PlainCall | None:
    """The plain function of a call that has a rule for tangents, at these inputs, else None."""
    if eqn.primitive.name == "custom_jvp_call":
        return PlainCall(eqn.params["call_jaxpr"], inputs)
    if eqn.primitive.name == "custom_linear_solve":
        lengths = eqn.params["const_lengths"]
        solve = lengths.matvec + lengths.vecmat
        start = solve + lengths.solve + lengths.transpose_solve
        own = (*inputs[solve : solve + lengths.solve], *inputs[start:])
        return PlainCall(eqn.params["jaxprs"].solve, own)
    return None


def calls_tangents(f: Callable[..., Any], *args: Any) -> bool:
    """Whether f calls a function with a rule for tangents."""
    return any(plain_tangents(eqn) for eqn in equations(trace(f, *args)[0]))


def has_rule(closed: Any) -> bool:
    """Whether a jaxpr calls a rule, at any depth."""
    return next(_sites(closed, ()), None) is not None


# The parameters that hold the inner jaxprs of an equation, in the order that `_rebuild` expects.
INNER = {
    "jit": ["jaxpr"],
    "closed_call": ["call_jaxpr"],
    "scan": ["jaxpr"],
    "while": ["cond_jaxpr", "body_jaxpr"],
    "cond": ["branches"],
    "remat2": ["jaxpr"],
    "checkpoint": ["jaxpr"],
    "shard_map": ["jaxpr"],
    "custom_jvp_call": ["call_jaxpr"],
}
INNER["pjit"] = INNER["jit"]


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs in an equation that `evaluate` can enter."""
    found: list[Any] = []
    for name in INNER.get(eqn.primitive.name, ()):
        value = eqn.params[name]
        found.extend(value if isinstance(value, tuple) else [value])
    return found


def opened(jaxpr: Any) -> Any:
    """The jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr


def evaluate(
    closed: Any,
    rewrite: Rewrite,
    inputs: Sequence[Any],
    path: Path_,
    enter: Callable[[Any], bool],
) -> list[Any]:
    """Evaluates a jaxpr, offering each equation to `rewrite` first; returns the outputs.

    `enter(jaxpr)` tells whether to evaluate a jaxpr inside an equation in the same way.
    """
    jaxpr, consts = opened(closed), getattr(closed, "consts", ())
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
    read = lambda v: v.val if isinstance(v, jex.Literal) else values[v]
    for i, eqn in enumerate(jaxpr.eqns):
        ins, here = [read(v) for v in eqn.invars], (*path, i)
        outs = rewrite(eqn, here, ins)
        if outs is None and any(enter(inner) for inner in inner_jaxprs(eqn)):
            run = [
                functools.partial(_run, inner, rewrite, (*here, j), enter)
                for j, inner in enumerate(inner_jaxprs(eqn))
            ]
            outs = _rebuild(eqn, run, ins)
        values.update(zip(eqn.outvars, bind(eqn, ins) if outs is None else outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _run(closed: Any, rewrite: Rewrite, path: Path_, enter: Any, *inputs: Any) -> list[Any]:
    return evaluate(closed, rewrite, inputs, path, enter)


def bind(eqn: Any, inputs: list[Any]) -> list[Any]:
    """Evaluates one equation; returns its outputs."""
    if not any(
        callable(p) or isinstance(p, jex.Jaxpr | jex.ClosedJaxpr) for p in eqn.params.values()
    ):
        outs = eqn.primitive.bind(*inputs, **eqn.params)
        return list(outs) if eqn.primitive.multiple_results else [outs]
    # Versions of JAX bind functions among the parameters differently. Evaluating a jaxpr that
    # consists of this one equation works in all of them.
    variables = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if not is_literal(v)}
    info = jex.DebugInfo("funcnet.check", str(eqn.primitive), None, None)
    one = jex.Jaxpr((), list(variables), eqn.outvars, [eqn], eqn.effects, info)
    return list(jex.jaxpr_as_fun(jex.ClosedJaxpr(one, ()))(*variables.values()))


def is_literal(v: Any) -> bool:
    """Whether an input of an equation is a literal."""
    return isinstance(v, jex.Literal)


def _rebuild(eqn: Any, run: list[Any], inputs: list[Any]) -> Any:
    """Rebuilds an equation by JAX's public function for it, with `run` as the inner jaxprs."""
    p, name = eqn.params, eqn.primitive.name
    if name in ("jit", "pjit"):
        return list(jax.jit(run[0])(*inputs))
    if name in ("closed_call", "custom_jvp_call"):
        return run[0](*inputs)
    if name in ("remat2", "checkpoint"):
        return jax.checkpoint(run[0], policy=p["policy"], prevent_cse=p["prevent_cse"])(*inputs)
    if name == "shard_map":
        return jax.shard_map(
            lambda *xs: tuple(run[0](*xs)),
            mesh=p["mesh"],
            in_specs=tuple(p["in_specs"]),
            out_specs=tuple(p["out_specs"]),
            check_vma=p["check_vma"],
            axis_names=set(p["newly_manual_axes"]),
        )(*inputs)
    if name == "cond":
        index, *operands = inputs
        if p.get("branches_platforms"):
            return _by_platform(p["branches_platforms"], run, operands)
        return jax.lax.switch(index, run, *operands)
    if name == "while":
        a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        return jax.lax.while_loop(
            lambda carry: run[0](*inputs[:a], *carry)[0],
            lambda carry: run[1](*inputs[a:b], *carry),
            inputs[b:],
        )
    a, count = scan_counts(eqn)
    b = a + count

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = run[0](*inputs[:a], *carry, *xs)
        return outs[: b - a], outs[b - a :]

    carry, ys = jax.lax.scan(
        step, inputs[a:b], inputs[b:], p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*carry, *ys]


def scan_counts(eqn: Any) -> tuple[int, int]:
    """The numbers of constants and of carried arrays of a scan."""
    p = eqn.params
    if "ft_in" in p:  # jax 0.12
        consts, carry = p["ft_in"].unpack()[:2]
        return len(consts), len(carry)
    return p["num_consts"], p["num_carry"]


def _by_platform(platforms: Sequence[Any], run: list[Any], operands: list[Any]) -> Any:
    """Rebuilds `jax.lax.platform_dependent`, whose default has None in place of its platforms.

    A branch may hold what compiles on its own platform alone.
    """
    own = {p: f for several, f in zip(platforms, run, strict=True) for p in several or ()}
    default = next((f for several, f in zip(platforms, run, strict=True) if several is None), None)
    return jax.lax.platform_dependent(*operands, default=default, **own)
