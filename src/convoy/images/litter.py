"""Tell images from what lies beside them, by the names of files and folders.

Litter is what systems and programs leave behind: it is listed nowhere and never read, only counted by kind. Other files
that are no images (sidecars, videos, documents) are listed, and passed over once their first bytes show no image either.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

SYSTEM_FILE: Final = "system file"
HIDDEN_FILE: Final = "hidden file"
HIDDEN_FOLDER: Final = "file in a hidden folder"
THUMBNAIL: Final = "thumbnail"
ARCHIVE: Final = "archive"
COMPRESSED: Final = "compressed file"
OTHER_FILE: Final = "other file"
ARRAY_FILE: Final = "array file"

# fmt: off
SYSTEM_NAMES = frozenset({
    # macOS
    ".ds_store", ".localized", ".fseventsd", ".spotlight-v100", ".trashes", ".trash", ".temporaryitems",
    ".documentrevisions-v100", ".volumeicon.icns", ".apdisk", ".appledouble", ".appledb", ".appledesktop", "__macosx",
    "icon\r",
    # Windows
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "found.000",
    "system volume information",
    # Linux and its file systems
    ".directory", "lost+found", ".snapshot", ".snapshots", ".zfs", ".gvfs",
    # storage in the network
    "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", ".@upload_cache", ".stfolder",
    ".stversions", ".stignore", ".dropbox", ".dropbox.attr", ".dropbox.cache", ".sync",
    # photo programs
    "picasa.ini", ".picasa.ini", ".picasaoriginals", ".nomedia", ".comments", ".dtrash", "digikam4.db",
    # programming
    ".git", ".gitignore", ".gitattributes", ".gitkeep", ".gitmodules", ".keep", ".svn", ".hg", ".dvc", ".dvcignore",
    ".ipynb_checkpoints", "__pycache__", ".cache", ".idea", ".vscode", ".venv", "node_modules", ".huggingface",
})
# fmt: on
"""Names of files and folders, in lower case, that systems and programs leave behind."""

THUMBNAIL_FOLDERS = frozenset({".thumbnails", ".thumbs", ".thumb", ".tmb", ".@__thumb", "@__thumb", ".xvpics", ".pics"})  # fmt: skip
"""Names of folders, in lower case, in which programs keep small copies of the images beside."""

SYSTEM_START = re.compile(r"\._|~\$|\.trash-|\.nfs0|\.fuse_hidden|\.~lock\.|synofile_|syno@|@synoeastream", re.IGNORECASE)  # fmt: skip
"""Begins the names of files that systems and programs leave behind; `._` is what macOS stores beside a file."""

THUMBNAIL_NAME = re.compile(r"synophoto_thumb|synofile_thumb|zbthumbnail\.info$", re.IGNORECASE)

SMALL_COPY = re.compile(
    r"(?:(?:thumb|thumbnail|tn)[_-])?(?P<stem>.+?)(?:[ ._-](?:thumb|thumbs|thumbnail|tn)|-\d{2,4}x\d{2,4})?",
    re.IGNORECASE,
)
"""How programs name the small copy of an image: `1_thumb.jpg`, `thumb_1.jpg`, `1-150x150.jpg`."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DECODED_SUFFIXES = _words(
    "jpg jpeg jpe jfif jif jpg_large mpo png apng gif bmp dib tif tiff webp ppm pgm pbm pnm pfm jp2 j2k j2c jpc jpf jpx "
    "avif avifs heic heics heif heifs hif"
)
"""Ends of the names of files in a format that is decoded; HEIC where its extra is installed."""

IMAGE_SUFFIXES = DECODED_SUFFIXES | _words(
    "pam jxl ico cur tga svg svgz pcx sgi ras xbm xpm exr hdr dcm dicom nii jxr wmf emf"
)
"""Ends of the names of files that claim to be images, whether the decoder reads them or not."""

RAW_SUFFIXES = _words(
    "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
)

