"""Students of private rows: what each recipe gives away of them, side by side.

Membership is drawn by ourselves, the whole pipeline is run on many halves, and each run
is attacked with all others but its complement. Figures are of the recipe at half of the
rows. Nothing that is written holds a text.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.study.parts import Parts
from experiments.systems import secret_models
from experiments.systems.lines import Lines, keep_settings, settings_of
from experiments.systems.privacy_settings import Private
from experiments.systems.private_rows import split, texts_of
from protojax import data
from protojax.base import Examples
from protojax.evals import mean_interval
from protojax.pipelines import Watch
from protojax.pipelines.privacy import (
    Recipe,
    Rows,
    Shadowed,
    audit_of,
    guarantee_of,
    named,
    shadow_logits,
)
from protojax.pipelines.privacy.inputs import queries_of, without_overlap
from protojax.pipelines.privacy.recipes import parsed, with_epochs
from protojax.pipelines.privacy.stopping import kept_epochs
from protojax.privacy import complementary_halves, leakage, require_stated
from protojax.privacy.blind import Blind, blind_auc, require_blind
from protojax.privacy.findings import ALWAYS, ORDINARY, Leakage
from protojax.reports.privacy import audit_cell

PARTS = Parts(("seed", "arm"), ("seeds", "arms"), Private())
_BLIND = 8  # halves that a classifier of words is asked about


def check(config: ConfigDict) -> Private:
    """The settings of a study.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    return settings_of(config, PARTS.usual)


def run(config: ConfigDict, workdir: pathlib.Path, watch: Watch) -> list[dict]:
    """The results of a study, one an arm and seed, which are written to results.jsonl.

    Args:
        config: from `configs/privacy.py`, with overrides applied.
        workdir: the study's folder.
        watch: is told of the progress.

    Raises:
        ValueError: where an audit refutes the epsilon that an arm states; the lines of
            its seed are written.
    """
    found, lines = check(config), Lines(workdir, PARTS.key)
    keep_settings(workdir, config, PARTS)
    for seed in found.seeds:
        results = _rows_of(found, seed, workdir / f"seed{seed}", watch)
        lines.add(results)
        require_audited(results)
    return list(lines.held.values())


def require_audited(results: Sequence[Mapping[str, Any]]) -> None:
    """Raises where an audit refutes the epsilon that an arm states.

    Args:
        results: lines of results.jsonl.

    Raises:
        ValueError: naming the arm, the seed and both figures.
    """
    for row in results:
        for audit in audits_of([row]):
            try:
                require_stated(audit["bound"], audit["epsilon"])
            except ValueError as error:
                name = f"{row['arm']}, seed {row['seed']}"
                raise ValueError(f"{name}: {error}") from error


def audits_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The audits of an arm, of the seeds that have one; earlier records have none.

    Args:
        rows: of one arm.
    """
    return tuple(row["audit"] for row in rows if row.get("audit"))


def _rows_of(
    config: Private, seed: int, folder: pathlib.Path, watch: Watch
) -> list[dict]:
    """The results of all arms with one seed."""
    watch.describe("the rows are drawn and scanned")
    rows, kinds, left_out = split(config, seed)
    always = kinds == ALWAYS
    members = complementary_halves(
        len(kinds), config.pipelines, seed=seed, always=always
    )
    candidates = np.flatnonzero(~always)
    texts = texts_of(data.take(rows.private, candidates))
    blind = _blind(texts, members[:, candidates], seed)
    recipes = _recipes(config, rows, int(members[0].sum()), seed, folder, watch)
    if any(recipe.transfer == "written" for recipe in recipes.values()):
        written, failed = _written(config, rows, seed, folder, watch)
        rows = rows._replace(written=written)
        left_out["written texts left out"] = failed
    found = shadow_logits(
        recipes,
        rows,
        members,
        folder,
        lengths=config.data.lengths,
        vocab_size=config.data.vocab_size,
        seed=seed,
        at_once=config.at_once,
        watch=watch,
    )
    reference = found["teacher"].logits if "teacher" in found else None
    audited = _audited(recipes, found, rows, kinds, members, seed)
    results = []
    for name, shadowed in found.items():
        watch.describe(f"{name} is attacked")
        measured = leakage(
            shadowed.logits,
            members,
            rows.private.labels,
            kinds=kinds,
            reference=reference,
            num_draws=config.draws,
            seed=seed,
        )
        results.append(
            {
                "seed": seed,
                "arm": name,
                "epochs": recipes[name].teacher.epochs,
                **_summary(shadowed, measured),
                **audited[name],
                **left_out,
                "blind AUC": blind,
                "record": measured.record(),
            }
        )
    return results


def _recipes(
    config: Private,
    rows: Rows,
    members: int,
    seed: int,
    folder: pathlib.Path,
    watch: Watch,
) -> dict[str, Recipe]:
    """The recipe of each arm."""
    recipes = {name: named(name, config.base) for name in config.arms}
    kinds = {name: parsed(arm=name) for name in recipes}
    early = [
        name
        for name, (kind, epochs) in kinds.items()
        if epochs is None and "early" in kind.split("_")
    ]
    if not (config.early_stopping and early):
        return recipes
    watch.describe("the number of epochs is chosen on public rows")
    epochs = kept_epochs(
        folder / "epochs.json",
        rows,
        recipes[early[0]],
        members,
        most=config.early_stopping,
        lengths=config.data.lengths,
        vocab_size=config.data.vocab_size,
        seed=seed,
    )
    return recipes | {name: with_epochs(recipes[name], epochs) for name in early}


def _written(
    config: Private, rows: Rows, seed: int, folder: pathlib.Path, watch: Watch
) -> tuple[Examples, int]:
    """Texts written after the public ones, and how many a scan left out."""
    writer, texts, model = config.writer, texts_of(rows.public), None
    if not writer.model:
        lengths = config.letter_lengths
        model = secret_models.writer_of(
            texts, config.letters, lengths, folder / "writer", watch, seed=seed
        )
        writer = dataclasses.replace(writer, shown=0, max_new=lengths.max_output)
    found = writer.write(texts, seed=seed, describe=watch.describe, model=model)
    written = Examples(found, None, np.zeros(len(found), np.int32))
    # What is left is used, as of the public rows; the counts are in the results.
    return without_overlap(written, rows.private, "drop", name="written")


def _audited(
    recipes: Mapping[str, Recipe],
    found: Mapping[str, Shadowed],
    rows: Rows,
    kinds: np.ndarray,
    members: np.ndarray,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The guarantee that each arm states, and what its pipelines refute."""
    learned = int(members[0].sum())
    stated = {
        name: guarantee_of(recipes[name], learned, queries_of(recipes[name], rows))
        for name in found
    }
    # Arms are judged together, so that one of many is not refuted by chance.
    share = 0.05 / max(1, sum(one is not None for one in stated.values()))
    reference = found["teacher"].logits if "teacher" in found else None
    results = {}
    for name, promise in stated.items():
        audit = audit_of(
            promise,
            found[name].logits,
            reference,
            members,
            rows.private.labels,
            kinds=kinds,
            significance=share,
            seed=seed,
        )
        results[name] = {
            "guarantee": promise and promise._asdict(),
            "audit": audit and {"epsilon": promise.epsilon, **audit._asdict()},
        }
    return results


