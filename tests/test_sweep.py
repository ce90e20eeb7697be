"""A sweep: all combinations, stable names, one failure harms no other, seeds grouped."""

import sys
from pathlib import Path
from statistics import mean

import pytest
import starts
import yaml
from invented import TREE, build, decoded, experiment
from sisters import COMMON, EXPERIMENTS

from lib.config.load import load
from lib.errors import ConfigError
from lib.tools import sweep

LR = "models.net.train.optimizer.lr"


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump({**TREE, "name": "base"}))
    return path


def test_a_product_takes_all_combinations_and_zip_goes_side_by_side(config):
    grid = {LR: [1e-3, 1e-4], "seed": [0, 1, 2]}
    product = sweep.combinations("base", config, grid)
    assert [tuple(one.settings.values()) for one in product] == [(lr, s) for lr in (1e-3, 1e-4) for s in (0, 1, 2)]
    zipped = sweep.combinations("base", config, {LR: [1e-3, 1e-4], "seed": [4, 5]}, "zip")
    assert [tuple(one.settings.values()) for one in zipped] == [(1e-3, 4), (1e-4, 5)]
    assert [one.name for one in zipped] == ["base-lr0.001-seed4", "base-lr0.0001-seed5"]


def test_names_stay_when_a_list_grows_and_are_told_apart_when_keys_end_alike(config):
    short = sweep.combinations("b", config, {"seed": [0], LR: [0.1]})
    longer = sweep.combinations("b", config, {"seed": [0, 1], LR: [0.1, 0.2]})
    assert {one.name for one in short} < {one.name for one in longer}
    alike = sweep.combinations("b", config, {LR: [0.1, 0.2], "models.other.train.optimizer.lr": [0.1, 0.2]})
    assert len({one.name for one in alike}) == 4
    listed = sweep.combinations("b", config, {"predict.scales": [[1.0], [1.0, 1.5]]})
    assert len({one.name for one in listed}) == 2
    with pytest.raises(ConfigError, match="twice"):
        sweep.combinations("b", config, {"seed": [1, 1]})


@pytest.mark.parametrize(
    ("key", "value"),
    [(LR, 1e-5), ("predict.scales", [0.5, 1.0]), ("models.net.network.options", {"dropout": 1e-7, "decoder": "unet"}),
     ("models.net.train.init_from", None), ("models.net.train.augment", "very long name: with a colon, " * 3)],
)  # fmt: skip
def test_a_value_arrives_in_the_experiment_as_it_is_in_the_grid(config, key, value):
    (one,) = sweep.combinations("base", config, {key: [value]})
    changed = load(config, one.overrides())
    assert changed.name == one.name
    found = changed.model_dump(mode="json")
    for part in key.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1, 2]", "expected settings"), ("seed: 3", "list of values"), ("mode: grid\nseed: [1]", "mode"),
     ("mode: zip\nseed: [1]\npredict.tta: [none, d4]", "one length"), ("name: [a]", "leave it out"), ("a: [", "YAML")],
)  # fmt: skip
def test_a_bad_grid_is_refused(tmp_path, text, said):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        sweep.read_grid(path)


def test_stages_are_a_span_or_a_list():
    assert [p.name[:2] for p in sweep.scripts("01..05")] == ["01", "02", "03", "04", "05"]
    assert [p.name[:2] for p in sweep.scripts("04,05")] == ["04", "05"]
    for wrong in ("07", "05..01", "01..9", ""):
        with pytest.raises(ConfigError, match="--stages"):
            sweep.scripts(wrong)


def test_one_failure_is_named_and_the_others_go_on(config, tmp_path):
    asked = []

    def runner(command):
        name = command[-1].removeprefix("name=")
        asked.append((name, Path(command[1]).name[:2]))
        assert command[0] == sys.executable and f"data.root={tmp_path}" in command
        return 3 if asked[-1] == ("base-seed1", "02") else 0

    grid = {"seed": [0, 1, "one", 2]}  # "one" is no seed: refused before anything runs
    todo = sweep.combinations("base", config, grid)
    outcome = sweep.run(todo, tmp_path, sweep.scripts("01..03"), runner, [f"data.root={tmp_path}"])
    assert asked == [(f"base-seed{s}", k) for s, ks in (("0", "123"), ("1", "12"), ("2", "123")) for k in
                     (f"0{k}" for k in ks)]  # fmt: skip
    assert {name for name, why in outcome.items() if why} == {"base-seed1", "base-seedone"}
    assert outcome["base-seed1"] == "02_train_loc.py ended with exit code 3"
    assert "seed" in outcome["base-seedone"]


