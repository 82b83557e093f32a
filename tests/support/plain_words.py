"""Find words of libraries in what people read."""

import re
from typing import Final

# What pydantic, pymongo and Python call things. They do not say what is wrong or what to do.
FOREIGN: Final = (
    r"errors\.pydantic\.dev",
    r"\d+ validation errors? for",
    r"Input should|unable to parse|Value error,",
    r"TopologyDescription",
    r"full error",
    r"<(list|str|bool|int|float|path)\b",
)
_TRACEBACK: Final = "Traceback"


def find_foreign_words(text: str, *, traceback: bool = True) -> list[str]:
    """Return the foreign words in a text; ``traceback`` counts a traceback as one."""
    patterns = (*FOREIGN, _TRACEBACK) if traceback else FOREIGN
    return [found[0] for pattern in patterns if (found := re.search(pattern, text))]
