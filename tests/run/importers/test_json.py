from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreshock.errors import ImportFormatError, UsageError
from foreshock.run import Run
from foreshock.run.importers import FORMATS, import_run


def read(tmp_path: Path, content: Any, name: str = "log.jsonl", **options: Any) -> Run:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return import_run(path, **options)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


HISTORY = [
    {"_step": 0, "_runtime": 1.5, "_timestamp": 1700000000.25, "train/loss": 2.5, "train/learning_rate": 1e-3},
    {"_step": 1, "_runtime": 2.5, "_timestamp": 1700000001.25, "train/loss": "NaN", "eval/loss": 3.0, "step": 8},
    {"_step": 2, "_runtime": 3.5, "_timestamp": 1700000002.25, "train/loss": "Infinity", "train/grad_norm": "-Infinity",
     "gradients/fc": {"_type": "histogram", "bins": [0, 1], "values": [3]}, "sample": None, "phase": "late"},
]  # fmt: skip


@pytest.mark.parametrize("content", [HISTORY, lines(*HISTORY)])
def test_wandb_history(tmp_path: Path, content: Any) -> None:
    run = read(tmp_path, content, "history.json")
    assert run.meta["imported"]["format"] == "wandb-json"
    assert run.columns[:4] == ("loss", "grad_norm", "lr", "eval/loss")
    assert run.steps.tolist() == [0, 1, 2]
    assert run.times.tolist() == [1700000000.25, 1700000001.25, 1700000002.25]
    np.testing.assert_array_equal(run["loss"], [2.5, np.nan, np.inf])
    assert run.measured("loss")[0].tolist() == [0, 1, 2]
    assert run.measured("grad_norm")[0].tolist() == [2]
    assert run["grad_norm"][2] == -np.inf
    assert "_runtime" not in run
    assert run.measured("step (as logged)")[1].tolist() == [8]
    assert "phase" in run.meta["left_out"]


def test_wandb_rows_need_a_step(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"no row has a `_step`.*format='jsonl'"):
        read(tmp_path, [{"loss": 1.0}], format="wandb-json")


STATE = {
    "best_global_step": None,
    "best_metric": None,
    "best_model_checkpoint": None,
    "epoch": 2.0,
    "eval_steps": 500,
    "global_step": 20,
    "is_hyper_param_search": False,
    "is_local_process_zero": True,
    "is_world_process_zero": True,
    "log_history": [
        {"epoch": 0.5, "grad_norm": 1.5, "learning_rate": 5e-05, "loss": 2.5, "step": 5},
        {"epoch": 1.0, "grad_norm": float("nan"), "learning_rate": 4e-05, "loss": 0.0, "step": 10},
        {"epoch": 1.0, "eval_loss": 2.75, "eval_runtime": 0.5, "eval_samples_per_second": 100.0, "step": 10},
        {"epoch": 2.0, "grad_norm": 2.0, "learning_rate": 3e-05, "loss": 2.0, "step": 20},
        {"epoch": 2.0, "step": 20, "total_flos": 1e12, "train_loss": 2.2, "train_runtime": 9.5},
    ],
    "logging_steps": 5,
    "max_steps": 20,
    "num_train_epochs": 2,
    "save_steps": 500,
    "stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {}}},
    "total_flos": 1e12,
    "train_batch_size": 8,
    "trial_name": None,
    "trial_params": None,
}


@pytest.mark.parametrize("name", ["trainer_state.json", "renamed.json"])
def test_trainer_state(tmp_path: Path, name: str) -> None:
    run = read(tmp_path, STATE, name)
    assert run.meta["imported"]["format"] == "transformers"
    assert run.steps.tolist() == [5, 10, 20]
    assert run["loss"].tolist() == [2.5, 0.0, 2.0]
    np.testing.assert_array_equal(run["grad_norm"], [1.5, np.nan, 2.0])
    assert run["lr"].tolist() == [5e-05, 4e-05, 3e-05]
    assert run.measured("eval_loss")[0].tolist() == [10]
    assert run["epoch"].tolist() == [0.5, 1.0, 2.0]
    assert "train_loss" not in run
    assert run.meta["trainer"]["max_steps"] == 20
    assert run.meta["trainer"]["summary"]["train_loss"] == 2.2


def test_the_latest_checkpoint_of_a_trainer_folder_is_read(tmp_path: Path) -> None:
    for step in (500, 1000, 90):
        history = [{"loss": 1.0, "step": step}]
        read(tmp_path, {"log_history": history}, f"out/checkpoint-{step}/trainer_state.json")
    assert import_run(tmp_path / "out").steps.tolist() == [1000]
    assert import_run(tmp_path / "out/checkpoint-90").steps.tolist() == [90]


