"""What the transforms do to the pixels and labels of a batch."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from convoy.core import yaml
from convoy.training.augment import pixels, policy
from convoy.training.augment.augmenter import AUGMENT, Augmenter
from convoy.training.augment.draws import Draw, Frame
from convoy.training.augment.geometry import ResizedCrop, rotation, translation
from convoy.training.batch import Batch

CLASSES = 4


@pytest.fixture
def augmented(params):
    """Augment a batch by a policy, as in the given epoch and step; the device is the CPU."""

    def apply(text, batch, epoch=0, *, image_px=None, notes=None, seed=1, **more):
        transforms = params(augment=yaml.load(text)).augment
        side = image_px or batch.pixels_u8.shape[-1]
        mean = [0.0, 0.5, 1.0]
        augmenter = Augmenter(transforms, seed=seed, image_px=side, classes=CLASSES, mean=mean, **more)
        return augmenter.apply(batch, epoch, notes)

    return apply


def noise(count=8, side=16, step=0):
    """Make random images, of which no two parts are alike."""
    generator = torch.Generator().manual_seed(5)
    nhwc = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    return Batch(nhwc.permute(0, 3, 1, 2), torch.arange(count) % CLASSES, step, np.arange(count))


def smooth(count=8, side=32):
    """Make images of waves, on which interpolation is exact enough to compare."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [
        128 + 90 * torch.sin(x / 5 + n) * torch.cos(y / 7 - n + c) for n in range(count) for c in range(3)
    ]
    pixels_u8 = torch.stack(waves).view(count, 3, side, side).round().to(torch.uint8)
    pixels_u8 = pixels_u8.contiguous(memory_format=torch.channels_last)
    return Batch(pixels_u8, torch.arange(count) % CLASSES, 0, np.arange(count))


ALL = [f"[{word}]" for word in policy.TRANSFORMS] + list(policy.SHORTHANDS)


@pytest.mark.parametrize("text", [*ALL, "[{shift: {pixels: 3, fill: black}}, rotate, affine]"])
def test_batches_keep_shape_type_and_memory_and_the_input_stays(augmented, text):
    batch = noise(32)
    before = batch.pixels_u8.clone()
    changed = augmented(text, batch)
    assert changed.pixels_u8.shape == before.shape
    assert changed.pixels_u8.dtype == torch.uint8
    assert changed.pixels_u8.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(changed.pixels_u8, before)
    assert torch.equal(batch.pixels_u8, before)
    assert torch.equal(changed.labels, batch.labels)


@pytest.mark.parametrize("text", [text for text in ALL if text != "[alternating_flip]"])
def test_seed_epoch_and_step_decide_everything(augmented, text):
    def run(epoch=3, step=5, seed=1):
        changed = augmented(text, noise(32, step=step), epoch, seed=seed)
        return changed.pixels_u8, changed.targets

    pixels_u8, targets = run()
    again, targets_again = run()
    assert torch.equal(pixels_u8, again)
    assert targets is None or torch.equal(targets, targets_again)
    for other in (run(epoch=4), run(step=6), run(seed=2)):
        assert not torch.equal(pixels_u8, other[0])


@pytest.mark.parametrize("text", [text for text in ALL if text != "[alternating_flip]"])
def test_images_of_a_batch_change_in_different_ways(augmented, text):
    same = noise(24)
    same = same._replace(pixels_u8=same.pixels_u8[:1].expand(24, -1, -1, -1))
    changed = augmented(
        text.replace("[mixup]", "[flip, mixup]").replace("[cutmix]", "[shift, cutmix]"), same
    ).pixels_u8
    assert len({image.numpy().tobytes() for image in changed}) > (4 if "flip" not in text else 1)


