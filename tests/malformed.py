"""What strangers hand in: configurations, files, images, targets, records and stores, malformed.

:data:`COMMANDS` are lines for ``python -m ablations``, which end with exit status 2 and one line.
:data:`CALLS` are uses of the library and the reports, which raise an error of theirs. Each has a
folder of its own, ``{here}``, which :func:`furnish` fills; ``tests/test_malformed.py`` looks that
nothing in it is lost and that no pickle has run.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from ablations.machine.store import Artifact, Store
from ablations.settings.images import ImageFolder, load_cifar
from ppap.denoisers.public import load_denoiser, load_noisy_classifier
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import Schedule, linear_schedule, make_schedule
from ppap.diffusion.synthesis import synthesize
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Head, Norms
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Supervision
from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.checkpoints import load_weights
from ppap.files.images import from_uint8
from ppap.files.pictures import read_grey, read_labels, read_picture
from ppap.guidance.wrappers import GradientReuse, GuidanceInterval
from ppap.predictors.predictor import Predictor
from ppap.predictors.public import load_predictor
from ppap.tasks.depth import DepthTask
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.targets import load_depth, load_labels, mask_labels
from tests.ppap.networks import SHAPE, TinyResNet, tiny_denoiser, tiny_predictor
from tests.reports.conftest import (
    comparison,
    failure,
    grid,
    info,
    noise_accuracy,
    row,
    tradeoff,
    write_folder,
)

TRAINING = Training(steps=2, batch=2)
RECORDS, GRIDS = "results/records.jsonl", "results/grids.npz"
RAN = "pickle-ran"
"""A file that a hostile pickle makes."""


@dataclass(frozen=True)
class Case:
    """Something malformed.

    Attributes:
        name: in words.
        use: what is done with it in a folder: arguments of the command line, in which ``{here}``
            is the folder, or a call.
        damage: what is done to the folder before.
    """

    name: str
    use: tuple[str, ...] | Callable[[Path], object]
    damage: Callable[[Path], object] = lambda here: None


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, here: Path) -> None:
        self.here = here

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.here / RAN,)


def bank(predictor: Predictor | None = None) -> ExpertBank:
    return ExpertBank(predictor or tiny_predictor(), 2, ppap_adapter(2, 2.0))


def pixels(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=generator)


def furnish(here: Path) -> None:
    """Whole files of every kind, for the cases to damage and to use."""
    (here / "file").write_text("a file")
    (here / "empty").mkdir()
    (here / "hostile.pt").write_bytes(pickle.dumps({"conv1.weight": Hostile(here)}))
    save_file(TinyResNet().state_dict(), here / "weights.safetensors")
    torch.save(TinyResNet().state_dict(), here / "weights.pt")
    write_folder(
        here / "results",
        [
            row("ppap", "vit"),
            row("naive", "vit"),
            grid("ppap", "vit"),
            tradeoff("ppap", "vit", 3.0),
        ],
    )
    whole = bank()
    whole.save(here / "bank")
    transfer(whole, linear_schedule(), pixels(), training=TRAINING, file=here / "run.safetensors")
    synthesize(tiny_denoiser(), 4, DDIM(2), folder=here / "shards", shard=2)
    noise = np.random.default_rng(0).integers(256, size=(16, 16), dtype=np.uint8)
    Image.fromarray(noise).save(here / "grey.png")
    np.save(here / "map.npy", np.ones((4, 4), np.float32))
    Store(here / "store").put("ab12", Artifact({"label": "one", "inputs": []}))


# What is done to the folder.


def put(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda here: (here / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def cut(name: str, length: int) -> Callable[[Path], object]:
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:length])


def delete(name: str) -> Callable[[Path], object]:
    return lambda here: (here / name).unlink()


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    """Fields of a JSON object; those of ``...`` are left out."""

    def change(here: Path) -> None:
        found = json.loads((here / name).read_text()) | changes
        kept = {key: value for key, value in found.items() if value is not ...}
        (here / name).write_text(json.dumps(kept))

    return change


def add(record: dict[str, Any] | str, **changes: Any) -> Callable[[Path], object]:
    """A line to the records, of fields without those of ``...``, or as it is."""

    def append(here: Path) -> None:
        line = record
        if isinstance(record, dict):
            fields = {k: v for k, v in (record | changes).items() if v is not ...}
            line = json.dumps(fields)
        with (here / RECORDS).open("a") as file:
            file.write(f"{line}\n")

    return append


def arrays(**held: Any) -> Callable[[Path], object]:
    return lambda here: np.savez(here / GRIDS, **{"ppap/vit": held["it"]} if held else {})


def picture(name: str, mode: str, **options: Any) -> Callable[[Path], object]:
    return lambda here: Image.new(mode, (4, 4)).save(here / name, **options)


def objects(name: str) -> Callable[[Path], object]:
    """An NPY file whose array is a pickle."""
    return lambda here: np.save(here / name, np.array([Hostile(here)]), allow_pickle=True)


def hostile_zip(here: Path) -> None:
    """As torch saves, with a pickle that does harm."""
    with zipfile.ZipFile(here / "hostile-zip.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Hostile(here)))
        file.writestr("archive/version", "3")


# What is done with it.


def load(name: str) -> Callable[[Path], object]:
    return lambda here: load_weights(TinyResNet(), here / name)


def load_bank(here: Path) -> object:
    return ExpertBank.load(here / "bank", tiny_predictor())


def train(here: Path, **options: Any) -> object:
    given = {"images": pixels(), "training": TRAINING} | options
    owner = given.pop("bank", None) or bank()
    return transfer(owner, given.pop("schedule", linear_schedule()), given.pop("images"), **given)


def resume(here: Path) -> object:
    return train(here, file=here / "run.safetensors")


def shards(here: Path) -> object:
    found = synthesize(tiny_denoiser(), 4, DDIM(2), folder=here / "shards", shard=2)
    return found[:]


def call(function: Callable[..., object], *values: Any, **options: Any) -> Callable[[Path], object]:
    return lambda here: function(*values, **options)


def on(name: str, function: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda here: function(here / name)


def guide(
    target: Any, scale: Any = 1.0, task: Any = None, images: int = 2
) -> Callable[[Path], object]:
    """One sampling step's guidance, by class unless another task is named."""

    def step(here: Path) -> object:
        x_t, t = torch.zeros(images, *SHAPE), torch.full((images,), 500)
        return bank().guide(target, scale, task)(State(x_t, t))

    return step


