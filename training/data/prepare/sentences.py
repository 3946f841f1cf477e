"""Sentences for the demo's speakers, from a small grammar of everyday words."""

import numpy as np

_PEOPLE = (
    "the old gardener", "my younger cousin", "a quiet librarian", "our new neighbour", "the night porter",
    "a tired courier", "the village doctor", "her eldest brother", "the ferry captain", "a curious student",
    "the baker's wife", "their music teacher", "a young engineer", "the retired judge", "our tall goalkeeper",
)  # fmt: skip
_ACTIONS = (
    "carried", "repaired", "borrowed", "painted", "measured", "forgot", "photographed", "wrapped", "noticed",
    "polished", "described", "bought", "hid", "cleaned", "delivered", "weighed",
)  # fmt: skip
_QUALITIES = (
    "heavy", "yellow", "broken", "wooden", "narrow", "silver", "dusty", "round", "foreign", "borrowed", "tiny",
    "velvet", "crooked", "purple", "empty", "striped",
)  # fmt: skip
_THINGS = (
    "bicycle", "umbrella", "kettle", "violin", "suitcase", "ladder", "mirror", "lantern", "blanket", "telescope",
    "basket", "clock", "parcel", "drawer", "statue", "carpet", "teapot", "hammer",
)  # fmt: skip
_PLACES = (
    "behind the station", "near the frozen lake", "under the stone bridge", "in front of the museum",
    "at the corner shop", "beside the harbour wall", "across the busy street", "inside the greenhouse",
    "above the bakery", "along the gravel path", "outside the theatre", "on the upper deck",
    "between two tall houses", "by the garden gate",
)  # fmt: skip
_TIMES = (
    "before breakfast", "late on Thursday", "during the storm", "after the concert", "just as the rain stopped",
    "early this morning", "while everyone slept", "at half past seven", "throughout the summer",
    "when the bell rang", "shortly after midnight", "on the way home",
)  # fmt: skip
_WORDS = {
    "who": _PEOPLE,
    "did": _ACTIONS,
    "kind": _QUALITIES,
    "what": _THINGS,
    "where": _PLACES,
    "when": _TIMES,
}
_PATTERNS = (
    "{who} {did} the {kind} {what} {where}",
    "{when}, {who} {did} a {kind} {what}",
    "the {kind} {what} {where} was missing {when}",
    "nobody knew why {who} {did} that {kind} {what}",
    "did {who} leave the {kind} {what} {where}?",
    "{who} found a {kind} {what} and a {kind} {what} {when}",
    "please put the {kind} {what} {where} {when}",
)


def draw_sentences(count: int, rng: np.random.Generator) -> list[str]:
    """Draw sentences of some eight to twelve words, no two the same."""
    sentences: dict[str, None] = {}  # a set that keeps its order
    while len(sentences) < count:
        sentences[_draw_sentence(rng)] = None
    return list(sentences)


def _draw_sentence(rng: np.random.Generator) -> str:
    sentence = str(rng.choice(_PATTERNS))
    for slot, words in _WORDS.items():
        while f"{{{slot}}}" in sentence:
            sentence = sentence.replace(f"{{{slot}}}", str(rng.choice(words)), 1)
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith("?") else ".")
