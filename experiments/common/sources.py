"""The original files of data and models: their addresses, checksums and licences.

No data is kept in this project. A file is looked for in the data folder that the user names, then
in the folder named by the environment variable `SHATTER_DATA_DIR`, then in the user's cache. If it
is in none of them it is downloaded from its public address into the cache. Every file is verified
by its sha256 before it is used.
"""

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, Self

from absl import logging

from shatter.cli.common.binary import UsageError
from shatter.cli.common.cache import CACHE_DIR_VARIABLE, cache_dir, temporary_folder
from shatter.data.atomic import replacing

DATA_DIR_VARIABLE = "SHATTER_DATA_DIR"
DOWNLOAD_TIMEOUT = 60.0  # seconds without an answer

_FIVETHIRTYEIGHT = "https://raw.githubusercontent.com/fivethirtyeight/data/master"
_CC_BY = "CC BY 4.0"
_HUMOUR = "Simpson et al., ACL 2019"
_CAPTIONS = "The New Yorker caption contest / NEXT, caption-contest-data-api"
_CONVARG = "Habernal and Gurevych, ACL 2016"
_STORIES = "Andrej Karpathy, llama2.c / tinyllamas, 2023"


class DataError(ValueError):
    """A data file that is missing, damaged or malformed."""

    @classmethod
    def at(
        cls, path: Path, line: int, field: str, *, expected: str, found: object, mend: str
    ) -> Self:
        """Returns the error about one bad value: where it is, what was expected, the remedy."""
        place = f"{path}, line {line}, field {field!r}"
        return cls(f"{place}: expected {expected}, found {found!r}. {mend}")


class Source(NamedTuple):
    """One file made by people outside this project.

    Attributes:
      folder: The subfolder of a data folder for the file, which may also lie at the top.
      filename: The name under which it was published.
      url: The public address, or None where there is none.
      sha256: The checksum of the published bytes, in hexadecimal digits.
      licence: The licence's short name.
      attribution: The authors to name beside figures or texts made from the file.
    """

    folder: str
    filename: str
    url: str | None
    sha256: str
    licence: str
    attribution: str


SOURCES: dict[str, Source] = {
    "nonvoters": Source(
        "fivethirtyeight",
        "nonvoters_data.csv",
        f"{_FIVETHIRTYEIGHT}/non-voters/nonvoters_data.csv",
        "c3a8e5b5a2a82e137f60a63c073326f642a7794c91d8e56fc63195efcf0098f8",
        _CC_BY,
        "FiveThirtyEight / Ipsos, 2020",
    ),
    "nonvoters_respondents": Source(
        "survey_opinions",
        "nonvoters_respondents.csv",
        None,
        "e8c59e059566559cf8bbb3e83d596451b795620ef801271e0b44a90a1b683964",
        _CC_BY,
        "FiveThirtyEight / Ipsos, 2020",
    ),
    "shares": Source(
        "survey_opinions",
        "shares.jsonl",
        None,
        "15e7d9f067fc854a00cbe1a41393e10abc49acd37a391e12880067fa09f78a09",
        _CC_BY,
        "FiveThirtyEight / Ipsos / SurveyMonkey / WNYC, 2014-2020",
    ),
    "starwars": Source(
        "fivethirtyeight",
        "StarWars.csv",
        f"{_FIVETHIRTYEIGHT}/star-wars-survey/StarWars.csv",
        "8b4ae2a4ce59d124ac98ce5810a22bca5710e1dcd644fb7cb26344811ba3f989",
        _CC_BY,
        "FiveThirtyEight / SurveyMonkey, 2014",
    ),
    "cuisines": Source(
        "fivethirtyeight",
        "food-world-cup-data.csv",
        f"{_FIVETHIRTYEIGHT}/food-world-cup/food-world-cup-data.csv",
        "0ada78c5e93576f50fa84954d1c940292c2211ff9f0cfc0ba5f2d46ac232dd98",
        _CC_BY,
        "FiveThirtyEight / SurveyMonkey, 2014",
    ),
    "ukp_humour_items": Source(
        "ukp_humour",
        "items.jsonl",
        None,
        "e8d1f6a93bd10495fbc60da5f518ae7e95aa3409a8cc1100d498c69fd7c7f29b",
        _CC_BY,
        _HUMOUR,
    ),
    "ukp_humour_pairs": Source(
        "ukp_humour",
        "pairs.csv",
        None,
        "da94f102e30f487dc1d5c390c1fc5d166b8d2f43b4f071bd775d3903336ed162",
        _CC_BY,
        _HUMOUR,
    ),
    "newyorker_captions": Source(
        "newyorker_captions",
        "captions.jsonl",
        None,
        "390f6cf28f58e2e49dc4a071fbffa9d197281947462e3ce454333e9a9c1852e7",
        _CC_BY,
        _CAPTIONS,
    ),
    "newyorker_contests": Source(
        "newyorker_captions",
        "contests.json",
        None,
        "0c07618a8a7e7b9c25e88ff5844cca2af2a67fc624d12803ad6b3c24ca5bf990",
        _CC_BY,
        _CAPTIONS,
    ),
    "ukp_convarg_topics": Source(
        "ukp_convarg",
        "topics.jsonl",
        None,
        "b34f9b38980956680ee8385df4a603bc9dd8559cf53de9c40a496c97a43a4345",
        _CC_BY,
        _CONVARG,
    ),
    "ukp_convarg_arguments": Source(
        "ukp_convarg",
        "arguments.jsonl",
        None,
        "f092f01f85225121a7c98967c90b3481888f1f24b6c7f8ce8ab2a65397c3e046",
        _CC_BY,
        _CONVARG,
    ),
    "ukp_convarg_pairs": Source(
        "ukp_convarg",
        "pairs.jsonl",
        None,
        "2f1c0d7e043ebb1df997af52f107cd310129f66989cc6205a353b6e509cbecd5",
        _CC_BY,
        _CONVARG,
    ),
    "stories260k_config": Source(
        "stories260k",
        "config.json",
        None,
        "056f747b7b70c856e9073020e13fa27fbf60f836ca40ac13ec5d4f3b94e764f1",
        "MIT",
        _STORIES,
    ),
    "stories260k_generation_config": Source(
        "stories260k",
        "generation_config.json",
        None,
        "87a6890590029ee05464fb65dcacda0d9c04914d7eef64c7158d076478f4ba13",
        "MIT",
        _STORIES,
    ),
    "stories260k_weights": Source(
        "stories260k",
        "model.safetensors",
        None,
        "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd",
        "MIT",
        _STORIES,
    ),
    "stories260k_tokenizer": Source(
        "stories260k",
        "tokenizer.json",
        None,
        "d9bbb431a9cdb30aa643ed6afb4fc7e5c747a009b973e1cad334478358c0089a",
        "MIT",
        _STORIES,
    ),
    "stories260k_tokenizer_config": Source(
        "stories260k",
        "tokenizer_config.json",
        None,
        "80b4d1aaf130a89df3b5246cb7ebdac146c4bef26ae6384af2e3a575732cd2da",
        "MIT",
        _STORIES,
    ),
}