RUN = ("run", "methods", "--budget", "smoke", "--predictors", "resnet", "--store", "{here}/new")
PLACES = ("--store", "{here}/new", "--output", "{here}/out")


def run(*arguments: str) -> tuple[str, ...]:
    return ("run", *arguments, *PLACES)


OPTIONS = {
    "no command": (),
    "an unknown command": ("fly",),
    "an unknown option": run("methods", "--colour"),
    "an unknown sweep": run("nothing"),
    "an unknown sweep among others": run("methods", "nothing"),
    "a sweep of another setting": run("dense"),
    "an unknown setting": run("methods", "--setting", "imagenet"),
    "a setting in capitals": run("methods", "--setting", "Fashion"),
    "an empty setting": run("methods", "--setting", ""),
    "an unknown budget": run("methods", "--budget", "huge"),
    "an unknown predictor": run("methods", "--predictors", "alexnet"),
    "an unknown predictor among others": run("methods", "--predictors", "resnet", "alexnet"),
    "a predictor twice": run("methods", "--predictors", "resnet", "resnet"),
    "no predictor": run("methods", "--predictors"),
    "an unknown engine": run("methods", "--engine", "slurm"),
    "an address without a cluster": run("methods", "--ray-address", "auto"),
    "a rehearsal of an embedded setting": run("methods", "--rehearse"),
    "a rehearsal with a budget": run("--setting", "glide", "--rehearse", "--budget", "full"),
    "quirks of GLIDE without its files": run("published-quirks", "--setting", "glide"),
    "quirks of ImageNet without its files": run("published-quirks", "--setting", "imagenet256"),
    **{
        f"{value} as --{name}": run("methods", f"--{name}", value)
        for name in ("seeds", "samples", "steps", "synthetic", "workers")
        for value in ("0", "-3", "1.5", "many")
    },
    "too few samples for every class": run("methods", "--samples", "3"),
    "a store of an unknown protocol": ("run", "methods", "--store", "carrier-pigeon://x"),
    "a store in this process's memory": ("run", "methods", "--store", "memory://x"),
    "a store that is a file": (*RUN[:-1], "{here}/file", "--output", "{here}/out"),
    "a store below a file": (*RUN[:-1], "{here}/file/store", "--output", "{here}/out"),
    "results that are a file": (*RUN, "--output", "{here}/file"),
    "results below a file": (*RUN, "--output", "{here}/file/out"),
    "results of another budget": (*RUN, "--output", "{here}/results"),
    "status of an unknown sweep": ("status", "nothing", "--store", "{here}/store"),
    "status of a store that is a file": ("status", "--store", "{here}/file"),
    "show without a key": ("show", "--store", "{here}/store"),
    "show of an unknown key": ("show", "z", "--store", "{here}/store", "--results", "{here}/empty"),
    "show of an empty key": ("show", "", "--store", "{here}/store", "--results", "{here}/results"),
    "garbage without records": ("gc", "--store", "{here}/store", "--results", "{here}/empty"),
    "garbage older than a word": ("gc", "--store", "{here}/store", "--older-than", "old"),
    "comparison with nothing": ("compare", "{here}/results", "{here}/none"),
    "comparison with a file": ("compare", "{here}/results", "{here}/file"),
    "comparison with an empty folder": ("compare", "{here}/results", "{here}/empty"),
    "comparison of one folder": ("compare", "{here}/results"),
    "a comparison that cannot be written": (
        "compare", "{here}/results", "{here}/results", "--csv", "{here}/file/a.csv",
    ),
    "publishing nothing": ("publish", "{here}/none", "--into", "{here}/published"),
    "publishing an empty folder": ("publish", "{here}/empty", "--into", "{here}/published"),
    "publishing into a file": ("publish", "{here}/results", "--into", "{here}/file"),
}  # fmt: skip

