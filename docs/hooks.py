"""The site shows pages and figures of results/ without copies: links to ../results lead to published/."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parent.parent / "results"
SHOWN = ("README.md", "LOG.md", "figures/*.png", "tuning/*.md", "speed/*.md", "tools/*.md")


def on_files(files: Files, config: Any) -> Files:
    """Add what is shown of results/ to the site."""
    for path in sorted(p for pattern in SHOWN for p in RESULTS.glob(pattern)):
        place = f"published/{path.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links out of docs/ to where the site has them."""
    return markdown.replace("](../results/", "](published/")
