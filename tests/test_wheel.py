"""What is installed: the package with its small model, which answers without network, home or repository.

`make dist-check` installs wheel and source archive into clean environments of several Pythons, and asks there."""
import json, math, os, re, shutil, subprocess, sys, tarfile, time, zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest
from safetensors import safe_open

from conftest import ROOT
from vlmtemporal.adapters import resolve_adapter
from vlmtemporal.backbones import bundled_model
from vlmtemporal.operations import LOGISTICS

MODEL = ROOT/'vlmtemporal'/'tiny_model'


def files(): return {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in MODEL.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "Wheel and sdist of this repository's files, built without network and beside it."
    there = tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT/'vlmtemporal', there/'vlmtemporal', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'settings.ini', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, there)
    wheel = ['-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', 'dist', '.']
    for command in (wheel, ['setup.py', 'sdist']):
        r = subprocess.run([sys.executable, *command], cwd=there, capture_output=True, text=True)
        assert r.returncode == 0, r.stderr
    return there/'dist'


@pytest.fixture(scope='module')
def installed(dist, tmp_path_factory):
    "The wheel's files, unpacked."
    there = tmp_path_factory.mktemp('installed')
    with zipfile.ZipFile(next(dist.glob('*.whl'))) as z: z.extractall(there)
    return there


def test_a_clone_does_not_hide_its_editable_install(tmp_path):
    "Python is started beside the clone, whose folder has the package's name: the package is imported all the same."
    clone, packages = tmp_path/'vlmtemporal', tmp_path/'packages'
    (clone/'vlmtemporal').mkdir(parents=True)
    modules = 'vlmtemporal/__init__.py', 'vlmtemporal/basics.py'
    for name in ('setup.py', 'settings.ini', 'README.md', 'LICENSE', *modules): shutil.copy(ROOT/name, clone/name)
    command = [sys.executable, 'setup.py', '-q', 'editable_wheel', '--dist-dir', tmp_path]
    r = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as z: z.extractall(packages)
    ask = 'import vlmtemporal.basics, vlmtemporal; print(vlmtemporal.__file__)'
    (tmp_path/'script.py').write_text(ask)
    own = f'sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]' # of the environment that runs this
    (tmp_path/'started.py').write_text(f'import site, sys; {own}; site.addsitedir({str(packages)!r})')
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    for what in (['-c', f'import started; {ask}'], ['-c', 'import started; import runpy; runpy.run_path("script.py")']):
        r = subprocess.run([sys.executable, *what], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert r.stdout.strip() == str(clone/'vlmtemporal'/'__init__.py'), (r.stdout, r.stderr)


def test_the_model_is_small():
    weights = MODEL/'model.safetensors'
    assert weights.stat().st_size <= 16 << 20
    with safe_open(weights, 'np') as f: shapes = [f.get_slice(k).get_shape() for k in list(f.keys())]
    assert sum(map(math.prod, shapes)) <= 12e6
    assert bundled_model() == MODEL and resolve_adapter('tiny').path.parent == MODEL


def test_the_wheel_holds_taxonomies_and_configurations(dist):
    with zipfile.ZipFile(next(dist.glob('*.whl'))) as z:
        inside = {n: z.read(n) for n in z.namelist() if n.endswith('.yaml')}
    folders = [ROOT/'vlmtemporal'/name for name in ('taxonomies', 'accelerate')]
    here = {p.relative_to(ROOT).as_posix(): p.read_bytes() for folder in folders for p in folder.iterdir()}
    assert inside == here and [len(list(folder.iterdir())) for folder in folders] == [2, 3]


def test_wheel_and_sdist_hold_the_model(dist):
    with zipfile.ZipFile(next(dist.glob('*.whl'))) as z:
        inside = {n: z.read(n) for n in z.namelist() if 'tiny_model' in n}
    assert inside == files() and 'vlmtemporal/tiny_model/model.safetensors' in inside
    with tarfile.open(next(dist.glob('*.tar.gz'))) as t:
        found = [m for m in t if m.isfile() and '/vlmtemporal/tiny_model/' in m.name]
        members = {m.name.split('/', 1)[1]: t.extractfile(m).read() for m in found}
    assert members == files()


def test_an_installed_package_answers_alone(installed, video, tmp_path):
    "With its adapter, without it when asked so, and an error when adapter or model is gone."
    home, away = tmp_path/'home', tmp_path/'away'
    home.mkdir()
    away.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'XDG_', 'VLMTEMPORAL_'))}
    env |= dict(HOME=str(home), PYTHONPATH=str(installed), HF_HUB_OFFLINE='1')
    def predict(*args):
        command = [sys.executable, '-m', 'vlmtemporal.cli', 'predict', video.resolve(), '--start=20', '--json', *args]
        return subprocess.run(command, cwd=away, env=env, capture_output=True, text=True, timeout=300)
    answers = []
    for args in ((), ('--adapter', 'none')):
        r = predict(*args)
        known = 'note: the model was trained on' if not args else ''
        assert r.returncode == 0 and r.stderr.startswith(known) and r.stderr.count('\n') == bool(known), r.stderr
        d = json.loads(r.stdout)
        span = d['temporal_segment']
        answers.append(d['probabilities'])
        assert d['parsed_by'] == 'constrained'
        assert {d['dominant_operation'], d['anticipated_next_operation']} <= set(LOGISTICS.names)
        assert 0 <= span['start_frame'] < span['end_frame'] <= 124
    assert answers[0] != answers[1] and not list(away.iterdir()) and not list(home.rglob('*.safetensors'))
    for gone in ('tiny_model/adapter', 'tiny_model'):
        shutil.rmtree(installed/'vlmtemporal'/gone)
        r = predict()
        assert r.returncode == 2 and r.stdout == '' and 'install vlmtemporal again' in r.stderr


