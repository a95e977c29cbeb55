"""Name the leaves of arguments as users write them: `params['w']`, `problem.a`, `xs[0]`."""

from collections.abc import Callable, Iterator
from typing import Any

from jax.tree_util import FlattenedIndexKey, keystr, tree_leaves_with_path

IsLeaf = Callable[[Any], bool]


def named_leaves(name: str, tree: Any, is_leaf: IsLeaf | None = None) -> Iterator[tuple[str, Any]]:
    """The leaves of the argument `name`, each with its own name."""
    for path, leaf in tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield name + path_name(tree, path), leaf


def path_name(tree: Any, path: tuple[Any, ...]) -> str:
    """The path of a leaf in words: "['layer'].w".

    JAX only numbers the children of a class that was registered without keys. Such a child has the
    name of the attribute that holds it, if there is one.
    """
    text, node = "", tree
    for key in path:
        children = tree_leaves_with_path(node, is_leaf=lambda x, node=node: x is not node)
        index = next(i for i, ((own,), _) in enumerate(children) if own == key)
        several = [child for _, child in children[: index + 1]]
        is_numbered = isinstance(key, FlattenedIndexKey)
        text += (is_numbered and _attribute(node, several)) or keystr((key,))
        node = several[-1]
    return text


def _attribute(node: Any, children: list[Any]) -> str:
    """The attribute of a node that holds the last of its first children: ".w"; or ""."""
    child = children[-1]
    names = [name for name, value in getattr(node, "__dict__", {}).items() if value is child]
    before = sum(other is child for other in children[:-1])  # one array may have two names
    return f".{names[before]}" if before < len(names) else ""