def former(pixels_u8, names, crop_padding, random):
    """Do what `augment` of the versions before lists of transforms did."""
    count, _, height, width = pixels_u8.shape
    rows = np.arange(height)[None, :].repeat(count, axis=0)
    columns = np.arange(width)[None, :].repeat(count, axis=0)

    def reflect(positions, side):
        return (side - 1) - np.abs((side - 1) - positions % (2 * (side - 1)))

    if "crop" in names:
        shifts = random.integers(-crop_padding, crop_padding + 1, size=(2, count, 1))
        rows, columns = reflect(rows + shifts[0], height), reflect(columns + shifts[1], width)
    if "flip" in names:
        mirrored = random.random((count, 1)) < 0.5
        columns = np.where(mirrored, columns[:, ::-1], columns)
    picked = pixels_u8.permute(0, 2, 3, 1).numpy()[
        np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return torch.from_numpy(picked).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[{shift: {pixels: 3}}]", ["crop"]),
        ("[flip]", ["flip"]),
        ("[{shift: {pixels: 3}}, flip]", ["crop", "flip"]),
        ("[flip, {shift: {pixels: 3}}]", ["crop", "flip"]),
    ],
)
@pytest.mark.parametrize(("count", "side"), [(1, 8), (17, 9), (64, 32)])
def test_shift_and_flip_give_the_pixels_of_the_former_crop_and_flip(augmented, text, names, count, side):
    for epoch in range(2):
        batch = noise(count, side, step=7)
        expected = former(batch.pixels_u8, names, 3, np.random.default_rng([1, epoch, 7, AUGMENT]))
        assert torch.equal(augmented(text, batch, epoch).pixels_u8, expected)


def test_a_shift_takes_a_window_of_each_image_in_a_frame_of_its_reflection(augmented):
    batch = noise(40, 6)
    frames = np.pad(batch.pixels_u8.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    corners = set()
    shifted = augmented("[{shift: {pixels: 2}}]", batch).pixels_u8.numpy()
    for frame, image in zip(frames, shifted, strict=True):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(frame[:, top : top + 6, left : left + 6], image)
        ]
        assert len(matches) == 1
        corners.update(matches)
    assert {top for top, _ in corners} == {left for _, left in corners} == {0, 1, 2, 3, 4}
    assert any(top != left for top, left in corners), "rows and columns shift independently"


@pytest.mark.parametrize(("fill", "mode"), [("reflect", "reflect"), ("edge", "edge"), ("black", "constant")])
def test_the_fill_of_a_shift_is_what_lies_beyond_the_edge(augmented, fill, mode):
    batch = noise(30, 6)
    frames = np.pad(batch.pixels_u8.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode=mode)
    shifted = augmented(f"[{{shift: {{pixels: 2, fill: {fill}}}}}]", batch).pixels_u8.numpy()
    windows = [frames[:, :, top : top + 6, left : left + 6] for top in range(5) for left in range(5)]
    assert np.any([(window == shifted).all(axis=(1, 2, 3)) for window in windows], axis=0).all()


@pytest.mark.parametrize(("axis", "dims"), [("horizontal", [3]), ("vertical", [2])])
def test_flip_mirrors_about_half_of_the_images_along_its_axis(augmented, axis, dims):
    batch = noise(200, 6)
    flipped = augmented(f"[{{flip: {{axis: {axis}}}}}]", batch).pixels_u8
    mirrored = (flipped == batch.pixels_u8.flip(dims)).all(dim=(1, 2, 3))
    unchanged = (flipped == batch.pixels_u8).all(dim=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 70 < mirrored.sum() < 130


def test_flip_along_both_axes_gives_four_views_and_p_their_share(augmented):
    batch = noise(200, 6)
    flipped = augmented("[{flip: {axis: both, p: 0.25}}]", batch).pixels_u8
    views = [(flipped == batch.pixels_u8.flip(dims)).all(dim=(1, 2, 3)) for dims in ([], [2], [3], [2, 3])]
    shares = torch.stack(views).float().mean(dim=1)
    assert torch.allclose(shares, torch.tensor([9, 3, 3, 1]) / 16, atol=0.09)
    assert shares.sum() == 1


def test_alternating_flip_shows_each_image_both_ways_in_turn_whatever_batch_it_is_in(augmented):
    batch = noise(100, 6)
    epochs = [augmented("[alternating_flip]", batch, epoch).pixels_u8 for epoch in range(3)]
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])
    started = (epochs[0] != batch.pixels_u8).any(dim=(1, 2, 3))
    assert 30 < started.sum() < 70
    few = Batch(batch.pixels_u8[40:50], batch.labels[40:50], 9, batch.rows[40:50])
    assert torch.equal(augmented("[alternating_flip]", few).pixels_u8, epochs[0][40:50])
    other_seed = augmented("[alternating_flip]", batch, seed=2).pixels_u8
    assert not torch.equal(other_seed, epochs[0])


