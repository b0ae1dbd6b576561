"A training run is killed; what it had finished is kept."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from vlmtemporal import train
from vlmtemporal.backbones import load_model
from vlmtemporal.basics import BadInput, VLMTemporalError
from vlmtemporal.memory import Measured
from vlmtemporal.shards import Shards
from vlmtemporal.train import TrainConfig, fit, last_checkpoint, make_trainer

SETTINGS = [a for s in ('max_steps=6', 'save_steps=2', 'micro_batch=2', 'accumulation=1', 'learning_rate=0.002') for a in ('--set', s)]


def test_killed_and_resumed(cli, shards, video, tmp_path):
    assert cli('train', shards, tmp_path/'whole', *SETTINGS)[0] == 0
    out = tmp_path/'killed'
    process = subprocess.Popen([str(Path(sys.executable).parent/'vlmtemporal'), 'train', str(shards), str(out), *SETTINGS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while last_checkpoint(out) is None and time.time() < deadline and process.poll() is None: time.sleep(.02)
    process.send_signal(signal.SIGKILL); process.wait()
    assert (at := last_checkpoint(out)) is not None and not (out/'adapter').exists()

    code, _, err = cli('train', shards, out, *SETTINGS)
    assert code == 2 and '--resume' in err, 'a run is never mixed with another'
    code, text, err = cli('train', shards, out, *SETTINGS, '--resume')
    assert code == 0 and f'resumed from step {at.name[11:]}' in text, err

    history = [json.loads((tmp_path/run/'history.json').read_text()) for run in ('whole', 'killed')]
    assert [h['step'] for h in history[1]] == [1, 2, 3, 4, 5, 6]
    assert all(abs(a['loss'] - b['loss']) < 1e-4 for a, b in zip(*history)), history
    code, answer, _ = cli('predict', video, '--adapter', out/'adapter', '--json')
    assert code == 0 and json.loads(answer)['parsed_by'] == 'constrained'

    weights = out/'adapter'/'adapter_model.safetensors'; weights.write_bytes(weights.read_bytes()[:1000])
    code, text, err = cli('predict', video, '--adapter', out/'adapter')
    assert code == 2 and not text and 'cannot be loaded' in err and 'Traceback' not in err


def test_stopped_by_sigterm_and_by_the_clock(cli, shards, tmp_path):
    "Both save at the end of the step, leave no adapter, and go on to the same end."
    assert cli('train', shards, tmp_path/'whole', *SETTINGS)[0] == 0
    out = tmp_path/'stopped'; command = [str(Path(sys.executable).parent/'vlmtemporal'), 'train', str(shards), str(out), *SETTINGS]
    code, text, err = cli('train', shards, out, *SETTINGS, '--set', 'max_hours=0.001')
    assert code == 0 and 'stopped after step 1 of 6' in text and '--resume' in text and not (out/'adapter').exists(), err
    process = subprocess.Popen([*command, '--resume'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.time() + 300
    while last_checkpoint(out).name == 'checkpoint-1' and time.time() < deadline and process.poll() is None: time.sleep(.02)
    process.send_signal(signal.SIGTERM); text = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and 'stopped after step' in text and 'resumed from step 1' in text and not (out/'adapter').exists()
    at = int(last_checkpoint(out).name[11:]); assert f'stopped after step {at} of 6' in text and 2 <= at < 6
    code, text, err = cli('train', shards, out, *SETTINGS, '--resume')
    assert code == 0 and (out/'adapter').exists(), err
    history = [json.loads((tmp_path/run/'history.json').read_text()) for run in ('whole', 'stopped')]
    assert [h['step'] for h in history[1]] == [1, 2, 3, 4, 5, 6] and all(abs(a['loss'] - b['loss']) < 1e-4 for a, b in zip(*history))


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(shards, tmp_path):
    trainer = make_trainer(load_model('twin'), Shards(shards/'train'), tmp_path, TrainConfig(max_steps=5, micro_batch=2, accumulation=2, save_steps=1))
    calls, seen = [], []
    def plant(module, args, out): # from the fifth micro-batch on; a recompute is no call
        if torch.is_grad_enabled() and len(calls) >= 4: return out*float('nan')
    norm = trainer.model.get_base_model().model.language_model.norm
    norm.register_forward_hook(lambda *_: calls.append(1)); norm.register_forward_hook(plant)
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *a: (seen.append(inputs['rows'].tolist()), step(model, inputs, *a))[1]
    with pytest.raises(VLMTemporalError) as e: trainer.train()
    said = str(e.value); keys = Shards(shards/'train').keys
    assert 'the loss is nan at step' in said and 'checkpoint-' in said and 'is good' in said
    assert all(keys[i] in said for i in sum(seen[-2:], [])) and not any(keys[i] in said for i in sum(seen[:2], [])), said
    assert last_checkpoint(tmp_path) is not None


def test_an_adapter_remembers_what_runs_in_float32(cli, shards, tmp_path):
    "Loaded in fp16, the module that overflowed while training is wide; a name that the model lacks is bad input."
    run = fit(shards, tmp_path/'run', config=TrainConfig(max_steps=1, micro_batch=2, accumulation=1)); about = Path(run.adapter)/'vlmtemporal.json'
    said = json.loads(about.read_text()); assert said['float32'] == []
    name = 'base_model.model.model.language_model.layers.1.mlp'
    about.write_text(json.dumps(said | dict(float32=[name])))
    wide = load_model('twin', run.adapter, dtype=torch.float16)
    out = []; wide.model.get_submodule(name).register_forward_hook(lambda m, a, o: out.append(o.dtype))
    with torch.no_grad(): logits = wide.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert out == [torch.float32] and torch.isfinite(logits).all()
    about.write_text(json.dumps(said | dict(float32=['nowhere'])))
    with pytest.raises(BadInput, match='nowhere'): load_model('twin', run.adapter, dtype=torch.float16)


def test_preflight_halves_what_does_not_fit(shards, monkeypatch):
    "A card that is smaller than the paper thinks: a plain sentence with numbers only where nothing fits."
    room, tried = 4, []
    def small(work):
        tried.append(1)
        if len(tried) < room: raise torch.OutOfMemoryError('planted')
        return Measured(1., None)
    monkeypatch.setattr(train, 'measure', small)
    p = train.preflight(shards)
    assert len(tried) == 4 and p.micro_batch == 2 and p.micro_batch*p.accumulation == 16
    room = 99; tried.clear()
    with pytest.raises(BadInput, match='one example at a time does not fit 14.6 GiB'): train.preflight(shards)
    assert len(tried) == 5
