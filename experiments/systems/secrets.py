"""Secrets of small decoders: what they memorise, and what their students get of it.

A teacher learns private texts with made-up sentences "the pin of NAME is 0042" planted
among them; students learn what it says along several transfer sets. Nothing that is
written to results holds a text. One model an arm and seed: the standard deviation of
the exposure of a code that nobody knows is 1.44 bits, of the mean of ten 0.46.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.study.parts import Parts
from experiments.systems import secret_models
from experiments.systems.lines import Lines, keep_settings, settings_of
from experiments.systems.privacy_settings import ARMS, Secrets
from experiments.world.tasks import load_task
from protojax import validate
from protojax.base import Texts
from protojax.federated.replicas import Surroundings
from protojax.models.language import LanguageModel
from protojax.pipelines import Watch
from protojax.pipelines.outputs import Lesson, objective_of, said_by, teach
from protojax.pipelines.outputs.settings import TokenDistillation
from protojax.privacy.exposure import discoverable, emitted
from protojax.privacy.overlap import scan
from protojax.privacy.probes import TEMPLATES, Secret, planted, texts_of
from protojax.training import trainer
from protojax.training.trainer import Store

PARTS = Parts(("seed", "arm"), ("seeds", "arms"), Secrets())
TEMPLATE = TEMPLATES["pin"][0]
# A secret is extracted if so many samples after its prompt tell it so surely.
SAMPLES, SURELY = 100, 0.9


class Rows(NamedTuple):
    """The texts of a seed.

    Attributes:
        private: with the planted sentences among them.
        public: texts that share nothing with the private ones.
        held_out: texts that measure.
        innocent: sentences of the secrets' form with other names and codes.
        secrets: those that are never planted, with 0 repetitions, among them.
    """

    private: list[str]
    public: list[str]
    held_out: list[str]
    innocent: list[str]
    secrets: list[Secret]


def check(config: ConfigDict) -> Secrets:
    """The settings of a study.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    return settings_of(config, PARTS.usual)


def run(config: ConfigDict, workdir: pathlib.Path, watch: Watch) -> list[dict]:
    """The results of a study, one an arm and seed, which are written to results.jsonl.

    Args:
        config: from `configs/privacy.py:secrets`, with overrides applied.
        workdir: the study's folder.
        watch: is told of the progress.
    """
    found, lines = check(config), Lines(workdir, PARTS.key)
    keep_settings(workdir, config, PARTS)
    wanted = [(seed, arm) for seed in found.seeds for arm in found.arms]
    missing = [key for key in wanted if key not in lines.held]
    watch.total(sum(_work(found, arm) for arm in _trained(missing)))
    for seed in dict.fromkeys(seed for seed, _ in missing):
        study = Study(found, seed, workdir / f"seed{seed}", watch)
        for arm in (arm for at, arm in missing if at == seed):
            lines.add([study.measured(arm)])
    return list(lines.held.values())


def _trained(missing: Sequence[tuple[int, str]]) -> list[str]:
    """The arms to train, a teacher for each seed that lacks anything among them."""
    teachers = {(seed, "teacher") for seed, _ in missing}
    return [arm for _, arm in {*missing, *teachers}]


def _work(config: Secrets, arm: str) -> float:
    """The work of training an arm, about; see `trainer.row_cost`."""
    settings = config.teacher if arm == "teacher" else config.student
    planted_rows = config.secrets * sum(config.repetitions)
    rows = {
        "private": config.private + planted_rows,
        "public": config.public,
        "alike": config.public + config.innocent,
    }.get(ARMS[arm].texts, config.samples)
    fresh = secret_models.decoder_of(
        settings, secret_models.character_tokenizer([]), seed=0
    )
    return rows * settings.epochs * trainer.row_cost(fresh.config)


