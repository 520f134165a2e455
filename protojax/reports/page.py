"""The page of a defence: one HTML file without any other resource."""

import collections
import importlib.resources
from typing import Any

import numpy as np

from protojax.reports import map as map_lib
from protojax.reports.facts import Facts, called, headline, members
from protojax.reports.marking import marked

_EXAMPLES, _TEXTS, _LONGEST = 3, 3, 400


def page_of(facts: Facts) -> str:
    """The HTML of a defence's report, readable without a network.

    Args:
        facts: of the defence.
    """
    return rendered(
        "page.html.jinja",
        facts=facts,
        headline=headline(facts),
        rows=len(facts.rows.texts),
        rejected=int(facts.findings.verdict.rejected.sum()),
        suspects=_suspects(facts),
        map=_map(facts),
        size=(map_lib.WIDTH, map_lib.HEIGHT),
        prototypes=_prototypes(facts),
        by_class=_by_class(facts),
        by_source=_by_source(facts),
        reactions=_reactions(facts),
    )


def rendered(name: str, **values: Any) -> str:
    """A page made from a template of this package.

    Args:
        name: of the template; others that it includes are found beside it.
        **values: what it reads; texts are escaped.
    """
    # Imported here: no other part of the library makes pages.
    import jinja2

    folder = importlib.resources.files("protojax.reports")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: (folder / name).read_text(encoding="utf-8")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def _suspects(facts: Facts) -> list[dict]:
    """The rows of the table of suspects, each with a few rows of the user."""
    found = []
    for number, suspect in enumerate(facts.findings.suspects):
        chosen = members(facts, number)[:_EXAMPLES]
        examples = [
            {
                "line": facts.lines[row],
                "parts": marked(clipped(_text(facts, row)), suspect),
                "trusted": facts.label_names[facts.trusted_classes[row]],
            }
            for row in chosen
        ]
        label = facts.label_names[suspect.label]
        found.append({**suspect._asdict(), "label": label, "examples": examples})
    return found


def _text(facts: Facts, row: int) -> str:
    """The text of a row, with that of its pair behind it."""
    pair = facts.rows.pairs[row] if facts.rows.pairs is not None else ""
    return facts.rows.texts[row] + (f" ‖ {pair}" if pair else "")


def clipped(text: str) -> str:
    """A text that is not too long for a table.

    Args:
        text: of any length.
    """
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _map(facts: Facts) -> dict:
    """The circles of the map."""
    found = map_lib.points(
        facts.features,
        facts.findings.verdict.rejected,
        np.asarray(facts.prototypes.vectors),
        unit=bool(
            np.allclose(np.linalg.norm(facts.prototypes.vectors, axis=1), 1, atol=1e-3)
        ),
    )
    circles = zip(found.rows.tolist(), found.rejected, found.numbers, strict=True)
    rows = [
        {
            "x": x,
            "y": y,
            "rejected": rejected,
            "title": f"line {facts.lines[row]}: {clipped(facts.rows.texts[row])[:80]}",
        }
        # Rejected rows are drawn last, so that none is hidden.
        for (x, y), rejected, row in sorted(circles, key=lambda circle: circle[1])
    ]
    labels = np.asarray(facts.prototypes.labels)
    prototypes = [
        {"x": x, "y": y, "title": facts.label_names[label]}
        for (x, y), label in zip(found.prototypes.tolist(), labels, strict=True)
    ]
    return {
        "rows": rows,
        "prototypes": prototypes,
        "left": len(facts.lines) - len(rows),
    }


def _prototypes(facts: Facts) -> list[dict]:
    """The rows of the table of prototypes."""
    columns = zip(
        np.asarray(facts.prototypes.labels),
        np.asarray(facts.prototypes.counts),
        facts.nearest,
        strict=True,
    )
    return [
        {
            "label": facts.label_names[label],
            "size": int(count),
            "texts": [clipped(facts.references.texts[row]) for row in nearest[:_TEXTS]],
        }
        for label, count, nearest in columns
        if count
    ]


def _by_class(facts: Facts) -> list[tuple[str, int, int]]:
    """Name, rows and rejected rows of each class that rows claim."""
    classes = facts.rows.labels if facts.labelled else facts.teacher_classes
    names = [facts.label_names[label] for label in classes]
    return _counts(facts, names)


def _by_source(facts: Facts) -> list[tuple[str, int, int]]:
    """The same of each source, those with most rejected rows; none without sources."""
    return _counts(facts, facts.rows.sources or [])[:30]


def _counts(facts: Facts, keys: list[str]) -> list[tuple[str, int, int]]:
    """Key, rows and rejected rows, the most rejected first."""
    pairs = list(zip(keys, facts.findings.verdict.rejected, strict=False))
    rows = collections.Counter(key for key, _ in pairs)
    rejected = collections.Counter(key for key, out in pairs if out)
    order = sorted(rows, key=lambda key: (-rejected[key], -rows[key], key))
    return [(key, rows[key], rejected[key]) for key in order]


def _reactions(facts: Facts) -> list[dict]:
    """The rows of the table of what models say with and without a trigger."""
    return [
        {
            **reaction._asdict(),
            "called": called(facts.findings.suspects[reaction.suspect]),
            "label": facts.label_names[facts.findings.suspects[reaction.suspect].label],
        }
        for reaction in facts.reactions
    ]
