"A session dies, its output is attached to the next one, and the run ends as if nothing had happened."
import json, os, random, shutil, signal, sys, time
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import once
from forked import Command, python, started
from vlmtemporal.adapters import Adapter
from vlmtemporal.backbones import bundled_model, fingerprint, model_config
from vlmtemporal.basics import BadInput, VLMTemporalWarning, file_hash, json_hash, read_json, write_json
from vlmtemporal.borrowed import model_here, runs_here, shards_here
from vlmtemporal.carrying import carry, run_identity
from vlmtemporal.checkpoints import checkpoint_path, last_checkpoint, mark_complete
from vlmtemporal.runtime import Runtime
from vlmtemporal.shards import find_split
from vlmtemporal.train import _processes, _shared, fit, train_here
from vlmtemporal.trainer import TrainConfig

LONG = os.environ.get('VLMTEMPORAL_KAGGLE_CHECK') == '1'
SETTINGS = dict(max_steps=6, save_steps=2, micro_batch=2, accumulation=1, learning_rate=2e-3)
SHORT = TrainConfig(**SETTINGS)
DRIVER = """
import sys, json
from vlmtemporal.runtime import here
from vlmtemporal.train import TrainConfig, train_here
train_here(here(), None, 'tiny', TrainConfig(**json.loads(sys.argv[1])), processes=int(sys.argv[2]))
"""


def tree(folder): return {str(p.relative_to(folder)): (file_hash(p), p.stat().st_mtime_ns)
                          for p in sorted(folder.rglob('*')) if p.is_file()}
def weights_hash(run): return file_hash(run/'adapter'/'adapter_model.safetensors')
def status(work): return read_json(work/'status.json')


def place(work, *inputs, kind='local'):
    return Runtime(kind, False, tuple(Path(p) for p in inputs), work, work.parent/'scratch')


@pytest.fixture(scope='module')
def whole(shards):
    "A run that nothing happened to."
    return once('carried', lambda out: fit(shards, out, config=SHORT))


@pytest.fixture
def begun(shards, tmp_path):
    "What a session left that came to step 4 of 6, without real weights."
    out = tmp_path/'input'/'last-version'/'run'
    write_json(out/'run.json', run_identity(find_split(shards, 'train'), 'tiny', SHORT))
    for step in (2, 4):
        write_json(checkpoint_path(out, step)/'trainer_state.json', dict(global_step=step, max_steps=6))
        mark_complete(checkpoint_path(out, step))
    return out


def gone(work):
    "Wait until no process of a session is left that writes there."
    def alive(): return [p for p in Path('/proc').glob('[0-9]*') if str(work) in cmdline(p)]
    def cmdline(p):
        try: return (p/'cmdline').read_text()
        except OSError: return ''
    deadline = time.time() + 60
    while alive() and time.time() < deadline: time.sleep(.1)
    assert not alive(), 'a training process outlives its session'


def session(work, inputs, settings, processes=1):
    "A session's notebook, in a process of its own that can be killed."
    env = os.environ | dict(VLMTEMPORAL_INPUTS=os.pathsep.join(map(str, inputs)), VLMTEMPORAL_WORK=str(work),
                            VLMTEMPORAL_LINES='0')
    work.mkdir(parents=True)
    with open(work.with_suffix('.log'), 'w') as log:
        command = started('-c', DRIVER, json.dumps(settings), str(processes))
        return Command(command, env=env, stdout=log, stderr=log)


def steps_said(work):
    "Where the session went on, and the last step that it took, by what it said."
    lines = work.with_suffix('.log').read_text().splitlines()
    began = next((int(line.split()[4]) for line in lines if line.startswith('goes on at step')), 0)
    taken = [int(line.split()[1]) for line in lines if line.startswith('step ')]
    return began, max(taken, default=began)


def left_a_run(work): return (work/'run'/'run.json').exists()


def until_done(folder, shards, settings, deaths, how, moment, processes=1):
    """Sessions that die, each fed with the last output that holds a run, and one that does not: their folders.
    One that dies in its first seconds has copied nothing yet."""
    works = []
    for i in range(deaths + 1):
        works.append(folder/f'{i}'/'working')
        before = [shards, *[w for w in works[:-1] if left_a_run(w)][-1:]]
        kept = {p: tree(p) for p in before}
        process = session(works[-1], before, settings, processes)
        if i < deaths:
            moment(works[-1])
            process.send_signal(how)
        code = process.wait(600)
        assert code in (0, -how if i < deaths else 0), works[-1].with_suffix('.log').read_text()
        gone(works[-1])
        assert kept == {p: tree(p) for p in before}, 'what is attached is only read'
        if (works[-1]/'run'/'adapter').exists(): return works
    raise AssertionError(works[-1].with_suffix('.log').read_text())


