"""What transforms of other libraries are called here, so that their names are answered with the line to write."""

import re

_MATCHES = {
    # Names are compared without case, spaces, `_` and `-`, and without a leading `Random`.
    "shift": "crop, pad_crop, crop_pad, shift_pixels, random_crop_pad, translate_pixels, translation, crop_or_pad, rkrc, crop_and_pad, "
    "crop_from_borders, old_random_crop",
    "flip": "hflip, horizontal_flip, flip_horizontal, fliplr, mirror, flip_lr, flip_item, deterministic_flip",
    "flip: {axis: vertical}": "vflip, vertical_flip, flip_vertical, flipud, flip_ud",
    "flip: {axis: both}": "dihedral, dihedral_item, d4, square_symmetry, deterministic_dihedral",
    "resized_crop": "resize_crop, resized_crop_gpu, crop_resize, rrc, sized_crop, size_crop, resize_rand_crop, bbox_safe_crop, "
    "scale_jitter, zoom_out, resize_scale, inception_crop, resized_crop_and_interpolation, zoomed_crop, randomly_zoomed_crop, "
    "jittered_resize, rkrr, ratio, train_crop_mode, sized_bbox_safe_crop, bbox_safe_random_crop, at_least_one_bbox_random_crop, iou_crop, "
    "crop_non_empty_mask_if_exists, crop_near_bbox, train_interpolation, crop_fraction, shortest_size",
    "rotate": "rotation, rot, safe_rotate, degrees",
    "affine": "shift_scale_rotate, piecewise_affine, space_tfm, height, width, perspective, warp, shear, translate, zoom, scale, affine_coord_tfm",
    "color_jitter": "colour_jitter, color_jiggle, color_twist, brightness, contrast, saturation, hue, hue_saturation_value, "
    "brightness_contrast, lighting, hsv, hsv_h, hsv_s, hsv_v, bgr, rgb_shift, planckian_jitter, adjust_brightness, "
    "adjust_contrast, adjust_saturation, adjust_hue, photometric_distort, color_degeneration, color_jitter_prob, lighting_tfm, fancy_pca, "
    "tone_curve, linear_illumination, linear_corner_illumination, gaussian_illumination, illumination",
    "trivial_augment": "trivial_augment_wide, ta, ta_wide, taw",
    "rand_augment": "auto_augment, aa, aug_mix, auto_augment_policy, rand_aug, ra, three_augment, auto_contrast, equalize, "
    "posterize, solarize, sharpness, adjust_sharpness, invert, sharpen, posterization, solarization, equalization, invert_img, "
    "unsharp_mask, aug_mix_augment, 3a, rand-m9-mstd0.5-inc1, rand-m9, augmix-m3, original, v0",
    "erase": "erasing, reprob, cutout, coarse_dropout, grid_dropout, dropout, remode, recount, cut_out, pixel_dropout, grid_mask, "
    "constrained_coarse_dropout, cutout_gaussian, xy_masking, mask_dropout, resplit",
    "mixup": "mixup_v2, mix_up_v2, mixup_alpha, mix, mix_handler, cut_mix_up, fmix, fourier_mix",
    "cutmix": "cutmix_v2, cut_mix_v2, cutmix_alpha, cutmix_minmax",
    "photo": "aug_transforms, batch_tfms, augment, transforms_imagenet_train, setup_aug_tfms",
}

_NONE = {
    "mosaic, copy_paste, close_mosaic, jigsaw, transplantation, grid_shuffle, text_image, template_transform": "it composes scenes for object detection",
    "blur, gaussian_blur, box_blur, motion_blur, median_blur, defocus, glass_blur, advanced_blur, zoom_blur, gaussian_blur_prob, "
    "superpixels": "no transform blurs",
    "noise, gaussian_noise, gauss_noise, iso_noise, multiplicative_noise, salt_and_pepper, "
    "salt_and_pepper_noise, shot_noise, additive_noise, dissolving, ringing_overshoot, dithering": "no transform adds noise",
    "grayscale, gray, to_gray, random_grayscale, channel_shuffle, channel_dropout, channel_permutation, "
    "grayscale_prob, to_sepia, rgb, fda, histogram_matching, pixel_distribution_adaptation, he_stain, chromatic_aberration": "no transform drops "
    "or swaps colours; `color_jitter: {saturation: 1.0}` reaches gray",
    "elastic, elastic_transform, grid_distortion, optical_distortion, thin_plate_spline, fisheye, grid_elastic_deform, "
    "morphological, emboss": "no transform bends images",
    "jpeg, image_compression, downscale, rain, fog, snow, sun_flare, shadow, clahe, gamma, plasma, plasma_shadow, "
    "plasma_brightness, plasma_contrast, plasma_brightness_contrast, gravel, spatter": "no transform imitates "
    "weather or cameras",
    "resize, resize_shorter, longest_max_size, smallest_max_size, letter_box, pad, center_crop, presizing, resizing, "
    "resize_batch, ratio_resize, resize_keep_ratio, center_crop_or_pad, trim_border, pad_to, pad_if_needed, five_crop, ten_crop": "data.image_px, "
    "data.fit and data.crop_share decide how images become squares, in training and in serving alike",
    "rotate90, rotation90, transpose": "no transform turns by 90 degrees alone; `rotate: {degrees: 180}` turns by any angle",
    "clamp_bounding_boxes, clamp_key_points, convert_bounding_box_format, sanitize_bounding_boxes, sanitize_key_points, set_clamping_mode": "images "
    "have a class here, and no boxes",
    "uniform_temporal_subsample, time_masking, frequency_masking": "it is made for video or sound",
    "normalize, to_tensor, to_image, to_dtype, to_pil_image, int_to_float_tensor, normalization, rescaling, "
    "denormalize, to_float, from_float, to_tensor_v2, pil_to_tensor, convert_image_dtype, to_pure_tensor, linear_transformation": "Convoy does it, in training and in "
    "the exported graph alike",
    "compose, sequential, random_apply, random_choice, one_of, some_of, random_order, no_op, pipeline, "
    "augmentation_sequential, image_sequential, augmentation_layer, rand_transform, transform, lambda, identity": "the list is the composition",
}


def normal(name: str) -> str:
    """Reduce a name to what its spellings share."""
    return re.sub(r"[\s_\-]", "", name).lower().removeprefix("random")


COUNTERPARTS = {normal(name): line for line, names in _MATCHES.items() for name in names.split(", ")}
REASONS = {normal(name): reason for names, reason in _NONE.items() for name in names.split(", ")}
