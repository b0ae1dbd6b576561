"The rules of the house: clean notebooks, fresh exports, one-way imports, a README that is its notebook."
import ast, json, re, shutil, subprocess, sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT
from readme import readme

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))


def module_of(notebook: Path) -> str | None:
    m = re.search(r'#\| default_exp (\w+)', notebook.read_text())
    return m and m[1]


PAGES = {m: nb.stem for nb in NOTEBOOKS if (m := module_of(nb))}


BEFORE = {'lora', 'elementwise'} # what a step computes with: pages 2aa to 2aj put it into other libraries


def place(stem: str) -> tuple[int, str]:
    "Chapter and letter; the chapter's own notebook comes after its letters."
    prefix = stem.split('_')[0]
    return int(prefix[:2]), prefix[2:] or '~'


PLACES = {module: (2, f'0{module}') if module in BEFORE else place(stem) for module, stem in PAGES.items()}
PLACES['kernels'] = 2, 'a~' # what pages 2aa to 2aj have, by one name
PLACES['tower_file'] = 2, 'a~~' # builds on page 2a, and the trainer on it


def imports_of(node: ast.AST) -> list[str]:
    "The dotted names that one node of a module of the package imports; a leading dot is the package."
    match node:
        case ast.ImportFrom(module=module, names=names, level=level):
            base = '.'.join(filter(None, ['vlmtemporal' if level else None, module]))
            return [f'{base}.{a.name}' for a in names]
        case ast.Import(names=names):
            return [a.name for a in names]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target)), *_]):
            calls = ('import_module', '__import__')
            return [f'vlmtemporal{target}' if target.startswith('.') else target] if name in calls else []
    return []


def imported(source: str) -> set[str]:
    "The modules of the package that a module imports: relative or absolute, whole or by name, at its top or inside."
    names = [name.split('.') for node in ast.walk(ast.parse(source)) for name in imports_of(node)]
    return {n[1] for n in names if n[0] == 'vlmtemporal' and len(n) > 1} & PLACES.keys()


def upward_imports(source: str, module: str) -> list[str]:
    "What `module` imports although it comes later (or is itself); the front door may import every chapter."
    if module == 'cli': return []
    return sorted(u for u in imported(source) if PLACES[u] >= PLACES[module])


def violations(package: Path) -> dict[str, list[str]]:
    "Upward imports of every module in a folder that has some."
    found = {m: upward_imports((package/f'{m}.py').read_text(), m) for m in PLACES}
    return {m: against for m, against in found.items() if against}


def check_no_cycle(package: Path):
    "Raises CycleError when modules import each other in a ring."
    TopologicalSorter({m: imported((package/f'{m}.py').read_text()) for m in PLACES}).prepare()


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The repository's sources, cleaned and exported afresh."
    there = tmp_path_factory.mktemp('house')/'repo'
    left = shutil.ignore_patterns('.venv', '.git', 'outputs', 'mock_data', '*.egg-info', '.carry', '.*_cache')
    shutil.copytree(ROOT, there, ignore=left)
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
    assert modules == set(PAGES) and len(PAGES) == sum(module_of(nb) is not None for nb in NOTEBOOKS)


