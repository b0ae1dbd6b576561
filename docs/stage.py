"""The pages of the site as Sphinx reads them: notebooks as they stand, README and its like, and a page for each module.

What is written here is a copy in the repository's own layout, so that its links lead where they always led."""
import base64, json, posixpath, re
from configparser import ConfigParser
from functools import cache
from pathlib import Path

from reference import module_page, module_source, overview

ROOT = Path(__file__).parent.parent
TEXTS = {'README.md': 'index.md', 'ARCHITECTURE.md': 'ARCHITECTURE.md', 'CONTRIBUTING.md': 'CONTRIBUTING.md',
         'CHANGELOG.md': 'CHANGELOG.md'} # in the repository: in the site
CHAPTERS = ('Sampling', 'Data', 'Training', 'Evaluation', 'Serving')
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)')
FENCE = re.compile(r'^(```.*?^```|~~~.*?^~~~)', re.MULTILINE | re.DOTALL)
REMOTE_PICTURE = re.compile(r'\[!\[([^\]]*)\]\(https?://[^)\s]+\)\]')


@cache
def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return dict(config['DEFAULT'])


def notebooks() -> list[Path]:
    "All pages but the one that README is made from: parts of a chapter by their letters, the chapter itself first."
    return sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))


def label(stem: str) -> str:
    "How texts call a page: 1k is `01k_twin`, 3 is `03_eval`."
    return stem.split('_')[0][1:]


@cache
def pages() -> dict[str, str]:
    "What is a page of the site: its place in the repository, and in the site."
    found = {f'nbs/{p.name}': f'nbs/{p.name}' for p in notebooks()}
    return found | TEXTS | {'nbs/index.ipynb': 'index.md'}


def target(link: str, here: str, there: str) -> str:
    "A link of the repository's file `here`, whose page is `there`: to another page, a picture, or the repository."
    path, _, anchor = link.partition('#')
    if not path or re.match(r'[a-z][a-z0-9+.-]*:', link): return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    if path in (known := pages()):
        to = posixpath.relpath(known[path], posixpath.dirname(there) or '.')
        return f'{to}#{anchor}' if anchor else to
    if not (ROOT/path).exists(): raise FileNotFoundError(f'{here}: nothing lies at {link}')
    kind = 'tree' if (ROOT/path).is_dir() else 'blob'
    return f"{settings()['git_url']}/{kind}/{settings()['branch']}/{path}"


def linked(text: str, here: str, there: str, out: Path) -> str:
    "Markdown with its links as the site has them; what it shows is copied, and no picture comes from elsewhere."
    def one(m: re.Match) -> str:
        picture, words, link = m.groups()
        words = LINK.sub(one, words)
        if not picture: return f'[{words}]({target(link, here, there)})'
        if re.match('[a-z]+:', link): return m[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        write(out/path, (ROOT/path).read_bytes())
        return f'![{words}]({posixpath.relpath(path, posixpath.dirname(there) or ".")})'
    parts = FENCE.split(REMOTE_PICTURE.sub(r'[\1]', text))
    return ''.join(part if i % 2 else LINK.sub(one, part) for i, part in enumerate(parts))


def attached(text: str, cell: dict, name: str, out: Path) -> str:
    "A cell's Markdown, the pictures inside it as files beside the page."
    for file, kinds in cell.get('attachments', {}).items():
        path = f'{name}-files/{file}'
        write(out/'nbs'/path, base64.b64decode(next(iter(kinds.values()))))
        text = text.replace(f'(attachment:{file})', f'({path})')
    return text


def staged_cell(cell: dict, page: Path, out: Path) -> dict | None:
    "A cell as a reader sees it: nbdev's own lines and what lives only in a running notebook are left out."
    text = ''.join(cell['source'])
    if re.match(r'#\|\s*(hide|default_exp)\b', text) and not text.count('\n'): return None
    if cell['cell_type'] == 'markdown':
        text = attached(linked(text, f'nbs/{page.name}', f'nbs/{page.name}', out), cell, page.stem, out)
        return dict(cell_type='markdown', id=cell['id'], metadata={}, source=text)
    text = re.sub(r'\A(#\|.*\n)+', '', text)
    outputs = [o for o in cell['outputs'] if 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})]
    return cell | dict(source=text, outputs=outputs)


def staged_notebook(page: Path, out: Path) -> str:
    "A notebook, with a line below its title that leads to what it exports."
    notebook = json.loads(page.read_text(encoding='utf-8'))
    module = re.search(r'#\| default_exp (\w+)', page.read_text(encoding='utf-8'))
    cells = [c for cell in notebook['cells'] if (c := staged_cell(cell, page, out))]
    notebook['cells'] = cells
    notebook['metadata'].pop('widgets', None)
    url = f"{settings()['git_url']}/blob/{settings()['branch']}/nbs/{page.name}"
    text = f'Page {label(page.stem)} · [the notebook]({url})'
    if module: text += f' · what it exports: [`vlmtemporal.{module[1]}`](../api/{module[1]}.md)'
    cells[0]['source'] = re.sub(r'\A(# .*)\n?', rf'\1\n\n{text}\n', cells[0]['source'])
    return json.dumps(notebook, ensure_ascii=False)


def toctree(caption: str, entries: list[str]) -> str:
    lines = '\n'.join(entries)
    return f'\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n'


def title(page: Path) -> str:
    "A notebook's first heading, without the page's own number."
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    found = re.search(r'^# (?:Chapter \d: |\d[a-z]+: )?(.*)$', text, re.MULTILINE)
    return found[1].replace('`', '') if found else page.stem


def toctrees() -> str:
    "The site's table of contents: chapters, then what is looked up."
    found = ''
    for i, name in enumerate(CHAPTERS):
        mine = [p for p in notebooks() if p.stem.startswith(f'0{i}')]
        found += toctree(f'{i} {name}', [f'{label(p.stem)} {title(p)} <nbs/{p.stem}>' for p in mine])
    return found + toctree('Reference', ['api/index', 'ARCHITECTURE', 'CONTRIBUTING', 'CHANGELOG'])


@cache
def modules() -> dict[str, str]:
    "Every module of the package, and its notebook's stem."
    found = {}
    for page in notebooks():
        if m := re.search(r'#\| default_exp (\w+)', page.read_text(encoding='utf-8')): found[m[1]] = page.stem
    return found


def write(path: Path, data: str | bytes):
    "Only what has changed is written, so that Sphinx reads only that."
    data = data.encode() if isinstance(data, str) else data
    if path.exists() and path.read_bytes() == data: return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def stage(out: Path) -> list[str]:
    "Writes all pages below `out`, and says which."
    made = {there: linked((ROOT/here).read_text(encoding='utf-8'), here, there, out) for here, there in TEXTS.items()}
    made['index.md'] += toctrees()
    made |= {f'nbs/{p.name}': staged_notebook(p, out) for p in notebooks()}
    sources = {m: module_source(ROOT/'vlmtemporal'/f'{m}.py') for m in modules()}
    made |= {f'api/{m}.md': module_page(m, sources, modules()[m]) for m in sources}
    made['api/index.md'] = overview(sources, {m: CHAPTERS[int(stem[:2])] for m, stem in modules().items()})
    for name, text in made.items(): write(out/name, text)
    for old in (*out.glob('nbs/*.ipynb'), *out.glob('api/*.md'), *out.glob('*.md')):
        if old.relative_to(out).as_posix() not in made: old.unlink()
    return list(made)
