"Chapters 0 and 1 as they are pushed, on what is attached: a fresh twin, zipped and as videos with tables of labels."
import json, os, shutil, time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from vlmtemporal.recordings import sessions
from vlmtemporal.runtime import scan
from vlmtemporal.shards import find_split
from vlmtemporal.twin import make_twin

LONG = os.environ.get('VLMTEMPORAL_KAGGLE_CHECK') == '1'


def as_videos(root: Path, out: Path) -> Path:
    "The sessions of a twin as anybody has them: a film a person, and a table beside it."
    for s in sessions(root):
        (out/s.subject).mkdir(parents=True)
        shutil.copy(s.source, out/s.subject/'bench.mp4')
        rows = [f'{x.start},{x.end},{x.operation}' for x in s.segments]
        (out/s.subject/'bench.csv').write_text('\n'.join(['start,end,label', *rows]))
    return out


def as_zip(root: Path, out: Path) -> Path: return Path(shutil.make_archive(str(out/'all'), 'zip', root))


@pytest.fixture
def pushed(root, tmp_path, monkeypatch):
    "Run a pushed notebook as Kaggle does: (its texts, its working folder, seconds)."
    def run(chapter, inputs, **settings):
        work = tmp_path/chapter
        work.mkdir()
        env = dict(KAGGLE_KERNEL_RUN_TYPE='Batch', VLMTEMPORAL_INPUTS=inputs, VLMTEMPORAL_WORK=work,
                   VLMTEMPORAL_CACHE=tmp_path/'cache', OMP_NUM_THREADS=1, PYTHONPATH=root)
        for name, value in env.items(): monkeypatch.setenv(name, str(value))
        notebook = nbformat.read(root/'kaggle'/chapter/f'{chapter}.ipynb', 4)
        at = next(i for i, c in enumerate(notebook.cells) if 'parameters' in c.metadata.get('tags', ()))
        said = '\n'.join(f'{name} = {value!r}' for name, value in settings.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(said))
        start = time.time()
        NotebookClient(notebook, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=work))).execute()
        outputs = [o for c in notebook.cells for o in c.get('outputs', ())]
        assert not any(o.get('name') == 'stderr' for o in outputs), 'noise'
        return json.dumps(outputs), work, time.time() - start
    return run


def test_chapter_1_builds_what_is_attached(pushed, mock, tmp_path):
    "Two films of somebody, a few clips; chapter 2 finds the shards below this notebook's output."
    some = tmp_path/'some'
    for who in ('U0107', 'U0108'): shutil.copytree(mock/who, some/who)
    as_videos(some, tmp_path/'input'/'datasets'/'alice'/'films')
    before = sorted((tmp_path/'input').rglob('*'))
    said, work, _ = pushed('01_dataset', tmp_path/'input', max_clips=4, sampler='uniform')
    assert 'no problem' in said and 'films (2 videos and 2 files' in said
    assert [f.path for f in scan(work) if f.kind != 'videos'] == [work/'shards']
    shards = find_split(work/'shards', 'train')
    assert len(shards) == 4 and shards.spec.sampler == 'uniform' and sorted((tmp_path/'input').rglob('*')) == before
    assert (work/'check.json').exists() and (work/'samples'/'index.html').exists()


@pytest.mark.skipif(not LONG, reason='takes minutes: `make kaggle-check`')
@pytest.mark.parametrize('form', [as_zip, as_videos], ids=['zip', 'videos'])
def test_chapters_0_and_1_on_a_fresh_twin(form, pushed, tmp_path):
    "Each in less than six minutes."
    place = tmp_path/'input'/'datasets'/'alice'/'recs'/'deep'
    place.mkdir(parents=True)
    form(make_twin(tmp_path/'fresh', seed=77, boxes=1, only=('U0101', 'U0107', 'U0108')), place)
    said, work, seconds = pushed('00_sampling', tmp_path/'input')
    assert seconds < 360 and said.count('image/png') == 5 and 'novelty-inverse' in said
    assert sorted(p.name for p in (work/'study').iterdir()) == ['study.json', 'study.md', 'study.png']
    said, work, seconds = pushed('01_dataset', tmp_path/'input')
    assert seconds < 360 and 'no problem' in said and len(find_split(work/'shards', 'test'))
