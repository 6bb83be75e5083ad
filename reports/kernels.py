"""What kernels compile to and what benchmarks measured, as tables; predictions are marked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.schema import RecordError

__all__ = ["AUDIT", "BENCHMARKS", "Sheet", "sheets"]

AUDIT = "audit.json"
BENCHMARKS = "bench-*.json"


@dataclass(frozen=True)
class Sheet:
    """A table of speed or of resources.

    Attributes:
        name: of its file and anchor.
        title: one line.
        text: what it shows, and whether it was measured.
        header: of its columns.
        words: which columns are text.
        lines: what is shown, and what it is sorted by.
    """

    name: str
    title: str
    text: str
    header: tuple[str, ...]
    words: tuple[bool, ...]
    lines: tuple[tuple[tuple[str, Any], ...], ...]

    def markdown(self) -> str:
        """Heading, text and table."""
        align = [":--" if word else "--:" for word in self.words]
        table = [self.header, align, *([shown for shown, _ in line] for line in self.lines)]
        rows = ["| " + " | ".join(line) + " |" for line in table]
        return f"# {self.title}\n\n{self.text}\n\n" + "\n".join(rows) + "\n"


Column = tuple[str, bool, Callable[[dict[str, Any]], tuple[str, Any]]]


def sheets(folder: Path) -> list[Sheet]:
    """Benchmarks that were recorded, then the audit; none of what is not there.

    Raises:
        RecordError: for a file that is not of this form.
    """
    found = [_benchmark(path) for path in sorted(folder.glob(BENCHMARKS))]
    if (folder / AUDIT).is_file():
        found.append(_audit(folder / AUDIT))
    return found


def _benchmark(path: Path) -> Sheet:
    document = _read(path)
    try:
        about, rows = document["machine"], document["rows"]
        rows = [row | {"ms": row.get("ms", row.get("median_ms"))} for row in rows]
        columns: list[Column] = [
            ("what", True, lambda row: (row["group"], row["group"])),
            ("way", True, lambda row: (row["way"], row["way"])),
            ("ms", False, lambda row: _number(row["ms"], ".2f")),
            ("reference ms", False, lambda row: _number(row.get("reference_ms"), ".2f")),
            ("ratio", False, lambda row: _number(row.get("ratio"), ".2f")),
            ("95 % interval", False, _interval),
            ("images/s", False, lambda row: _number(row.get("images_per_second"), ".1f")),
            ("GFLOP/s", False, lambda row: _number(row.get("gflops"), ".1f")),
            ("of ceiling", False, lambda row: _number(row.get("of_ceiling"), ".0%")),
            ("peak MiB", False, lambda row: _number(row.get("peak_mib"), ".0f")),
            ("of one model", False, lambda row: _number(row.get("times_one_model"), ".2f")),
        ]
        what = "Kernels, one by one," if "kernels" in path.stem else "Speed"
        title = f"{what} on {about['name']}"
        if "gpu" not in about and "instruction_set" in about:
            title += f" ({about['instruction_set']})"  # by which CPUs of one name differ
        return _sheet(path.stem, title, _measured(about, len(rows)), columns, rows)
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"{path} has no {error}", "write it with python -m bench.record"
        ) from error


def _measured(about: dict[str, Any], rows: int) -> str:
    """On what, how, and first of all whether the machine was steady."""
    machine = f"{about['name']} with torch {about['torch']}"
    ratio = (
        "A ratio above 1 is faster than the reference, which is the released code's way of doing "
        "the same, and for training steps a loop over the experts."
    )
    if "unsteady_rows" not in about:
        return (
            f"Measured on {machine}. {ratio} Recorded before rounds were interleaved: where a "
            "ratio differs from that of the medians, it is of pairs of runs, and they are not."
        )
    text = (
        f"Measured on {machine} ({about['instruction_set']}). {ratio} Milliseconds, ratio and its "
        "interval are of the same rounds, in which ways and reference take turns: "
        "medians, and the order statistics that enclose the ratio's median, of which fewer than "
        "five rounds have none."
    )
    if "gpu" in about:
        text += _on_gpu(about)
    if "convolution_gflops" in about:
        text += (
            f" The ceiling is that of a large convolution, {about['convolution_gflops']} GFLOP/s, "
            f"and of a large matrix product, {about['product_gflops']} GFLOP/s, measured again "
            "before each group of rows, in the proportion in which a row does both."
        )
    if about["unsteady_rows"]:
        text = (
            f"**Unsteady machine**: the rounds of {about['unsteady_rows']} of {rows} rows spread "
            f"by more than {about['unsteady_above']:.0%} from quartile to quartile, by up to "
            f"{about['largest_spread']:.0%}.\n\n{text}"
        )
    return text


def _on_gpu(about: dict[str, Any]) -> str:
    """What a GPU's record says besides: how calls were timed, what was wrong, failed, left out."""
    text = (
        " An ordinary call is timed from its launch in Python on; in a CUDA graph, which has no "
        "interval, replays of the captured call are."
    )
    if "misses" in about:
        text += f" Of {about['checks']} checks against float64, {len(about['misses'])} missed"
        text += ": " + "; ".join(about["misses"]) + "." if about["misses"] else "."
    if calls := about.get("calls_s"):
        text += (
            f" Equal calls of a process, one after another, each with a guide of its own, took "
            f"{', '.join(f'{seconds:.2f}' for seconds in calls)} s, and "
            f"{about['plain_call_s']:.2f} s on the plain path."
        )
    if about.get("failures"):
        text += f" Failed: {'; '.join(about['failures'])}."
    if about.get("left_out"):
        text += f" For {about['left_out']} measurements no time was left."
    return text