def _blind(texts: Sequence[str], members: np.ndarray, seed: int) -> float:
    """The mean AUC of words alone over some halves, which must be at chance.

    A single half may be told by words: of a hundred random ones, one is.
    """
    firsts = members[::2][:_BLIND]
    areas = [blind_auc(texts, half, num_draws=1, seed=seed).auc for half in firsts]
    mean, width = mean_interval(areas, 0.999)
    require_blind(Blind(mean, (mean - width, mean + width)))
    return mean


def _summary(shadowed: Shadowed, found: Leakage) -> dict[str, Any]:
    """The figures of one arm that the table shows, in percent."""
    worst = found.worst
    usual = found.strongest(ORDINARY) if ORDINARY in found.kinds else worst
    rate = {
        name: [None if one.rates[0] is None else 100 * one.rates[0], one.intervals[0]]
        for name, one in (("ordinary", usual), ("worst", worst))
    }
    return {
        "accuracy": 100 * float(shadowed.accuracy.mean()),
        "AUC": usual.auc,
        "ordinary": rate["ordinary"][0],
        "worst": rate["worst"][0],
        "worst interval": rate["worst"][1] and [100 * x for x in rate["worst"][1]],
        "worst kind": worst.kind,
        "worst attack": worst.attack,
        "kinds": {
            kind: None
            if found.strongest(kind).rates[0] is None
            else 100 * found.strongest(kind).rates[0]
            for kind in found.kinds
        },
        "conclusive": found.conclusive,
    }


def table_of(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The header and a line for each arm, means over seeds.

    Rates are the shares of members found at 1 % false alarms by the strongest attack.
    Beside the worst stand the lowest and the highest end of the intervals of all seeds.
    "audited" is the largest epsilon refuted, and in brackets that of the plain teacher.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in results:
        groups.setdefault(row["arm"], []).append(row)
    base = {row["seed"]: row["accuracy"] for row in groups.get("teacher", [])}
    kinds = [kind for kind in results[0]["kinds"] if kind != ORDINARY]
    audited = ["audited"] if audits_of(results) else []
    lines = [
        ["arm", "seeds", "accuracy", "gap", "ordinary", *kinds, "worst [95 %]", "ε"]
    ]
    lines[0] += [*audited, "checked"]
    for arm, rows in groups.items():
        accuracy = float(np.mean([row["accuracy"] for row in rows]))
        # Of the seeds that both have.
        gaps = [
            row["accuracy"] - base[row["seed"]] for row in rows if row["seed"] in base
        ]
        lines.append(
            [
                arm,
                str(len(rows)),
                f"{accuracy:.1f}",
                f"{np.mean(gaps):+.1f}" if gaps else "–",
                _mean([row["ordinary"] for row in rows]),
                *(_mean([row["kinds"].get(kind) for row in rows]) for kind in kinds),
                _worst(rows),
                _stated(rows[0]["guarantee"]),
                *(audit_cell(audits_of(rows)) for _ in audited),
                "yes" if all(row["conclusive"] for row in rows) else "NO",
            ]
        )
    return lines


def _mean(values: Sequence[float | None]) -> str:
    """A mean, "–" where a value is missing."""
    missing = any(value is None for value in values)
    return "–" if missing else f"{np.mean(values):.1f}"


def _worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """The worst kind's rate, and the ends of the intervals of all seeds."""
    said = _mean([row["worst"] for row in rows])
    ends = [row["worst interval"] for row in rows]
    if None in ends:
        return said
    lows, highs = zip(*ends, strict=True)
    return f"{said} [{min(lows):.1f}, {max(highs):.1f}]"


def _stated(guarantee: Mapping[str, Any] | None) -> str:
    """ε, and whether it is nominal."""
    if guarantee is None:
        return ""
    return f"{guarantee['epsilon']:.3g}{' nominal' if guarantee['nominal'] else ''}"
