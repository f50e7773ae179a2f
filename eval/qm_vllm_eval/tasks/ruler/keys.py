"""Keys and values of RULER's needles: two words with a hyphen, numbers and UUIDs.

RULER joins a random adjective and a random noun; the lists here are the project's own. Each split
has its own half of both.
"""

from __future__ import annotations

import random
import uuid

from qm_vllm_eval.tasks import vocabulary

_ADJECTIVES = """
able amber ancient angry ashen autumnal bashful bitter blue bold brass brave brief bright brisk
broad bronze bulky busy calm careful cheerful chilly clean clever cloudy clumsy cold common cool
crimson crisp curious curly damp dark deep dense distant dizzy double dry dusty eager early easy
elegant empty equal faint fair famous fancy feeble fertile fierce fine firm flat fluffy foggy
fragile fresh friendly frosty frozen gentle giant glad gloomy golden graceful grand grateful green
grumpy happy hard harsh hasty heavy hidden hollow honest huge humble hungry icy idle jolly keen
kind large lazy lean light lively lonely long loose loud loyal lucky mellow merry mighty mild
modest muddy narrow neat nervous noble noisy odd old orange pale patient plain polite proud pure
purple quick quiet rapid rare red rough round rusty salty scarlet sharp shiny short shy silent
simple slim slow smooth soft solid sour spicy steady steep stormy strange sturdy sunny sweet
swift tall tame tender thick thin tidy tiny tough vast warm weary white wide wild wise yellow young
"""


def words(rng: random.Random, split: str, count: int) -> list[str]:
    """``count`` different keys such as "amber-lantern".

    About 9,000 have two words; if more are asked for, the others have another adjective in front.
    """
    adjectives = _ADJECTIVES.split()[0 if split == "tune" else 1 :: 2]
    pairs = [f"{one}-{two}" for one in adjectives for two in vocabulary.nouns(split)]
    rng.shuffle(pairs)
    longer = (f"{one}-{pair}" for one in adjectives for pair in pairs)
    return pairs[:count] + [next(longer) for _ in range(count - len(pairs))]


def numbers(rng: random.Random, count: int) -> list[str]:
    """``count`` different numbers of seven digits."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[vocabulary.digits(rng)] = None
    return list(found)


def uuids(rng: random.Random, count: int) -> list[str]:
    """``count`` random UUIDs of version 4, in lower case with hyphens."""
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]
