"""Whether two words are forms of one: dog and dogs, ride and riding, sit and sat.

Captions speak in the present participle ("a man riding a horse"), stories in the past ("he rode"). A share of the
caption's words that a story takes up means little unless these count as the same. The rules are a handful of English
endings and a table of the irregular words that captions use; a wrong match ("cater" and "cat") costs little here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_IRREGULAR = {
    form: forms.split()[0]
    for forms in (
        "man men, woman women, child children, foot feet, tooth teeth, goose geese, mouse mice, wolf wolves, "
        "leaf leaves, knife knives, wife wives, shelf shelves, person people, sky skies, "
        "ride rode ridden, sit sat, stand stood, run ran, swim swam swum, fly flew flown, hold held, wear wore worn, "
        "eat ate eaten, drink drank drunk, throw threw thrown, catch caught, sleep slept, lie lay lain lying, "
        "tie tied tying, die died dying, fall fell fallen, drive drove driven, blow blew blown, sing sang sung, "
        "swing swung, leap leapt, bite bit bitten, dig dug, hang hung, fight fought, rise rose risen, "
        "shake shook shaken, shine shone, shoot shot, speak spoke spoken, spring sprang sprung, steal stole stolen, "
        "strike struck, sweep swept, teach taught, wake woke woken, win won, write wrote written, draw drew drawn, "
        "grow grew grown, hide hid hidden, buy bought, build built, bring brought, feed fed, find found, lead led, "
        "leave left, lose lost, meet met, pay paid, sell sold, send sent, spend spent, think thought, "
        "break broke broken, choose chose chosen, begin began begun, bend bent, creep crept, feel felt, "
        "freeze froze frozen, kneel knelt, light lit, slide slid, spin spun, stick stuck, tear tore torn, wind wound"
    ).split(", ")
    for form in forms.split()
}
_VOWELS = set("aeiouy")


def base_form(word: str) -> str:
    """A key that the inflected forms of one word share: lower-case, without ending. Not always a word itself."""
    word = word.lower()
    if word in _IRREGULAR:
        return _stem(_IRREGULAR[word])
    return _stem(word)


def _stem(word: str) -> str:
    for ending in ("'s", "'", "ing", "ed", "es", "s"):
        rest = word[: -len(ending)]
        if not word.endswith(ending) or len(rest) < 3 or not _VOWELS & set(rest):
            continue
        if ending == "s" and rest[-1] in "su":  # glass, bus
            continue
        if ending in ("ing", "ed") and rest in _IRREGULAR:
            rest = _IRREGULAR[rest]
        word = rest
        break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lse":  # runn(ing), but not fall, grass, tree
        word = word[:-1]
    if len(word) > 3 and word[-1] == "e":
        word = word[:-1]
    # carry and carri(ed); but a sky is no ski
    return word[:-1] + "i" if len(word) > 2 and word[-1] == "y" and word[-2] not in _VOWELS | {"k"} else word


def taken_up(wanted: Iterable[str], words: Collection[str]) -> list[str]:
    """Those of `wanted` of which some form stands among `words`, in their order."""
    present = {base_form(word) for word in words}
    return [word for word in wanted if base_form(word) in present]
