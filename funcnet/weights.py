"""Parameters by name, and as safetensors files, which PyTorch, Flax and others read and write.

The name of a leaf is its path in the tree: `"0/w"` is `params[0]["w"]`. The parameters of another
library become those of a funcnet network by an explicit table of names and transpositions:

    theirs = {"0/w": state_dict["0.weight"].numpy().T, "0/b": state_dict["0.bias"].numpy()}
    params = weights.unflatten(theirs, like)

where `like` is any tree of that structure, such as `jax.eval_shape(net.init, key, x)[0]`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arguments import check_array, kind
from funcnet._extras import extra

__all__ = ["flatten", "load", "save", "unflatten"]

# The dtypes of safetensors, by the name that its files give them.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "BF16": "bfloat16", "F16": "float16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name.

    Args:
      tree: Any pytree.

    Returns:
      A dict in the order of the leaves.

    Raises:
      ValueError: If two leaves have the same name, as those of `{"a": {"b": 1}, "a/b": 2}`.

    >>> flatten({"w": (1, 2), "b": 3})
    {'b': 3, 'w/0': 1, 'w/1': 2}
    """
    named = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"flatten: names must differ, got two leaves {name!r}")
        named[name] = leaf
    return named


def unflatten(arrays: Mapping[str, Any], like: Any) -> Any:
    """The tree of the structure of `like` whose leaves are the named arrays.

    Args:
      arrays: Arrays of JAX or NumPy by name, each of the shape and dtype of that leaf of `like`;
        no name may be missing or left over.
      like: A tree of arrays or of `jax.ShapeDtypeStruct`. Where a leaf has a sharding, the result
        gets the same.

    Returns:
      A tree of `jax.Array`.

    Raises:
      TypeError: If a leaf is not an array.
      ValueError: If a name is missing or left over, or an array has another shape or dtype; the
        message names the leaf.

    >>> unflatten({"w": np.zeros(2, "float32")}, {"w": jax.ShapeDtypeStruct((3,), "float32")})
    Traceback (most recent call last):
    ValueError: unflatten: 'w' must be float32[3], got float32[2] in arrays
    """
    return _unflatten("unflatten", arrays, like, "arrays")


def save(path: str | os.PathLike, tree: Any) -> None:
    """Writes the arrays of a tree as a safetensors file; needs the package safetensors.

    The file gets its name when it is complete, so that what was there is not lost before.

    Args:
      path: The file, usually *.safetensors.
      tree: A tree of arrays of a dtype that safetensors has: floats from 8 to 64 bits, bfloat16,
        integers, booleans.

    Raises:
      TypeError: If a leaf is not an array of such a dtype.
      OSError: If the file cannot be written.
      ModuleNotFoundError: If the package is missing; the extra `checkpoint` has it.
    """
    with extra("save", "checkpoint"):
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

    arrays = {}
    for name, leaf in flatten(tree).items():
        check_array("save", repr(name), leaf)
        leaf = jnp.asarray(leaf)
        if str(leaf.dtype) not in DTYPES.values():
            raise TypeError(f"save: {name!r} must be of a dtype of safetensors, got {_type(leaf)}")
        arrays[name] = np.asarray(leaf, order="C")
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()  # raises an OSError that names the file
        save_file(arrays, part)
        os.replace(part, path)
    except SafetensorError as e:  # no space left, for instance
        raise OSError(f"save: {path} cannot be written: {e}") from None
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike, like: Any) -> Any:
    """Reads a safetensors file as a tree; needs the package safetensors.

    Args:
      path: The file.
      like: As for `unflatten`.

    Returns:
      A tree of the structure of like, as `unflatten` returns it.

    Raises:
      OSError: If the file cannot be read.
      ValueError: If it is not a safetensors file, or its arrays are not those of like; the message
        names the leaf.
      ModuleNotFoundError: If the package is missing; the extra `checkpoint` has it.
    """
    with extra("load", "checkpoint"):
        from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(Path(path).read_bytes())
    except SafetensorError as e:
        raise ValueError(f"load: {path} must be a safetensors file: {e}") from None
    arrays = {}
    for name, array in stored:
        if array["dtype"] not in DTYPES:
            raise ValueError(f"load: {name!r} must be of a known dtype, got {array['dtype']}")
        dtype = jnp.dtype(DTYPES[array["dtype"]])
        arrays[name] = np.frombuffer(array["data"], dtype).reshape(array["shape"])
    return _unflatten("load", arrays, like, str(path))


def check_same(f: str, stored: Mapping[str, Any], like: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError that names the first leaf in which `stored` differs from `like`.

    Args:
      f: The function, for the message.
      stored: Arrays, or anything with their shape and dtype, by name.
      like: The same, as it must be.
      where: What holds `stored`, for the message.
    """
    for name, leaf in like.items():
        if name not in stored:
            raise ValueError(f"{f}: {where} must hold {name!r}, {_type(leaf)}, as like does")
    for name, leaf in stored.items():
        if name not in like:
            raise ValueError(f"{f}: {where} must hold the names of like, which has no {name!r}")
        if _type(leaf) != _type(like[name]):
            raise ValueError(
                f"{f}: {name!r} must be {_type(like[name])}, got {_type(leaf)} in {where}"
            )


def _type(leaf: Any) -> str:
    """As `type_name`, but of 64 bits also where JAX would use 32."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _unflatten(f: str, arrays: Mapping[str, Any], like: Any, where: str) -> Any:
    named = flatten(like)
    for holder, leaves in {where: arrays, "like": named}.items():
        for name, leaf in leaves.items():
            if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
                raise TypeError(f"{f}: {name!r} must be an array, got {kind(leaf)} in {holder}")
    check_same(f, arrays, named, where)
    leaves = [
        jax.device_put(arrays[name], getattr(leaf, "sharding", None))
        for name, leaf in named.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
