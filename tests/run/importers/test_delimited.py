from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from foreshock.errors import ImportFormatError
from foreshock.run import Run, is_absent
from foreshock.run.importers import import_run


def read(tmp_path: Path, text: str | bytes, name: str = "log.csv", **options: object) -> Run:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return import_run(path, **options)  # type: ignore[arg-type]


def test_a_plain_table_is_read_with_signals_found_by_their_names(tmp_path: Path) -> None:
    header = "Learning Rate,iteration,acc,Train/Loss,gradient_norm,time"
    text = f"{header}\n1e-3,10,0.5,2.5,1.25,0.4\n1e-3,20,,NaN,-inf,0.3\n"
    run = read(tmp_path, text)
    assert run.columns == ("loss", "grad_norm", "lr", "acc", "time")
    assert run.steps.tolist() == [10, 20]
    np.testing.assert_array_equal(run["loss"], [2.5, np.nan])
    np.testing.assert_array_equal(run["grad_norm"], [1.25, -np.inf])
    np.testing.assert_array_equal(run["lr"], [1e-3, 1e-3])
    assert run.measured("loss")[0].tolist() == [10, 20]
    assert run.measured("acc")[0].tolist() == [10]
    assert run.meta["name"] == "log"
    assert run.meta["imported"] == {"format": "csv", "path": str(tmp_path / "log.csv")}


@pytest.mark.parametrize(
    "text",
    [
        "step;loss\n1;0,5\n2;0,25\n",
        "step\tloss\n1\t0.5\n2\t0.25\n",
        "step|loss\r\n1|0.5\r\n2|0.25\r\n",
        '"step","loss"\n"1","0.5"\n"2","0.25"',
        "# a comment\n\nstep, loss\n1, 0.5\n\n2, 0.25\n\n",
        "step,loss,\n1,0.5,\n2,0.25,\n",
        ",step,loss\n0,1,0.5\n1,2,0.25\n",
        "step,loss\n1,0.5\nstep,loss\n2,0.25\n",
        "step,loss\n1.0,5e-1\n2.0,+.25\n",
    ],
)
def test_dialects(tmp_path: Path, text: str) -> None:
    run = read(tmp_path, text)
    assert run.columns == ("loss",)
    assert (run.steps.tolist(), run["loss"].tolist()) == ([1, 2], [0.5, 0.25])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings_and_names_beyond_ascii(tmp_path: Path, encoding: str) -> None:
    run = read(tmp_path, "step,loss,größe\n1,0.5,3\n".encode(encoding))
    assert run["größe"].tolist() == [3.0]


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    assert len(read(tmp_path, gzip.compress(b"loss\n1\n2\n"), "log.csv.gz")) == 2


def test_rows_count_as_steps_where_there_are_none(tmp_path: Path) -> None:
    run = read(tmp_path, "loss\n3\n2\n2\n")
    assert (run.steps.tolist(), run["loss"].tolist()) == ([0, 1, 2], [3, 2, 2])


def test_epochs_count_as_steps_only_where_each_row_is_one(tmp_path: Path) -> None:
    assert read(tmp_path, "epoch,loss,val_loss\n1,3,4\n2,2,3\n").steps.tolist() == [1, 2]
    assert read(tmp_path, "epoch,loss\n1,3\n1,2\n2,1\n").steps.tolist() == [0, 1, 2]


def test_a_step_that_starts_again_with_every_epoch_is_replaced_by_the_row_number(tmp_path: Path) -> None:
    run = read(tmp_path, "epoch,step,loss\n0,0,5\n0,1,4\n1,0,3\n1,1,2\n")
    assert (run.steps.tolist(), run["loss"].tolist()) == ([0, 1, 2, 3], [5, 4, 3, 2])
    assert "starts again with every epoch" in run.meta["steps"]
    rows = "".join(f"{step},{loss}\n" for loss in range(4) for step in range(5))
    assert len(read(tmp_path, "step,loss\n" + rows)) == 20


def test_rows_of_one_step_are_one_record(tmp_path: Path) -> None:
    run = read(tmp_path, "epoch,step,train_loss,val_loss\n0,9,2.0,\n0,9,,2.5\n1,19,1.0,\n1,19,,1.5\n")
    assert run.steps.tolist() == [9, 19]
    assert run["loss"].tolist() == [2.0, 1.0]
    assert run["val_loss"].tolist() == [2.5, 1.5]


