"A run is watched while it trains: what it is told is the same however often it is killed, and leaves no trace in it."
import errno, importlib, os, pickle, random, shutil, signal, socket, time
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from conftest import ROOT, once
from forked import Command, started
from vlmtemporal import train, watching
from vlmtemporal.adapters import Adapter, bundled_adapter
from vlmtemporal.basics import BadInput, VLMTemporalWarning, file_hash, read_json, write_json
from vlmtemporal.carrying import carry, run_identity
from vlmtemporal.checkpoints import check_resumable
from vlmtemporal.cli import app
from vlmtemporal.evaluation import observe
from vlmtemporal.kernels import quiet
from vlmtemporal.loading import load_model
from vlmtemporal.shards import find_split
from vlmtemporal.tower_file import _MAGIC, SCRATCH, tower_path
from vlmtemporal.train import fit
from vlmtemporal.trainer import TrainConfig, make_trainer
from vlmtemporal.watching import Watch, catch_up, read_validations, validate, validation_sample

KILLS = int(os.environ.get('VLMTEMPORAL_KILLS', 2)) # ten take some minutes
WATCHED = TrainConfig(max_steps=4, save_steps=3, micro_batch=1, accumulation=1, learning_rate=5e-3, validate_steps=1,
                      validate_clips=2, best='validation_loss')

APART = 'import pickle, sys; from vlmtemporal.train import fit; fit(*pickle.loads(bytes.fromhex(sys.argv[1])))'


def tree(folder): return {str(p.relative_to(folder)): file_hash(p) for p in sorted(folder.rglob('*')) if p.is_file()}
def left(run): # what must be the same whenever it was killed
    best = read_json(run/'best'/'index.json')
    files = [tree(run/'adapter'), tree(run/'best'/f"step-{best['step']}")]
    return [*files, best, *(read_json(run/name) for name in ('history.json', 'validation.json'))]


@pytest.fixture(scope='module')
def watched(shards):
    "A run that nothing happened to."
    return once('watched', lambda out: fit(shards, out, config=WATCHED, observe=observe))


def apart(*run, **environment):
    "`fit` in a process of its own."
    return Command(started('-c', APART, pickle.dumps(run).hex()), env=os.environ | environment)


def falling(values):
    "An `observe` whose OCA goes down: the first validation is the best."
    left = iter(values)
    def look(loaded, examples, taxonomy): return dict(OCA=[next(left)]*len(examples))
    return look


def test_watching_leaves_no_trace(watched, shards, tmp_path):
    "The steps of a run that is watched are those of one that is not, to the bit; what was found is in the adapter."
    fit(shards, tmp_path/'run', config=replace(WATCHED, validate_steps=0, best=''))
    assert read_json(tmp_path/'run'/'history.json') == read_json(watched/'history.json')
    here, there = (run/'checkpoints'/'checkpoint-4'/'adapter_model.safetensors' for run in (tmp_path/'run', watched))
    assert file_hash(here) == file_hash(there) and not (tmp_path/'run'/'validation.json').exists()
    rows = read_json(watched/'validation.json')
    assert [row['step'] for row in rows] == [1, 2, 3, 4] and all(row['clips'] == 2 for row in rows)
    assert all(0 <= row[name] <= 1 for row in rows for name in ('OCA', 'tIoU@0.5', 'AA@1'))
    best = min(rows, key=lambda row: row['validation_loss'])
    kept = Adapter.load(watched/'adapter').training
    assert kept['best'] == best | dict(metric='validation_loss') and kept['steps'] == 4
    history = read_json(watched/'history.json')
    assert kept['loss'] == round(history[best['step'] - 1]['loss'], 4), 'of the step that was kept'
    copy = watched/'best'/f"step-{best['step']}"
    assert read_json(watched/'best'/'index.json')['step'] == best['step']
    assert file_hash(watched/'adapter'/'adapter_model.safetensors') == file_hash(copy/'adapter_model.safetensors')
    assert Adapter.load(copy).training['steps'] == best['step'], 'it can be asked while the run goes on'


@pytest.mark.filterwarnings('ignore:.*passed over') # a checkpoint is looked for while it is being written
def test_killed_while_it_is_watched(watched, shards, tmp_path):
    "Whenever it is killed: validations, best copies, history and adapter of the run that was left alone, to the bit."
    draw, kills, n = random.Random(0), 0, 0
    while kills < KILLS:
        out, n = tmp_path/f'run-{n}', n + 1
        while not (out/'adapter').exists():
            process = apart(shards, out, 'tiny', WATCHED, True, observe)
            if kills < KILLS: kills += _killed(process, out, draw)
            assert process.wait() in (0, -signal.SIGKILL)
        assert left(out) == left(watched)


