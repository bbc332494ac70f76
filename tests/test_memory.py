"""Images in memory: every form is the same data set, and what is none is refused in one line."""

import io

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import fl_split as fs
from simulations.api.objects import with_specs
from simulations.data.images import DataError
from simulations.data.memory import as_pixels, in_memory
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare

TINY = {
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
    "cut": 1,
    "engine": "inline()",
}


def images(count=60, side=8, classes=3):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, side, side), dtype=np.uint8)
    return pixels, np.arange(count) % classes


def library(pixels, labels, kind=None):
    features = datasets.Features(
        {"image": datasets.Image(), "label": kind or datasets.Value("int64")}
    )
    rows = {"image": [Image.fromarray(one) for one in pixels], "label": list(labels)}
    return datasets.Dataset.from_dict(rows, features)


def opened(given):
    return in_memory(given).open(0.25, 0)


def held(source, decoded):
    """Images of both splits and the names of their classes."""
    found = []
    for table, labels in zip(
        decoded(source, 8), (source.train_labels, source.test_labels), strict=True
    ):
        names = [source.class_names[number] for number in labels]
        found.append({bytes(image[0]): name for image, name in zip(table, names, strict=True)})
    return tuple(found)


def both(source, decoded):
    train, test = held(source, decoded)
    return train | test


def truth(pixels, labels):
    return {bytes(image): str(label) for image, label in zip(pixels, labels, strict=True)}


def folder_table(tmp_path, pixels, labels):
    rows = []
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = tmp_path / f"{number:02d}.png"
        Image.fromarray(image).save(path)
        rows.append({"file": str(path), "class": label})
    return pd.DataFrame(rows)


def of_objects(them):
    return pd.Series([*them], dtype=object).to_numpy()