ROW = row("ppap", "resnet")
LINES = {
    "a line that is no JSON": add("damaged"),
    "a line that was cut short": add(json.dumps(ROW)[:200]),
    "a line that is a list": add("[1, 2]"),
    "a line that is a number": add("7"),
    "a line that is null": add("null"),
    "a line without fields": add("{}"),
    "a line of an unknown kind": add(ROW, kind="column"),
    "a kind that is a number": add(ROW, kind=3),
    "a line of another setting": add(ROW, setting="scenes"),
    "a line of another budget": add(ROW, budget="full"),
    **{
        f"a row without {name}": add(ROW, **{name: ...})
        for name in ("key", "sweep", "setting", "budget", "method", "predictor", "provenance")
    },
    **{
        f"a row whose {name} is {value!r}": add(ROW, **{name: value})
        for name, value in {
            "accuracy": 1.5, "accuracy_low": -0.1, "fid": "low", "experts": -1, "samples": 2.5,
            "seeds": [], "axes": [1], "scale": True, "reference": 1, "provenance": {}, "key": "",
            "precision": float("inf"),
        }.items()
    },
    "a row without its machine": add(ROW, provenance=ROW["provenance"] | {"hardware": {}}),
    "a row of a machine without a processor": add(
        ROW, provenance=ROW["provenance"] | {"hardware": {"cpu": 3}}
    ),
    "a row of machines in words": add(ROW, provenance=ROW["provenance"] | {"machines": ["a"]}),
    "a curve of two lengths": add(noise_accuracy("ppap", "vit", 0), accuracy=[0.5]),
    "a curve of words": add(noise_accuracy("ppap", "vit", 0), timesteps=["ten"], accuracy=[0.5]),
    "a trade-off without a scale": add(tradeoff("ppap", "vit", 1.0), scale=None),
    "a comparison of words": add(comparison(ROW, ROW, 0.1, 0.5), differences={"fid": "better"}),
    "a comparison without a p": add(comparison(ROW, ROW, 0.1, 0.5), differences={"fid": {}}),
    "a sweep with a figure that nobody can draw": add(info("rank", {}), figure="pie"),
    "a sweep whose scales are a list": add(info("rank", {}), scales=[1]),
    **{
        f"{value!r} on a {scale} axis": (
            lambda here, scale=scale, value=value: [
                add(info("rank", {"rank": scale}))(here),
                add(ROW, sweep="rank", axes={"rank": value})(here),
            ]
        )
        for scale, value in (
            ("linear", "word"), ("log", "word"), ("log", 0), ("log", -1), ("linear", None),
            ("linear", float("nan")), ("log", float("inf")), ("linear", True), ("linear", [1]),
        )
    },
    "bytes of no text": put(RECORDS, b"\xff\xfe\x00{\n"),
    "records in UTF-16": put(RECORDS, f"{json.dumps(ROW)}\n".encode("utf-16")),
    "no lines": put(RECORDS, ""),
    "pictures that are missing": delete(GRIDS),
    "pictures that are cut short": cut(GRIDS, 300),
    "pictures that are text": put(GRIDS, "pictures"),
    "pictures without the one that is named": arrays(),
    "pictures of floats": arrays(it=np.zeros((10, 6, 4, 4))),
    "pictures of another number of rows": arrays(it=np.zeros((3, 6, 4, 4), np.uint8)),
    "pictures of no pixels": arrays(it=np.zeros((10, 6, 0, 4), np.uint8)),
    "pictures of four channels": arrays(it=np.zeros((10, 6, 4, 4, 4), np.uint8)),
    "pictures that are a pickle": lambda here: np.savez(
        here / GRIDS, **{"ppap/vit": np.array([Hostile(here)], dtype=object)}
    ),
}  # fmt: skip

