"""The code blocks of a Markdown file, and what the comment before each says of it.

A block runs as it is written unless the line before it is `<!-- not run: REASON -->`. What its reader has already (a model, a loader) is in a comment
that the page does not show, `<!-- given: CODE -->`, over one or several lines, which is put before the block.
"""

import re
from dataclasses import dataclass

BLOCK = re.compile(r"(?:<!--\s*(?P<key>not run|given):(?P<value>.*?)-->\s*\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    line: int
    language: str
    code: str
    given: str = ""
    not_run: str = ""


def code_blocks(markdown: str) -> list[Block]:
    blocks = []
    for match in BLOCK.finditer(markdown):
        block = Block(markdown.count("\n", 0, match.start("code")), match["language"], match["code"])
        if match["key"] == "given":
            block.given = match["value"].strip("\n") + "\n"
        elif match["key"] == "not run":
            block.not_run = match["value"].strip()
        blocks.append(block)
    return blocks


def cpp_program(block: Block) -> str:
    """The block as a whole program: its includes, and the rest inside main() unless it has one."""
    if re.search(r"\bint main\(", block.code):
        return block.given + block.code
    lines = (block.given + block.code).splitlines()
    includes = [line for line in lines if line.startswith("#include")]
    return "\n".join([*includes, "int main() {", *(line for line in lines if line not in includes), "}", ""])
