"""Find which columns of a list of files have the images, their classes, splits and groups: by title, content or params."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from convoy.core.dataset import Split
from convoy.core.errors import DataError
from convoy.data import names
from convoy.data.list_formats import short
from convoy.data.settings import ColumnParams

EXAMPLES = 5

PATH_COLUMNS = names.ordered(
    "path filepath filepaths file_path image_path img_path file_name filename filenames file image_name img_name image img images "
    "image_index image_id imageid img_id id_code name fname id"
)
LABEL_COLUMNS = names.ordered(
    "label labels class class_name classname class_label label_name classes category category_name target target_name breed species "
    "variety diagnosis dx y tags class_id label_id category_id prediction_string"
)
SPLIT_COLUMNS = frozenset(names.ordered("split data_set dataset subset set partition part usage phase"))
SPLIT_LISTS = frozenset(names.ordered("partition partitions split splits"))
"""Words in the name of a list that states splits and no classes."""

SPLIT_CODES: Mapping[str, Split] = {"0": "train", "1": "val", "2": "test"}
"""Numbers that stand for splits where all three occur, as in CelebA's `list_eval_partition.txt`."""

SPLIT_FLAGS: Mapping[str, tuple[Split, Split]] = {
    **dict.fromkeys(("is_valid", "is_val", "is_validation"), ("val", "train")),
    **dict.fromkeys(("is_test", "is_testing"), ("test", "train")),
    **dict.fromkeys(("is_train", "is_training"), ("train", "test")),
}
"""Columns of yes and no that state the split, with that of each answer."""

GROUP_COLUMNS = frozenset(
    names.ordered(
        "group group_id patient patient_id patientid subject subject_id lesion_id video_id sequence_id scene_id"
    )
)

BINARY = ({"0", "1", "0.0", "1.0", "true", "false", "True", "False"}, {"-1", "1", "-1.0", "1.0"})
"""Values of a column that states whether an image is of a class: CelebA writes -1 for no."""


@dataclass
class Columns:
    """Hold what the columns of a list are, by index.

    Attributes:
        header: titles, as many as the widest row; empty in a list without a header.
        path: the column with the images.
        example: the first row, for messages.
        label: the column with the classes.
        split: the column with the splits.
        coded: whether it has numbers (`SPLIT_CODES`).
        flag: a column of `SPLIT_FLAGS`.
        group: the column with the groups.
        one_hot: columns of yes and no, each a class; empty without any.
        others: columns that may be the classes, if none of them is clearly meant.
        stated: keys of `ColumnParams` that the list has a column for.
        sure: whether title, content or params say that the classes are meant, so that it is not only the sole other column.
    """

    header: list[str]
    path: int
    example: Sequence[str] = ()
    label: int | None = None
    split: int | None = None
    coded: bool = False
    flag: int | None = None
    group: int | None = None
    one_hot: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    stated: frozenset[str] = frozenset()
    sure: bool = False

    @property
    def has_labels(self) -> bool:
        """Check whether the list states classes."""
        return self.label is not None or bool(self.one_hot)

    @property
    def has_splits(self) -> bool:
        """Check whether a column states splits."""
        return self.split is not None or self.flag is not None

    def name(self, column: int) -> str:
        """Return the title of a column, or its number from 1."""
        return short(self.header[column]) if self.header and self.header[column] else str(column + 1)

    def unclear(self, list_: str) -> str:
        """Describe a list whose column with the classes is not clear."""
        first = [short(self.example[c]) if c < len(self.example) else "" for c in self.others]
        shown = [f"`{self.name(c)}`, such as {text}" for c, text in zip(self.others, first, strict=True)]
        return (
            f"{list_} names images, but which column has the classes is unclear ({'; '.join(shown[:EXAMPLES])}). Choose it by "
            f"{'title' if self.header else 'number'}, for example: -S data.columns.label={self.name(self.others[-1])}"
        )


