"Every family of the registry, with random weights and a few thousand parameters: load, train, save, reload, answer."
import math, re, warnings

import pytest
import torch
from transformers import (AttentionMaskInterface, CLIPVisionConfig, LlamaConfig, LlavaNextImageProcessor,
                          LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor,
                          LlavaNextVideoVideoProcessor, Qwen2Config, Qwen2VLImageProcessor, Qwen3VLConfig,
                          Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor, VideoLlama3Config,
                          VideoLlama3ForConditionalGeneration, VideoLlama3ImageProcessor, VideoLlama3Processor,
                          VideoLlama3VideoProcessor)

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

TEXT = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=4096)


def tokenizer(*more):
    "The twin's, with more special tokens."
    tok = load_model('tiny', quantize=False).processor.tokenizer
    tok.add_special_tokens(dict(additional_special_tokens=list(more)))
    return tok


def template(): return (bundled_model()/'chat_template.jinja').read_text()


def text_config(tok, **more):
    special = dict(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, bos_token_id=tok.pad_token_id)
    return dict(TEXT, vocab_size=len(tok), **special, **more)


def ids(tok): return {f'{k}_token_id': tok.convert_tokens_to_ids(f'<|{k}_pad|>') for k in ('image', 'video')}


def qwen3(path):
    tok = tokenizer()
    rope = dict(rope_type='default', rope_theta=1e4, mrope_section=[4, 2, 2])
    t = text_config(tok, head_dim=16, rope_parameters=rope)
    v = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=4, out_hidden_size=64,
             num_position_embeddings=64, deepstack_visual_indexes=[0])
    edges = {f'vision_{e}_token_id': tok.convert_tokens_to_ids(f'<|vision_{e}|>') for e in ('start', 'end')}
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=t, vision_config=v, **ids(tok), **edges))
    size = dict(shortest_edge=64*64, longest_edge=64*64)
    images = Qwen2VLImageProcessor(patch_size=16, size=size)
    return model, Qwen3VLProcessor(images, tok, Qwen3VLVideoProcessor(), chat_template=template())


def llava(path):
    tok = tokenizer('<image>', '<video>', '</s>')
    tok.eos_token = '</s>'
    t = LlamaConfig(**text_config(tok))
    v = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                         image_size=56, patch_size=14)
    tokens = {f'{k}_token_index': tok.convert_tokens_to_ids(f'<{k}>') for k in ('image', 'video')}
    model = LlavaNextVideoForConditionalGeneration(LlavaNextVideoConfig(
        vision_config=v, text_config=t, image_grid_pinpoints=[[56, 56]], image_seq_length=16, video_seq_length=4,
        **tokens))
    size = dict(size=dict(shortest_edge=56), crop_size=dict(height=56, width=56))
    images = LlavaNextImageProcessor(image_grid_pinpoints=[[56, 56]], **size)
    own = '{{ "its own template, which puts the pictures first" }}'
    return model, LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**size), images, tok, chat_template=own, patch_size=14,
        vision_feature_select_strategy='default', num_additional_image_tokens=1)


def videollama3(path):
    tok = tokenizer()
    v = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, patch_size=14)
    t = Qwen2Config(**text_config(tok)).to_dict()
    model = VideoLlama3ForConditionalGeneration(VideoLlama3Config(text_config=t, vision_config=v, **ids(tok)))
    size = dict(shortest_edge=56*56, longest_edge=56*56)
    images = VideoLlama3ImageProcessor(size=size)
    return model, VideoLlama3Processor(images, tok, VideoLlama3VideoProcessor(), chat_template=template())


TINY = {'qwen3-vl': qwen3, 'llava-next-video': llava, 'videollama3': videollama3, 'qwen2.5-vl': None}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    "A tiny random checkpoint of a family, once."
    made = {}
    def make(family):
        if family not in made:
            if TINY[family] is None:
                made[family] = str(bundled_model())
                return made[family]
            path = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            model, processor = TINY[family](path)
            model.save_pretrained(path)
            processor.save_pretrained(path)
            made[family] = str(path)
        return made[family]
    return make


def test_every_family_is_tried(): assert sorted(TINY) == list_backbones() == sorted(BACKBONES)


@pytest.mark.parametrize('family', sorted(TINY))
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
    assert adapted and all('lora_' in n and 'language_model' in n for n in adapted)
    seen = []
    tower.register_forward_hook(lambda m, a, out: seen.append(any(t.requires_grad for t in _tensors(out))))
    trainer.train()
    assert seen and not any(seen), 'the tower is not differentiated'
    losses = [h['loss'] for h in trainer.state.log_history if 'loss' in h]
    assert losses[-1] < losses[0] - .01, losses
    file = trainer.tower_memory.file # of a tower that takes pictures' sizes, whatever else it gives
    assert file is None if family == 'llava-next-video' else all(file.read(i, d) for i, d in enumerate(digests))

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
    other = next(f for f in TINY if f != family)
    with pytest.raises(BadInput, match='was trained on'): load_model(checkpoint(other), tmp_path/'adapter')


@pytest.mark.parametrize('share', [True, False])
@pytest.mark.parametrize('family', sorted(TINY))
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


@pytest.mark.parametrize('family', sorted(TINY))
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
    for i, frame in zip(runs, example.indices):
        before = loaded.processor.tokenizer.decode(x['input_ids'][0, max(i - 14, 0):i])
        assert f'Frame {frame} (' in before, before


def test_the_paper_knows_every_family(checkpoint):
    "More examples at once take more memory, whatever the family's configuration calls its parts."
    from vlmtemporal.backbones import model_config
    for family in TINY:
        config, _ = model_config(checkpoint(family))
        one, two = (budget(config, m, side=112) for m in (1, 2))
        assert 0 < one.total < two.total and one.trainable > 0
