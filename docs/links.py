"Links of a built site that lead nowhere, and what its pages would fetch from elsewhere. It asks no network."
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

FETCHED = {'script': 'src', 'img': 'src', 'iframe': 'src', 'video': 'src', 'source': 'src',
           'object': 'data', 'embed': 'src'}
LINKED = {'stylesheet', 'icon', 'preload', 'preconnect', 'dns-prefetch', 'modulepreload'} # of <link>


class Page(HTMLParser):
    "What a page can be asked for (its anchors), what it leads to and what it fetches."
    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.leads: list[str] = []
        self.fetches: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        of = {k: v or '' for k, v in attrs}
        self.anchors |= {of[k] for k in ('id', 'name') if k in of}
        if tag == 'a' and 'href' in of: self.leads.append(of['href'])
        if tag in FETCHED and of.get(FETCHED[tag]): self.fetches.append(of[FETCHED[tag]])
        if tag == 'link' and LINKED & set(of.get('rel', '').split()): self.fetches.append(of['href'])


def elsewhere(link: str) -> bool:
    parts = urlsplit(link)
    return parts.scheme not in ('', 'data') or bool(parts.netloc)


def dead(link: str, page: str, pages: dict[str, Page], out: Path) -> bool:
    "Does a link inside the site lead to no file, or to no such place in it?"
    parts = urlsplit(urljoin(page, link))
    path, anchor = unquote(parts.path), unquote(parts.fragment)
    if not (out/path).is_file(): return True
    return path in pages and bool(anchor) and anchor not in pages[path].anchors


def problems(out: Path) -> list[str]:
    "One line for each."
    pages = {p.relative_to(out).as_posix(): Page(p.read_text(encoding='utf-8')) for p in sorted(out.rglob('*.html'))}
    found = []
    for name, page in pages.items():
        found += [f'{name}: fetches {link}' for link in page.fetches if elsewhere(link)]
        inside = [n for n in (*page.leads, *page.fetches) if not elsewhere(n) and not n.startswith('data:')]
        found += [f'{name}: nothing lies at {link}' for link in inside if dead(link, name, pages, out)]
    return sorted(set(found))
