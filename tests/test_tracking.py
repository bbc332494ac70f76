"""Rows of results in TensorBoard's and MLflow's own files."""

import sys

import pytest

from fl_split.spec_errors import SpecError
from simulations.runs.experiment import Experiment


def test_tensorboard_has_every_number_of_every_round(simulate):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    outcome = simulate(rounds=3, tracking="tensorboard()")
    events = accumulator.EventAccumulator(str(outcome.folder))
    events.Reload()
    for column in ("accuracy", "payload_bytes_up", "drift"):
        found = events.Scalars(column)
        assert [event.step for event in found] == [1, 2, 3]
        values = outcome.rounds[column].to_numpy()
        assert [event.value for event in found] == pytest.approx(values, rel=1e-6)
    assert "client_accuracy" not in events.Tags()["scalars"]  # there is none without holdout


def test_mlflow_has_settings_and_numbers(simulate, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its servers need more than the extra
    uri = (tmp_path / "mlflow").as_uri()
    outcome = simulate(rounds=2, tracking=f"mlflow(uri='{uri}')")
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("fl-split")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == outcome.folder.name
    assert run.data.params["strategy"] == "parallel(average_heads=True)"
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [entry.value for entry in history] == outcome.rounds["accuracy"].tolist()


def test_a_missing_library_is_said_at_the_door(monkeypatch):
    for spec in ("tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, spec, None)  # Python's way to say that there is none
        with pytest.raises(SpecError, match=r"pip install 'fl-split\[tracking\]'"):
            Experiment.from_dict({"tracking": spec})
