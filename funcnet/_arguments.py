"""Shared argument checks: each error is one line that names function, argument and value.

The checks run while JAX traces, so they cost nothing in a compiled program. Traced numbers pass.
"""

import inspect
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_number(
    f: str,
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raises unless `value` is a finite real number in a range; it may be a scalar array.

    Raises:
      TypeError: If it is not a real number.
      ValueError: If it is nan, infinite or outside the range.

    >>> check_number("adam", "b1", 1.0, at_least=0, below=1)
    Traceback (most recent call last):
    ValueError: adam: b1 must be a number in [0, 1), got 1.0
    """
    if not is_number(value):
        raise TypeError(f"{f}: {name} must be a number, got {describe(value)}")
    if isinstance(value, Tracer):
        return
    number: Any = as_number(value)
    inside = at_least <= number <= at_most and above < number < below
    if not (math.isfinite(number) and inside):
        raise ValueError(
            f"{f}: {name} must be {_range(at_least, above, at_most, below)}, got {number}"
        )


def is_number(value: Any) -> bool:
    """Whether `value` is one real number, traced or not; booleans are none."""
    if isinstance(value, Tracer):
        kinds = (jnp.integer, jnp.floating)
        return value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return as_number(value) is not None


def as_number(value: Any) -> int | float | None:
    """Converts a real number to a Python number; None for anything else, booleans included."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | float):
        return value
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape != ():
        return None
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    return value.item() if real else None


def _range(at_least: float, above: float, at_most: float, below: float) -> str:
    """Describes a range: "a number in [0, 1)", "a number above 0", "a finite number"."""
    has_low, has_high = max(at_least, above) > -math.inf, min(at_most, below) < math.inf
    if has_low and has_high:
        left = f"[{at_least:g}" if at_least > -math.inf else f"({above:g}"
        right = f"{at_most:g}]" if at_most < math.inf else f"{below:g})"
        return f"a number in {left}, {right}"
    if has_low:
        least = f"of at least {at_least:g}" if at_least > -math.inf else f"above {above:g}"
        return f"a finite number {least}"
    if has_high:
        most = f"of at most {at_most:g}" if at_most < math.inf else f"below {below:g}"
        return f"a finite number {most}"
    return "a finite number"


def check_int(f: str, name: str, value: Any, *, at_least: int | None = None) -> int:
    """Checks an integer `value` and returns it as a Python int.

    Raises:
      TypeError: If it is not an integer; a boolean does not count as one.
      ValueError: If it is less than `at_least`.

    >>> check_int("Dense", "units", 2.5, at_least=1)
    Traceback (most recent call last):
    TypeError: Dense: units must be an integer of at least 1, got 2.5
    """
    least = "" if at_least is None else f" of at least {at_least}"
    number = None if isinstance(value, Tracer) else as_int(value)
    if number is None:
        raise TypeError(f"{f}: {name} must be an integer{least}, got {describe(value)}")
    if at_least is not None and number < at_least:
        raise ValueError(f"{f}: {name} must be an integer{least}, got {number}")
    return number


def as_int(value: Any) -> int | None:
    """Converts any integer to a Python int; None for anything else, booleans included."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_count(f: str, name: str, value: Any) -> None:
    """Raises a TypeError unless `value` is one integer, traced or not, such as a number of steps.

    >>> check_count("adam", "state.count", None)
    Traceback (most recent call last):
    TypeError: adam: state.count must be an integer of shape (), got None
    """
    shape, dtype = jnp.shape(value) if is_array(value) else None, getattr(value, "dtype", None)
    is_int = as_int(value) is not None if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    if shape != () or not is_int:
        raise TypeError(f"{f}: {name} must be an integer of shape (), got {describe(value)}")


def check_bool(f: str, name: str, value: Any) -> None:
    """Raises a TypeError unless `value` is a Python or NumPy boolean, not a traced one.

    >>> check_bool("gelu", "approximate", "none")
    Traceback (most recent call last):
    TypeError: gelu: approximate must be True or False, got 'none'
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{f}: {name} must be True or False, got {describe(value)}")


def check_function(f: str, name: str, function: Any, arguments: int, **options: Any) -> None:
    """Raises a TypeError unless `function` takes this number of arguments and the options.

    >>> check_function("Dense", "w_init", "he", 3)
    Traceback (most recent call last):
    TypeError: Dense: w_init must be a function, got 'he'
    >>> check_function("make_step", "loss", lambda y: y, 2)
    Traceback (most recent call last):
    TypeError: make_step: loss must take 2 arguments: too many positional arguments
    """
    if not callable(function):
        raise TypeError(f"{f}: {name} must be a function, got {describe(function)}")
    try:
        inspect.signature(function).bind(*range(arguments), **options)
    except TypeError as e:
        more = f" and {', '.join(options)}" if options else ""
        plural = "s" if arguments > 1 else ""
        raise TypeError(f"{f}: {name} must take {arguments} argument{plural}{more}: {e}") from None
    except ValueError:  # a builtin function has no signature
        pass


def check_dtype(f: str, name: str, dtype: Any) -> Any:
    """Checks that `dtype` is a floating or complex dtype, and returns it as one.

    >>> check_dtype("Embedding", "dtype", "float33")
    Traceback (most recent call last):
    TypeError: Embedding: dtype must be a floating dtype, got 'float33'
    """
    try:
        found = None if is_array(dtype) or dtype is None else jnp.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or not jnp.issubdtype(found, jnp.inexact):
        raise TypeError(f"{f}: {name} must be a floating dtype, got {found or describe(dtype)}")
    return found


def check_axis(f: str, name: str, axis: Any, x: Any) -> None:
    """Raises unless `axis` is an axis of the array x, or a tuple of distinct axes.

    Raises:
      TypeError: If it is neither an integer nor a tuple of integers.
      ValueError: If x has no such axis, or an axis is named twice.

    >>> check_axis("softmax", "axis", 2, jnp.ones((3, 4)))
    Traceback (most recent call last):
    ValueError: softmax: axis must be in [-2, 2) for x of shape (3, 4), got 2
    """
    several = axis if isinstance(axis, tuple | list) else (axis,)
    numbers = [n for a in several if (n := as_int(a)) is not None]
    if len(numbers) < len(several):
        raise TypeError(f"{f}: {name} must be an integer or a tuple of them, got {describe(axis)}")
    n = len(x.shape)
    if not all(-n <= a < n for a in numbers):
        raise ValueError(
            f"{f}: {name} must be in [-{n}, {n}) for x of shape {x.shape}, got {axis}"
            if n
            else f"{f}: x must have an axis, got shape ()"
        )
    if len({a % n for a in numbers}) < len(numbers):
        raise ValueError(f"{f}: {name} must name different axes of x {x.shape}, got {axis}")


def is_array(x: Any) -> bool:
    """Whether x is an array of a dtype of JAX, a NumPy scalar or a Python number, traced or not."""
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype.kind in "biufcV" and x.dtype.names is None
    return isinstance(x, jax.Array | bool | int | float | complex)


def check_array(f: str, name: str, x: Any) -> None:
    """Raises a TypeError unless x is an array or a number.

    >>> check_array("relu", "x", [1.0])
    Traceback (most recent call last):
    TypeError: relu: x must be an array, got list
    """
    if not is_array(x):
        raise TypeError(f"{f}: {name} must be an array, got {kind(x)}")


def check_arrays(f: str, name: str, tree: Any) -> None:
    """Raises a TypeError unless the leaves of `tree` are arrays or numbers.

    >>> check_arrays("sgd", "grads", {"w": "a"})
    Traceback (most recent call last):
    TypeError: sgd: grads['w'] must be an array, got str
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        if getattr(leaf, "dtype", None) != jax.dtypes.float0:
            check_array(f, name + jax.tree_util.keystr(path), leaf)


def check_broadcasts(f: str, name: str, x: Any, whole_name: str, whole: Any) -> None:
    """Raises a ValueError unless the array x broadcasts to the shape of `whole`.

    >>> check_broadcasts("softmax", "where", jnp.ones(3), "x", jnp.ones((3, 4)))
    Traceback (most recent call last):
    ValueError: softmax: where must broadcast to the shape of x, (3, 4), got (3,)
    """
    last = whole.shape[max(0, len(whole.shape) - len(x.shape)) :]
    fits = len(x.shape) == len(last)
    if not fits or any(m not in (1, n) for m, n in zip(x.shape, last, strict=True)):
        raise ValueError(
            f"{f}: {name} must broadcast to the shape of {whole_name}, {whole.shape}, got {x.shape}"
        )


def check_real(f: str, name: str, x: Any) -> None:
    """Raises a TypeError unless x holds real numbers, integers or booleans.

    >>> check_real("huber", "t", jnp.ones(3, "complex64"))
    Traceback (most recent call last):
    TypeError: huber: t must be real, got complex64[3]
    """
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(jax.typeof(x).dtype, kind) for kind in kinds):
        raise TypeError(f"{f}: {name} must be real, got {type_name(x)}")


def check_key(f: str, key: Any, name: str = "key") -> None:
    """Raises a TypeError unless `key` is a single PRNG key of `jax.random.key` or `PRNGKey`.

    >>> check_key("dropout", 42)
    Traceback (most recent call last):
    TypeError: dropout: key must be one key of jax.random.key, got 42
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    old = dtype == jnp.uint32 and shape is not None and len(shape) == 1 and shape[0] in (2, 4)
    if not (new or old):
        got = type_name(key) if isinstance(key, Tracer) else describe(key)  # ops get it traced
        raise TypeError(f"{f}: {name} must be one key of jax.random.key, got {got}")


def check_tree(f: str, name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises a ValueError unless `tree` has the structure and the shapes of `like`.

    The message names the first leaf that is missing, unexpected, or has another shape.

    >>> check_tree("sgd", "grads", {"w": 1.0}, "params", {"w": 1.0, "b": 0.0})
    Traceback (most recent call last):
    ValueError: sgd: grads must have the structure of params; grads['b'] is missing
    """
    leaves, expected = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(t)}
        for t in (tree, like)
    )
    wrong = f"{f}: {name} must have the structure of {like_name}"
    for path in expected:
        if path not in leaves:
            raise ValueError(f"{wrong}; {name}{path} is missing")
    for path in leaves:
        if path not in expected:
            raise ValueError(f"{wrong}, which has no {name}{path}")
    if jax.tree.structure(tree) != jax.tree.structure(like):
        structures = jax.tree.structure(like), jax.tree.structure(tree)
        raise ValueError(f"{wrong}, {structures[0]}, got {structures[1]}")
    for path, leaf in leaves.items():
        shape = jnp.shape(expected[path])
        if jnp.shape(leaf) != shape:
            raise ValueError(
                f"{f}: {name}{path} must have the shape {shape} of {like_name}{path}, "
                f"got {jnp.shape(leaf)}"
            )


def type_name(x: Any) -> str:
    """Dtype and shape of an array: "float32[3,4]"."""
    dtype, shape = jax.typeof(x).dtype, jax.typeof(x).shape
    name = "key" if jnp.issubdtype(dtype, jax.dtypes.prng_key) else str(dtype)
    return f"{name}[{','.join(map(str, shape))}]"


def describe(value: Any) -> str:
    """Describes a value in a message: its repr if that is short, else its kind; arrays by type."""
    if isinstance(value, Tracer):
        return f"a traced {type_name(value)}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        scalar = value.shape == () and not isinstance(value, jax.ShapeDtypeStruct)
        return str(np.asarray(value).item()) if scalar and not is_key else type_name(value)
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text and " at 0x" not in text else kind(value)


def kind(value: Any) -> str:
    """The name of a value's type; for a class or function, its own name."""
    if value is None:
        return "None"
    if isinstance(value, type) or hasattr(value, "__name__"):
        return f"{'class' if isinstance(value, type) else 'function'} {value.__name__}"
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype}"
    return type(value).__name__
