"""Data as people have them: each form gives the images and classes that were put in."""

import io
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from simulations.data.descriptions import Local
from simulations.data.images import DataError

NAMES = ["ant", "bee", "cat"]


def picture(number, side=8):
    """A grey image that tells its number by the colour of all its pixels."""
    return Image.fromarray(np.full((side, side), number, dtype=np.uint8))


def png(number):
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def opened(path, **keys):
    return Local(path=str(path), **keys).open(0.25, 0)


def pairs(source, decoded):
    """Number of each image and the name of its class, of both splits."""
    halves = zip(decoded(source), (source.train_labels, source.test_labels), strict=True)
    return [
        {int(image[0, 0, 0]): source.class_names[label] for image, label in zip(*half, strict=True)}
        for half in halves
    ]


def truth(numbers, names=NAMES):
    return {number: names[number % len(names)] for number in numbers}


def both(source, decoded):
    train, test = pairs(source, decoded)
    return train | test


def write_folder(root, numbers, names=NAMES):
    for number in numbers:
        folder = root / names[number % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number:03d}.png")


def hub_table(numbers, names=NAMES):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    labels = [names.index(NAMES[number % 3]) for number in numbers]
    rows = {"image": [picture(number) for number in numbers], "label": labels}
    return datasets.Dataset.from_dict(rows, features)


def decisions(source, about):
    return " | ".join(one.text for one in source.decisions if one.about == about)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"), ("Train", "Test"), ("train", "val"), ("seg_train", "seg_test"),
        ("TRAIN", "dev"), ("train", "valid"),
    ],
)  # fmt: skip
def test_folders_of_splits_are_known_by_their_usual_names(tmp_path, decoded, train, test):
    write_folder(tmp_path / train, range(9))
    write_folder(tmp_path / test, range(9, 15))
    source = opened(tmp_path)
    assert pairs(source, decoded) == [truth(range(9)), truth(range(9, 15))]
    assert train == "train" or repr(train) in decisions(source, "splits")


def test_a_split_that_is_not_used_is_named_and_can_be_chosen(tmp_path, decoded):
    for split, numbers in (("train", range(9)), ("val", range(9, 15)), ("test", range(15, 18))):
        write_folder(tmp_path / split, numbers)
    source = opened(tmp_path)
    assert pairs(source, decoded) == [truth(range(9)), truth(range(15, 18))]
    assert "not used: 'validation' (6)" in decisions(source, "splits")
    assert pairs(opened(tmp_path, test="validation"), decoded)[1] == truth(range(9, 15))


def test_classes_called_like_splits_are_classes(tmp_path, decoded):
    names = ["test", "train", "other"]
    write_folder(tmp_path, range(12), names)
    assert both(opened(tmp_path), decoded) == truth(range(12), names)


def test_folders_around_and_below_classes_make_no_difference(tmp_path, decoded):
    write_folder(tmp_path / "export" / "images", range(12))
    deep = tmp_path / "export" / "images" / "ant" / "2020"
    deep.mkdir()
    picture(30).save(deep / "x.png")
    (tmp_path / "export" / "readme.txt").write_text("hello")
    source = opened(tmp_path)
    assert both(source, decoded) == {**truth(range(12)), 30: "ant"}
    assert "readme.txt" in decisions(source, "files")


def test_a_folder_is_read_in_the_order_of_the_library(tmp_path):
    for number in (3, 1, 10, 2, 30, 4):
        write_folder(tmp_path / "a b", [number])
        write_folder(tmp_path / "a b" / "z", [number])
    shutil.rmtree(tmp_path / "a b" / "z")
    ours = opened(tmp_path / "a b")
    theirs = datasets.load_dataset(str(tmp_path / "a b"))["train"]
    assert ours.train.table["label"][:] == theirs["label"][:]
    files = [
        one["path"] for one in theirs.cast_column("image", datasets.Image(decode=False))["image"]
    ]
    plain = ours.train.table.cast_column("image", datasets.Image(decode=False))
    assert [one["path"] for one in plain["image"]] == files


@pytest.mark.parametrize("splits", [False, True])
def test_what_save_to_disk_wrote_is_read(tmp_path, decoded, splits):
    if splits:
        halves = {"train": hub_table(range(9)), "test": hub_table(range(9, 15))}
        datasets.DatasetDict(halves).save_to_disk(tmp_path / "d")
        assert pairs(opened(tmp_path / "d"), decoded) == [truth(range(9)), truth(range(9, 15))]
    else:
        hub_table(range(12)).save_to_disk(tmp_path / "d")
        assert both(opened(tmp_path / "d"), decoded) == truth(range(12))
        file = tmp_path / "d" / "data-00000-of-00001.arrow"
        assert both(opened(file), decoded) == truth(range(12))