def locate(name: str, data_dir: str | Path | None = None) -> Path:
    """Returns the path of a verified file, downloaded if it is nowhere on this machine.

    Args:
      name: A key of `SOURCES`.
      data_dir: The folder to look in first; None or empty for none.

    Returns:
      The path of a file whose sha256 is the published one.

    Raises:
      DataError: if the name is unknown, the data folder does not exist, or the file is damaged, or
        is not on this machine and cannot be downloaded.
    """
    source = _source(name)
    found = find(name, data_dir)
    if found is not None:
        return found
    if source.url is None:
        searched = ", ".join(str(folder) for folder in _folders(data_dir))
        raise DataError(
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
    """Returns the folder of a pretrained model that a flag names.

    Args:
      name: a folder or a name on the hub; "stories260k" is the folder of that name in the data
        folder, unless there is one here.
      data_dir: the data folder; None = that which SHATTER_DATA_DIR names.

    Returns:
      The folder, or the name on the hub as it is.

    Raises:
      UsageError: if it is "stories260k" and the data folder lacks a file of it.
    """
    if name != "stories260k" or Path(name).exists():
        return name
    files = ("config", "generation_config", "tokenizer", "tokenizer_config", "weights")
    try:
        config, *_ = [locate(f"stories260k_{file}", data_dir) for file in files]
    except DataError as error:
        raise UsageError(f"--model_name_or_path={name}: {error}") from error
    return str(config.parent)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise DataError(f"unknown data file {name!r}; known: {', '.join(sorted(SOURCES))}")
    return SOURCES[name]


def _folders(data_dir: str | Path | None) -> Iterator[Path]:
    """Yields the folders to search, in order; raises an error if one that is named is missing."""
    named = {"data_dir": data_dir, DATA_DIR_VARIABLE: os.environ.get(DATA_DIR_VARIABLE)}
    for origin, value in named.items():
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise DataError(f"the data folder {str(folder)!r} (from {origin}) does not exist")
            yield folder
    yield cache_dir()


def _advice(source: Source) -> str:
    where = f"Download {source.url} and put" if source.url else "Put"
    return (
        f"{where} it into a folder FOLDER, as FOLDER/{source.folder}/{source.filename} or "
        f"FOLDER/{source.filename}, and pass --data_dir=FOLDER or set {DATA_DIR_VARIABLE}=FOLDER."
    )


def _verify(path: Path, source: Source) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source.sha256:
        raise DataError(
            f"{path} is damaged or another version: expected sha256 {source.sha256}, "
            f"found {found}. Delete it to have it fetched again, or put the published file there."
        )


def _download(source: Source, target: Path) -> Path:
    """Downloads `source` to `target`, which appears only when it is complete and verified."""
    assert source.url is not None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(source.url, timeout=DOWNLOAD_TIMEOUT) as response:
            content = response.read()
        found = hashlib.sha256(content).hexdigest()
        if found != source.sha256:
            raise DataError(
                f"{source.url} gave another file than {source.filename} as published: expected "
                f"sha256 {source.sha256}, found {found}. Nothing was saved to {target}."
            )
        with replacing(target) as file:
            file.write(content)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{source.filename} is not on this machine and could not be downloaded to {target} "
            f"({error}). {_advice(source)}"
        ) from error
    return target
