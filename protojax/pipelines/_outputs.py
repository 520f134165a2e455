"""What a defence writes: the student, its prototypes, verdicts, triggers, a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protojax import prototypes, reports, storage
from protojax.models import Model, hf, language
from protojax.models.language import LanguageModel
from protojax.pipelines._facts import StudentView, distances_of
from protojax.reports import Facts

# The share of a class's references that lie beyond the distance in calibration.json.
SHARE_BEYOND = 0.01


def class_distances(view: StudentView, labels: np.ndarray) -> dict[int, float]:
    """The distance to its prototypes that 1 % of a class's references exceed.

    Args:
        view: of the student.
        labels: `[references]`, int.

    Returns:
        Class -> distance, for the classes that have references and prototypes.
    """
    distances = distances_of(view)
    own = np.asarray(view.prototypes.labels) == labels[:, None]
    own &= np.asarray(view.prototypes.counts) > 0
    nearest = np.where(own, distances, np.inf).min(1, initial=np.inf)
    return {
        int(label): float(
            np.quantile(nearest[labels == label], 1 - SHARE_BEYOND, method="higher")
        )
        for label in np.unique(labels[np.isfinite(nearest)])
    }


def write(
    out: Path,
    facts: Facts,
    student: Model,
    view: StudentView,
    about: Mapping[str, Any],
) -> None:
    """Writes everything but run.json; each file appears when it is complete.

    Args:
        out: the folder of the outputs.
        facts: what was found.
        student: the trained student.
        view: what it says.
        about: further lines of the model card.
    """
    digest = prototypes.save_prototypes(
        out / "student_prototypes.safetensors", view.prototypes
    )
    write_student(out / "student", student, reports.card_of(facts, about))
    labels = facts.references.labels
    calibration = {
        "metric": view.metric,
        "share_beyond": SHARE_BEYOND,
        "distance": {
            facts.label_names[label]: distance
            for label, distance in class_distances(view, labels).items()
        },
        "references": {
            facts.label_names[label]: int(np.sum(labels == label))
            for label in np.unique(labels)
        },
        "prototypes_sha256": digest,
        "student_sha256": storage.hash_file(out / "student/model.safetensors"),
    }
    storage.write_json(out / "calibration.json", calibration)
    reports.write_csv(out / "verdict.csv", *reports.verdict_table(facts))
    storage.write_json(out / "triggers.json", reports.triggers(facts))
    with storage.atomic(out / "report.html") as file:
        file.write(reports.page_of(facts).encode())


def write_student(folder: Path, student: Model | LanguageModel, card: str) -> None:
    """Writes a folder that transformers loads, with a model card.

    Args:
        folder: the target; an older student of ours is replaced.
        student: the model.
        card: the text of README.md.

    Raises:
        FileExistsError: where the folder holds a file that the new one has not.
    """
    writes = isinstance(student, LanguageModel)
    with storage.atomic_folder(folder) as new:
        (language.save_language_model if writes else hf.save_hf)(new, student)
        (new / "README.md").write_text(card, encoding="utf-8")
        ours = {path.name for path in new.iterdir()}
        held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        foreign = [name for name in held if name not in ours]
        if foreign:
            raise FileExistsError(
                f"{folder} holds {', '.join(foreign)}, which no run wrote: move it."
            )


def result_of(facts: Facts) -> dict[str, Any]:
    """The figures of a finished run for run.json.

    Args:
        facts: what was found.
    """
    findings = facts.findings
    return {
        "rows": len(facts.rows.texts),
        "references": len(facts.references.texts),
        "rejected": int(findings.verdict.rejected.sum()),
        "suspects": len(findings.suspects),
        "triggers": sum(suspect.strong for suspect in findings.suspects),
        "clean": bool(findings.clean),
        "untrusted_reference_lines": list(facts.untrusted_lines),
        "metrics": dict(facts.metrics),
        "warnings": list(facts.warnings),
    }
