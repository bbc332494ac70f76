import pickle
import tomllib
from pathlib import Path

import pytest

from fl_split.spec_errors import SpecError
from fl_split.specs import parse
from simulations.runs.experiment import Experiment
from simulations.runs.parts import TABLES
from simulations.runs.settings import read_overrides, read_toml
from simulations.runs.setup import prepare
from simulations.studies.pareto import ParetoStudy
from simulations.studies.sweep import cells, read_grid

ROOT = Path(__file__).parents[1]


def test_flower_run_config_defaults_are_the_experiments():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    defaults = project["tool"]["flwr"]["app"]["config"]
    assert Experiment.from_dict(defaults) == Experiment()
    assert set(defaults) == set(Experiment.model_fields)


def test_version_is_said_once():
    from fl_split import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_a_resolved_experiment_reads_back_equal(tmp_path):
    first = Experiment.from_dict({"codec": "adc(ratio=0.3, split='fifth')", "fraction": 1})
    file = tmp_path / "experiment.toml"
    file.write_text(first.to_toml())
    assert Experiment.from_dict(read_toml(file)) == first


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda f: f.name)
def test_every_config_is_valid_and_says_how_to_run_it(file):
    values = read_toml(file)
    rows, study = values.pop("compare", [{}]), values.pop("pareto", None)
    grid = values.pop("sweep", None)
    if study is not None:
        assert ParetoStudy.read(study).cells(values)
    if grid is not None:
        assert cells(values, read_grid(grid, []))
    for row in rows:
        row.pop("name", None)
        Experiment.from_dict({**values, **row})
    command = "sweep" if grid else "pareto" if study else "compare" if rows != [{}] else "run"
    first, second = file.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith(f"# fl-split {command} configs/{file.name}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"round": 3}, "unknown key 'round'; did you mean 'rounds'?"),
        ({"rounds": 0}, "rounds must be greater than or equal to 1, got 0"),
        ({"rounds": "ten"}, "rounds must be a valid integer, got 'ten'"),
        ({"rounds": True}, "rounds must be a valid integer, got True"),
        ({"fraction": 1.5}, "fraction must be less than or equal to 1, got 1.5"),
        ({"codec": "acd(ratio=0.1)"}, "unknown name 'acd'; did you mean 'adc'?"),
        ({"codec": "adc(ration=0.1)"}, "unknown argument 'ration'; did you mean 'ratio'?"),
        ({"codec": "adc(ratio=2)"}, "ratio must be less than or equal to 1, got 2"),
        ({"codec": "adc(ratio=open('x'))"}, "ratio must be a literal"),
        ({"codec": "adc(ratio=0.1, ratio=0.2)"}, "ratio is given twice"),
        ({"codec": "adc(ratio=" + "-" * 5000 + "1)"}, "is not of the form name(key=value, ...)"),
        ({"codec": "adc(0.1"}, "is not of the form name(key=value, ...)"),
        ({"codec": "identity(0.1)"}, "1 values for 0 arguments"),
        ({"codec": "adc(0.1, ratio=0.2)"}, "ratio is given twice"),
        ({"downlink": "adc(0.1)"}, "can only be packed"),
        ({"budget": "rounds(0)"}, "greater than or equal to 1"),
        (
            {"strategy": "sflv2(order='up')"},
            "order must be 'random', 'cyclic', 'reverse' or 'arrival'",
        ),
        ({"head_optimizer": "adam(lr=-1)"}, "lr must be greater than or equal to 0, got -1"),
        ({"partition": "dirichlett"}, "did you mean 'dirichlet'?"),
        ({"partition": "dirichlet(beta=1)"}, "unknown argument 'beta'"),
        ({"model": "pretrained()"}, "path must be given"),
        ({"cut": 0}, "cut must be a number of stages from 1, a stage's name, a list"),
        ({"cut": "3"}, "uniform(1, 3), got '3'; a number has no quotes"),
        ({"end": "3"}, "got '3'; a number has no quotes: 3"),
        ({"cut": True}, "uniform(1, 3), got True"),
        ({"model": "lenet(14, 3)"}, "2 values for 1 arguments"),
        ({"engine": "rays"}, "did you mean 'ray'?"),
        (
            {"strategy": "parallel(official_scripts=True)"},
            "'official_scripts'; Known: average_heads; sequential, ",
        ),
        (
            {"strategy": "fedavg(mu=0.1)"},
            "unknown argument 'mu'; Known: none; fedprox, moon have it",
        ),
    ],
)
def test_bad_configuration_is_refused_with_help(values, message):
    with pytest.raises(SpecError) as error:
        Experiment.from_dict(values)
    assert message in str(error.value)
    assert next(iter(values)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cut": 4}, "cut must be in 1..3 or the name of the client's last stage (block1, "),
        ({"cut": "blok2"}, "got 'blok2'; did you mean 'block2'?"),
        ({"end": "clasifier"}, "got 'clasifier'; did you mean 'classifier'?"),
        ({"cut": "block4"}, "got 'block4'; after 'block4' nothing is left for the server"),
        (
            {"partition": "natural(partition_by='writer')"},
            "partition: \"natural(partition_by='writer')\": the data set has no column 'writer'; "
            "beside images it has label",
        ),
        (
            {"aggregation": "krum(malicious=2)", "clients": 12, "fraction": 0.5},
            "aggregation: krum(malicious=2) needs 7 clients or more in a round, got 6 "
            "(fraction=0.5 of clients=12 that hold samples)",
        ),
        ({"model": "lenet"}, "model: lenet needs images of 16 pixels a side, got 8"),
        ({"partition": "size"}, "partition: 'size()': partition_sizes must be given"),
        ({"partition": "pathological(num_classes_per_partition=0)"}, "must be 1 or more, got 0"),
        ({"clients": 5000}, "clients: 5000 clients cannot share 1433 samples"),
        ({"partition": "dirichlet(alpha=0.1, min_partition_size=9)"}, "cannot be satisfied"),
        ({"partition": "pathological(num_classes_per_partition=99)"}, "cannot be satisfied"),
        ({"dataset": "local(path='/nowhere')"}, "dataset: no file or folder '/nowhere'"),
        ({"model": "vit(patch_size=3)"}, "model: patch_size must divide the image size 8, got 3"),
        ({"model": "vit(hidden_size=10)"}, "num_attention_heads must divide hidden_size 10"),
        ({"model": "pretrained(path='./nowhere')"}, "/nowhere': no such folder"),
    ],
)
def test_what_cannot_work_fails_before_training(values, message):
    with pytest.raises(ValueError) as error:
        prepare(Experiment.from_dict(values))
    assert message in str(error.value)


