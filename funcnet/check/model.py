"""`check_model`: find the rules that make the gradient of a function wrong."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnet.check import criterion
from funcnet.check.failures import classify, line
from funcnet.check.programs import QUICK, Program, run_all
from funcnet.check.reference import Outputs, cotangents, pullback, wide_arithmetic, widened
from funcnet.check.report import Culprit, Log, Report
from funcnet.check.rounding import noise
from funcnet.check.subject import ruled_subject, undecided_at_once
from funcnet.check.tracing import Site, sites, twin

Sites = frozenset[tuple[int, ...]]  # identified by their paths

AT_ONCE = 16  # limit for testing calls one by one; above it, whole rules are tested first


class _Compared(NamedTuple):
    """A comparison of cotangents and outputs of some version of the function with autodiff."""

    error: float  # the largest relative error of a leaf
    worst: tuple[criterion.Worst, ...]  # one per leaf

    @property
    def wrong(self) -> bool:
        return any(w.ratio > 1 for w in self.worst)


@jax.disable_jit(False)
def check_model(f: Callable[..., Any], *args: Any, **static: Any) -> Report:
    """Proves or refutes the gradient of a function that calls rules, and names the rule to blame.

    The gradient with all rules active is compared with autodiff of the plain forwards, leaf by
    leaf, in float64. If they differ, every call of a rule is tested alone, with all other calls
    replaced by autodiff, and so is each of its cotangents. A call that is still wrong is a culprit.
    Calls are found at any depth: in jit, scan, cond, while, remat, vmap and shard_map.

    Args:
      f: Any function, for example the loss of a model.
      *args: The positional arguments of f, as in `check_rule`.
      **static: The keyword arguments of f, as in `check_rule`.

    Returns:
      A `Report`. `.culprits` lists every wrong cotangent of the calls whose rule is wrong, worst
      first, each with `.rule` (the function's name), `.where` (`"file.py:12"`), `.argument` and
      `.error`. `.findings` lists the leaves of the gradient that are wrong.

    Raises:
      TypeError: If the arguments do not fit f.
      ValueError: If f calls no function with a hand-written rule, or has no floating argument.

    >>> import jax, jax.numpy as jnp
    >>> from funcnet import ops
    >>> @jax.custom_vjp
    ... def double(x):
    ...     return 2 * x
    >>> double.defvjp(lambda x: (2 * x, None), lambda _, dy: (dy,))
    >>> report = check_model(lambda x: ops.sigmoid(double(x)).sum(), jnp.ones(3))
    >>> [(c.rule, c.argument) for c in report.culprits]
    [('double', 'x')]
    """
    s = ruled_subject("check_model", f, args, static)
    log = Log(s)
    nothing = undecided_at_once(s)
    if nothing:
        log.undecide(nothing)
        return log.report()
    try:
        with wide_arithmetic(), np.errstate(all="ignore"):
            model = _Model(log, tuple(map(widened, s.floats)))
            refused = model.run()
            if refused is None:
                model.check()
                return log.report()
        log.warn(
            f"compared in {s.floats[0].dtype} only: in float64 {s.name} raises {line(refused)}"
        )
        with np.errstate(all="ignore"):
            model = _Model(log, s.floats)
            raised = model.run()
            if raised is not None:
                log.warnings.clear()
                log.findings.append(classify(raised, "error", s.names))
            model.check()
        return log.report()
    finally:
        log.progress.end()


class _Model:
    """One run of `check_model`, with the arguments in one dtype."""

    def __init__(self, log: Log, floats: tuple[Any, ...]):
        self.log, self.s, self.floats = log, log.subject, floats
        self.plain: Outputs = twin(self.s.outputs)
        self.unit = max(criterion.eps(leaf.dtype) for leaf in self.s.floats)

    def run(self) -> Exception | None:
        """Computes the whole gradient by the rules and by autodiff; returns the exception, if any.

        In the dtype of the arguments, an exception without the rules is raised as a ValueError.
        """
        s = self.s
        self.log.progress("the whole gradient")
        try:
            self.at = (self.floats, s.others, cotangents(self.plain, self.floats, s.others, 0))
            self.calls = {site.path: site for site in sites(s.outputs, self.floats, s.others)}
        except Exception as e:
            if self.floats is s.floats:
                raise ValueError(f"check_model: {s.name} without its rules raises {line(e)}") from e
            return e
        pulls = pullback(s.outputs), pullback(self.plain)
        programs: list[Program] = [(pull, self.at) for pull in pulls]
        programs += [(lambda *at, pull=pull: noise(pull, *at), self.at) for pull in pulls]
        hand, auto, noise_hand, noise_auto = run_all(programs, QUICK)
        if isinstance(auto, Exception):
            if self.floats is s.floats:
                raise ValueError(
                    f"check_model: autodiff of {s.name} without its rules raises {line(auto)}"
                )
            return auto
        self.auto, self.noise, self.hand = self._leaves(auto), self._leaves(noise_auto), hand
        if isinstance(hand, Exception):
            return hand
        pairs = zip(self.noise, self._leaves(noise_hand), strict=True)
        self.noise = tuple(np.maximum(a, b) for a, b in pairs)
        return None

    def check(self) -> None:
        """Compares with autodiff; if anything is wrong, tests every call alone."""
        if not isinstance(self.hand, Exception):
            self._find(self._compare(self.hand))
            outputs = self.auto[len(self.floats) :]
            if not any(np.isfinite(y).any() for y in outputs if y.size):
                self.log.undecide("the value is not finite, so that no gradient was compared")
        if self.log.findings:
            self.log.culprits += self._culprits()

    def _leaves(self, result: Any) -> tuple[np.ndarray, ...]:
        """The cotangents of the floats, followed by the outputs."""
        out, dargs = result
        return tuple(map(criterion.as_wide, (*dargs, *out)))

    def _compare(self, result: Any) -> _Compared:
        """Compares a result with autodiff; an exception counts as an infinite error."""
        if isinstance(result, Exception):
            return _Compared(
                float("inf"), (criterion.Worst(np.inf, (), np.nan, np.nan, np.ones(())),)
            )
        found, error = [], 0.0
        dtypes = [leaf.dtype for leaf in (*self.floats, *self.at[2])]
        for h, t, n, dtype in zip(self._leaves(result), self.auto, self.noise, dtypes, strict=True):
            found.append(criterion.worst(h, t, criterion.algebra(t, n, n, dtype, self.unit)))
            finite = np.isfinite(t)
            size = np.abs(t[finite]).max(initial=0.0)
            d = np.abs(h - t)[finite].max(initial=0.0)
            error = max(error, d / size if size else float(d > 0) and np.inf)
        return _Compared(float(error), tuple(found))

    def _find(self, compared: _Compared) -> None:
        """Records the wrong leaves of the gradient and of the value."""
        names = (*self.s.names, *self.s.output_names())
        for i, (name, w) in enumerate(zip(names, compared.worst, strict=True)):
            is_gradient = i < len(self.s.names)
            if is_gradient:
                self.log.row(name, error=w.ratio)
            if w.ratio > 1:
                kind = "gradient" if is_gradient else "value"
                kind = kind if np.isfinite(w.actual) else "nonfinite"
                self.log.find(kind, name, f"{w.place} according to autodiff", w.ratio)

    def _culprits(self) -> list[Culprit]:
        """The calls that are wrong when tested alone, worst first.

        If there are many calls, whole rules are tested first and then the calls of wrong rules.
        """
        by_line = self._grouped(lambda site: (site.rule, site.where), self.calls.values())
        if len(by_line) > AT_ONCE:
            by_rule = self._grouped(lambda site: site.rule, self.calls.values())
            self.log.progress(f"{len(by_rule)} rules one by one")
            wrong = [g for g, c in self._each_by_hand(by_rule.values()) if c.wrong]
            left = [self.calls[path] for group in wrong for path in sorted(group)]
            by_line = self._grouped(lambda site: (site.rule, site.where), left)
        self.log.progress(f"{len(by_line)} calls one by one")
        found = [
            culprit
            for group, compared in self._each_by_hand(by_line.values())
            if compared.wrong
            for culprit in self._wrong_cotangents(group, compared)
        ]
        return sorted(found, key=lambda c: -c.error)

    def _grouped(self, key: Callable[[Site], Any], calls: Iterable[Site]) -> dict[Any, Sites]:
        groups: dict[Any, set[tuple[int, ...]]] = {}
        for site in calls:
            groups.setdefault(key(site), set()).add(site.path)
        return {k: frozenset(paths) for k, paths in groups.items()}

    def _each_by_hand(self, groups: Iterable[Sites]) -> list[tuple[Sites, _Compared]]:
        """Compares each group of calls alone, with all other calls replaced by autodiff."""
        groups = list(groups)
        alone = [twin(self.s.outputs, lambda site, g=g: site.path not in g) for g in groups]
        results = run_all(((pullback(outputs), self.at) for outputs in alone), QUICK)
        return [(g, self._compare(r)) for g, r in zip(groups, results, strict=True)]

    def _wrong_cotangents(self, group: Sites, compared: _Compared) -> list[Culprit]:
        """The wrong cotangents of a rule, found by testing each alone; its output if none is."""
        site = self.calls[min(group)]
        numbers = range(len(site.arguments))

        def only(j: int) -> Any:
            others = frozenset(numbers) - {j}
            return twin(self.s.outputs, lambda site: others if site.path in group else True)

        results = run_all(((pullback(only(j)), self.at) for j in numbers), QUICK)
        errors = [(self._compare(r), site.arguments[j]) for j, r in enumerate(results)]
        wrong = [(name, c.error) for c, name in errors if c.wrong and np.isfinite(c.error)]
        value_is = any(w.ratio > 1 for w in compared.worst[len(self.floats) :])
        if value_is or not wrong:
            wrong = [("out", compared.error)]
        return [Culprit(site.rule, site.where, name, error) for name, error in wrong]
