"What is installed: the package with its small model, which answers without network, home or repository."
import json, math, os, shutil, subprocess, sys, tarfile, zipfile

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
        assert r.returncode == 0 and r.stderr == '', r.stderr
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