def check_repeated(works, most):
    "No session takes more steps again than lie between two checkpoints."
    said = [steps_said(w) for w in works if left_a_run(w)]
    again = [last - began for (_, last), (began, _) in zip(said, said[1:])]
    assert all(0 <= n <= most for n in again), said
    return again


def test_killed_then_stopped_by_the_clock_then_done(whole, shards, tmp_path, monkeypatch):
    "Killed, attached; the time is up, attached; done: the uninterrupted run's weights, to the bit."
    monkeypatch.setattr(sys, 'executable', python())
    draw = random.Random()
    def moment(work):
        deadline = time.time() + 300
        while not (work/'run'/'checkpoints').exists() and time.time() < deadline: time.sleep(.02)
        time.sleep(draw.uniform(0, 2.5))
    first, second, third = (tmp_path/n/'working' for n in ('first', 'second', 'third'))
    process = session(first, [shards], SETTINGS)
    moment(first)
    process.kill()
    process.wait()
    gone(first)
    done = (first/'run'/'adapter').exists()
    said, before = [], tree(first)
    run = train_here(place(second, shards, first), None, 'tiny', SHORT, hours=.001, say=said.append)
    if not done:
        assert not run.finished and 0 < run.steps < 6 and run.steps - run.resumed_from == 1, said
        assert status(second) == dict(finished=False, step=run.steps, of=6, line=f'push again: step {run.steps} of 6')
    assert tree(first) == before and said[-1] == status(second)['line']
    run = train_here(place(third, shards, second), None, 'tiny', SHORT, say=said.append)
    assert run.finished and weights_hash(third/'run') == weights_hash(whole)
    assert [h['step'] for h in run.history] == [1, 2, 3, 4, 5, 6] and run.history == read_json(whole/'history.json')
    assert status(third)['finished'] and status(third)['line'] == 'finished: 6 steps, adapter in run/adapter'
    took = time.time()
    again = train_here(place(tmp_path/'fourth'/'working', shards, third), None, 'tiny', SHORT, say=said.append)
    assert again.finished and time.time() - took < 20, 'what is finished is not trained again'
    assert weights_hash(tmp_path/'fourth'/'working'/'run') == weights_hash(whole)


@pytest.mark.skipif(not LONG, reason='minutes: make kaggle-check')
def test_twenty_random_deaths_over_six_runs(shards, tmp_path):
    "Whenever and however a session dies, on one process or two: the adapter of the run that was left alone."
    draw, deaths, repeated, number = random.Random(20), 0, [], 0
    settings = SETTINGS | dict(max_steps=8, save_steps=2, micro_batch=1, accumulation=2)
    whole = {}
    for processes in (1, 2):
        works = until_done(tmp_path/f'whole-{processes}', shards, settings, 0, signal.SIGKILL, None, processes)
        whole[processes] = weights_hash(works[-1]/'run')
    def moment(work): # while it starts, or some steps later
        steps, deadline = draw.randint(0, 4), time.time() + 300
        def taken(): return work.with_suffix('.log').read_text().count('\nstep ')
        while taken() < steps and not (work/'run'/'adapter').exists() and time.time() < deadline: time.sleep(.02)
        time.sleep(draw.uniform(0, 1.5 if steps else 8.))
    while deaths < 20 or number < 6:
        processes, how = (2 if number % 3 == 2 else 1), (signal.SIGTERM if number % 3 == 1 else signal.SIGKILL)
        works = until_done(tmp_path/f'run-{number}', shards, settings, 4, how, moment, processes)
        assert weights_hash(works[-1]/'run') == whole[processes], works
        repeated += check_repeated(works, settings['save_steps'])
        deaths, number = deaths + len(works) - 1, number + 1
        print(f'run {number}: {processes} processes, {how.name}, {deaths} deaths; done twice: {repeated}', flush=True)
    assert deaths >= 20 and number >= 6
    print(f'{deaths} deaths over {number} runs, at most {max(repeated)} steps done twice')