def rows_of(config: Secrets, seed: int) -> Rows:
    """The texts of a seed.

    Args:
        config: of the study.
        seed: of the split and the secrets.

    Raises:
        ValueError: where the task has too few texts that are short enough.
    """
    train, _, _ = load_task(config.task, root=config.root)
    room = config.lengths.max_output - 1  # and the end
    texts = dict.fromkeys(" ".join(text.lower().split()) for text in train.texts)
    texts = [text for text in texts if 0 < len(text) <= room]
    rng = np.random.default_rng(seed)
    sizes = np.cumsum([config.private, config.public, config.held_out])
    bound = f"at most {len(texts)} with public and held_out, as {config.task} has"
    validate.require(sizes[-1] <= len(texts), "private", config.private, bound)
    order = rng.permutation(len(texts))
    private, public, held_out = (
        [texts[i] for i in part] for part in np.split(order, sizes)[:3]
    )
    public = _kept(public, scan(public, private).failed)
    secrets, innocent = _sentences(config, rng)
    longest = max(map(len, (*innocent, *(one.text for one in secrets))))
    bound = f"> {longest}, the longest planted sentence"
    validate.require(longest <= room, "lengths.max_output", room + 1, bound)
    return Rows(private + texts_of(secrets), public, held_out, innocent, secrets)


