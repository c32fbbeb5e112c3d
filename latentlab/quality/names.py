"""How networks that judge images are called in names of values; read without torch."""

import re


def plain_name(judge: str) -> str:
    """Return the name of a judge as a part of names of values and columns: ``efficientnet_lite0``."""
    return re.sub(r"[^0-9A-Za-z]+", "_", judge).strip("_").lower()