def _interval(row: dict[str, Any]) -> tuple[str, Any]:
    if "ratio_interval" not in row:
        return "", ""
    low, high = row["ratio_interval"]
    return f"{low:.2f} to {high:.2f}", low


def _audit(path: Path) -> Sheet:
    text = (
        "Compiled ahead of time, on a machine without a GPU: registers, spills, shared memory and "
        "instructions are read off the machine code. Times are **predicted**, by the roofline (the "
        "larger of bytes over bandwidth and operations over peak), and nothing here was measured. "
        "Tiles are the shipped defaults, tuned on no GPU."
    )

    def ratio(above: str, below: str) -> Callable[[dict[str, Any]], tuple[str, Any]]:
        return lambda row: _number(row[above] / row[below] if row[below] else None, ".2f")

    columns: list[Column] = [
        ("kernel", True, lambda row: (row["kernel"], row["kernel"])),
        ("shape", True, lambda row: (row["shape"], row["shape"])),
        ("type", True, lambda row: (row["type"], row["type"])),
        ("tiles", True, lambda row: (row["tiles"], row["tiles"])),
        ("target", True, lambda row: (f"{row['target']} {row['gpu']}", row["target"])),
        ("registers", False, lambda row: _number(row["registers"], "d")),
        ("spills", False, lambda row: _number(row["spills"], "d")),
        ("shared B", False, lambda row: _number(row["shared_bytes"], ",d")),
        ("occupancy", False, lambda row: _number(row["occupancy"], ".0%")),
        ("tensor core", True, lambda row: (row["tensor_core"] or "-", row["tensor_core"])),
        ("bytes / minimum", False, ratio("bytes", "bytes_minimum")),
        ("unfused / bytes", False, ratio("bytes_unfused", "bytes")),
        ("FLOP / needed", False, ratio("flops", "flops_needed")),
        ("µs, predicted", False, lambda row: _number(row["predicted_us"], ".2f")),
        ("unfused µs, predicted", False, lambda row: _number(row["predicted_unfused_us"], ".2f")),
    ]
    try:
        return _sheet("audit", "Kernels as compiled", text, columns, _read(path))
    except (KeyError, TypeError) as error:
        advice = "write it with python -m ppap_kernels.audit --json"
        raise RecordError(f"{path} has no {error}", advice) from error


def _sheet(name: str, title: str, text: str, columns: list[Column], rows: Any) -> Sheet:
    lines = tuple(tuple(read(row) for _, _, read in columns) for row in rows)
    return Sheet(
        name, title, text, tuple(c[0] for c in columns), tuple(c[1] for c in columns), lines
    )


def _number(value: float | None, spec: str) -> tuple[str, Any]:
    return ("", "") if value is None else (format(value, spec), value)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}", "write it again") from error
