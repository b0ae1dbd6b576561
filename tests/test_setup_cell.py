"The cell that makes vlmtemporal importable on Kaggle, in a Python that has nothing: small wheels in every layout."
import base64, hashlib, importlib.metadata, json, os, re, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser

import pytest

from conftest import ROOT

CHAPTERS = ('00_sampling', '01_dataset', '02_train', '03_eval', '04_serve')
LAYOUTS = ('vlmtemporal-wheels', 'datasets/alice/vlmtemporal-wheels', 'vlmtemporal-wheels/deep/er',
           'notebooks/alice/any-name')


def setup_cells(chapter):
    cells = json.loads((ROOT/'nbs'/f'{chapter}.ipynb').read_text(encoding='utf-8'))['cells']
    return [text for c in cells if 'def install_vlmtemporal' in (text := ''.join(c['source']))]


def wheel(folder, name, version, requires=(), python='>=3.8'):
    "A wheel of one module, which knows its version."
    folder.mkdir(parents=True, exist_ok=True)
    info = f'{name}-{version}.dist-info'
    meta = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n'
    files = {f'{name}.py': f'version = {version!r}\n',
             f'{info}/METADATA': meta + ''.join(f'Requires-Dist: {r}\n' for r in requires),
             f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'}
    def record(k, text):
        sha = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')
        return f'{k},sha256={sha},{len(text)}\n'
    files[f'{info}/RECORD'] = ''.join(record(*f) for f in files.items()) + f'{info}/RECORD,,\n'
    path = folder/f'{name}-{version}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as z:
        for k, v in files.items(): z.writestr(k, v)
    return path


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    "A Python with pip, packaging and setuptools, no more, as a folder to copy."
    there = tmp_path_factory.mktemp('bare')/'venv'
    subprocess.run([sys.executable, '-m', 'venv', there], check=True)
    site = next(there.glob('lib/python*/site-packages'))
    for name in ('packaging', 'setuptools'):
        shutil.rmtree(site/name, ignore_errors=True)
        for old in site.glob(f'{name}-*'): shutil.rmtree(old)
        for f in importlib.metadata.files(name):
            if '..' in f.parts or f.suffix == '.pyc': continue
            (site/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f.locate(), site/f)
    return there


@pytest.fixture
def there(bare, tmp_path):
    "Run the cell: returns what it printed and what is installed then, or the error. Nothing outlives a test."
    site = next(bare.glob('lib/python*/site-packages'))
    before = {p.name for p in site.iterdir()}
    (tmp_path/'inputs').mkdir()

    def run(**more):
        code = setup_cells('02_train')[0] + '\nimport vlmtemporal\nprint(vlmtemporal.version)'
        env = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'PIP_', 'VLMTEMPORAL_'))}
        env |= dict(VLMTEMPORAL_INPUTS=str(tmp_path/'inputs'), HOME=str(tmp_path/'home'), PIP_CONFIG_FILE=os.devnull,
                    PIP_INDEX_URL='http://127.0.0.1:9/simple', https_proxy='http://127.0.0.1:9', no_proxy='') | more
        r = subprocess.run([bare/'bin'/'python', '-c', code], capture_output=True, text=True, env=env, cwd=tmp_path)
        return r.stdout.splitlines() if r.returncode == 0 else r.stderr
    yield run
    for p in site.iterdir():
        if p.name not in before: shutil.rmtree(p) if p.is_dir() else p.unlink()


def test_the_cell_is_one():
    cells = [setup_cells(c) for c in CHAPTERS]
    assert [len(c) for c in cells] == [1]*5 and len({c[0] for c in cells}) == 1
    text = cells[0][0]
    assert text.startswith('#| job\n') and len(text.splitlines()) <= 30 and '%' not in text
    settings = ConfigParser(delimiters=['='], interpolation=None)
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    home = f"git+{settings['DEFAULT']['git_url']}@v{settings['DEFAULT']['version']}"
    assert re.findall(r"'(git\+.*?)'", text) == [home]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_newest_wheel_with_what_it_needs(there, tmp_path, layout):
    place = tmp_path/'inputs'/layout
    for version in ('0.9.0', '0.10.0', '0.10.0rc1'):
        wheel(place, 'vlmtemporal', version, ['needed>=1', 'elsewhere>=1', 'unasked>=1; extra == "serve"'])
    wheel(place, 'needed', '1.2', ['deeper>=9']) # the set is right as it is, whatever its wheels say
    wheel(tmp_path/'inputs'/'others', 'needed', '1.3')
    wheel(tmp_path/'inputs'/'others', 'elsewhere', '1.0')
    (place/'deeper-4.0-cp39-cp39-win32.whl').write_bytes(b'') # another Python's
    wheel(place/'more', 'deeper', '3.0')
    wheel(tmp_path/'inputs'/'others', 'unasked', '1.0')
    said = there()
    assert said[1:] == ['0.10.0'] and said[0].endswith(': deeper 3.0, elsewhere 1.0, needed 1.2, vlmtemporal 0.10.0')
    assert layout in said[0]
    assert there() == ['0.10.0'] # nothing to do


