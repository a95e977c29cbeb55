"""The experiments from the sources, one file per question.

    python -m experiments                         lists the experiments
    python -m experiments initial_weights         runs one
    python -m experiments all                     runs all and writes a page with the results

An experiment is a module that explains itself. It consists of

- a docstring: the question, the method, the expected outcome, the source and the run time;
- `Config`, a frozen dataclass: the options and their defaults, taken from the book where it gives
  them;
- `run(config) -> Result`: the computation, pure and compiled;
- `plot(result) -> Figure`;
- `claims(result) -> list[Claim]`: the statements of the source, whether they hold in this run, and
  the numbers that decide it. The first one answers the question; README.md shows it.
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