def test_two_files_may_list_their_classes_in_another_order(tmp_path, decoded):
    hub_table(range(9)).to_parquet(tmp_path / "train.parquet")
    hub_table(range(9, 15), NAMES[::-1]).to_parquet(tmp_path / "test.parquet")
    source = opened(tmp_path)
    assert pairs(source, decoded) == [truth(range(9)), truth(range(9, 15))]
    assert "another order" in decisions(source, "classes")


def test_files_of_one_split_must_list_the_same_classes(tmp_path):
    hub_table(range(9)).to_parquet(tmp_path / "train-0.parquet")
    hub_table(range(9), NAMES[::-1]).to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(DataError, match=r"train-1.parquet and train-0.parquet list other classes"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [(["ant", "bee"], "only the training split"), ([*NAMES, "dog"], "only the test")],
)
def test_classes_of_one_split_only_are_an_error(tmp_path, names, said):
    hub_table(range(9)).to_parquet(tmp_path / "train.parquet")
    hub_table([0, 1, 3, 4], names).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=f"{said} split has the classes|{said} has the classes"):
        opened(tmp_path)


FORMS = {
    "struct": lambda k: {"bytes": png(k), "path": None},
    "struct with names": lambda k: {"bytes": png(k), "path": f"{k}.png"},
    "file contents": png,
    "rows of pixels": lambda k: np.asarray(picture(k)).tolist(),
    "flat pixels": lambda k: np.asarray(picture(k)).flatten().tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_parquet_of_other_libraries_is_read(tmp_path, decoded, form):
    frame = pd.DataFrame(
        {"picture": [FORMS[form](k) for k in range(12)], "label": [k % 3 for k in range(12)]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    assert both(source, decoded) == truth(range(12), ["0", "1", "2"])
    assert "'picture'" in decisions(source, "images")


def test_a_column_per_pixel_is_an_image(tmp_path, decoded):
    rows = {f"pixel{k}": range(0, 120, 10) for k in range(64)}
    pd.DataFrame({"label": [k % 3 for k in range(12)], **rows}).to_csv(
        tmp_path / "a.csv", index=False
    )
    found = both(opened(tmp_path / "a.csv"), decoded)
    assert found == {10 * k: str(k % 3) for k in range(12)}


def test_lists_whose_shape_is_not_clear_are_refused_with_advice(tmp_path):
    frame = pd.DataFrame({"image": [[1] * 192] * 4, "label": [0, 1] * 2})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no image column.*cast_column"):
        opened(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_is_unpacked_once(tmp_path, decoded, monkeypatch, kind):
    monkeypatch.setenv("FL_SPLIT_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", range(12))
    archive = shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "data")
    for _ in range(2):
        assert both(opened(archive), decoded) == truth(range(12))
    assert len([*(tmp_path / "cache" / "archives").iterdir()]) == 1


def test_arrays_in_a_file_are_read(tmp_path, decoded):
    table = {
        split: np.stack([np.asarray(picture(k)) for k in numbers])
        for split, numbers in (("train", range(9)), ("test", range(9, 15)))
    }
    labels = {"train": np.arange(9) % 3, "test": np.arange(9, 15) % 3}
    for names in ("x_{}", "y_{}"), ("{}_images", "{}_labels"):
        arrays = {names[0].format(split): images for split, images in table.items()}
        arrays |= {names[1].format(split): some[:, None] for split, some in labels.items()}
        np.savez(tmp_path / "a.npz", **arrays)
        found = pairs(opened(tmp_path / "a.npz"), decoded)
        assert found == [truth(range(9), ["0", "1", "2"]), truth(range(9, 15), ["0", "1", "2"])]
    np.savez(tmp_path / "b.npz", np.zeros(3), np.zeros(3))
    with pytest.raises(DataError, match="has the arrays arr_0, arr_1; it needs"):
        opened(tmp_path / "b.npz")


def sheet(root, names, numbers=range(12), suffix=".csv", **more):
    root.mkdir(exist_ok=True)
    (root / "scans").mkdir(exist_ok=True)
    for number in numbers:
        picture(number).save(root / "scans" / f"n{number}.png")
    table = {"id": [names(k) for k in numbers], "species": [NAMES[k % 3] for k in numbers], **more}
    frame = pd.DataFrame(table)
    path = root / f"labels{suffix}"
    frame.to_excel(path, index=False) if suffix == ".xlsx" else frame.to_csv(
        path, index=False, sep="\t" if suffix == ".tsv" else ";", encoding="utf-8-sig"
    )
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx"])
@pytest.mark.parametrize(
    "names", [lambda k: f"n{k}", lambda k: f"n{k}.png", lambda k: f".\\scans\\n{k}.png"]
)
def test_a_spreadsheet_names_images_and_labels(tmp_path, decoded, suffix, names):
    path = sheet(tmp_path / "d", names, suffix=suffix)
    for place in (path, path.parent):
        assert both(opened(place), decoded) == truth(range(12))


def test_a_spreadsheet_may_say_which_split_a_row_is_of(tmp_path, decoded):
    path = sheet(tmp_path / "d", lambda k: f"n{k}", split=["Train"] * 9 + ["test"] * 3)
    source = opened(path, label="species")
    assert pairs(source, decoded) == [truth(range(9)), truth(range(9, 12))]


def test_rows_of_a_spreadsheet_that_fit_no_image_are_counted(tmp_path):
    path = sheet(tmp_path / "d", lambda k: f"n{k}")
    (tmp_path / "d" / "scans" / "n11.png").unlink()
    with pytest.raises(DataError, match=r"1 of 12 rows name no image in .*'n11', is no image"):
        opened(path)
    path = sheet(tmp_path / "e", lambda k: f"n{k}", age=range(12))
    with pytest.raises(DataError, match="any of species, age may be the label"):
        opened(path)
    picture(99).save(path.parent / "scans" / "extra.png")
    source = opened(path, label="species")
    assert "1 images that labels.csv does not name are left out" in decisions(source, "files")


def column(tmp_path, labels, kind):
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    rows = {"image": [picture(k) for k in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


FLOAT, TEXT = datasets.Value("float64"), datasets.Value("string")
CLASSES = datasets.ClassLabel(names=NAMES)
ONE_HOT = datasets.Sequence(datasets.Value("float32"), length=3)


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([0.0, 1.0, 2.0] * 4, FLOAT, ["0", "1", "2"]),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]] * 4, ONE_HOT, ["0", "1", "2"]),
        ([[0], [1], [2]] * 4, datasets.Sequence(CLASSES), NAMES),
        ([True, False] * 6, datasets.Value("bool"), ["False", "True"]),
    ],
    ids=["whole floats", "one-hot", "lists of one", "bool"],
)
def test_labels_are_read_in_other_forms(tmp_path, labels, kind, names):
    source = opened(column(tmp_path, labels, kind))
    assert source.class_names == names
    row = source.train.rows
    value = [names[k] for k in source.train_labels]
    plain = [one.index(max(one)) if len(np.shape(one)) and len(one) > 1 else one for one in labels]
    plain = [one[0] if isinstance(one, list) else one for one in plain]
    expected = [names[int(plain[k])] if kind is not FLOAT else str(int(plain[k])) for k in row]
    assert value == expected


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        ([[0, 1], [1, 2], [2]] * 4, datasets.Sequence(CLASSES), "8 of 12 images; an image can"),
        (
            [[0, 1], [1, 0], [1, 1]] * 4,
            datasets.Sequence(datasets.Value("int64")),
            "several labels",
        ),
        ([0.37, 1.0, 2.0] * 4, FLOAT, "4 numbers like 0.37: that is a quantity"),
        (
            [0.0, None, float("nan")] * 4,
            FLOAT,
            "8 rows without a label, first row 1; .*drop_missing",
        ),
        ([0, -1, 1] * 4, CLASSES, "4 rows without a label, first row 1"),
    ],
    ids=["several", "not one-hot", "quantity", "missing", "minus one"],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, kind, said):
    with pytest.raises(DataError, match=said):
        opened(column(tmp_path, labels, kind))


