import datasets
import numpy as np
import pytest
from PIL import Image

from simulations.data import partition
from simulations.data.descriptions import Digits, Local
from simulations.data.images import DataError
from simulations.data.partition import PartitionError
from simulations.data.partitioners import PARTITIONS
from simulations.data.private_members import Dirichlet, Pathological, Shard
from simulations.data.samples import Samples


def pictures(folder, column="picture", label=True, count=30, size=(12, 12), mode="RGB"):
    draw = np.random.default_rng(0)
    channels = (3,) if mode == "RGB" else ()
    images = [
        Image.fromarray(draw.integers(0, 255, (*size, *channels), dtype=np.uint8), mode)
        for _ in range(count)
    ]
    rows, features = {column: images}, {column: datasets.Image()}
    if label:
        rows["kind"] = [i % 3 for i in range(count)]
        features["kind"] = datasets.ClassLabel(names=["a", "b", "c"])
    path = folder / "all.parquet"
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(path)
    return path


def test_digits_are_all_there_and_the_test_split_is_apart(decoded):
    source = Digits().open(0.2, 0)
    assert len(source.train) + len(source.test) == 1797
    train, test = decoded(source)
    assert train.shape == (len(source.train), 1, 8, 8)
    assert train.max() == 255 and train.min() == 0
    counts = np.bincount(source.test_labels)
    totals = counts + np.bincount(source.train_labels)
    assert (abs(counts - 0.2 * totals) <= 1).all()
    from sklearn.datasets import load_digits

    both = np.concatenate([train, test]).reshape(-1, 64)
    expected = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, expected))


def test_columns_are_found_by_type_and_can_be_named(tmp_path, decoded):
    path = pictures(tmp_path)
    source = Local(path=str(path)).open(0.2, 0)
    assert (source.image, source.label, source.class_names) == ("picture", "kind", ["a", "b", "c"])
    assert decoded(source)[0].shape == (len(source.train), 3, 12, 12)
    assert Local(path=str(path), label="kind").open(0.2, 0).label == "kind"
    with pytest.raises(DataError, match="no column 'x' for label"):
        Local(path=str(path), label="x").open(0.2, 0)


def test_images_are_resized_and_recoloured(tmp_path, decoded):
    source = Local(path=str(pictures(tmp_path))).open(0.2, 0)
    assert decoded(source, 6, 1)[0].shape == (len(source.train), 1, 6, 6)


def test_a_folder_of_images_by_class_is_read(tmp_path, decoded):
    for name in ("cat", "dog"):
        for split in ("train", "test"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    source = Local(path=str(tmp_path)).open(0.2, 0)
    assert source.class_names == ["cat", "dog"]
    assert decoded(source)[0].shape == decoded(source)[1].shape == (6, 1, 8, 8)


@pytest.mark.parametrize("spoil", ["no label", "no image", "no table"])
def test_a_data_set_without_images_or_labels_is_refused(tmp_path, spoil):
    path = tmp_path / "all.parquet"
    if spoil == "no label":
        path = pictures(tmp_path, label=False)
    elif spoil == "no image":
        datasets.Dataset.from_dict({"a": [1, 2]}).to_parquet(path)
    else:
        path.write_text("not a parquet file")
    with pytest.raises(DataError, match=r"no (label|image) column|cannot load"):
        Local(path=str(path)).open(0.2, 0)


def table(folder, rows, **features):
    path = folder / "all.parquet"
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(path)
    return Local(path=str(path))


def grey(value, dtype=np.uint8):
    return Image.fromarray(np.full((8, 8), value, dtype=dtype))


def test_integer_labels_keep_their_order(tmp_path):
    rows = {"image": [grey(0)] * 24, "label": list(range(12)) * 2}
    local = table(tmp_path, rows, image=datasets.Image(), label=datasets.Value("int64"))
    source = local.open(0.2, 0)
    assert source.class_names == [str(number) for number in range(12)]
    assert source.train_labels.tolist() == source.train.column("label")


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path, decoded):
    values = [0, 256, 25_600, 65_535]
    rows = {"image": [grey(v, np.uint16) for v in values] * 2, "label": ["a", "b"] * 4}
    local = table(tmp_path, rows, image=datasets.Image(), label=datasets.Value("string"))
    source = local.open(0.2, 0)
    seen = np.concatenate(decoded(source))
    assert seen.dtype == np.uint16 and set(seen[:, 0, 0, 0].tolist()) == set(values)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": [grey(0)] * 3, "label": [0, None, 1]}, "without a label"),
        ({"image": [grey(0), None, grey(1)] * 2, "label": [0, 1, 1] * 2}, "cannot be used"),
        ({"image": [{"bytes": b"junk", "path": None}] * 4, "label": [0, 1] * 2}, "cannot be used"),
        ({"image": [grey(0)] * 2, "label": [0, 1]}, "has 2 and 0"),
    ],
    ids=["no label", "no image", "junk", "no test"],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, message, decoded):
    local = table(tmp_path, rows, image=datasets.Image(), label=datasets.Value("int64"))
    with pytest.raises(DataError, match=message):
        decoded(local.open(0.2, 0))


