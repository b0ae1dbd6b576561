"Every family of the registry, with random weights and a few thousand parameters: load, train, save, reload, answer."
import json, math, re, subprocess, sys, warnings
from pathlib import Path

import pytest
import torch
from transformers import AttentionMaskInterface, AutoModelForImageTextToText

from forked import python, started
from vlmtemporal import attention
from vlmtemporal.backbones import BACKBONES, bundled_model, list_backbones
from vlmtemporal.basics import BadInput
from vlmtemporal.decode import DECODERS, model_inputs
from vlmtemporal.loading import load_model
from vlmtemporal.memory import budget
from vlmtemporal.operations import LOGISTICS
from vlmtemporal.shards import Shards
from vlmtemporal.tower_file import frames_digest
from vlmtemporal.trainer import TrainConfig, make_trainer, save_adapter

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'bench'))
import backbones as bench # noqa: E402, which has the configurations of every family, small and as published

ROWS = {family: row for row, (family, *_) in bench.SIZES.items()} # one of each
ONE_SIZE = ('internvl3', 'llava-next-video', 'smolvlm2') # of pictures: a tower that is told none is not remembered


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    "A tiny random checkpoint of a family, once."
    made = {}
    def make(family):
        if family not in made:
            if family == 'qwen2.5-vl':
                made[family] = str(bundled_model())
                return made[family]
            path = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            _, config, processor = bench.parts_of(ROWS[family], tiny=True)
            AutoModelForImageTextToText.from_config(config).save_pretrained(path)
            processor.save_pretrained(path)
            made[family] = str(path)
        return made[family]
    return make


def test_every_family_is_tried(): assert sorted(ROWS) == sorted(bench.TINY) == list_backbones() == sorted(BACKBONES)


@pytest.mark.parametrize('family', sorted(ROWS))
def test_a_family_is_loaded_trained_saved_reloaded_and_answers(family, checkpoint, shards, tmp_path):
    model, data = checkpoint(family), Shards(shards/'train')
    loaded = load_model(model)
    assert loaded.backbone.name == family
    named = loaded.model.named_modules()
    layers = {type(m).__name__ for n, m in named if re.fullmatch(loaded.backbone.lora_targets, n)}
    assert layers == {'Linear4bit'}
    config = TrainConfig(max_steps=3, micro_batch=2, accumulation=1, learning_rate=1e-2, warmup=0, lora_dropout=0)
    trainer = make_trainer(loaded, data, tmp_path, config, rows=[0, 1])
    trainer.args.save_strategy = 'no' # the same two in every step
    digests = [frames_digest(trainer.train_dataset[i]['images']) for i in (0, 1)]
    adapted = [n for n, p in loaded.model.named_parameters() if p.requires_grad]
    tower = loaded.tower
    assert adapted and all('lora_' in n and re.search('language_model|text_model', n) for n in adapted)
    seen = []
    tower.register_forward_hook(lambda m, a, out: seen.append(any(t.requires_grad for t in _tensors(out))))
    trainer.train()
    assert seen and not any(seen), 'the tower is not differentiated'
    losses = [h['loss'] for h in trainer.state.log_history if 'loss' in h]
    assert losses[-1] < losses[0] - .01, losses
    file = trainer.tower_memory.file # of a tower that takes pictures' sizes, whatever else it gives
    assert file is None if family in ONE_SIZE else all(file.read(i, d) for i, d in enumerate(digests))

    save_adapter(loaded, tmp_path/'adapter', data, dict(steps=3))
    again = load_model(model, tmp_path/'adapter')
    example = data[0]
    x = trainer.data_collator([trainer.train_dataset[0]])
    x.pop('rows')
    with torch.no_grad(): a, b = (float(m.model.eval()(**x).loss) for m in (loaded, again))
    assert math.isclose(a, b, rel_tol=1e-4) and not math.isclose(a, losses[0], rel_tol=1e-3)
    free = DECODERS['generate'](again, [example], LOGISTICS)[0]
    assert isinstance(free.text, str)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        answer = DECODERS['constrained'](again, [data[1], example], LOGISTICS)[1].answer
    assert answer.dominant_operation in LOGISTICS.names and 0 <= answer.start_frame < answer.end_frame < 125
    merged = load_model(model, tmp_path/'adapter', merge=True)
    with torch.no_grad(): c = float(merged.model.eval()(**x).loss)
    assert math.isclose(b, c, rel_tol=1e-4) and not [n for n, _ in merged.model.named_modules() if 'lora' in n]
    other = next(f for f in ROWS if f != family)
    with pytest.raises(BadInput, match='was trained on'): load_model(checkpoint(other), tmp_path/'adapter')


@pytest.mark.parametrize('share', [True, False])
@pytest.mark.parametrize('family', sorted(ROWS))
def test_our_attention_is_transformers_own(family, share, checkpoint, monkeypatch):
    "Texts of one length and of several, padded at either end: logits and gradients as with `sdpa`, on every card."
    monkeypatch.setattr(attention, '_shares', lambda device: share)
    loaded = load_model(checkpoint(family), quantize=False)
    text, g = loaded.model.config.text_config, torch.Generator().manual_seed(0)
    assert text._attn_implementation == attention.ATTENTION
    ids, none = torch.randint(5, 200, (3, 12), generator=g), torch.ones(3, 12, dtype=torch.long)
    behind = none.clone()
    behind[1, 7:] = behind[2, 10:] = 0
    calls, own = [], attention.prompt_mask
    def watched(**kwargs):
        calls.append(own(**kwargs))
        return calls[-1]
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, attention.ATTENTION, watched)
    for mask in (none, behind, behind.flip(1)):
        found = []
        for way in (attention.ATTENTION, 'sdpa'):
            text._attn_implementation = way
            loaded.model.zero_grad()
            logits = loaded.model(ids, attention_mask=mask).logits[mask.bool()]
            logits.float().logsumexp(-1).sum().backward()
            weights = loaded.model.named_parameters()
            found.append((logits.detach(), {n: p.grad.clone() for n, p in weights if p.grad is not None}))
        (a, da), (b, db) = found
        assert apart(a, b) < 1e-4 and len(da) > 10
        largest = max(float(g.abs().max()) for g in db.values()) # some are 0 but for rounding: what size is that of?
        assert all(torch.allclose(da[n], db[n], rtol=1e-3, atol=1e-4*largest) for n in db)
    assert calls[:2] == [None, None] and calls[2] is not None, 'padding at the end needs no mask'


