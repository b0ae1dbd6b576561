"""The numbers on another processor: the pages that compare floats, and the shipped model's answers, asked of a poorer
instruction set and with another number of threads. As a script, it writes the answers of the machine that it is on, and
runs pages."""
import json, os, subprocess, sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, once

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


def written(file: str):
    "`numbers`, and what PyTorch heeds of its setting."
    import torch
    heeded = [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    Path(file).write_text(json.dumps(dict(heeded=heeded, numbers=numbers())))


PAGES = {'1 native': (), '2 native': ('02a_kernels', '02ad_tower', '03a_decode'),
         '1 poorer': ('02a_kernels', '02ad_tower'), '2 poorer': ()}


@pytest.fixture(scope='session')
def asked():
    "What this file, as a script, says under one of `SETTINGS`: libraries read them as they are imported."
    def of(setting):
        env = {k: v for k, v in os.environ.items() if k not in POORER} | SETTINGS[setting]
        def ask(out):
            out.mkdir()
            command = [sys.executable, __file__, out/'numbers.json', *PAGES[setting]]
            r = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
            (out/'said').write_text(r.stdout + r.stderr)
        out = once(f'numbers {setting}', ask)
        assert (out/'numbers.json').is_file(), (out/'said').read_text()
        return out
    return of


@pytest.mark.parametrize('setting', ['2 native', '1 poorer', '2 poorer'])
def test_the_answers_are_the_same(setting, asked):
    native, found = (json.loads((asked(s)/'numbers.json').read_text())['numbers'] for s in ('1 native', setting))
    assert found.keys() == native.keys() and found['words'] == native['words']
    for name in found.keys() - {'words'}:
        a, b = np.array(found[name]), np.array(native[name])
        assert np.linalg.norm(a - b) <= 1e-4*np.linalg.norm(b), name


@pytest.mark.parametrize('setting, page', [(s, page) for s, pages in PAGES.items() for page in pages])
def test_the_pages_hold(setting, page, asked):
    """Pages that compare what is ours with how a library computes it. With one thread and everything that the
    processor can do, `make test` runs them already."""
    said = (asked(setting)/'said').read_text()
    assert f': {page}.ipynb passed in ' in said, said[-6000:]


def test_the_settings_say_something(asked):
    "On x86, PyTorch heeds what it is told."
    assert json.loads((asked('2 poorer')/'numbers.json').read_text())['heeded'] == ['DEFAULT', 2]


def main(file, *names):
    "The numbers, and then the pages, each in a process that is forked from one that has imported the libraries."
    import pages
    context = get_context('forkserver')
    context.set_forkserver_preload(list(pages.LIBRARIES))
    process = context.Process(target=written, args=(file,))
    process.start()
    process.join()
    sys.argv = ['pages.py', '-n', '1', *(str(ROOT/'nbs'/f'{name}.ipynb') for name in names)]
    if names: pages.main()


if __name__ == '__main__':
    sys.path.append(str(ROOT/'tools'))
    main(*sys.argv[1:])
