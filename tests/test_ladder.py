"""A ladder: rungs in order, settings for some of them, teachers first, and what every rung adds."""

from pathlib import Path

import pytest
import yaml
from invented import TREE, build, decoded, experiment

from lib.config.load import load
from lib.errors import ConfigError
from lib.tools import ladder, sweep

BAG = Path(__file__).resolve().parents[1] / "configs" / "bag_of_tricks"
LR = "models.net.train.optimizer.lr"
CROP = "models.net.train.crop"


def write(folder: Path, name: str, **changes) -> Path:
    tree = {"name": name.split("_", 1)[-1], **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**TREE, **tree}))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three rungs, the second with another seed of the folds, the third with a fixed setting, and a stranger."""
    folder = tmp_path / "steps"
    folder.mkdir()
    write(folder, "0_plain")
    write(folder, "1_split", folds={"n": 2, "seed": 9}, reference={"score": 0.65})
    write(folder, "2_fixed", folds={"n": 2, "seed": 9}, decode={"min_area": 5})
    write(folder, "other", predict={"logits": True})
    return folder


def test_settings_reach_the_rungs_they_name(folder):
    climbed, others = ladder.rungs(folder, [f"{LR}=0.5", f"1-2:{LR}=0.25", f"2:{LR}=0.125", f"other:{CROP}=96"])
    assert [rung.path.stem for rung in climbed] == ["0_plain", "1_split", "2_fixed"]
    assert [load(r.path, r.overrides).models["net"].train.optimizer.lr for r in climbed] == [0.5, 0.25, 0.125]
    ((_, other),) = others.items()
    assert load(other.path, other.overrides).models["net"].train.crop == 96
    assert all(load(r.path, r.overrides).models["net"].train.crop == 64 for r in climbed)


@pytest.mark.parametrize(("text", "said"), [
    (f"7:{LR}=1", "no file of .* fits"), (f"third:{LR}=1", "no file of .* fits"), ("folds.n", "section.key=value"),
    ("seed=3", "the ladder's own"), ("folds.n=[", "not a YAML value"), ("folds.m=3", "folds.m: unknown key"),
])  # fmt: skip
def test_a_bad_setting_is_refused_before_anything_runs(folder, text, said):
    with pytest.raises(ConfigError, match=said):
        ladder.rungs(folder, [text])


def test_a_folder_without_rungs_or_with_twins_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="begin with a digit"):
        ladder.rungs(tmp_path)
    write(folder, "3_plain")
    with pytest.raises(ConfigError, match="same name"):
        ladder.rungs(folder)


def test_changes_are_said_in_few_words():
    before = {"name": "a", "models": {"net": {"train": {"crop": 64, "schedule": {"kind": "multistep", "power": 1}}}}}
    after = {"name": "b", "models": {"net": {"train": {"crop": 64, "schedule": {"kind": "poly"}, "ema": 0.9}}}}
    assert ladder.changes(before, after) == "schedule.kind poly (not multistep), train.ema 0.9, no schedule.power"
    assert ladder.changes(after, {**after, "name": "c", "seed": 4}) == ""


def test_a_teacher_is_trained_first_with_the_same_seed(folder):
    taught = {"net": {**TREE["models"]["net"]}}
    taught["net"]["train"] = {**taught["net"]["train"], "distill": {"experiment": "other"}}
    write(folder, "2_fixed", models=taught)
    key = "models.net.train.distill.experiment"
    with pytest.raises(ConfigError, match=r"other.yaml: predict.logits: expected true, since 2_fixed.yaml is taught"):
        ladder.rungs(folder, ["other:predict.logits=false"])
    climbed, others = ladder.rungs(folder)
    assert climbed[2].teachers == {key: folder / "other.yaml"} and not climbed[0].teachers
    todo, of_rung = ladder.experiments(climbed, others, [0, 1])
    assert [one.name for one in todo] == [f"{name}_seed{s}" for s in (0, 1)
                                          for name in ("plain", "split", "other", "fixed")]  # fmt: skip
    assert of_rung[folder / "2_fixed.yaml"][1].settings == {key: "other_seed1", "seed": 1}


def test_the_table_has_mean_spread_and_gain_of_every_rung(folder, tmp_path, capsys):
    """A runner that invents finished experiments stands in for the stages; a second climb finds them done."""
    scores = {"plain": (0.5, 0.6), "split": (0.6, 0.8), "fixed": (0.9, None)}
    asked = []

    def runner(command):
        flags = dict(zip(command[2::2], command[3::2]))
        sets = [b for a, b in zip(command, command[1:]) if a == "--set"]
        config = load(Path(flags["--config"]), sets)
        asked.append((config.name, Path(command[1]).name[:2]))
        score = scores[config.name.rpartition("_")[0]][config.seed]
        if Path(command[1]).name.startswith("05") and score is not None:
            more = {"seed": config.seed, "folds": config.folds.model_dump()}
            build(tmp_path / "w", experiment(config.name, **more), decoded(score, expected_score=score - 0.1))
        return 3 if score is None else 0

    stages = sweep.scripts("01..05")
    rows, failed = ladder.climb(folder, [0, 1], tmp_path / "w", [],
                                lambda todo: sweep.run(todo, tmp_path / "w", stages, runner))  # fmt: skip
    assert [row["rung"] for row in rows] == ["0_plain", "1_split", "2_fixed"]
    assert [row["score"] for row in rows] == pytest.approx([0.55, 0.7, 0.9])
    assert [row["gain"] for row in rows] == [None, pytest.approx(0.15), pytest.approx(0.2)]
    assert [row["spread"] for row in rows] == [pytest.approx(0.1 / 2**0.5), pytest.approx(0.2 / 2**0.5), None]
    assert [row["expected"] for row in rows] == pytest.approx([0.45, 0.6, 0.8])
    assert [row["changed"] for row in rows] == ["", "folds.seed 9", "decode.min_area 5"]
    assert [row.get("source") for row in rows] == [None, 0.65, None]
    assert [row["seeds"] for row in rows] == [2, 2, 1] and rows[0]["seconds"] > rows[2]["seconds"] > 0
    assert list(failed) == ["fixed_seed1"] and "01_prepare_folds.py" in failed["fixed_seed1"]
    assert asked[:6] == [("plain_seed0", f"0{k}") for k in range(1, 6)] + [("split_seed0", "01")]


def test_a_ladder_gives_all_rungs_and_seeds_to_an_engine(folder, tmp_path, monkeypatch, capsys):
    asked = []

    def run_several(wanted, engine, stages, pressed):
        asked.append((list(wanted), engine.slots, stages))
        return {name: "scene 7 is odd" if name == "split_seed1" else "" for name in wanted}

    monkeypatch.setattr(sweep, "run_several", run_several)
    flags = ["--seeds", "0", "1", "--workdir", str(tmp_path / "w"), "--stages", "01..02", "--local", "2"]
    assert ladder.main([str(folder), *flags]) == 2
    names = [f"{name}_seed{seed}" for seed in (0, 1) for name in ("plain", "split", "fixed")]
    assert asked == [(names, 2, ["01", "02"])]
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[0] == "rung" and said[-1] == "failed: split_seed1: scene 7 is odd"


def test_the_bag_of_tricks_adds_what_its_source_adds():
    """He et al. 2019, tables 4 to 6: each rung changes its trick and nothing else; the figures are the source's."""
    climbed, others = ladder.rungs(BAG)
    trees = [ladder.tree(rung) for rung in climbed]
    assert [ladder.changes(a, b) for a, b in zip(trees, trees[1:])][1:] == [
        "network.encoder resnet50 (not resnet50a)",
        "network.encoder resnet50c (not resnet50)",
        "network.encoder resnet50d (not resnet50c)",
        "no schedule.kind, no factors.30, no factors.60, no factors.90",  # cosine is the default
        "loss.smoothing 0.1",
        "distill.experiment bag_teacher",
        "train.epochs 200 (not 120), mix.mixup 0.2, no distill.experiment",
        "distill.experiment bag_teacher",
    ]
    assert trees[0]["models"]["net"]["network"]["encoder"] == "resnet50a"
    assert [round(100 * tree["reference"]["scores"]["score"], 2) for tree in trees] == [
        75.87, 76.21, 76.66, 76.87, 77.16, 77.91, 78.31, 78.67, 79.15, 79.29]  # fmt: skip
    taught = {rung.path.stem for rung in climbed if rung.teachers}
    assert taught == {"7_distill", "9_distill_mixup"} and [path.stem for path in others] == ["teacher"]
    todo, _ = ladder.experiments(climbed, others, [0])
    assert [one.name for one in todo][6:9] == [
        "bag_6_label_smoothing_seed0",
        "bag_teacher_seed0",
        "bag_7_distill_seed0",
    ]


def test_an_interrupt_ends_the_climb(folder, tmp_path):
    stages = sweep.scripts("01..05")
    with pytest.raises(KeyboardInterrupt):
        ladder.climb(folder, [0], tmp_path, [],
                     lambda todo: sweep.run(todo, tmp_path, stages, lambda command: sweep.INTERRUPTED))  # fmt: skip
