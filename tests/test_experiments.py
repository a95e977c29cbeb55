"""Tests of all experiments at small sizes with their claims, of the command, page and gallery."""

import ast
import dataclasses
import functools
import html
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from PIL import Image

import experiments
from experiments import __main__ as command
from experiments import docs, networks, page
from experiments.claim import claim
from funcnet import optim
from funcnet.layers import mlp, stateless
from funcnet.training import TrainState

ROOT = Path(experiments.__file__).parent

# Options that make an experiment small; all claims still hold.
SMALL = {
    "gates": {"resolution": 21, "weights": 11, "hidden": (1, 4), "trials": 10, "steps": 400},
    "activation_functions": {"points": 121},
    "numerical_differentiation": {"points": 121},
    "gradient_descent": {"starts": 21},
    "optimizer_paths": {},
    "regression": {"points": 21, "steps": 6000},
    "optimizers": {"train": 2000, "test": 200, "iterations": 200, "batch_size": 32},
    "activation_histograms": {"inputs": 300},
    "initial_weights": {"train": 2000, "test": 100, "iterations": 500, "batch_size": 16},
    "batch_normalization": {"scales": 8, "images": 500},
    "overfitting": {"test": 500, "epochs": 200, "every": 50},
    "random_search": {"trials": 12, "images": 200, "batch_size": 20, "epochs": 40, "timed": 0},
    "weight_decay": {"images": 300, "test": 100, "iterations": 300, "hidden": 30},
    "hand_rules": {"train": 500, "hidden": (30, 30), "iterations": 20, "rounds": 1},
}


def module(name):
    return importlib.import_module(f"experiments.{name}")


@pytest.fixture(autouse=True)
def as_a_person_runs_it():
    """Disables x64: an experiment that needs float64 enables it itself."""
    with jax.enable_x64(False):
        yield


def test_every_experiment_is_listed():
    own = {"__init__", "__main__", "claim", "docs", "networks", "page", "style"}
    files = {path.stem for path in ROOT.glob("*.py")} - own
    assert files == set(experiments.NAMES) == set(SMALL)


# All but one take more than a few seconds, mostly for compilation.
BY_LENGTH = [name if name == "optimizer_paths" else slow(name)[0] for name in SMALL]


@pytest.mark.parametrize("name", BY_LENGTH)
def test_claims_hold_at_a_small_size(name, tmp_path):
    config = module(name).Config(**SMALL[name])
    entry = command.run(name, config, tmp_path)
    assert not [str(c) for c in entry.claims if not c.holds]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(config)))
    assert [c["statement"] for c in record["claims"]] == [c.statement for c in entry.claims]
    assert all(c["numbers"] for c in record["claims"])
    assert (tmp_path / f"{name}.png").read_bytes() == entry.png
    assert entry.png.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", experiments.NAMES)
def test_an_experiment_explains_itself(name):
    doc = module(name).__doc__.strip()
    question, *paragraphs = doc.split("\n\n")
    assert question.endswith("?")
    assert "\n" not in question
    firsts = ("Question.", "Method.", "Expect.", "Source.", "Run time.")
    starts = [first for p in paragraphs for first in firsts if p.startswith(first)]
    assert starts == list(firsts)
    config = module(name).Config
    assert config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert re.search(
            rf'    {field.name}: .*?\n    """', Path(module(name).__file__).read_text()
        )


@pytest.mark.parametrize("name", experiments.NAMES)
def test_the_readme_asks_the_same_question(name):
    question = module(name).__doc__.strip().partition("\n")[0]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| [{name}]({name}.py) | {question} |" in readme


def test_rows_of_the_sources_are_found():
    """Each row of the sources that is an experiment is cited by one."""
    docs = " ".join(module(name).__doc__ for name in experiments.NAMES)
    assert "rows N1, N2 and X10" in docs
    for row in ["G1", "G2", "W1", *(f"X{i}" for i in range(1, 11))]:
        assert re.search(rf"\b{row}\b", docs), row


def test_claims_can_be_false():
    """The claims are false for networks that have learned nothing."""
    m = module("optimizers")
    nothing = {name: np.full(100, 2.3) for name in ("SGD", "Momentum", "AdaGrad", "Adam")}
    result = m.Result(nothing, dict.fromkeys(nothing, 0.1))
    assert not any(c.holds for c in m.claims(result))


