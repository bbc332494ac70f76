"""Real nodes, each with images in a folder of its own: here without a network between them."""

import json
import shutil
import tomllib

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from typer.testing import CliRunner

from simulations.cli.main import app
from simulations.data.node_writing import spec_of, write_folders
from simulations.runs import flower_app, server_app
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import opened, partitioned
from strategies import NoClientsLeft, TrainingFailed
from strategies.server import flower_private

NODES = 2
KEYS = {"clients": NODES, "partition": "iid()", "local_steps": 2, "batch_size": 16}


class Nodes(Grid):
    """SuperNodes of one process: a node knows its config, and what its state was as bytes."""

    def __init__(self, configs, run_config):
        flower_private.be_in_a_run()
        self.configs, self.run_config, self.asked = dict(enumerate(configs, 50)), run_config, []
        self.states, self.replies = {node: b"" for node in self.configs}, {}

    def set_run(self, run):
        pass

    @property
    def run(self):
        return flower_private.some_run()

    def create_message(self, *arguments, **named):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.configs)

    def push_messages(self, messages):
        for number, message in enumerate(messages, len(self.replies)):
            flower_private.set_message_id(message, str(number))
            self.replies[str(number)] = self._answer(message)
            yield str(number)

    def _answer(self, message):
        node = message.metadata.dst_node_id
        self.asked.append((node, message.metadata.message_type))
        state = flower_private.record_from_bytes(self.states[node])
        context = Context(1, node, self.configs[node], state, self.run_config)
        try:
            reply = flower_app.app(message, context)
        except Exception as error:  # as run_clientapp does
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(1, reason), reply_to=message)
        self.states[node] = flower_private.record_to_bytes(context.state)
        return reply

    def pull_messages(self, ids):
        return [self.replies.pop(one) for one in ids if one in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write the folders of two nodes, and return where they are and the data set's spec."""
    folder = tmp_path_factory.mktemp("folders") / "shares"
    e = Experiment.from_dict({**KEYS, "engine": "inline()"})
    source = opened(e)
    write_folders(source, partitioned(source, e)[0], folder)
    return folder, spec_of(source, folder)


@pytest.fixture
def on_nodes(tmp_path, folders, reference):
    """Run on nodes that have their folders, or other configs."""

    def run(configs=None, **changes):
        folder, dataset = folders
        configs = configs or [config(k, folder / f"node{k}") for k in range(NODES)]
        keys = reference(**KEYS).summary["experiment"]
        values = {**keys, "dataset": dataset, "out": str(tmp_path / "run"), **changes}
        grid = Nodes(configs, values)
        server_app.app(grid, Context(1, 1, {}, RecordDict(), values))
        return grid, tmp_path / "run"

    return run


def config(partition, folder):
    return {"partition-id": partition, "dataset-path": str(folder)}


def test_nodes_with_folders_equal_the_simulation_and_open_nothing_else(
    on_nodes, reference, folders, monkeypatch
):
    simulated = reference(**KEYS)
    monkeypatch.setattr(flower_app, "prepare", None)  # what a node without a folder calls
    grid, folder = on_nodes()
    other = type(simulated)(folder)
    assert simulated.equals(other)
    timeless = [name for name in simulated.rounds if not name.endswith("seconds")]
    assert simulated.rounds[timeless].equals(other.rounds[timeless])
    asked = [kind for _, kind in grid.asked if kind.startswith("query")]
    assert asked == ["query.labels"] * NODES
    data = json.loads((folder / "data.json").read_text())
    assert data["training_images"] == sum(1 for _ in folders[0].glob("node*/*/*"))
    assert (folder / "partition.csv").read_text() == (
        simulated.folder / "partition.csv"
    ).read_text()


def test_files_are_used_in_the_order_of_their_names(folders):
    from simulations.data.node_folders import read_folder

    found = read_folder(str(folders[0] / "node0"))
    assert [int(path.stem) for path in found.paths] == list(range(len(found.paths)))


def test_experts_are_not_told_by_images_that_the_server_does_not_have(on_nodes, reference):
    experts = {"experts": "switch(blocks=3, count=2)"}
    simulated = reference(**KEYS, **experts)
    assert (simulated.folder / "routing.csv").exists()
    _, folder = on_nodes(**experts)
    assert simulated.equals(type(simulated)(folder))
    assert not (folder / "routing.csv").exists()


def test_the_command_line_writes_folders_once_and_says_what_names_them(tmp_path):
    toml = tmp_path / "c.toml"
    toml.write_text("clients = 3\npartition = 'iid()'\n")
    command = ["partition", str(toml), "--nodes", str(tmp_path / "shares")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    named = tomllib.loads(done.output.splitlines()[-1])["dataset"]
    e = Experiment.from_dict({"dataset": named})
    assert len(opened(e).test_labels) == sum(1 for _ in tmp_path.glob("shares/test/*/*"))
    held = [sum(1 for _ in tmp_path.glob(f"shares/node{k}/*/*")) for k in range(3)]
    assert sum(held) + len(opened(e).test_labels) == 1797 and max(held) - min(held) <= 1
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "is not empty; give a new folder" in again.output


@pytest.mark.parametrize("changes", [{"strategy": "fedavg()"}, {"end": "classifier"}])
def test_labels_are_not_told_where_the_server_would_not_see_them(on_nodes, reference, changes):
    simulated = reference(**KEYS, **changes)
    grid, folder = on_nodes(**changes)
    assert simulated.equals(type(simulated)(folder))
    assert [kind for _, kind in grid.asked if kind.startswith("query")] == ["query.samples"] * NODES
    assert not (folder / "partition.csv").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["majority_accuracy"] is None
    assert {*summary["data"]["training_images_of"].values()} == {None}


def spoil(folder, how):
    if how == "class":
        (folder / "0").rename(folder / "zero")
    elif how == "image":
        first = min(folder.glob("*/*"))
        first.write_bytes(first.read_bytes()[:20])
    elif how == "loose":
        shutil.copy(min(folder.glob("*/*")), folder / "loose.png")
    elif how == "missing":
        shutil.rmtree(folder)
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("class", "has the classes zero, which the server does not know; it knows 0, 1"),
        ("image", r"the image '.*/0\d+.png' cannot be used"),
        ("loose", "must hold folders of classes with images in them, and has loose.png"),
        ("missing", "no folder '/"),
        ("empty", "no images in '/"),
    ],
)
def test_a_node_that_cannot_take_part_is_named(on_nodes, folders, tmp_path, how, said):
    folder = folders[0]
    shutil.copytree(folder / "node1", tmp_path / "bad")
    spoil(tmp_path / "bad", how)
    configs = [config(0, folder / "node0"), config(1, tmp_path / "bad")]
    with pytest.raises(TrainingFailed, match=f"^node 51 .*: partition-id=1: .*{said}") as error:
        on_nodes(configs)
    assert "\n" not in str(error.value)


