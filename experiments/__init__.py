"""The experiments of the sources, one file for each question.

    python -m experiments                         lists them
    python -m experiments initial_weights         runs one
    python -m experiments all                     runs all, and writes a page to read them on

An experiment is a module that reads as the explanation of what it does:

- its docstring: the question, the method, what to expect, the source and the run time;
- `Config`, a frozen dataclass: its options and their defaults, those of the book where it has them;
- `run(config) -> Result`: the computation, pure and compiled;
- `plot(result) -> Figure`;
- `claims(result) -> list[Claim]`: what the source says, whether it is so here, and by what numbers.
"""

NAMES = (
    "gates",
    "activation_functions",
    "numerical_differentiation",
    "gradient_descent",
    "optimizer_paths",
    "regression",
    "optimizers",
    "activation_histograms",
    "initial_weights",
    "batch_normalization",
    "overfitting",
    "random_search",
    "weight_decay",
    "hand_rules",
)