def _sentences(
    config: Secrets, rng: np.random.Generator
) -> tuple[list[Secret], list[str]]:
    """Secrets, and sentences like them; no name is in both."""
    counts = [0, *config.repetitions]
    need = len(counts) * config.secrets + config.innocent
    # Several kinds of sentences are drawn, of which one is kept.
    drawn = planted(rng, num_secrets=4 * len(TEMPLATES["pin"]) * need, repetitions=[1])
    drawn = [one for one in drawn if one.template == TEMPLATE][:need]
    secrets = [
        one._replace(repetitions=counts[index // config.secrets])
        for index, one in enumerate(drawn[: need - config.innocent])
    ]
    return secrets, [one.text for one in drawn[len(secrets) :]]


def _kept(texts: Sequence[str], failed: np.ndarray) -> list[str]:
    """The texts that do not fail."""
    return [text for text, bad in zip(texts, failed, strict=True) if not bad]


class Study:
    """The models of one seed, each made when it is first needed.

    Args:
        config: of the study.
        seed: of the split, the secrets, the models and the samples.
        folder: of the models.
        watch: is told of the progress.

    Attributes:
        rows: the texts.
        tokenizer: of the characters of public texts.
        planted: the secrets that stand in the private texts.
    """

    def __init__(
        self, config: Secrets, seed: int, folder: pathlib.Path, watch: Watch
    ) -> None:
        self.config, self.seed, self.folder, self.watch = config, seed, folder, watch
        self._say("texts are drawn and scanned")
        self.rows = rows_of(config, seed)
        # Characters of public texts alone: a private one would be a token.
        self.tokenizer = secret_models.character_tokenizer(self.rows.public)
        self.planted = [one for one in self.rows.secrets if one.repetitions]
        self._teacher: LanguageModel | None = None
        self._samples: list[str] | None = None

    def _say(self, text: str) -> None:
        self.watch.describe(f"seed {self.seed}: {text}")

    def teacher(self) -> LanguageModel:
        """The model of the private texts."""
        if self._teacher is None:
            self._teacher = self._learned("teacher", self.rows.private)
        return self._teacher

    def samples(self) -> list[str]:
        """The texts that the teacher writes freely."""
        if self._samples is None:
            self._samples = self._written(self.teacher(), "teacher")
        return self._samples

    def _written(self, model: LanguageModel, arm: str) -> list[str]:
        self._say(f"{arm} writes {self.config.samples} texts")
        return secret_models.free_texts(
            model,
            self.config.samples,
            longest=self.config.lengths.max_output,
            batch_size=self.config.batch_size,
            seed=self.seed,
        )

    def texts(self, kind: str) -> tuple[list[str], dict[str, int]]:
        """The texts that teach, and how many of them hold what they should not.

        Args:
            kind: see `Arm.texts`.
        """
        rows = self.rows
        if kind in ("sampled", "scanned"):
            texts = [text for text in self.samples() if text.strip()]
        else:
            texts = {
                "private": rows.private,
                "public": rows.public,
                "alike": rows.public + rows.innocent,
            }[kind]
        # Private texts would fail as what they are.
        members = [] if kind == "private" else rows.private
        found = scan(texts, members, secrets=self.planted)
        if kind == "scanned":
            bad = found.template | found.secret
            texts = _kept(texts, bad)
            found = scan(texts, members, secrets=self.planted)
        clear = emitted(texts, [one.text for one in self.planted]) > 0
        return texts, {
            "rows": len(texts),
            "secrets in clear": int(clear.sum()),
            "rows in clear": int(found.secret.sum()),
            "rows of template": int(found.template.sum()),
        }

    def _learned(self, arm: str, texts: Sequence[str]) -> LanguageModel:
        """The trained model of an arm, or the one that is saved."""
        config, is_teacher = self.config, arm == "teacher"
        settings = config.teacher if is_teacher else config.student
        # All students start from the same weights.
        start = secret_models.decoder_of(
            settings, self.tokenizer, seed=self.seed + 1000 * is_teacher
        )
        around = Surroundings(
            config.lengths,
            lambda name: Store(self.folder / name, every=config.every),
            self._say,
            self.watch.advance,
        )
        pairs = Texts([""] * len(texts), list(texts))
        lesson = Lesson(pairs, objective_of(TokenDistillation(hard_weight=1.0)))
        if ARMS[arm].soft:
            said = said_by(self.teacher(), start, config.lengths, config.top_k)
            lesson = Lesson(pairs, objective_of(config.kd), said)
        return teach(start, settings, lesson, around, seed=self.seed, name=arm)

    def measured(self, arm: str) -> dict[str, Any]:
        """The line of an arm, which is trained if it is not saved.

        Args:
            arm: a name in `ARMS`.
        """
        texts, held = self.texts(ARMS[arm].texts)
        is_teacher = arm == "teacher"
        model = self.teacher() if is_teacher else self._learned(arm, texts)
        written = self.samples() if is_teacher else self._written(model, arm)
        self._say(f"{arm} is asked for the secrets")
        secrets = self.rows.secrets
        log_probs, bits, told = secret_models.ask(model, secrets)
        own = log_probs[np.arange(len(secrets)), [int(one.code) for one in secrets]]
        drawn = discoverable(np.minimum(own, 0), n=SAMPLES, p=SURELY)
        out = emitted(written, [one.text for one in secrets]) > 0
        times = np.array([one.repetitions for one in secrets])
        return {
            "seed": self.seed,
            "arm": arm,
            "nll": secret_models.nll(model, self.rows.held_out, self.config.lengths),
            "exposure": {str(n): float(bits[times == n].mean()) for n in _each(times)},
            "completed": {str(n): int(told[times == n].sum()) for n in _each(times)},
            "extracted": {str(n): int(drawn[times == n].sum()) for n in _each(times)},
            "emitted": {str(n): int(out[times == n].sum()) for n in _each(times)},
            "planted": len(self.planted),
            **held,
        }


def _each(times: np.ndarray) -> list[int]:
    """The numbers of repetitions, ascending."""
    return sorted({int(number) for number in times})


def table_of(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The header and a line for each arm, means over seeds.

    Columns "n x" are the mean bits of exposure of secrets planted n times, "completed"
    and "emitted" the planted secrets that greedy completion and free samples tell,
    "extracted" those that 100 samples after the prompt tell with 90 %, and "in clear"
    those that stand in the texts that taught.
    """
    times = [*results[0]["exposure"]]
    # Earlier records do not know what can be extracted.
    extracted = ["extracted"] if all("extracted" in row for row in results) else []
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in results:
        groups.setdefault(row["arm"], []).append(row)
    lines = [["arm", "rows", "nll", *(f"{n} x" for n in times)]]
    lines[0] += ["completed", *extracted, "emitted", "in clear"]
    for arm, rows in groups.items():

        def mean(value: Callable[[Mapping[str, Any]], float], rows=rows) -> float:
            return float(np.mean([value(row) for row in rows]))

        def told(name: str, mean=mean) -> float:
            return mean(lambda row: sum(row[name][n] for n in times if n != "0"))

        of = f" of {rows[0]['planted']}"
        lines.append(
            [
                arm,
                f"{mean(lambda row: row['rows']):.0f}",
                f"{mean(lambda row: row['nll']):.3f}",
                *(f"{mean(lambda row, n=n: row['exposure'][n]):.2f}" for n in times),
                f"{told('completed'):g}{of}",
                *(f"{told(name):g}{of}" for name in extracted),
                f"{told('emitted'):g}{of}",
                f"{mean(lambda row: row['secrets in clear']):g}{of}",
            ]
        )
    return lines
