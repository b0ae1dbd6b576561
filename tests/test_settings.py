"Numbers that cannot be are refused in one sentence before anything is written; those that can be do what they say."
import json
import math
import sys

import cv2
import numpy as np
import pytest

from vlmtemporal import cli, experiments, train
from vlmtemporal.adapters import Adapter
from vlmtemporal.basics import BadInput, VLMTemporalError
from vlmtemporal.checkpoints import last_checkpoint
from vlmtemporal.clips import window_starts
from vlmtemporal.dataset import build
from vlmtemporal.decode import answer_batches, constrained, generate
from vlmtemporal.engine import Engine
from vlmtemporal.evaluation import evaluate
from vlmtemporal.experiments import ablate, leave_one_person_out
from vlmtemporal.frames import FrameSpec, clip_grid
from vlmtemporal.operations import LOGISTICS
from vlmtemporal.samplers import get_sampler
from vlmtemporal.shards import find_split
from vlmtemporal.train import fit
from vlmtemporal.trainer import TrainConfig, check_run, setting_fields, train_config
from vlmtemporal.twin import make_twin
from vlmtemporal.video import open_video

FEW = dict(micro_batch=2, accumulation=1)


@pytest.fixture
def command(monkeypatch, capsys):
    "The command in this process: (exit code, stdout, stderr)."
    def run(*typed):
        monkeypatch.setattr(sys, 'argv', ['vlmtemporal', *map(str, typed)])
        with pytest.raises(SystemExit) as e: cli.main()
        return (e.value.code or 0, *capsys.readouterr())
    return run


def refused(done, *words):
    "One line, exit code 2, with all of these words."
    code, out, err = done
    assert code == 2 and out == '' and err.startswith('error: ') and len(err.splitlines()) == 1, done
    assert 'unexpected' not in err and len(err) < 400 and all(str(w) in err for w in words), err


# ---- settings of a training ------------------------------------------------------------------------------------------
NUMBERS = [s.name for s in setting_fields() if s.type in (int, float)]
NO_NUMBERS = [math.nan, math.inf, -math.inf, -2, True, False, '5', '', None, [1], {}, 10**400, 1e300, '\n'*999]


@pytest.mark.parametrize('name', NUMBERS)
def test_no_setting_takes_what_is_no_number_of_its(name):
    "The sentence names the setting, the value and what is allowed."
    for value in NO_NUMBERS:
        with pytest.raises(BadInput) as e: TrainConfig(**{name: value})
        said = str(e.value)
        assert said.startswith(f'{name}: ') and len(said.splitlines()) == 1 and len(said) < 250, said
        assert repr(value)[:40] in said and 'number' in said and f'for example {name}=' in said, said


WRONG = dict(epochs=(0, -1), max_steps=(0, -2, 2.7), learning_rate=(0, -1e-4, 2), warmup=(-.1, 1, 5),
             micro_batch=(0, -1, 2.7, 10**9), accumulation=(0, 1.5), max_grad_norm=(-1,), lora_r=(0, -8, 2.7, 10**9),
             lora_alpha=(0, 1.5), lora_dropout=(-.1, 1, 1.5), save_steps=(0, -1, .5), keep=(0, -1, 1.5),
             seed=(-1, 2**32), max_hours=(-1,), gradient_checkpointing=(1, 0, 'yes', None, .5),
             report_to=(3, None, 'comet'), validate_steps=(-1, .5), validate_clips=(0, 1.5), patience=(-1, .5),
             best=(3, None, 'F1'))


