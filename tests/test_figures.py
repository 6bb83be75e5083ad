"""Every figure in the prose of the documents is that of a committed record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ablations.settings.shipped import WEIGHTS
from ablations.sweeps.recipes import FULL as FULL_TUNING
from ablations.sweeps.recipes import LORA
from tests.records import (
    CLAIMS,
    LONG,
    PEERS,
    PEERS_LONG,
    PEERS_ON_SCENES,
    RESULTS,
    SCENES,
    TUNING,
    benchmark,
    benchmark_row,
    best_point,
    claim_of,
    records_of,
    row_of,
    rows_of,
)

ROOT = Path(__file__).parents[1]


def text(*documents: str) -> str:
    """Documents on one line."""
    return re.sub(r"\s+", " ", "\n".join((ROOT / name).read_text() for name in documents))


def value(place: str) -> float:
    """Of ``folder/table/method/predictor/column``."""
    *row, column = place.split("/")
    return float(row_of(*row)[column])


def share(place: str) -> float:
    return 100 * value(place)


def microseconds(group: str, way: str) -> float:
    return 1000 * float(benchmark_row("bench-kernels-nvidia-h200", group, way)["ms"])


def on_the_gpu(group: str, way: str, column: str) -> float:
    return float(benchmark_row("bench-nvidia-h200", group, way)[column])


def whole_calls(network: str, mode: str, *columns: str) -> list[float]:
    """Of the fast path, for 256 images."""
    group = f"guided sample, DDIM-25, 256, {network}, {mode}"
    return [on_the_gpu(group, "fast path", column) for column in columns]


def apart(network: str, mode: str, way: str) -> float:
    """The largest difference of a pixel, in the median sample."""
    machine = benchmark("bench-nvidia-h200")["machine"]
    return float(machine["apart"][f"{network}, {mode}"][way]["images"]["median"])


def contrast(name: str, *columns: str, sweep: str = "claims") -> list[float]:
    """Of a claim about the ResNet."""
    found = claim_of(CLAIMS, sweep, name, "resnet")
    return [float(found[column]) for column in columns]


def settled(
    folder: str, sweep: str, name: str, predictor: str, verdict: str, *columns: str
) -> list[float]:
    """Of a claim that has the verdict with which it is stated."""
    found = claim_of(folder, sweep, name, predictor)
    assert found["verdict"] == verdict
    return [float(found[column]) for column in columns]


def further_at_equal_cost(method: str) -> list[float]:
    """By how much calibrated experts are ahead with the better denoiser of scenes."""
    name = f"ppap, calibrated, reaches further than {method}"
    return settled(PEERS_LONG, "peers", name, "resnet", "supported", *INTERVAL)


def one_as_far_as_another(one: str, other: str) -> list[float]:
    """The best scores of two methods there, and how many times as far the first one's is."""
    ours, theirs = (best_point(PEERS_LONG, each, "resnet", "peers") for each in (one, other))
    ratio = float(ours["pixel_fid"]) / float(theirs["pixel_fid"])
    return [float(ours["score"]), ratio, float(theirs["score"])]


def above_the_best(arm: str, rate: float, predictor: str = "resnet") -> float:
    """By how many per cent an arm's validation loss at a learning rate is above the least."""
    (tried,) = (
        {each["learning_rate"]: each["loss"] for each in record["search"]}
        for record in records_of(TUNING)
        if (record.get("method"), record.get("predictor")) == (arm, predictor)
    )
    return 100 * (tried[rate] / min(tried.values()) - 1)


def quirk(arm: str) -> float:
    """Accuracy of an arm of the sweep ``published-quirks``."""
    return value(f"fashion-default/published-quirks/{arm}/resnet/accuracy")


def peer(method: str, column: str) -> float:
    return value(f"{PEERS}/peers/{method}/resnet/{column}")


def peer_on_scenes(name: str, verdict: str, *columns: str) -> list[float]:
    """Of a claim about ways to guide scenes by class."""
    return settled(PEERS_ON_SCENES, "peers", name, "resnet", verdict, *columns)


def turned(folder: str, sweep: str, name: str, predictor: str, verdict: str) -> list[float]:
    """A difference below 0 of a settled claim, and its interval, without their signs."""
    columns = ("difference", "high", "low")
    return [-value for value in settled(folder, sweep, name, predictor, verdict, *columns)]


def worse(folder: str, sweep: str, name: str, predictor: str = "resnet") -> list[float]:
    """By how much what is refuted is worse, with its interval."""
    return turned(folder, sweep, name, predictor, "refuted")


def fewest_wrong(column: str, *methods: str) -> list[float]:
    """Of segmentations, where a way to guide has the fewest wrong pixels."""
    found = (
        best_point(PEERS_ON_SCENES, method, "segmentation", "peers", best=min) for method in methods
    )
    return [float(point[column]) for point in found]


def less_wrong(method: str) -> list[float]:
    """By how much a way to guide segmentations beats PPAP at equal distance."""
    return turned(PEERS_ON_SCENES, "peers", f"{method} beats ppap", "segmentation", "supported")


def times_the_cost_of_ppap(
    method: str, folder: str = PEERS_ON_SCENES, predictor: str = "resnet"
) -> float:
    """Of an image, both in times of one without guidance."""
    times = [
        float(row_of(folder, "peers", one, predictor)["relative_seconds"])
        for one in (method, "ppap")
    ]
    return times[0] / times[1]


def least_ahead(folder: str, refined: str) -> list[float]:
    """By how much it reaches further than the next best of eight at its cost without labels."""
    family = f"{refined}: far, at equal cost"
    found = [
        row
        for row in rows_of(folder, "peers-contrasts")
        if (row["family"], row["predictor"]) == (family, "resnet")
        and not row["claim"].endswith(LABELLED)
    ]
    assert [row["verdict"] for row in found] == ["supported"] * 8
    least = min(found, key=lambda row: float(row["difference"]))
    return [float(least[column]) for column in INTERVAL]


def ahead_of_labels(*verbs: str) -> list[float]:
    """By how much it is ahead of a network trained on labels, on garments and on scenes."""
    return [
        figure
        for verb in verbs
        for folder, name in ((PEERS, "held back"), (PEERS_ON_SCENES, "calibrated"))
        for figure in settled(
            folder, "peers", f"ppap, {name}, {verb} {LABELLED}", "resnet", "open", *INTERVAL
        )
    ]


def peers_settled(folder: str, method: str, verdict: str) -> list[float]:
    """By how much a way to guide is better than PPAP-5 as published, at equal distance."""
    return settled(folder, "peers", f"{method} beats ppap", "resnet", verdict, *INTERVAL)


