"A pushed notebook in a local Kaggle: one chapter here, all of them in `make kaggle-check`."
import json, os, shutil, sys
from pathlib import Path

import pytest

from conftest import ROOT
from local_kaggle import LAYOUTS, attach, chain, mounted, recordings, run, session_python, wheels_here

CHECK = os.environ.get('VLMTEMPORAL_KAGGLE_CHECK')
IMAGE = os.environ.get('KAGGLE_PYTHON')
long = pytest.mark.skipif(not (CHECK and IMAGE), reason='make kaggle-check')


def test_chapter_4_answers_about_what_is_attached(mock, tmp_path):
    inputs = tmp_path/'inputs'
    shutil.copytree(mock, tmp_path/'data', ignore=shutil.ignore_patterns('U010[1-7]'))
    attach(tmp_path/'data', mounted(inputs, 'datasets', 'my-recordings', 'owner'))
    python = session_python(Path(sys.executable), tmp_path/'python', ROOT)
    values = dict(adapter='tiny', videos=1, stride=5.)
    ran = run(ROOT/'kaggle'/'04_serve'/'04_serve.ipynb', python, inputs, tmp_path/'session', values)
    assert not ran.error, ran.error
    left = sorted(p.suffix for p in (ran.work/'answers').iterdir())
    assert left == ['.csv', '.json', '.png', '.png']
    cells = json.loads((tmp_path/'session'/'04_serve.ipynb').read_text())['cells']
    assert sum('image/png' in o.get('data', {}) for c in cells for o in c.get('outputs', [])) == 2


@long
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('form', ['zip', 'elan'])
@pytest.mark.parametrize('newest', [False, True], ids=['image', 'newest'])
def test_all_chapters_as_pushed(tmp_path, layout, form, newest):
    first = os.environ.get('KAGGLE_NEWEST')
    if newest and not first: pytest.skip('KAGGLE_NEWEST names no folder of newer packages')
    data = recordings(form, tmp_path)
    ran = chain(Path(IMAGE), wheels_here(tmp_path/'wheels'), data, tmp_path/'out', layout,
                first=Path(first) if newest else None)
    assert [r.name for r in ran if r.error] == [] and max(r.seconds for r in ran) < 360
