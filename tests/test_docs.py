"The site: every notebook and every public name is in it, links lead somewhere, nothing is fetched from elsewhere."
import ast, re, subprocess, sys
from importlib.util import find_spec

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT/'docs'))
from links import problems # noqa: E402
from reference import entry, module_source # noqa: E402
from stage import stage, target # noqa: E402


@pytest.fixture(scope='module')
def staged(tmp_path_factory):
    "The pages as Sphinx reads them."
    out = tmp_path_factory.mktemp('site')
    stage(out)
    return out


def test_every_notebook_is_in_the_table_of_contents(staged):
    entries = re.findall(r'^\S.* <(nbs/\w+)>$', (staged/'index.md').read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(f'nbs/{p.stem}' for p in (ROOT/'nbs').glob('*.ipynb') if p.stem != 'index')
    assert all((staged/f'{name}.ipynb').is_file() for name in entries)


def test_the_api_has_every_public_name(staged):
    index = (staged/'api'/'index.md').read_text()
    for path in sorted((ROOT/'vlmtemporal').glob('[a-z]*.py')):
        tree = ast.parse(path.read_text())
        public = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
        page = (staged/'api'/f'{path.stem}.md').read_text()
        entries = re.findall(r'^`{6}\{py:\w+\} (\w+)', page, re.MULTILINE)
        assert entries == ast.literal_eval(public), path.stem
        assert all(f'`~vlmtemporal.{path.stem}.{name}`' in index for name in entries)


def test_an_entry_has_signature_and_what_is_said_of_parameters(tmp_path):
    (tmp_path/'a.py').write_text('__all__ = ["f", "K"]\nfrom .frames import FrameSpec\n\nK, L = 1, 2 # seconds\n\n'
                                 'def f(\n    x: FrameSpec, # what is cut\n    y: float = 1., # seconds\n'
                                 '    *, z=None,\n) -> list[int]: # frame numbers\n'
                                 '    "Cut it." # not said of y\n    return []\n')
    source = module_source(tmp_path/'a.py')
    text = entry('f', 'a', {'a': source})
    assert 'f(x: vlmtemporal.frames.FrameSpec, y: float=1.0, *, z=None) -> list[int]' in text
    assert ':param x: what is cut\n:param y: seconds\n:returns: frame numbers\n' in text and 'Cut it.' in text
    assert '`K = 1`' in entry('K', 'a', {'a': source}) and 'seconds' in entry('K', 'a', {'a': source})


def test_links_lead_to_pages_or_to_the_repository():
    page, link = 'nbs/02h_trainer.ipynb', '../CONTRIBUTING.md#add-a-sampler'
    assert target(link, page, page) == link
    assert target('nbs/01k_twin.ipynb', 'README.md', 'index.md') == 'nbs/01k_twin.ipynb'
    assert target('index.ipynb', 'nbs/00_sampling.ipynb', 'nbs/00_sampling.ipynb') == '../index.md'
    assert target('deploy', 'README.md', 'index.md').endswith('/vlmtemporal/tree/main/deploy')
    assert target('Makefile', 'README.md', 'index.md').endswith('/vlmtemporal/blob/main/Makefile')
    with pytest.raises(FileNotFoundError, match='nothing lies at'): target('gone.md', 'README.md', 'index.md')


def test_dead_links_and_fetches_are_found(tmp_path):
    (tmp_path/'a.html').write_text('<h1 id="top">A</h1><a href="b.html#there">ok</a><a href="#top">ok</a>'
                                   '<img src="p.png?v=1"><a href="https://example.org">leaving is allowed</a>')
    (tmp_path/'b.html').write_text('<p id="there"></p>')
    (tmp_path/'p.png').write_bytes(b'')
    assert problems(tmp_path) == []
    (tmp_path/'b.html').write_text('<a href="a.html#gone"></a><a href="c.html"></a>'
                                   '<script src="https://cdn.example/x.js"></script>'
                                   '<link rel="stylesheet" href="//cdn.example/x.css">')
    assert problems(tmp_path) == ['a.html: nothing lies at b.html#there', 'b.html: fetches //cdn.example/x.css',
                                  'b.html: fetches https://cdn.example/x.js', 'b.html: nothing lies at a.html#gone',
                                  'b.html: nothing lies at c.html']


LACKING = [name for name in ('sphinx', 'furo', 'myst_nb', 'mermaidx') if not find_spec(name)]


@pytest.mark.skipif(bool(LACKING), reason=f"no {', '.join(LACKING)}: pip install '.[docs]'")
def test_a_page_is_built(staged, tmp_path):
    "A module's page, with a link to a type and a drawing, and without a warning."
    source, out = tmp_path/'source', tmp_path/'html'
    source.mkdir()
    page = (staged/'api'/'findings.md').read_text().replace('](../nbs/03da_findings.ipynb)', '](https://example.org)')
    (source/'index.md').write_text(page + '\n```mermaid\ngraph LR\n  metrics --> findings\n```\n')
    command = [sys.executable, '-m', 'sphinx', '-b', 'html', '-W', '-q', '-c', str(ROOT/'docs'), str(source), str(out)]
    r = subprocess.run(command, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    text = (out/'index.html').read_text()
    assert problems(out) == [] and 'id="vlmtemporal.findings.' in text
    assert re.search(r'<img alt="Drawing: metrics to findings"[^>]*\.svg"', text) and list(out.glob('_images/*.svg'))