@pytest.mark.skipif(not LONG, reason='a minute: make kaggle-check')
def test_two_visible_gpus_get_a_process_each(shards, tmp_path, monkeypatch):
    "What `preflight` finds is cut so that two can share a step. Here the two GPUs are CPU processes."
    monkeypatch.setattr(Runtime, 'gpus', lambda self: 2)
    said = []
    run = train_here(place(tmp_path/'working', shards), None, 'tiny', SHORT, say=said.append)
    assert run.finished and Adapter.load(run.adapter).training['processes'] == 2
    assert any(line.startswith('preflight: 1 x 2 examples a step') for line in said), said
    assert any(line.endswith(', 2 processes') for line in said), said
    config = Adapter.load(run.adapter).training['config']
    assert (config['micro_batch'], config['accumulation']) == (1, 2)


def test_the_same_model_elsewhere_and_another_cut(begun, shards, tmp_path):
    "A model is known by its weights; a run keeps the cut that it began with."
    data = find_split(shards, 'train')
    for name in 'ab': shutil.copytree(bundled_model(), tmp_path/name/'1')
    write_json(begun/'run.json', run_identity(data, tmp_path/'a'/'1', SHORT))
    shutil.rmtree(tmp_path/'a')
    other = replace(SHORT, micro_batch=1, accumulation=2, gradient_checkpointing=False)
    found = carry([begun], tmp_path/'run', data, tmp_path/'b'/'1', other)
    assert (found.step, found.of, found.source) == (4, 6, begun) and found.config == SHORT
    assert [p.name for p in (tmp_path/'run'/'checkpoints').iterdir()] == ['checkpoint-4']
    with pytest.raises(BadInput, match='begun with another config .micro_batch'): # a step of another size
        carry([begun], tmp_path/'else', data, tmp_path/'b'/'1', replace(SHORT, micro_batch=4))


def test_what_is_another_run_is_refused_or_passed_over(begun, shards, tmp_path):
    said = r'last-version/run: was begun with another {}; .*fresh=True.*remove that input'
    data = find_split(shards, 'train')
    def carried(config=SHORT, data=data, found=(begun,), **kwargs):
        return carry(found, tmp_path/'work'/'run', data, 'tiny', config, **kwargs)
    with pytest.raises(BadInput, match=said.format(r'config .seed.')): carried(replace(SHORT, seed=1))
    with pytest.raises(BadInput, match=said.format('data, shards')): carried(data=find_split(shards/'val', 'val'))
    assert carried(replace(SHORT, seed=1), fresh=True).step == 0 and not (tmp_path/'work').exists()

    another = begun.parent.parent/'another'/'run'
    shutil.copytree(begun, another)
    write_json(another/'run.json', run_identity(data, 'tiny', replace(SHORT, seed=1)))
    broken = begun.parent.parent/'broken'/'run'
    shutil.copytree(begun, broken)
    (broken/'run.json').write_text('{')
    found = carried(found=(another, broken, begun))
    assert found.source == begun and found.step == 4 and len(found.passed_over) == 2
    assert 'another config (seed)' in found.passed_over[0] and 'cannot be read' in found.passed_over[1]
    with pytest.raises(BadInput, match='cannot be read'): carry((broken,), tmp_path/'else'/'run', data, 'tiny', SHORT)
    with pytest.raises(BadInput, match='another config'): carried(replace(SHORT, seed=1), found=())

    assert carried(fresh=True).step == 4, 'the same run goes on'
    assert carried(replace(SHORT, seed=1), fresh=True).step == 0 and last_checkpoint(tmp_path/'work'/'run-1')


def test_a_damaged_checkpoint_is_passed_over(begun, shards, tmp_path):
    data, older = find_split(shards, 'train'), begun.parent.parent/'older'/'run'
    shutil.copytree(begun, older)
    shutil.rmtree(checkpoint_path(older, 4))
    write_json(checkpoint_path(older, 3)/'trainer_state.json', dict(global_step=3, max_steps=6))
    mark_complete(checkpoint_path(older, 3))
    (checkpoint_path(begun, 4)/'trainer_state.json').write_text('{}')
    with pytest.warns(VLMTemporalWarning, match='another trainer_state.json|bytes of trainer_state.json'):
        found = carry(runs_here(place(tmp_path/'work', tmp_path/'input')), tmp_path/'work'/'run', data, 'tiny', SHORT)
    assert found.step == 3 and found.source == older
    shutil.rmtree(begun)
    found = carry(runs_here(place(tmp_path/'work', tmp_path)), tmp_path/'work'/'run', data, 'tiny', SHORT)
    assert found.source is None and found.step == 3, 'what is in the working folder already is not copied'


