"""What was measured of the servers: kept as JSON, shown as a table of ratios and a plot of latency by load."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

SATURATED = "saturated"
NAMES = {
    "raw": "raw",
    "rq": "plain RQ",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "ours": "ours",
}


class Results:
    """Windows in a file, one for each system, load, arrival and repetition."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.windows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []

    def add(
        self, system: str, load: str, arrival: str, repetition: int, found: dict[str, Any], **about: Any
    ) -> None:
        """Keep a window, in the place of an earlier one of the same kind."""
        kind = {"system": system, "load": load, "arrival": arrival, "repetition": repetition}
        self.windows = [w for w in self.windows if any(w[k] != v for k, v in kind.items())]
        figures = {k: _rounded(v) for k, v in found.items()}
        self.windows.append(kind | figures | about)
        self.windows.sort(
            key=lambda w: [w["load"], w["arrival"], list(NAMES).index(w["system"]), w["repetition"]]
        )
        lines = ",\n".join(json.dumps(window) for window in self.windows)
        self.file.write_text(f"[\n{lines}\n]\n")

    def values(self, figure: str, system: str, load: str, arrival: str) -> list[float]:
        """Return a figure of all repetitions; none where it was not measured. An infinite one is null in the file."""
        return [
            math.inf if w[figure] is None else w[figure]
            for w in self.windows
            if (w["system"], w["load"], w["arrival"]) == (system, load, arrival) and figure in w
        ]

    def shared(self, system: str, load: str, arrival: str) -> bool:
        """Return whether other work ran beside a repetition."""
        kind = (system, load, arrival)
        return any(
            w.get("shared", False) for w in self.windows if (w["system"], w["load"], w["arrival"]) == kind
        )

    def raw(self, load: str) -> float:
        """Return the raw throughput, which the Poisson loads are shares of: that of the first repetition.

        Raises:
            LookupError: it was not measured.
        """
        found = self.values("throughput", "raw", load, SATURATED)
        if not found:
            raise LookupError(
                f"no raw throughput of {load}: measure --systems raw --arrivals {SATURATED} first"
            )
        return found[0]

    def kinds(self) -> list[tuple[str, str]]:
        """Return loads and arrivals of which there is a figure of ours or others."""
        return list(dict.fromkeys((w["load"], w["arrival"]) for w in self.windows))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isinf(value) else round(value, 4)
    return value


def table(results: Results) -> str:
    """Return Markdown: a row for each system, load and arrival, means of the repetitions with their range; † had other work beside it."""
    lines = [
        "| load | arrivals | system | sounds/s | of raw | p50, s | p95, s | CPU ms per sound | ours: throughput | ours: p95 |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for load, arrival in results.kinds():
        for system, name in NAMES.items():
            throughput = results.values("throughput", system, load, arrival)
            if not throughput:
                continue
            of_raw = mean(throughput) / mean(results.values("throughput", "raw", load, arrival) or [math.nan])
            p50, p95, cpu_ms = (
                results.values(figure, system, load, arrival) for figure in ("p50_s", "p95_s", "cpu_ms")
            )
            cells = [
                load,
                arrival if arrival == SATURATED else f"{float(arrival):.0%}",
                name + (" †" if results.shared(system, load, arrival) else ""),
                _spread(throughput, 1),
                f"{of_raw:.2f}",
                _spread(p50, 2),
                _spread(p95, 2),
                _spread(cpu_ms, 1),
            ]
            for figure, mine in (("throughput", throughput), ("p95_s", p95)):
                ours = results.values(figure, "ours", load, arrival)
                known = ours and mine and system != "ours"
                cells.append(f"{mean(ours) / mean(mine):.2f} x" if known else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Iterable[float], digits: int) -> str:
    """Return the mean, and the range where there are several."""
    values = list(values)
    if not values:
        return ""
    if math.isinf(max(values)):
        return "overloaded"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{mean(values):.{digits}f}" + (f" ({low}–{high})" if low != high else "")


def plot(results: Results, file: Path) -> None:
    """Draw p95 by load, a panel for each kind of load: means of the repetitions and their range; what was overloaded is not drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    loads = sorted({load for load, arrival in results.kinds() if arrival != SATURATED})
    if not loads:
        return
    figure, panels = pyplot.subplots(1, len(loads), figsize=(4.2 * len(loads), 3.2), squeeze=False)
    for panel, load in zip(panels[0], loads, strict=True):
        shares = sorted(float(a) for kind, a in results.kinds() if kind == load and a != SATURATED)
        for system, name in NAMES.items():
            found = [(s, results.values("p95_s", system, load, str(s))) for s in shares]
            points = [
                (s, mean(v), mean(v) - min(v), max(v) - mean(v))
                for s, v in found
                if v and math.isfinite(max(v))
            ]
            if points:
                x, y, below, above = zip(*points, strict=True)
                panel.errorbar(x, y, (below, above), marker="o", markersize=4, capsize=3, label=name)
        panel.set(title=load, xlabel="load, share of raw throughput", ylabel="p95, s", yscale="log")
        panel.set_xticks(shares)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    pyplot.close(figure)