COMMANDS = [
    *(Case(name, arguments) for name, arguments in OPTIONS.items()),
    *(
        Case(f"comparison: {name}", ("compare", "{here}/results", "{here}/results"), damage)
        for name, damage in LINES.items()
    ),
    *(
        Case(f"publishing: {name}", ("publish", "{here}/results", "--into", "{here}/into"), damage)
        for name, damage in list(LINES.items())[::6]
    ),
    *(
        Case(f"{command[0]}: {name}", command, damage)
        for command in (
            ("show", "ab", "--store", "{here}/store", "--results", "{here}/results"),
            ("gc", "--store", "{here}/store", "--results", "{here}/results"),
            ("status", "methods", "--store", "{here}/store", "--output", "{here}/results"),
        )
        for name, damage in {
            "a line that is no JSON": LINES["a line that is no JSON"],
            "a line without fields": LINES["a line without fields"],
            "bytes of no text": LINES["bytes of no text"],
            "a comparison without its row": add(comparison(ROW, ROW, 0.1, 0.5), row=...),
            "a failure without a label": add(failure("a cell"), label=...),
            "a failure that is resolved in words": add(failure("a cell"), resolved="yes"),
            "provenance in words": add(ROW, provenance="mine"),
            "provenance without a commit": add(ROW, provenance={"created": "today"}),
            "provenance of a machine in words": add(
                ROW, provenance=ROW["provenance"] | {"hardware": "fast"}
            ),
        }.items()
    ),
]

DESCRIPTIONS = {
    "without ranges": edit("bank/bank.json", boundaries=...),
    "without an adapter": edit("bank/bank.json", adapter=...),
    "without its predictor's identity": edit("bank/bank.json", identity=...),
    "of an identity in words": edit("bank/bank.json", identity="mine"),
    "without digests": edit("bank/bank.json", experts=...),
    "of one digest": edit("bank/bank.json", experts=["0" * 16]),
    "of other digests": edit("bank/bank.json", experts=["0" * 16] * 2),
    "of the future": edit("bank/bank.json", format=999),
    "whose format is a word": edit("bank/bank.json", format="two"),
    "of ranges that fall": edit("bank/bank.json", boundaries=[0, 500, 400]),
    "of ranges in words": edit("bank/bank.json", boundaries=["low", "high"]),
    "of a number of ranges": edit("bank/bank.json", boundaries=5),
    "of more ranges than experts": edit("bank/bank.json", boundaries=[0, 300, 600, 1000]),
    "of an unknown part": edit("bank/bank.json", adapter=[{"part": "magic"}]),
    "of a part that does harm": edit("bank/bank.json", adapter=[{"part": "os.system"}]),
    "of a rank below one": edit("bank/bank.json", adapter=[{"part": "lora", "rank": 0}]),
    "of an unknown field": edit("bank/bank.json", adapter=[{"part": "lora", "colour": 1}]),
    "of no parts": edit("bank/bank.json", adapter=[]),
    "of an unknown task": edit("bank/bank.json", task={"kind": "smell"}),
    "of a task that is a word": edit("bank/bank.json", task="class"),
    "that is a list": put("bank/bank.json", "[]"),
    "that is cut short": cut("bank/bank.json", 40),
    "that is empty": put("bank/bank.json", ""),
    "that is missing": delete("bank/bank.json"),
}