class Endless:
    """A data set of no class of torch's, whose rows never end when one iterates."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.pixels[row % len(self)], int(self.labels[row % len(self)])


FORMS = {
    "arrays": lambda x, y, _: (x, y),
    "lists": lambda x, y, _: (list(x), y.tolist()),
    "objects": lambda x, y, _: (of_objects(map(Image.fromarray, x)), y.astype(object)),
    "series": lambda x, y, _: (pd.Series(list(x)), pd.Series(y)),
    "tensors": lambda x, y, _: (torch.from_numpy(x).float() / 255, torch.from_numpy(y)),
    "channels": lambda x, y, _: (np.repeat(x[:, None], 3, axis=1), y),
    "dataset": lambda x, y, _: library(x, y),
    "formatted": lambda x, y, _: library(x, y).with_format("torch"),
    "shuffled": lambda x, y, _: library(x, y).select(range(len(y))[::-1]),
    "columns": lambda x, y, _: (library(x, y)["image"], library(x, y)["label"]),
    "torch": lambda x, y, _: TensorDataset(
        torch.from_numpy(x)[:, None].float() / 255, torch.from_numpy(y)
    ),
    "endless": lambda x, y, _: Endless(x, y),
    "table": lambda x, y, _: pd.DataFrame({"image": [*map(Image.fromarray, x)], "label": y}),
    "table of arrays": lambda x, y, _: pd.DataFrame({"image": list(x), "label": y}),
    "files": lambda x, y, path: folder_table(path, x, y),
    "paths": lambda x, y, path: (sorted(folder_table(path, x, y)["file"]), y),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_sets_of_every_form_are_the_same_images(tmp_path, form, decoded):
    pixels, labels = images(12)
    source = opened(FORMS[form](pixels, labels, tmp_path))
    found = both(source, decoded)
    assert found == truth(pixels, labels)
    assert len(source.test) == 3  # a quarter of the 4 images of each of 3 classes
    assert decoded(source)[0].shape[1:] == ((3 if form == "channels" else 1), 8, 8)


@pytest.mark.parametrize("form", FORMS)
def test_two_data_sets_of_every_form_are_train_and_test(tmp_path, form, decoded):
    pixels, labels = images(12)
    halves = [(pixels[:8], labels[:8]), (pixels[8:], labels[8:])]
    given = []
    for number, half in enumerate(halves):
        folder = tmp_path / str(number)
        folder.mkdir()
        given.append(FORMS[form](*half, folder))
    source = opened(tuple(given))
    assert held(source, decoded) == (truth(*halves[0]), truth(*halves[1]))


def test_a_dict_of_splits_has_train_and_test(decoded):
    pixels, labels = images(12)
    halves = {"train": (pixels[:8], labels[:8]), "test": (pixels[8:], labels[8:])}
    source = opened(datasets.DatasetDict({k: library(*half) for k, half in halves.items()}))
    assert held(source, decoded) == (truth(*halves["train"]), truth(*halves["test"]))
    whole = opened(datasets.DatasetDict(train=library(pixels, labels)))
    assert both(whole, decoded) == truth(pixels, labels)


def test_arrays_of_sixteen_bits_keep_all_levels(decoded):
    deep = np.arange(12 * 64, dtype=np.uint16).reshape(12, 8, 8) * 5
    source = opened((deep, np.arange(12) % 3))
    seen = np.concatenate(decoded(source))
    assert len(np.unique(seen)) == 12 * 64 and (seen.min(), seen.max()) == (0, 65_535)


def test_two_images_are_no_train_and_test():
    pixels, _ = images(2)
    two = in_memory((list(pixels), [0, 1]))
    assert len(two.train) == 2 and two.test is None
    two = in_memory(([Image.fromarray(one) for one in pixels], ["a", "b"]))
    assert len(two.train) == 2 and two.test is None


def test_images_of_pil_may_differ_in_size_and_are_stored_as_they_are_seen(tmp_path, decoded):
    grey = [Image.new("L", (side, 2 * side), side) for side in (4, 6, 8, 10)]
    source = opened((grey, list("abab")))
    seen = np.concatenate(decoded(source, 8, 1))
    assert sorted(seen[:, 0, 3, 3]) == [4, 6, 8, 10]
    noise = images(4)[0]
    found = []
    for one in noise:
        Image.fromarray(255 - one).save(tmp_path / "one.png")
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG")
        lossy = Image.open(file)  # packing it as JPEG again would change it
        changed = Image.open(tmp_path / "one.png")
        changed.putdata(one.flatten().tolist())  # and is no more what the file holds
        found += [lossy, changed]
    source = opened((found, list("ab") * 4))
    assert both(source, decoded) == {
        np.asarray(image).tobytes(): "ab"[place % 2] for place, image in enumerate(found)
    }


def prepared(**keys):
    return prepare(Experiment.from_dict(with_specs({**TINY, **keys})))


def test_rows_by_client_are_those_of_the_images_that_were_given():
    pixels, labels = images(48)
    rows = [range(0, 5), np.arange(29, 4, -1), [40], []]
    setup = prepared(dataset=((pixels, labels), images(6)), partition=rows, clients=4)
    for mine, part in zip(rows, setup.train.partitions, strict=True):
        assert np.array_equal(setup.train.pixels[part, 0], pixels[[*mine]])
        assert setup.train.labels[part].tolist() == [row % 3 for row in mine]
    assert setup.unheld.samples == 48 - 31


def test_rows_by_client_of_data_without_a_test_split_are_refused():
    for data in [{"dataset": images(48)}, {"dataset": library(*images(48))}, {}]:
        with pytest.raises(ValueError, match=r"partition: rows by client need data with a test sp"):
            prepared(**data, partition=[[0, 1], [2]], clients=2)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[4], [4]], "partition: row 4 is given to a client twice"),
        ([[0], [0.9, 1.2]], "partition: rows of client 1 must be a list of whole numbers, got fl"),
        ([[True, False], [1]], "rows of client 0 must be a list of whole numbers, got bool"),
        ([0, 1], r"rows of client 0 must be a list of whole numbers, got int64 of shape \(\)"),
        ([[0], [12]], r"client 1 has rows that are not in 0\.\.11"),
        ([[0], [-1]], r"client 1 has rows that are not in 0\.\.11"),
        ([[0], [1], [2]], "makes 3 partitions; set clients=3"),
    ],
)
def test_rows_that_are_none_are_refused(rows, said):
    with pytest.raises(ValueError, match=said):
        prepared(dataset=(images(12), images(6)), partition=rows, clients=2)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize("form", ["list", "array", "table of arrays", "table", "torch"])
def test_rows_without_a_label_are_counted(form, kind, missing):
    pixels, labels = images(12)
    labels = [kind(label) for label in labels]
    labels[4] = labels[9] = missing
    given = {
        "list": (pixels, labels),
        "array": (pixels, np.array(labels, dtype=object)),
        "table of arrays": pd.DataFrame({"image": list(pixels), "label": labels}),
        "table": pd.DataFrame({"image": ["a.png"] * 12, "label": labels}),
        "torch": list(zip(pixels, labels, strict=True)),
    }[form]
    if form == "torch":
        given = TensorLike(given)
    with pytest.raises(DataError, match=r"2 rows without a label, first row 4$"):
        opened(given)


class TensorLike:
    """Rows in a list, as a data set."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