def test_nodes_without_a_folder_or_a_place_are_refused(on_nodes, folders):
    folder = folders[0]
    first, second = (config(k, folder / f"node{k}") for k in range(NODES))
    with pytest.raises(TrainingFailed, match="partition-id=1: its node config has no dataset-path"):
        on_nodes([first, {"partition-id": 1}])
    with pytest.raises(TrainingFailed, match="partition-id=2: the run has 2 clients, numbered"):
        on_nodes([first, {**second, "partition-id": 2}])
    with pytest.raises(NoClientsLeft, match="two nodes have partition-id=0; 2 clients need one"):
        on_nodes([first, {**second, "partition-id": 0}])
    with pytest.raises(TrainingFailed, match='needs dataset="nodes'):
        on_nodes([first, second], dataset="digits()")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "centralised()"}, "strategy: .* needs all images on the server"),
        ({"skew": "noise(sigma=0.1)"}, "skew: "),
        ({"holdout": 0.2}, "holdout: "),
        ({"dataset": "nodes(test='/nowhere')"}, "dataset: no folder '/nowhere'"),
    ],
)
def test_what_images_of_nodes_cannot_give_is_refused(on_nodes, changes, said):
    with pytest.raises(ValueError, match=said):
        on_nodes(**changes)


def test_a_simulation_does_not_take_images_of_nodes(folders, simulate):
    with pytest.raises(ValueError, match=r"dataset: nodes\(\) is for `flwr run` on real nodes"):
        simulate(dataset=folders[1])


def test_simulated_clients_of_one_process_share_its_data():
    run_config = Experiment.from_dict(KEYS).model_dump()
    configs = [{"partition-id": client, "num-partitions": NODES} for client in (0, 1, 0)]
    first, second, third = (
        flower_app._pool(Context(1, 1, config, RecordDict(), run_config)) for config in configs
    )
    assert first is second is third