def split_by_thousands(count: float) -> list[float]:
    """A number as it is written, with a space before its last three digits."""
    return list(map(float, divmod(round(count), 1000)))


def at_full_scale() -> list[float]:
    """The paper's synthetic images, and after how many samples PPAP is cheaper than FreeDoM."""
    return [
        *split_by_thousands(500_000),
        *split_by_thousands(peer("freedom", "cheaper_after_at_scale")),
    ]


def costs_of(method: str) -> list[float]:
    """Of an image, in PPAP's, on garments and on scenes."""
    return [times_the_cost_of_ppap(method, folder) for folder in (PEERS, PEERS_ON_SCENES)]


def chosen_by_the_predictor(folder: str, predictor: str) -> list[float]:
    """By how much the preset that it finds is better than as published, at equal distance."""
    name = "chosen by the predictor: nearer"
    return settled(folder, "refinements", name, predictor, "supported", *INTERVAL)


def experts_help(method: str) -> list[float]:
    """How much better a method is with experts in place of the clean predictor."""
    return settled(PEERS, "peers", f"experts help {method}", "resnet", "supported", *INTERVAL)


def of_depth(method: str, other: str) -> tuple[list[float], list[float]]:
    """By how much a way to guide towards depth beats another, at equal distance and further."""
    comma = "" if other == "ppap" else ","
    near, further = (
        turned(
            PEERS_ON_SCENES, "peers", f"{method}{comma} {is_better} {other}", "depth", "supported"
        )
        for is_better in ("beats", "reaches further than")
    )
    assert further[0] > 0
    return near, further


def more_wrong(method: str) -> list[float]:
    """By how much a way to guide segmentations is behind PPAP at the best of strengths."""
    name = f"{method} {FURTHER}"
    return settled(PEERS_ON_SCENES, "peers", name, "segmentation", "refuted", *INTERVAL)


def at_once(method: str) -> list[float]:
    """What the judge says of samples that are guided by class, depth and segments at once."""
    row = row_of(PEERS_ON_SCENES, "peers", method, "all three")
    return [float(row[column]) for column in ("accuracy", "depth_rmse", "pixel_error")]


def with_the_vit(name: str, verdict: str) -> list[float]:
    """Of a claim about ways to guide garments by the ViT."""
    return settled(PEERS, "peers", name, "vit", verdict, *INTERVAL)


def bests(folder: str, predictor: str, *arms: str) -> list[float]:
    """The best accuracy of arms of the claims."""
    return [float(best_point(folder, arm, predictor)["score"]) for arm in arms]


def behind_among(*classes: int) -> list[list[float]]:
    """By how much FreeDoM in 5 steps reaches less far, its best score and PPAP-5's, by classes."""
    found = []
    for count in classes:
        folder = PEERS if count == 10 else PEERS.replace("large", str(count))
        claim = claim_of(folder, "peers", f"freedom in 5 steps {FURTHER}", "resnet")
        assert claim["verdict"] == "refuted"
        for name in ("beats ppap", FURTHER):
            all_steps = claim_of(folder, "peers", f"freedom {name}", "resnet")
            settled_by = abs(float(all_steps["difference"] or 0)) > float(all_steps["margin"] or 0)
            assert all_steps["verdict"] == "open" or not settled_by
        behind = [-float(claim[column]) for column in ("difference", "high", "low")]
        found.append([*behind, float(claim["ours_mean"]), float(claim["theirs_mean"])])
    return found


def held_back(claim: str, verdict: str, *columns: str) -> list[float]:
    """Of a claim about five data-free experts and a rival, both held back."""
    name = f"held back, {claim}"
    return settled(CLAIMS, "refinements", name, "resnet", verdict, *INTERVAL, *columns)


def best_on_garments(method: str, *predictors: str) -> list[float]:
    """The best score of a way to guide garments, by one predictor and another."""
    return [float(best_point(PEERS, method, each, "peers")["score"]) for each in predictors]


def not_settled(name: str, *columns: str) -> list[float]:
    """Of a claim about other ways to guide that is open."""
    return settled(PEERS, "peers", name, "resnet", "open", *columns)


def times_as_fast(
    network: str, way: str, *, interval: bool = False, record: str = "bench-cpu"
) -> list[float]:
    """As the reference, in whole calls of 256 images."""
    found = benchmark_row(record, f"PPAP-5, guided DDIM-25, {network}, 256 images", way)
    return [found["ratio"], *(found["ratio_interval"] if interval else [])]


def eight_steps(name: str, *columns: str) -> list[float]:
    """What 8 steps of DPM-Solver++ give, less 25 of DDIM."""
    return [abs(value) for value in contrast(name, *columns, sweep="speed-quality")]


def equally_accurate(name: str) -> float:
    """The accuracy at which two ways to draw are compared."""
    return float(claim_of(CLAIMS, "speed-quality", name, "resnet")["compared"].split()[-1])


def with_a_better_denoiser(name: str, *columns: str) -> list[float]:
    """Of a claim on scenes that it supports."""
    return settled(LONG, "claims", name, "class", "supported", *columns)


def at_scale(folder: str, scale: str) -> list[float]:
    """Accuracy and distance of PPAP-5 on scenes."""
    (found,) = (
        row for row in rows_of(folder, "claims-curves")
        if (row["method"], row["predictor"], row["scale"]) == ("ppap", "class", scale)
    )  # fmt: skip
    return [float(found["score"]), float(found["pixel_fid"])]


def facts_of(setting: str) -> dict[str, Any]:
    """What is told of its denoiser."""
    found: dict[str, Any] = json.loads((WEIGHTS / setting / "zoo.json").read_text())
    return dict(found["models"]["denoiser"])


def unguided_fid(setting: str) -> float:
    facts = facts_of(setting)
    return float(facts["fid"] if "fid" in facts else facts["unguided"]["fid"])


def trained_for(arm: str, *steps: int) -> list[float]:
    """Accuracy of an arm by its length."""
    place = "fashion-default/training-length/{}, {} steps/resnet/accuracy"
    return [value(place.format(arm, each)) for each in steps]


def behind_one(steps: int) -> list[float]:
    """By how much less accurate five labelled networks are than one: the least and the most."""
    place = "fashion-default/capacity/width {0}, {1}, {2} steps/resnet-{0}/accuracy"
    found = [
        value(place.format(width, "1 expert", steps))
        - value(place.format(width, "5 experts", steps))
        for width in (4, 8, 16, 32)
    ]
    return [min(found), max(found)]


def fid_of_a_thousand(setting: str) -> float:
    """Of as many samples as a learning curve is measured on."""
    facts = facts_of(setting)
    every = [facts["unguided"], *facts["curve"][::-1]]
    return float(next(each["fid"] for each in every if each["samples"] == 1000))