CALLS = [
    # checkpoints
    *(
        Case(f"weights: {name}", load(file), damage)
        for name, file, damage in (
            ("missing", "none.pt", lambda here: None),
            ("a folder", "empty", lambda here: None),
            ("empty", "e.pt", put("e.pt", "")),
            ("empty safetensors", "e.safetensors", put("e.safetensors", "")),
            ("text", "t.pt", put("t.pt", "<html>404</html>")),
            ("text as safetensors", "t.safetensors", put("t.safetensors", "<html>404</html>")),
            ("a huge header", "h.safetensors", put("h.safetensors", b"\xff" * 16)),
            ("a pickle that does harm", "hostile.pt", lambda here: None),
            ("an archive that does harm", "hostile-zip.pt", hostile_zip),
            ("a list", "l.pt", lambda here: torch.save([torch.ones(2)], here / "l.pt")),
            ("numbers", "n.pt", lambda here: torch.save({"a": 1.0}, here / "n.pt")),
            ("a tensor", "x.pt", lambda here: torch.save(torch.ones(2), here / "x.pt")),
            ("of no layers", "o.pt", lambda here: torch.save({}, here / "o.pt")),
            (
                "of another network",
                "other.safetensors",
                lambda here: save_file({"weight": torch.ones(2)}, here / "other.safetensors"),
            ),
            *(
                (f"{name} cut to {length} bytes", name, cut(name, length))
                for name in ("weights.pt", "weights.safetensors")
                for length in (1, 9, 500, 1500)
            ),
        )
    ),
    Case("a denoiser that nobody published", call(load_denoiser, "adm-imagenet257")),
    Case("a denoiser with an unknown flag", call(load_denoiser, "adm-imagenet256", colour=1)),
    Case(
        "a denoiser's file missing", lambda here: load_denoiser("adm-imagenet256", here / "none.pt")
    ),
    Case("a denoiser's file of text", lambda here: load_denoiser("adm-imagenet256", here / "file")),
    Case("a classifier that nobody published", call(load_noisy_classifier, "adm-imagenet257")),
    *(
        Case(f"the predictor {name!r}", call(load_predictor, name))
        for name in (
            "",
            "resnet50",
            "timm/",
            "timm/no_such_model",
            "torchvision/no_such_model",
            "keras/vgg",
        )
    ),
    *(
        Case(f"a bank's description {name}", load_bank, damage)
        for name, damage in DESCRIPTIONS.items()
    ),
    Case("a bank in a file", lambda here: ExpertBank.load(here / "file", tiny_predictor())),
    Case(
        "a bank of another predictor's",
        lambda here: ExpertBank.load(here / "bank", tiny_predictor(1)),
    ),
    Case("a bank without an expert", load_bank, delete("bank/expert_1.safetensors")),
    Case("a bank with half an expert", load_bank, cut("bank/expert_1.safetensors", 700)),
    Case("a bank with an expert of text", load_bank, put("bank/expert_0.safetensors", "expert")),
    # trainings and synthetic images
    *(
        Case(f"a training's file cut to {length} bytes", resume, cut("run.safetensors", length))
        for length in (0, 1, 8, 300, 5000)
    ),
    Case(
        "a training's file of other tensors",
        resume,
        lambda here: save_file({"weight": torch.ones(2)}, here / "run.safetensors"),
    ),
    Case(
        "a training's file that does harm",
        resume,
        lambda here: (here / "run.safetensors").write_bytes(pickle.dumps(Hostile(here))),
    ),
    Case(
        "a training's file of another training",
        lambda here: train(here, file=here / "run.safetensors", images=pixels(5)),
    ),
    Case(
        "a training's file below a file",
        lambda here: train(here, file=here / "file" / "x.safetensors"),
    ),
    Case("a training's file of another kind", lambda here: train(here, file=here / "x.pt")),
    Case("a training without images", lambda here: train(here, images=pixels(0))),
    Case("a training on floats", lambda here: train(here, images=pixels().float())),
    Case("a training on another schedule", lambda here: train(here, schedule=linear_schedule(50))),
    Case(
        "a training on too few labels",
        lambda here: train(here, objective=Supervision(torch.zeros(3).long())),
    ),
    Case(
        "a training on labels out of range",
        lambda here: train(here, objective=Supervision(torch.full((4,), 9))),
    ),
    Case("a training on labels in a list", call(Supervision, [1, 2])),
    *(
        Case(f"a training of {change}", call(replace, TRAINING, **change))
        for change in (
            {"steps": 0},
            {"steps": -1},
            {"batch": 0},
            {"start": "next"},
            {"order": "upwards"},
            {"precision": "fp64"},
            {"shared_share": 0.0},
            {"shared_share": 1.0},
            {"order": "together"},
        )
    ),
    Case("a teacher of no batch", call(Distillation, batch=0)),
    Case(
        "synthetic images in a folder of others",
        lambda here: synthesize(tiny_denoiser(), 4, DDIM(3), folder=here / "shards", shard=2),
    ),
    Case(
        "synthetic images in a folder of something else",
        lambda here: synthesize(tiny_denoiser(), 4, DDIM(2), folder=here / "bank"),
    ),
    Case(
        "synthetic images in a file",
        lambda here: synthesize(tiny_denoiser(), 4, DDIM(2), folder=here / "file"),
    ),
    Case("shards of no images", call(synthesize, tiny_denoiser(), 4, DDIM(2), shard=0)),
    Case("fewer than no images", call(synthesize, tiny_denoiser(), -1, DDIM(2))),
    Case("seeds beyond 32 bits", call(synthesize, tiny_denoiser(), 4, DDIM(2), 2**32 - 2)),
    Case("seeds below 0", call(synthesize, tiny_denoiser(), 4, DDIM(2), -1)),
    Case("a synthesis' description cut short", shards, cut("shards/images.json", 20)),
    Case("a synthesis' description that is a list", shards, put("shards/images.json", "[]")),
    Case("a synthesis without a description", shards, delete("shards/images.json")),
    # images and maps
    *(
        Case(f"{kind}: {name}", lambda here, file=file, use=use: use(here / file), damage)
        for kind, use in (
            ("a picture", read_picture),
            ("greys", read_grey),
            ("labels", read_labels),
        )
        for name, file, damage in (
            ("missing", "none.png", lambda here: None),
            ("a folder", "empty", lambda here: None),
            ("text", "file", lambda here: None),
            ("cut short", "grey.png", cut("grey.png", 150)),
            ("a pickle", "hostile.pt", lambda here: None),
        )
    ),
    Case(
        "a picture of floats beyond 1",
        on("f.tif", read_picture),
        lambda here: Image.fromarray(np.full((4, 4), 9.0, np.float32)).save(here / "f.tif"),
    ),
    Case("greys of three channels", on("c.png", read_grey), picture("c.png", "RGB")),
    Case("labels with loss", on("l.jpg", read_labels), picture("l.jpg", "L")),
    Case("labels of three channels", on("c.png", read_labels), picture("c.png", "RGB")),
    *(
        Case(f"{kind} that {name}", on("map.npy", use), damage)
        for kind, use in (
            ("depth", load_depth),
            ("labels", load_labels),
            ("a mask", partial(mask_labels, inside=1)),
        )
        for name, damage in (
            ("is a pickle", objects("map.npy")),
            ("is cut short", cut("map.npy", 20)),
            ("has three dimensions", lambda here: np.save(here / "map.npy", np.ones((3, 4, 4)))),
            ("has no pixels", lambda here: np.save(here / "map.npy", np.ones((0, 4)))),
            ("holds words", lambda here: np.save(here / "map.npy", np.array([["a"]]))),
        )
    ),
    Case(
        "infinite depth",
        on("map.npy", load_depth),
        lambda here: np.save(here / "map.npy", np.full((4, 4), np.inf)),
    ),
    Case("labels that are floats", on("map.npy", load_labels)),
    Case(
        "labels below -1",
        on("map.npy", load_labels),
        lambda here: np.save(here / "map.npy", np.full((4, 4), -7)),
    ),
    Case("a folder of images that is empty", lambda here: ImageFolder.of(here / "empty", 8)),
    Case("a folder of images that is a file", lambda here: ImageFolder.of(here / "file", 8)),
    Case("CIFAR-10 that is missing", lambda here: load_cifar(here / "empty", "test")),
    Case(
        "CIFAR-10 that does harm",
        lambda here: load_cifar(here, "test"),
        lambda here: [
            (here / "cifar-10-batches-py").mkdir(),
            (here / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Hostile(here))),
        ],
    ),
    Case("floats for bytes", call(from_uint8, torch.zeros(2))),
    # targets
    *(
        Case(f"a class of {target!r}", guide(target))
        for target in (
            5,
            -1,
            torch.tensor([1, 7]),
            torch.tensor([[1], [2]]),
            torch.tensor([1.5, 2.0]),
            [1, 2, 3],
            torch.tensor([True, False]),
            torch.zeros(0).long(),
            "cat",
            None,
        )
    ),
    *(
        Case(f"a scale of {scale!r}", guide(1, scale))
        for scale in (torch.ones(3), torch.ones(2, 2), "strong", float("nan"), float("inf"))
    ),
    Case("a bank of classes guided by depth", guide(torch.zeros(2, 8, 8), task=DepthTask())),
    Case(
        "a bank of classes guided by labels",
        guide(torch.zeros(2, 8, 8).long(), task=SegmentationTask()),
    ),
    # configurations of the library
    *(
        Case(f"the schedule respaced to {spacing!r}", call(linear_schedule().respace, spacing))
        for spacing in (
            "ddim0",
            "ddim7777",
            "ddim",
            "",
            "ten",
            "2000",
            "0",
            "-3",
            "5,,5",
            "9 to 995",
            "8 to x",
            "linspace0",
            "trailing1001",
        )
    ),
    *(
        Case(f"the signal levels {levels}", call(Schedule, np.array(levels)))
        for levels in (
            [],
            [0.5, 0.6],
            [0.5, 0.5],
            [1.0, 0.5],
            [0.5, 0.0],
            [0.5, float("nan")],
            [[0.5]],
        )
    ),
    Case("an unknown schedule", call(make_schedule, "sigmoid")),
    *(
        Case(f"ranges {bounds}", call(NoiseRanges, bounds))
        for bounds in ((), (0,), (1, 1000), (0, 500, 500), (0, 600, 500))
    ),
    Case("no ranges", call(NoiseRanges.equal, 0)),
    Case("more ranges than timesteps", call(NoiseRanges.equal, 5, 4)),
    Case("ranges of negative weights", call(NoiseRanges.balanced, -torch.ones(10), 2)),
    Case("a timestep outside", call(NoiseRanges.equal(2).expert_of, torch.tensor([1000]))),
    Case("LoRA of no rank", call(Lora, rank=0)),
    Case("LoRA of unknown scaling", call(Lora, linear_scaling="double")),
    *(
        Case(f"{part.__name__} of a pattern that is none", call(part, **{name: "("}))
        for part, name in (
            (Lora, "layers"),
            (Peft, "layers"),
            (Norms, "layers"),
            (Head, "layers"),
            (Biases, "exclude"),
        )
    ),
    Case(
        "an adapter that finds nothing",
        lambda here: ExpertBank(tiny_predictor(), 2, Adapter((Lora(layers="nowhere"),))),
    ),
    Case("an adapter of no parts", lambda here: ExpertBank(tiny_predictor(), 2, Adapter(()))),
    Case(
        "a bank of a function",
        lambda here: ExpertBank(Predictor(lambda x: x.mean((2, 3)), (0.5,) * 3, (0.5,) * 3), 2),
    ),
    Case("DPM-Solver of order 3", call(DPMSolver, order=3)),
    Case("DPM-Solver of two spacings", call(DPMSolver, last=80, timestep_spacing="leading")),
    Case("an interval without timesteps", call(GuidanceInterval, None, 500, 400)),
    Case("a gradient reused never", call(GradientReuse, None, 0)),
    Case(
        "sampling with words for seeds", lambda here: sample(tiny_denoiser(), "ab", sampler=DDIM(2))
    ),
    Case(
        "sampling with negative seeds", lambda here: sample(tiny_denoiser(), [-1], sampler=DDIM(2))
    ),
    Case(
        "sampling with no batch", lambda here: sample(tiny_denoiser(), 2, sampler=DDIM(2), batch=0)
    ),
    Case(
        "sampling for other targets",
        lambda here: sample(tiny_denoiser(), 2, bank().guide([1, 2, 3]), DDIM(2)),
    ),
]
