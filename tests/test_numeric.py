"""The numbers on another processor: the pages that compare floats, and the shipped model's answers, asked of a poorer
instruction set and with another number of threads. As a script, it prints the answers of the machine that it is on."""
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT

# what PyTorch's own kernels, oneDNN, MKL, NumPy's OpenBLAS and OpenCV may use; elsewhere than on x86 they mean nothing
POORER = dict(ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='AVX2', MKL_ENABLE_INSTRUCTIONS='AVX2',
              OPENBLAS_CORETYPE='Haswell', OPENCV_CPU_DISABLE='AVX2,AVX512_SKX')
THREADS = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
SETTINGS = {f'{n} {name}': more | dict.fromkeys(THREADS, n)
            for n in '12' for name, more in (('native', {}), ('poorer', POORER))}

pytestmark = pytest.mark.numeric


def numbers() -> dict:
    "What the shipped model says of three moments of the mock video, words and numbers, and scores of a hundred frames."
    from vlmtemporal.engine import Engine
    from vlmtemporal.scores import SCORES, score_frames
    from vlmtemporal.video import open_video
    path = next((ROOT/'mock_data').glob('U0108/kinect/color-masked/videos/S0100/*.mp4'))
    engine = Engine('tiny', 'tiny')
    answers = [engine.predict(path, start) for start in (0., 11., 23.)]
    words = [[getattr(p.answer, name) for name in ('dominant_operation', 'start_frame', 'end_frame',
                                                   'anticipated_next_operation')] for p in answers]
    probabilities = [list(q.values()) for p in answers for q in (p.probabilities, p.next_probabilities)]
    frames = open_video(path).read(range(100))
    scores = {name: score_frames(frames, name).tolist() for name in SCORES}
    return dict(words=words, probabilities=probabilities, **scores)


def run(setting: str, *command: str) -> subprocess.CompletedProcess:
    "A command of this environment under one of `SETTINGS`."
    env = {k: v for k, v in os.environ.items() if k not in POORER} | SETTINGS[setting]
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope='module')
def native():
    r = run('1 native', __file__)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


@pytest.mark.parametrize('setting', ['2 native', '1 poorer', '2 poorer'])
def test_the_answers_are_the_same(setting, native):
    r = run(setting, __file__)
    assert r.returncode == 0, r.stderr
    found = json.loads(r.stdout)
    assert found.keys() == native.keys() and found['words'] == native['words']
    for name in found.keys() - {'words'}:
        a, b = np.array(found[name]), np.array(native[name])
        assert np.linalg.norm(a - b) <= 1e-4*np.linalg.norm(b), name


PAGES = [('2 native', '02a_kernels'), ('1 poorer', '02a_kernels'), ('2 native', '02ad_tower'),
         ('1 poorer', '02ad_tower'), ('2 native', '03a_decode')]


@pytest.mark.parametrize('setting, page', PAGES)
def test_the_pages_hold(setting, page):
    """Pages that compare what is ours with how a library computes it. With one thread and everything that the
    processor can do, `nbdev_test` runs them already."""
    nbdev_test = Path(sys.executable).parent/'nbdev_test'
    r = run(setting, str(nbdev_test), '--path', f'nbs/{page}.ipynb', '--n_workers', '0')
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]


def test_the_settings_say_something():
    "On x86, PyTorch heeds what it is told."
    code = 'import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())'
    assert run('2 poorer', '-c', code).stdout.split() == ['DEFAULT', '2']


if __name__ == '__main__': print(json.dumps(numbers()))