def find_columns(
    list_: str,
    sample: Sequence[Sequence[str]],
    finds: Callable[[str], bool],
    rows: Callable[[], Iterator[list[str]]],
    params: ColumnParams | None,
) -> Columns | None:
    """Find the columns of a list by its header and content; None if it names no delivered image.

    Args:
        list_: name of the list.
        sample: its first rows.
        finds: checks whether a text names a delivered image.
        rows: opens the list anew.
        params: columns that are stated.

    Raises:
        DataError: the list is meant for images that are not delivered.
    """
    width = max(map(len, sample))
    if 2 < width == len(sample[0]) + 1:
        sample = [["", *sample[0]], *sample[1:]]  # titles of all columns but the first
    hits = [sum(finds(row[column]) for row in sample if column < len(row)) for column in range(width)]
    padded = [cell.strip() for cell in sample[0]] + [""] * (width - len(sample[0]))
    titles = ["_".join(names.words(cell)) for cell in padded]
    if not any(hits):
        if len(sample) > 1 and {*titles} & {*PATH_COLUMNS} and {*titles} & {*LABEL_COLUMNS}:
            raise DataError(
                f"{list_} names no delivered image; its first row is {short(', '.join(sample[1]))}."
            )
        return None
    path = stated_path = _stated(params.path if params else "auto", padded)
    if path is None:
        enough = [column for column in range(width) if hits[column] >= 0.9 * max(hits)]
        path = min(enough, key=lambda column: (_rank(titles[column], PATH_COLUMNS), column))
    headless = path < len(sample[0]) and finds(sample[0][path]) and titles[path] not in PATH_COLUMNS
    body = sample if headless else sample[1:]
    if headless:
        padded, titles = [""] * width, [""] * width
    values = [{row[column].strip() for row in body if column < len(row)} - {""} for column in range(width)]
    found = Columns([] if headless else padded, path, [*body[0]] if body else ())
    rest = [column for column in range(width) if column != path]
    named = bool({*names.words(list_.rpartition("/")[2].rpartition(".")[0])} & SPLIT_LISTS) and len(rest) == 1
    meant = [column for column in rest if named or titles[column] in SPLIT_COLUMNS]
    rest = _find_splits(found, rest, titles, values, meant, stated=params.split if params else "auto")
    stated = params.group if params else "auto"
    found.group = _stated(stated, padded)
    if stated == "auto":
        found.group = next((column for column in rest if titles[column] in GROUP_COLUMNS), None)
    rest = [column for column in rest if column != found.group]
    label = params.label if params else "auto"
    found.label = _stated(label, padded)
    found.sure = found.label is not None
    if label == "auto":
        rest = [column for column in rest if values[column] or titles[column] in LABEL_COLUMNS]
        _find_label(found, rest, titles, values, rows)
    stated_by_params = {"path": stated_path, "label": found.label, "split": found.split, "group": found.group}
    found.stated = frozenset(key for key, column in stated_by_params.items() if column is not None)
    return found


def _stated(column: str | int, titles: Sequence[str]) -> int | None:
    """Return the index of a column that params name by its title, or by its number from 1; None if there is none."""
    if isinstance(column, int):
        return column - 1 if column <= len(titles) else None
    for alike in (str.strip, str.casefold, lambda title: "_".join(names.words(title))):
        own = [alike(title) for title in titles]
        if column not in ("auto", "none") and alike(column) and alike(column) in own:
            return own.index(alike(column))
    return None


def _find_splits(
    found: Columns,
    rest: list[int],
    titles: Sequence[str],
    values: Sequence[set[str]],
    meant: Sequence[int],
    *,
    stated: str | int,
) -> list[int]:
    """Find the column of splits, of those that are `meant` by title or the list's name; return the columns that are left."""
    headless = not found.header
    split = _stated(stated, found.header or titles)
    if split is None and stated == "auto":
        split = next(
            (
                column
                for column in (rest if headless else meant)
                if values[column] and (all if headless else any)(map(names.split_of, values[column]))
            ),
            None,
        )
        if split is None:
            split = next((c for c in meant if values[c] and all(map(str.isdigit, values[c]))), None)
        if split is None and not headless:
            found.flag = next((column for column in rest if titles[column] in SPLIT_FLAGS), None)
        # A column that is named like splits is never one of classes.
        rest = [column for column in rest if column not in meant]
        found.others = [column for column in meant if column != split]
    found.split = split
    found.coded = split is not None and bool(values[split]) and all(map(str.isdigit, values[split]))
    return [column for column in rest if column not in (split, found.flag)]


def _find_label(
    found: Columns,
    rest: list[int],
    titles: Sequence[str],
    values: Sequence[set[str]],
    rows: Callable[[], Iterator[list[str]]],
) -> None:
    """Find the column of the classes: by its title, or because it is the only other; or a column for each class.

    Several columns with titles of classes must state the same ones in other words: `labels` beside `class id`.
    """
    headless = not found.header
    titled = [column for column in rest if titles[column] in LABEL_COLUMNS and values[column]]
    binary = [column for column in rest if values[column] and any(values[column] <= own for own in BINARY)]
    if len(titled) > 1 and not _alike(titled, rows):
        found.others = titled
    elif titled:
        found.sure = True
        found.label = min(  # words before numbers
            titled, key=lambda c: (all(map(_number, values[c])), _rank(titles[c], LABEL_COLUMNS), c)
        )
    elif len(rest) == 1 and (headless or values[rest[0]]):
        found.label = rest[0]
    elif headless and len(words := [c for c in rest if not all(map(_number, values[c]))]) == 1:
        found.label = words[0]  # beside corners of a box, as in Tiny ImageNet
    elif len(binary) > 1 and len(binary) == len(rest):
        found.one_hot, found.sure = binary, True
    else:
        found.others = rest or found.others
    if found.has_labels:
        found.others = []


def _alike(columns: Sequence[int], rows: Callable[[], Iterator[list[str]]]) -> bool:
    """Check whether columns state the same classes in other words, row by row."""
    first: dict[tuple[int, str], str] = {}
    for row in rows():
        cells = [row[column].strip() if column < len(row) else "" for column in columns]
        for column, cell in zip(columns[1:], cells[1:], strict=True):
            for key, value in (((column, cell), cells[0]), ((-column, cells[0]), cell)):
                if first.setdefault(key, value) != value:
                    return False
    return True


def _rank(title: str, order: Sequence[str]) -> int:
    return order.index(title) if title in order else len(order)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