FURTHER = "reaches further than ppap"
LABELLED = "single (ADM-G)"
FASTER = f"{CLAIMS}+learning_rate=0.01"
INTERVAL = ("difference", "low", "high")
HELD = "2M-8 to 80, held back"
NETWORKS = ("resnet", "vit")
PRESETS = "bench-presets-cpu"
DEPARTURES = (
    "one optimiser state for all",
    "student sees raw images",
    "boundaries to the lower expert",
)
DEFAULT, DENSE = "fashion-default/methods", "scenes-default/dense-experts"
FULL = "fashion-full/methods"
PEFT, MEMORY = "fashion-default/peft", "fashion-default/memory"

README = {
    "at every width, by 0.010 to 0.130, and after 800 by 0.030 at most": lambda: [
        *behind_one(200),
        800.0,
        behind_one(800)[-1],
    ],
    "held back is better than as published on garments, by 0.062 [0.051, 0.072], and": lambda: (
        settled(CLAIMS, "refinements", "held back: nearer", "resnet", "supported", *INTERVAL)
    ),
    "better on scenes, by 0.109 [0.081, 0.136], and": lambda: settled(
        SCENES, "refinements", "half the marginal: nearer", "class", "supported", *INTERVAL
    ),
    "on both, by 0.062 and by 0.096 [0.053, 0.138], and": lambda: [
        *chosen_by_the_predictor(CLAIMS, "resnet")[:1],
        *chosen_by_the_predictor(SCENES, "class"),
    ],
    "never seen, by 0.077 [0.039, 0.114]: all": lambda: chosen_by_the_predictor(LONG, "class"),
    "by ✓ 0.115 [0.073, 0.157] or more, on scenes (calibrated) by ✓ 0.120 [0.076, 0.164]": lambda: [
        *least_ahead(PEERS, "ppap, held back"),
        *least_ahead(PEERS_ON_SCENES, "ppap, calibrated"),
    ],
    "after 447 s of preparation |": lambda: [peer("ppap, held back", "preparation_seconds")],
    "garments ✓ 0.090 [0.047, 0.134], scenes ? 0.100 [0.031, 0.168] | 1.6 and 2.5 |": lambda: [
        *peers_settled(PEERS, "freedom + experts on x_t", "supported"),
        *peers_settled(PEERS_ON_SCENES, "freedom + experts on x_t", "open"),
        *costs_of("freedom + experts on x_t"),
    ],
    "garments ? 0.043 [-0.009, 0.094], scenes ? 0.131 [0.039, 0.223]; with the ViT ✓ 0.200 "
    "[0.140, 0.261], with a better denoiser ✓ 0.239 [0.177, 0.301] | 5.4 and 5.4; 5.3, 5.5": (
        lambda: [
            *peers_settled(PEERS, "freedom", "open"),
            *peers_settled(PEERS_ON_SCENES, "freedom", "open"),
            *with_the_vit("freedom beats ppap", "supported"),
            *peers_settled(PEERS_LONG, "freedom", "supported"),
            *costs_of("freedom"),
            times_the_cost_of_ppap("freedom", PEERS, "vit"),
            times_the_cost_of_ppap("freedom", PEERS_LONG),
        ]
    ),
    "garments ? 0.014 [-0.030, 0.057], scenes ✓ 0.125 [0.067, 0.183] | 1.6 and 1.4 |": lambda: [
        *peers_settled(PEERS, "elucd + experts on x_0", "open"),
        *peers_settled(PEERS_ON_SCENES, "elucd + experts on x_0", "supported"),
        *costs_of("elucd + experts on x_0"),
    ],
    "is 0.125 [0.067, 0.183] better, supported, for 1.4 times": lambda: [
        *peers_settled(PEERS_ON_SCENES, "elucd + experts on x_0", "supported"),
        costs_of("elucd + experts on x_0")[1],
    ],
    "reaches 0.990, the most": lambda: [
        max(
            float(row["score"])
            for row in rows_of(PEERS_ON_SCENES, "peers-curves")
            if row["predictor"] == "resnet"
        )
    ],
    "to be (+0.014 [-0.030, 0.057])": lambda: peers_settled(
        PEERS, "elucd + experts on x_0", "open"
    ),
    "better (-0.009 [-0.116, 0.097] and -0.036 [-0.098, 0.026])": lambda: [
        *peers_settled(PEERS_ON_SCENES, "universal", "open"),
        *peers_settled(PEERS_ON_SCENES, "x0-gradient", "open"),
    ],
    "against FreeDoM after 1333 images": lambda: [peer("freedom", "cheaper_after_passes")],
    "with 500 000 synthetic images, after 166 667, which is predicted": at_full_scale,
    "at the paper's 500 000 synthetic images after 166 667, as predicted": at_full_scale,
    "garments ✗ -0.101 [-0.141, -0.061], scenes ✗ -0.313 [-0.361, -0.264] | 1.5 and 1.4": lambda: [
        *peers_settled(PEERS, "elucd", "refuted"),
        *peers_settled(PEERS_ON_SCENES, "elucd", "refuted"),
        *costs_of("elucd"),
    ],
    "garments 0.820 accurate, as near to real images as unguided samples | 10.0 |": lambda: [
        *best_on_garments("fk-steering", "resnet"),
        times_the_cost_of_ppap("fk-steering", PEERS),
    ],
    "less error, by ✓ 0.021 [0.015, 0.026] and ✓ 0.022 [0.014, 0.030]": lambda: [
        *of_depth("ppap, held back", "ppap")[0],
        *less_wrong("ppap, held back"),
    ],
    "after 2285 images of garments and 2278 of": lambda: [
        peer("freedom", "cheaper_after"),
        float(row_of(PEERS_ON_SCENES, "peers", "freedom", "resnet")["cheaper_after"]),
    ],
    "whose unguided samples have an FID of 1.2": lambda: [unguided_fid("fashion-large")],
    "open at an FID of 4.9 and are supported at 1.9": lambda: [
        fid_of_a_thousand("scenes-large"),
        fid_of_a_thousand("scenes-long"),
    ],
    "hair: p = 0.049 at equal": lambda: with_a_better_denoiser(
        "data-free experts beat one", "p_corrected"
    ),
    "best of scales 0.054 [0.002, 0.106], p = 0.049": lambda: with_a_better_denoiser(
        "data-free experts reach further than one", *INTERVAL, "p_corrected"
    ),
    "at scale 8 PPAP-5 is 0.704 accurate at a distance of 39.3 there, and 0.694 at 38.4": lambda: [
        8.0,
        *at_scale(LONG, "8"),
        *at_scale(SCENES, "8"),
    ],
    "whole calls [5.76 and 5.51 times as fast]": lambda: [
        *whole_calls("resnet", "tf32", "ratio"),
        *whole_calls("vit", "tf32", "ratio"),
    ],
    "in TF32, 3036 images a second": lambda: whole_calls("resnet", "tf32", "images_per_second"),
    "from 400 to 1600 steps in all, data-free ones rise from 0.903 to 0.970": lambda: [
        400.0,
        1600.0,
        *trained_for("5 data-free, LoRA", 400, 1600),
    ],
    "and one from 0.930 to 0.940": lambda: trained_for("1 data-free, LoRA", 400, 1600),
    "(FID 7.8), three": lambda: [unguided_fid("fashion")],
    "the interval ends at 0.015, at": lambda: eight_steps("2M-8 to 80 is as near", "low"),
    "scales at 0.011, and equivalence within 0.01 is open": lambda: eight_steps(
        "2M-8 to 80 reaches as far", "high", "margin"
    ),
    "supported, 0.062 [0.051, 0.073] at": lambda: eight_steps(f"{HELD} is nearer", *INTERVAL),
    "it has 0.30 of the distance": lambda: eight_steps(f"{HELD}: distance", "ours_mean"),
    "0.40 of the saturated pixels": lambda: eight_steps(f"{HELD}: saturation", "ours_mean"),
    "and 0.108 more recall": lambda: eight_steps(f"{HELD}: recall", "difference"),
    "on garments, too, but at 2.4 times the distance": lambda: [
        float(best_point(CLAIMS, "DDIM-25, calibrated", "resnet", "speed-quality")["pixel_fid"])
        / float(best_point(CLAIMS, "DDIM-25", "resnet", "speed-quality")["pixel_fid"])
    ],
    "where both are 0.94 accurate": lambda: [equally_accurate(f"{HELD}: distance")],
    "fine-tuned on labels (+0.006 [-0.008, 0.019] at": lambda: held_back(
        "single is beaten", "open"
    ),
    "five (-0.003 [-0.009, 0.004], open)": lambda: held_back("multi-experts is beaten", "open"),
    "by 0.029 [0.012, 0.045] better at the best of scales, supported, p = 0.034": lambda: held_back(
        "ppap, 1 expert is left behind", "supported", "p_corrected"
    ),
    "by 0.024 [0.008, 0.040] at equal distance, open, p = 0.070": lambda: held_back(
        "ppap, 1 expert is beaten", "open", "p_corrected"
    ),
    "One noise-aware network is 0.911 accurate": lambda: bests(CLAIMS, "resnet", "single"),
    "one noise-aware network is 0.710 accurate": lambda: bests(SCENES, "class", "single"),
    "and five are 0.751, where": lambda: bests(SCENES, "class", "multi-experts"),
    "one network is 0.750 accurate": lambda: bests(LONG, "class", "single"),
    "and five are 0.802; five beat one by 0.052 [0.014, 0.090]": lambda: [
        *bests(LONG, "class", "multi-experts"),
        *settled(LONG, "claims", "experts beat one network", "class", "supported", *INTERVAL),
    ],
    "supported and is open: 0.040 [0.000, 0.080]": lambda: settled(
        SCENES, "claims", "experts beat one network", "class", "open", *INTERVAL
    ),
    "reaches 0.975 on garments and 0.925 on scenes": lambda: [
        float(best_point(folder, LABELLED, "resnet", "peers")["score"])
        for folder in (PEERS, PEERS_ON_SCENES)
    ],
    "reaches 0.914 in 25 steps of DDIM and as published 0.756": lambda: [
        float(best_point(SCENES, "DDIM-25, calibrated", "class", "speed-quality")["score"]),
        25.0,
        float(best_point(SCENES, "DDIM-25", "class", "speed-quality")["score"]),
    ],
    "by 0.068 [0.032, 0.104] at equal distance, and 25 are": lambda: [
        *worse(SCENES, "speed-quality", "2M-8 to 80 is as near", "class"),
        25.0,
    ],
    "sees falls from 0.196 to 0.074": lambda: [
        float(best_point(SCENES, way, "class", "speed-quality")["gap"])
        for way in ("DDIM-25", "DDIM-25, calibrated")
    ],
    "held back, its gap grows from 0.195 to 0.260": lambda: [
        float(best_point(SCENES, method, "class", "refinements")["gap"])
        for method in ("ppap", "held back")
    ],
    "to be worse by 0.461 [0.367, 0.555] and 0.463 [0.323, 0.603]": lambda: [
        *worse(PEERS_ON_SCENES, "peers", "lgd-mc beats ppap"),
        *worse(PEERS_ON_SCENES, "peers", "adam beats ppap"),
    ],
    "reach 0.940, and on x_t are 0.060 [0.003, 0.117] better": lambda: [
        float(best_point(PEERS_ON_SCENES, "tfg + experts on x_0", "resnet", "peers")["score"]),
        *settled(
            PEERS_ON_SCENES, "peers", "tfg + experts on x_t beats ppap", "resnet", "open", *INTERVAL
        ),
    ],
    "within Adam they are 0.290 [0.187, 0.393] worse": lambda: worse(
        PEERS_ON_SCENES, "peers", "adam + experts on x_t beats ppap"
    ),
    "on scenes it is 0.785 accurate at 10.3 times": lambda: [
        float(best_point(PEERS_ON_SCENES, "fk-steering", "resnet", "peers")["score"]),
        times_the_cost_of_ppap("fk-steering"),
    ],
    "is 0.911 accurate at the best of its scales": lambda: [
        float(best_point(CLAIMS, "single", "resnet")["score"])
    ],
    "and five are 0.959, where": lambda: [
        float(best_point(CLAIMS, "multi-experts", "resnet")["score"])
    ],
    "without labels (-0.007 [-0.019, 0.006])": lambda: contrast("adapters suffice", *INTERVAL),
    "and with (-0.005 [-0.015, 0.004])": lambda: contrast(
        "adapters suffice with labels", *INTERVAL
    ),
    "at equal distance, 0.035 [0.025, 0.046]": lambda: contrast(
        "experts beat one network", *INTERVAL
    ),
    "is 0.665 with PPAP-5, which trains 5.8 % of an expert, and 0.871 with": lambda: [
        float(best_point(CLAIMS, "ppap", "vit")["score"]),
        share(f"{DEFAULT}/ppap/vit/trainable_share"),
        float(best_point(CLAIMS, "multi-experts", "vit")["score"]),
    ],
    "FreeDoM in 5 steps is 0.355 [0.265, 0.446] worse than": lambda: [
        5.0,
        *worse(PEERS, "peers", "freedom in 5 steps beats ppap"),
    ],
    "universal guidance 0.178 [0.123, 0.232] and": lambda: worse(
        PEERS, "peers", "universal in 5 steps beats ppap"
    ),
    "DPS in 10 steps 0.403 [0.340, 0.466], and": lambda: [
        10.0,
        *worse(PEERS, "peers", "dps in 10 steps beats ppap"),
    ],
    "TFG in 5 steps 0.330 [0.234, 0.426] at the best": lambda: [
        5.0,
        *worse(PEERS, "peers", "tfg in 5 steps reaches further than ppap"),
    ],
    "are 0.270 [0.152, 0.388] and": lambda: worse(
        PEERS_ON_SCENES, "peers", "freedom in 5 steps reaches further than ppap"
    ),
    "and 0.285 [0.158, 0.412] worse, DPS": lambda: worse(
        PEERS_ON_SCENES, "peers", "tfg in 5 steps reaches further than ppap"
    ),
    "DPS in 10 0.335 [0.181, 0.489]": lambda: [
        10.0,
        *worse(PEERS_ON_SCENES, "peers", "dps in 10 steps reaches further than ppap"),
    ],
    "labels not shown to be, ? 0.020 [-0.011, 0.051] and 0.000 [-0.054, 0.054]": lambda: (
        ahead_of_labels("reaches further than")
    ),
    "strengths by 0.020 [-0.011, 0.051] on garments and 0.000 [-0.054, 0.054] on scenes, at equal "
    "distance by 0.185 [0.061, 0.309] and 0.017 [-0.029, 0.063]": lambda: ahead_of_labels(
        "reaches further than", "beats"
    ),
    "held back on garments, by 0.115 [0.073, 0.157] or more": lambda: least_ahead(
        PEERS, "ppap, held back"
    ),
    "calibrated on scenes, by 0.120 [0.076, 0.164] or more, all": lambda: least_ahead(
        PEERS_ON_SCENES, "ppap, calibrated"
    ),
    "is 0.090 [0.047, 0.134] better than PPAP-5": lambda: settled(
        PEERS, "peers", "freedom + experts on x_t beats ppap", "resnet", "supported", *INTERVAL
    ),
    "for 1.6 times the time, and TFG with experts on x̂₀ 0.130 [0.078, 0.183], for 7.4": lambda: [
        times_the_cost_of_ppap("freedom + experts on x_t", PEERS),
        *settled(
            PEERS, "peers", "tfg + experts on x_0 beats ppap", "resnet", "supported", *INTERVAL
        ),
        times_the_cost_of_ppap("tfg + experts on x_0", PEERS),
    ],
    "worse than PPAP-5 at equal distance on garments (+0.043 [": lambda: not_settled(
        "freedom beats ppap", "difference"
    ),
    "0.094], +0.036 [": lambda: [
        *not_settled("freedom beats ppap", "high"),
        *not_settled("universal beats ppap", "difference"),
    ],
    "0.107] and +0.072 [0.021, 0.123], open": lambda: [
        *not_settled("universal beats ppap", "high"),
        *not_settled("tfg beats ppap", *INTERVAL),
    ],
    "0.945 where PPAP-5 reaches 0.870 at a greater distance": lambda: [
        float(best_point(PEERS_ON_SCENES, method, "resnet", "peers")["score"])
        for method in ("freedom + experts on x_t", "ppap")
    ],
    "they are 0.100 [0.031, 0.168] better, open after correction, for 2.5 times": lambda: [
        *peer_on_scenes("freedom + experts on x_t beats ppap", "open", *INTERVAL),
        times_the_cost_of_ppap("freedom + experts on x_t"),
    ],
    "0.021 [0.015, 0.026] at equal distance and 0.008 [0.004, 0.012] at the best": lambda: [
        figure for figures in of_depth("ppap, held back", "ppap") for figure in figures
    ],
    "(at equal distance by 0.015 [0.007, 0.023] and 0.013 [0.006, 0.020])": lambda: [
        *of_depth("ppap, held back", "freedom in 5 steps")[0],
        *of_depth("ppap, held back", "dps in 10 steps")[0],
    ],
    "FreeDoM in 25 steps reaches 0.007 [0.004, 0.010] further than as published, for 5.7": lambda: [
        25.0,
        *turned(PEERS_ON_SCENES, "peers", f"freedom {FURTHER}", "depth", "supported"),
        times_the_cost_of_ppap("freedom", PEERS_ON_SCENES, "depth"),
    ],
    "to 0.051, and held back to 0.050": lambda: [
        float(best_point(PEERS_ON_SCENES, method, "depth", "peers", best=min)["score"])
        for method in ("freedom", "ppap, held back")
    ],
    "0.895 of samples right, a depth error of 0.055 and 0.046": lambda: at_once("ppap, held back"),
    "FreeDoM, at 5.1 times PPAP's cost, 0.895, 0.058 and 0.062": lambda: [
        times_the_cost_of_ppap("freedom", PEERS_ON_SCENES, "all three"),
        *at_once("freedom"),
    ],
    "FreeDoM in 5 steps has 0.126 [0.117, 0.135] more": lambda: [
        5.0,
        *more_wrong("freedom in 5 steps"),
    ],
    "DPS in 10 steps 0.111 [0.093, 0.130]": lambda: [
        10.0,
        *more_wrong("dps in 10 steps"),
    ],
    "in 5 steps 0.455, 0.094 and 0.172": lambda: [5.0, *at_once("freedom in 5 steps")],
    "reach 0.725 on garments where the ResNet's reach 0.980": lambda: best_on_garments(
        "ppap", "vit", "resnet"
    ),
    "needs none, 0.885 for 0.970": lambda: best_on_garments("freedom", "vit", "resnet"),
    "With the ViT it is 0.200 [0.140, 0.261] better": lambda: with_the_vit(
        "freedom beats ppap", "supported"
    ),
    "0.185 [0.111, 0.259] at the best of strengths, supported, for 5.3 times": lambda: [
        *with_the_vit(f"freedom {FURTHER}", "supported"),
        times_the_cost_of_ppap("freedom", PEERS, "vit"),
    ],
    "behind at equal distance (+0.057 [0.016, 0.097], open": lambda: with_the_vit(
        "freedom in 5 steps beats ppap", "open"
    ),
    "reaches less far by 0.165 [0.097, 0.233]": lambda: worse(
        PEERS, "peers", f"freedom in 5 steps {FURTHER}", "vit"
    ),
    "10 steps stays behind, by 0.138 [0.086, 0.189]": lambda: [
        10.0,
        *worse(PEERS, "peers", "dps in 10 steps beats ppap", "vit"),
    ],
    "FreeDoM in 25 steps is 0.239 [0.177, 0.301] better than PPAP-5": lambda: [
        25.0,
        *settled(PEERS_LONG, "peers", "freedom beats ppap", "resnet", "supported", *INTERVAL),
    ],
    "where 0.131 was open": lambda: peer_on_scenes("freedom beats ppap", "open", "difference"),
    "in 5 steps it is 0.115 [0.012, 0.218] behind at the best of strengths": lambda: [
        5.0,
        *turned(PEERS_LONG, "peers", f"freedom in 5 steps {FURTHER}", "resnet", "open"),
    ],
    "DPS in 10 0.175 [0.032, 0.318], open": lambda: [
        10.0,
        *turned(PEERS_LONG, "peers", f"dps in 10 steps {FURTHER}", "resnet", "open"),
    ],
    "In 25 steps it takes 5.5 times as long": lambda: [
        25.0,
        times_the_cost_of_ppap("freedom", PEERS_LONG),
    ],
    "PPAP-5 reaches 0.920, at 2.6 times the distance at which FreeDoM reaches 0.930": lambda: (
        one_as_far_as_another("ppap, calibrated", "freedom")
    ),
    "ahead of FreeDoM in 5 steps by 0.300 [0.241, 0.359]": lambda: [
        5.0,
        *further_at_equal_cost("freedom in 5 steps"),
    ],
    "and of DPS in 10 by 0.360 [0.259, 0.461] at the best": lambda: [
        10.0,
        *further_at_equal_cost("dps in 10 steps"),
    ],
    "On scenes FreeDoM is 0.131 [0.039, 0.223] better": lambda: peer_on_scenes(
        "freedom beats ppap", "open", *INTERVAL
    ),
    "and takes 5.4 times as long": lambda: [times_the_cost_of_ppap("freedom")],
    "it is 0.101 [0.061, 0.141] worse than PPAP-5 on garments": lambda: worse(
        PEERS, "peers", "elucd beats ppap"
    ),
    "and 0.313 [0.264, 0.361] on scenes": lambda: worse(
        PEERS_ON_SCENES, "peers", "elucd beats ppap"
    ),
    "help EluCD by 0.375 [0.295, 0.456], supported": lambda: peer_on_scenes(
        "experts help elucd, x_t", "supported", *INTERVAL
    ),
    "make DPS worse by 0.191 [0.144, 0.238]": lambda: worse(
        PEERS_ON_SCENES, "peers", "experts help dps, x_t"
    ),
    "are 0.174 with naive guidance, 0.052 with": lambda: fewest_wrong("score", "naive", "ppap"),
    "0.054 with it held back and 0.057 with": lambda: fewest_wrong(
        "score", "ppap, held back", "freedom"
    ),
    "at distances of 318, 480, 156 and 115.": lambda: fewest_wrong(
        "pixel_fid", "naive", "ppap", "ppap, held back", "freedom"
    ),
    "held back is 0.022 [0.014, 0.030] better than as": lambda: less_wrong("ppap, held back"),
    "of DPM-Solver++ held back is [0.039 [0.028, 0.050]]": lambda: settled(
        SCENES, "refinements", "held back: nearer", "segmentation", "refuted", *INTERVAL
    ),
    "FreeDoM 0.054 [0.040, 0.068], for 5.2 times": lambda: [
        *less_wrong("freedom"),
        times_the_cost_of_ppap("freedom", predictor="segmentation"),
    ],
    "on scenes against FreeDoM after 2278": lambda: [
        float(row_of(PEERS_ON_SCENES, "peers", "freedom", "resnet")["cheaper_after"])
    ],
    "take 5.4, 5.0 and 7.2 times as long": lambda: [
        times_the_cost_of_ppap(method, PEERS) for method in ("freedom", "universal", "tfg")
    ],
    "against TFG after 1467, against": lambda: [peer("tfg", "cheaper_after")],
    "fast path 1.79 [1.62, 1.91] times": lambda: times_as_fast(
        "resnet", "fast path", interval=True
    ),
    "and 1.61 [1.58, 1.69] with the ViT": lambda: times_as_fast("vit", "fast path", interval=True),
    "sets up in 15 ms, a new process in 1.9 s": lambda: [
        max(
            benchmark_row("bench-cpu", "set-up", f"second call, {name}")["ms"] for name in NETWORKS
        ),
        benchmark_row("bench-cpu", "set-up", "new process, set-up")["ms"] / 1000,
    ],
    "with it calls were [3.15 and 1.93 times": lambda: [
        times_as_fast(network, "fast path, bf16", record="bench-cpu-amx")[0] for network in NETWORKS
    ],
    "1.26 and 1.13 times": lambda: [
        times_as_fast(network, "fast path, bf16")[0] for network in NETWORKS
    ],
    "are 5.33 and 5.10 times as fast": lambda: [
        times_as_fast(network, "preset fast", record=PRESETS)[0] for network in NETWORKS
    ],
    "bfloat16 7.34 [6.18, 7.68] and 5.68 [5.10, 6.64] times": lambda: [
        figure
        for network in NETWORKS
        for figure in times_as_fast(
            network, "preset held-back, bf16", interval=True, record=PRESETS
        )
    ],
    "It takes 447 s of a core": lambda: [peer("ppap, held back", "preparation_seconds")],
    "and the lowest FID (3.3)": lambda: [
        min(
            float(row["fid"])
            for row in rows_of(PEERS, "peers")
            if row["supervision"] == "none" and row["method"] != "naive"
        )
    ],
    "preparation after 2285 images": lambda: [peer("freedom", "cheaper_after")],
    "gradient through x̂₀ after 3571": lambda: [peer("x0-gradient", "cheaper_after")],
    "against DPS after 4906": lambda: [peer("dps", "cheaper_after")],
    "On x_t they help DPS by 0.227 [0.153, 0.301]": lambda: experts_help("dps, x_t"),
    "EluCD by 0.128 [0.099, 0.158] and FreeDoM": lambda: experts_help("elucd, x_t"),
    "FreeDoM by 0.043 [0.021, 0.065], and": lambda: experts_help("freedom, x_t"),
    "MPGD by 0.273 [0.165, 0.381], DPS": lambda: experts_help("mpgd, x_0"),
    "DPS by 0.238 [0.152, 0.323], EluCD": lambda: experts_help("dps, x_0"),
    "EluCD by 0.111 [0.081, 0.142] and TFG": lambda: experts_help("elucd, x_0"),
    "TFG by 0.050 [0.016, 0.084]: supported": lambda: experts_help("tfg, x_0"),
    "whether they help Adam is open": lambda: not_settled("experts help adam, x_t"),
    "at 10.0 times PPAP's cost": lambda: [times_the_cost_of_ppap("fk-steering", PEERS)],
    "lies at 65.": lambda: [
        min(
            float(row["pixel_fid"])
            for row in rows_of(PEERS, "peers-curves")
            if row["method"] == "naive"
        )
    ],
    "to train (18.7 % of the ResNet)": lambda: [share(f"{DEFAULT}/ppap/resnet/trainable_share")],
    "none changes accuracy by more than 0.023;": lambda: [
        max(abs(quirk(arm) - quirk("corrected")) for arm in DEPARTURES)
    ],
    "together they reach 0.897, corrected 0.903.": lambda: [
        quirk("as released"),
        quirk("corrected"),
    ],
    "0.903 from the one before, 0.803 from the next noisier one, 0.680 from": lambda: [
        quirk(arm)
        for arm in (
            "corrected",
            "each expert from the next higher",
            "each expert from the base",
        )
    ],
    "On the ViT (5.8 %)": lambda: [share(f"{DEFAULT}/ppap/vit/trainable_share")],
    "row](results/fashion-full/methods.md) 0.565 against 0.823": lambda: [
        value(f"{FULL}/{method}/vit/accuracy") for method in ("ppap", "multi-experts")
    ],
    "without data they reach 0.784, and adapters trained on labels 0.597": lambda: [
        value(f"{FULL}/{method}/vit/accuracy")
        for method in ("multi-experts, data-free", "ppap, labelled")
    ],
    "missing data costs 0.039 and 0.033": lambda: [
        value(f"{FULL}/{labelled}/vit/accuracy") - value(f"{FULL}/{data_free}/vit/accuracy")
        for labelled, data_free in (
            ("multi-experts", "multi-experts, data-free"),
            ("ppap, labelled", "ppap"),
        )
    ],
    "with the ViT five are 0.093 less accurate": lambda: [
        value(f"{DEFAULT}/single/vit/accuracy") - value(f"{DEFAULT}/multi-experts/vit/accuracy")
    ],
    "(wrong pixels 0.060 against 0.085)": lambda: [
        value(f"{DENSE}/8 experts/segmentation/pixel_error"),
        value(f"{DENSE}/1 expert/segmentation/pixel_error"),
    ],
    "by 1.5 to 14 times": lambda: sorted(
        min(
            microseconds(group, f"{rival}, in a CUDA graph")
            for rival in ("torch eager", *(["torch.compile"] if "lora_linear" in group else []))
        )
        / microseconds(group, "ours, in a CUDA graph")
        for group in GAINS
    )[:: len(GAINS) - 1],
}
REPORTS = {
    "wrong pixels fall from 0.085 to 0.060": lambda: [
        value(f"{DENSE}/1 expert/segmentation/pixel_error"),
        value(f"{DENSE}/8 experts/segmentation/pixel_error"),
    ],
    "the depth error from 0.072 to 0.063": lambda: [
        value(f"{DENSE}/1 expert/depth/depth_rmse"),
        value(f"{DENSE}/8 experts/depth/depth_rmse"),
    ],
    "Norms alone, 0.6 % of the parameters, give 0.76": lambda: [
        share(f"{PEFT}/norm/resnet/trainable_share"),
        value(f"{PEFT}/norm/resnet/accuracy"),
    ],
    "LoKr (3.5 %)": lambda: [share(f"{PEFT}/LoKr + norm, bias/resnet/trainable_share")],
    "as adapters take 1.6 times the bytes": lambda: [
        value(f"{MEMORY}/resnet50, 10 adapters/none/disk_mib")
        / value(f"{MEMORY}/resnet50, 1 copies/none/disk_mib")
    ],
}
GAINS = [
    f"{operation}, forward, bfloat16"
    for operation in (
        "guided_ddim_step 8x3x256x256", "guided_ddpm_step 8x3x256x256", "transfer_loss 256x1000",
        "merge_lora 1024x1024, 1x1, r=16", "lora_linear 12608x384->1152, r=16",
    )
]  # fmt: skip


