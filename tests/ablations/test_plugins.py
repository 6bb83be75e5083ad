"""Plugins: every example does what it says, in the run and in its workers."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.__main__ import main
from ablations.cells.guidance import Guidance, Model
from ablations.cells.peers import Peer, PeerSamples, Trial
from ablations.cells.plugins import Method, defines_guide, digest, load_guide, search_space
from ablations.cells.results import Row
from ablations.cells.samples import Samples
from ablations.cells.setup import Setup
from ablations.errors import UserError
from ablations.machine.cell import Cell
from ablations.machine.code import digest_of_code
from ablations.machine.store import Artifact
from ablations.runs import Options
from ablations.settings import plugins
from ablations.settings.catalogue import load_setting
from ablations.settings.plugins import derived, load_plugin, setting
from ablations.settings.setting import Setting
from ablations.sweeps import SWEEPS, Lab, sweep
from ablations.sweeps.peers import trials
from ppap.diffusion.ddim import DDIM
from ppap.evaluation.metrics import correct
from ppap.files.images import from_uint8
from ppap.tasks.classes import ClassTask

EXAMPLES = "ablations.examples"
PULL = f"{EXAMPLES}.signed"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test brings along is gone after it."""
    monkeypatch.setenv(plugins.LOADED, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    sweeps = dict(SWEEPS)
    yield
    SWEEPS.clear()
    SWEEPS.update(sweeps)
    for name, make in list(plugins.SETTINGS.items()):
        if not make.__module__.startswith(EXAMPLES):  # which is imported once
            del plugins.SETTINGS[name]


def computed(cell: Cell) -> Artifact:
    return cell.compute(computed)


def setup(name: str, plugin: str) -> Setup:
    plugins.load_plugins([plugin])
    return Setup.of(load_setting(name))


def drawn(where: Setup, *guidance: Guidance, count: int = 8, steps: int = 10) -> Samples:
    return Samples(where, DDIM(steps), guidance, 0, count)


def test_a_setting_is_drawn_guided_and_judged() -> None:
    where = setup("stripes", f"{EXAMPLES}.stripes")
    found = where.load()
    plain = computed(drawn(where)).arrays["images"]
    guided = drawn(where, Guidance(Model("nearest"), 4.0))
    images = from_uint8(torch.from_numpy(computed(guided).arrays["images"]))
    right = correct(found.extractor()(images).logits, guided.targets("class"))
    assert float(right.mean()) == 1
    assert plain.shape == (8, 1, 16, 16)
    reference = found.reference()
    assert reference.features is not None
    nearest = torch.cdist(found.extractor()(images).features, reference.features).amin(1)
    assert float(nearest.max()) < 0.1  # the exact denoiser draws its own images


def test_a_denoiser_draws_nearly_what_the_exact_one_does() -> None:
    where = setup("fashion-bfloat16", f"{EXAMPLES}.bfloat16")
    ours = computed(drawn(where, count=2, steps=2)).arrays["images"].astype(int)
    usual = drawn(Setup.of(load_setting("fashion")), count=2, steps=2)
    difference = np.abs(ours - computed(usual).arrays["images"])
    assert 0 < difference.mean() < 5
    assert where.fingerprint != usual.setup.fingerprint


def test_a_predictor_is_one_more_of_a_setting() -> None:
    plugins.load_plugins([f"{EXAMPLES}.ensemble"])
    found = load_setting("fashion-ensemble")
    assert found.predictors == ("resnet", "vit", "ensemble")
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        parts = [found.predictor(name)(images).log_softmax(1) for name in ("resnet", "vit")]
        both = found.predictor("ensemble")(images)
    torch.testing.assert_close(both, (parts[0] + parts[1]) / 2)
    options = Options(
        ("rank",), setting="fashion-ensemble", predictors=("ensemble",), budget="smoke"
    )
    cells = options.results(options.lab())["rank"]
    assert {cell.about.predictor for cell in cells} == {"ensemble"}


def test_a_sweep_is_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "learning-rate", "--plugin", f"{EXAMPLES}.learning_rate", "--dry-run"]
    assert main(arguments) == 0
    assert "learning-rate: 0 of 5 results are there" in capsys.readouterr().out