@pytest.mark.parametrize('name, value', [(n, v) for n, some in WRONG.items() for v in some])
def test_a_refused_setting_leaves_nothing(name, value, tmp_path, command):
    "By file, and by option where an option can say it; the corrected command is not refused afterwards."
    (tmp_path/'c.json').write_text(json.dumps({name: value}))
    refused(command('train', tmp_path/'shards', tmp_path/'out', '--config', tmp_path/'c.json'), name)
    if not isinstance(value, (str, type(None))):
        refused(command('train', tmp_path/'shards', tmp_path/'out', '--set', f'{name}={value}x'), name)
    if name not in ('gradient_checkpointing', 'report_to', 'best'):
        refused(command('train', tmp_path/'shards', tmp_path/'out', '--set', f'{name}={value}'), name, value)
        refused(command('train', tmp_path/'shards', tmp_path/'out', '--' + name.replace('_', '-'), value), value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['c.json']


def test_a_whole_number_may_have_a_point():
    assert TrainConfig(lora_r=2., epochs=1) == TrainConfig(lora_r=2, epochs=1.)
    assert train_config(settings=['lora_r=4.0', 'seed=7', 'warmup=0']) == TrainConfig(lora_r=4, seed=7, warmup=0.)


def test_the_shortest_run_trains(shards, tmp_path):
    "One step, at the peak of the learning rate whatever the warm-up; the adapter is not the untrained base."
    for n, settings in enumerate((dict(max_steps=1), dict(max_steps=1, warmup=.99), dict(epochs=.01))):
        run = fit(shards, tmp_path/str(n), config=TrainConfig(**settings, **FEW, learning_rate=1e-3))
        assert run.finished and run.steps == 1 and run.history[0]['learning_rate'] == 1e-3
        weights = Adapter.load(run.adapter).path/'adapter_model.safetensors'
        from safetensors.numpy import load_file
        assert any(w.any() for name, w in load_file(weights).items() if 'lora_B' in name)


def test_the_warm_up_is_a_share_of_the_steps(shards, tmp_path):
    "Half of four steps: two; three hundredths of four: none."
    for warmup, rising in ((.5, 2), (.03, 0)):
        config = TrainConfig(max_steps=4, warmup=warmup, **FEW, learning_rate=1e-3)
        run = fit(shards, tmp_path/str(rising), config=config)
        rates = [h['learning_rate'] for h in run.history]
        assert rates[rising] == max(rates) == 1e-3 and rates[:rising] == [0, 5e-4][:rising]


def test_steps_that_change_nothing_are_no_training(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'save_adapter', lambda *_: pytest.fail('an untrained adapter is written'))
    config = TrainConfig(max_steps=1, **FEW, learning_rate=1e-9, max_grad_norm=1e-30)
    import torch
    monkeypatch.setattr(torch.optim.AdamW, 'step', lambda *_, **__: None)
    with pytest.raises(VLMTemporalError, match='1 optimiser steps changed nothing'):
        fit(shards, tmp_path/'run', config=config)


def test_keep_says_how_many_checkpoints_stay(shards, tmp_path):
    for keep in (1, 2):
        out = tmp_path/str(keep)
        fit(shards, out, config=TrainConfig(max_steps=4, save_steps=1, keep=keep, **FEW))
        kept = sorted(p.name for p in (out/'checkpoints').glob('checkpoint-*'))
        assert kept == [f'checkpoint-{i}' for i in range(5 - keep, 5)] and last_checkpoint(out).name == 'checkpoint-4'


def test_more_at_once_than_there_is(shards, tmp_path, monkeypatch):
    "A micro-batch of more than all examples, or passes that processes cannot share, before anything is loaded."
    n = len(find_split(shards, 'train'))
    monkeypatch.setattr(train, 'load_model', lambda *_: pytest.fail('too late'))
    with pytest.raises(BadInput, match=f'micro_batch: {n + 1} examples at once are more than the {n} .*at most {n}'):
        fit(shards, tmp_path/'run', config=TrainConfig(micro_batch=n + 1))
    with pytest.raises(BadInput, match='accumulation: 8 forward passes .*3 processes; give a multiple of 3'):
        check_run(TrainConfig(), n, processes=3)
    with pytest.raises(BadInput, match=f'in each of 3 processes are more .*give at most {n//3}'):
        check_run(TrainConfig(micro_batch=n//3 + 1, accumulation=3), n, processes=3)
    assert not (tmp_path/'run').exists()


def test_a_run_that_failed_at_its_start_gives_the_folder_back(shards, tmp_path, monkeypatch):
    "No checkpoint, nothing to go on with: the same folder takes the corrected command."
    def fail(*_, **__): raise RuntimeError('planted')
    with monkeypatch.context() as m:
        m.setattr(train, 'make_trainer', fail)
        with pytest.raises(RuntimeError): fit(shards, tmp_path/'run', config=TrainConfig(max_steps=2, **FEW))
    from transformers import Trainer
    with monkeypatch.context() as m:
        m.setattr(Trainer, 'train', fail)
        with pytest.raises(RuntimeError): fit(shards, tmp_path/'run', config=TrainConfig(max_steps=2, **FEW))
    assert not (tmp_path/'run'/'run.json').exists()
    assert fit(shards, tmp_path/'run', config=TrainConfig(max_steps=1, **FEW)).finished
    with pytest.raises(BadInput, match='was started with another config'):
        fit(shards, tmp_path/'run', config=TrainConfig(max_steps=2, **FEW), resume=True)
    (tmp_path/'killed').mkdir()
    (tmp_path/'killed'/'run.json').write_text('{"model": "tiny", "config": {}}') # killed before its first checkpoint
    assert fit(shards, tmp_path/'killed', config=TrainConfig(max_steps=1, **FEW), resume=True).finished


# ---- numbers of other commands ---------------------------------------------------------------------------------------
OPTIONS = {
    'sample V': {'--k': '0 -1 2.7 3601 nan many', '--start': '-1 nan inf x'},
    'predict V': {'--start': '-1 nan -inf x'},
    'analyze V': {'--stride': '0 -1 nan inf .001', '--context': '-1 6 nan'},
    'study V': {'--workers': '0 -1 1.5', '--seed': '1.5 nan'},
    'build V out': {'--k': '0 nan', '--context': 'nan', '--max-clips': '0 -3 1.5 nan', '--hard-jitter': '-1 nan 3',
                    '--workers': '0'},
    'train V out': {'--processes': '0 -1 1.5 999'},
    'preflight V': {'--vram': '0 -16 nan inf'},
    'eval V out': {'--clips': '-1 1.5 nan', '--sessions': '-1 nan'},
    'ablate V out': {'--clips': '-1', '--max-clips': '0', '--seeds': '0 nan', '--workers': '0'},
    'lopo V out': {'--clips': '-1', '--max-clips': '-1', '--workers': '0'},
    'twin out': {'--subjects': '0 -1 1.5 100', '--sessions': '0', '--boxes': '0 nan'},
    'demo out': {'--steps': '0 -1 1.5'},
}


@pytest.mark.parametrize('typed', OPTIONS)
def test_a_refused_option_leaves_nothing(typed, tmp_path, command, monkeypatch):
    "The sentence names the option, the value and what is allowed; the place that it works on is not even looked at."
    monkeypatch.chdir(tmp_path)
    for option, values in OPTIONS[typed].items():
        for value in values.split():
            done = command(*typed.split(), option, value)
            refused(done, f'{option}: ', 'is not allowed; give a ', 'number from ', value.lstrip('-0.') or '0')
    assert list(tmp_path.iterdir()) == []


SERVE = dict(port='-1 65536 8000.5 nan', places='0 -1 1.5', max_mib='0 -1 nan inf', log='loud')

@pytest.mark.parametrize(('setting', 'value'), [(s, v) for s, values in SERVE.items() for v in values.split()])
def test_a_server_that_cannot_be_is_refused(setting, value, command):
    refused(command('serve', f'--{setting.replace("_", "-")}', value), f'error: {setting}: ', 'is not allowed; give ')


NOTHING = object() # in the place of what a refused call must not even look at


def below(v):
    "Where zero is allowed, less than zero."
    return -1 if v == 0 else v


CALLS = {
    'build: max_clips': lambda v: build('nowhere', 'out', max_clips=v),
    'build: workers': lambda v: build('nowhere', 'out', workers=v),
    'build: hard_jitter': lambda v: build('nowhere', 'out', hard_jitter=below(v)),
    'build: max_bytes': lambda v: build('nowhere', 'out', max_bytes=v),
    'frames: k': lambda v: FrameSpec(k=v),
    'frames: width': lambda v: FrameSpec(size=(v, 336)),
    'sampler: k': lambda v: get_sampler('uniform')(np.zeros(9), v),
    'windows: stride': lambda v: window_starts(60., v),
    'evaluate: clips': lambda v: evaluate('nowhere', clips=below(v)),
    'evaluate: max_sessions': lambda v: evaluate('nowhere', max_sessions=below(v)),
    'ablate: seeds': lambda v: ablate('nowhere', 'out', seeds=v),
    'answers: batch': lambda v: list(answer_batches(NOTHING, [], LOGISTICS, batch=v)),
    'constrained: beams': lambda v: constrained(NOTHING, [], LOGISTICS, beams=v),
    'constrained: temperature': lambda v: constrained(NOTHING, [], LOGISTICS, temperature=v),
    'generate: max_new_tokens': lambda v: generate(NOTHING, [], LOGISTICS, v),
    'engine: queue': lambda v: Engine('nowhere', queue=v),
    'twin: subjects': lambda v: make_twin('out', subjects=v),
    'twin: boxes': lambda v: make_twin('out', boxes=v),
    'preflight: vram': lambda v: train.preflight('nowhere', vram=v),
    'launch: processes': lambda v: train.launch(['true'], v),
}


@pytest.mark.parametrize('what', CALLS)
def test_no_function_takes_what_is_no_number_of_its(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (0, -1, math.nan, math.inf, True, '8', 10**20):
        with pytest.raises(BadInput, match='number|allowed'): CALLS[what](value)
    assert list(tmp_path.iterdir()) == []


def test_what_lets_nothing_through_is_refused(mock, tmp_path):
    from vlmtemporal.intake import ServerSettings
    for limits in (dict(places=0), dict(decoding=-1), dict(max_mib=0), dict(max_mib=math.nan), dict(port=65536)):
        with pytest.raises(BadInput, match='is not allowed'): ServerSettings(**limits)
    for kinds in ((), ('',), ('boundary', 'nonsense')):
        with pytest.raises(BadInput, match='use some of boundary'): build(mock, tmp_path/'out', kinds=kinds)
    assert not (tmp_path/'out').exists()


def test_a_refused_experiment_gives_the_folder_back(mock, shards, tmp_path, monkeypatch):
    "What can be known before anything is written is; what only the data say, before a model is trained."
    out, wrong = tmp_path/'out', (dict(protocol='nonsense'), dict(model='nonsense'), dict(clips=-1), dict(max_clips=0))
    for settings in wrong:
        with pytest.raises(BadInput): ablate(mock, out, **settings)
    for settings in wrong[1:]:
        with pytest.raises(BadInput): leave_one_person_out(mock, out, **settings)
    assert not out.exists()
    monkeypatch.setattr(experiments, '_build', lambda campaign, run: None)
    monkeypatch.setattr(experiments, 'fit', lambda *_, **__: pytest.fail('too late'))
    monkeypatch.setattr(experiments, 'find_split', lambda *_: find_split(shards, 'test'))
    for experiment in (ablate, leave_one_person_out):
        with pytest.raises(BadInput, match='holds .* of 999 boundary clips'): experiment(mock, out, clips=999)
        assert not (out/'recipe.json').exists()


# ---- clips that end early --------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def movie(tmp_path_factory):
    "A video of so many frames."
    folder = tmp_path_factory.mktemp('movies')
    def make(n, fps=25):
        path = folder/f'{n} at {fps}.mp4'
        out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, (64, 48))
        for i in range(n): out.write(np.full((48, 64, 3), i*7 % 255, np.uint8))
        out.release()
        return path
    return make


@pytest.mark.parametrize('n', [1, 2, 3, 24, 74, 75, 99, 123, 124, 125, 149])
def test_a_clip_has_the_frames_that_the_video_has(n, movie):
    "Rounding in a duration is no frame."
    assert len(clip_grid(open_video(movie(n)))) == min(n, 125)


@pytest.mark.parametrize('n', [1, 2, 3, 4, 124, 125])
def test_answers_lie_in_the_clip(n, movie):
    "By both decoders, over the page's and the API's way, and at the end of a video."
    engine = _engine()
    path = movie(n)
    for video, start in ((path, 0.), (movie(200), (200 - n)/25 if n < 125 else 0.)):
        clip = engine.sample(video, start)
        assert clip.n_frames == n and clip.indices.max() < n
        span = engine.answer(clip).to_dict()['temporal_segment']
        assert 0 <= span['start_frame'] <= span['end_frame'] < n
    written = engine.answer(engine.sample(path), 'generate').answer
    assert written is None or written.end_frame is None or written.end_frame < n
    segments = engine.analyze(path).timeline.segments
    assert segments[-1].end <= n/25 + 1e-6


ENGINES: list = []

def _engine():
    if not ENGINES: ENGINES.append(Engine('tiny'))
    return ENGINES[0]