def graphs(operation: str, *rivals: str, direction: str = "forward") -> list[float]:
    group = f"{operation}, {direction}, bfloat16"
    ways = ("ours", *rivals)
    return [microseconds(group, f"{way}, in a CUDA graph") for way in ways]


def memory(model: str, way: str) -> float:
    """Of ten experts, in times that of one model."""
    group = f"memory of 10 experts, {model}"
    return float(benchmark_row("bench-cpu", group, way)["times_one_model"])


BENCH = {
    "DeiT-S at rank 16 take 1.22 times the memory": lambda: [16, memory("deit_small", "bank")],
    "ResNet50 at rank 8 take 1.32 times, and 1.30 after": lambda: [
        8,
        memory("resnet50", "bank"),
        memory("resnet50", "bank, statistics absorbed"),
    ],
    "ten copies take 10.2 and 10.3 times": lambda: [
        memory("deit_small", "reference"),
        memory("resnet50", "reference"),
    ],
    "the guided DDIM step takes 10 us against 131": lambda: graphs(
        "guided_ddim_step 8x3x256x256", "torch eager"
    ),
    "the DDPM step 11 against 86": lambda: graphs("guided_ddpm_step 8x3x256x256", "torch eager"),
    "the distillation loss 9 against 33": lambda: graphs("transfer_loss 256x1000", "torch eager"),
    "merging 7 against 12": lambda: graphs("merge_lora 1024x1024, 1x1, r=16", "torch eager"),
    "LoRA of a linear layer 43 against 65": lambda: graphs(
        "lora_linear 12608x384->1152, r=16", "torch.compile"
    ),
    "LoRA of a convolution (75 against 70)": lambda: graphs(
        "lora_conv 32x64x56x56, 3x3, r=16", "torch.compile"
    ),
    "mixed experts (112 against 72)": lambda: graphs(
        "grouped_lora_linear 40x197x384->1152, r=16, 5 experts", "ours, torch"
    ),
    "the DDIM step's 459 us against 214": lambda: graphs(
        "guided_ddim_step 8x3x256x256", "torch eager", direction="input gradient"
    ),
    "the guided DDIM step wins (204 us against 384)": lambda: [
        microseconds("guided_ddim_step 8x3x256x256, forward, bfloat16", way)
        for way in ("ours", "torch eager")
    ],
    "take it 84 ms with the ResNet where the reference takes 486 (5.76": lambda: [
        *whole_calls("resnet", "tf32", "ms", "reference_ms", "ratio")
    ],
    "83 with the ViT where it takes 459 (5.51 times)": lambda: [
        *whole_calls("vit", "tf32", "ms", "reference_ms", "ratio")
    ],
    "in bfloat16 72 where it takes 554 (7.65": lambda: whole_calls(
        "resnet", "bf16", "ms", "reference_ms", "ratio"
    ),
    "in full float32 103 and 120 (3.87 and 4.74 times)": lambda: [
        found
        for column in ("ms", "ratio")
        for network in ("resnet", "vit")
        for found in whole_calls(network, "fp32", column)
    ],
    "A guided step is 6.55 and 5.14 times": lambda: [
        on_the_gpu(f"guided step, 256, {network}, tf32", "fast path", "ratio")
        for network in ("resnet", "vit")
    ],
    "synthesis 5.94 times": lambda: [
        on_the_gpu("unguided sample, DDIM-25, 256, resnet, tf32", "fast path", "ratio")
    ],
    "makes a call 1.32 times as fast": lambda: [
        on_the_gpu("guided sample, DDIM-25, 256, resnet, tf32", "plain, torch.compile", "ratio")
    ],
    "took 4.3 s with": lambda: [benchmark("bench-nvidia-h200")["machine"]["calls_s"][0]],
    "the others 0.07, and the plain path 0.41": lambda: [
        max(benchmark("bench-nvidia-h200")["machine"]["calls_s"][1:]),
        benchmark("bench-nvidia-h200")["machine"]["plain_call_s"],
    ],
    "have a pixel that is 0.040 or more from that of the reference, and 0.029 if": lambda: [
        apart("resnet", "tf32", "fast path"),
        apart("resnet", "tf32", "plain, channels-last"),
    ],
    "ViT's samples stay within 0.0006": lambda: [apart("vit", "tf32", "fast path")],
    "is 6.09 times as fast as the released way": lambda: [
        on_the_gpu("training step, resnet, tf32", "joint, compiled", "ratio")
    ],
    "(7.0 ms a step of 40 images for 44.0), 3.79 times": lambda: [
        on_the_gpu("training step, resnet, tf32", "joint, compiled", "ms"),
        40.0,
        on_the_gpu("training step, resnet, tf32", "joint, compiled", "reference_ms"),
        on_the_gpu("training step, resnet, tf32", "joint", "ratio"),
    ],
}
FINDINGS = "README.md", "reports/FINDINGS.md"
"""In brief and in full."""
STATED = [
    pytest.param(documents, phrase, figures, id=f"{documents[0]}: {phrase}")
    for documents, found in (
        (FINDINGS, README), (("reports/README.md",), REPORTS), (("bench/README.md",), BENCH),
    )
    for phrase, figures in found.items()
]  # fmt: skip


