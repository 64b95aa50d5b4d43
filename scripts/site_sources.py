"""Files outside docs/ that a page links to, as pages of the site under source/.

So a link such as `../exporter/models/base.py` works in the repository, where it names the file, and on the site, which
needs no address of a repository for it. Markdown stays markdown, all else is shown as code.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?)(?=\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".sh": "bash"}
SOURCE = "source/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file that is linked from a page, or from such a file."""
    root, docs = _places(config)
    todo = [path for file in files.documentation_pages() for path in _linked(_home(file.src_uri, docs), root, docs)]
    done: set[str] = set()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        text = (root / path).read_text()
        if path.endswith(".md"):
            todo += _linked(path, root, docs)
        else:
            text = f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"
        files.append(File.generated(config, _uri(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between docs/ and the rest of the repository into links between pages."""
    root, docs = _places(config)
    home = _home(page.file.src_uri, docs)

    def turned(match: re.Match[str]) -> str:
        path = _target(home, match[1], root)
        if path is None:
            return match[0]
        uri = path.removeprefix(docs) if path.startswith(docs) else _uri(path)
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".") + match[2]

    return LINK.sub(turned, markdown)


def _places(config: MkDocsConfig) -> tuple[Path, str]:
    """The repository, and the prefix of docs/ in it."""
    root = Path(config.config_file_path).parent
    return root, Path(config.docs_dir).relative_to(root).as_posix() + "/"


def _uri(path: str) -> str:
    """The page of a file."""
    return SOURCE + (path if path.endswith(".md") else f"{path}.md")


def _home(uri: str, docs: str) -> str:
    """The file of a page."""
    return uri.removeprefix(SOURCE) if uri.startswith(SOURCE) else docs + uri


def _target(home: str, link: str, root: Path) -> str | None:
    """The file that a link in `home` names; None if there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
    return path if not path.startswith("..") and (root / path).is_file() else None


def _linked(home: str, root: Path, docs: str) -> list[str]:
    """Files outside docs/ that a file links to."""
    links = [_target(home, link, root) for link, _ in LINK.findall((root / home).read_text())]
    return [path for path in links if path is not None and not path.startswith(docs)]