def drawn_crops(count, store_px, **arguments):
    frame = Frame.centered(count, store_px, store_px)
    ResizedCrop(**arguments).place(frame, Draw(np.random.default_rng(0), np.arange(count)), store_px)
    return frame


def test_resized_crops_have_the_areas_and_ratios_asked_for_and_lie_inside():
    frame = drawn_crops(2000, 64, scale=[0.3, 0.8], ratio=[0.5, 2.0])
    (height, width), ends = frame.side, frame.corner + frame.side
    assert frame.corner.min() == 0
    assert ends.max() == 64
    areas, ratios = height * width / 64**2, width / height
    assert 0.29 < areas.min() < 0.32
    assert 0.75 < areas.max() < 0.82
    assert 0.48 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.1
    assert abs(np.log(ratios).mean()) < 0.05


def test_a_crop_that_never_fits_is_the_whole_image():
    frame = drawn_crops(5, 16, scale=[1.0, 1.0], ratio=[2.0, 2.0])
    assert (frame.side == 16).all()
    assert (frame.corner == 0).all()


@pytest.mark.parametrize(("store_px", "image_px"), [(16, 16), (40, 16), (16, 40)])
def test_a_resized_crop_is_the_antialiased_resize_of_its_window(augmented, store_px, image_px):
    batch = noise(6, store_px)
    notes = [[] for _ in range(6)]
    changed = augmented(
        "[{resized_crop: {scale: [0.2, 0.6]}}]", batch, image_px=image_px, notes=notes
    ).pixels_u8
    frame = Frame.centered(6, store_px, store_px)
    draw = Draw(np.random.default_rng([1, 0, 0, AUGMENT]), batch.rows)
    ResizedCrop(scale=[0.2, 0.6]).place(frame, draw, store_px)
    for image in range(6):
        (top, left), (height, width) = frame.corner[:, image], frame.side[:, image]
        assert notes[image] == [f"crop {width}×{height}"]
        window = batch.pixels_u8[image : image + 1, :, top : top + height, left : left + width].float()
        expected = interpolate(window, size=image_px, mode="bilinear", antialias=True)[0]
        assert (changed[image].float() - expected).abs().max() < 1.001, "rounded along each axis"


@pytest.mark.parametrize(("store_px", "image_px"), [(16, 16), (40, 16), (16, 40)])
def test_products_of_matrices_resize_as_the_kernel_of_the_cpu(store_px, image_px):
    frame = drawn_crops(20, store_px, scale=[0.1, 1.0])
    args = noise(20, store_px).pixels_u8, frame.corner, frame.side, image_px
    difference = pixels.resampled(*args).int() - pixels.resized(*args).int()
    assert difference.abs().max() <= 1


def test_flip_and_shift_follow_a_resized_crop(augmented):
    batch = smooth(60)
    crop = "resized_crop: {scale: [0.5, 1.0]}"
    cropped = augmented(f"[{{{crop}}}]", batch).pixels_u8
    flipped = augmented(f"[flip, {{{crop}}}]", batch).pixels_u8
    mirrored = (flipped == cropped.flip(3)).all(dim=(1, 2, 3))
    assert 15 < mirrored.sum() < 45
    assert torch.equal(flipped[~mirrored], cropped[~mirrored])


@pytest.mark.parametrize("share", [1.0, 0.75])
def test_a_larger_store_without_a_crop_shows_the_centre_as_serving_does(augmented, share):
    batch = noise(3, 32)
    changed = augmented("[]", batch, image_px=16, crop_share=share).pixels_u8
    edge = round((32 - 32 * share) / 2)
    window = batch.pixels_u8[:, :, edge : 32 - edge, edge : 32 - edge].float()
    expected = interpolate(window, size=16, mode="bilinear", antialias=True)
    assert (changed.float() - expected).abs().max() < 1.001, "rounded along each axis"