def test_a_split_that_is_not_there_is_refused(tmp_path):
    path = pictures(tmp_path)
    with pytest.raises(DataError, match="no split 'valid'"):
        Local(path=str(path), test="valid").open(0.2, 0)


def test_a_distribution_is_given_as_a_table():
    spec = (
        "distribution(distribution_array=[[0.5, 0.5], [0.5, 0.5]], "
        "num_unique_labels_per_partition=2, preassigned_num_samples_per_label=5)"
    )
    two = datasets.Dataset.from_dict({"label": [0, 1] * 50})
    parts = partition.split(two, spec, clients=2, label="label", seed=0)
    assert [len(part) for part in parts] == [50, 50]


def test_a_batch_is_normalised():
    pixels = np.array([[[[0, 255]]]], dtype=np.uint8)
    table = Samples(pixels, np.array([3]), [], 10, [0.5], [0.25])
    values, labels = table.batch(np.array([0]))
    assert values.flatten().tolist() == [-2.0, 2.0]
    assert labels.tolist() == [3]


def rows(count=600):
    return datasets.Dataset.from_dict(
        {"label": [10 * i // count for i in range(count)], "who": ["x", "y"] * (count // 2)}
    )


@pytest.mark.parametrize(
    "spec",
    [
        "iid",
        "dirichlet(alpha=0.3)",
        "label_clusters",
        "pathological",
        "shard",
        "linear",
        "square",
        "exponential",
    ],
)
def test_partitions_are_disjoint_and_seeded(spec):
    split = [
        partition.split(rows(), spec, clients=5, label="label", seed=seed) for seed in (0, 0, 1)
    ]
    everything = np.concatenate(split[0])
    assert len(everything) == len(set(everything.tolist())) <= 600
    assert all(np.array_equal(a, b) for a, b in zip(split[0], split[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(split[0], split[2], strict=True))


def test_partitions_are_what_their_names_say():
    labels = np.array(rows()["label"])

    def classes(spec, clients=10):
        parts = partition.split(rows(), spec, clients=clients, label="label", seed=0)
        return [set(labels[part]) for part in parts]

    assert all(len(held) >= 8 for held in classes("iid"))
    assert all(len(held) == 2 for held in classes("pathological(num_classes_per_partition=2)"))
    assert all(len(held) <= 3 for held in classes("shard(num_shards_per_partition=2)"))
    assert any(len(held) < 8 for held in classes("dirichlet(alpha=0.1)"))


def test_natural_partitions_go_by_a_column():
    parts = partition.split(rows(), "natural(partition_by='who')", clients=2, label="label", seed=0)
    assert sorted(len(part) for part in parts) == [300, 300]
    assert {int(row) % 2 for row in parts[0]} in ({0}, {1})
    with pytest.raises(PartitionError, match="set clients=2"):
        partition.split(rows(), "natural(partition_by='who')", clients=3, label="label", seed=0)


def test_all_flower_partitioners_for_samples_are_offered():
    from flwr_datasets import partitioner as flower

    entries = (getattr(entry, "func", entry) for entry in PARTITIONS.values())
    mended = {
        Dirichlet: flower.DirichletPartitioner,
        Pathological: flower.PathologicalPartitioner,
        Shard: flower.ShardPartitioner,
    }
    offered = {mended.get(entry, entry) for entry in entries}
    missing = {name for name in flower.__all__ if getattr(flower, name) not in offered}
    # An abstract one, one that takes an array (wrapped), one that takes a function, and
    # vertical ones, which split features.
    vertical = {"VerticalEvenPartitioner", "VerticalSizePartitioner"}
    other = {"DistributionPartitioner", "IdToSizeFncPartitioner", "Partitioner"}
    assert missing == vertical | other
