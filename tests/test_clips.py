"Clips of other lengths and rates: cut, trained on, asked about, and what is lost by them."
import json
from dataclasses import replace

import numpy as np
import pytest

from vlmtemporal import dataset
from vlmtemporal.basics import BadInput, json_hash
from vlmtemporal.cli import _asked, _spec
from vlmtemporal.clips import KINDS, boundaries, session_clips
from vlmtemporal.dataset import build
from vlmtemporal.engine import Engine
from vlmtemporal.evaluation import evaluate
from vlmtemporal.frames import FrameSpec, clip_frames
from vlmtemporal.inspection import check
from vlmtemporal.openpack import sessions
from vlmtemporal.operations import LOGISTICS, OPENPACK
from vlmtemporal.prompts import messages
from vlmtemporal.shards import Shards
from vlmtemporal.study import study
from vlmtemporal.trainer import TrainConfig
from vlmtemporal.train import fit

EVERY = ('boundary', 'anticipation', 'sliding')


def length(seconds, fps, **rest):
    return FrameSpec('uniform', 2, (28, 28), n_frames=clip_frames(seconds, fps), fps=fps, **rest)


@pytest.fixture(scope='module')
def three(mock, tmp_path_factory):
    "Three people of the mock data."
    root = tmp_path_factory.mktemp('three')
    for subject in 'U0101', 'U0102', 'U0108': (root/subject).symlink_to(mock/subject)
    return root


@pytest.fixture(scope='module')
def trained(three, tmp_path_factory):
    "Shards and an adapter for clips of some length, made once each."
    made = {}

    def make(seconds, fps):
        if (seconds, fps) not in made:
            out = tmp_path_factory.mktemp('clips')
            build(three, out/'shards', spec=length(seconds, fps), max_clips=2, protocol='leave-out:U0108')
            run = fit(out/'shards', out/'run', 'tiny', TrainConfig(max_steps=1, micro_batch=1, accumulation=1))
            made[seconds, fps] = out/'shards', run.adapter
        return made[seconds, fps]
    return make


def test_five_seconds_are_what_they_were(mock):
    "Clips and prompts, to the byte: hashes of what the version before other lengths gave."
    clips = [c.to_dict() for s in sessions(mock) for c in session_clips(s, 60., 3, EVERY)]
    assert json_hash(clips) == 'e94dfc6f71b6d2dc0f505bfa7733d3132d57067babd787670df52c894d5b00fb'
    prompts = [messages([-25, 0, 61, 124], t) for t in (LOGISTICS, OPENPACK)]
    assert json_hash(prompts) == '2cf3147f132fa2211b59c5109cf45538a8854860329ecff6522ae7922cf1387b'


@pytest.mark.parametrize('seconds, fps', [(2, 10), (12, 5), (60, 2)])
def test_any_length_is_built_trained_and_asked(trained, video, seconds, fps):
    shards, adapter = trained(seconds, fps)
    n, spec = seconds*fps, length(seconds, fps)
    test = Shards(shards/'test')
    assert test.spec == spec and all((e.n_frames, e.fps) == (n, fps) for e in test)
    assert all(test.meta(i)['fps'] == fps and e.answer.end_frame < n for i, e in enumerate(test))
    found = check(shards)
    assert not found.problems and found.splits['test']['clips'] == f'{seconds} s at {fps} fps'
    result = evaluate(shards, 'tiny', [adapter], clips=1)
    assert all(c.n_frames == n and c.fps == fps for c in result.clips)
    assert type(result).from_dict(json.loads(json.dumps(result.to_dict()))).clips == result.clips
    engine = Engine('tiny', adapter)
    assert engine.spec == spec
    timeline = engine.analyze(video, 60.).timeline
    assert timeline.segments[0].start == 0 and timeline.segments[-1].end == pytest.approx(timeline.duration)
    a = engine.predict(video, 3.).answer
    assert 0 <= a.start_frame < a.end_frame < n


def test_other_lengths_are_other_questions(trained, video, cli):
    "An adapter is asked about clips like those that it learnt from, and about no others."
    (_, adapter), (long, _) = trained(2, 10), trained(12, 5)
    with pytest.raises(BadInput, match='clips of 2 s at 10 fps; these shards hold clips of 12 s.*--seconds 2 --fps 10'):
        evaluate(long, 'tiny', [adapter])
    with pytest.raises(BadInput, match='trained on 2 frames of clips of 2 s at 10 fps.*--adapter none'):
        _asked(Engine('tiny', adapter), _spec(None, None, 5))
    engine = Engine('tiny', 'none')
    assert _asked(engine, _spec(None, None, 60, 1, 3, engine.spec)) == FrameSpec(k=3, n_frames=60, fps=1)
    code, out, _ = cli('sample', video, '--seconds', 60, '--fps', 1, '--k', 3, '--json')
    assert code == 0 and [json.loads(out)[name] for name in ('fps', 'n_frames')] == [1, 60]


@pytest.mark.parametrize('options, said', [
    (('--seconds', 61), '--seconds'), (('--fps', 61), '--fps'), (('--fps', 1), 'at most 5')])
def test_lengths_that_no_clip_has(cli, mock, tmp_path, options, said):
    code, _, err = cli('build', mock, tmp_path/'out', *options)
    assert code == 2 and said in err and not (tmp_path/'out').exists()


def test_recordings_shorter_than_a_clip(three, tmp_path, monkeypatch):
    def brief(root, **_): return [replace(s, segments=s.segments[:1]) for s in sessions(root)]
    monkeypatch.setattr(dataset, 'sessions', brief)
    with pytest.raises(BadInput, match='no clip lies in its .*shorter clips with --seconds'):
        build(three, tmp_path/'out', 'train', length(60, 2), protocol='leave-out:U0108')
    assert not (tmp_path/'out').exists()


def test_what_is_lost_is_counted(three, cli, tmp_path):
    "In the index, and by `check`; the hashes of a data set are those that it had without."
    build(three, tmp_path, 'test', length(30, 2), protocol='leave-out:U0108')
    lost = Shards(tmp_path/'test').lost
    assert lost['never'] and lost['segments'] >= sum(lost['never'].values())
    code, out, _ = cli('check', tmp_path)
    assert code == 0 and 'test lost: operations that are the answer of no clip' in out and '30 s at 2 fps' in out


def test_study_of_another_length(three):
    few = study(three, ('uniform',), length(10, 4))
    assert few.rows[0]['recall']['0.25']['mean'] < .3 and few.rows[0]['gap']['mean'] > 3


@pytest.mark.parametrize('seconds, fps', [(2, 10), (2, 1), (12, 5), (60, 2), (7.3, 13), (60, 60)])
def test_clips_lie_on_their_grid(mock, seconds, fps):
    "Every boundary clip has a frame on either side of its boundary; none leaves the recording."
    spec = FrameSpec(k=1, n_frames=clip_frames(seconds, fps), fps=fps)
    session = sessions(mock)[0]
    end = session.segments[-1].end
    for c in session_clips(session, kinds=KINDS, spec=spec):
        assert abs(c.start*fps - round(c.start*fps)) < 1e-6 and 0 <= c.start <= end - spec.seconds + .5/fps
        assert 0 <= c.answer.start_frame <= c.answer.end_frame < spec.n_frames
        if c.kind == 'boundary':
            at = np.array([t for t, _, _ in boundaries(session)])
            assert 0 < c.boundary <= spec.n_frames - 1 and np.abs((at - c.start)*fps - c.boundary).min() < .01
