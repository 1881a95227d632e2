"""Skills as programs of (action, object, target) over an explicit state.

A step names the effects it has; running a skill from a state skips the steps whose effects are already there, so the
plan fits the picture. `unseen` skills put known actions and objects together in ways no trained skill does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from .world import KINDS, State, say

ACTIONS = ("place", "pour", "cut", "stir", "crack", "spread", "open", "close", "light", "fold", "screw", "press")
Effects = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Step:
    """`action` with the tool or thing `obj` upon `target`; `uses_up` takes `obj` off the table, `beside` must stand there too."""

    action: str
    obj: str
    target: str
    effects: Effects
    texts: tuple[str, ...]
    uses_up: bool = False
    optional: bool = False
    beside: str = ""


@dataclass(frozen=True)
class Skill:
    """`free` lists pairs of neighbouring steps (numbers from 0) that may change places; `start` presets the state."""

    name: str
    goals: tuple[str, ...]
    steps: tuple[Step, ...]
    start: Effects = ()
    free: tuple[tuple[int, int], ...] = ()
    unseen: bool = False

    @property
    def cast(self) -> tuple[str, ...]:
        names = dict.fromkeys(n for s in self.steps for n in (s.target, s.obj, s.beside) if n)
        return tuple(names)


def _s(action: str, obj: str, target: str, effects: str, texts: str, *, uses_up: bool = False, optional: bool = False, beside: str = "") -> Step:
    """Effects as 'object.attribute=value, ...', texts separated by '|'."""

    def parse(line: str) -> Effects:
        facts = []
        for part in filter(None, (p.strip() for p in line.split(","))):
            place, value = part.split("=")
            name, attribute = place.rsplit(".", 1)
            if value not in KINDS[name].attributes[attribute]:
                raise ValueError(f"{part}: {name}.{attribute} is one of {KINDS[name].attributes[attribute]}")
            facts.append((name, attribute, value))
        return tuple(facts)

    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r}, known are {ACTIONS}")
    return Step(action, obj, target, parse(effects), tuple(t.strip() for t in texts.split("|")), uses_up, optional, beside)


BOIL = _s("press", "", "kettle", "kettle.on=yes", "press the switch of the kettle|switch on the kettle|turn the kettle on")
BAG = _s("place", "tea", "mug", "mug.in=tea_bag", "put a tea bag into the mug|drop a tea bag in the mug|place a tea bag in the mug")
BREW = _s("pour", "kettle", "mug", "mug.in=tea", "pour hot water over the tea bag|pour hot water from the kettle onto the tea bag|fill the mug with hot water to brew tea")
MILK_DRINK = _s("pour", "milk", "mug", "mug.in=milky", "pour milk into the hot drink|add milk to the drink in the mug|pour a little milk into the drink", optional=True)
COFFEE = _s("place", "coffee", "mug", "mug.in=coffee_powder", "put coffee powder into the mug|add ground coffee to the mug|drop coffee powder in the mug")
COFFEE_BREW = _s("pour", "kettle", "mug", "mug.in=coffee", "pour hot water over the coffee powder|pour hot water from the kettle onto the coffee|fill the mug with hot water to brew coffee")
COCOA = _s("place", "cocoa", "mug", "mug.in=cocoa_powder", "put cocoa powder into the mug|add cocoa to the mug|drop cocoa powder in the mug")
COCOA_MILK = _s("pour", "milk", "mug", "mug.in=milk", "pour milk over the cocoa powder|pour milk from the carton onto the cocoa|fill the mug with milk")
COCOA_STIR = _s("stir", "spoon", "mug", "mug.in=cocoa", "stir the cocoa and milk with the spoon|mix the cocoa with a spoon|stir until it is cocoa")
LOAD = _s("place", "bread", "toaster", "toaster.slot=bread, bread.toast=away", "put the bread into the toaster|place the slice of bread in the toaster|drop the bread in the toaster")
TOASTING = _s("press", "", "toaster", "toaster.slot=toast", "press the lever of the toaster|push the lever of the toaster down|start the toaster")
UNLOAD = _s("place", "toaster", "bread", "toaster.slot=empty, bread.toast=toasted", "take the toast out of the toaster|lift the toast onto the plate|put the toast on the plate")
BUTTER = _s("spread", "knife", "bread", "bread.top=butter", "spread butter on the bread|butter the bread with the knife|spread the butter over the slice", beside="butter")
OPEN_JAM = _s("open", "", "jam", "jam.lid=off", "open the jar of jam|take the lid off the jam|unscrew the lid of the jam jar")
JAM = _s("spread", "knife", "bread", "bread.top=jam", "spread jam on the bread|cover the bread with jam|spread the jam over the slice")
OIL = _s("pour", "oil", "pan", "pan.in=oil", "pour oil into the pan|pour a little oil in the pan|oil the pan")
CRACK_PAN = _s("crack", "egg", "pan", "pan.in=egg", "crack the egg into the pan|break the egg into the pan|crack an egg over the pan", uses_up=True)
CRACK_BOWL = _s("crack", "egg", "bowl", "bowl.in=egg", "crack the egg into the bowl|break the egg into the bowl|crack an egg over the bowl", uses_up=True)
MILK_BOWL = _s("pour", "milk", "bowl", "bowl.in=milk_egg", "pour milk onto the egg in the bowl|add milk to the egg|pour milk over the egg")
BEAT = _s("stir", "spoon", "bowl", "bowl.in=batter", "stir the egg and milk with the spoon|beat the egg with the spoon|mix the batter with a spoon")
OMELETTE = _s("pour", "bowl", "pan", "pan.in=omelette, bowl.in=empty", "pour the batter into the pan|pour the mix from the bowl into the pan|tip the batter in the pan")
CUT_CARROT = _s("cut", "knife", "carrot", "carrot.cut=sliced", "cut the carrot into slices|slice the carrot with the knife|chop the carrot")
CUT_TOMATO = _s("cut", "knife", "tomato", "tomato.cut=sliced", "cut the tomato into slices|slice the tomato with the knife|chop the tomato")
CUT_LEMON = _s("cut", "knife", "lemon", "lemon.cut=sliced", "cut the lemon into slices|slice the lemon with the knife|chop the lemon")
CARROT_PAN = _s("place", "carrot", "pan", "pan.in=carrot", "put the carrot slices into the pan|tip the carrot into the pan|add the carrot to the pan", uses_up=True)
CARROT_BOWL = _s("place", "carrot", "bowl", "bowl.in=carrot", "put the carrot slices into the bowl|tip the carrot into the bowl|add the carrot to the bowl", uses_up=True)
TOMATO_PAN = _s("place", "tomato", "pan", "pan.in=tomato", "put the tomato slices into the pan|tip the tomato into the pan|add the tomato to the pan", uses_up=True)
TOMATO_BOWL = _s("place", "tomato", "bowl", "bowl.in=tomato", "put the tomato slices into the bowl|tip the tomato into the bowl|add the tomato to the bowl", uses_up=True)
SALAD = _s("place", "tomato", "bowl", "bowl.in=salad", "put the tomato slices on the carrot|add the tomato to the carrot in the bowl|tip the tomato onto the carrot", uses_up=True)
LEMON_GLASS = _s("place", "lemon", "glass", "glass.lemon=yes", "put a slice of lemon on the glass|place a lemon slice on the rim of the glass|hang a slice of lemon on the glass")
WATER_GLASS = _s("pour", "jug", "glass", "glass.in=water", "pour water into the glass|fill the glass with water|pour water from the jug into the glass")
JUICE_GLASS = _s("pour", "juice", "glass", "glass.in=juice", "pour juice into the glass|fill the glass with juice|pour orange juice into the glass")
MILK_GLASS = _s("pour", "milk", "glass", "glass.in=milk", "pour milk into the glass|fill the glass with milk|pour milk from the carton into the glass")
CREAM = _s("spread", "cream", "cake", "cake.top=cream", "spread cream on the cake|cover the cake with cream|squeeze cream over the cake")
JAM_CAKE = _s("spread", "knife", "cake", "cake.top=jam", "spread jam on the cake|cover the cake with jam|spread the jam over the cake")
CANDLE_CAKE = _s("place", "candle", "cake", "cake.candle=unlit", "put a candle on the cake|place the candle on the cake|stick a candle into the cake", uses_up=True)
LIGHT_CAKE = _s("light", "lighter", "cake", "cake.candle=lit", "light the candle on the cake|light the cake's candle with the lighter|set the candle on the cake alight")
CUT_CAKE = _s("cut", "knife", "cake", "cake.cut=sliced", "cut the cake|cut a piece of cake with the knife|slice the cake")
SOIL = _s("pour", "soil", "pot", "pot.in=soil", "pour soil into the pot|fill the pot with soil|tip soil into the plant pot")
SEED = _s("place", "seeds", "pot", "pot.in=seed", "put seeds on the soil|sow the seeds in the pot|drop seeds into the pot")
SPROUT = _s("pour", "watering can", "pot", "pot.in=sprout", "water the seeds|pour water on the seeds|water the seeds with the watering can")
REVIVE = _s("pour", "watering can", "pot", "pot.in=fresh", "water the wilted plant|pour water on the plant|water the plant with the watering can")
LIGHT = _s("light", "lighter", "candle", "candle.lit=yes", "light the candle|light the candle with the lighter|set the candle alight")
FOLD_HALF = _s("fold", "", "paper", "paper.fold=half", "fold the paper in half|fold the sheet of paper|fold the sheet down the middle")
FOLD_PLANE = _s("fold", "", "paper", "paper.fold=plane", "fold the paper into a plane|fold the wings of the paper plane|fold the paper again into a plane")
LETTER = _s("place", "paper", "envelope", "envelope.letter=yes", "put the letter into the envelope|slide the paper into the envelope|place the folded paper in the envelope", uses_up=True)
SEAL = _s("close", "", "envelope", "envelope.flap=closed", "close the envelope|seal the envelope|press down the flap of the envelope")
STAMP = _s("place", "stamp", "envelope", "envelope.stamp=yes", "put a stamp on the envelope|stick the stamp on the envelope|place the stamp on the envelope", uses_up=True)
CUT_HEART = _s("cut", "scissors", "red paper", "red paper.cut=heart", "cut a heart out of the red paper|cut the red paper with the scissors|cut out a paper heart")
GLUE = _s("spread", "glue", "card", "card.front=glue", "spread glue on the card|put glue on the card|squeeze glue over the card")
HEART_CARD = _s("place", "red paper", "card", "card.front=heart", "put the heart on the card|stick the paper heart on the card|place the red heart on the card", uses_up=True)
SCREW_IN = _s("place", "screw", "plank", "plank.screw=loose", "put the screw into the plank|place the screw in the hole|stand the screw in the plank", uses_up=True)
SCREW_TIGHT = _s("screw", "screwdriver", "plank", "plank.screw=tight", "screw the screw into the plank|tighten the screw with the screwdriver|turn the screw tight")
BULB = _s("screw", "bulb", "lamp", "lamp.bulb=yes", "screw the bulb into the lamp|turn the bulb into the lamp|screw in the light bulb", uses_up=True)
LAMP = _s("press", "", "lamp", "lamp.on=yes", "press the switch of the lamp|switch on the lamp|turn the lamp on")
TOY = _s("place", "toy", "gift", "gift.toy=yes", "put the toy bear into the gift box|place the bear in the box|set the bear into the gift box", uses_up=True)
LID = _s("close", "", "gift", "gift.lid=closed", "close the gift box|put the lid on the gift box|close the lid of the box")
RIBBON = _s("place", "ribbon", "gift", "gift.ribbon=yes", "put the ribbon round the gift box|tie the ribbon on the box|place a ribbon on the gift box")


def _optional(step: Step) -> Step:
    return replace(step, optional=True)


def _skill(name: str, goals: str, *steps: Step, start: Effects = (), free: tuple[tuple[int, int], ...] = (), unseen: bool = False) -> Skill:
    return Skill(name, tuple(g.strip() for g in goals.split("|")), steps, start, free, unseen)


_WILTED: Effects = (("pot", "in", "wilted"),)

SKILLS: tuple[Skill, ...] = (
    _skill("tea", "make a cup of tea|brew tea in a mug|prepare a hot tea", BOIL, BAG, BREW, MILK_DRINK, free=((0, 1),)),
    _skill("coffee", "make a cup of coffee|brew coffee in a mug|prepare a hot coffee", BOIL, COFFEE, COFFEE_BREW, MILK_DRINK, free=((0, 1),)),
    _skill("cocoa", "make a cup of cocoa|prepare cocoa with milk|mix a mug of cocoa", COCOA, COCOA_MILK, COCOA_STIR),
    _skill("toast", "make buttered toast|toast a slice of bread with butter|prepare toast and butter", LOAD, TOASTING, UNLOAD, BUTTER),
    _skill("jam toast", "make toast with jam|toast bread and put jam on it|prepare a jam toast", LOAD, TOASTING, UNLOAD, OPEN_JAM, JAM),
    _skill("jam bread", "make a bread with butter and jam|prepare a jam sandwich|spread bread with butter and jam", BUTTER, OPEN_JAM, JAM, free=((0, 1),)),
    _skill("fried egg", "fry an egg|make a fried egg in the pan|prepare an egg sunny side up", OIL, CRACK_PAN),
    _skill("omelette", "make an omelette|cook an omelette from an egg and milk|prepare an omelette in the pan", CRACK_BOWL, MILK_BOWL, BEAT, OMELETTE),
    _skill("carrots", "fry carrots|cook carrot slices in the pan|prepare carrots in a pan", OIL, CUT_CARROT, CARROT_PAN, free=((0, 1),)),
    _skill("carrot bowl", "prepare a bowl of carrots|serve carrot slices in a bowl|make a carrot snack", CUT_CARROT, CARROT_BOWL),
    _skill("salad", "make a carrot and tomato salad|prepare a salad in the bowl|toss carrot and tomato together", CUT_CARROT, CARROT_BOWL, CUT_TOMATO, SALAD, free=((1, 2),)),
    _skill("fried tomato", "fry a tomato|cook tomato slices in the pan|prepare a tomato in a pan", CUT_TOMATO, OIL, TOMATO_PAN, free=((0, 1),)),
    _skill("lemon water", "make lemon water|serve water with lemon|prepare a glass of lemon water", CUT_LEMON, WATER_GLASS, LEMON_GLASS, free=((0, 1),)),
    _skill("juice", "pour a glass of juice with lemon|serve orange juice with lemon|prepare juice with a lemon slice", JUICE_GLASS, CUT_LEMON, LEMON_GLASS, free=((0, 1),)),
    _skill("birthday cake", "decorate a birthday cake|prepare a cake with cream and a candle|get the birthday cake ready", CREAM, CANDLE_CAKE, LIGHT_CAKE, free=((0, 1),)),
    _skill("jam cake", "make a jam cake|serve a cake with jam|spread a cake with jam and cut it", OPEN_JAM, JAM_CAKE, CUT_CAKE),
    _skill("sow", "plant seeds in a pot|sow flower seeds|grow a plant from seeds", SOIL, SEED, SPROUT),
    _skill("water plant", "water a plant and light a candle|save the wilted plant by candle light|care for the plant in the evening", REVIVE, LIGHT, start=_WILTED, free=((0, 1),)),
    _skill("letter", "send a letter|prepare a letter for the post|put a letter in an envelope", FOLD_HALF, LETTER, SEAL, _optional(STAMP)),
    _skill("plane", "fold a paper plane|make a plane out of paper|build a paper airplane", FOLD_HALF, FOLD_PLANE),
    _skill("heart card", "make a card with a heart|glue a paper heart on a card|craft a valentine card", CUT_HEART, GLUE, HEART_CARD, free=((0, 1),)),
    _skill("screw", "fix a screw in the plank|screw into a plank|fasten a screw in wood", SCREW_IN, SCREW_TIGHT),
    _skill("lamp", "change the bulb of the lamp|get the lamp to work|fit a new light bulb", BULB, LAMP),
    _skill("gift", "wrap a gift|pack a toy bear as a present|prepare a gift box", TOY, LID, _optional(RIBBON)),
    _skill("candle", "light a candle and the lamp|make cosy light|brighten the room with candle and lamp", LIGHT, BULB, LAMP, free=((0, 1),)),
    # compositions that no skill above has
    _skill("butter jam toast", "make toast with butter and jam|prepare a toast with jam over butter|toast bread for butter and jam", LOAD, TOASTING, UNLOAD, BUTTER, OPEN_JAM, JAM, unseen=True),
    _skill("tomato bowl", "prepare a bowl of tomatoes|serve tomato slices in a bowl|make a tomato snack", CUT_TOMATO, TOMATO_BOWL, unseen=True),
    _skill("milk glass", "serve a glass of milk with bread and butter|prepare milk and buttered bread|make a bedtime snack", MILK_GLASS, BUTTER, unseen=True),
    _skill("party cake", "serve a cake by candle light|cut the cream cake by candle light|get the cake and a candle ready", CREAM, LIGHT, CUT_CAKE, free=((0, 1),), unseen=True),
    _skill("love letter", "send a card with a heart in the evening|craft a heart card by lamp light|glue a heart on a card under the lamp", LAMP, CUT_HEART, GLUE, HEART_CARD, start=(("lamp", "bulb", "yes"),), unseen=True),
    _skill("breakfast", "make breakfast with egg and juice|fry an egg and pour juice|prepare an egg breakfast", JUICE_GLASS, OIL, CRACK_PAN, free=((0, 1),), unseen=True),
    _skill("garden tea", "water the plant and make tea|have tea with the plant|prepare tea and save the plant", REVIVE, BOIL, BAG, BREW, start=_WILTED, unseen=True),
    _skill("gift letter", "wrap a gift and stamp the letter|pack a present with a letter|prepare a gift and a letter", TOY, LID, SEAL, STAMP, start=(("envelope", "letter", "yes"),), unseen=True),
)

BY_NAME: dict[str, Skill] = {skill.name: skill for skill in SKILLS}


def holds(state: State, facts: Effects) -> bool:
    return all(state.get(name, {}).get(attribute) == value for name, attribute, value in facts)


def apply(state: State, step: Step) -> State:
    """The state after the step; the given one is left as it is."""
    after = {name: dict(values) for name, values in state.items()}
    for name, attribute, value in step.effects:
        after[name][attribute] = value
    if step.uses_up:
        after.pop(step.obj, None)
    return after


@dataclass(frozen=True)
class Run:
    """One way through a skill: the state before each of the `steps`, and after the last."""

    skill: Skill
    goal: str
    steps: tuple[Step, ...]
    texts: tuple[str, ...]
    states: tuple[State, ...]


def unfold(skill: Skill, random: Random, *, skip: int | None = None) -> Run:
    """Draw a variant of the skill: order, optional steps, and how many first steps are already done (`skip`)."""
    steps = list(skill.steps)
    for a, b in skill.free:
        if random.random() < 0.5:
            steps[a], steps[b] = steps[b], steps[a]
    steps = [s for s in steps if not s.optional or random.random() < 0.6]
    state: State = {n: {a: values[0] for a, values in KINDS[n].attributes.items()} for n in skill.cast}
    for name, attribute, value in skill.start:
        state[name][attribute] = value
    if skip is None:
        skip = random.choice((0, 0, 0, 1)) if len(steps) > 2 else 0
    for step in steps[:skip]:
        state = apply(state, step)
    steps = [s for s in steps[skip:] if not holds(state, s.effects)]
    states = [state]
    for step in steps:
        states.append(apply(states[-1], step))
    texts = tuple(random.choice(step.texts) for step in steps)
    return Run(skill, random.choice(skill.goals), tuple(steps), texts, tuple(states))


def sentence(before: State, step: Step, after: State) -> tuple[str, str]:
    """What the step changes, in words: (before, after)."""
    changed = [(n, a) for n, a, _ in step.effects]
    return _join([say(n, a, before[n][a]) for n, a in changed]), _join([say(n, a, after[n][a]) for n, a in changed])


def _join(clauses: list[str]) -> str:
    text = " and ".join(clauses)
    return text[0].upper() + text[1:] + "."


def all_texts() -> list[str]:
    """Every sentence this world can say: goals, step texts, states; for tokenizers and tests."""
    texts = [t for skill in SKILLS for t in (*skill.goals, *(t for s in skill.steps for t in s.texts))]
    facts = [say(k.name, a, v) for k in KINDS.values() for a, values in k.attributes.items() for v in values]
    return sorted(set(texts) | set(facts))