@pytest.mark.parametrize(
    ("name", "small", "broken"),
    [
        ("optimizer_paths", {}, {"sgd": 0.3}),  # no zigzags
        ("gradient_descent", {"starts": 21}, {"learning_rates": (0.1, 0.2, 0.3)}),
        ("regression", {"points": 11}, {"steps": 100}),
        pytest.param(
            "batch_normalization",
            {"scales": 4, "images": 200},
            {"learning_rate": 0.0},
            marks=pytest.mark.slow,
        ),
        pytest.param("weight_decay", SMALL["weight_decay"], {"l2": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_an_experiment_notices_what_is_different(name, small, broken):
    m = module(name)
    assert not all(c.holds for c in m.claims(m.run(m.Config(**{**small, **broken}))))


@pytest.mark.slow
def test_many_at_once_are_one_after_another():
    """Networks trained by `vmap` equal networks trained separately."""
    data = networks.digits(200, 50)
    key = jax.random.key(0)
    batches = networks.with_replacement(key, 200, 20, 10)
    model = mlp(8, 10)

    def one(rate):
        on_test = networks.accuracy_on(model, data.x_test, data.labels_test)
        how = {"every": 5, "measure": on_test}
        _, losses, measured = networks.train(
            model, optim.sgd(rate), key, data.x, data.labels, batches, **how
        )
        return losses, measured

    rates = np.array([0.1, 0.5], np.float32)
    together = jax.jit(jax.vmap(one))(rates)
    for i, rate in enumerate(rates):
        for a, b in zip(together, jax.jit(one)(rate), strict=True):
            np.testing.assert_allclose(a[i], b, 1e-4, 1e-5)
    assert together[0].shape == (2, 20)
    assert together[1].shape == (2, 4)


def test_smoothing_keeps_constants_and_length():
    np.testing.assert_allclose(networks.smooth(np.full((2, 30), 3.0)), np.full((2, 30), 3.0))


def test_a_network_that_diverged_is_wrong():
    outputs = stateless(lambda _, x: jnp.where(x > 0, x, jnp.nan), lambda *_: (), "outputs")
    x, labels = jnp.array([[1.0, 2], [-1, 2], [2, 1], [-1, -1]]), jnp.array([1, 1, 1, 0])
    state = TrainState((), (), (), (), ())
    assert networks.accuracy_on(outputs, x, labels)(state) == 0.25


def test_too_many_images():
    with pytest.raises(ValueError, match=r"digits: train must be 1 to 60000 images, got 60001"):
        networks.digits(60001)


class Page(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone():
    held = page.Entry(
        "a", "A < b?\n\nQuestion. Is `a` < b?", b"png", [claim("a < b", True, a=1)], [], {}, 1.0
    )
    text = page.page([held, held._replace(name="b")], "a machine & its parts")
    found = Page()
    found.feed(text)
    assert "A &lt; b?" in text
    assert "a machine &amp; its parts" in text
    assert "<b>Question.</b> Is <code>a</code> &lt; b?" in text
    names = {attrs["name"] for tag, attrs in found.tags if tag == "meta" and "name" in attrs}
    assert "viewport" in names
    outside = [a for _, attrs in found.tags for k, a in attrs.items() if k in ("src", "href")]
    assert all(a.startswith(("data:", "#")) for a in outside)
    ids = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    assert {a[1:] for a in outside if a.startswith("#")} <= ids
    assert "2 of 2 claims hold" in text


def run_command(*argv):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *argv],
        cwd=ROOT.parent, capture_output=True, text=True, check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_person_runs_it(tmp_path):
    done = run_command("optimizer_paths", "--steps", "29", "--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    assert "✓ SGD crosses the valley at every step (SGD 29" in done.stdout
    assert sorted(os.listdir(tmp_path / "new")) == ["optimizer_paths.json", "optimizer_paths.png"]


def test_a_false_claim_is_exit_status_1(tmp_path, capsys):
    assert command.main(["optimizer_paths", "--sgd", "0.3", "--out", str(tmp_path)]) == 1
    assert "✗ SGD crosses the valley at every step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["nonsense"], r"no experiment 'nonsense'; there are: gates, .*, hand_rules, all"),
        (["optimizer_paths", "--speed", "3"], r".*--speed.*: --sgd, .*, --steps, --out"),
        (["optimizer_paths", "--steps", "many"], r".*--steps.*many.*: --sgd, .*, --out"),
        (["optimizer_paths", "--out"], r"--out needs a folder"),
        (["all", "--steps", "3"], r"all takes no option except --docs and --out, got --steps"),
        (["all", "--docs=x"], r"all takes no option except --docs and --out, got --docs=x"),
        (["optimizer_paths", "--docs"], r".*--docs.*; the options of optimizer_paths: .*, --out"),
        (["optimizer_paths", "--steps", "0"], r"optimizer_paths: --steps .* of at least 1, got 0"),
        (
            ["optimizer_paths", "--sgd", "nan"],
            r"optimizer_paths: --sgd must be a finite .* got nan",
        ),
        (["optimizer_paths", "--sgd=-1"], r"optimizer_paths: --sgd .* of at least 0, got -1.0"),
        (["gates", "--hidden", "2", "0"], r"gates: --hidden .* integer of at least 1, got 0"),
        (["gates", "--seed=-1"], r"gates: --seed must be an integer of at least 0, got -1"),
        (
            ["gates", "--out", "/dev/null/x"],
            r"--out must be a folder to write in, got /dev/null/x.*",
        ),
        (["optimizers", "--train", "70000"], r"digits: train must be 1 to 60000 images, got 70000"),
    ],
)
def test_a_person_errs(argv, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"experiments: {line}\n", captured.err), captured.err


def test_options_that_an_experiment_cannot_use(capsys, tmp_path, monkeypatch):
    """Such options are a usage error; with the default options it would be a bug."""

    def run(_):
        raise IndexError("no such row")

    monkeypatch.setattr(module("optimizer_paths"), "run", run)
    out = ["--out", str(tmp_path)]
    assert command.main(["optimizer_paths", "--steps", "3", *out]) == 2
    line = "optimizer_paths cannot run with these options: IndexError: no such row"
    assert capsys.readouterr().err == f"experiments: {line}\n"
    with pytest.raises(IndexError):
        command.main(["optimizer_paths", *out])


def test_the_list(capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in experiments.NAMES)


def first_claim(name):
    """The statement of the first claim of an experiment, from its source."""
    (function,) = ast.parse(inspect.getsource(module(name).claims)).body
    return function.body[-1].value.elts[0].args[0].value  # return [claim(statement, …), …]


def test_the_gallery_shows_every_experiment():
    (part,) = docs.GALLERY.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    _, *sections = part.split("\n### ")
    for name, section in zip(experiments.NAMES, sections, strict=True):
        heading, figure, claim_line = section.strip().split("\n\n")
        question = module(name).__doc__.strip().partition("\n")[0]
        assert heading == f"[{question}]({name}.py)"
        assert f'src="gallery/{name}.png"' in figure
        claim_line = html.unescape(claim_line)
        assert re.fullmatch(rf"✓ {re.escape(first_claim(name))} \(.* .*\)", claim_line)


def test_the_gallery_has_a_small_picture_of_every_experiment_and_no_other():
    files = {path.name for path in (ROOT / "gallery").iterdir()}
    assert files == {f"{name}.png" for name in experiments.NAMES}
    for path in (ROOT / "gallery").iterdir():
        assert path.stat().st_size <= 60_000, path.name
        with Image.open(path) as picture:
            assert (picture.format, picture.width) == ("PNG", 3 * docs.WIDTH // 2), path.name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an old gallery, for the only experiment that is fast."""
    monkeypatch.setattr(command, "NAMES", ("optimizer_paths",))
    monkeypatch.setattr(docs, "HERE", tmp_path)
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "old.png").write_bytes(b"old")
    readme = f"before\n{docs.BEGIN}\nold\n{docs.END}\nafter\n"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    return tmp_path


def test_the_gallery_is_written(folder):
    assert command.main(["all", "--docs", "--out", str(folder / "out")]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(f"{docs.BEGIN}\n")
    part, _, after = rest.partition(f"{docs.END}\n")
    assert (before, after) == ("before\n", "after\n")
    assert part.count("###") == 1
    assert "✓ SGD crosses the valley at every step (SGD 30, Momentum 4" in part
    assert [path.name for path in (folder / "gallery").iterdir()] == ["optimizer_paths.png"]
    large = (folder / "out" / "optimizer_paths.png").read_bytes()
    png = (folder / "gallery" / "optimizer_paths.png").read_bytes()
    assert len(png) < len(large) / 2
    a, b = (np.asarray(Image.open(io.BytesIO(p)).convert("RGB"), float) for p in (png, large))
    assert np.sqrt(np.square(a - b).mean()) < 3  # of 255
    command.main(["all", "--docs", "--out", str(folder / "out")])
    assert (folder / "README.md").read_text(encoding="utf-8") == text


def test_the_gallery_is_written_only_on_request(folder):
    assert command.main(["all", "--out", str(folder / "out")]) == 0
    assert "\nold\n" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_gallery_of_a_false_claim(folder, monkeypatch):
    m = module("optimizer_paths")
    monkeypatch.setattr(m, "Config", functools.partial(m.Config, sgd=0.3))
    assert command.main(["all", "--docs", "--out", str(folder / "out")]) == 1
    assert "\nold\n" in (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (folder / "gallery").iterdir()] == ["old.png"]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda readme, gallery: readme.write_text("no gallery\n"),
            r"--docs needs one line <!--.*begin --> and one line <!--.*end --> in .*",
        ),
        (
            lambda readme, gallery: readme.unlink(),
            r"--docs cannot write the gallery of .*: No such file or directory",
        ),
        (
            lambda readme, gallery: gallery.rename(f"{gallery}s") and gallery.touch(),
            r"--docs cannot write the gallery of .*: Not a directory",
        ),
    ],
)
def test_a_gallery_that_cannot_be_written(spoil, line, folder, capsys):
    """The command refuses before it runs an experiment, and changes nothing."""
    spoil(folder / "README.md", folder / "gallery")
    before = sorted(path.name for path in folder.rglob("*"))
    assert command.main(["all", "--docs", "--out", str(folder / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"experiments: {line}\n", captured.err), captured.err
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.slow
def test_all_at_full_size(tmp_path):
    done = run_command("all", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert (tmp_path / "index.html").stat().st_size > 500_000
    assert {f"{name}.png" for name in experiments.NAMES} <= set(os.listdir(tmp_path))