def test_rows_without_a_value_are_left_out_if_asked_to_and_counted(tmp_path, decoded):
    path = column(tmp_path, ["ant", None, "bee", "cat"] * 4, TEXT)
    source = opened(path, drop_missing="label")
    assert len(source.train) + len(source.test) == 12
    assert "4 of 16 left out: no value in column 'label'" in decisions(source, "rows")
    found = both(source, decoded)
    assert found == {k: ["ant", "", "bee", "cat"][k % 4] for k in range(16) if k % 4 != 1}


def test_a_text_that_may_mean_no_label_is_warned_of(tmp_path):
    source = opened(column(tmp_path, ["ant", "nan", "bee", "cat"] * 4, TEXT))
    assert source.class_names == ["ant", "bee", "cat", "nan"]
    assert "4 images are of the class 'nan'" in decisions(source, "labels")


def test_columns_that_would_do_too_are_named(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "fine": CLASSES, "coarse": CLASSES})
    rows = {"image": [picture(k) for k in range(6)], "fine": [0, 1, 2] * 2, "coarse": [0, 1, 0] * 2}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    assert source.label == "fine" and "'coarse' would do too" in decisions(source, "labels")


def test_a_file_replaced_under_the_same_name_and_time_is_seen(tmp_path, decoded):
    import os

    path = tmp_path / "a.parquet"
    hub_table(range(12)).to_parquet(path)
    before = path.stat()
    assert both(opened(path), decoded) == truth(range(12))
    hub_table(range(12, 24)).to_parquet(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert both(opened(path), decoded) == truth(range(12, 24))


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.h5", "'.h5' is none|.h5 is none"), ("a.parquet", "cannot load"), ("d", "no images in")],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path, name, said):
    place = tmp_path / name
    if name == "d":
        place.mkdir()
        (place / "notes.docx").write_text("x")
    else:
        place.write_bytes(b"not this")
    with pytest.raises(DataError, match=said):
        opened(place)
