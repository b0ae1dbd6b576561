"An adapter, a merged checkpoint or a run that is not whole is refused; what is whole is asked as it was trained."
import json, shutil, warnings
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from vlmtemporal.adapters import Adapter, Calibration, bundled_adapter
from vlmtemporal.backbones import bundled_model
from vlmtemporal.basics import BadInput, VLMTemporalWarning
from vlmtemporal.checkpoints import last_checkpoint, mark_complete
from vlmtemporal.engine import Engine
from vlmtemporal.evaluation import candidates, evaluate, prior_of
from vlmtemporal.frames import FrameSpec
from vlmtemporal.loading import load_model
from vlmtemporal.operations import OPENPACK, Grammar, Segment
from vlmtemporal.publishing import merge, publish
from vlmtemporal.train import fit, preflight
from vlmtemporal.trainer import TrainConfig

SHORT = TrainConfig(max_steps=2, save_steps=1, micro_batch=1, accumulation=1, learning_rate=2e-3, warmup=0)
WEIGHTS, LORA, FACTS = 'adapter_model.safetensors', 'adapter_config.json', 'vlmtemporal.json'


def edit_json(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def edit_weights(path, change): save_file(change(load_file(path)), path, metadata=dict(format='pt'))


def without(*words): return lambda t: {n: x for n, x in t.items() if not any(w in n for w in words)}


def renamed(old, new): return lambda t: {n.replace(old, new): x for n, x in t.items()}


def cut(path, size): path.write_bytes(path.read_bytes()[:size])


HURT = { # what is done to a folder -> what the refusal names
    'no weights': (lambda d: (d/WEIGHTS).unlink(), 'no adapter_model.safetensors'),
    'weights under another name': (lambda d: (d/WEIGHTS).rename(d/'model.safetensors'), 'no adapter_model.safetensors'),
    'an empty file': (lambda d: (d/WEIGHTS).write_bytes(b''), 'cannot be loaded'),
    'no tensor': (lambda d: save_file({}, d/WEIGHTS), 'it has no tensor'),
    'zeros where a crash came': (lambda d: (d/WEIGHTS).write_bytes(bytes(10**6)), 'cannot be loaded'),
    'cut in the header': (lambda d: cut(d/WEIGHTS, 1000), 'cannot be loaded'),
    'cut in the last tensor': (lambda d: cut(d/WEIGHTS, -1), 'cannot be loaded'),
    'renamed tensors': (lambda d: edit_weights(d/WEIGHTS, renamed('lora_', 'mora_')), 'mora_A'),
    'renamed halves': (lambda d: edit_weights(d/WEIGHTS, renamed('lora_B', 'lora_C')), 'lora_B'),
    'renamed modules': (lambda d: edit_weights(d/WEIGHTS, renamed('layers.0.', 'layers.9.')), 'layers.0.'),
    'another wrapper': (lambda d: edit_weights(d/WEIGHTS, renamed('base_model.model.', '')), 'base_model.model.'),
    'one module missing': (lambda d: edit_weights(d/WEIGHTS, without('layers.1.mlp.up_proj')), 'layers.1.mlp.up_proj'),
    'one layer missing': (lambda d: edit_weights(d/WEIGHTS, without('layers.5.')), 'layers.5.'),
    'half a module': (lambda d: edit_weights(d/WEIGHTS, without('layers.1.mlp.up_proj.lora_B')), 'up_proj.lora_B'),
    'one module too many': (lambda d: edit_weights(d/WEIGHTS, lambda t: t | {
        n.replace('layers.1.', 'layers.77.'): x.clone() for n, x in t.items()}), 'layers.77.'),
    'another shape': (lambda d: edit_weights(d/WEIGHTS, lambda t: {n: x[:-1].clone() for n, x in t.items()}), 'shape'),
    'all zero': (lambda d: edit_weights(d/WEIGHTS, lambda t: {n: x*0 for n, x in t.items()}), 'all of it is 0'),
    'no numbers': (lambda d: edit_weights(d/WEIGHTS, lambda t: {n: x/0 for n, x in t.items()}), 'no numbers'),
    'no settings': (lambda d: (d/LORA).unlink(), LORA),
    'settings cut short': (lambda d: cut(d/LORA, 100), LORA),
    'settings without alpha': (lambda d: edit_json(d/LORA, lambda v: v.pop('lora_alpha') and None), 'lora_alpha'),
    'another rank': (lambda d: edit_json(d/LORA, lambda v: v.update(r=8)), 'shape'),
    'layers that are not there': (lambda d: edit_json(d/LORA, lambda v: v.update(target_modules=['x_proj'])), LORA),
    'another kind of adapter': (lambda d: edit_json(d/LORA, lambda v: v.update(peft_type='LOHA')), 'LOHA'),
    'no facts': (lambda d: (d/FACTS).unlink(), FACTS),
    'a fact from the future': (lambda d: edit_json(d/FACTS, lambda v: v.update(speed=2)), "'speed'"),
    'the grammar lost': (lambda d: (d/'grammar.json').unlink(), 'grammar.json')}


def whole_adapter(path):
    "The small model's, written by this version."
    shutil.copytree(bundled_adapter(), path)
    edit_json(path/FACTS, lambda _: Adapter.load(path).to_dict())
    return path


@pytest.fixture
def adapter(tmp_path): return whole_adapter(tmp_path/'run'/'adapter')


@pytest.mark.parametrize('what', sorted(HURT))
def test_a_hurt_adapter_is_refused(what, adapter):
    "Each was answered by the untrained base, at another scale or without the grammar; or ended in a traceback."
    hurt, names = HURT[what]
    hurt(adapter)
    with pytest.raises(BadInput) as e: load_model('tiny', adapter)
    assert names in str(e.value) and '\n' not in str(e.value) and str(adapter) in str(e.value) and e.value.fix


@pytest.mark.parametrize('what', ['one layer missing', 'no tensor'])
def test_every_door_refuses(what, adapter, cli, shards, video, tmp_path):
    "Whoever reads an adapter's weights, by the command line or not."
    hurt, names = HURT[what]
    hurt(adapter)
    with pytest.raises(BadInput, match=names): Engine('tiny', adapter) # `serve`, `analyze` and the page
    with pytest.raises(BadInput, match=names): merge(adapter, tmp_path/'merged')
    with pytest.raises(BadInput, match=names): evaluate(shards, adapters=[adapter], clips=0)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('HF_TOKEN', 'hf_abc')
        with pytest.raises(BadInput, match=names): publish(adapter, 'alice/packing')
    for command in (['predict', video, '--adapter', adapter], ['calibrate', shards, adapter]):
        code, text, err = cli(*command)
        assert code == 2 and not text and names in err and err.count('\n') == 1, err
    assert not (tmp_path/'merged').exists() and (adapter/'calibration.json').read_bytes() == (
        bundled_adapter()/'calibration.json').read_bytes()


def test_a_checkpoint_is_none_and_says_where_the_adapter_is(adapter):
    place = adapter.parent/'checkpoints'/'checkpoint-14'
    shutil.copytree(adapter, place)
    (place/'vlmtemporal.json').unlink()
    (place/'trainer_state.json').write_text('{}')
    with pytest.raises(BadInput, match='is a checkpoint') as e: Adapter.load(place)
    assert f'give {adapter}' in str(e.value)


def test_a_whole_one_is_taken(adapter):
    assert load_model('tiny', adapter).adapter.to_dict() == Adapter.load('tiny').to_dict()


# ---- merged --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def openpack(tmp_path_factory):
    "An adapter of other frames, names, temperature and order than the defaults, merged."
    out = tmp_path_factory.mktemp('openpack')
    path = whole_adapter(out/'adapter')
    names = [n for n in OPENPACK.names if n != OPENPACK.null]
    recorded = [Segment(n, 5.*i, 5.*i + 5) for i, n in enumerate(names)]
    known = replace(Adapter.load(path), spec=FrameSpec('novelty-inverse', k=6, roi=(.1, .2, .9, 1)), taxonomy=OPENPACK,
                    grammar=Grammar.learn([recorded], OPENPACK), float32_modules=())
    (path/FACTS).write_text(json.dumps(known.to_dict()))
    known.grammar.save(path/'grammar.json')
    Adapter.load(path).save_calibration(Calibration(1.7, emission_scale=3., grammar_weight=.5, em_iterations=2))
    return path, merge(path, out/'merged')


def test_a_merged_model_is_as_complete_as_its_adapter(openpack, video):
    "Another taxonomy, other frames, a temperature, a grammar: nothing of it is the default's."
    path, merged = openpack
    apart, one = Engine('tiny', path), Engine(merged)
    assert one.taxonomy == apart.taxonomy == OPENPACK and one.spec == apart.spec != FrameSpec()
    assert one.loaded.temperature == apart.loaded.temperature == 1.7
    assert one.prior.to_dict() == apart.prior.to_dict()
    a, b = one.predict(video), apart.predict(video)
    assert a.answer.dominant_operation == b.answer.dominant_operation and a.answer.dominant_operation in OPENPACK.names
    assert sorted(a.probabilities) == sorted(b.probabilities) and not set(a.probabilities) - set(OPENPACK.names)
    known = Adapter.of_merged(merged)
    assert known.to_dict() == Adapter.load(path).to_dict() and known.calibration == Adapter.load(path).calibration
    card = (merged/'README.md').read_text()
    assert "Engine('this folder')" in card and 'library_name: transformers' in card and 'novelty-inverse' in card


def test_a_merged_model_is_evaluated_with_its_own_prior(openpack):
    path, merged = openpack
    own, apart = candidates(merged, [], FrameSpec())[0], candidates('tiny', [Adapter.load(path)], FrameSpec())[1]
    assert prior_of(own, None, clips=True).to_dict() == prior_of(apart, None, clips=True).to_dict()
    assert own.spec == apart.spec


@pytest.mark.parametrize('what', ['merged.json', 'grammar.json', 'calibration.json', 'model.safetensors', 'a tensor',
                                  'renamed', 'cut', 'a shape'])
def test_a_merged_folder_that_is_not_whole_is_refused(what, openpack, tmp_path, cli, video):
    "Without the file that says so it was asked like any base; a missing tensor was made up."
    out = tmp_path/'merged'
    shutil.copytree(openpack[1], out)
    weights = out/'model.safetensors'
    if what == 'a tensor': edit_weights(weights, without('layers.1.mlp.up_proj'))
    elif what == 'renamed': edit_weights(weights, renamed('layers.1.', 'layers.9.'))
    elif what == 'a shape': edit_weights(weights, lambda t: {n: x[:-1].clone() for n, x in t.items()})
    elif what == 'cut': cut(weights, -5)
    else: (out/what).unlink()
    with pytest.raises(BadInput) as e: Engine(out)
    said, names = str(e.value), {'a tensor': 'up_proj', 'renamed': 'layers.1.'}.get(what, 'cannot be loaded')
    assert str(out) in said and '\n' not in said, said
    assert (what if '.json' in what else names) in said, said
    if what == 'merged.json':
        code, text, err = cli('predict', video, '--model', out)
        assert code == 2 and not text and 'merged.json' in err


def test_nothing_is_trained_on_a_merged_model(openpack, shards, tmp_path):
    "Its adapter would be refused on every base."
    with pytest.raises(BadInput, match='in its weights already'): fit(shards, tmp_path/'run', openpack[1], SHORT)
    with pytest.raises(BadInput, match='in its weights already'): preflight(shards, openpack[1])
    assert not (tmp_path/'run').exists()


# ---- a local base ----------------------------------------------------------------------------------------------------
def copy_of_tiny(path, change=None):
    "The small model as somebody's own folder, perhaps another one."
    shutil.copytree(bundled_model(), path, ignore=shutil.ignore_patterns('adapter', 'results', 'recipe.json'))
    if change: edit_weights(path/'model.safetensors', change)
    return path


@pytest.fixture(scope='module')
def local(shards, tmp_path_factory):
    "A run on a local base that is not the Hub's."
    place = tmp_path_factory.mktemp('local')
    base = copy_of_tiny(place/'my-base', lambda t: {n: x*1.01 if 'layers.0.' in n else x for n, x in t.items()})
    fit(shards, place/'run', base, SHORT)
    return base, place/'run'


def test_a_local_base_is_named_truly(local, tmp_path, cli):
    "By its own name, in all three files, and no path of the machine."
    base, run = local
    adapter = run/'adapter'
    assert Adapter.load(adapter).base == json.loads((adapter/LORA).read_text())['base_model_name_or_path'] == 'my-base'
    card = (adapter/'README.md').read_text()
    assert 'my-base, a local folder' in card and 'Qwen/' not in card and 'base_model:' not in card
    for name in (FACTS, LORA, 'README.md'): assert str(base.parent) not in (adapter/name).read_text()
    code, text, err = cli('merge', adapter, tmp_path/'merged')
    assert code == 2 and 'local folder' in err and 'my-base' in err and '--model' in err
    with warnings.catch_warnings():
        warnings.simplefilter('error', VLMTemporalWarning)
        merged = merge(adapter, tmp_path/'merged', base)
    assert 'my-base, a local folder' in (merged/'README.md').read_text() and Adapter.of_merged(merged).base == 'my-base'
    with pytest.warns(VLMTemporalWarning, match='other weights than those of tiny'): load_model('tiny', adapter)


def test_the_bundled_model_by_its_path_is_tiny(shards, tmp_path):
    fit(shards, tmp_path/'run', bundled_model(), replace(SHORT, max_steps=1))
    assert Adapter.load(tmp_path/'run'/'adapter').base == 'tiny'


def stopped(run, out):
    "A copy of a run that was killed after its first step."
    shutil.copytree(run, out)
    shutil.rmtree(out/'adapter')
    shutil.rmtree(out/'checkpoints'/'checkpoint-2')
    return out


@pytest.mark.parametrize('way', ['.', '/', 'moved', 'linked'])
def test_a_run_goes_on_with_its_model_wherever_it_lies(way, local, shards, tmp_path, monkeypatch):
    base, run = local
    out = stopped(run, tmp_path/'run')
    monkeypatch.chdir(base.parent)
    (tmp_path/'link').symlink_to(base)
    model = {'.': './my-base', '/': f'{base}/', 'moved': tmp_path/'elsewhere', 'linked': tmp_path/'link'}[way]
    if way == 'moved': shutil.copytree(base, tmp_path/'elsewhere')
    resumed = fit(shards, out, model, SHORT, resume=True)
    assert resumed.finished and resumed.resumed_from == 1
    assert Adapter.load(out/'adapter').weights_sha256 == Adapter.load(run/'adapter').weights_sha256


def test_another_model_of_the_same_name_is_another_run(local, shards, tmp_path):
    base, run = local
    out = stopped(run, tmp_path/'run')
    edit_json(out/'run.json', lambda v: v.update(model='my-base'))
    other = copy_of_tiny(tmp_path/'my-base')
    with pytest.raises(BadInput, match='another model'): fit(shards, out, other, SHORT, resume=True)


def test_a_run_of_an_older_version_goes_on(local, shards, tmp_path):
    "A field that came later has its default; a field that is not known is refused."
    base, run = local
    out = stopped(run, tmp_path/'run')
    def older(v):
        for name in ('keep', 'gradient_checkpointing', 'max_grad_norm'): v['config'].pop(name)
        v.pop('weights')
    edit_json(out/'run.json', older)
    with pytest.raises(BadInput, match=r'another config \(keep\)'):
        fit(shards, out, base, replace(SHORT, keep=5), resume=True)
    assert fit(shards, out, base, SHORT, resume=True).resumed_from == 1
    edit_json(out/'run.json', lambda v: v['config'].update(speed=3))
    with pytest.raises(BadInput, match="'speed', which this version does not know"):
        fit(shards, out, base, SHORT, resume=True)


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def test_a_checkpoint_with_other_weights_is_passed_over(local, shards, tmp_path):
    "Names of the same length leave its size as it was: peft would take none of them, and train from nothing."
    base, run = local
    out = tmp_path/'run'
    shutil.copytree(run, out)
    shutil.rmtree(out/'adapter')
    newest = out/'checkpoints'/'checkpoint-2'
    size = (newest/WEIGHTS).stat().st_size
    (newest/WEIGHTS).write_bytes((newest/WEIGHTS).read_bytes().replace(b'lora_A', b'lora_X'))
    assert (newest/WEIGHTS).stat().st_size == size
    with pytest.warns(VLMTemporalWarning, match=f'another {WEIGHTS} than was written'):
        assert last_checkpoint(out).name == 'checkpoint-1'
    mark_complete(newest) # as an older version would have taken it
    with pytest.raises(BadInput, match='checkpoint-2.*lacks .*lora_A'): fit(shards, out, base, SHORT, resume=True)
    assert not (out/'adapter').exists()


def test_a_checkpoint_of_an_older_version_is_taken(local, shards, tmp_path):
    "Its marker says sizes and no hashes."
    base, run = local
    out = stopped(run, tmp_path/'run')
    edit_json(out/'checkpoints'/'checkpoint-1'/'complete.json', lambda v: {n: size for n, (size, _) in v.items()})
    assert fit(shards, out, base, SHORT, resume=True).resumed_from == 1