def test_the_sweep_of_the_readme_is_one_function(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(plugins.__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "sweep_of_readme.py"
    path.write_text(code)
    assert main(["run", "rates", "--plugin", str(path), "--dry-run"]) == 0
    assert "rates: 0 of 5 results are there" in capsys.readouterr().out


def test_a_guide_is_a_row_compared_with_the_others() -> None:
    options = Options(("methods",), plugin=(PULL,), rows=("*signed",), predictors=("resnet",))
    rows = [c for c in options.results(options.lab())["methods"] if isinstance(c, Row)]
    assert [row.about.method for row in rows] == ["single", PULL]
    (guidance,) = rows[1].figures.scores[0].samples.guidance
    assert guidance.model == Method(PULL, Model("resnet"), digest(PULL))
    assert guidance.model.guide is not None


def test_a_guide_guides_by_a_clean_predictor() -> None:
    where = setup("stripes", f"{EXAMPLES}.stripes")
    method = Method.of(PULL, Model("nearest"))
    none, some = (drawn(where, Guidance(method, scale)) for scale in (0.0, 64.0))
    plain = computed(drawn(where)).arrays["images"]
    np.testing.assert_array_equal(computed(none).arrays["images"], plain)

    def accuracy(images: np.ndarray[Any, Any]) -> float:
        seen = where.load().extractor()(from_uint8(torch.from_numpy(images)))
        return float(correct(seen.logits, some.targets("class")).mean())

    assert accuracy(computed(some).arrays["images"]) > accuracy(plain)


def test_a_guides_code_is_part_of_its_key_and_its_search_is_its_own(tmp_path: Path) -> None:
    code = load_plugin(PULL).__file__
    assert code is not None
    path = tmp_path / "own_guide.py"
    path.write_text(Path(code).read_text())
    assert plugins.load_plugins([str(path)]) == ("own_guide",)
    assert digest("own_guide") == digest(PULL)
    path.write_text(path.read_text().replace("127.5", "255"))
    assert digest("own_guide") != digest(PULL)
    assert search_space("own_guide") == {"scale": (1.0, 64.0)}
    assert digest("mpgd") == ""
    assert load_guide("mpgd").__name__ == "MPGD"
    assert not defines_guide(f"{EXAMPLES}.stripes")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "no plugin broken: ModuleNotFoundError"),
        ("import nowhere", "no plugin broken: ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0", "no plugin broken: ZeroDivisionError"),
        (
            "from ablations.sweeps import sweep\n@sweep('rank')\ndef rank(lab): ...",
            "ablations.sweeps.studies has a sweep rank already",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_line(
    code: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.py"
    if code:
        path.write_text(code)
    sys.modules.pop("broken", None)
    assert main(["run", "rank", "--dry-run", "--plugin", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_names_that_are_taken_are_refused() -> None:
    base = load_setting("fashion")
    with pytest.raises(UserError, match="fashion has a fashion already"):
        derived(base, "fashion", [__file__])
    with pytest.raises(UserError, match="fashion has a vit already"):
        derived(base, "mine", [__file__], predictors={"vit": lambda: base.predictor("vit")})
    with pytest.raises(UserError, match="cannot be read"):
        derived(base, "mine", ["nowhere.safetensors"])
    load_plugin(f"{EXAMPLES}.stripes")
    with pytest.raises(UserError, match="stripes has a setting stripes already"):
        setting("stripes")(lambda: base)


def test_two_guides_in_one_module_are_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "two_guides.py"
    path.write_text(
        "class A:\n    rows = target_count = None\nclass B(A): pass\nclass _C(A): pass\n"
    )
    name = load_plugin(str(path)).__name__
    with pytest.raises(UserError, match=r"must define one guide.*it has A, B"):
        load_guide(name)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("('scale', 1.0, 4.0)", "SEARCH is .*; give a dictionary of tuples"),
        ("{'scale': 4.0}", r"SEARCH\['scale'\] is 4.0; give a tuple"),
        ("{'scale': (4.0, 1.0)}", r"SEARCH\['scale'\] is .*; give the least and the greatest"),
        ("{'scale': (1.0, float('inf'))}", "give the least and the greatest"),
        ("{'scale': ('1', '4')}", "give the least and the greatest"),
        ("{'power': (0.5)}", r"SEARCH\['power'\] is 0.5; .*ends in a comma"),
        ("{'power': 'half'}", r"SEARCH\['power'\] is 'half'; give a tuple"),
        ("{'power': ()}", r"SEARCH\['power'\] is \(\); give a tuple"),
        ("{'power': ([1, 2],)}", r"SEARCH\['power'\] has \[1, 2\], a list; give numbers"),
        ("{'power': ({'a': 1},)}", r"SEARCH\['power'\] has {'a': 1}, a dict; give numbers"),
        ("{'powr': (0.5,)}", "Guide takes no powr, which is in SEARCH; choose from .*scale, power"),
    ],
)
def test_a_search_of_another_shape_is_refused(space: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"searching_{abs(hash(space))}.py"
    path.write_text(
        f"{GUIDE}    SEARCH = {space}\n"
        "    def __init__(self, likelihood, scale=1.0, power=1.0): pass\n"
    )
    with pytest.raises(UserError, match=message):
        search_space(load_plugin(str(path)).__name__)


def test_a_search_may_have_values_of_options(tmp_path: Path) -> None:
    path = tmp_path / "searching.py"
    path.write_text(
        f"{GUIDE}    SEARCH = {{'scale': [1, 4], 'power': [0.5, 1.0]}}\n"
        "    def __init__(self, likelihood, strength, power=1.0): pass\n"
    )
    wanted = {"scale": (1, 4), "power": (0.5, 1.0)}
    assert search_space(load_plugin(str(path)).__name__) == wanted


def test_a_guides_options_are_its_own_whatever_their_names(tmp_path: Path) -> None:
    path = tmp_path / "namesake.py"
    path.write_text(
        f"{GUIDE}    SEARCH = {{'marginal': (0.25,), 'softplus': (3.0,), 'pair': ((1, (2, 3)),)}}\n"
        "    def __init__(self, likelihood, scale, **options):\n"
        "        self.likelihood, self.options = likelihood, options\n"
    )
    name = load_plugin(str(path)).__name__
    trial = trials(name, 1)[0]
    trial = Trial.of(json.loads(json.dumps(asdict(trial))))  # as a search tells it
    guidance = (Guidance(Model("resnet"), 1.0),)
    given = Setup.of(load_setting("fashion")), DDIM(2), guidance, 7, 2, Peer(name, "x_t"), trial
    guide: Any = PeerSamples(*given).guide(computed, range(7, 9))
    assert guide.options == {"marginal": 0.25, "softplus": 3.0, "pair": (1, (2, 3))}
    assert isinstance(guide.likelihood.task, ClassTask)
    assert "Softplus" not in repr(guide.likelihood.model)


def test_a_setting_that_calls_itself_otherwise_is_refused() -> None:
    @setting("another-name")
    def load() -> Setting:
        return load_setting("fashion")

    with pytest.raises(UserError, match="'another-name' calls itself 'fashion'"):
        load_setting("another-name")


def test_workers_know_what_the_run_brought_along(tmp_path: Path) -> None:
    output = tmp_path / "results"
    arguments = [
        "run", "methods", "--plugin", f"{EXAMPLES}.stripes", PULL, "--setting", "stripes",
        "--rows", "unguided", "--budget", "smoke", "--workers", "1",
        "--store", str(tmp_path / "store"), "--output", str(output),
    ]  # fmt: skip
    assert main(arguments) == 0
    with (output / "methods.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["unguided", "unguided"]
    assert os.environ[plugins.LOADED] == f"{EXAMPLES}.stripes:{PULL}"


def test_a_sweep_may_be_defined_again_by_its_own_module() -> None:
    def function(lab: Lab) -> Iterator[Any]:
        yield from ()

    sweep("of-a-test")(function)
    assert sweep("of-a-test")(function) is function


GUIDE = "class Guide:\n    rows = target_count = None\n"
ROWS = """
from dataclasses import replace
from ablations.sweeps import PPAP, sweep
@sweep("twice")
def twice(lab):
    yield from lab.row("a", PPAP)
    yield from lab.row("a", replace(PPAP, temperature=2.0))
"""


@pytest.mark.parametrize(
    ("sweep", "file", "code", "message"),
    [
        ("rank", "calendar.py", GUIDE, "would be imported as calendar, which is /"),
        ("rank", "ppap.py", GUIDE, "ppap/__init__.py already; give the file another name"),
        ("rank", "dps.py", GUIDE, "the plugin dps is called like a method of ppap.guidance"),
        ("peers", "naive.py", GUIDE, "sweep peers has a row naive already"),
        ("methods", "single.py", GUIDE, "sweep methods has two rows 'single' of the predictor"),
        ("twice", "twice_a.py", ROWS, "sweep twice has two rows 'a' of the predictor resnet"),
        (
            "undeclared",
            "undeclared.py",
            ROWS.replace('@sweep("twice")', '@sweep("undeclared", axes={"steps": "log"})')
            .replace('"a", PPAP', '"a", PPAP, steps=1, rate=0.1'),
            "row 'a' of sweep undeclared has an axis rate, which the sweep does not declare",
        ),
        (
            "referred",
            "referred.py",
            ROWS.replace("twice", "referred").replace('"a", PPAP', '"c", PPAP, reference=True')
            .replace('"a", ', '"b", reference=True, recipe='),
            "sweep referred has 2 reference rows of the predictor resnet and sampler ddim25: c, b",
        ),
        (
            "rank",
            "my_fashion.py",
            "from ablations.settings.plugins import setting\nsetting('fashion')(lambda: None)",
            "my_fashion calls its setting fashion, which is taken",
        ),
    ],
)  # fmt: skip
def test_a_plugin_that_would_be_taken_for_another_is_refused(
    sweep: str, file: str, code: str, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / file
    path.write_text(code)
    for name in ("naive", "single", "dps"):
        sys.modules.pop(name, None)
    assert main(["run", sweep, "--dry-run", "--plugin", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "my/sweep"}, "a sweep cannot be called 'my/sweep'"),
        ({"name": "all"}, "cannot be called 'all'"),
        ({"name": ""}, "cannot be called ''"),
        ({"figure": "linez"}, "unknown figure 'linez'; choose from lines, points, pareto, none"),
        ({"axes": {"rate": "logg"}}, "unknown scale 'logg'; choose from linear, log, category"),
        ({"metrics": ("fid", "acuracy")}, "unknown metric 'acuracy'; choose from accuracy, fid"),
    ],
)
def test_a_sweep_that_could_not_be_reported_is_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(**{"name": "mine", **options})


def test_a_guides_key_changes_with_what_it_imports_from_its_own_folder(tmp_path: Path) -> None:
    code = load_plugin(PULL).__file__
    assert code is not None
    (tmp_path / "guide_of_parts.py").write_text(
        f"{Path(code).read_text()}\nfrom parts_of_guide.push import STRENGTH\n"
    )
    package = tmp_path / "parts_of_guide"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "push.py").write_text("from . import further\nSTRENGTH = 1.0\n")
    (package / "further.py").write_text("def more():\n    from . import late\n")
    (package / "late.py").write_text("import parts_of_guide.later\n")
    (package / "later.py").write_text("")
    (package / "unused.py").write_text("")
    plugins.load_plugins([str(tmp_path / "guide_of_parts.py")])
    before = digest("guide_of_parts")
    (package / "unused.py").write_text("nothing = 0")
    assert digest("guide_of_parts") == before
    assert "parts_of_guide.late" not in sys.modules  # and counts all the same
    for file in ("push.py", "further.py", "late.py", "later.py", "__init__.py"):
        (package / file).write_text((package / file).read_text() + "# changed\n")
        assert digest("guide_of_parts") != before
        before = digest("guide_of_parts")
    assert digest(PULL) == digest_of_code([code])  # alone, for all its siblings


OWN_GUIDANCE = """
from dataclasses import dataclass
from ablations.cells.guidance import AroundModel, Model

@dataclass(frozen=True)
class Own(AroundModel):
    model: Model
    name: str = "own"
"""


def test_the_code_of_what_guides_in_yet_another_way_is_part_of_its_key(tmp_path: Path) -> None:
    keys = set()
    for number, code in enumerate((OWN_GUIDANCE, OWN_GUIDANCE, f"{OWN_GUIDANCE}# changed\n")):
        path = tmp_path / f"own_guidance_{number}.py"
        path.write_text(code)
        own = load_plugin(str(path)).Own(Model("nearest"))
        keys.add(drawn(Setup("stripes", ""), Guidance(own, 1.0)).key)
    assert len(keys) == 2