def _killed(process, out, draw):
    "Kill it a moment after its next step or validation, or after its next checkpoint began; was it killed?"
    def seen():
        files = [*out.glob('*.json*'), *out.glob('best/*'), *out.glob('checkpoints/*')]
        return {(str(p), p.stat().st_mtime_ns) for p in files if p.exists() and p.name != 'run.json'}
    before, changes, deadline = seen(), draw.randint(1, 4), time.time() + 300
    while changes and time.time() < deadline and process.poll() is None:
        time.sleep(.005)
        try: now = seen()
        except FileNotFoundError: continue
        if now != before: before, changes = now, changes - 1
    time.sleep(draw.uniform(0, .1))
    process.kill()
    return process.wait() == -signal.SIGKILL


def test_stopped_in_the_middle_of_a_validation(watched, shards, tmp_path):
    "It is not recorded; the session saves and ends, and the next one makes it first, perhaps in another folder."
    def stopping(part):
        asked = iter(range(100))
        def look(loaded, examples, taxonomy):
            if next(asked) == part: os.kill(os.getpid(), signal.SIGTERM)
            return observe(loaded, examples, taxonomy)
        return look
    run = fit(shards, tmp_path/'run', config=WATCHED, observe=stopping(2)) # in the first half of the second validation
    assert not run.finished and run.asked and run.steps == 2 and [v['step'] for v in run.validations] == [1]
    carried = carry([tmp_path/'run'], tmp_path/'next'/'run', find_split(shards, 'train'), 'tiny', WATCHED)
    assert carried.step == 2 and read_json(carried.path/'validation.json') == list(run.validations)
    last = fit(shards, carried.path, config=carried.config, resume=True, observe=stopping(4)) # of the fourth, the last
    assert last.resumed_from == 2 and not last.finished and last.steps == last.of == 4 and len(last.validations) == 3
    again = fit(shards, carried.path, config=carried.config, resume=True, observe=observe)
    assert again.finished and again.resumed_from == 4 and left(carried.path) == left(watched)


def test_no_more_memory_than_a_step(shards, tmp_path):
    "No forward of a validation has more rows, tokens or pictures than one of training; no logits of prompts are made."
    data, sizes, heads = find_split(shards, 'train'), {}, []
    config = replace(WATCHED, max_steps=1, micro_batch=2, validate_clips=6)
    with quiet():
        loaded = load_model('tiny')
        trainer = make_trainer(loaded, data, tmp_path, config)
        watch = Watch(trainer, loaded, data, tmp_path, config, observe)
        def note(module, args, kwargs):
            words, grid = kwargs.get('input_ids', args[0] if args else None), kwargs.get('image_grid_thw', ())
            pictures = 0 if grid is None else len(grid)
            if words.shape[1] == 4: return # a trial of 3 x 4 words asks whether masks are heeded
            sizes.setdefault(now[0], []).append((len(words), words.numel(), pictures))
        loaded.base.model.register_forward_pre_hook(note, with_kwargs=True)
        loaded.model.get_output_embeddings().register_forward_hook(lambda m, args, out: heads.append(args[0].shape[1]))
        now = ['training']
        trainer.train()
        heads.clear()
        now[0] = 'validation'
        assert catch_up(watch, None) and validate(watch)
        blocks = []
        loaded.tower.blocks[0].register_forward_hook(lambda *_: blocks.append(1))
        assert validate(watch) and not blocks, 'the tower has seen these pictures'
    most = {kind: [max(column) for column in zip(*rows)] for kind, rows in sizes.items()}
    assert all(mine <= theirs for mine, theirs in zip(most['validation'], most['training'])), most
    assert len(sizes['validation']) >= 6 and most['validation'][0] == 2 and max(heads) < 120 < most['training'][1]//2
    inputs = dict(trainer._prepare_inputs(trainer.data_collator([watch.data[i] for i in watch.batches[0]])))
    inputs.pop('rows')
    with watching.undisturbed(loaded.model):
        total, tokens = watching.completion_loss(loaded.model, inputs)
        theirs = float(trainer.compute_loss(loaded.model, inputs)) # TRL's
    assert total/tokens == pytest.approx(theirs, rel=1e-4)
    assert trainer.model.training and watch.rows[0] == watch.rows[1]


