"""The HTML report of a study: results as a table and as pictures, and the settings."""

import base64
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments import settings
from experiments.arms import ARMS, is_recommended, known, parse
from experiments.reports import results as results_lib
from protojax import storage

MARKERS = "osD^vP*X<>dphH"
# For arms without a colour of their own; colours of other arms are excluded.
OTHERS = [
    colour
    for name in ("tab20", "tab20b")
    for colour in map(to_hex, matplotlib.colormaps[name].colors)
    if colour not in {arm.colour for arm in ARMS.values()}
]
HATCHES = ("", "//", "..", "xx", "--", "oo", "\\\\", "++")

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>protojax: {{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem;
       padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; }
.scroll { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
thead th { border-bottom: 2px solid #222; }
tr.first td { border-top: 1px solid #bbb; }
tr.recommended { background: #eaf6ea; font-weight: 600; }
img { max-width: 100%; }
pre { background: #f6f6f6; padding: 1rem; overflow: auto; max-height: 30rem; }
</style></head><body>
<h1>{{ title }}</h1>
<p>Mean and half the width of the 95 % Student interval over {{ seeds }} seed(s), in
percent.{% for name, meaning in meanings %}
<b>{{ name }}</b>: {{ meaning }}.{% endfor %}</p>
<div class="scroll"><table><thead><tr>
{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for line in lines %}<tr class="{{ line.style }}">
{% for cell in line.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% for picture in pictures %}
<p><img alt="{{ picture.alt }}" src="data:image/png;base64,{{ picture.data }}"></p>
{% endfor %}
<h2>Settings</h2><pre>{{ config }}</pre>
<h2>Versions</h2><pre>{{ versions }}</pre>
</body></html>
"""


def write(workdir: pathlib.Path, config: Any, results: dict[str, Any]) -> pathlib.Path:
    """Writes `report.html` and, next to it, the pictures of each task.

    Args:
        workdir: the study's folder, which holds `versions.json`.
        config: the resolved config.
        results: the results from `results.write`.

    Returns:
        The page's path.
    """
    summary = results["summary"]
    pictures = []
    for task in dict.fromkeys(line["task"] for line in summary):
        lines = [line for line in summary if line["task"] == task]
        figures = {
            "": (draw(lines), f"Results of {task}"),
            **attack_pictures(lines, settings.as_json(config)["attacks"]),
        }
        for ending, (figure, alt) in figures.items():
            path = workdir / f"{task}{ending}.png"
            with storage.atomic(path) as file:
                figure.savefig(file, format="png", dpi=130)
            # Embedded, so that the page can be sent as a single file.
            data = base64.b64encode(path.read_bytes()).decode()
            pictures.append({"alt": alt, "data": data})
    lines, previous = [], None
    header, *rows = results_lib.table(summary)
    for line, cells in zip(summary, rows, strict=True):
        group = line["task"], line["attack"]
        styles = {
            "first": previous not in (None, group),
            "recommended": is_recommended(line["arm"]),
        }
        style = " ".join(name for name, holds in styles.items() if holds)
        lines.append({"style": style, "cells": cells})
        previous = group
    # Escaped: names of tasks, attacks and settings are the user's.
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    html = page.render(
        title=workdir.resolve().name,
        seeds=max((line["seeds"] for line in summary), default=0),
        header=header,
        meanings=results_lib.meanings(summary),
        lines=lines,
        pictures=pictures,
        config=json.dumps(settings.as_json(config), indent=2),
        versions=(workdir / "versions.json").read_text(),
    )
    with storage.atomic(workdir / "report.html") as file:
        file.write(html.encode())
    return workdir / "report.html"


def attack_pictures(
    summary: list[dict[str, Any]], attacks: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Figure, str]]:
    """The pictures of the attacks on one task.

    Args:
        summary: the lines of `results["summary"]` of one task.
        attacks: the attacks' sections of the config.

    Returns:
        Ending of a file's name -> a picture and its description. Nothing without an
        attack. If one attack runs at three rates or more, there is also a picture of
        success against the rate.
    """
    summary = [line for line in summary if line["asr"] is not None]
    if not summary:
        return {}
    task = summary[0]["task"]
    text = f"Attack success against skill on {task}"
    found = {"_tradeoff": (draw_tradeoff(summary), text)}
    rates = _rates({line["attack"]: attacks[line["attack"]] for line in summary})
    if len(set(rates.values())) >= 3:
        text = f"Attack success against the rate of poison on {task}"
        lines = [line for line in summary if line["attack"] in rates]
        found["_rates"] = draw_rates(lines, rates), text
    return found


def _rates(attacks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The rates of the largest group of attacks that differ only in their rate.

    >>> word = {"trigger": "rare_words", "rate": 0.01}
    >>> _rates({"few": word, "other": {"trigger": "file", "rate": 0.5},
    ...     "many": {**word, "rate": 0.1}})
    {'few': 0.01, 'many': 0.1}
    """
    alike: dict[str, dict[str, float]] = {}
    for name, section in attacks.items():
        # These fields may differ between attacks of one kind.
        where = ("rate", "arms", "tasks")
        rest = {field: section[field] for field in section if field not in where}
        alike.setdefault(repr(sorted(rest.items())), {})[name] = section["rate"]
    # By different rates, since attacks that are wholly alike would count twice.
    return max(alike.values(), key=lambda found: len(set(found.values())))


def draw(summary: list[dict[str, Any]]) -> Figure:
    """The bar chart of one task: ASR and clean metric of every arm, per attack.

    Args:
        summary: the lines of `results["summary"]` of one task.

    Returns:
        A figure with intervals as whiskers and the null ASR as a dotted line.
    """
    attacks = list(dict.fromkeys(line["attack"] for line in summary))
    attacked = any(line["asr"] is not None for line in summary)
    width, height = (11, 4.6) if attacked else (6, 4.6)
    # Not pyplot, whose figures stay in memory and which may open a window.
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, 1 + attacked, squeeze=False)[0]
    if attacked:
        _bars(axes[0], summary, attacks, "asr")
        axes[0].set(ylabel="attack success rate, %", ylim=(0, 105))
        axes[0].set_title("backdoor (lower is better; dotted: without the attack)")
    _bars(axes[-1], summary, attacks, "clean_metric")
    axes[-1].set(ylabel=f"{summary[0]['metric_name']} on clean text, %")
    axes[-1].set_title("skill (higher is better)")
    shown = [100 * line["clean_metric"] for line in summary]
    # Not from 0: arms differ by a few points, which would be invisible.
    axes[-1].set_ylim(max(0, min(shown) - 8), min(101, max(shown) + 4))
    figure.suptitle(summary[0]["task"], fontweight="bold")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=6 if attacked else 3,
        frameon=False,
    )
    return figure


def draw_tradeoff(summary: list[dict[str, Any]]) -> Figure:
    """The chart of one task with the ASR of each arm against its skill, per attack.

    Args:
        summary: the lines with an attack of `results["summary"]` of one task.

    Returns:
        A figure with a panel per attack; the best corner is at the bottom right.
    """
    attacks = list(dict.fromkeys(line["attack"] for line in summary))
    columns = min(4, len(attacks))
    rows = -(-len(attacks) // columns)
    figure = Figure(
        figsize=(2.9 * columns + 0.6, 2.7 * rows + 0.9), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    arms = list(dict.fromkeys(line["arm"] for line in summary))
    skills = [100 * line["clean_metric"] for line in summary]
    for axis, attack in zip(axes.flat, attacks, strict=False):
        for line in summary:
            if line["attack"] != attack:
                continue
            axis.errorbar(
                100 * line["clean_metric"],
                100 * line["asr"],
                xerr=100 * (line["clean_metric_interval"] or 0),
                yerr=100 * (line["asr_interval"] or 0),
                fmt=MARKERS[arms.index(line["arm"]) % len(MARKERS)],
                color=_colour(line["arm"]),
                lw=0.8,
                label=line["arm"],
            )
        axis.set_title(attack, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(-4, 104)
        # Limits by the means: wide intervals of few seeds would squeeze them together.
        axis.set_xlim(min(skills) - 3, max(skills) + 3)
    for axis in axes.flat[len(attacks) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(f"{summary[0]['metric_name']} on clean text, %")
    for axis in axes[:, 0]:
        axis.set_ylabel("attack success rate, %")
    figure.suptitle(summary[0]["task"], fontweight="bold")
    shown = {}
    for axis in axes.flat[: len(attacks)]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(
        shown.values(),
        shown,
        loc="outside lower center",
        ncols=min(6, 2 * columns),
        frameon=False,
    )
    return figure


def draw_rates(summary: list[dict[str, Any]], rates: Mapping[str, float]) -> Figure:
    """The chart of one task with the ASR of each arm against the poisoning rate.

    Args:
        summary: the lines with an attack of `results["summary"]` of one task.
        rates: attack -> the share of rows that it poisons.

    Returns:
        A figure whose dotted line is the null ASR, that of the clean student.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    arms = list(dict.fromkeys(line["arm"] for line in summary))
    for number, arm in enumerate(arms):
        lines = [line for line in summary if line["arm"] == arm]
        lines.sort(key=lambda line: rates[line["attack"]])
        axis.errorbar(
            # Shifted per arm, so that intervals do not hide one another.
            [
                100 * rates[line["attack"]] * 1.2 ** (number / len(arms))
                for line in lines
            ],
            [100 * line["asr"] for line in lines],
            yerr=[100 * (line["asr_interval"] or 0) for line in lines],
            fmt=MARKERS[number % len(MARKERS)],
            ls=":" if known(arm).role == "null" else "-",
            color=_colour(arm),
            lw=1,
            capsize=2,
            label=arm,
        )
    shown = sorted({100 * rate for rate in rates.values()})
    axis.set_xscale("log")
    axis.set_xticks(shown, [f"{rate:g}" for rate in shown], minor=False)
    # A logarithmic axis would label ticks between the rates.
    axis.set_xticks([], minor=True)
    axis.set_ylim(-4, 104)
    axis.set_xlabel("poisoned rows, %")
    axis.set_ylabel("attack success rate, %")
    axis.set_title(summary[0]["task"], fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _colour(arm: str) -> str:
    """The colour of an arm, the same in all pictures."""
    kind = parse(arm).kind
    # Arms of old records may no longer exist; their names determine a stable colour.
    number = list(ARMS).index(kind) if kind in ARMS else zlib.crc32(kind.encode())
    return known(arm).colour or OTHERS[number % len(OTHERS)]


def _bars(axis, summary, attacks, measure: str) -> None:
    """Draws one measure as a group of bars per attack."""
    arms = list(dict.fromkeys(line["arm"] for line in summary))
    found = {(line["attack"], line["arm"]): line for line in summary}
    width = 0.8 / len(arms)
    # Colours show arms, so hatching distinguishes the federations.
    where = list(dict.fromkeys(parse(arm).federation for arm in arms))
    for position, arm in enumerate(arms):
        federation = parse(arm).federation
        lines = [found.get((attack, arm)) for attack in attacks]
        kept = [
            (index, line)
            for index, line in enumerate(lines)
            if line is not None and line[measure] is not None
        ]
        offset = (position - (len(arms) - 1) / 2) * width
        axis.bar(
            [index + offset for index, _ in kept],
            [100 * line[measure] for _, line in kept],
            width,
            # NaN draws no interval, where 0 would claim that there is no spread.
            yerr=[100 * (line[f"{measure}_interval"] or np.nan) for _, line in kept],
            error_kw={"lw": 1, "capsize": 2},
            color=_colour(arm),
            hatch=HATCHES[where.index(federation) % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
            label=arm,
        )
    if measure == "asr":
        for index, attack in enumerate(attacks):
            null = [
                line["null_asr"]
                for line in summary
                if line["attack"] == attack and line["null_asr"] is not None
            ]
            if null:
                axis.hlines(
                    100 * np.mean(null), index - 0.45, index + 0.45, "k", "dotted"
                )
    axis.set_xticks(range(len(attacks)), [attack or "no attack" for attack in attacks])
    axis.spines[["top", "right"]].set_visible(False)
