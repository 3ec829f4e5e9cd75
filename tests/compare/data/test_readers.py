import gzip
import os
import shutil
import struct
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from steppe.compare.data import readers, tasks


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write_idx(folder, zipped: bool, train: int = 60, test: int = 20) -> None:
    ending, pack = (".gz", gzip.compress) if zipped else ("", bytes)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 10, 10))
        (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(pack(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(pack(idx_bytes(np.arange(count) % 3)))


def write_images(folder, names, count: int = 5, size: tuple[int, int] = (9, 8)) -> None:
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (40 * label, 10 * i, 0)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("zipped", [True, False])
def test_an_idx_folder(tmp_path, zipped):
    write_idx(tmp_path, zipped)
    source = readers.idx_folder(tmp_path)
    assert source.pool.x.shape == (60, 1, 10, 10) and source.test.x.shape == (20, 1, 10, 10)
    assert source.classes == 3 and source.pool.y.tolist() == [i % 3 for i in range(60)]
    assert torch.equal(source.pool.x[0, 0], torch.tensor(np.random.default_rng(0).integers(0, 256, (60, 10, 10))[0]))
    task = tasks.load(tasks.DataOptions(f"idx:{tmp_path}", 20, 10, 0.0), 0)
    assert len(task.train) == 20 and len(task.val) == 10 and len(task.test) == 20


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("t10k-labels-idx1-ubyte", None, "no file like train|no file like t10k"),
        ("train-images-idx3-ubyte", b"\x89PNG....", "not an idx file"),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((60, 10, 10)))[:-7], "is the download complete"),
        ("train-images-idx3-ubyte", gzip.compress(idx_bytes(np.zeros((60, 10, 10))))[:-9], "is the download complete"),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(59)), "60 train images but 59 labels"),
    ],
    ids=["missing", "not idx", "cut off", "cut off and packed", "too few labels"],  # gzip's bytes hold the time
)
def test_a_damaged_idx_folder_is_refused(tmp_path, name, content, hint):
    write_idx(tmp_path, zipped=False)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=hint):
        readers.idx_folder(tmp_path)


def test_an_image_folder_without_parts_gives_a_fixed_fifth_to_the_test(tmp_path):
    write_images(tmp_path, ["cat", "dog"], count=10)
    source = readers.image_folder(tmp_path, None)
    assert len(source.pool) == 16 and len(source.test) == 4 and source.classes == 2
    assert source.pool.x.shape[1:] == (3, 8, 9)
    assert torch.equal(source.test.x, readers.image_folder(tmp_path, None).test.x)