def test_a_full_disk_costs_the_best_copy(shards, tmp_path, monkeypatch):
    "A sentence when it is not written, and one at the end; the adapter is the last one, and is whole."
    save = train.save_adapter
    def full(loaded, path, *rest):
        if 'best' in path.parts: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return save(loaded, path, *rest)
    monkeypatch.setattr(train, 'save_adapter', full)
    config = replace(WATCHED, max_steps=2, best='OCA')
    with pytest.warns(VLMTemporalWarning) as said:
        run = fit(shards, tmp_path/'run', config=config, observe=falling([.9, .9, .5, .5]))
    texts = [str(w.message) for w in said if w.category is VLMTemporalWarning]
    assert any('step-1: cannot be kept (the disk is full); the run goes on' in t for t in texts), texts
    assert any('could not be kept: the adapter has those of the last step' in t for t in texts), texts
    assert run.finished and 'best' not in Adapter.load(run.adapter).training and len(run.validations) == 2


def test_it_waits_so_long_for_a_better_one(shards, tmp_path):
    "Two validations without: the run is finished, says why, has the best weights, and is not gone on with."
    config = replace(WATCHED, best='OCA', patience=2)
    run = fit(shards, tmp_path/'run', config=config, observe=falling([.9, .9, .8, .8, .5, .5]))
    assert run.finished and run.steps == 3 and run.of == 4 and 'ended after step 3 of 4' in repr(run)
    assert Adapter.load(run.adapter).training['best']['step'] == 1
    before = tree(tmp_path/'run'/'adapter')
    shutil.rmtree(tmp_path/'run'/'adapter')
    again = fit(shards, tmp_path/'run', config=config, resume=True, observe=falling([]))
    assert again.steps == 3 and again.remarks == run.remarks and tree(tmp_path/'run'/'adapter') == before


def test_two_processes_validate_as_one(shards, tmp_path):
    "Each asks about its share; both end at the same step, with the numbers of one process."
    config = replace(WATCHED, accumulation=2, learning_rate=1e-9, validate_clips=3, best='OCA', patience=1)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    run, where = (shards, tmp_path/'two', 'tiny', config, False, observe), dict(MASTER_ADDR='127.0.0.1')
    where |= dict(WORLD_SIZE='2', MASTER_PORT=str(port))
    both = [apart(*run, RANK=str(i), LOCAL_RANK=str(i), **where) for i in (0, 1)]
    one = fit(shards, tmp_path/'one', config=config, observe=observe)
    assert [process.wait(300) for process in both] == [0, 0]
    two = read_json(tmp_path/'two'/'validation.json')
    assert [v['step'] for v in two] == [1, 2] == [v['step'] for v in one.validations]
    for a, b in zip(one.validations, two): assert a == pytest.approx(b, rel=1e-5)
    assert Adapter.load(tmp_path/'two'/'adapter').training['best']['step'] == 1


def test_where_the_curve_goes(shards, tmp_path, monkeypatch, capfd):
    "TensorBoard, lines, and a notebook's cell, where a picture that fails ends the pictures and not the run."
    monkeypatch.setenv('VLMTEMPORAL_LINES', '30')
    monkeypatch.setattr(watching, 'in_kernel', lambda: True)
    shown = []
    class Handle:
        def update(self, picture): raise RuntimeError('no more')
    monkeypatch.setattr('IPython.display.display', lambda picture, display_id: shown.append(picture) or Handle())
    config = replace(WATCHED, max_steps=2, best='', report_to='tensorboard')
    run = fit(shards, tmp_path/'run', config=config, observe=observe)
    assert run.finished and len(shown) == 1 and shown[0].png[:4] == b'\x89PNG'
    assert 'step 1: validation loss' in capfd.readouterr().out and run._repr_png_()
    told = b''.join(p.read_bytes() for p in tmp_path.rglob('events.out.tfevents.*'))
    assert all(tag in told for tag in (b'eval/loss', b'eval/OCA', b'eval/tIoU@0.5', b'eval/AA@1'))
    steps, validations = watching.read_curves(tmp_path/'run')
    assert steps == run.history and tuple(validations) == run.validations
    lines = []
    with watching.with_live_plot(tmp_path/'run', lines.append) as tell:
        for line in 'ab': tell(line)
    assert lines == ['a', 'b'] and len(shown) == 2