def test_processes_share_a_step_or_are_fewer():
    one = TrainConfig(micro_batch=16, accumulation=1)
    assert _processes(one, 2, 100) == 1 and _processes(TrainConfig(), 2, 100) == 2
    assert _processes(TrainConfig(), 2, 3) == 1
    cut = _shared(one, 2, 100)
    assert (cut.micro_batch, cut.accumulation) == (8, 2) and _processes(cut, 2, 100) == 2
    assert _shared(TrainConfig(micro_batch=1, accumulation=1), 2, 100).accumulation == 1


def test_what_is_missing_is_said_in_kaggles_words(shards, tmp_path, monkeypatch):
    "At once, and before anything is written."
    work = tmp_path/'working'
    kaggle = place(work, tmp_path/'input', kind='kaggle')
    (tmp_path/'input').mkdir()
    monkeypatch.setattr(Runtime, 'gpus', lambda self: 0)
    for model in (None, 'Qwen/Qwen2.5-VL-3B-Instruct'):
        with pytest.raises(BadInput, match='Accelerator: GPU T4 x2'): train_here(kaggle, None, model)
    assert model_here(kaggle, 'tiny') == 'tiny'
    monkeypatch.setattr(Runtime, 'gpus', lambda self: 2)
    monkeypatch.setattr(Runtime, 'internet', lambda self: False)
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    begin = time.time()
    with pytest.raises(BadInput, match='Add Input'): train_here(kaggle)
    with pytest.raises(BadInput, match='Add Input.*Internet on'): model_here(kaggle, 'Qwen/Qwen2.5-VL-32B-Instruct')
    assert time.time() - begin < 5 and not work.exists()


def test_shards_that_a_run_was_begun_with(begun, shards, mock, tmp_path):
    "Of several data sets, the attached run says which; those that an earlier session built are found in its output."
    other, inputs = tmp_path/'other'/'shards', tmp_path/'input'
    shutil.copytree(shards/'val', other/'train')
    index = read_json(other/'train'/'index.json') | dict(split='train')
    index['checksum'] = json_hash({k: v for k, v in index.items() if k != 'checksum'})
    write_json(other/'train'/'index.json', index)
    with pytest.raises(BadInput, match='2 data sets are attached'): shards_here(place(tmp_path/'w', shards, other))
    assert shards_here(place(tmp_path/'w', shards, other), 'other').path == other/'train'
    assert shards_here(place(tmp_path/'w', other, shards, inputs)).hashes == find_split(shards, 'train').hashes
    named = shards_here(place(tmp_path/'w', other, shards), str(mock))
    assert named.path == shards/'train', 'those that were cut from the named recordings'
    shutil.copytree(shards, inputs/'last-version'/'shards')
    found = shards_here(place(tmp_path/'w', inputs, shards))
    assert found.hashes == find_split(shards, 'train').hashes


def test_fingerprints_of_older_transformers():
    "The vision tower's sizes had other names before 5.17: the same hash, and what was hashed without them is accepted."
    from types import SimpleNamespace
    config, _ = model_config('tiny')
    names = 'num_hidden_layers', 'num_attention_heads'
    vision = {k: v for k, v in config.vision_config.to_dict().items() if k not in names}
    older = SimpleNamespace(model_type=config.model_type, text_config=config.text_config,
                            vision_config=SimpleNamespace(**vision))
    adapter = Adapter.load('tiny')
    adapter.check_base(older, 'tiny')
    assert fingerprint(older) == fingerprint(config) == adapter.fingerprint
    shape = 'hidden_size', 'intermediate_size', names[0], 'depth', names[1], 'num_key_value_heads', 'vocab_size'
    parts = [{k: getattr(part, k, None) for k in shape} for part in (older.text_config, older.vision_config)]
    before = replace(adapter, fingerprint=json_hash([config.model_type, *parts]))
    assert before.fingerprint != adapter.fingerprint
    before.check_base(config, 'tiny')
    with pytest.raises(BadInput, match='another tiny'): replace(adapter, fingerprint='0').check_base(config, 'tiny')