def test_an_image_folder_with_parts_keeps_them(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        write_images(tmp_path / part, ["cat", "dog"], count)
    source = readers.image_folder(tmp_path, 12)
    assert (len(source.pool), len(source.val), len(source.test)) == (12, 6, 4)
    assert source.pool.x.shape[1:] == (3, 12, 12)


def test_image_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one subfolder per class"):
        readers.image_folder(tmp_path, None)
    write_images(tmp_path, ["cat", "dog"])
    Image.new("RGB", (5, 5)).save(tmp_path / "cat" / "small.png")
    with pytest.raises(ValueError, match="--image-size"):
        readers.image_folder(tmp_path, None)
    (tmp_path / "cat" / "small.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        readers.image_folder(tmp_path, None)


def test_a_test_folder_with_a_new_class_is_refused(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"])
    write_images(tmp_path / "test", ["cat", "emu"])
    with pytest.raises(ValueError, match="lacks: emu"):
        readers.image_folder(tmp_path, None)


def test_hidden_files_and_folders_are_no_data(tmp_path):
    write_images(tmp_path, ["a", "b", ".ipynb_checkpoints"])
    (tmp_path / "a" / "._0.png").write_bytes(b"left by macOS")
    source = readers.image_folder(tmp_path, None)
    assert source.classes == 2 and len(source.pool) + len(source.test) == 10


def test_what_an_archive_of_macos_brings_is_no_class(tmp_path):
    write_images(tmp_path, ["a", "b", "__MACOSX"])
    write_images(tmp_path / "a", ["__MACOSX"])
    source = readers.image_folder(tmp_path, None)
    assert source.names == ("a", "b") and len(source.pool) + len(source.test) == 10


def test_parts_below_classes_are_not_thrown_together(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, ["Train", "val"])
    with pytest.raises(ValueError, match="cat has a train folder below it"):
        readers.image_folder(tmp_path, None)
    for name in ("cat", "dog"):
        (tmp_path / name / "val").rename(tmp_path / name / "sitting")  # these may be anything
    assert len(readers.image_folder(tmp_path, None).pool) == 16


def test_links_below_a_class_are_told_and_not_followed(tmp_path):
    write_images(tmp_path / "data", ["cat", "dog"])
    write_images(tmp_path / "elsewhere", ["patient"])
    assert readers.image_folder(tmp_path / "data", None).notes == ()
    (tmp_path / "data" / "cat" / "p1").symlink_to(tmp_path / "elsewhere" / "patient")
    (tmp_path / "data" / "dog" / "up").symlink_to(tmp_path / "data")
    source = readers.image_folder(tmp_path / "data", None)
    assert len(source.pool) + len(source.test) == 10
    assert "Folders that are links, below that of a class, were not read: 2 (" in source.notes[0]


def test_an_empty_class_folder_is_named(tmp_path):
    write_images(tmp_path, ["cat", "dog"])
    (tmp_path / "emu").mkdir()
    with pytest.raises(ValueError, match="emu has no images; put some there, or remove the folder"):
        readers.image_folder(tmp_path, None)


@pytest.mark.parametrize(("whole", "end", "place"), [(2**28, 1, 30), (0, 9, 3), (0, 9, -3)])
def test_a_picture_repainted_in_place_is_other_data(tmp_path, monkeypatch, whole, end, place):
    monkeypatch.setattr(tasks, "WHOLE", whole)
    monkeypatch.setattr(tasks, "END", end)
    write_images(tmp_path, ["cat", "dog"])
    before = tasks.fingerprint(f"images:{tmp_path}")
    path = next((tmp_path / "cat").iterdir())
    painted = bytearray(path.read_bytes())
    os.utime(path, (0, 0))
    assert tasks.fingerprint(f"images:{tmp_path}/") == before
    painted[place] ^= 1
    path.write_bytes(painted)
    assert tasks.fingerprint(f"images:{tmp_path}") != before


def test_the_name_of_a_picture_counts_and_where_its_folder_lies_does_not(tmp_path):
    write_images(tmp_path / "a", ["cat", "dog"])
    shutil.copytree(tmp_path / "a", tmp_path / "longer")
    before = tasks.fingerprint(f"images:{tmp_path / 'a'}")
    assert tasks.fingerprint(f"images:{tmp_path / 'longer'}") == before
    (tmp_path / "a" / "cat").rename(tmp_path / "a" / "cow")
    assert tasks.fingerprint(f"images:{tmp_path / 'a'}") != before


class _Column(dict):
    @property
    def column_names(self):
        return list(self)


def _hub(monkeypatch, labels=None, **parts):
    images = [Image.new("L", (8, 8), 9 * i) for i in range(12)]
    made = {part: _Column(img=images[:count], label=[i % 2 for i in range(count)]) for part, count in parts.items()}
    for part, label in (labels or {}).items():
        made[part]["label"] = label
    module = ModuleType("datasets")
    module.load_dataset = lambda name: made
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hugging_face_data_set(monkeypatch):
    _hub(monkeypatch, train=10, validation=4, test=6)
    source = readers.hugging_face("owner/made-up", None, None, None)
    assert (len(source.pool), len(source.val), len(source.test), source.classes) == (10, 4, 6, 2)
    assert source.pool.x.shape[1:] == (3, 8, 8)


def test_a_hugging_face_data_set_without_a_test_split_gives_a_fifth(monkeypatch):
    _hub(monkeypatch, train=10)
    assert len(readers.hugging_face("owner/made-up", "img", "label", None).test) == 2


def test_a_hugging_face_test_whose_labels_are_secret_is_none(monkeypatch):
    _hub(monkeypatch, train=10, test=6, labels={"test": [-1] * 6})
    source = readers.hugging_face("owner/made-up", None, None, None)
    assert len(source.test) == 2 and set(source.test.y.tolist()) <= {0, 1}


def test_a_hugging_face_label_that_training_lacks_is_refused(monkeypatch):
    _hub(monkeypatch, train=10, test=3, labels={"test": [0, 1, 7]})
    with pytest.raises(ValueError, match="has the label 7 outside of training, whose labels are 0 to 1"):
        readers.hugging_face("owner/made-up", None, None, None)


def test_hugging_face_columns_and_splits_are_checked(monkeypatch):
    _hub(monkeypatch, train=10)
    with pytest.raises(ValueError, match="did you mean 'label'"):
        readers.hugging_face("owner/made-up", None, "lable", None)
    _hub(monkeypatch, test=10)
    with pytest.raises(ValueError, match="no split 'train'"):
        readers.hugging_face("owner/made-up", None, None, None)


def test_hugging_face_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'steppe\[study,hf\]'"):
        readers.hugging_face("owner/made-up", None, None, None)


def test_corrected_labels_change_the_fingerprint(tmp_path):
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(b"\0\1\2")
    before = tasks.fingerprint(f"idx:{tmp_path}")
    labels.write_bytes(b"\0\2\1")
    assert before != tasks.fingerprint(f"idx:{tmp_path}")


def test_changed_files_change_the_fingerprint(tmp_path):
    write_idx(tmp_path, zipped=False)
    before = tasks.fingerprint(f"idx:{tmp_path}")
    assert before == tasks.fingerprint(f"idx:{tmp_path}")
    write_idx(tmp_path, zipped=False, train=61)
    assert before != tasks.fingerprint(f"idx:{tmp_path}")


def test_a_grey_image_becomes_rgb():
    assert readers._as_tensor(Image.new("L", (4, 6), 7), None).tolist() == torch.full((3, 6, 4), 7).tolist()
    assert SimpleNamespace(shape=readers._as_tensor(Image.new("RGBA", (4, 6)), 9).shape).shape == (3, 9, 9)


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    """PIL cuts at 255: whole pictures were white."""
    pixels = np.array([[0, 255, 256], [300, 40000, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert readers._read_image(tmp_path / name, None)[1].tolist() == (pixels >> 8).tolist()
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="b.tif: an image has 32 bits for a pixel"):
        readers._read_image(tmp_path / "b.tif", None)


def test_a_picture_taken_sideways_stands_upright(tmp_path):
    picture, how = Image.new("RGB", (4, 6), (9, 9, 9)), Image.Exif()
    picture.putpixel((0, 0), (200, 0, 0))
    how[0x0112] = 6  # to be turned to the right
    picture.save(tmp_path / "a.png", exif=how)
    read = readers._read_image(tmp_path / "a.png", None)
    assert read.shape == (3, 4, 6) and read[:, 0, 5].tolist() == [200, 0, 0]


def test_mnist1d_is_the_published_set():
    """4,000 and 1,000 signals of forty numbers, standardised as a whole, ten classes of 500."""
    source = readers.mnist1d()
    assert source.pool.x.shape == (4000, 1, 40) and source.test.x.shape == (1000, 1, 40) and source.classes == 10
    whole = torch.cat([source.pool.x, source.test.x])
    assert abs(float(whole.mean())) < 1e-3 and float(whole.std()) == pytest.approx(1, abs=1e-3)
    assert torch.bincount(torch.cat([source.pool.y, source.test.y])).tolist() == [500] * 10
    assert [round(1024 * v) for v in source.pool.x[0, 0, :3].tolist()] == [-340, -483, -797]


def test_files_of_other_endings_are_told_and_parts_may_have_capitals(tmp_path):
    """Seventy pictures of a telephone were ten: nothing said that the others, .heic, were left out."""
    write_images(tmp_path / "Train", ["a", "b"], 8)
    write_images(tmp_path / "Test", ["a", "b"], 3)
    (tmp_path / "Train" / "a" / "7.heic").write_bytes(b"x")
    (tmp_path / "Train" / "a" / ".DS_Store.x").write_bytes(b"x")
    source = readers.image_folder(tmp_path, None)
    assert len(source.pool) == 16 and len(source.test) == 6 and source.names == ("a", "b")
    assert source.notes == ("Files that were not read, as their endings are none of images: 1 .heic.",)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_needs_no_warning(tmp_path):
    image = Image.new("RGBA", (4, 4), (200, 10, 30, 0)).quantize(4)
    image.info["transparency"] = bytes(4)
    assert readers._as_tensor(image, None)[:, 0, 0].tolist() == [200, 10, 30]