def test_an_evaluation_that_is_logged_late_undoes_nothing(tmp_path: Path) -> None:
    run = read(tmp_path, "step,loss,eval\n10,4,\n11,3,\n12,2,\n10,,9\n13,1,\n20,,5\n")
    assert run.steps.tolist() == [10, 11, 12, 13, 20]
    assert run["loss"][:4].tolist() == [4, 3, 2, 1]
    assert run.measured("eval")[0].tolist() == [10, 20]


def test_negative_steps_are_steps(tmp_path: Path) -> None:
    assert read(tmp_path, "step,loss\n-1,4\n0,3\n").steps.tolist() == [-1, 0]


def test_a_resumed_run_counts_as_written_last(tmp_path: Path) -> None:
    first = "".join(f"{step},1\n" for step in range(20))
    second = "".join(f"{step},2\n" for step in range(12, 16))
    run = read(tmp_path, "step,loss\n" + first + second)
    assert run.steps.tolist() == list(range(16))
    assert run["loss"].tolist() == [1.0] * 12 + [2.0] * 4


def test_rows_in_another_order_are_sorted_and_the_last_of_equals_counts(tmp_path: Path) -> None:
    steps = [7, 3, 5, 1, 0, 6, 2, 3]
    run = read(tmp_path, "step,loss\n" + "".join(f"{step},{place}\n" for place, step in enumerate(steps)))
    assert read(tmp_path, "step,loss\n3,0\n2,1\n1,2\n").steps.tolist() == [1, 2, 3]
    assert run.steps.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert run["loss"].tolist() == [4, 3, 6, 7, 2, 5, 0]


def test_dates_become_times_and_durations_stay_a_column(tmp_path: Path) -> None:
    run = read(tmp_path, "step,loss,timestamp\n1,2,1700000000.5\n2,2,1700000001.5\n")
    assert (run.times.tolist(), run.columns) == ([1700000000.5, 1700000001.5], ("loss",))
    assert read(tmp_path, "step,loss,timestamp\n1,2,1700000000500\n").times.tolist() == [1700000000.5]
    assert read(tmp_path, "step,loss,time\n1,2,0.25\n")["time"].tolist() == [0.25]
    assert read(tmp_path, "step,loss,time\n1,2,nan\n").times.tolist() == [0.0]


def test_text_beside_the_numbers_is_left_out_and_named(tmp_path: Path) -> None:
    run = read(tmp_path, "step,loss,phase,note\n1,2,warm,\n2,1,cold,ok\n")
    assert run.columns == ("loss",)
    assert run.meta["left_out"] == {"phase": "text at line 2: 'warm'", "note": "text at line 3: 'ok'"}


def test_columns_say_what_names_do_not(tmp_path: Path) -> None:
    text = "n,ce,loss,g\n4,1.5,9,2\n8,1.0,9,3\n"
    run = read(tmp_path, text, columns={"step": "n", "loss": "ce", "grad_norm": "g"})
    assert (run.steps.tolist(), run["loss"].tolist(), run["grad_norm"].tolist()) == ([4, 8], [1.5, 1.0], [2, 3])
    assert run["loss (as logged)"].tolist() == [9, 9]


def test_per_tensor_columns_keep_their_table(tmp_path: Path) -> None:
    run = read(tmp_path, "step,loss,grad_norm/fc.weight,grad_norm/fc.bias\n1,2,3,4\n")
    assert run.tensors("grad_norm") == ("fc.weight", "fc.bias")


def test_a_last_line_that_breaks_off_is_left_out(tmp_path: Path) -> None:
    run = read(tmp_path, "step,loss,lr\n1,2,3\n2,1,3\n3,0.")
    assert run.steps.tolist() == [1, 2]
    assert "line 4 breaks off" in str(run.problems[0])