def test_rows_without_a_label_are_counted_in_arrays_of_floats_and_in_the_test_split():
    pixels, labels = images(12)
    floats = labels.astype(float)
    floats[[3, 5, 7]] = np.nan
    with pytest.raises(DataError, match=r"3 rows without a label, first row 3$"):
        opened((pixels, floats))
    with pytest.raises(DataError, match=r"1 rows without a label, first row 0$"):
        opened(((pixels, labels), (pixels[:2], [None, 1])))
    with pytest.raises(DataError, match=r"1 rows without an image, first row 1$"):
        opened((["a.png", None], [0, 1]))


def test_classes_go_by_name_where_splits_number_them_differently(decoded):
    pixels, _ = images(8)
    cat_dog, dog_cat = (
        datasets.ClassLabel(names=names) for names in (["cat", "dog"], ["dog", "cat"])
    )
    train = library(pixels[:4], [0, 1, 0, 1], cat_dog)
    test = library(pixels[4:], [0, 0, 0, 1], dog_cat)
    source = opened(datasets.DatasetDict(train=train, test=test))
    assert source.class_names == ["cat", "dog"]
    assert held(source, decoded)[1] == truth(pixels[4:], ["dog", "dog", "dog", "cat"])
    words = opened((train, (pixels[4:], ["dog", "dog", "dog", "cat"])))
    assert words.test_labels.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("kind", [datasets.ClassLabel(names=["cat", "fox"]), None])
def test_a_class_of_the_test_split_alone_is_refused(kind):
    train = library(images(4)[0], [0, 1, 0, 1], datasets.ClassLabel(names=["cat", "dog"]))
    test = library(images(2)[0], [0, 1], kind)
    said = "only the test split has the classes " + ("fox" if kind else "0, 1") + "$"
    with pytest.raises(DataError, match=said):
        opened((train, test))


def test_a_test_split_without_the_columns_is_refused():
    train, test = library(*images(12)), library(*images(6))
    with pytest.raises(DataError, match="no column 'image' for image; columns: picture, label"):
        opened((train, test.rename_column("image", "picture")))
    with pytest.raises(DataError, match="no column 'label' for label; columns: image, class"):
        opened((train, test.rename_column("label", "class")))


