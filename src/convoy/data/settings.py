"""The `data` section of params.yaml."""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from convoy.core.contract import BACKGROUND_PATTERN
from convoy.core.dataset import SPLITS, Fit, Split, Store
from convoy.core.params import Section

LARGEST_CUT = 0.8
"""Largest share of validation and test together: at least a fifth is left for training."""

LEAST_CUT = 0.01
"""Smallest share that is cut: less measures nothing."""

Arrangement = Literal["auto", "classes", "splits", "classes_then_splits"]
"""What the folders of a delivery are."""

Action = Literal["report", "drop", "fail"]
"""What follows for images that a check finds: they are reported and used, left out, or the delivery is refused."""


def _pattern(named: str) -> AfterValidator:
    """Accept `auto`-like words as they are, and a regular expression that has the group `named`."""

    def check(value: str) -> str:
        if value.isidentifier():
            return value
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if named not in groups:
            raise ValueError(f"the pattern needs a group (?P<{named}>…)")
        return value

    return AfterValidator(check)


Column = Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=1)]
"""A column of a list, by its title or its number from 1; `auto`; `none` where it is optional."""


class ColumnParams(Section):
    """State what the columns of lists are."""

    path: Annotated[Column, Field(description="paths or names of the images", examples=["auto"])]
    label: Annotated[
        Column,
        Field(description="their classes; stated, it makes data.label: auto mean csv", examples=["auto"]),
    ]
    split: Annotated[
        Column, Field(description="their splits; none: the list states no splits", examples=["auto"])
    ]
    group: Annotated[
        Column, Field(description="their groups; none: the list states no groups", examples=["auto"])
    ]


def _share_of(value: object) -> object:
    """Read `val` as no share: what a test split would measure is measured on val."""
    if isinstance(value, str) and value != "val":
        raise PydanticCustomError("share", "Input should be a share from 0 to 0.5, or val")
    return 0.0 if value == "val" else value


def _none_or_enough(value: float) -> float:
    if 0 < value < LEAST_CUT:
        raise ValueError(f"input should be at least {LEAST_CUT}, or 0 for no test split")
    return value


class SplitParams(Section):
    """Shares cut from the delivery, for each split that it lacks."""

    val: Annotated[float, Field(ge=LEAST_CUT, le=0.5, description="chooses the best epoch", examples=[0.15])]
    test: Annotated[
        float,
        BeforeValidator(_share_of),
        AfterValidator(_none_or_enough),
        Field(ge=0, le=0.5, description="measures the result, used for nothing else", examples=[0.2]),
    ]

    @model_validator(mode="after")
    def _leave_images_to_train_on(self) -> Self:
        if self.val + self.test > LARGEST_CUT:
            raise ValueError(
                f"val + test must be at most {LARGEST_CUT}, they are {self.val} + {self.test} = "
                f"{self.val + self.test:g}"
            )
        return self


Limit = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
"""Of a check; a value that no image reaches switches it off."""


class ImageCheck(Section):
    """Configure a check of single images."""

    limit: Limit
    action: Action
    max_share: Annotated[float, Field(ge=0, le=1)]


class DatasetCheck(Section):
    """Configure a check of the whole dataset: it has no images to leave out."""

    limit: Limit
    action: Literal["report", "fail"]


class CheckParams(Section):
    """Configure what `prepare` looks for in the images that it can read."""

    small: Annotated[
        ImageCheck,
        Field(
            description="shorter side below limit, in pixels",
            examples=[{"limit": 8, "action": "report", "max_share": 1.0}],
        ),
    ]
    aspect: Annotated[
        ImageCheck,
        Field(
            description="longer side over shorter side above limit",
            examples=[{"limit": 10, "action": "report", "max_share": 1.0}],
        ),
    ]
    blank: Annotated[
        ImageCheck,
        Field(
            description="standard deviation of the gray levels below limit, of 255",
            examples=[{"limit": 1, "action": "report", "max_share": 0.1}],
        ),
    ]
    dark: Annotated[
        ImageCheck,
        Field(
            description="mean gray level below limit, of 255",
            examples=[{"limit": 8, "action": "report", "max_share": 1.0}],
        ),
    ]
    bright: Annotated[
        ImageCheck,
        Field(
            description="mean gray level above limit, of 255",
            examples=[{"limit": 247, "action": "report", "max_share": 1.0}],
        ),
    ]
    blurred: Annotated[
        ImageCheck,
        Field(
            description="sharpness below limit; see docs/data.md",
            examples=[{"limit": 0.12, "action": "report", "max_share": 1.0}],
        ),
    ]
    outliers: Annotated[
        ImageCheck,
        Field(
            description="a statistic further than limit robust deviations from its class",
            examples=[{"limit": 8, "action": "report", "max_share": 1.0}],
        ),
    ]
    duplicates: Annotated[
        ImageCheck,
        Field(
            description="more than limit images with the same pixels in one class and split",
            examples=[{"limit": 1, "action": "report", "max_share": 1.0}],
        ),
    ]
    near_duplicates: Annotated[
        ImageCheck,
        Field(
            description="correlation of aligned pixels above limit; `drop` drops the copy in train",
            examples=[{"limit": 0.92, "action": "drop", "max_share": 0.5}],
        ),
    ]
    groups: Annotated[
        ImageCheck,
        Field(
            description="images of a group in more than limit delivered splits; `drop` keeps those in test, else val",
            examples=[{"limit": 1, "action": "fail", "max_share": 1.0}],
        ),
    ]
    few_images: Annotated[
        DatasetCheck,
        Field(description="images of a class below limit", examples=[{"limit": 20, "action": "report"}]),
    ]
    imbalance: Annotated[
        DatasetCheck,
        Field(
            description="largest over smallest class above limit",
            examples=[{"limit": 50, "action": "report"}],
        ),
    ]
    giveaway: Annotated[
        DatasetCheck,
        Field(
            description="AUC with which one property of the file predicts a class above limit",
            examples=[{"limit": 0.95, "action": "report"}],
        ),
    ]