@pytest.mark.parametrize(("documents", "phrase", "figures"), STATED)
def test_what_is_stated_is_what_was_measured(
    documents: tuple[str, ...], phrase: str, figures: object
) -> None:
    assert phrase in text(*documents)
    assert callable(figures)
    numbers = re.findall(r"(?<![-\w])-?\d+(?:\.\d+)?(?![-\w])", phrase)
    measured = figures()
    assert len(numbers) == len(measured)
    for number, found in zip(numbers, measured, strict=True):
        places = len(number.partition(".")[2])
        assert abs(float(number) - found) <= 0.5001 * 10**-places, (number, found)


def test_the_rates_in_use_are_those_that_suit() -> None:
    """Nearly: the least loss of five rates is at another, and hardly less."""
    assert above_the_best("ppap", LORA.learning_rate, "vit") == 0
    assert above_the_best("ppap", LORA.learning_rate) <= 0.2
    whole = "single", "multi-experts", "ppap, full"
    assert max(above_the_best(arm, FULL_TUNING.learning_rate) for arm in whole) <= 0.8
    assert all(above_the_best(arm, 1e-2) == 0 for arm in whole)


def test_what_is_said_of_fewer_steps_has_its_verdicts() -> None:
    told = text("README.md")
    half = f"{HELD}, in bfloat16"
    for said, verdict, names in (
        (
            "better than DDIM-25 for a third of the evaluations: supported",
            "supported",
            [f"{HELD} is nearer", *(f"{HELD}: {q}" for q in ("distance", "saturation", "recall"))],
        ),
        (
            "In bfloat16 it is equivalent to float32 in all of these",
            "supported",
            [
                f"{half} is as near",
                f"{half} reaches as far",
                *(f"{half}: {q}" for q in ("distance", "saturation", "recall")),
            ],
        ),
        (
            "within 0.01 is open",
            "open",
            ["2M-8 to 80 is as near", "2M-8 to 80 reaches as far"],
        ),
    ):
        assert said in told
        for name in names:
            found = claim_of(CLAIMS, "speed-quality", name, "resnet")
            assert found["verdict"] == verdict, name