def test_nothing_that_is_installed_moves(there, bare, tmp_path):
    pip = [bare/'bin'/'python', '-m', 'pip']
    subprocess.run([*pip, 'install', '-q', '--no-index', wheel(tmp_path/'image', 'pinned', '1.5')], check=True)
    wheel(tmp_path/'inputs'/'ours', 'vlmtemporal', '1.0', ['pinned>=1', 'needed>=1'])
    wheel(tmp_path/'inputs'/'ours', 'pinned', '2.0')
    wheel(tmp_path/'inputs'/'others', 'needed', '1.0', ['pinned>=1'])
    wheel(tmp_path/'inputs'/'others', 'needed', '1.1', ['pinned>=2'])
    assert there()[0].endswith(': needed 1.0, vlmtemporal 1.0')
    subprocess.run([*pip, 'uninstall', '-q', '-y', 'vlmtemporal'], check=True)
    wheel(tmp_path/'inputs'/'ours', 'vlmtemporal', '1.1', ['pinned>=2'])
    for _ in range(2): assert 'pinned==1.5' in there() # nor is half of it left, which would pass for the whole


def test_a_wheel_that_does_not_fit(there, tmp_path):
    made = wheel(tmp_path/'inputs', 'vlmtemporal', '1.0', python='>=4')
    said = there()
    assert '>=4' in said and f'{made} cannot be installed here' in said
    made.write_bytes(made.read_bytes()[:300])
    assert 'invalid' in there().lower()
    made.unlink()
    wheel(tmp_path/'inputs', 'vlmtemporal', '1.0', ['absent>=1'])
    said = there()
    assert 'absent' in said and 'Add Input > vlmtemporal-wheels' in said and 'Internet on' in said


def test_nothing_is_attached(there):
    said = there()
    assert said.splitlines()[-2].endswith('cannot be installed here:') and 'git+https' in said
    assert said.splitlines()[-1].startswith('Add Input > vlmtemporal-wheels')


@pytest.mark.parametrize('unpacked', [False, True])
def test_a_source_archive(there, tmp_path, unpacked):
    source = tmp_path/'vlmtemporal-0.3.0'
    source.mkdir()
    what = "name='vlmtemporal', version='0.3.0', py_modules=['vlmtemporal']"
    (source/'setup.py').write_text(f'from setuptools import setup\nsetup({what})\n')
    (source/'vlmtemporal.py').write_text("version = '0.3.0'\n")
    place = tmp_path/'inputs'/'code'
    place.mkdir()
    if unpacked:
        shutil.copytree(source, place/source.name)
        (place/source.name).chmod(0o555)
    else:
        with tarfile.open(place/'vlmtemporal-0.3.0.tar.gz', 'w:gz') as t: t.add(source, source.name)
    assert there()[1:] == ['0.3.0']


def test_what_only_a_server_needs_is_imported_by_nobody_else():
    code = '''
import sys
from importlib import import_module
from pathlib import Path
import vlmtemporal
for name in ('gradio', 'fastapi', 'uvicorn', 'starlette', 'multipart', 'prometheus_client'): sys.modules[name] = None
for p in sorted(Path(vlmtemporal.__file__).parent.glob('*.py')):
    if p.stem not in ('__init__', '_modidx', 'api', 'gate'): import_module(f'vlmtemporal.{p.stem}')
from vlmtemporal import serve
serve._version = lambda package: '5.50.0'
try: serve.serve()
except serve.BadInput as e: print(e)
'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert "a server needs gradio>=6, here is 5.50.0; pip install 'vlmtemporal[serve]'" in r.stdout, r.stderr


def test_the_lists_fit_what_we_need():
    from packaging.requirements import Requirement
    from packaging.version import Version

    from vlmtemporal.image import IMAGE, LACKS, listed, needed
    image, lacks, wanted = listed(ROOT/IMAGE), listed(ROOT/LACKS), needed(ROOT)
    assert wanted.keys() <= image.keys() | lacks.keys() and not {'torch', 'numpy', 'gradio'} & lacks.keys()
    for name, line in (image | lacks).items():
        if '==' in line and name in wanted: assert Version(line.split('==')[1]) in Requirement(wanted[name]).specifier