def test_a_warp_moves_content_as_its_matrix_states():
    batch = noise(3, 16)
    quarter = pixels.warped(batch.pixels_u8, rotation(np.full(3, 90.0)), "black")
    assert torch.equal(quarter, batch.pixels_u8.rot90(-1, (2, 3))), "clockwise"
    right = pixels.warped(batch.pixels_u8, translation(np.full(3, 2 * 4 / 16), np.zeros(3)), "black")
    assert torch.equal(right[..., 4:], batch.pixels_u8[..., :-4])
    assert not right[..., :4].any()


def test_rotate_and_affine_stay_within_their_arguments(augmented):
    notes = [[] for _ in range(200)]
    augmented(
        "[{rotate: {degrees: 20}}, {affine: {degrees: 0, scale: [0.5, 2.0]}}]", noise(200, 8), notes=notes
    )
    turned, affine = zip(*notes, strict=True)
    degrees = np.array([float(note.removeprefix("turn ").removesuffix("°")) for note in turned])
    assert 15 < degrees.max() <= 20
    assert -20 <= degrees.min() < -15
    zooms = np.array([float(note.rpartition(" ")[2]) for note in affine])
    assert 0.5 <= zooms.min() < 0.6
    assert 1.8 < zooms.max() <= 2


def test_erase_covers_a_rectangle_with_the_mean_colour(augmented):
    batch = noise(100, 16)
    erased = augmented("[{erase: {p: 0.5, scale: [0.1, 0.3]}}]", batch).pixels_u8
    different = (erased != batch.pixels_u8).any(dim=1)
    touched = different.flatten(1).any(dim=1)
    assert 30 < touched.sum() < 70
    for image in np.flatnonzero(touched):
        rows, columns = different[image].any(1).nonzero()[:, 0], different[image].any(0).nonzero()[:, 0]
        box = erased[image, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert torch.equal(box.amax((1, 2)), torch.tensor([0, 128, 255], dtype=torch.uint8))
        assert torch.equal(box.amin((1, 2)), box.amax((1, 2)))
        assert 0.08 < box[0].numel() / 256 < 0.33


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
def test_targets_are_the_shares_of_the_pixels_and_labels_the_larger_share(augmented, word):
    # Images of one colour each, that of their class, so that the mean colour tells the shares.
    labels = torch.arange(64) % CLASSES
    flat = (labels * 80).to(torch.uint8)[:, None, None, None].expand(-1, 3, 20, 20)
    batch = Batch(flat.contiguous(memory_format=torch.channels_last), labels, 0, np.arange(64))
    changed = augmented(f"[{{{word}: {{alpha: 1.0, p: 0.6}}}}]", batch)
    assert changed.targets.shape == (64, CLASSES)
    assert changed.targets.dtype == torch.float32
    assert torch.allclose(changed.targets.sum(1), torch.ones(64))
    means = changed.pixels_u8.float().mean((1, 2, 3))
    assert torch.allclose(means, changed.targets @ (torch.arange(CLASSES) * 80.0), atol=0.6)
    assert torch.equal(changed.labels, labels)
    own = changed.targets[torch.arange(64), labels]
    assert own.min() >= 0.5
    assert 15 < (own < 1).sum() < 45


def test_each_image_is_mixed_once_with_another_by_mixup_or_cutmix(augmented):
    batch = noise(200, 8)
    notes = [[] for _ in range(200)]
    augmented("[mixup, cutmix]", batch, notes=notes)
    words = [note[0].split()[0] for note in notes if note]
    assert max(map(len, notes)) == 1
    assert words.count("mixup") > 60
    assert words.count("cutmix") > 60


def test_no_targets_are_made_where_nothing_mixes(augmented):
    assert augmented("photo", noise()).targets is None


def test_notes_name_what_was_applied(augmented):
    notes = [[] for _ in range(40)]
    augmented("strong", noise(40, 16), notes=notes)
    text = " ".join(" ".join(note) for note in notes)
    for word in ("crop", "flip", "light", "erase", "mixup", "cutmix"):
        assert word in text
