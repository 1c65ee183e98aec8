"""The gallery: all pictures of the site on one page, each with the page that it is from."""

from collections.abc import Mapping, Sequence
from typing import Any

import cookbook
from optchain import schedules as of

STEPS = 200


def schedules() -> dict[str, tuple[str, Any, int]]:
    """Calls of schedules by their names: the code, what it makes, and over how many steps it is drawn."""
    cycle = of.OneCycleLR(1.0, total_steps=STEPS)
    calls = {
        "WarmupStableDecay": of.WarmupStableDecay(1.0, warmup_steps=20, stable_steps=130, decay_steps=50),
        "CosineDecay": of.CosineDecay(0.0, decay_steps=160, warmup_target=1.0, warmup_steps=40),
        "LinearWarmupDecay": of.LinearWarmupDecay(1.0, warmup_steps=40, total_steps=STEPS),
        "InverseSquareRoot": of.InverseSquareRoot(1.0, warmup_steps=20),
        "PowerDecay": of.PowerDecay(1.0, warmup_steps=20, stable_steps=40, power=0.5),
        "CosineDecayRestarts": of.CosineDecayRestarts(1.0, first_decay_steps=30, m_mul=0.8),
        "ExponentialDecay": of.ExponentialDecay(1.0, decay_steps=50, decay_rate=0.4),
        "InverseTimeDecay": of.InverseTimeDecay(1.0, decay_steps=50, decay_rate=1.0),
        "PolynomialDecay": of.PolynomialDecay(1.0, decay_steps=180, power=2.0),
        "PiecewiseConstantDecay": of.PiecewiseConstantDecay((60, 120), (1.0, 0.5, 0.1)),
        "OneCycleLR": cycle,
        "OneCycleMomentum": of.OneCycleMomentum(cycle),
        "CyclicLR": of.CyclicLR(0.1, 1.0, step_size_up=25, mode="triangular2"),
        "CosineAnnealingLR": of.CosineAnnealingLR(1.0, T_max=100),
        "CosineAnnealingWarmRestarts": of.CosineAnnealingWarmRestarts(1.0, T_0=50),
        "LinearLR": of.LinearLR(1.0, total_iters=120),
        "ConstantLR": of.ConstantLR(1.0, total_iters=60),
        "StepLR": of.StepLR(1.0, step_size=50, gamma=0.5),
        "MultiStepLR": of.MultiStepLR(1.0, (80, 150), gamma=0.3),
        "ExponentialLR": of.ExponentialLR(1.0, 0.985),
        "PolynomialLR": of.PolynomialLR(1.0, total_iters=180, power=2.0),
    }
    return {name: (repr(made), made, STEPS) for name, made in calls.items()}


def page(shown: Mapping[str, Sequence[str]]) -> str:
    """The page, of the transformations that have a picture, by their groups."""
    parts = [
        "---\nhide: [navigation]\n---\n\n# Gallery\n\nEach picture leads to the page that it is from.",
        "## Cookbook\n\nWhat came out of a program that runs in seconds.",
        _cards(
            (
                f"cookbook/{name}.svg",
                cookbook.ALT[name],
                cookbook.title(name),
                f"cookbook/{name.replace('_', '-')}.md",
            )
            for name in cookbook.drawn()
        ),
        "## Schedules\n\nTwo hundred steps of each.",
        schedule_cards(""),
        "## Recipes side by side\n\nCurves of a race of recipes, and how far each is from the first.",
        _cards([("race.svg", "the held-out loss of recipes over many seeds", "a race", "race.md")], "wide"),
        "## Transformations\n\nGrey is what comes in, blue what comes out: each value of a kernel at the first call, and one value over forty calls.",
    ]
    for group, names in shown.items():
        cards = [
            (f"transformations/{name}.svg", f"what {name} does to an update", f"`{name}`", f"transformations/{name}.md")
            for name in names
        ]
        parts.append(f"### {group}\n\n{_cards(cards)}")
    return "\n\n".join(parts) + "\n"


def schedule_cards(up: str = "../") -> str:
    """The schedules, from a page that lies so far below the top."""
    return _cards(
        (
            (f"{up}schedules/{name}.svg", code, f"`{name}`", f"{up}api/schedules.md#optchain.schedules.{name}")
            for name, (code, _, _) in schedules().items()
        ),
        "small",
    )


def _cards(cards: Any, kind: str = "") -> str:
    shown = [f"[![{alt}]({picture}){{ loading=lazy }}<br>{name}]({link})" for picture, alt, name, link in cards]
    return f'<div class="gallery {kind}" markdown>\n\n' + "\n\n".join(shown) + "\n\n</div>"
