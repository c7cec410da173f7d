"""What transforms of other libraries are called here, so that their names are answered with the line to write."""

import re

_MATCHES = {
    # Names are compared without case, spaces, `_` and `-`, and without a leading `Random`.
    "shift": "crop, pad_crop, crop_pad, shift_pixels, random_crop_pad, translate_pixels",
    "flip": "hflip, horizontal_flip, flip_horizontal, fliplr, mirror, flip_lr",
    "flip: {axis: vertical}": "vflip, vertical_flip, flip_vertical, flipud, flip_ud",
    "flip: {axis: both}": "dihedral, dihedral_item, d4, square_symmetry",
    "resized_crop": "resize_crop, resized_crop_gpu, crop_resize, rrc, sized_crop, size_crop, resize_rand_crop, bbox_safe_crop, "
    "scale_jitter, zoom_out, resize_scale, inception_crop",
    "rotate": "rotation, rot, safe_rotate, degrees",
    "affine": "shift_scale_rotate, perspective, warp, shear, translate, zoom, scale, affine_coord_tfm",
    "color_jitter": "colour_jitter, color_jiggle, color_twist, brightness, contrast, saturation, hue, hue_saturation_value, "
    "brightness_contrast, lighting, hsv, hsv_h, hsv_s, hsv_v, bgr, rgb_shift, planckian_jitter, adjust_brightness, "
    "adjust_contrast, adjust_saturation, adjust_hue, photometric_distort",
    "trivial_augment": "trivial_augment_wide, ta, ta_wide, taw",
    "rand_augment": "auto_augment, aa, aug_mix, auto_augment_policy, rand_aug, ra, three_augment, auto_contrast, equalize, "
    "posterize, solarize, sharpness, adjust_sharpness, invert, sharpen",
    "erase": "erasing, reprob, cutout, coarse_dropout, grid_dropout, dropout, remode, recount, cut_out, pixel_dropout",
    "mixup": "mixup_v2, mix_up_v2, mixup_alpha, mix",
    "cutmix": "cutmix_v2, cut_mix_v2, cutmix_alpha, cutmix_minmax",
    "photo": "aug_transforms, batch_tfms, augment, transforms_imagenet_train",
}

_NONE = {
    "mosaic, copy_paste, close_mosaic": "it composes scenes for object detection",
    "blur, gaussian_blur, box_blur, motion_blur, median_blur, defocus": "no transform blurs",
    "noise, gaussian_noise, gauss_noise, iso_noise, multiplicative_noise, salt_and_pepper": "no transform adds noise",
    "grayscale, gray, to_gray, random_grayscale, channel_shuffle, channel_dropout, channel_permutation": "no transform drops "
    "or swaps colours; `color_jitter: {saturation: 1.0}` reaches gray",
    "elastic, elastic_transform, grid_distortion, optical_distortion, thin_plate_spline, fisheye": "no transform bends images",
    "jpeg, image_compression, downscale, rain, fog, snow, sun_flare, shadow, clahe, gamma, plasma": "no transform imitates "
    "weather or cameras",
    "resize, resize_shorter, longest_max_size, smallest_max_size, letter_box, pad, center_crop, presizing": "data.image_px, "
    "data.fit and data.crop_share decide how images become squares, in training and in serving alike",
    "normalize, to_tensor, to_image, to_dtype, to_pil_image, int_to_float_tensor": "Convoy does it, in training and in "
    "the exported graph alike",
    "compose, sequential, random_apply, random_choice, one_of, some_of, random_order, no_op": "the list is the composition",
}


def normal(name: str) -> str:
    """Reduce a name to what its spellings share."""
    return re.sub(r"[\s_\-]", "", name).lower().removeprefix("random")


COUNTERPARTS = {normal(name): line for line, names in _MATCHES.items() for name in names.split(", ")}
REASONS = {normal(name): reason for names, reason in _NONE.items() for name in names.split(", ")}