def test_tensorboards_own_csv_download(tmp_path: Path) -> None:
    run = read(tmp_path, "Wall time,Step,Value\n1700000000.1,10,2.5\n1700000001.1,20,2.25\n")
    assert (run.steps.tolist(), run["loss"].tolist(), run.times[0]) == ([10, 20], [2.5, 2.25], 1700000000.1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("step,loss\n", "holds no rows"),
        ("step,acc,eval_loss\n1,2,3\n", r"no column that looks like the training loss.*'eval_loss'.*--column loss="),
        ("1,2.5\n2,2.25\n", r"line 1: numbers where column names are expected.*header"),
        ("step,loss\n1,2\n2,3,4\n3,4\n", r"line 3: 3 fields where the header has 2"),
        ("step,loss,lr\n1,2\n2,3,4\n", r"line 2: 2 fields where the header has 3"),
        ("step,loss\n1,2\n2,tensor(3)\n", r"line 3: 'tensor\(3\)' in 'loss' is not a number"),
        ("step,loss\n1,2\nx,3\n", r"line 3: 'x' in 'step' is not a number"),
        ("step,loss\n1,2\n1.5,3\n", r"line 3: step 1.5 is not a whole number"),
        ("step,loss\n1,2\nnan,3\n", r"line 3: step nan is not a whole number"),
        ("step,loss\n1,2\n,3\n", r"line 3: a loss, but no value in the step column 'step'"),
        ("step,loss\n1,\n2,\n", "'loss' for the loss, but no number in it"),
        (b"\x00\x01\x02\x03" * 50, "is not text"),
        (b"PAR1\x00\x00", "Parquet file.*CSV"),
        (b"PK\x03\x04zip", "zip archive"),
        (b"\x80\x02}q\x00.", "pickle or torch checkpoint"),
        (b"\x1f\x8b\x08broken", "cannot be read"),
        (b":W&B\x00\x01", "offline record of W&B"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(ImportFormatError, match=match) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "log.csv") in str(caught.value)


def test_a_wrong_column_name_suggests_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"no column 'train/los' .*'loss'.*did you mean 'train/loss'"):
        read(tmp_path, "step,train/loss\n1,2\n", columns={"loss": "train/los"})


CHART = (
    '"Step","brisk-sun-7 - train/loss","brisk-sun-7 - train/loss__MIN","brisk-sun-7 - train/loss__MAX",'
    '"old - run - train/loss","old - run - train/loss__MIN","old - run - train/loss__MAX"\n'
    '"0","2.5","2.5","2.5","","",""\n'
    '"5","","","","3.5","3.5","3.5"\n'
    '"10","NaN","NaN","NaN","3.25","3","9"\n'
)


def test_a_wandb_chart_of_several_runs_asks_which(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"2 runs: 'brisk-sun-7', 'old - run'.*brisk-sun-7 - train/loss"):
        read(tmp_path, CHART)


def test_a_wandb_run_is_chosen_by_its_loss(tmp_path: Path) -> None:
    run = read(tmp_path, CHART, columns={"loss": "brisk-sun-7 - train/loss"})
    assert run.meta["name"] == "brisk-sun-7"
    assert run.meta["imported"]["format"] == "wandb-csv"
    assert run.columns == ("loss",)
    assert run.steps.tolist() == [0, 10]
    np.testing.assert_array_equal(run["loss"], [2.5, np.nan])


def test_bounds_of_a_thinned_out_wandb_chart_are_kept(tmp_path: Path) -> None:
    run = read(tmp_path, CHART, columns={"loss": "old - run - train/loss"})
    assert run.columns == ("loss", "train/loss__MIN", "train/loss__MAX")
    assert (run.steps.tolist(), run["loss"].tolist()) == ([5, 10], [3.5, 3.25])
    assert run["train/loss__MAX"].tolist() == [3.5, 9.0]


def test_a_wandb_chart_over_another_axis_uses_the_runs_own_step(tmp_path: Path) -> None:
    text = (
        '"epoch","r - _step","r - _step__MIN","r - _step__MAX","r - loss","r - loss__MIN","r - loss__MAX"\n'
        '"0.5","100","100","100","2","2","2"\n"1","200","200","200","Infinity","Infinity","Infinity"\n'
    )
    run = read(tmp_path, text)
    assert (run.steps.tolist(), run["loss"].tolist()) == ([100, 200], [2.0, np.inf])
    assert run["epoch"].tolist() == [0.5, 1.0]
    run = read(tmp_path, '"trainer/global_step","r - train/loss"\n"50","2"\n"100","1"\n')
    assert run.steps.tolist() == [50, 100]


def test_a_table_that_is_no_wandb_chart_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"'RUN - METRIC'.*format='csv'"):
        read(tmp_path, "step,loss\n1,2\n", format="wandb-csv")


def test_an_imported_run_round_trips_through_a_directory(tmp_path: Path) -> None:
    run = read(tmp_path, "step,loss,eval\n1,2,\n2,nan,3\n")
    run.save(tmp_path / "run")
    again = Run.load(tmp_path / "run", strict=True)
    assert is_absent(again["eval"]).tolist() == [True, False]
    assert not is_absent(again["loss"]).any()
    assert again.meta["imported"] == run.meta["imported"]
