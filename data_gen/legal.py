"""Legal documents: numbered contracts, statutes, judgments and licences."""

from __future__ import annotations

from data_gen.grammar import capitalise
from data_gen.prose import Writer
from data_gen.scene import Scene

PLANS: tuple[tuple[str, ...], ...] = (
    ("parties", "clause", "clause", "clause"),
    ("statute", "statute", "statute"),
    ("facts", "reasoning", "reasoning"),
    ("licence", "licence", "clause"),
    ("parties", "facts", "reasoning"),
    ("statute", "clause", "licence"),
)
HELD_OUT_PLANS: tuple[tuple[str, ...], ...] = (
    ("clause", "parties", "licence"),
    ("reasoning", "facts", "reasoning"),
    ("statute", "reasoning", "statute"),
    ("licence", "statute", "clause"),
)
NUMBERINGS = ("{section}.{item} ", "({letter}) ", "{section}({item}) ", "§ {section}.{item} ", "")


def section(writer: Writer, scene: Scene, rule: str, number: int, numbering: str) -> str:
    """A numbered heading and its numbered sentences, in order."""
    heading = capitalise(writer.phrase(scene, "heading"))
    count = scene.between(3, 5)
    if not numbering:
        return f"{heading}\n" + writer.paragraph(scene, rule, count)
    lines = [f"{number}. {heading}"]
    for item in range(1, count + 1):
        label = numbering.format(section=number, item=item, letter="abcdefgh"[item - 1])
        lines.append(label + writer.sentence(scene, rule))
    return "\n".join(lines)


def write(writer: Writer, scene: Scene, length: int) -> str:
    """One legal document of about `length` characters."""
    plan = scene.pick(HELD_OUT_PLANS if writer.held_out else PLANS)
    numbering = "" if "reasoning" in plan else scene.pick(NUMBERINGS)
    title = writer.phrase(scene, "title")
    blocks = [title.upper() if scene.random() < 0.3 else capitalise(title)]
    start = scene.between(1, 9)
    for number, rule in enumerate(plan, start):
        blocks.append(section(writer, scene, rule, number, numbering))
    writer.fill(blocks, scene, list(plan), length)
    return "\n".join(blocks)
