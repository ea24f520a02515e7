"""Pictures: history and fan of a forecast, a page of several, a filled series, calibration.

The fan has the central 50, 80 and 95 % of the samples, darker inside, and their median. Figures are
made without a display and written as PNG, SVG or PDF by the ending of the path; the same figure is
the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from domains.timeseries.imputed import ImputationLike
from domains.timeseries.series import Series
from domains.timeseries.writing import ForecastLike
from sciflow.errors import InputError
from sciflow.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST", "plot_calibration", "plot_forecast", "plot_forecasts", "plot_imputation",
           "plot_series", "save_figure", "series_svg"]  # fmt: skip

MOST = 12
"""Series on one page."""
_BANDS = ((95, "#d6e4f2"), (80, "#a9c9e6"), (50, "#6ea6d3"))
_MEDIAN, _HISTORY, _TRUTH, _GRID = "#0b4f8a", "#444444", "#c2410c", "#e5e5e5"


def plot_forecast(
    forecast: ForecastLike,
    history: Series | None = None,
    truth: Series | None = None,
    shown: int | None = None,
) -> Figure:
    """One series, its channels one above the other.

    Args:
        forecast: whose samples make the fan.
        history: what was known.
        truth: what came, at the stamps of the forecast.
        shown: steps of the history; default six horizons, at least 60.
    """
    c = len(forecast.channels)
    figure, axes = _figure(c, 1, 9.0, 1.2 + 2.2 * c, sharex=True)
    for i, ax in enumerate(axes):
        _fan(ax, forecast, i, history, truth, shown)
        if c > 1:
            ax.set_ylabel(forecast.channels[i])
    axes[0].set_title(forecast.series_name, loc="left", fontsize=11)
    _legend(figure, axes[0])
    return figure


def plot_forecasts(
    forecasts: Sequence[ForecastLike],
    histories: Sequence[Series] | None = None,
    truths: Sequence[Series] | None = None,
    shown: int | None = None,
) -> Figure:
    """Several series on one page, at most twelve panels; of several channels, each is one.

    Args:
        forecasts: the first are shown.
        histories: one each.
        truths: one each.
        shown: steps of the histories.
    """
    if not forecasts:
        raise InputError("no forecast to plot")
    panels = [(i, c) for i, f in enumerate(forecasts) for c in range(len(f.channels))][:MOST]
    if len({i for i, _ in panels}) == 1:
        return plot_forecast(forecasts[0], histories[0] if histories else None,
                             truths[0] if truths else None, shown)  # fmt: skip
    wide = 2 if len(panels) <= 6 else 3
    high = -(-len(panels) // wide)
    figure, axes = _figure(high, wide, 5.0 * wide, 0.6 + 2.4 * high)
    for ax, (i, c) in zip(axes, panels, strict=False):
        f = forecasts[i]
        _fan(ax, f, c, histories[i] if histories else None, truths[i] if truths else None, shown)
        several = f" · {f.channels[c]}" if len(f.channels) > 1 else ""
        ax.set_title(f"{f.series_name}{several}", loc="left", fontsize=9)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    _legend(figure, axes[0])
    return figure


def plot_imputation(imputation: ImputationLike, level: float = 80) -> Figure:
    """A filled series: what was observed, and median and interval where nothing was.

    Args:
        imputation: of one series.
        level: of the interval, in percent.
    """
    s, c = imputation.series, len(imputation.series.channels)
    figure, axes = _figure(c, 1, 10.0, 1.2 + 2.2 * c, sharex=True)
    x, filled = _plain_index(s.index), imputation.filled().values
    for i, ax in enumerate(axes):
        gone = ~s.observed[:, i]
        # Lines and bands of a gap reach to the observed neighbours.
        beside = gone.copy()
        beside[1:] |= gone[:-1]
        beside[:-1] |= gone[1:]
        q = (1 - level / 100) / 2
        low, high = (np.quantile(imputation.samples[:, :, i], p, axis=0) for p in (q, 1 - q))
        ax.fill_between(x, low, high, where=beside, color=_BANDS[1][1], lw=0, label=f"{level:g} %")
        ax.plot(x, np.where(beside, filled[:, i], np.nan), color=_MEDIAN, lw=1.1, label="filled in")
        ax.plot(x, s.values[:, i], color=_HISTORY, lw=0.9, label="observed")
        if c > 1:
            ax.set_ylabel(s.channels[i])
        _dates(ax)
    axes[0].set_title(s.name, loc="left", fontsize=11)
    _legend(figure, axes[0])
    return figure


def plot_series(series: Sequence[Series]) -> Figure:
    """Series as they are, at most twelve panels; of several channels, each is one."""
    if not series:
        raise InputError("no series to plot")
    panels = [(s, c) for s in series for c in range(len(s.channels))][:MOST]
    wide = 1 if len(panels) == 1 else 2 if len(panels) <= 6 else 3
    high = -(-len(panels) // wide)
    figure, axes = _figure(high, wide, 9.0 if wide == 1 else 5.0 * wide, 0.6 + 2.4 * high)
    for ax, (s, c) in zip(axes, panels, strict=False):
        ax.plot(_plain_index(s.index), s.values[:, c], color=_MEDIAN, lw=0.9)
        several = f" · {s.channels[c]}" if len(s.channels) > 1 else ""
        ax.set_title(f"{s.name}{several}", loc="left", fontsize=9)
        _dates(ax)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def series_svg(series: Series) -> str:
    """A small picture of one series for a page, as inline SVG."""
    figure, axes = _figure(1, 1, 3.2, 1.6)
    axes[0].plot(_plain_index(series.index), series.values, lw=0.9)
    _dates(axes[0])
    content = io.BytesIO()
    _draw(figure, content, "svg")
    text = content.getvalue().decode()
    return text[text.index("<svg") :]


def plot_calibration(forecasts: Sequence[ForecastLike], truths: Sequence[Series]) -> Figure:
    """Coverage of central intervals less their level, over all levels.

    A calibrated forecaster is zero within the grey band, which holds 95 % of the outcomes if values
    were independent; above are intervals too wide, below too narrow.

    Args:
        forecasts: of any series.
        truths: one each.
    """
    levels = np.arange(5, 100, 5.0)
    inside = []
    for f, truth in zip(forecasts, truths, strict=True):
        y = truth.values[: len(f.index)]
        for level in levels:
            low, high = (f.quantile(p) for p in ((1 - level / 100) / 2, (1 + level / 100) / 2))
            inside.append(np.where(np.isfinite(y), (y >= low) & (y <= high), np.nan).ravel())
    shares = [np.nanmean(np.concatenate(inside[k :: len(levels)])) for k in range(len(levels))]
    n = int(sum(np.isfinite(t.values[: len(f.index)]).sum()
                for f, t in zip(forecasts, truths, strict=True)))  # fmt: skip
    figure, (ax,) = _figure(1, 1, 6.0, 3.4)
    p = np.linspace(0, 1, 101)
    noise = 196 * np.sqrt(p * (1 - p) / max(n, 1))
    ax.fill_between(100 * p, -noise, noise, color=_GRID, lw=0, label="95 % if independent")
    ax.axhline(0, color=_HISTORY, lw=0.8)
    ax.plot(levels, 100 * np.array(shares) - levels, "o-", ms=3.5, lw=1.2, color=_MEDIAN,
            label=f"{n} values")  # fmt: skip
    ax.set_xlabel("level of the interval, %")
    ax.set_ylabel("coverage − level, points")
    ax.set_xlim(0, 100)
    _legend(figure, ax)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as its ending says: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        InputError: another ending.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise InputError("give a figure the ending .png, .svg or .pdf", path)
    with writing(path) as f:
        _draw(figure, f, kind)
    return path


def _draw(figure: Figure, f: IO[bytes], kind: str) -> None:
    import matplotlib

    # Neither time nor random names: an equal figure is an equal file.
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with matplotlib.rc_context({"svg.hashsalt": "sciflow"}):
        figure.savefig(f, format=kind, dpi=140, metadata=metadata)


def _figure(rows: int, columns: int, width: float, height: float, **options: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    # Margins in inches, for labels of this size. A layout engine draws everything three times.
    left, right, bottom, top, across, between = 0.75, 0.15, 0.5, 0.6, 0.6, 0.65
    wide = (width - left - right - (columns - 1) * across) / columns
    high = (height - bottom - top - (rows - 1) * between) / rows
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height,
        across / wide, between / high,
    )  # fmt: skip
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color=_GRID, lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
    return figure, axes


def _fan(ax: Axes, f: ForecastLike, channel: int, history: Series | None, truth: Series | None,
         shown: int | None) -> None:  # fmt: skip
    x = _plain_index(f.index)
    if history is not None:
        past = history.tail(shown or max(6 * len(x), 60))
        y = past.values[:, channel]
        ax.plot(_plain_index(past.index), y, color=_HISTORY, lw=0.9, label="history")
    lone = "o" if len(x) == 1 else None
    for level, colour in _BANDS:
        low, high = (
            f.quantile(q)[:, channel] for q in ((1 - level / 100) / 2, (1 + level / 100) / 2)
        )
        if lone:
            ax.vlines(x, low, high, color=colour, lw=8, label=f"{level} %")
        else:
            ax.fill_between(x, low, high, color=colour, lw=0, label=f"{level} %")
    ax.plot(x, f.quantile(0.5)[:, channel], color=_MEDIAN, lw=1.4, marker=lone, label="median")
    if truth is not None:
        y = truth.values[: len(x), channel]
        ax.plot(x[: len(y)], y, color=_TRUTH, lw=1.1, ls="--", marker=lone, label="truth")
    _dates(ax)


def _plain_index(index: pd.DatetimeIndex) -> Any:
    return index.tz_localize(None).to_numpy()


def _dates(ax: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=7)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    # Values of 10⁹ and 10⁻⁹ keep short labels.
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-4, 6), useMathText=True)


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False,
                  fontsize=8)  # fmt: skip