def test_a_trainer_that_logged_no_loss(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match="logging_steps"):
        read(tmp_path, {"log_history": [{"train_loss": 1.0, "train_runtime": 2.0, "step": 3}]}, "trainer_state.json")
    with pytest.raises(ImportFormatError, match="no `log_history`"):
        read(tmp_path, {"global_step": 3}, "trainer_state.json")
    with pytest.raises(ImportFormatError, match="is not JSON"):
        read(tmp_path, '{"log_history": [', "trainer_state.json")


def test_lines_with_nested_names_in_any_order(tmp_path: Path) -> None:
    run = read(tmp_path, lines({"train": {"loss": 2}, "global_step": 4}, {"global_step": 8, "acc": True}) + "\n")
    assert (run.steps.tolist(), run.columns) == ([4, 8], ("loss", "acc"))
    assert run.measured("acc")[1].tolist() == [1.0]


def test_lines_with_neither_step_nor_loss_are_left_out(tmp_path: Path) -> None:
    run = read(tmp_path, lines({"config": {"lr": 0.1}}, {"step": 1, "loss": 2}, {"step": 2, "loss": 1}, {"best": 1}))
    assert run.steps.tolist() == [1, 2]
    assert run.measured("best")[0].tolist() == []


def test_bare_nan_and_lists_are_met(tmp_path: Path) -> None:
    run = read(tmp_path, '{"step": 1, "loss": NaN, "betas": [1, 2]}\n{"step": 2, "loss": -Infinity}\n')
    np.testing.assert_array_equal(run["loss"], [np.nan, -np.inf])
    assert run.columns == ("loss",)


def test_lines_that_go_back_count_as_written_last(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0} for step in range(10)] + [{"step": step, "loss": 2.0} for step in (6, 7)]
    run = read(tmp_path, lines(*rows))
    assert run["loss"].tolist() == [1.0] * 6 + [2.0] * 2


def test_an_object_of_lists(tmp_path: Path) -> None:
    run = read(tmp_path, {"step": [1, 2], "train_loss": [2.0, None], "name": "x"}, "history.json")
    assert (run.steps.tolist(), run.measured("loss")[0].tolist()) == ([1, 2], [1])


def test_a_data_frame_as_pandas_writes_it(tmp_path: Path) -> None:
    run = read(tmp_path, {"_step": {"0": 5, "1": 6}, "train/loss": {"0": 2.0, "1": None}}, "history.json")
    assert (run.steps.tolist(), run.measured("loss")[0].tolist()) == ([5, 6], [5])


def test_a_single_line_and_a_last_line_that_breaks_off(tmp_path: Path) -> None:
    assert len(read(tmp_path, '{"loss": 1.0}\n')) == 1
    run = read(tmp_path, '{"loss": 1.0}\n{"loss": 0.5}\n{"loss": 0.')
    assert run["loss"].tolist() == [1.0, 0.5]
    assert "line 3 breaks off" in str(run.problems[0])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"loss": 1}\n{"loss": \n{"loss": 2}\n', "line 2 is not JSON"),
        ('{"loss": 1}\n[1, 2]\n', "line 2 is not an object"),
        ("[1, 2]", "entry 0 is not an object"),
        ('{"acc": 1}\n', r"no column that looks like the training loss; it has: 'acc'"),
        ('{"loss": 1, "step": 1}\n{"loss": "bad", "step": 2}\n', "line 2: 'bad' in 'loss' is not a number"),
        ('{"loss": 1, "step": 1}\n{"loss": 2}\n', "line 2: a loss, but no value in the step column"),
        ("[]", "holds no rows"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ImportFormatError, match=match):
        read(tmp_path, text)


def test_folders_and_formats_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match="no file"):
        import_run(tmp_path / "nothing.csv")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImportFormatError, match=r"folder without a log.*notes\.txt"):
        import_run(tmp_path)
    with pytest.raises(UsageError, match="format must be one of 'wandb-csv'"):
        import_run(tmp_path, format="parquet")
    assert set(FORMATS) == {"wandb-csv", "wandb-json", "tensorboard", "transformers", "csv", "jsonl"}


def test_a_folder_with_one_table_and_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0/metrics.csv").write_text("step,train_loss_step\n1,2\n")
    assert len(import_run(tmp_path / "version_0")) == 1
    Run.from_arrays({"loss": [1.0]}).save(tmp_path / "run")
    with pytest.raises(ImportFormatError, match=r"run of foreshock already; Run\.load"):
        import_run(tmp_path / "run")
