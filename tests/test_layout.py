"""Tests of the architecture, read from the sources: imports, public names, documentation."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import funcnet
from funcnet import (
    RULES,
    check,
    checkpoints,
    generation,
    initializers,
    layers,
    models,
    numerical,
    ops,
    optim,
    sharding,
    training,
    weights,
)

ROOT = Path(funcnet.__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))

# The parts of funcnet that each part may import, in addition to itself.
EVERYONE_MAY = {"_arguments"}
MAY_IMPORT = {
    "_arguments": set(),
    "_arrays": set(),
    "_barrier": set(),
    "_batch": set(),
    "_door": set(),
    "_extras": set(),
    "_options": {"_arrays", "_door"},
    "rule": {"_door", "_options"},
    "ops": {"rule", "_arrays", "_barrier", "_batch"},
    "initializers": set(),
    "sharding": {"_batch"},
    "layers": {"ops", "initializers", "rule", "sharding", "_arrays"},
    "models": {"layers", "ops"},
    "optim": {"ops"},  # gradients of penalties, shared by rules and transformations
    "numerical": set(),
    "book": {"ops"},
    "datasets": set(),
    "evaluation": {"layers", "sharding", "_arrays"},
    "generation": {"layers"},
    "training": {"layers", "sharding", "evaluation"},
    "weights": {"_extras"},
    "checkpoints": {"weights", "_extras"},
    "check": {"rule", "numerical"},  # compares with finite differences
    "profile": {"check", "layers", "rule"},
    "command": {"check", "profile", "rule"},
    "__main__": {"command"},
}
THIRD_PARTY = {"jax", "jaxtyping", "optax", "numpy"}
OPTIONAL = {"weights": {"safetensors"}, "checkpoints": {"orbax"}}  # imported when they are used

PUBLIC = {
    ops: "step identity sigmoid tanh relu softmax log_softmax affine batch_norm dropout "
    "mean_squared_error mean_absolute_error sum_squared_error cross_entropy softmax_cross_entropy "
    "layer_norm rms_norm group_norm softsign celu glu gelu silu softplus log_sigmoid elu selu "
    "leaky_relu prelu mish swiglu geglu logsumexp "
    "sigmoid_binary_cross_entropy huber kl_divergence linear_cross_entropy conv conv_transpose "
    "depthwise_conv max_pool avg_pool global_avg_pool global_max_pool embedding "
    "dot_product_attention rope rnn lstm gru linear_recurrence",
    layers: "Layer stateless chain residual parallel repeat from_dict Flatten Dense Conv "
    "ConvTranspose DepthwiseConv MaxPool AvgPool GlobalMaxPool GlobalAvgPool BatchNorm "
    "LayerNorm RMSNorm GroupNorm Dropout Embedding RNN LSTM GRU Positions MultiHeadAttention "
    "GatedMLP TransformerBlock mlp",
    models: "mlp cnn transformer",
    initializers: "zeros constant normal xavier he lecun_normal lecun_uniform glorot_normal "
    "glorot_uniform he_normal he_uniform",
    optim: "sgd momentum nesterov adagrad rmsprop adam adamw l1 l2 elastic_net SGDState "
    "MomentumState AdaGradState RMSPropState AdamState averaged AveragedState",
    numerical: "gradient STENCILS Stencil",
    generation: "generate",
    training: "TrainState make_step make_epoch evaluate",
    checkpoints: "Checkpoints",
    weights: "flatten unflatten save load",
    sharding: "Plan TENSOR data_parallel fsdp tensor_parallel pin",
    funcnet: "rule RULES autodiff check_rule check_model profile_rule assert_residuals summary "
    "generate",
    check: "Report Finding Culprit KINDS CheckFailed",
    funcnet.datasets: "mnist read_idx xor sine Mnist SHA256",
}


def part(path):
    """The part of funcnet that a file belongs to: its top-level module or folder."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "funcnet" and rest and part(path) != "__init__":
            allowed = MAY_IMPORT[part(path)] | {part(path)} | EVERYONE_MAY
            assert rest[0] in allowed, f"{path.name} imports {name}"
        assert top not in {"tests", "experiments", "scripts"}
        assert not name.startswith("jax._src")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_core_dependencies(path):
    foreign = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"funcnet"}
    assert foreign <= THIRD_PARTY | OPTIONAL.get(part(path), set())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_public_names():
    """The public names exist, and `help(module)` shows them."""
    for module, names in PUBLIC.items():
        for name in names.split():
            assert hasattr(module, name), f"{module.__name__}.{name}"
            assert name in module.__all__, f"{module.__name__}.__all__ lacks {name}"


def test_ops_are_rules_and_rules_are_ops():
    exported = {n for n, f in vars(ops).items() if inspect.isfunction(f)}
    assert exported == {n for n, r in RULES.items() if r.primal.__module__.startswith("funcnet")}


def source_of(rule):
    """The source of a rule's function and of all that stands between the previous rule and it."""
    f = rule.primal
    own, file = inspect.getsource(f), inspect.getsource(inspect.getmodule(f))
    above = file.partition(own)[0]
    for other in RULES.values():
        if other.primal.__module__ == f.__module__:
            above = above.rpartition(inspect.getsource(other.primal))[2]
    return above + own


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_is_documented(name):
    r = RULES[name]
    doc = inspect.getdoc(r.primal)
    for section in ("Args:", "Returns:", "Reference:"):
        assert section in doc, section
    for argument in inspect.signature(r.primal).parameters:
        assert f"  {argument}: " in doc, argument
    assert r.fwd.__name__ == f"{name}_fwd"
    assert r.bwd.__name__ == f"{name}_bwd"
    compact = r.bwd.__module__ == "funcnet.ops._elementwise"
    if compact:
        assert re.search(r"dx = .* \(1\)$", doc, re.MULTILINE)
        equations = re.findall(r" \((\d)\)$", doc, re.MULTILINE)
        assert set(equations) == set(re.findall(r"# \((\d)\)", source_of(r)))
        assert "Saves" in doc
    else:
        assert "Saves" in inspect.getdoc(r.fwd)
        assert "(1)" in inspect.getdoc(r.bwd)
        assert re.search(r"# \(\d\)", inspect.getsource(r.bwd))