def test_nothing_to_validate_on(shards, tmp_path):
    "A run goes on without, and says so; one whose adapter depends on it is refused before anything is written."
    shutil.copytree(shards/'train', tmp_path/'train')
    config = replace(WATCHED, max_steps=1, best='')
    with pytest.warns(VLMTemporalWarning, match='nothing is validated while it trains: .* no validation split'):
        run = fit(tmp_path/'train', tmp_path/'run', config=config)
    assert run.finished and run.validations == ()
    for wrong in (dict(best='OCA'), dict(best='validation_loss')):
        with pytest.raises(BadInput): fit(tmp_path/'train', tmp_path/'no', config=replace(config, **wrong))
    with pytest.raises(BadInput, match='best'): TrainConfig(best='F1')
    assert not (tmp_path/'no').exists()


def test_what_may_change_when_a_run_goes_on(shards, tmp_path):
    "How it is watched, unless the best adapter depends on it; a run of an older version goes on, too."
    data, defaults = find_split(shards, 'train'), asdict(TrainConfig())
    def check(begun, now):
        this = run_identity(data, 'tiny', begun)
        older = this | dict(config={k: v for k, v in this['config'].items() if k not in ('best', 'patience')})
        for before in (this, older) if not begun.best else (this,):
            write_json(tmp_path/'run.json', before)
            check_resumable(tmp_path, run_identity(data, 'tiny', now), True, defaults)
    check(TrainConfig(), TrainConfig(validate_steps=7, validate_clips=3))
    check(WATCHED, WATCHED)
    for other in (dict(validate_steps=3), dict(validate_clips=4), dict(best='OCA'), dict(patience=1)):
        with pytest.raises(BadInput, match=next(iter(other))): check(WATCHED, replace(WATCHED, **other))


def test_it_begins_with_an_adapter_of_other_operations(shards, tmp_path, monkeypatch):
    "The weights carry over, with a sentence; the new adapter knows its own operations, and what was before."
    other = tmp_path/'other'
    shutil.copytree(bundled_adapter(), other)
    known = read_json(other/'vlmtemporal.json')
    write_json(other/'vlmtemporal.json', known | dict(taxonomy='openpack', people=['U0199'], files=[]))
    (other/'grammar.json').unlink()
    lora = read_json(other/'adapter_config.json')
    asked = []
    monkeypatch.setattr(train, 'fit', lambda shards, out, model, config, *rest, **more: asked.append(config) or fit(
        shards, out, model, config, *rest, **more))
    settings = [f"--set={k}={v}" for k, v in (('max_steps', 1), ('micro_batch', 1), ('accumulation', 1),
                                              ('lora_r', lora['r']), ('lora_alpha', lora['lora_alpha']))]
    with pytest.warns(VLMTemporalWarning, match='knows openpack, the shards hold logistics'):
        done = CliRunner().invoke(app, ['train', str(shards), str(tmp_path/'run'), '--from', str(other), *settings])
    assert done.exit_code == 0 and asked[0].start == str(other), done.output
    new = Adapter.load(tmp_path/'run'/'adapter')
    before, people = new.training['before'], {'U0199', *find_split(shards, 'train').people}
    assert new.taxonomy.name == 'logistics' and people == set(new.people)
    assert before['taxonomy'] == 'openpack' and before['weights'] == Adapter.load(other).weights_sha256


def test_a_damaged_clip_ends_the_validations_alone(shards, tmp_path):
    "One warning, and the run goes on; where the adapter depends on it, it is refused before anything is loaded."
    shutil.copytree(shards, tmp_path/'shards')
    val = find_split(tmp_path/'shards', 'val')
    _, path, members = val._places[validation_sample(val, 2)[0]]
    with path.open('r+b') as f:
        f.seek(members[0].at)
        f.write(bytes(members[0].size))
    with pytest.raises(BadInput, match='val'): fit(tmp_path/'shards', tmp_path/'run', config=WATCHED, observe=observe)
    assert not (tmp_path/'run').exists()
    with pytest.warns(VLMTemporalWarning) as said:
        run = fit(tmp_path/'shards', tmp_path/'run', config=replace(WATCHED, best='', max_steps=2), observe=observe)
    assert run.finished and run.steps == 2 and run.validations == ()
    said = [str(w.message) for w in said if w.category is VLMTemporalWarning]
    assert len(said) == 1 and 'the val split cannot be validated on' in said[0] and 'is damaged' in said[0]