KINDS: Mapping[str, str] = (
    {
        suffix: kind
        for kind, suffixes in {
            "sidecar": "json jsonl ndjson xml txt csv tsv tab yaml yml toml ini cfg aae xmp pp3 dop on1 cos url log md5 sha1 sha256 "
            "sfv tags names cls lst idx mat psd psb xcf ai eps lrcat db sqlite done pto kml gpx",
            "video": "mp4 mov m4v avi mkv webm wmv mpg mpeg mpe mts m2ts ts 3gp 3g2 flv f4v lrv ogv vob insv mxf asf rm rmvb divx",
            "audio": "mp3 wav m4a aac flac ogg oga opus wma aif aiff amr mid midi",
            "document": "pdf doc docx odt rtf md rst html htm mht mhtml xls xlsx ods ppt pptx odp key pages numbers tex epub ipynb py js "
            "css sh bat lnk webloc",
            ARCHIVE: "zip tar tgz taz tbz tbz2 tb2 tz2 txz tlz tzst 7z rar iso dmg z01",
            ARRAY_FILE: "h5 hdf5 he5 tfrecord tfrecords arrow feather npy npz pkl pickle pt pth safetensors lmdb mdb",
            COMPRESSED: "gz bz2 xz zst lz4 z",
            "unfinished download": "crdownload part partial download !ut",
        }.items()
        for suffix in suffixes.split()
    }
    | dict.fromkeys(RAW_SUFFIXES, "raw photo")
    | {"thm": THUMBNAIL}
)
"""Ends of the names of files that are no images, with the word for them."""

PREVIEWS = RAW_SUFFIXES | {"thm"}
"""Ends of the names of files that the decoder would read as a small preview: raw photos start as TIFF files do, and `.thm` is
a camera's thumbnail of a video."""


def is_litter(path: str) -> bool:
    """Check whether a path is litter."""
    return bool(litter(path))


def litter(path: str) -> str:
    """Return the kind of litter that a path is, by its names alone; empty for other files.

    A hidden folder that is not known is used if it holds the file itself, since a class may be called `.net`.

    Args:
        path: with `/` between folders.
    """
    folder, _, name = path.rpartition("/")
    thumbnails, synology, system, hidden = _of_folders(folder)
    is_thumbnail = THUMBNAIL_NAME.match(name)
    if thumbnails or (synology and is_thumbnail):
        return THUMBNAIL
    if system:
        return SYSTEM_FILE
    if is_thumbnail:
        return THUMBNAIL
    if name.lower() in SYSTEM_NAMES or SYSTEM_START.match(name):
        return SYSTEM_FILE
    if name.startswith("."):
        return HIDDEN_FILE
    return HIDDEN_FOLDER if hidden else ""


@lru_cache(maxsize=4096)
def _of_folders(path: str) -> tuple[bool, bool, bool, bool]:
    """Check whether a folder lies in one for thumbnails, in Synology's, in a system's, and in a hidden folder with other content."""
    folders = path.split("/")
    lowered = [folder.lower() for folder in folders]
    return (
        any(folder in THUMBNAIL_FOLDERS for folder in lowered),
        "@eadir" in lowered,
        any(folder in SYSTEM_NAMES or SYSTEM_START.match(folder) for folder in lowered),
        any(folder.startswith(".") for folder in folders[:-1]),
    )


def kind(path: str) -> str:
    """Return the word for what a file is if its name is not that of an image; empty for images and unknown names."""
    word = KINDS.get(suffix_of(path), "")
    if word == COMPRESSED and suffix_of(path.rpartition(".")[0]) == "tar":
        return ARCHIVE
    return word


def is_preview(path: str) -> bool:
    """Check whether a file must not be decoded, whatever its first bytes."""
    return suffix_of(path) in PREVIEWS


def claims_to_be_image(path: str) -> bool:
    """Check whether a file's name ends as that of an image, read or not."""
    return suffix_of(path) in IMAGE_SUFFIXES


def suffix_of(path: str) -> str:
    """Return what follows the last point of a file's name, in lower case; empty without one."""
    stem, _, suffix = path.rpartition(".")
    return "" if stem.endswith("/") or not stem or "/" in suffix else suffix.lower()


def small_copies(paths: Iterable[str]) -> set[str]:
    """Find thumbnails that lie beside the full image: `1_thumb.jpg` beside `1.jpg`, whatever their suffixes."""
    images = [path for path in paths if claims_to_be_image(path)]
    suspects = {path: stem for path in images if (stem := _full_image(path))}
    if not suspects:
        return set()
    stems = {_stem(path) for path in images} | {path.lower() for path in images}
    return {path for path, stem in suspects.items() if stem in stems}


def _full_image(path: str) -> str:
    """Return the stem, with its folder, of the image that a path would be the thumbnail of; empty if its name is not such."""
    folder, slash, name = _stem(path).rpartition("/")
    match = SMALL_COPY.fullmatch(name)
    return f"{folder}{slash}{match['stem']}" if match and match["stem"] != name else ""


def _stem(path: str) -> str:
    return path.rpartition(".")[0].lower()
