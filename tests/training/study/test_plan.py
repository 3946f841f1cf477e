"""Which runs a study has, and that variants differ in nothing but what they are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speakerlens.training.config import Config
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.fit import fit
from speakerlens.training.loop import Trainer
from speakerlens.training.study.plan import make_plan, updates_done
from speakerlens.training.variants import VARIANTS
from tests.training.toy import make_corpus, toy_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return toy_config(tmp_path / "config", "updates=2")


def test_runs_are_ordered_seed_by_seed(corpus: Corpus, config: Config, tmp_path: Path) -> None:
    plan = make_plan(config, corpus, tmp_path, ["da", "clean"], 2)
    assert [(run.seed, run.variant) for run in plan.runs] == [(3, "da"), (3, "clean"), (4, "da"), (4, "clean")]
    assert plan.runs[2].folder == tmp_path / "runs" / "seed-4" / "da"
    assert plan.config_of(plan.runs[2]) == replace(config, seed=4)
    assert updates_done(plan.runs[0]) == 0


def test_variants_of_a_seed_start_with_the_same_weights(corpus: Corpus, config: Config) -> None:
    first, *others = (Trainer(config, variant, corpus, CPU).network.state_dict() for variant in VARIANTS)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    another = Trainer(replace(config, seed=config.seed + 1), "clean", corpus, CPU).network.state_dict()
    assert not torch.equal(first["encoder.conv1.weight"], another["encoder.conv1.weight"])


def test_work_depends_on_the_share_and_on_the_clean_side(corpus: Corpus, config: Config, tmp_path: Path) -> None:
    plan = make_plan(config, corpus, tmp_path, ["da", "act-da"], 1)
    assert plan.work("da") == 1
    assert plan.work("act-da") == pytest.approx(1.75 + 1.75 * 0.5 / 3)
    dearer = replace(
        config,
        interference=replace(config.interference, share=0.8),
        objective=replace(config.objective, clean_gradient=True),
    )
    assert replace(plan, config=dearer).work("act-da") == pytest.approx(1.75 * 1.8)


@pytest.mark.parametrize(
    ("variants", "seeds", "message"),
    [
        (["da", "fast"], 2, 'unknown variant "fast"'),
        (["da", "clean", "da"], 2, "names a variant twice"),
        (["da"], 0, "--seeds must be at least 1, not 0"),
    ],
)
def test_invalid_plan_is_refused(
    corpus: Corpus, config: Config, tmp_path: Path, variants: list[str], seeds: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(config, corpus, tmp_path, variants, seeds)


def test_runs_are_used_again_only_for_the_same_study(corpus: Corpus, config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = make_plan(config, corpus, out, ["clean"], 1).runs[0]
    fit(config, "clean", corpus, run.folder, CPU)
    longer = make_plan(config, corpus, out, ["clean", "da"], 3)
    assert [updates_done(run) for run in longer.runs] == [2, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match=r"seed-3/clean: was trained with data.batch_size 6, not 4"):
        make_plan(replace(config, data=replace(config.data, batch_size=4)), corpus, out, ["clean"], 1)
    with pytest.raises(UserError, match=r"seed-3/clean: was trained on another corpus"):
        make_plan(config, replace(corpus, digest="0" * 64), out, ["clean"], 1)