def test_validations_that_are_written_stay(shards, tmp_path):
    "A session that does not validate keeps what there is; what is no list of validations is passed over."
    out, config = tmp_path/'run', replace(WATCHED, best='', max_steps=2, save_steps=1)
    fit(shards, out, config=config)
    rows = read_json(out/'validation.json')
    def again(config):
        for name in ('adapter', 'checkpoints/checkpoint-2'): shutil.rmtree(out/name)
        return fit(shards, out, config=config, resume=True)
    assert again(replace(config, validate_steps=0)).resumed_from == 1
    assert read_json(out/'validation.json') == rows[:1] and len(rows) == 2
    for wrong in ({'a': 1}, [3], [{'step': 1}], [{'step': None, 'validation_loss': 1.}]):
        write_json(out/'validation.json', wrong)
        with pytest.warns(VLMTemporalWarning, match='no list of validations; it is passed over'):
            assert read_validations(out) == []
    with pytest.warns(VLMTemporalWarning, match='passed over'): assert list(again(config).validations) == rows
    assert read_json(out/'validation.json') == rows


def test_a_run_remembers_what_it_began_with(shards, tmp_path, monkeypatch):
    "Without the folder it goes on to the same adapter; with another one there it is refused. No tower's file stays."
    first, out = tmp_path/'first', tmp_path/'run'
    shutil.copytree(bundled_adapter(), first)
    lora = read_json(first/'adapter_config.json')
    config = replace(WATCHED, best='', max_steps=2, save_steps=1, validate_steps=0, start=str(first), lora_r=lora['r'],
                     lora_alpha=lora['lora_alpha'])
    fit(shards, out, config=config)
    def made(adapter): return adapter.weights_sha256, adapter.people, adapter.training['before']
    whole = made(Adapter.load(out/'adapter'))
    assert whole[2]['weights'] == Adapter.load(first).weights_sha256
    shutil.move(out/'adapter', tmp_path/'second')
    shutil.rmtree(out/'checkpoints'/'checkpoint-2')
    shutil.rmtree(first)
    shutil.copytree(tmp_path/'second', first)
    with pytest.raises(BadInput, match='first: is another adapter than'): fit(shards, out, config=config, resume=True)
    shutil.rmtree(first)
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    files = [out/'tower.bin', tower_path(out)]
    for file in files: file.write_bytes(_MAGIC)
    assert fit(shards, out, config=replace(config, tower_cache=0), resume=True).resumed_from == 1
    assert made(Adapter.load(out/'adapter')) == whole and not any(file.exists() for file in files)
    carry([out], tmp_path/'next'/'run', find_split(shards, 'train'), 'tiny', config)
    assert read_json(tmp_path/'next'/'run'/'start.json') == read_json(out/'start.json')


def test_what_is_refused_before_anything_is_loaded(shards, tmp_path, monkeypatch):
    "An OUT that is a file or lies below one, a beginning that is none, and two of them."
    monkeypatch.setattr(train, 'load_model', None)
    (tmp_path/'file').write_text('x')
    def refusal(out, *words):
        done = CliRunner().invoke(app, ['train', str(shards), str(tmp_path/out), *words])
        return str(done.exception)
    for out, *more in (('file',), ('file/run',), ('file', '--preflight')): assert 'is a file' in refusal(out, *more)
    for more in ((), ('--preflight',), ('--processes', '2')):
        assert 'nonexist: is not an adapter' in refusal('run', '--from', '/nonexist', *more)
    assert 'start=b: names another adapter than --from a' in refusal('run', '--from', 'a', '--set', 'start=b')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file']


def test_the_bench_sees_every_validation(shards, monkeypatch):
    "`bench/watching.py` times steps and validations apart, and leaves what it measures as it was."
    monkeypatch.syspath_prepend(ROOT/'bench')
    bench, before = importlib.import_module('watching'), (watching.validate, train.make_trainer)
    found = bench.one('tiny', str(shards), micro=1, steps=2, every=1, clips=2)
    assert len(found['took']) == 2 and min(found['took']) > 0 and found['pace'] > 0
    assert bench.one('tiny', str(shards), micro=1, steps=2, every=0, clips=2)['took'] == []
    assert (watching.validate, train.make_trainer) == before
