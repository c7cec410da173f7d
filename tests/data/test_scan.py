import pytest

from convoy.core.errors import DataError
from convoy.data import scan as surveying
from convoy.images.decode import decode


def survey(data, params, keep=lambda _: None):
    return surveying.survey(data, params, shrink=lambda image_u8: image_u8, keep=keep)


def refusal(data, params) -> str:
    with pytest.raises(DataError) as caught:
        survey(data, params)
    return str(caught.value)


def test_each_delivered_file_has_a_record(folder, pets, settings):
    found = survey(folder(pets | {"README.md": b"# Pets"}), settings())
    verdicts = {record.path: record.verdict for record in found.records}
    assert verdicts.keys() == pets.keys() | {"README.md"}
    assert verdicts.pop("README.md").startswith("ignored: is no image")
    assert set(verdicts.values()) == {"ok"}
    assert found.classes == ["cat", "dog"]
    assert found.cut == ("val", "test")


def test_readable_images_are_handed_over_once_in_the_records_order(zipped, pets, settings):
    handed = []
    found = survey(zipped(pets | {"cat/x.png": b""}), settings(), keep=handed.append)
    assert len(handed) == len(pets)
    for record, kept in zip(found.records, found.kept, strict=True):
        if record.path == "cat/x.png":
            assert kept == -1
        else:
            assert (handed[kept] == decode(pets[record.path]).image_u8).all()


def test_a_file_in_a_class_folder_that_is_no_image_is_quarantined_with_its_reason(folder, pets, settings):
    odd = {"cat/empty.png": b"", "cat/404.jpg": b"<!DOCTYPE html>", "dog/notes.txt": b"hello"}
    found = survey(folder(pets | odd), settings())
    reasons = {record.path: record.verdict for record in found.records if record.quarantined}
    assert reasons["cat/empty.png"] == "is empty (0 bytes)"
    assert "web page" in reasons["cat/404.jpg"]
    assert "is no image of a format that is read" in reasons["dog/notes.txt"]
    assert len(reasons) == 3


def test_an_image_outside_the_class_folders_is_quarantined(folder, pets, settings, png):
    found = survey(folder(pets | {"stray.png": png(9)}), settings())
    (stray,) = (record for record in found.records if record.quarantined)
    assert (stray.path, stray.verdict, stray.label) == ("stray.png", "lies in no class folder", None)


def test_upper_case_endings_single_pixels_and_odd_names_are_no_obstacle(folder, pets, settings, png):
    odd = {"cat/IMG 01.PNG": png(901), "dog/ねこ.png": png(902, 1, 1), "dog/noending": png(903)}
    found = survey(folder(pets | odd), settings(max_quarantined=0.0))
    assert {record.verdict for record in found.records} == {"ok"}


def test_too_many_unusable_files_are_refused_with_examples_and_the_limit(folder, pets, settings):
    message = refusal(folder(pets | {f"cat/x{n}.jpg": b"no" for n in range(20)}), settings())
    assert "20 of 100 files cannot be used (20.0%; data.max_quarantined allows 10.0%)" in message
    assert "cat/x0.jpg: is no image of a format that is read" in message
    assert "and 15 more" in message
    assert "or raise data.max_quarantined in params.yaml. Nothing was written." in message


def test_identical_pixels_under_two_labels_count_as_unusable(folder, pets, settings, png):
    found = survey(folder(pets | {"cat/a.png": png(77), "dog/a.png": png(77)}), settings())
    assert sorted(record.path for record in found.records if record.quarantined) == ["cat/a.png", "dog/a.png"]


def test_a_train_image_delivered_in_test_too_is_left_out_but_not_unusable(folder, parts, settings):
    found = survey(
        folder(parts | {"train/cat/copy.png": parts["test/cat/0.png"]}), settings(max_quarantined=0.0)
    )
    (copy,) = (record for record in found.records if record.verdict != "ok")
    assert copy.verdict == "left out: its pixels are in test too: test/cat/0.png"
    assert found.cut == ()


def test_no_images_at_all_says_what_was_found_and_what_is_expected(folder, settings, png):
    message = refusal(folder({"a.txt": b"x", "b.png": png(1)}), settings())
    assert "holds no images in class folders. Found: 2 files, such as a.txt, b.png." in message
    assert "Expected: one folder per class with its images inside" in message


def test_an_empty_delivery_says_so(folder, tmp_path, settings):
    (tmp_path / "data").mkdir()
    assert "It is empty." in refusal(tmp_path / "data", settings())


def test_class_folders_without_one_usable_image_are_refused(folder, settings):
    files = {"cat/1.png": b"x", "dog/1.png": b"x"}
    assert "holds no usable image" in refusal(folder(files), settings(max_quarantined=1.0))


def test_one_class_only_is_refused_by_name(folder, settings, png):
    files = {f"cat/{n}.png": png(n) for n in range(3)}
    assert "holds one class only, `cat`: there is nothing to tell apart" in refusal(folder(files), settings())


def test_a_class_without_one_usable_image_is_named_with_the_reason(folder, settings, png):
    files = {f"cat/{n}.png": png(n) for n in range(30)} | {"dog/1.png": b"broken"}
    message = refusal(folder(files), settings())
    assert "class `dog` has no usable image (dog/1.png: is no image of a format that is read" in message
    assert "Repair its images, or remove its folder." in message


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_class_absent_from_a_delivered_part_is_named_with_it(folder, parts, settings, split):
    files = {name: content for name, content in parts.items() if not name.startswith(f"{split}/dog")}
    message = refusal(folder(files), settings())
    assert f"the delivered {split} part has no usable image of class `dog`" in message
    assert ("leave the" in message) == (split != "train")


def test_a_class_whose_images_in_a_delivered_part_are_all_broken_is_named(folder, parts, settings):
    files = {name: b"broken" if name.startswith("val/dog") else content for name, content in parts.items()}
    assert "the delivered val part has no usable image of class `dog`" in refusal(
        folder(files), settings(max_quarantined=0.5)
    )


def test_a_class_absent_from_a_cut_part_says_how_many_images_it_has_and_what_to_change(
    folder, pets, settings, png
):
    message = refusal(folder(pets | {"owl/1.png": png(5007), "owl/2.png": png(5008)}), settings())
    assert "class `owl` has 2 usable images, and none of them fell in the " in message
    assert "data.splits.val (0.2), data.splits.test (0.2)" in message


def test_what_names_reveal_is_refused_before_an_image_is_decoded(folder, parts, settings, monkeypatch):
    monkeypatch.setattr("convoy.data.records.decode", lambda _: pytest.fail("an image was decoded"))
    assert "one class only" in refusal(folder({"cat/1.png": b"1"}, name="a"), settings())
    files = {name: content for name, content in parts.items() if not name.startswith("val/dog")}
    assert "the delivered val part has no usable image of class `dog`" in refusal(
        folder(files, name="b"), settings()
    )


def test_a_delivered_part_without_one_usable_image_is_not_cut_anew(folder, parts, settings):
    files = {name: b"broken" if name.startswith("val/") else content for name, content in parts.items()}
    message = refusal(folder(files), settings(max_quarantined=0.5))
    assert "the delivered val part has no usable image of class `cat`, `dog`" in message