def test_a_fingerprint_tells_data_sets_apart_and_is_the_same_for_the_same():
    pixels, _ = images(4)
    digest = {
        names: in_memory(
            library(pixels, [0, 1, 0, 1], datasets.ClassLabel(names=list(names)))
        ).fingerprint()
        for names in (("cat", "dog"), ("dog", "cat"))
    }
    numbers = in_memory((pixels, [0, 1, 0, 1])).fingerprint()
    other = in_memory((pixels[::-1], [0, 1, 0, 1])).fingerprint()
    apart = in_memory(((pixels[:2], [0, 1]), (pixels[2:], [0, 1]))).fingerprint()
    assert len({*digest.values(), numbers, other, apart}) == 5
    assert in_memory((list(pixels), np.array([0, 1, 0, 1]))).fingerprint() == numbers
    formatted = in_memory(in_memory((pixels, [0, 1, 0, 1])).train.with_format("numpy"))
    assert formatted.fingerprint() == numbers


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((4, 8)), r"must be \(n, H, W\)"),
        (np.zeros((4, 8, 8, 4), dtype=np.uint8), r"1 or 3 channels C, got \(4, 8, 8, 4\)"),
        (np.zeros((4, 4, 8, 8), dtype=np.uint8), r"1 or 3 channels C, got \(4, 4, 8, 8\)"),
        (np.zeros((4, 8, 8, 2), dtype=np.uint8), r"1 or 3 channels C, got \(4, 8, 8, 2\)"),
        (np.full((4, 8, 8), 2.0), "must lie in 0 to 1, got 2 to 2; scale them"),
        (np.arange(256.0).reshape(1, 16, 16), "must lie in 0 to 1, got 0 to 255; scale them"),
        (np.full((4, 8, 8), np.nan), "must lie in 0 to 1"),
        (
            np.zeros((4, 8, 8), dtype=np.int64),
            "must be uint8, grey uint16, or floats from 0 to 1; got int64",
        ),
        (
            np.zeros((4, 8, 8), dtype=bool),
            "must be uint8, grey uint16, or floats from 0 to 1; got bool",
        ),
        (
            np.zeros((4, 8, 8), dtype=object),
            "must be uint8, grey uint16, or floats from 0 to 1; got object",
        ),
    ],
)
def test_arrays_that_are_no_images_are_refused(given, said):
    with pytest.raises(DataError, match=said):
        as_pixels(given)
    with pytest.raises(DataError, match=said):
        opened((given, [0, 1] * 2 if len(given) == 4 else [0]))


X, Y = images(12)
TRANSFORMED = library(X, Y).with_transform(lambda rows: rows)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((X, Y[:11]), "12 images, but 11 labels"),
        ((X[:0], Y[:0]), "0 images, but 0 labels"),
        ((X.astype(float)[:0], Y[:0]), "0 images, but 0 labels"),
        (((X, Y), (X[:0], Y[:0])), "0 images, but 0 labels"),
        ((library(X, Y), library(X, Y).select([])), "has 12 and 0"),
        ((X, np.ones((12, 3))), "column 'label' holds several labels for 12 of 12 images"),
        ((X, X), "labels must be one number or text per image"),
        ((X, Y / 2), "column 'label' holds 4 numbers like 0.5: that is a quantity, not a class"),
        ((X, Y * 0), "needs two classes or more, column 'label' has 1"),
        ((X, None), "labels must be an array or a list, got NoneType"),
        ((TensorDataset(torch.zeros(3)), Y), "images must be an array or a list, got TensorD"),
        (([X[0], X[1][:4]], [0, 1]), "arrays of images must have one shape; give PIL images"),
        (of_objects([X[0], X[1][:4]]), "ndarray is no data set"),
        ((of_objects([X[0], X[1][:4]]), [0, 1]), "must have one shape"),
        (pd.DataFrame({"picture": [1]}), "a table needs a column of images"),
        (pd.DataFrame({"image": [], "label": []}), "0 images, but 0 labels"),
        (TensorDataset(torch.zeros(3, 8, 8)), r"rows of TensorDataset must be \(image, label\)"),
        (TRANSFORMED, "a datasets.Dataset has a transform"),
        ((library(X, Y), TRANSFORMED), "a datasets.Dataset has a transform"),
        (datasets.DatasetDict(test=library(X, Y)), "a DatasetDict needs a split 'train'; it has"),
        ({"train": library(X, Y)}, "dict is no data set"),
        (library(X, Y).to_iterable_dataset(), "IterableDataset is no data set"),
        (3, "int is no data set"),
    ],
)
def test_data_that_are_none_are_refused_in_one_line(given, said):
    with pytest.raises(ValueError, match=f"^dataset: .*{said}") as caught:
        fs.run(dataset=given, **TINY)
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_cut_off_is_refused():
    file = io.BytesIO()
    Image.fromarray(images(1, side=64)[0][0]).save(file, "PNG")
    whole, half = (Image.open(io.BytesIO(file.getvalue()[:end])) for end in (None, 2000))
    with pytest.raises(DataError, match="image 1 cannot be used: "):
        opened(([whole, half], [0, 1]))
