"""General documents: stories, places, nature notes, recipes, letters and local news."""

from __future__ import annotations

from data_gen.grammar import capitalise
from data_gen.prose import Writer
from data_gen.scene import Scene

PLANS: tuple[tuple[str, ...], ...] = (
    ("story", "story", "story"),
    ("sights", "nature", "sights"),
    ("sights", "news", "story"),
    ("cooking", "cooking", "story"),
    ("letter", "letter", "story"),
    ("news", "sights", "news"),
    ("nature", "nature", "sights"),
)
HELD_OUT_PLANS: tuple[tuple[str, ...], ...] = (
    ("story", "sights", "story"),
    ("nature", "letter", "cooking"),
    ("news", "story", "letter"),
    ("letter", "news", "nature"),
)


def write(writer: Writer, scene: Scene, length: int) -> str:
    """One general document of about `length` characters."""
    plan = scene.pick(HELD_OUT_PLANS if writer.held_out else PLANS)
    blocks = [capitalise(writer.phrase(scene, "title"))]
    blocks += [writer.paragraph(scene, rule, scene.between(3, 6)) for rule in plan]
    writer.fill(blocks, scene, list(plan), length)
    return "\n".join(blocks)
