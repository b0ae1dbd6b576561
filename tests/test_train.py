"A training run is killed, stopped, starved and shared; what it had finished is kept, and it ends where it would have."
import base64, json, math, os, random, resource, shutil, signal, subprocess, sys, threading, time, warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from conftest import once
from forked import FRESH, Command, python, started
from vlmtemporal import trainer
from vlmtemporal.adapters import Adapter, bundled_adapter
from vlmtemporal.basics import BadInput, VLMTemporalError, VLMTemporalWarning, file_hash
from vlmtemporal.checkpoints import MARKER, last_checkpoint
from vlmtemporal.loading import load_model
from vlmtemporal.publishing import merge, publish
from vlmtemporal.runtime import Runtime
from vlmtemporal.shards import Shards
from vlmtemporal.train import fit, train_here
from vlmtemporal.trainer import TrainConfig, make_trainer, train_config

KILLS = int(os.environ.get('VLMTEMPORAL_KILLS', 1)) # ten take some minutes
def options(*settings): return [a for s in settings for a in ('--set', s)]
SETTINGS = options('max_steps=6', 'save_steps=2', 'micro_batch=2', 'accumulation=1', 'learning_rate=0.002')
SHORT = TrainConfig(max_steps=3, save_steps=1, micro_batch=2, accumulation=1, learning_rate=2e-3)


