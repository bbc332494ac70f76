"""One server and three nodes on this machine, from nothing, over TLS and with known nodes only.

python examples/deployment/run.py [DIR] [KEY=VALUE]...

Writes everything into DIR (a new folder; by default deployment/): images of every node in a folder
of its own, certificates, keys, logs, and the results of the run. All processes are ended at the
end, also after an error. Takes minutes: an exchange with nodes takes ten seconds or more.
"""

import json
import sys
from pathlib import Path

from bring_up import Deployment

from simulations.runs.experiment import Experiment
from simulations.runs.nodes import write_for_nodes
from simulations.runs.settings import read_overrides

KEYS = {
    "dataset": "digits()",
    "clients": 3,
    "model": "vit(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=2)",
    "cut": 1,
    "strategy": "parallel()",
    "rounds": 2,
    "local_steps": 1,
    "batch_size": 64,
}


def run(folder: Path, keys: dict[str, object]) -> None:
    """Write the folders of images, bring everything up, run, and end everything."""
    simulated = Experiment.from_dict(keys)
    dataset = write_for_nodes(simulated, folder / "images")
    deployed = Experiment.from_dict({**keys, "dataset": dataset})
    config = folder / "run.toml"
    config.write_text(f"{deployed.to_toml()}out = {json.dumps(str(folder / 'results'))}\n")
    with Deployment(folder) as deployment:
        for client in range(simulated.clients):
            name = f"node{client}"
            deployment.start_node(
                name,
                deployment.key(name),
                f'partition-id={client} dataset-path="{folder / "images" / name}"',
            )
            print("Started", name)
        print(deployment.flwr("run", ".", "dep", "--run-config", str(config), "--stream"))


if __name__ == "__main__":
    given = [text for text in sys.argv[1:] if "=" not in text]
    changes = read_overrides([text for text in sys.argv[1:] if "=" in text])
    place = Path(given[0] if given else "deployment").absolute()
    run(place, {**KEYS, **changes})
    if not (place / "results" / "summary.json").exists():
        sys.exit(f"error: the run failed, see above and {place / 'logs'}")
    print((place / "results" / "rounds.csv").read_text())
