"""Two real nodes over TLS, with authentication: the bits of the simulation, and nobody unknown."""

import importlib.util
import time
from pathlib import Path

import pytest

from simulations.runs.experiment import Experiment
from simulations.runs.nodes import write_for_nodes

ROOT = Path(__file__).parents[1]
KEYS = {"clients": 2, "partition": "iid()", "local_steps": 1, "rounds": 2, "batch_size": 64}


def bring_up():
    """Load the example's module, which is in no package."""
    file = ROOT / "examples" / "deployment" / "bring_up.py"
    spec = importlib.util.spec_from_file_location("bring_up", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.deployment
def test_two_nodes_equal_the_simulation_and_an_unknown_one_is_refused(simulate, tmp_path):
    simulated = simulate(**KEYS)
    toml = (simulated.folder / "experiment.toml").read_text().splitlines()
    dataset = write_for_nodes(Experiment.from_dict(KEYS), tmp_path / "images")
    keys = [line for line in toml if not line.startswith("dataset")]
    (tmp_path / "run.toml").write_text(
        "\n".join([*keys, f'dataset = "{dataset}"', f'out = "{tmp_path / "deployed"}"'])
    )
    before = (ROOT / "pyproject.toml").read_text()
    with bring_up().Deployment(tmp_path / "deployment") as deployment:
        for name, partition in (("node0", 0), ("node1", 1), ("stranger", 0)):
            key = deployment.key(name, register=name != "stranger")
            folder = tmp_path / "images" / f"node{partition}"
            config = f'partition-id={partition} dataset-path="{folder}"'
            deployment.start_node(name, key, config)
        began = time.monotonic()
        run = ["run", ".", "dep", "--run-config", str(tmp_path / "run.toml"), "--stream"]
        said = deployment.flwr(*run)
        print(f"run: {time.monotonic() - began:.0f} s")
        stranger = deployment.processes["stranger"]
        assert stranger.poll() not in {None, 0}, deployment.log("stranger")
        assert "No SuperNode found with the given public key" in deployment.log("superlink")
    assert (tmp_path / "deployed" / "summary.json").exists(), said
    deployed = type(simulated)(tmp_path / "deployed")
    assert simulated.equals(deployed)
    timeless = [name for name in simulated.rounds if not name.endswith("seconds")]
    assert simulated.rounds[timeless].equals(deployed.rounds[timeless])
    assert (ROOT / "pyproject.toml").read_text() == before