def settings():
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def test_wheel_and_sdist_say_the_version_and_the_extras(dist):
    version = settings()['version']
    extras = {key.removesuffix('_requirements') for key in settings() if key.endswith('_requirements')}
    with zipfile.ZipFile(dist/f'vlmtemporal-{version}-py3-none-any.whl') as z:
        of_wheel = message_from_bytes(z.read(f'vlmtemporal-{version}.dist-info/METADATA'))
        assert f'__version__ = "{version}"' in z.read('vlmtemporal/__init__.py').decode()
    with tarfile.open(dist/f'vlmtemporal-{version}.tar.gz') as t:
        of_sdist = message_from_bytes(t.extractfile(f'vlmtemporal-{version}/PKG-INFO').read())
    for said in (of_wheel, of_sdist):
        assert said['Version'] == version and set(said.get_all('Provides-Extra')) == extras
    changes = re.findall(r'^## (\S+)', (ROOT/'CHANGELOG.md').read_text(), re.MULTILINE)
    assert changes[:2] == ['Unreleased', version]


LIGHT = ('basics', 'video', 'frames', 'recordings', 'labels', 'shards', 'metrics', 'cli')


def test_light_modules_need_no_torch(installed):
    "Where nobody has installed torch, data are read and written, and the command says what it can do."
    code = ("import sys, importlib\n"
            "class Lacking:\n"
            "    def find_spec(self, name, *rest):\n"
            "        if name.split('.')[0] in ('torch', 'transformers', 'trl'): raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Lacking())\n"
            "for m in sys.argv[1:]: print(importlib.import_module(f'vlmtemporal.{m}').__file__)")
    env = os.environ | {'PYTHONPATH': str(installed)}
    r = subprocess.run([sys.executable, '-c', code, *LIGHT], cwd=installed, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout.splitlines() == [str(installed/'vlmtemporal'/f'{m}.py') for m in LIGHT]


PYTHONS = os.environ.get('DIST_PYTHONS', 'python3.11 python3.13').split()


def ran(*command, **options) -> tuple[str, float]:
    "What a command prints, and in how many seconds; it must succeed."
    begun = time.monotonic()
    r = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=3600, **options)
    assert r.returncode == 0, f'{command}: {r.stderr}'
    return r.stdout, time.monotonic() - begun


@pytest.mark.skipif('VLMTEMPORAL_DIST_CHECK' not in os.environ, reason='takes minutes and downloads: make dist-check')
@pytest.mark.parametrize('python', PYTHONS)
@pytest.mark.parametrize('kind', ['*.whl', '*.tar.gz'])
def test_a_clean_environment_predicts(dist, python, kind, tmp_path):
    "Installed without the repository: a video is drawn, a clip of it is answered."
    if not shutil.which(python): pytest.skip(f'there is no {python} here')
    place = ROOT/'.dist-check'/Path(python).name # kept: what it needs is downloaded once
    file, bin = next(dist.glob(kind)), place/'bin'
    seconds = {}
    if not (bin/'python').exists(): ran(python, '-m', 'venv', place)
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'PYTHON', 'VIRTUAL', 'VLMTEMPORAL_'))}
    _, seconds['what it needs'] = ran(bin/'pip', 'install', '--quiet', file, env=env)
    _, seconds['the package'] = ran(bin/'pip', 'install', '--quiet', '--no-deps', '--force-reinstall', file, env=env)
    env |= dict(HOME=str(tmp_path), HF_HUB_OFFLINE='1', NO_COLOR='1')
    def said(*command):
        text, seconds[' '.join(command[:2])] = ran(bin/command[0], *command[1:], cwd=tmp_path, env=env)
        return text
    where = said('python', '-c', 'import vlmtemporal; print(vlmtemporal.__file__, vlmtemporal.__version__)')
    assert str(place) in where and where.split()[-1] == settings()['version']
    assert 'predict' in said('vlmtemporal', '--help')
    said('vlmtemporal', 'twin', 'drawn', '--subjects=1', '--boxes=1')
    video = next((tmp_path/'drawn').rglob('*.mp4'))
    answer = json.loads(said('vlmtemporal', 'predict', str(video), '--start=20', '--json'))
    assert answer['dominant_operation'] in LOGISTICS.names and answer['parsed_by'] == 'constrained'
    print(python, file.name, f'{file.stat().st_size/1e6:.1f} MB', {k: round(v, 1) for k, v in seconds.items()})
