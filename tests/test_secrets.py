"""The study of what small decoders memorise and hand on, and a model by hand."""

import itertools
import json

import jax
import numpy as np
import pytest

from experiments.configs import privacy
from experiments.run import main
from experiments.systems import secret_models, secrets
from experiments.systems.privacy_settings import Secrets
from protojax.models.language import LanguageConfig, LanguageModel, init_model
from protojax.pipelines import Watch
from protojax.privacy.overlap import scan
from protojax.privacy.probes import TEMPLATES, Secret, texts_of

SECRETS = [
    Secret(f"the pin of {name} is {code}", f"the pin of {name} is", code, name, "", 1)
    for name, code in (("ba", "0000"), ("do fen", "9876"), ("gi", "0121"))
]


def chain(table):
    """A decoder that knows the last character alone: logits are a row of a table."""
    tokenizer = secret_models.character_tokenizer([])
    size = len(tokenizer)
    config = LanguageConfig(
        family="llama",
        vocab_size=size,
        hidden_size=size,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        intermediate_size=2,
        positions="rotary",
        max_positions=128,
        norm_eps=1e-12,
        tied=False,
        end_ids=(tokenizer.eos_token_id,),
    )
    params = jax.tree.map(np.zeros_like, init_model(config, seed=0).params)
    params["decoder"]["norm"]["scale"] = np.ones(size, np.float32)
    params["embedding"]["embedding"] = np.eye(size, dtype=np.float32)
    # The norm makes a unit vector one of length √size.
    params["head"]["kernel"] = np.float32(table(tokenizer) / size**0.5)
    return LanguageModel(config, params, tokenizer)


def test_exposures_of_a_model_by_hand():
    rng = np.random.default_rng(0)
    model = chain(lambda tokenizer: rng.normal(size=(len(tokenizer),) * 2))
    ids = dict(zip(secret_models.DIGITS + " ", range(11), strict=True))
    ids = {c: model.tokenizer.convert_tokens_to_ids(c) for c in ids}
    logits = model.params["head"]["kernel"] * len(model.tokenizer) ** 0.5
    table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = [
        sum(table[ids[a], ids[b]] for a, b in itertools.pairwise([" ", *code]))
        for code in itertools.product(secret_models.DIGITS, repeat=4)
    ]
    found = secret_models.ask(model, SECRETS)
    # The model does not read the names.
    for row in found.log_probs:
        np.testing.assert_allclose(row, wanted, rtol=1e-4)
    ranks = [np.sum(np.array(wanted) >= wanted[int(one.code)]) for one in SECRETS]
    np.testing.assert_allclose(
        found.exposure,
        np.log2(10_000) - np.log2(ranks),
        atol=0.02,
    )


def test_a_model_that_only_knows_one_code_tells_it():
    def table(tokenizer):
        found = np.zeros((len(tokenizer),) * 2)
        for a, b in itertools.pairwise(" 9876"):
            first, then = tokenizer.convert_tokens_to_ids([a, b])
            found[first, then] = 20
        return found

    model = chain(table)
    found = secret_models.ask(model, SECRETS)
    assert found.completed.tolist() == [False, True, False]
    assert found.exposure[1] == pytest.approx(np.log2(10_000))


def tiny():
    config = privacy.get_config("secrets")
    config.private, config.public, config.held_out, config.samples = 40, 40, 10, 8
    config.secrets, config.repetitions, config.innocent = 1, (1, 2), 10
    config.arms, config.batch_size = ("teacher", "scanned"), 8
    config.lengths.buckets, config.lengths.evaluation_rows = ((2, 56),), 16
    for name in ("teacher", "student"):
        sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2}
        config[name].scratch.update({**sizes, "intermediate_size": 8})
        config[name].epochs, config[name].batch_size = 1, 16
    return config


def test_a_study_has_a_line_for_each_arm_and_goes_on(tmp_path):
    main(tiny(), tmp_path)
    lines = (tmp_path / "results.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["arm"] for row in rows] == ["teacher", "scanned"]
    table = secrets.table_of(rows)
    assert table[0][3:6] == ["0 x", "1 x", "2 x"]
    assert table[0][6:9] == ["completed", "extracted", "emitted"]
    assert all(row["extracted"].keys() == row["completed"].keys() for row in rows)
    # Records of earlier versions do not say what can be extracted.
    before = [{k: v for k, v in row.items() if k != "extracted"} for row in rows]
    assert "extracted" not in secrets.table_of(before)[0]
    assert all(len(line) == len(table[0]) for line in table)
    teacher, scanned = rows
    assert teacher["rows"] == 43
    assert teacher["secrets in clear"] == 2
    assert teacher["rows of template"] == 3
    assert scanned["rows of template"] == scanned["rows in clear"] == 0
    assert all(0 <= bits < 13.3 for row in rows for bits in row["exposure"].values())
    found = secrets.rows_of(secrets.check(tiny()), 0)
    assert not [one for one in found.secrets if one.owner in lines]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 2
    # A model that is saved is measured again, not trained.
    (tmp_path / "results.jsonl").write_text("".join(lines.splitlines(True)[:1]))
    main(tiny(), tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert (tmp_path / "results.jsonl").read_text() == lines


def test_texts_that_teach_hold_what_their_kind_says(tmp_path):
    study = secrets.Study(secrets.check(tiny()), 0, tmp_path, Watch())
    alike, held = study.texts("alike")
    public, _ = study.texts("public")
    assert alike[: len(public)] == public
    assert alike[len(public) :] == study.rows.innocent
    assert held == {
        "rows": len(public) + 10,
        "secrets in clear": 0,
        "rows in clear": 0,
        "rows of template": 10,
    }


def test_rows_of_a_study():
    config = Secrets(private=200, public=200, held_out=50)
    found = secrets.rows_of(config, 3)
    times = [one.repetitions for one in found.secrets]
    assert times == [0] * 10 + [1] * 10 + [4] * 10 + [16] * 10
    assert len(found.private) == 200 + 210
    assert len(found.innocent) == 200
    assert set(texts_of(found.secrets)) < set(found.private)
    assert {one.template for one in found.secrets} == {TEMPLATES["pin"][0]}
    names = {one.owner for one in found.secrets}
    assert len(names) == 40
    assert not [text for text in found.innocent for name in names if name in text]
    assert not scan(found.public, found.private, secrets=found.secrets).failed.any()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="arms"):
        Secrets(arms=("oracle",))
    with pytest.raises(ValueError, match="repetitions"):
        Secrets(repetitions=(4, 4))
    with pytest.raises(ValueError, match="private"):
        secrets.rows_of(Secrets(private=100_000), 0)