def test_what_the_reports_call_within_or_no_more_than_is() -> None:
    whole = value(f"{PEFT}/full + norm, bias/resnet/accuracy")
    for method in ("LoKr", "LoHa", "BOFT", "LoRA (loralib conv)"):
        assert abs(value(f"{PEFT}/{method} + norm, bias/resnet/accuracy") - whole) < 0.025, method
        assert value(f"{PEFT}/{method}/resnet/accuracy") < whole - 0.1, method
    dense = "scenes-default/dense"
    for guide, column in (("depth", "depth_rmse"), ("segmentation", "pixel_error")):
        ppap, labelled = (
            value(f"{dense}/{method}/{guide}/{column}") for method in ("ppap", "multi-experts")
        )
        assert ppap - labelled < 0.0045
        unguided = value(f"{dense}/unguided/none/{column}")
        assert ppap < {"depth": 0.55, "segmentation": 0.28}[guide] * unguided


def test_the_checks_of_the_gpu_are_counted_as_recorded() -> None:
    machine = benchmark("bench-kernels-nvidia-h200")["machine"]
    checks, misses = machine["checks"], machine["misses"]
    assert f"{checks - len(misses)} of {checks} results" in text("bench/README.md")


def test_runs_on_another_cpu_differ_as_told() -> None:
    for name in ("fashion-default-avx2", "scenes-dense-avx2"):
        page = (RESULTS / "other-cpus" / f"{name}.md").read_text()
        last = page.strip().splitlines()[-1]
        compared, outside, apart = re.findall(
            r"(\d+) figures with intervals compared, (\d+) outside .* \((\d+) with", last
        )[0]
        assert f"[{outside} of {compared}](reports/results/other-cpus/{name}.md)" in text(
            "README.md"
        )
        assert apart == "0"
