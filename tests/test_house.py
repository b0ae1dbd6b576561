"The rules of the house: clean notebooks, fresh exports, one-way imports, a README that is its notebook."
import ast, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT
from readme import readme

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))


def module_of(notebook: Path) -> str | None:
    m = re.search(r'#\| default_exp (\w+)', notebook.read_text())
    return m and m[1]


ORDER = {m: nb.stem for nb in NOTEBOOKS if (m := module_of(nb))}


def place(stem: str) -> tuple[int, str]:
    "Chapter and letter; the chapter's own notebook comes after its letters."
    prefix = stem.split('_')[0]
    return int(prefix[:2]), prefix[2:] or '~'


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The repository's sources, cleaned and exported afresh."
    there = tmp_path_factory.mktemp('house')/'repo'
    shutil.copytree(ROOT, there, ignore=shutil.ignore_patterns('.venv', '.git', 'outputs', 'mock_data', '*.egg-info', '.carry'))
    for tool in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([Path(sys.executable).parent/tool], cwd=there, check=True, capture_output=True)
    return there


def test_notebooks_are_clean(copy):
    dirty = [nb.name for nb in NOTEBOOKS if (copy/'nbs'/nb.name).read_text() != nb.read_text()]
    assert not dirty, f'run `make export` and commit: {dirty}'


def test_exports_are_fresh(copy):
    made = {p.name: p.read_text() for p in (copy/'vlmtemporal').glob('*.py')}
    here = {p.name: p.read_text() for p in (ROOT/'vlmtemporal').glob('*.py')}
    assert made == here, 'run `make export` and commit'


def test_every_module_has_one_notebook():
    modules = {p.stem for p in (ROOT/'vlmtemporal').glob('*.py')} - {'__init__', '_modidx'}
    assert modules == set(ORDER) and len(ORDER) == sum(module_of(nb) is not None for nb in NOTEBOOKS)


@pytest.mark.parametrize('module', sorted(ORDER))
def test_imports_go_one_way(module):
    tree = ast.parse((ROOT/'vlmtemporal'/f'{module}.py').read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module] + [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    used = {n.split('.')[1] for n in names if n.startswith('vlmtemporal.')}
    used |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == 'vlmtemporal' for a in n.names}
    if module == 'cli': return # the front door may import every chapter
    against = [u for u in used if place(ORDER[u]) >= place(ORDER[module])]
    assert not against, f'{module} imports {against}, which come later'


@pytest.mark.parametrize('module', ['sampling', 'operations', 'metrics', 'openpack', 'twin', 'cli'])
def test_imports_are_light(module):
    heavy = ('torch', 'transformers', 'trl', 'peft', 'datasets', 'gradio', 'fastapi', 'matplotlib')
    code = f'import sys, vlmtemporal.{module}; print(sorted(set({heavy!r}) & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_readme_is_its_notebook():
    assert (ROOT/'README.md').read_text() == readme(), 'run `make readme` and commit'


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_shows_what_it_says(notebook):
    cells = json.loads(notebook.read_text())['cells']
    outputs = [o for c in cells for o in c.get('outputs', [])]
    assert outputs or notebook.stem == 'index', 'no output is saved: run `make notebooks`'
    assert not [o for o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr'], 'an error or noise is saved in the notebook'
    assert str(ROOT) not in notebook.read_text(), "this machine's path is saved in the notebook"


def test_chapters_show_pictures():
    for chapter in ('00_sampling', '01_dataset', '02_train', '03_eval', '04_serve'):
        assert 'image/png' in (ROOT/'nbs'/f'{chapter}.ipynb').read_text(), chapter


def test_mock_data_is_small(mock):
    assert sum(p.stat().st_size for p in mock.rglob('*') if p.is_file()) < 8e6