class DataParams(Section):
    """Configure how `prepare` reads, checks, splits and packs a delivery."""

    other_names: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("crop_pct", "crop_ratio", "center_crop", "central_fraction"), "crop_share"),
        **dict.fromkeys(("resize_size", "store_size", "resize"), "store_px"),
        **dict.fromkeys(("img_size", "imgsz", "image_size", "input_size", "size"), "image_px"),
    }

    image_px: Annotated[
        int,
        Field(
            ge=8, le=1024, description="side of the square that the network sees, in pixels", examples=[32]
        ),
    ]
    fit: Annotated[Fit, Field(description="how an image becomes that square", examples=["squash"])]
    crop_share: Annotated[
        float,
        Field(
            ge=0.1,
            le=1,
            description="share of the shorter side that `fit: crop` keeps in the middle",
            examples=[1.0],
        ),
    ]
    store_px: Annotated[
        int,
        Field(ge=0, le=2048, description="side at which training images are stored, in pixels", examples=[0]),
    ]
    store: Annotated[
        Literal["auto", Store], Field(description="what training images are stored as", examples=["auto"])
    ]
    layout: Annotated[Arrangement, Field(description="what the folders of a delivery are", examples=["auto"])]
    label: Annotated[
        str,
        _pattern("label"),
        Field(
            pattern=r"^(auto|folder|csv|.*\(\?P<label>.*)$",
            description="where the class of an image stands",
            examples=["auto"],
        ),
    ]
    group: Annotated[
        str,
        _pattern("group"),
        Field(
            pattern=r"^(none|.*\(\?P<group>.*)$",
            description="images of one group stay in one split",
            examples=["none"],
        ),
    ]
    columns: Annotated[
        ColumnParams,
        Field(description="columns of lists: a title, or a number from 1"),
    ]
    splits: Annotated[
        SplitParams, Field(description="shares cut from the delivery for the splits that it lacks")
    ]
    rare: Annotated[
        Literal["fail", "train_only"],
        Field(
            description="what happens to a class with fewer than 3 images, or absent from a delivered val or test",
            examples=["fail"],
        ),
    ]
    classes: Annotated[
        Literal["fail", "extend"],
        Field(
            description="what happens if the classes differ from those of the dataset before",
            examples=["extend"],
        ),
    ]
    background: Annotated[
        str,
        Field(pattern=BACKGROUND_PATTERN, description="colour behind transparent pixels", examples=["white"]),
    ]
    max_truncated: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="largest share of an image that a truncated file may lack",
            examples=[0.01],
        ),
    ]
    max_quarantined: Annotated[
        float, Field(ge=0, le=1, description="largest share of files that may be unusable", examples=[0.01])
    ]
    checks: Annotated[CheckParams, Field(description="what is looked for in readable images")]

    def cut(self, delivered: Collection[Split]) -> tuple[Split, ...]:
        """Return the splits that are cut from train, if these are delivered."""
        return tuple(
            split for split in SPLITS[1:] if split not in delivered and (split == "val" or self.splits.test)
        )

    @property
    def train_px(self) -> int:
        """Return the side at which training images are stored."""
        return self.store_px or self.image_px

    @model_validator(mode="after")
    def _store_no_less_than_is_shown(self) -> Self:
        if 0 < self.store_px < self.image_px:
            raise ValueError(
                f"store_px: {self.store_px} is less than image_px: {self.image_px}, the side that the network sees. Set store_px: 0, "
                f"which stores that, or more for resized_crop to cut from, such as {min(self.image_px * 8 // 7, 2048)}"
            )
        return self

    @model_validator(mode="after")
    def _crop_to_keep_a_share_of(self) -> Self:
        if self.crop_share < 1 and self.fit != "crop":
            raise ValueError(
                f"crop_share: {self.crop_share:g} has no effect with fit: {self.fit}, which shows the whole image. Set "
                "crop_share: 1.0, or fit: crop"
            )
        return self
