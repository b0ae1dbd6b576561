"An adapter is asked about the frames that it was trained on: the same indices, the same pixels, by whatever way in."
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from vlmtemporal import decode
from vlmtemporal.adapters import Adapter
from vlmtemporal.api import create_app
from vlmtemporal.app import _picture, show_clip
from vlmtemporal.cli import app
from vlmtemporal.clips import Clip
from vlmtemporal.dataset import build
from vlmtemporal.engine import Engine
from vlmtemporal.frames import FrameSpec
from vlmtemporal.openpack import WORKSPACE, sessions
from vlmtemporal.sampling import sample_clip
from vlmtemporal.shards import Example, Shards, cut, jpeg
from vlmtemporal.train import TrainConfig, fit
from vlmtemporal.twin import make_twin

SPEC = FrameSpec('entropy', k=6, size=(112, 112), roi=WORKSPACE, context_seconds=1.)
STRIDE = 2.5 # seconds between sliding clips; asked with the same, `analyze` looks at the same stretches


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    "Somebody to train on and somebody to test on, for one box each."
    return make_twin(tmp_path_factory.mktemp('twin')/'twin', boxes=1, size=(320, 240), only=('U0101', 'U0108'))


@pytest.fixture(scope='module')
def session(recorded): return sessions(recorded, ('U0108',))[0]


@pytest.fixture(scope='module')
def built(recorded, tmp_path_factory):
    "Training clips, and boundary and sliding clips of the test person."
    out = tmp_path_factory.mktemp('frames')/'shards'
    build(recorded, out, 'train', SPEC, max_clips=4)
    build(recorded, out, 'test', SPEC, kinds=('boundary', 'sliding'))
    return out


@pytest.fixture(scope='module')
def adapter(built, tmp_path_factory):
    "Two steps of training."
    config = TrainConfig(max_steps=2, micro_batch=1, accumulation=1, gradient_checkpointing=False)
    return fit(built, tmp_path_factory.mktemp('run')/'run', config=config).adapter


@pytest.fixture(scope='module')
def stored(built):
    "What `build` chose for the test person: start -> (indices, JPEG files)."
    shards, found = Shards(built/'test'), {}
    for i in range(len(shards)):
        meta, members = shards.meta(i), shards.members(i)
        found[meta['start']] = meta['indices'], [members[f'{j}.jpg'] for j in range(len(meta['indices']))]
    return found


@pytest.fixture
def asked(monkeypatch):
    "The examples that reach the model, whoever asks."
    examples, constrained = [], decode.DECODERS['constrained']

    def recorded(loaded, some, *args, **kwargs):
        examples.extend(some)
        return constrained(loaded, some, *args, **kwargs)

    monkeypatch.setitem(decode.DECODERS, 'constrained', recorded)
    return examples


def same(example, stored):
    "Are these the frames that `build` stored for that stretch of the video, to the byte of their JPEG files?"
    indices, files = stored[example.start]
    return example.indices.tolist() == indices and [jpeg(f[..., ::-1]) for f in example.frames] == files


def run(*args):
    "A command in this process, where what reaches the model is recorded."
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_the_recipe_travels_from_the_index_into_the_adapter(built, adapter):
    assert Shards(built/'train').spec == Shards(built/'test').spec == Adapter.load(adapter).spec == SPEC
    index = json.loads((built/'test'/'index.json').read_text())
    assert FrameSpec.from_dict(index['frames']) == SPEC and set(index['frames']) == set(SPEC.to_dict())


def test_the_comparison_can_fail(stored, session):
    "Without the region, or without the context, other frames are chosen."
    starts, video = [s for s in stored if s > 1][:6], session.open()
    for spec in (SPEC, replace(SPEC, roi=None), replace(SPEC, context_seconds=0.), replace(SPEC, k=8)):
        clips = [sample_clip(video, s, spec) for s in starts]
        examples = [Example('clip', c.frames, c.indices, None, 'clip', c.start, c.n_frames) for c in clips]
        assert all(same(e, stored) for e in examples) == (spec == SPEC)


def test_predict(adapter, stored, asked, session):
    starts = [s for s in stored if s > 1][:2]
    for start in starts: run('predict', session.source, '--start', start, '--adapter', adapter, '--json')
    assert [e.start for e in asked] == starts and all(same(e, stored) for e in asked)


def test_analyze(adapter, stored, asked, session):
    run('analyze', session.source, '--adapter', adapter, '--stride', STRIDE, '--json')
    assert len(asked) > 10 and all(same(e, stored) for e in asked)


def test_the_served_page_and_the_api(adapter, stored, asked, session):
    engine, start = Engine(adapter=adapter), [s for s in stored if s > 1][2]
    assert engine.spec == SPEC
    with engine.place() as ticket: *_, (page, _) = show_clip(engine, ticket, str(session.source), start)
    with open(session.source, 'rb') as f:
        answer = TestClient(create_app(engine)).post('/predict', files={'video': ('a.mp4', f)}, data={'start': start})
    assert answer.status_code == 200 and len(asked) == 2 and all(same(e, stored) for e in asked)
    assert page.count('<li><img') == 8 and all(_picture(frame) in page for frame in asked[0].frames)


def test_eval(recorded, session, built, adapter, stored, asked, tmp_path):
    "Clips out of the shards, then a whole session out of its video, for the base and for the adapter."
    run('eval', built, tmp_path/'report', '--adapter', adapter, '--clips', 4, '--root', recorded, '--sessions', 1)
    of_clips = [e for e in asked if '@' not in e.key]
    windows = [e for e in asked if '@' in e.key]
    assert len({e.key for e in of_clips}) == 4 and len({e.start for e in windows}) > 20
    for e in of_clips:
        indices, files = stored[e.start]
        picture = cv2.imdecode(np.frombuffer(files[0], np.uint8), cv2.IMREAD_COLOR)
        assert e.indices.tolist() == indices and (e.frames[0] == picture[..., ::-1]).all()
    clips = [Clip(str(s), session.key, s, 125, None, None) for s in sorted({e.start for e in windows})]
    expected = {e.start: e for e in cut(session.open(), clips, SPEC)}
    for e in windows:
        assert e.indices.tolist() == expected[e.start].indices.tolist()
        assert (e.frames == expected[e.start].frames).all()
