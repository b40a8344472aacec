"""Models of the learned prior: shipped ones by name, model files by path, import, cards and figures."""

from bigdeconv.models.cards import card, card_text
from bigdeconv.models.figures import draw
from bigdeconv.models.pyxudeconv import import_pyxudeconv
from bigdeconv.models.shipped import DEFAULT, digest, names, outside_training, resolve
from bigdeconv.storage.weights import save

__all__ = [
    "DEFAULT",
    "card",
    "card_text",
    "digest",
    "draw",
    "import_pyxudeconv",
    "names",
    "outside_training",
    "resolve",
    "save",
]