def test_an_interrupt_ends_the_sweep(config, tmp_path):
    todo = sweep.combinations("base", config, {"seed": [0, 1]})
    asked = []

    def interrupted(command):
        asked.append(command)
        return sweep.INTERRUPTED

    with pytest.raises(KeyboardInterrupt):
        sweep.run(todo, tmp_path, sweep.scripts("01..02"), interrupted)
    assert len(asked) == 1
    with pytest.raises(KeyboardInterrupt):
        sweep.run(todo, tmp_path, sweep.scripts("01..02"), lambda c: asked.append(c) or 0, stop=lambda: True)
    assert len(asked) == 2


def test_results_group_seeds_and_put_the_best_first(config, tmp_path):
    todo = sweep.combinations("base", config, {LR: [0.1, 0.2, 0.3], "seed": [0, 1]})
    scores = [0.50, 0.54, 0.70, 0.60, None, None]
    for one, score in zip(todo, scores):
        if score is not None:
            build(tmp_path, experiment(one.name, lr=one.settings[LR], seed=one.settings["seed"]), decoded(score))
    outcome = {one.name: "" for one in todo} | {todo[3].name: "03 ended badly"}
    rows = sweep.results(todo, outcome, tmp_path)
    assert [row[LR] for row in rows] == [0.2, 0.1, 0.3]
    assert [row["score"] for row in rows] == [0.70, pytest.approx(mean([0.50, 0.54])), None]
    assert [row["spread"] for row in rows] == [None, pytest.approx(0.04 / 2**0.5), None]
    assert [(row["seeds"], row["unfinished"]) for row in rows] == [(1, 1), (2, 0), (0, 2)]


def test_without_seeds_every_combination_has_a_row(config, tmp_path):
    todo = sweep.combinations("base", config, {LR: [0.1, 0.2]})
    for one, score in zip(todo, (0.2, 0.4)):
        build(tmp_path, experiment(one.name, lr=one.settings[LR]), decoded(score))
    rows = sweep.results(todo, {}, tmp_path)
    assert [(row[LR], row["score"]) for row in rows] == [(0.2, 0.4), (0.1, 0.2)] and "spread" not in rows[0]


@pytest.mark.slow
def test_a_real_sweep_runs_resumes_and_prints_its_table(tmp_path, monkeypatch, capfd):
    said = tmp_path / "said.txt"
    monkeypatch.setattr(sweep, "run_command", lambda c: starts.run(Path(c[1]).stem, *c[2:], output=said))
    tree = {**COMMON, "name": "frames", **EXPERIMENTS["videos"]}
    tree["data"] = {"root": str(tmp_path / "data"), **tree["data"]}
    (tmp_path / "frames.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "grid.yaml").write_text("seed: [0, 1]\nmodels.frames.train.epochs: [1]\n")
    call = ["--config", str(tmp_path / "frames.yaml"), "--grid", str(tmp_path / "grid.yaml"),
            "--workdir", str(tmp_path / "w"), "--set", "folds.n=2"]  # fmt: skip
    assert sweep.main(call) == 0
    table = capfd.readouterr().out.splitlines()[-2:]
    assert table[0].split()[:4] == ["models.frames.train.epochs", "score", "spread", "seeds"]
    assert table[1].split()[3] == "2"
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == ["frames-seed0-epochs1", "frames-seed1-epochs1"]
    said.unlink()
    assert sweep.main(call) == 0
    again = said.read_text()
    assert "skipped, done" in again and "building" not in again
    assert capfd.readouterr().out.splitlines()[-2:] == table


def test_a_command_of_a_sweep_ends_with_its_own_code():
    assert sweep.run_command([sys.executable, "-S", "-c", "raise SystemExit(3)"]) == 3
