"""What MkDocs is told beside mkdocs.yml: generated pages, pages and files from outside docs/, and their links."""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

from tools.docs.commands import command_page
from tools.docs.reference import alerts_page, errors_page, metrics_page, settings_page
from tools.docs.routes import routes_page, service_app

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    "README.md": "readme.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Documents beside docs/, and the pages that they become."""
FOLDERS = ("deploy",)
"""Folders whose files documents point at: the site holds copies."""
FILES = {"LICENSE": "LICENSE", "service/api/static/ui/icon.svg": "assets/icon.svg"}
_FENCE = re.compile(r"(^```.*?^```$)", re.S | re.M)
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as GitHub makes them, so that a link holds in the repository and in the site."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what is not in docs/."""
    for uri, content in generated_files().items():
        files.append(File.generated(config, uri, content=content))
    for name, uri in copied_files().items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def generated_files() -> dict[str, str]:
    """Path in the site's sources to content, of everything that is made of the code."""
    document = service_app().openapi()
    return {
        "reference/routes.md": routes_page(document),
        "reference/openapi.json": json.dumps(document, indent=1),
        "reference/settings.md": settings_page(),
        "reference/metrics.md": metrics_page(),
        "reference/alerts.md": alerts_page(),
        "reference/errors.md": errors_page(),
        "reference/command-line.md": command_page(),
    }


def copied_files() -> dict[str, str]:
    """Path in the repository to path in the site's sources, of what stands outside docs/."""
    below = [path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*.*")]
    return DOCUMENTS | FILES | {name: name for name in sorted(below) if "__pycache__" not in name}


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that lead out of docs/, or from another document into it, at the pages of the site."""
    uri = page.file.src_uri
    own = next((name for name, made in DOCUMENTS.items() if made == uri), f"docs/{uri}")
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda link: link[1] + _moved(link[2], own, uri) + link[3], text) for text in parts[::2]]
    return "".join(parts)


def _moved(target: str, own: str, uri: str) -> str:
    """A link of the document ``own`` of the repository as the page ``uri`` of the site has to write it."""
    if ":" in target or target.startswith("/"):
        return target
    name = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
    place = name.removeprefix("docs/") if name.startswith("docs/") else copied_files().get(name)
    return target if place is None else posixpath.relpath(place, posixpath.dirname(uri) or ".")