def apart(a, b): return float((a - b).norm()/b.norm())


def _tensors(out):
    parts = out.to_tuple() if hasattr(out, 'to_tuple') else [out]
    return [t for t in parts if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize('family', sorted(ROWS))
def test_a_frame_stands_behind_its_number(family, checkpoint, shards):
    "The prompt keeps pictures and words in order, in every family, and says how many tokens a picture takes."
    loaded, data = load_model(checkpoint(family), quantize=False), Shards(shards/'train')
    example = data[0]
    x = model_inputs(loaded, [example], LOGISTICS)
    config = loaded.model.config
    place = config.video_token_id if family == 'llava-next-video' else config.image_token_id
    at = (x['input_ids'][0] == place).tolist()
    runs = [i for i in range(1, len(at)) if at[i] and not at[i - 1]]
    assert len(runs) == 8 and sum(at) % 8 == 0
    if family != 'qwen2.5-vl': assert sum(at) == budget(config, side=64).pictures
    for i, frame in zip(runs, example.indices):
        before = loaded.processor.tokenizer.decode(x['input_ids'][0, max(i - 14, 0):i])
        assert f'Frame {frame} (' in before, before


def test_the_paper_knows_every_family(checkpoint):
    "More examples at once take more memory, whatever the family's configuration calls its parts."
    from vlmtemporal.backbones import model_config
    for family in ROWS:
        config, _ = model_config(checkpoint(family))
        one, two = (budget(config, m, side=112) for m in (1, 2))
        assert 0 < one.total < two.total and one.trainable > 0


def test_the_bench_measures_a_row_and_goes_on(tmp_path, monkeypatch):
    "`bench/backbones.py` with small sizes; what is finished is not run again, and paper agrees with what is counted."
    monkeypatch.setenv('VLMTEMPORAL_TESTS_PYTHON', python())
    command = started(ROOT/'bench'/'backbones.py', '--tiny', '--rows', 'smolvlm2-2.2b', '--micro', '2,1',
                      '--effective', '2', '--steps', '2', '--clips', '2', '--out', tmp_path/'out.json')
    for again in (False, True):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and '| smolvlm2-2.2b | 0.00034' in done.stdout, done.stderr
        assert ('measured smolvlm2-2.2b 2' in done.stderr) != again
    found = json.loads((tmp_path/'out.json').read_text())['measured smolvlm2-2.2b 2 True']
    assert len(found['seconds']) == len(found['losses']) == 2 and found['answer']['valid'] and found['device']
    paper = bench.paper('smolvlm2-2.2b', tiny=True, tokenizer=None)
    assert [paper[k] for k in ('parameters', 'trainable', 'pictures')] == [
        found[k] for k in ('parameters', 'trainable', 'pictures')]
    assert abs(paper['tokens'] - found['tokens']) < 5
    assert .7 < paper['flops']/found['flops'] < 1.2, 'the rank is a fourth of the width here: adapters count for much'


def test_a_row_without_memory_is_tried_with_less_and_costs_one_row(tmp_path, monkeypatch, capsys):
    "Out of memory at one micro-batch: the next. In all: that row says so, and the others are there."
    asked = []
    def process(*words, **_):
        job = json.loads(words[1])
        asked.append((job['row'], job['micro']))
        if job['micro'] > 1 or job['row'] == 'qwen3-vl-8b': return 'failed: torch.OutOfMemoryError: CUDA out of memory'
        return dict(row=job['row'], micro=1, parameters=2e9, tokens=900, pictures=800, loading=9., weights=1.5,
                    peak=[3., 3.5], seconds=[9., 7., 8.], flops=1e13, device='card', dtype='float16',
                    answer=dict(clips=8, seconds=1., peak=[2., 2.5]))
    monkeypatch.setattr(bench, 'in_a_process', process)
    rows = ['qwen3-vl-8b', 'qwen3-vl-2b']
    monkeypatch.setattr(sys, 'argv', ['backbones.py', '--rows', ','.join(rows), '--out', str(tmp_path/'out.json')])
    for _ in range(2): bench.measured_table(bench.Bench(bench.arguments(), tmp_path), rows)
    assert asked == [(row, micro) for row in rows for micro in (2, 1)], 'what is known is not asked again'
    said = capsys.readouterr().out
    assert 'no: out of memory' in said and '| 3.00 / 3.50 | 8.00 | 10 | 8 | 2.50 | 1.00 | yes |' in said
    monkeypatch.setattr(sys, 'argv', ['backbones.py', '--minutes', '1e-3'])
    bench.measured_table(bench.Bench(bench.arguments(), tmp_path), ['internvl3-2b'])
    assert len(asked) == 4 and bench.NOT_YET in capsys.readouterr().out
