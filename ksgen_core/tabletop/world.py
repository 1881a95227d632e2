"""The things on the table: what each is called, which attributes it has and which values they take."""

from __future__ import annotations

from dataclasses import dataclass, field

State = dict[str, dict[str, str]]
"""`state[object][attribute]` is a value of that attribute; an object that is not on the table is not in the state."""


@dataclass(frozen=True)
class Kind:
    """One kind of object. The first value of an attribute is where it starts; `says` puts values into words."""

    name: str
    says: str
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    coloured: bool = False
    shapes: int = 1
    height: float = 30.0


_YES_NO = ("no", "yes")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("kettle", "kettle", {"on": _YES_NO}, True, 2, 40),
        Kind("mug", "mug", {"in": ("empty", "tea_bag", "coffee_powder", "cocoa_powder", "tea", "coffee", "cocoa", "milk", "milky")}, True, 2, 28),
        Kind("tea", "box of tea bags", height=28),
        Kind("coffee", "tin of coffee", height=30),
        Kind("cocoa", "tin of cocoa", height=30),
        Kind("milk", "milk carton", height=40),
        Kind("spoon", "spoon", height=34),
        Kind("toaster", "toaster", {"slot": ("empty", "bread", "toast")}, True, 2, 30),
        Kind("bread", "slice of bread", {"toast": ("plain", "toasted", "away"), "top": ("none", "butter", "jam")}, height=20),
        Kind("butter", "butter", coloured=True, height=18),
        Kind("jam", "jar of jam", {"lid": ("on", "off")}, True, 1, 34),
        Kind("knife", "knife", height=34),
        Kind("carrot", "carrot", {"cut": ("whole", "sliced")}, height=16),
        Kind("tomato", "tomato", {"cut": ("whole", "sliced")}, height=22),
        Kind("lemon", "lemon", {"cut": ("whole", "sliced")}, height=20),
        Kind("pan", "pan", {"in": ("empty", "oil", "egg", "omelette", "carrot", "tomato")}, True, 1, 16),
        Kind("oil", "bottle of oil", height=42),
        Kind("egg", "egg", shapes=2, height=24),
        Kind("bowl", "bowl", {"in": ("empty", "egg", "milk_egg", "batter", "milk", "carrot", "tomato", "salad")}, True, 2, 24),
        Kind("glass", "glass", {"in": ("empty", "water", "juice", "milk"), "lemon": _YES_NO}, False, 2, 38),
        Kind("juice", "bottle of juice", height=40),
        Kind("jug", "jug of water", height=34),
        Kind("cake", "cake", {"top": ("plain", "cream", "jam"), "candle": ("none", "unlit", "lit"), "cut": ("whole", "sliced")}, height=26),
        Kind("cream", "bag of cream", coloured=True, height=42),
        Kind("pot", "plant pot", {"in": ("empty", "soil", "seed", "sprout", "wilted", "fresh")}, True, 2, 28),
        Kind("soil", "bag of soil", height=34),
        Kind("seeds", "packet of seeds", height=28),
        Kind("watering can", "watering can", {}, True, 2, 36),
        Kind("candle", "candle", {"lit": _YES_NO}, True, 2, 36),
        Kind("lighter", "lighter", height=28),
        Kind("paper", "sheet of paper", {"fold": ("flat", "half", "plane")}, True, 1, 20),
        Kind("scissors", "scissors", height=30),
        Kind("red paper", "red paper", {"cut": ("whole", "heart")}, height=18),
        Kind("card", "card", {"front": ("blank", "glue", "heart")}, True, 1, 24),
        Kind("glue", "glue", height=38),
        Kind("envelope", "envelope", {"flap": ("open", "closed"), "letter": _YES_NO, "stamp": _YES_NO}, True, 1, 30),
        Kind("stamp", "stamp", height=14),
        Kind("plank", "plank", {"screw": ("none", "loose", "tight")}, height=20),
        Kind("screw", "screw", height=22),
        Kind("screwdriver", "screwdriver", height=40),
        Kind("lamp", "lamp", {"bulb": _YES_NO, "on": _YES_NO}, True, 1, 48),
        Kind("bulb", "light bulb", height=26),
        Kind("gift", "gift box", {"lid": ("open", "closed"), "toy": _YES_NO, "ribbon": _YES_NO}, True, 1, 34),
        Kind("toy", "toy bear", height=30),
        Kind("ribbon", "roll of ribbon", height=20),
    )
}

_WORDS = {
    ("kettle", "on", "yes"): "the kettle is on and steaming",
    ("kettle", "on", "no"): "the kettle is off",
    ("mug", "in", "tea_bag"): "a tea bag is in the mug",
    ("mug", "in", "milky"): "the mug holds a milky drink",
    ("toaster", "slot", "bread"): "bread is in the toaster",
    ("toaster", "slot", "toast"): "toast stands in the toaster",
    ("bread", "toast", "toasted"): "the bread is toasted",
    ("bread", "toast", "plain"): "the bread is plain",
    ("bread", "toast", "away"): "the plate is empty",
    ("jam", "lid", "on"): "the jar of jam is closed",
    ("jam", "lid", "off"): "the jar of jam is open",
    ("bowl", "in", "milk_egg"): "egg and milk are in the bowl",
    ("glass", "lemon", "yes"): "a slice of lemon is on the glass",
    ("cake", "candle", "unlit"): "a candle stands on the cake",
    ("cake", "candle", "lit"): "a candle burns on the cake",
    ("pot", "in", "sprout"): "a sprout grows in the pot",
    ("pot", "in", "wilted"): "the plant in the pot is wilted",
    ("pot", "in", "fresh"): "the plant in the pot is in bloom",
    ("candle", "lit", "yes"): "the candle burns",
    ("candle", "lit", "no"): "the candle is not lit",
    ("paper", "fold", "plane"): "the paper is a plane",
    ("paper", "fold", "half"): "the paper is folded in half",
    ("paper", "fold", "flat"): "the paper lies flat",
    ("red paper", "cut", "heart"): "the red paper is a heart",
    ("card", "front", "glue"): "glue is on the card",
    ("card", "front", "heart"): "a heart is on the card",
    ("envelope", "letter", "yes"): "the letter is in the envelope",
    ("envelope", "stamp", "yes"): "a stamp is on the envelope",
    ("plank", "screw", "loose"): "a loose screw stands in the plank",
    ("plank", "screw", "tight"): "the screw in the plank is tight",
    ("lamp", "bulb", "yes"): "the bulb is in the lamp",
    ("lamp", "bulb", "no"): "the lamp has no bulb",
    ("lamp", "on", "yes"): "the lamp is on",
    ("lamp", "on", "no"): "the lamp is off",
    ("gift", "toy", "yes"): "the bear is in the gift box",
    ("gift", "ribbon", "yes"): "a ribbon is round the gift box",
}


def say(name: str, attribute: str, value: str) -> str:
    """One fact of a state as a clause: 'the mug is empty'."""
    if words := _WORDS.get((name, attribute, value)):
        return words
    noun = KINDS[name].says
    if value == "empty":
        return f"the {noun} is empty"
    if value in ("no", "none"):
        return f"there is no {attribute} on the {noun}"
    if attribute in ("in", "top", "front"):
        preposition = "in" if attribute == "in" else "on"
        return f"{value.replace('_', ' ')} is {preposition} the {noun}"
    return f"the {noun} is {value}"


HEADS: tuple[tuple[str, str, tuple[str, ...]], ...] = tuple(
    (kind.name, attribute, values) for kind in KINDS.values() for attribute, values in kind.attributes.items()
)
"""Every (object, attribute, values): what a judge reads off a picture."""
