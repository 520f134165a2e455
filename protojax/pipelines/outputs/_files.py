"""The files of a defence of outputs: student, verdicts, triggers, report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protojax import evals, reports, storage
from protojax.models.language import LanguageModel
from protojax.pipelines._outputs import write_student
from protojax.reports import outputs as pages
from protojax.reports.outputs import OutputFacts


def write(
    out: Path, facts: OutputFacts, student: LanguageModel, about: Mapping[str, Any]
) -> None:
    """Writes everything but run.json; each file appears when it is complete.

    Args:
        out: the folder of the outputs.
        facts: what was found.
        student: the trained student.
        about: further lines of the model card.
    """
    write_student(out / "student", student, pages.card_of(facts, about))
    reports.write_csv(out / "verdict.csv", *pages.verdict_table(facts))
    storage.write_json(out / "triggers.json", pages.triggers(facts))
    with storage.atomic(out / "report.html") as file:
        file.write(pages.page_of(facts).encode())


def rouge(name: str, wanted: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """The mean ROUGE of a model's outputs.

    Args:
        name: of the model.
        wanted: `[rows]`, trusted outputs.
        found: `[rows]`, the model's.
    """
    means = evals.rouge_rows(found, wanted).mean(0)
    kinds = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
    return {
        f"{kind} of the {name} on the test file": float(value)
        for kind, value in zip(kinds, means, strict=True)
    }


def result_of(facts: OutputFacts) -> dict[str, Any]:
    """The figures of a finished run for run.json.

    Args:
        facts: what was found.
    """
    findings = facts.findings
    return {
        "rows": len(facts.lines),
        "references": facts.references,
        "rejected": int(findings.rejected.sum()),
        "cut": int(facts.cut.sum()),
        "suspects": len(findings.suspects),
        "triggers": sum(suspect.strong for suspect in findings.suspects),
        "clean": bool(findings.clean),
        "metrics": dict(facts.metrics),
    }
