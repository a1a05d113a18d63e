"""A score among those of ordinary captions: the picture and the sentence."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go


def position(value: float, ordinary: np.ndarray) -> str:
    """Where `value` stands among sorted `ordinary` scores, as a sentence with its denominator."""
    count = len(ordinary)
    below = int(np.searchsorted(ordinary, value, side="left"))
    if below == count:
        return f"Higher than all {count:,} ordinary captions."
    if below == 0:
        return f"Higher than none of {count:,} ordinary captions."
    # rounded down: 1,233 of 1,234 is not "100%"
    return f"Higher than {np.floor(1000 * below / count) / 10:.1f}% of {count:,} ordinary captions."


def distribution(
    value: float, ordinary: np.ndarray, *, colour: str, text_colour: str, threshold: float | None
):
    """Histogram of sorted `ordinary` scores with a line at `value`, and a dotted one at `threshold`."""
    low = min(float(ordinary[0]), value)
    high = max(float(ordinary[-1]), value)
    edges = np.linspace(low, high if high > low else low + 1.0, 61)
    counts, _ = np.histogram(ordinary, edges)
    centres = (edges[:-1] + edges[1:]) / 2
    margin = 0.04 * (edges[-1] - edges[0])
    place = (value - edges[0]) / (edges[-1] - edges[0])  # its number is cut off at neither end
    lines = [_line(value, {"color": colour, "width": 3})]
    if threshold is not None:
        lines.append(_line(threshold, {"color": text_colour, "width": 1, "dash": "dot"}))
    # In one piece: every change of a figure after it is made checks all of it again.
    return go.Figure(
        {
            "data": [
                {
                    "type": "bar",
                    "x": centres,
                    "y": counts,
                    "width": edges[1] - edges[0],
                    "marker": {"color": "rgba(128, 136, 148, 0.55)", "line": {"width": 0}},
                    "hovertemplate": "%{y} ordinary captions near %{x:.4g}<extra></extra>",
                }
            ],
            "layout": {
                "shapes": lines,
                "annotations": [
                    {
                        "x": value,
                        "y": 1.0,
                        "yref": "paper",
                        "xanchor": "left" if place < 0.2 else "right" if place > 0.8 else "center",
                        "yanchor": "bottom",
                        "showarrow": False,
                        "text": f"<b>{value:.4g}</b>",
                        "font": {"color": colour, "size": 13},
                    }
                ],
                "height": 130,
                "margin": {"l": 4, "r": 4, "t": 22, "b": 22},
                "showlegend": False,
                "bargap": 0,
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "dragmode": False,
                "font": {"color": text_colour},
                "xaxis": {
                    "range": [edges[0] - margin, edges[-1] + margin],
                    "nticks": 5,
                    "fixedrange": True,
                    "showgrid": False,
                    "zeroline": False,
                    "tickfont": {"color": text_colour, "size": 11},
                },
                "yaxis": {"visible": False, "fixedrange": True},
            },
        }
    )


def _line(x: float, style: dict) -> dict:
    """A vertical line over the whole height."""
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": style}