def test_krum_takes_as_many_clients_as_it_needs():
    e = {"aggregation": "krum(malicious=2)", "clients": 7, "partition": "iid"}
    assert prepare(Experiment.from_dict(e)).experiment.clients == 7


def test_a_refusal_quotes_no_page_of_numbers():
    with pytest.raises(ValueError, match="alpha must be a number above 0, got 0") as error:
        prepare(Experiment.from_dict({"partition": "dirichlet(alpha=0)", "clients": 100}))
    assert len(str(error.value)) < 200


def test_overrides_are_toml_literals_or_strings():
    pairs = ["rounds=3", "fraction=0.5", "strategy=fedavg", "codec=adc(ratio=0.1)", "out='a b'"]
    assert read_overrides(pairs) == {
        "rounds": 3,
        "fraction": 0.5,
        "strategy": "fedavg",
        "codec": "adc(ratio=0.1)",
        "out": "a b",
    }
    with pytest.raises(SpecError, match="expected key=value"):
        read_overrides(["rounds"])


@pytest.mark.parametrize("key", TABLES)
def test_every_table_entry_has_a_one_line_description(key):
    for entry in TABLES[key].values():
        assert (entry.__doc__ or "").split("\n")[0].endswith((".", ";", "default", "default."))


@pytest.mark.parametrize("key", ["codec", "strategy"])
def test_the_repr_of_an_entry_is_its_spec(key):
    for name in TABLES[key]:
        built = parse(name, TABLES[key])
        spec = name + repr(built)[repr(built).index("(") :]
        assert parse(spec, TABLES[key]) == built


def test_a_copy_with_other_keys_describes_other_parts():
    first = Experiment()
    assert repr(first.parts.codec) == "Identity()"
    other = first.model_copy(update={"codec": "fp16()"})
    assert repr(other.parts.codec) == "FP16()" and repr(first.parts.codec) == "Identity()"
    again = pickle.loads(pickle.dumps(first))
    assert again == first and again.parts.aggregation().least_clients == 1