def history(run): return json.loads((run/'history.json').read_text())
def weights_hash(run): return file_hash(run/'adapter'/'adapter_model.safetensors')
def tree(folder): return {str(p.relative_to(folder)): file_hash(p) for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def whole(shards):
    "A run that nothing happened to."
    return once('trained', lambda out: fit(shards, out, config=SHORT))


@pytest.fixture(scope='module')
def six(cli, shards):
    "A run of six steps by the command that nothing happened to, and the seconds that it took."
    def train(out):
        begin = time.time()
        assert cli('train', shards, out/'run', *SETTINGS)[0] == 0
        (out/'took').write_text(str(time.time() - begin))
    out = once('six', train)
    return out/'run', float((out/'took').read_text())


@pytest.mark.filterwarnings('ignore:.*passed over') # a checkpoint is looked for while it is being written
def test_killed_at_random_moments_and_resumed(cli, six, shards, video, tmp_path):
    "Whenever the process is killed: the losses of all steps and the adapter are the uninterrupted run's, to the bit."
    (untouched, took), draw, kills = six, random.Random(0), 0
    while kills < KILLS:
        out = tmp_path/f'killed after {kills}'
        kills = _killed_until_done(cli, out, shards, untouched, took, draw, kills)
    weights = out/'adapter'/'adapter_model.safetensors'
    code, answer, _ = cli('predict', video, '--adapter', out/'adapter', '--json')
    assert code == 0 and json.loads(answer)['parsed_by'] == 'constrained'

    weights.write_bytes(weights.read_bytes()[:1000])
    code, text, err = cli('predict', video, '--adapter', out/'adapter')
    assert code == 2 and not text and 'cannot be loaded' in err and 'Traceback' not in err


def _wait(process, deadline, done):
    "Until it is done, the process has ended, or the time is up."
    while not done() and time.time() < deadline and process.poll() is None: time.sleep(.02)


def _killed_until_done(cli, out, shards, untouched, took, draw, kills):
    "One run, killed and resumed until it is through or has been killed enough; how many kills that makes in all."
    first = kills
    while kills < KILLS and not (out/'adapter').exists():
        command = [*started(), 'train', str(shards), str(out), *SETTINGS, '--resume']
        process = Command(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 300 # first within the start, then ever later
        if kills > first: time.sleep(draw.uniform(.3, 1.)*took)
        else: _wait(process, deadline, lambda: last_checkpoint(out) is not None)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        if kills == first:
            assert killed and last_checkpoint(out) is not None and not (out/'adapter').exists()
        kills += killed
    if not (out/'adapter').exists():
        code, _, err = cli('train', shards, out, *SETTINGS)
        assert code == 2 and '--resume' in err, 'a run is never mixed with another'
        code, text, err = cli('train', shards, out, *SETTINGS, '--resume')
        assert code == 0 and 'resumed from step' in text, err
    assert history(out) == history(untouched) and [h['step'] for h in history(out)] == [1, 2, 3, 4, 5, 6]
    assert weights_hash(untouched) == weights_hash(out)
    return kills


def test_a_checkpoint_that_lost_a_file_is_passed_over(whole, shards, tmp_path):
    "A file cut short or missing: a warning names it, older ones are untouched, the run ends where it would have."
    files = sorted(p.name for p in (whole/'checkpoints'/'checkpoint-3').iterdir() if p.stat().st_size)
    needed = {'adapter_model.safetensors', 'optimizer.pt', 'rng_state.pth', 'scheduler.pt', 'trainer_state.json'}
    assert needed | {MARKER} <= set(files)
    for name, cut in ((n, c) for n in files for c in (True, False)):
        out = tmp_path/'run'
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        shutil.rmtree(out/'adapter')
        hurt = out/'checkpoints'/'checkpoint-3'/name
        older = tree(out/'checkpoints'/'checkpoint-2')
        hurt.write_bytes(hurt.read_bytes()[:hurt.stat().st_size//2]) if cut else hurt.unlink()
        why = ('broken marker' if cut else 'was not finished') if name == MARKER else name.replace('.', r'\.')
        with pytest.warns(VLMTemporalWarning, match=why):
            assert last_checkpoint(out).name == 'checkpoint-2'
        if name in ('optimizer.pt', MARKER): # the others are alike from here on
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                run = fit(shards, out, config=SHORT, resume=True)
            assert run.resumed_from == 2 and history(out) == history(whole)
            assert tree(out/'checkpoints'/'checkpoint-2') == older and weights_hash(out) == weights_hash(whole)


def test_a_full_disk_leaves_what_there_is(whole, shards, tmp_path):
    "The system refuses to write a file of the next checkpoint; the run says so, and goes on when there is room."
    out = tmp_path/'run'
    shutil.copytree(whole, out)
    shutil.rmtree(out/'adapter')
    shutil.rmtree(out/'checkpoints'/'checkpoint-3')
    older, before = tree(out/'checkpoints'/'checkpoint-2'), resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100_000, 2_500_000): # too little for the adapter, and for the optimizer
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            says = 'checkpoint-3: cannot be written .*checkpoint-2 is untouched.*make room'
            with pytest.raises(VLMTemporalError, match=says): fit(shards, out, config=SHORT, resume=True)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not (out/'checkpoints'/'checkpoint-3').exists() and not (out/'adapter').exists()
        assert tree(out/'checkpoints'/'checkpoint-2') == older
    assert fit(shards, out, config=SHORT, resume=True).resumed_from == 2 and history(out) == history(whole)


def test_killed_before_its_adapter_was_written(whole, shards, tmp_path):
    "The last step is not taken twice."
    out = tmp_path/'run'
    shutil.copytree(whole, out)
    shutil.rmtree(out/'adapter')
    (out/'history.json').unlink()
    run = fit(shards, out, config=SHORT, resume=True)
    assert run.finished and run.resumed_from == run.steps == 3 and history(out) == history(whole)
    assert weights_hash(out) == weights_hash(whole)


def test_a_damaged_shard_is_refused_before_the_first_step(shards, tmp_path):
    data = tmp_path/'data'
    shutil.copytree(shards/'train', data)
    tar = next(data.glob('*.tar'))
    b = bytearray(tar.read_bytes())
    b[len(b)//2] ^= 1
    tar.write_bytes(b)
    with pytest.raises(BadInput, match=r'\.tar: .* is damaged; build the shards again'):
        fit(data, tmp_path/'run', config=SHORT)
    assert not (tmp_path/'run').exists()


def test_two_processes_train_as_one(cli, shards, tmp_path, monkeypatch):
    "DDP on two CPU processes: the losses of one at the same effective batch, a whole checkpoint, errors of one line."
    monkeypatch.setattr(sys, 'executable', python())
    monkeypatch.setenv('VLMTEMPORAL_TESTS_PYTHON', sys.executable)
    shared = options('max_steps=3', 'save_steps=2', 'micro_batch=2', 'accumulation=2', 'learning_rate=0.002',
                     'lora_dropout=0')
    assert cli('train', shards, tmp_path/'one', *shared)[0] == 0
    config, work, said = train_config(settings=shared[1::2]), tmp_path/'work', []
    here = Runtime('local', False, (shards,), work, tmp_path)
    assert train_here(here, None, 'tiny', config, processes=2, say=said.append).steps == 3
    assert sum('3 steps in' in line for line in said) == 1, said
    (work/'run').rename(tmp_path/'two')
    one, two = history(tmp_path/'one'), history(tmp_path/'two')
    assert len(two) == 3 and all(abs(a['loss'] - b['loss']) < 1e-4*a['loss'] for a, b in zip(one, two)), (one, two)
    last = last_checkpoint(tmp_path/'two')
    assert last.name == 'checkpoint-3' and {'rng_state_0.pth', 'rng_state_1.pth'} <= {p.name for p in last.iterdir()}
    assert Adapter.load(tmp_path/'two'/'adapter').training['processes'] == 2
    code, text, err = cli('train', shards, tmp_path/'two', *shared, '--processes', 2)
    assert code == 2 and not text and err.count('error:') == 1
    assert 'holds a run already' in err and 'Traceback' not in err

    for gone in ('adapter', 'checkpoints/checkpoint-3'): shutil.rmtree(tmp_path/'two'/gone)
    here = Runtime('local', False, (shards, tmp_path/'two'), work, tmp_path)
    run = train_here(here, None, 'tiny', config, say=said.append) # the next session has one GPU
    assert run.resumed_from == 2 and any('the checkpoint is of 2 processes' in line for line in said)
    assert all(abs(a['loss'] - b['loss']) < 1e-4*a['loss'] for a, b in zip(one, run.history, strict=True))


def test_the_curve_goes_where_it_is_wanted(shards, tmp_path, monkeypatch):
    short = TrainConfig(max_steps=2, micro_batch=1, accumulation=1, save_steps=2)
    settings = ['report_to=tensorboard', 'max_steps=2', 'micro_batch=1', 'accumulation=1', 'save_steps=2']
    run = fit(shards, tmp_path/'run', config=train_config(settings=settings))
    assert run.finished and list(tmp_path.rglob('events.out.tfevents.*')), 'a file for TensorBoard'
    assert fit(shards, tmp_path/'run', config=short, resume=True).finished, 'it is no part of the run'
    with pytest.raises(BadInput, match="cannot report to 'comet'; use tensorboard or wandb"):
        TrainConfig(report_to='comet')
    monkeypatch.setattr(trainer.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(BadInput, match='wandb is not installed; pip install wandb'): TrainConfig(report_to='wandb')


class Hub(BaseHTTPRequestHandler):
    "Enough of the Hugging Face Hub to take a repository with small files."
    def do_POST(self):
        chunked = 'chunked' in self.headers.get('Transfer-Encoding', '')
        body = self._chunks() if chunked else self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.server.seen.append((self.path, self.headers.get('Authorization'), body))
        base = f'http://127.0.0.1:{self.server.server_port}'
        if self.server.refuse: return self._answer(403, dict(error='you may not'))
        if self.path == '/api/repos/create':
            return self._answer(200, dict(url=f'{base}/alice/packing', name='alice/packing', id='1'))
        if '/preupload/' in self.path:
            small = dict(uploadMode='regular', shouldIgnore=False)
            return self._answer(200, dict(files=[dict(path=f['path'], **small) for f in json.loads(body)['files']]))
        if '/commit/' in self.path:
            done = dict(commitUrl=f'{base}/alice/packing/commit/abc', commitOid='abc', success=True, hookOutput='')
            return self._answer(200, done)
        self._answer(200, dict(errors=[], warnings=[]))
    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get('Authorization'), b''))
        self._answer(200, dict(id='alice/packing', private=True, sha='abc', siblings=[]))
    def _chunks(self):
        out = b''
        while n := int(self.rfile.readline(), 16):
            out += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return out
    def _answer(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_): pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.seen, server.refuse = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_published_to_a_hub(whole, tmp_path, hub):
    "What reaches the Hub: five files, a private repository, the base's Hub id, the token, and no path of this machine."
    adapter = tmp_path/'adapter'
    shutil.copytree(whole/'adapter', adapter)
    (adapter/'secret.txt').write_text('mine')
    about = json.loads((adapter/'vlmtemporal.json').read_text())
    about['base']['name'] = 'Qwen/Qwen2.5-VL-3B-Instruct'
    (adapter/'vlmtemporal.json').write_text(json.dumps(about))
    before, fresh = tree(adapter), [FRESH] # where the Hub lies is read when its library is imported
    def send(*args, token='hf_abc', begin=fresh):
        env = {**os.environ, 'HF_ENDPOINT': f'http://127.0.0.1:{hub.server_port}', 'HF_TOKEN': token,
               'HF_HUB_DISABLE_XET': '1', 'HF_HOME': str(tmp_path/'hf')}
        command = [*begin, 'publish', str(adapter), 'alice/packing', *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    done = send()
    assert done.returncode == 0 and done.stdout.strip().endswith('/commit/abc'), done.stderr
    assert all(token == 'Bearer hf_abc' for path, token, _ in hub.seen if '/repos/create' in path or '/commit/' in path)
    create = json.loads(next(b for p, _, b in hub.seen if p == '/api/repos/create'))
    assert create.get('private') is True or create.get('visibility') == 'private', create
    sent = [json.loads(line) for line in next(b for p, _, b in hub.seen if '/commit/' in p).splitlines()]
    files = {x['value']['path']: base64.b64decode(x['value']['content']) for x in sent if x['key'] == 'file'}
    assert set(files) == {'adapter_model.safetensors', 'adapter_config.json', 'vlmtemporal.json', 'grammar.json',
                          'README.md'}
    card = files['README.md'].decode()
    assert 'base_model: Qwen/Qwen2.5-VL-3B-Instruct' in card and 'license_name: qwen-research' in card
    assert files['adapter_model.safetensors'] == (adapter/'adapter_model.safetensors').read_bytes()
    assert str(tmp_path) not in card
    assert tree(adapter) == before, 'what is published stays as it is'

    hub.refuse = True
    refused = send()
    assert refused.returncode == 1 and 'the Hub refused' in refused.stderr and 'Traceback' not in refused.stderr
    none = send(token='')
    assert none.returncode == 2 and 'no token' in none.stderr
    other = tmp_path/'results.json'
    other.write_text(json.dumps(dict(title='', methods=[], provenance=dict(adapters={'x': '0'}, command=''))))
    wrong = send('--results', other, begin=started())
    assert wrong.returncode == 2 and 'does not evaluate this adapter' in wrong.stderr
    assert send('--results', adapter/'adapter_config.json', begin=started()).returncode == 2
    with pytest.raises(BadInput, match='is not an adapter'): publish('none', 'alice/packing')


def test_merged_into_a_checkpoint_of_its_own(whole, tmp_path):
    out = merge(whole/'adapter', tmp_path/'merged')
    names = {p.name for p in out.iterdir()}
    assert {'config.json', 'model.safetensors', 'merged.json', 'README.md', 'tokenizer.json'} <= names
    assert 'quantization_config' not in (out/'config.json').read_text()
    assert load_model(str(out)).model is not None, 'it can be loaded in NF4 again'
    with pytest.raises(BadInput, match='exists already'): merge(whole/'adapter', out)


def test_a_merged_checkpoint_is_asked_as_its_adapter(video, tmp_path):
    "Frames, taxonomy, temperature and prior are the adapter's; another adapter on top of it is refused."
    from vlmtemporal.engine import Engine
    mine = tmp_path/'mine'
    shutil.copytree(bundled_adapter(), mine)
    known = json.loads((mine/'vlmtemporal.json').read_text())
    (mine/'vlmtemporal.json').write_text(json.dumps(known | dict(frames=known['frames'] | dict(k=6))))
    merged, apart = Engine(merge(mine, tmp_path/'merged')), Engine('tiny', mine)
    assert merged.spec == apart.spec != Engine('tiny', 'none').spec and merged.taxonomy == apart.taxonomy
    assert merged.loaded.temperature == apart.loaded.temperature and merged.prior.to_dict() == apart.prior.to_dict()
    a, b = (e.predict(video, 12.7) for e in (merged, apart))
    assert a.answer.dominant_operation == b.answer.dominant_operation
    assert math.isclose(a.answer.confidence, b.answer.confidence, rel_tol=1e-3)
    with pytest.raises(BadInput, match='in its weights already'): load_model(tmp_path/'merged', 'tiny')


@pytest.mark.filterwarnings('ignore:.*passed over')
def test_stopped_by_sigterm_and_by_the_clock(cli, six, shards, tmp_path):
    "Both save at the end of the step, leave no adapter, and go on to the same end."
    out = tmp_path/'stopped'
    command = [*started(), 'train', str(shards), str(out), *SETTINGS]
    code, text, err = cli('train', shards, out, *SETTINGS, '--set', 'max_hours=0.001')
    assert code == 0 and 'stopped after step 1 of 6' in text and '--resume' in text, err
    assert not (out/'adapter').exists()
    process = Command([*command, '--resume'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.time() + 300
    _wait(process, deadline, lambda: last_checkpoint(out).name != 'checkpoint-1')
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and 'stopped after step' in text and 'resumed from step 1' in text
    assert not (out/'adapter').exists()
    at = int(last_checkpoint(out).name[11:])
    assert f'stopped after step {at} of 6' in text and 2 <= at < 6
    assert f'{out}/checkpoints/checkpoint-{at} is saved: go on with the same command and --resume' in text
    code, text, err = cli('train', shards, out, *SETTINGS, '--resume')
    assert code == 0 and (out/'adapter').exists(), err
    assert history(out) == history(six[0])


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(shards, tmp_path):
    config = TrainConfig(max_steps=5, micro_batch=2, accumulation=2, save_steps=1)
    trainer = make_trainer(load_model('tiny'), Shards(shards/'train'), tmp_path, config)
    calls, seen = [], []
    def plant(module, args, out): # from the fifth micro-batch on; a recompute is no call
        if torch.is_grad_enabled() and len(calls) >= 4: return out*float('nan')
    norm = trainer.model.get_base_model().model.language_model.norm
    norm.register_forward_hook(lambda *_: calls.append(1))
    norm.register_forward_hook(plant)
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *a: (seen.append(inputs['rows'].tolist()), step(model, inputs, *a))[1]
    with pytest.raises(VLMTemporalError) as e: trainer.train()
    said = str(e.value)
    keys = Shards(shards/'train').keys
    assert 'the loss is nan at step' in said and 'checkpoint-' in said and 'is good' in said
    assert all(keys[i] in said for i in sum(seen[-2:], [])), said
    assert not any(keys[i] in said for i in sum(seen[:2], [])), said
    assert last_checkpoint(tmp_path) is not None


def test_an_adapter_remembers_what_runs_in_float32(cli, shards, tmp_path):
    "Loaded in fp16, the module that overflowed while training is in float32; a name that the model lacks is bad input."
    run = fit(shards, tmp_path/'run', config=TrainConfig(max_steps=1, micro_batch=2, accumulation=1))
    about = Path(run.adapter)/'vlmtemporal.json'
    facts = json.loads(about.read_text())
    assert facts['float32_modules'] == []
    name = 'base_model.model.model.language_model.layers.1.mlp'
    about.write_text(json.dumps(facts | dict(float32_modules=[name])))
    half = load_model('tiny', run.adapter, dtype=torch.float16)
    out = []
    half.model.get_submodule(name).register_forward_hook(lambda m, a, o: out.append(o.dtype))
    with torch.no_grad(): logits = half.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert out == [torch.float32] and torch.isfinite(logits).all()
    about.write_text(json.dumps(facts | dict(float32_modules=['nowhere'])))
    with pytest.raises(BadInput, match='nowhere'): load_model('tiny', run.adapter, dtype=torch.float16)