def drawn_nodes(text: str) -> list[str]:
    "The nodes of all Mermaid graphs in a text that carry no label of their own."
    graphs = re.findall(r'^```mermaid\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for g in graphs for line in g.splitlines() if not re.match(r' *(graph|subgraph|end)\b', line)]
    nodes = [node.strip() for line in lines for node in line.split('-->')]
    labelled = {node.partition('[')[0] for node in nodes if '[' in node}
    return [node for node in nodes if '[' not in node and node not in labelled]


def test_drawings_name_modules():
    text = (ROOT/'ARCHITECTURE.md').read_text()
    nodes = drawn_nodes(text)
    assert len(nodes) > 150 and set(nodes) <= set(PAGES), set(nodes) - set(PAGES)
    assert drawn_nodes('```mermaid\ngraph LR\n  a[one] --> b --> c\n  a --> d\n```') == ['b', 'c', 'd']


def test_imports_go_one_way():
    assert violations(ROOT/'vlmtemporal') == {}
    check_no_cycle(ROOT/'vlmtemporal')


@pytest.fixture
def planted(tmp_path):
    "A copy of the package's modules in which one has got another line."
    def plant(module, line):
        package = tmp_path/'vlmtemporal'
        shutil.copytree(ROOT/'vlmtemporal', package, ignore=shutil.ignore_patterns('__pycache__', 'tiny_model'))
        with (package/f'{module}.py').open('a') as f: f.write(f'\n{line}\n')
        return package
    return plant


PLANTED = [
    'from .eval import evaluate',
    'from . import eval',
    'from . import eval as e',
    'from vlmtemporal.eval import evaluate',
    'from vlmtemporal import eval',
    'import vlmtemporal.eval',
    'import json, vlmtemporal.eval as e',
    'def f():\n    from .eval import evaluate',
    'def f():\n    import vlmtemporal.eval',
    'class A:\n    def f(self):\n        from . import eval',
    'if True:\n    from vlmtemporal.eval import (\n        evaluate)',
    'try: from .eval import evaluate\nexcept ImportError: pass',
    "import importlib\nimportlib.import_module('.eval', __package__)",
    "__import__('vlmtemporal.eval')",
]


@pytest.mark.parametrize('line', PLANTED)
def test_an_upward_import_is_found(line, planted):
    assert violations(planted('basics', line)) == {'basics': ['eval']}


def test_a_later_letter_and_a_chapter_are_found(planted):
    lines = 'from .metrics import TOLERANCES\nfrom .dataset import build'
    assert violations(planted('decode', lines)) == {'decode': ['metrics']}
    assert upward_imports('from .eval import evaluate', 'metrics') == ['eval'], "the chapter's own notebook comes last"
    assert upward_imports('from .metrics import TOLERANCES', 'eval') == [], 'and may import its letters'
    assert upward_imports('from .metrics import metrics', 'metrics') == ['metrics'], 'a module does not import itself'
    others = 'import vlmtemporal, json.decoder\nfrom . import __version__\nfrom evaluate import eval'
    assert upward_imports(others, 'basics') == []


def test_a_ring_is_found(planted):
    "The front door may import everything, so nothing may import the front door."
    with pytest.raises(CycleError): check_no_cycle(planted('serve', 'from .cli import main'))


KERNELS = {m for m, stem in PAGES.items() if re.match('02a[a-z]_', stem)} # they alone reach into another library


def replacements(source: str) -> list[str]:
    "What a module puts in the place of something that another object has: a forward, a class, a name in a registry."
    trees = [*ast.walk(ast.parse(source))]
    targets = [t for node in trees if isinstance(node, ast.Assign) for t in node.targets]
    put = [t.attr for t in targets if isinstance(t, ast.Attribute) and t.attr in ('forward', '__class__', '__call__')]
    calls = [n.func for n in trees if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return put + [f.value.id for f in calls if f.attr == 'register' and isinstance(f.value, ast.Name)]


def test_only_the_kernels_pages_reach_into_other_libraries():
    found = {m for m in PAGES if replacements((ROOT/f'vlmtemporal/{m}.py').read_text())}
    assert len(found) > 4 and found <= KERNELS, found - KERNELS
    planted = 'layer.forward = ours\nAttentionInterface.register(name, f)'
    assert replacements(planted) == ['forward', 'AttentionInterface']


EARLY = [m for m in sorted(PLACES, key=PLACES.get) if PLACES[m] < (2, '')]


def test_imports_are_light():
    "Chapters 0 and 1, the metrics and the front door answer without the libraries that take seconds to import."
    heavy = ('torch', 'transformers', 'trl', 'peft', 'datasets', 'gradio', 'fastapi', 'matplotlib')
    code = ('import sys, importlib\n'
            'for m in sys.argv[1:]:\n'
            "    importlib.import_module(f'vlmtemporal.{m}')\n"
            f'    if loaded := sorted(set({heavy!r}) & set(sys.modules)): sys.exit(f"{{m}} imports {{loaded}}")')
    command = [sys.executable, '-c', code, *EARLY, 'metrics', 'baselines', 'cli']
    r = subprocess.run(command, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_readme_is_its_notebook():
    assert (ROOT/'README.md').read_text() == readme(), 'run `make readme` and commit'


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_shows_what_it_says(notebook):
    cells = json.loads(notebook.read_text())['cells']
    outputs = [o for c in cells for o in c.get('outputs', [])]
    assert outputs or notebook.stem == 'index', 'no output is saved: run `make notebooks`'
    noise = [o for o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert not noise, 'an error or noise is saved in the notebook'
    assert str(ROOT) not in notebook.read_text(), "this machine's path is saved in the notebook"


def test_chapters_show_pictures():
    for chapter in ('00_sampling', '01_dataset', '02_train', '03_eval', '04_serve'):
        assert 'image/png' in (ROOT/'nbs'/f'{chapter}.ipynb').read_text(), chapter


def test_mock_data_is_small(mock):
    assert sum(p.stat().st_size for p in mock.rglob('*') if p.is_file()) < 8e6
