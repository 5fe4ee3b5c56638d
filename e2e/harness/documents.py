"""The README and docs/: their blocks, the commands in these, and their links."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

from .cluster import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
_HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?")


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(*languages: str, document: str | None = None) -> list[Block]:
    """Those of some languages, or all, in the order in which they are read."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in _BLOCK.finditer(text):
            line = text[:match.start()].count("\n") + 2
            found.append(Block(name(path), line, match[2], textwrap.dedent(match[3])))
    return [b for b in found if (not languages or b.language in languages) and document in (None, b.document)]


def commands(text: str) -> list[str]:
    """A shell block by its commands: each as it is typed, over as many lines as it takes."""
    found, so_far, until = [], "", None
    for line in text.splitlines():
        so_far += line + "\n"
        if until:
            if line != until:
                continue
            until = None
        elif heredoc := _HEREDOC.search(line):
            until = heredoc[1]
            continue
        elif line.endswith("\\") or not _is_closed(so_far):
            continue
        if command := so_far.strip():
            found.append(command)
        so_far = ""
    assert not so_far.strip(), f"a command without its end: {so_far}"
    return found


def _is_closed(text: str) -> bool:
    """Whether every quote and every function has its end."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return False
    return words.count("{") == words.count("}") or "{" not in words


def anchors(path: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} (.+)$", _BLOCK.sub("", path.read_text()), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, last in found.items() for n in range(last + 1)}


def broken_links(path: Path) -> list[str]:
    """Relative links to what is not there."""
    prose = re.sub(r"`[^`\n]*`", "``", _BLOCK.sub("", path.read_text()))
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        if not to.exists():
            found.append(f"{target}: there is no such file")
        elif anchor and (to.suffix != ".md" or anchor not in anchors(to)):
            found.append(f"{target}: there is no such heading")
    return found
