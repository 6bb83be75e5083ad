"""Images that other code has made: judged as a row's samples are, from pictures and archives."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from ablations.__main__ import main
from ablations.cells.given import GIVEN, Given
from ablations.cells.intervals import RowFigures
from ablations.cells.samples import Samples
from ablations.cells.scores import Score
from ablations.cells.setup import Setup
from ablations.errors import UserError
from ablations.machine.cell import Cell
from ablations.machine.records import stamp
from ablations.machine.store import Artifact
from ablations.outcomes import read_outcomes
from ablations.score import RESAMPLES, require_free, row_name
from ablations.settings.catalogue import load_setting
from ablations.settings.given import read_given
from ablations.settings.plugins import load_plugins
from ppap.diffusion.ddim import DDIM
from ppap.files.images import from_uint8

STRIPES = "ablations.examples.stripes"
Bytes = npt.NDArray[np.uint8]


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Twelve of the stripes, unguided."""
    monkeypatch.setenv("PPAP_PLUGINS", "")
    load_plugins([STRIPES])
    return Samples(Setup.of(load_setting("stripes")), DDIM(5), (), 0, 12)


def computed(cell: Cell) -> Artifact:
    return cell.compute(computed)


def images_of(samples: Samples) -> Bytes:
    found: Bytes = computed(samples).arrays["images"]
    return found


def write_pictures(folder: Path, images: Bytes) -> None:
    folder.mkdir(parents=True)
    for place, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{place:03}.png")


def test_a_rows_own_samples_get_the_rows_own_figures(
    samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "theirs", images_of(samples))
    output = tmp_path / "results"
    arguments = [
        "score", str(tmp_path / "theirs"), "--setting", "stripes", "--plugin", STRIPES,
        "--in-order", "--store", str(tmp_path / "store"), "--output", str(output),
    ]  # fmt: skip
    assert main(arguments) == 0
    wanted = computed(RowFigures(samples.setup, (Score(samples),), RESAMPLES)).meta["metrics"]
    lines = (output / "records.jsonl").read_text().splitlines()
    (row,) = (r for r in map(json.loads, lines) if r["kind"] == "row")
    assert {name: row[name] for name in wanted} == wanted
    assert (row["method"], row["sampler"], row["scale"]) == ("theirs", GIVEN, None)
    told = capsys.readouterr().out
    assert "theirs: 12 images of stripes" in told
    assert f"  accuracy: {wanted['accuracy']:.3f} [" in told
    with (output / "scored.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["fid"]) == pytest.approx(wanted["fid"], rel=1e-4)
    outcomes = read_outcomes(output)
    assert list(outcomes["target"]) == [0, 1] * 6
    assert outcomes["accuracy"].mean() == pytest.approx(wanted["accuracy"])


def test_all_ways_to_give_images_are_the_same(samples: Samples, tmp_path: Path) -> None:
    setting, images = samples.setup.load(), images_of(samples)
    write_pictures(tmp_path / "plain", images)
    write_pictures(tmp_path / "classes" / "upright", images[:5])
    write_pictures(tmp_path / "classes" / "1", images[5:])
    coloured = np.repeat(images, 3, axis=1)
    arrays = {"nchw": images, "nhw": images[:, 0], "rgb": np.moveaxis(coloured, 1, -1)}
    for name, array in arrays.items():
        np.savez(tmp_path / name, array, np.arange(12) % 2)
    np.savez(tmp_path / "named", images=images)
    classes = {
        "plain": None,
        "classes": [1] * 7 + [0] * 5,
        "nchw.npz": [0, 1] * 6,
        "nhw.npz": [0, 1] * 6,
        "rgb.npz": [0, 1] * 6,
        "named.npz": None,
    }
    for name, wanted in classes.items():
        found, labels = read_given(tmp_path / name, setting)
        ordered = np.concatenate([images[5:], images[:5]]) if name == "classes" else images
        np.testing.assert_array_equal(found, ordered)
        assert (None if labels is None else labels.tolist()) == wanted


def test_files_are_taken_by_the_numbers_in_their_names(samples: Samples, tmp_path: Path) -> None:
    """Otherwise image 10 would be held against the third target."""
    setting, images = samples.setup.load(), images_of(samples)
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / "plain" / f"sample{place}.png")
        np.savez(tmp_path / "packed" / f"{place}", images=image[None])
    for name in ("plain", "packed"):
        np.testing.assert_array_equal(read_given(tmp_path / name, setting)[0], images)
    for name in ("b", "a", "1", "\N{ARABIC-INDIC DIGIT ONE}"):
        Image.fromarray(images[0, 0]).save(tmp_path / "plain" / f"{name}.png")
    assert len(read_given(tmp_path / "plain", setting)[0]) == 16


def test_a_class_may_have_folders_of_its_own_and_hidden_files(
    samples: Samples, tmp_path: Path
) -> None:
    images = images_of(samples)
    write_pictures(tmp_path / "upright" / "seed 1", images[:2])
    write_pictures(tmp_path / "upright" / "seed 2", images[2:5])
    write_pictures(tmp_path / "level", images[5:])
    write_pictures(tmp_path / "level" / ".trash", images[:3])
    (tmp_path / "level" / "._000.png").write_bytes(b"Mac OS X")
    found, labels = read_given(tmp_path, samples.setup.load())
    np.testing.assert_array_equal(found, np.concatenate([images[5:], images[:5]]))
    assert labels is not None
    assert labels.tolist() == [1] * 7 + [0] * 5


def test_images_of_their_own_classes_are_judged_by_these(
    samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(samples)
    seen = samples.setup.load().extractor()
    logits = seen(from_uint8(torch.from_numpy(images))).logits
    right = logits.argmax(1).numpy()
    for name, labels, wanted in (("right", right, "1.000"), ("wrong", 1 - right, "0.000")):
        np.savez(tmp_path / name, images=images, labels=labels)
        arguments = [
            "score", str(tmp_path / f"{name}.npz"), "--setting", "stripes", "--plugin", STRIPES,
            "--store", str(tmp_path / "store"), "--output", str(tmp_path / "results"),
        ]  # fmt: skip
        assert main(arguments) == 0
        assert f"  accuracy: {wanted} [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((12, 16, 16, 1), np.float32)}, "no bytes called images or arr_0"),
        ({"pixels": np.zeros((12, 16, 16, 1), np.uint8)}, "no bytes called images or arr_0"),
        ({"images": np.zeros((12, 8, 8, 1), np.uint8)}, "16 x 16 with 1 channels"),
        ({"images": np.eye(3, dtype=np.uint8)}, "16 x 16 with 1 channels"),
        ({"images": np.zeros((2, 16, 16), np.uint8), "labels": np.zeros(3, int)}, "labels"),
        ({"images": np.zeros((2, 16, 16), np.uint8), "labels": np.array([0, 2])}, "from 0 to 2"),
        (
            {"images": np.tile(np.arange(3, dtype=np.uint8), (2, 16, 16, 1))},
            "has colours; stripes has grey images",
        ),
    ],
)
def test_arrays_that_are_no_images_of_the_setting_are_refused(
    arrays: dict[str, Any], message: str, samples: Samples, tmp_path: Path
) -> None:
    np.savez(tmp_path / "given", **arrays)
    with pytest.raises(UserError, match=message):
        read_given(tmp_path / "given.npz", samples.setup.load())


def test_files_that_cannot_be_told_are_refused(samples: Samples, tmp_path: Path) -> None:
    setting, images = samples.setup.load(), images_of(samples)
    with pytest.raises(UserError, match="there is no "):
        read_given(tmp_path / "nowhere", setting)
    with pytest.raises(UserError, match="holds no images"):
        read_given(tmp_path, setting)
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(UserError, match=r"no \.npz of arrays"):
        read_given(tmp_path / "text.npz", setting)
    np.save(tmp_path / "array.npy", images)
    with pytest.raises(UserError, match=r"array\.npy is no \.npz of arrays"):
        read_given(tmp_path / "array.npy", setting)
    write_pictures(tmp_path / "odd" / "slanted", images[:2])
    with pytest.raises(UserError, match="no class's name or number; choose from upright, level"):
        read_given(tmp_path / "odd", setting)
    Image.fromarray(images[0, 0]).save(tmp_path / "odd" / "0.png")
    with pytest.raises(UserError, match="side by side"):
        read_given(tmp_path / "odd", setting)
    (tmp_path / "mixed").mkdir()
    np.savez(tmp_path / "mixed" / "a", images=images, labels=np.zeros(12, int))
    np.savez(tmp_path / "mixed" / "b", images=images)
    with pytest.raises(UserError, match=r"some files of .* have labels, others none"):
        read_given(tmp_path / "mixed", setting)


@pytest.mark.parametrize(
    ("labels", "count", "words", "message"),
    [
        (False, 12, [], "has no classes, and the targets of stripes are class; put pictures"),
        (True, 12, ["--in-order"], "has classes"),
        (False, 3, ["--in-order"], "holds 3 images; give at least 10"),
        (True, 0, [], "holds 0 images; give at least 10"),
    ],
)
def test_targets_are_never_guessed(
    labels: bool,
    count: int,
    words: list[str],
    message: str,
    samples: Samples,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = images_of(samples)[:count]
    more: dict[str, Any] = {"labels": np.zeros(count, int)} if labels else {}
    np.savez(tmp_path / "given", images=images, **more)
    arguments = ["score", str(tmp_path / "given.npz"), "--setting", "stripes"]
    assert main([*arguments, "--plugin", STRIPES, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "name"),
    [("sd-1.4/", "sd-1.4"), ("sd-1.5.npz", "sd-1.5"), ("packed.npz/", "packed.npz")],
)
def test_a_row_is_called_like_its_folder_dots_and_all(
    given: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / given
    if given.endswith("/"):
        path.mkdir()
    else:
        path.touch()
    assert row_name(path) == name


def test_no_row_takes_the_place_of_one_of_other_images(samples: Samples, tmp_path: Path) -> None:
    def row(digest: str) -> dict[str, Any]:
        made = stamp(0.0) | {"configuration": {"samples": {"digest": digest}}}
        return {"kind": "row", "sweep": "scored", "method": "samples", "provenance": made}

    output = tmp_path / "results"
    output.mkdir()
    (output / "records.jsonl").write_text(json.dumps(row("of others") | {"key": "a"}) + "\n")
    given = Given(samples.setup, DDIM(5), (), 0, 12, "of these", labelled=False)
    require_free(output, "others", given)
    require_free(output, "samples", replace(given, digest="of others"))
    with pytest.raises(UserError, match=r"has a row samples already, of other images.*--name"):
        require_free(output, "samples", given)


@pytest.mark.parametrize("where", [("a.png", "b.png"), ("0/a.png", "1/b.png")])
def test_images_of_a_cascade_are_of_one_size(where: tuple[str, str], tmp_path: Path) -> None:
    setting = replace(load_setting("fashion"), upsample=lambda images, seeds: images)
    for name, side in zip(where, (64, 48), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / name)
    with pytest.raises(UserError, match="images of 64 x 64 and of 48 x 48 pixels; resize"):
        read_given(tmp_path, setting)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / where[1])
    assert read_given(tmp_path, setting)[0].shape == (2, 1, 64, 64)
