"""What every family of the registry needs on a T4, at its published sizes, with random weights.

    python bench/backbones.py [--rows smolvlm2-2.2b,qwen3-vl-4b] [--out FILE.json] [--minutes 9] [--micro 2,1]
                              [--clips 8] [--steps 3] [--tokenizer FOLDER] [--tiny]
    python bench/backbones.py --paper [--rows ...]

A row is a checkpoint's architecture, written down below as its config.json has it. Its weights are random, for they
cost the same as trained ones, and are packed to NF4 one after the other on the device: no checkpoint is written.
QLoRA trains r=16 on 8 pictures of 336x336 an example and 16 examples an optimiser step, in fp16; then the model
answers some clips with the constrained decoder. Memory is capped at what a T4 has, without the attention kernels that
a T4 lacks; the seconds are those of the card that it runs on. Every row and micro-batch is a process of its own, so
that one that runs out of memory is one row; the first micro-batch of --micro that fits is shown.

The tokenizer stands in for a family's own: the bundled one (957 tokens), or --tokenizer. The pictures' tokens are the
family's own processor's; embeddings and head are as large as published. With --out what is finished is kept in a file,
and the next call goes on; no row begins that would end after --minutes. --tiny runs the same code with small sizes.

--paper measures nothing: parameters and bytes are added up on the meta device, the language model's operations are
counted there by torch's formulas, the tower's are its weights times its patches, and memory is what page 2e predicts.
"""
import argparse, gc, json, os, sys, tempfile, time, zlib
from pathlib import Path

from sampling import table
from train import T4, as_on_a_t4, counter, examples, in_a_process

QWEN2 = dict(rms_norm_eps=1e-6, rope_theta=1e6)
MROPE2 = dict(rope_type='default', rope_theta=1e6, mrope_section=[16, 24, 24])
MROPE3 = dict(rope_type='default', rope_theta=5e6, mrope_section=[24, 20, 20], mrope_interleaved=True)


def text(hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool, **more) -> dict:
    "A language model's configuration."
    return dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=groups, vocab_size=vocabulary, tie_word_embeddings=tied,
                max_position_embeddings=32768) | more


def tower(hidden: int, inner: int, layers: int, heads: int, patch: int, **more) -> dict:
    "A vision tower's configuration, by the names that most families have."
    return dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                patch_size=patch) | more


def visual(hidden: int, inner: int, layers: int, heads: int, patch: int, out: int, **more) -> dict:
    "A vision tower's configuration, by Qwen's names."
    return dict(hidden_size=hidden, intermediate_size=inner, depth=layers, num_heads=heads, patch_size=patch,
                out_hidden_size=out, spatial_merge_size=2, temporal_patch_size=2) | more


def windows(out: int) -> dict:
    "Qwen2.5-VL's tower."
    return visual(1280, 3420, 32, 16, 14, out, window_size=112, fullatt_block_indexes=[7, 15, 23, 31])


SIGLIP = tower(1152, 4304, 27, 16, 14)
INTERNVIT = tower(1024, 4096, 24, 16, 14, image_size=[448, 448], attention_bias=True)
SMALL_TEXT = text(64, 128, 2, 4, 2, 0, False, max_position_embeddings=4096) # 0: as many as the tokenizer has
SMALL = tower(64, 128, 2, 4, 14)
CLIP = dict(image_size=336, projection_dim=768)
DEEP = dict(num_position_embeddings=2304)

SIZES = { # row -> family, language model, vision tower
    'qwen2.5-vl-3b': ('qwen2.5-vl', text(2048, 11008, 36, 16, 2, 151936, True, rope_parameters=MROPE2), windows(2048)),
    'qwen2.5-vl-7b': ('qwen2.5-vl', text(3584, 18944, 28, 28, 4, 152064, False, rope_parameters=MROPE2), windows(3584)),
    'qwen3-vl-2b': ('qwen3-vl', text(2048, 6144, 28, 16, 8, 151936, True, head_dim=128, rope_parameters=MROPE3),
                    visual(1024, 4096, 24, 16, 16, 2048, deepstack_visual_indexes=[5, 11, 17], **DEEP)),
    'qwen3-vl-4b': ('qwen3-vl', text(2560, 9728, 36, 32, 8, 151936, True, head_dim=128, rope_parameters=MROPE3),
                    visual(1024, 4096, 24, 16, 16, 2560, deepstack_visual_indexes=[5, 11, 17], **DEEP)),
    'qwen3-vl-8b': ('qwen3-vl', text(4096, 12288, 36, 32, 8, 151936, False, head_dim=128, rope_parameters=MROPE3),
                    visual(1152, 4304, 27, 16, 16, 4096, deepstack_visual_indexes=[8, 16, 24], **DEEP)),
    'llava-next-video-7b': ('llava-next-video', text(4096, 11008, 32, 32, 32, 32064, False, rms_norm_eps=1e-5),
                            tower(1024, 4096, 24, 16, 14, **CLIP)),
    'videollama3-2b': ('videollama3', text(1536, 8960, 28, 12, 2, 151936, True, **QWEN2), SIGLIP),
    'videollama3-7b': ('videollama3', text(3584, 18944, 28, 28, 4, 152064, False, **QWEN2), SIGLIP),
    'smolvlm2-2.2b': ('smolvlm2', text(2048, 8192, 24, 32, 32, 49280, False, head_dim=64, rms_norm_eps=1e-5),
                      SIGLIP | dict(image_size=384, scale_factor=3)),
    'internvl3-2b': ('internvl3', text(1536, 8960, 28, 12, 2, 151674, False, **QWEN2), INTERNVIT),
    'internvl3-8b': ('internvl3', text(3584, 18944, 28, 28, 4, 151674, False, **QWEN2), INTERNVIT),
}

SMALL_ROPE = dict(rope_type='default', rope_theta=1e4, mrope_section=[4, 2, 2])
SMALL_VISUAL = visual(64, 128, 2, 4, 14, 64)
TINY = { # family -> language model, vision tower
    'qwen2.5-vl': (SMALL_TEXT | dict(rope_parameters=SMALL_ROPE),
                   SMALL_VISUAL | dict(window_size=56, fullatt_block_indexes=[1])),
    'qwen3-vl': (SMALL_TEXT | dict(head_dim=16, rope_parameters=SMALL_ROPE),
                 SMALL_VISUAL | dict(patch_size=16, num_position_embeddings=64, deepstack_visual_indexes=[0])),
    'llava-next-video': (SMALL_TEXT, SMALL | dict(num_hidden_layers=3, image_size=56)),
    'videollama3': (SMALL_TEXT, SMALL),
    'smolvlm2': (SMALL_TEXT, SMALL | dict(image_size=84, scale_factor=3)),
    'internvl3': (SMALL_TEXT, SMALL | dict(image_size=[56, 56])),
}

WORDS = { # special tokens that a family's processor knows
    'llava-next-video': ('<image>', '<video>', '</s>'),
    'smolvlm2': ('<image>', '<fake_token_around_image>', '<global-img>', '<end_of_utterance>', '<|im_start|>'),
    'internvl3': ('<img>', '</img>', '<IMG_CONTEXT>', '<video>'),
}
CALLED = dict(start_image_token='<img>', end_image_token='</img>', context_image_token='<IMG_CONTEXT>',
              video_token='<video>') # what InternVL's processor asks its tokenizer for


def tokenizer_of(family: str, folder: Path | None = None):
    "The bundled tokenizer, or the one in a folder, with the special tokens of a family."
    from transformers import AutoTokenizer
    from vlmtemporal.backbones import bundled_model
    tok = AutoTokenizer.from_pretrained(folder or bundled_model(),
                                        extra_special_tokens=CALLED if family == 'internvl3' else {})
    tok.add_special_tokens(dict(additional_special_tokens=list(WORDS.get(family, ()))))
    ends = {'llava-next-video': '</s>', 'smolvlm2': '<end_of_utterance>'}
    tok.eos_token, tok.pad_token = ends.get(family, '<|im_end|>'), '<|endoftext|>'
    return tok


def config_of(family: str, t: dict, v: dict, tok):
    "A checkpoint's configuration, with the special tokens of this tokenizer."
    import transformers as hf
    def at(token): return tok.convert_tokens_to_ids(token)
    special = dict(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, bos_token_id=tok.pad_token_id)
    t = t | special | dict(vocab_size=t['vocab_size'] or len(tok))
    v, tied = dict(v), dict(tie_word_embeddings=t['tie_word_embeddings'])
    images = dict(image_token_id=at('<|image_pad|>'), video_token_id=at('<|video_pad|>'))
    if family.startswith('qwen'):
        edges = dict(vision_start_token_id=at('<|vision_start|>'), vision_end_token_id=at('<|vision_end|>'))
        make = hf.Qwen2_5_VLConfig if family == 'qwen2.5-vl' else hf.Qwen3VLConfig
        return make(text_config=t, vision_config=v, **images, **edges, **tied)
    if family == 'videollama3':
        return hf.VideoLlama3Config(text_config=hf.Qwen2Config(**t).to_dict(), vision_config=v, **images, **tied)
    if family == 'internvl3':
        tokens = (v['image_size'][0]//v['patch_size']//2)**2
        return hf.InternVLConfig(text_config=hf.Qwen2Config(**t).to_dict(), vision_config=v, image_seq_length=tokens,
                                 image_token_id=at('<IMG_CONTEXT>'), **tied)
    if family == 'smolvlm2':
        scale = v.pop('scale_factor')
        return hf.SmolVLMConfig(text_config=hf.LlamaConfig(**t).to_dict(), vision_config=v, scale_factor=scale,
                                image_token_id=at('<image>'), pad_token_id=tok.pad_token_id, **tied)
    tokens, size = (v['image_size']//v['patch_size'])**2, v['image_size']
    return hf.LlavaNextVideoConfig(
        text_config=hf.LlamaConfig(**t), vision_config=hf.CLIPVisionConfig(**v), image_grid_pinpoints=[[size, size]],
        image_seq_length=tokens, video_seq_length=tokens//4, image_token_index=at('<image>'),
        video_token_index=at('<video>'), **tied)


TEMPLATES = { # where it isn't Qwen's
    'internvl3': (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}"
        "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "{{ '<IMG_CONTEXT>\n' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    'llava-next-video': "{{ 'its own template, which puts the pictures first' }}", # the registry gives it another one
    'smolvlm2': "{{ 'its own template, which begins answers in two ways' }}", # so it does here
}


def processor_of(family: str, config, tok, most: int = 16384*28*28):
    "A family's own processor, as its checkpoints set it up; pictures have at most so many pixels where sizes vary."
    import transformers as hf
    from vlmtemporal.backbones import bundled_model
    template = TEMPLATES.get(family) or (bundled_model()/'chat_template.jinja').read_text()
    v, bounds = config.vision_config, dict(shortest_edge=min(most, 56*56), longest_edge=most)
    if family == 'qwen2.5-vl':
        return hf.Qwen2_5_VLProcessor(hf.Qwen2VLImageProcessor(size=bounds), tok, hf.Qwen2VLVideoProcessor(),
                                      chat_template=template)
    if family == 'qwen3-vl':
        return hf.Qwen3VLProcessor(hf.Qwen2VLImageProcessor(patch_size=16, size=bounds), tok,
                                   hf.Qwen3VLVideoProcessor(), chat_template=template)
    if family == 'videollama3':
        return hf.VideoLlama3Processor(hf.VideoLlama3ImageProcessor(size=bounds), tok, hf.VideoLlama3VideoProcessor(),
                                       chat_template=template)
    if family == 'internvl3':
        size = dict(height=v.image_size[0], width=v.image_size[1])
        return hf.InternVLProcessor(hf.GotOcr2ImageProcessor(size=size), tok, hf.InternVLVideoProcessor(size=size),
                                    image_seq_length=config.image_seq_length, chat_template=template)
    if family == 'smolvlm2':
        size, tokens = v.image_size, (v.image_size//v.patch_size//config.scale_factor)**2
        sizes = dict(size=dict(longest_edge=4*size), max_image_size=dict(longest_edge=size))
        return hf.SmolVLMProcessor(hf.SmolVLMImageProcessor(**sizes), tok, hf.SmolVLMVideoProcessor(**sizes),
                                   image_seq_len=tokens, chat_template=template)
    side = v.image_size
    sizes = dict(size=dict(shortest_edge=side), crop_size=dict(height=side, width=side))
    images = hf.LlavaNextImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **sizes)
    return hf.LlavaNextVideoProcessor(hf.LlavaNextVideoVideoProcessor(**sizes), images, tok, chat_template=template,
                                      patch_size=v.patch_size, vision_feature_select_strategy='default',
                                      num_additional_image_tokens=1)


def parts_of(row: str, tiny: bool, folder: Path | None = None):
    "A row's family, its configuration and its processor, which isn't set up for frames yet."
    family, t, v = SIZES[row]
    if tiny: t, v = TINY[family]
    tok = tokenizer_of(family, folder)
    config = config_of(family, t, v, tok)
    return family, config, processor_of(family, config, tok, 64*64 if tiny else 16384*28*28)


class Lazy:
    "A random tensor of a checkpoint that is nowhere: made when it is read, as a slice of a file is."
    def __init__(self, name: str, like, dtype, device: str):
        self.name, self.shape, self.dtype, self.device = name, tuple(like.shape), dtype, device
    def get_shape(self): return list(self.shape)
    def get_dtype(self): return {2: 'F16', 4: 'F32'}[self.dtype.itemsize]
    def __getitem__(self, at):
        import torch
        make = dict(device=self.device, dtype=self.dtype)
        if len(self.shape) > 1:
            g = torch.Generator(self.device).manual_seed(zlib.crc32(self.name.encode()))
            return torch.empty(self.shape, **make).normal_(0, .02, generator=g)[at]
        last = self.name.split('.')[-1]
        return torch.full(self.shape, {'bias': 0., 'lambda_1': .1, 'lambda_2': .1}.get(last, 1.), **make)[at]


def random_model(config, dtype):
    "The model in NF4 with random weights, loaded as `load_model` does it, from no file."
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
    from vlmtemporal.kernels import attention_names, keep_differentiable, quiet
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with torch.device('meta'): empty = AutoModelForImageTextToText.from_config(config)
    shared = set(getattr(empty, 'all_tied_weights_keys', None) or ())
    weights = {n: Lazy(n, x, dtype, device) for n, x in empty.state_dict().items() if n not in shared}
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)
    with quiet():
        model, found = type(empty).from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, quantization_config=bits, output_loading_info=True,
            device_map={'': 0 if device == 'cuda' else 'cpu'}, attn_implementation=attention_names())
    if found['missing_keys']: raise SystemExit(f"not made: {sorted(found['missing_keys'])[:3]}")
    keep_differentiable(model)
    return model.eval()


def held(model) -> float:
    "GiB of a model's weights: what is allocated on a GPU, or the sum of its tensors."
    import torch
    if torch.cuda.is_available(): return torch.cuda.memory_allocated()/2**30
    return sum(x.numel()*x.element_size() for x in (*model.parameters(), *model.buffers()))/2**30


def parameters_of(config) -> int:
    "Weights of the model, packed ones not."
    import torch
    from transformers import AutoModelForImageTextToText
    with torch.device('meta'): model = AutoModelForImageTextToText.from_config(config)
    return sum(p.numel() for p in model.parameters())


def peak() -> list[float]:
    "GiB allocated and reserved at most since the last call."
    import torch
    if not torch.cuda.is_available(): return [0., 0.]
    found = [round(f()/2**30, 2) for f in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found


def stamps_of(trainer) -> list[float]:
    "A list that is given the time at the end of every optimiser step."
    import torch
    from transformers import TrainerCallback
    stamps: list[float] = []
    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            if torch.cuda.is_available(): torch.cuda.synchronize()
            stamps.append(time.perf_counter())
    trainer.add_callback(Clock())
    return stamps


def counted(trainer, micro: int) -> float:
    "Operations of one example's forward and backward pass, by torch's formulas."
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(micro)]))
    batch.pop('rows', None)
    with counter()() as c:
        with trainer.compute_loss_context_manager(): loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    trainer.model.zero_grad()
    return c.flops/micro


def asked(loaded, clips: list, taxonomy) -> dict | str:
    "Seconds and GiB of the second constrained answer about some clips; about fewer where memory does not do."
    import torch
    from vlmtemporal.decode import constrained
    while clips:
        try:
            constrained(loaded, clips, taxonomy)
            peak()
            begin = time.perf_counter()
            answers = constrained(loaded, clips, taxonomy)
            return dict(clips=len(clips), seconds=round(time.perf_counter() - begin, 3), peak=peak(),
                        valid=all(p.answer.dominant_operation in taxonomy.names for p in answers))
        except torch.OutOfMemoryError: clips = clips[:len(clips)//2]
        peak()
    return 'out of memory'


def measured(row: str, micro: int, tiny: bool, shards: str, steps: int, effective: int, clips: int,
             tokenizer: str | None) -> dict:
    "What one row takes; raises where it does not fit."
    import torch
    from vlmtemporal.backbones import BACKBONES, fingerprint
    from vlmtemporal import loading
    from vlmtemporal.loading import LoadedModel
    from vlmtemporal.shards import Shards
    from vlmtemporal.trainer import TrainConfig, make_trainer
    as_on_a_t4()
    family, config, processor = parts_of(row, tiny, tokenizer and Path(tokenizer))
    begin, data = time.perf_counter(), Shards(shards)
    model = random_model(config, loading.compute_dtype())
    out = dict(row=row, family=family, micro=micro, tiny=tiny, loading=round(time.perf_counter() - begin, 1),
               parameters=parameters_of(config), weights=round(held(model), 3), loading_peak=peak())
    loaded = LoadedModel(row, fingerprint(config), BACKBONES[family], model, BACKBONES[family].prepare(processor))
    settings = TrainConfig(max_steps=steps, micro_batch=micro, accumulation=effective//micro, warmup=0, lora_dropout=0,
                           validate_steps=0, tower_cache=0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(loaded, data, Path(folder), settings, rows=list(range(steps*effective)))
        trainer.args.save_strategy = 'no'
        stamps, begin = stamps_of(trainer), time.perf_counter()
        trainer.train()
    seconds = [round(b - a, 3) for a, b in zip([begin, *stamps], stamps)]
    losses = [round(h['loss'], 4) for h in trainer.state.log_history if 'loss' in h]
    out |= dict(seconds=seconds, losses=losses, peak=peak(),
                trainable=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))
    out |= tokens_of(loaded, data[0], data.taxonomy) | dict(flops=counted(trainer, micro))
    del trainer
    loaded.model.eval()
    peak()
    out['answer'] = asked(loaded, [data[i] for i in range(clips)], data.taxonomy)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    return out | dict(device=card, dtype=str(loading.compute_dtype()).split('.')[-1])


def tokens_of(loaded, example, taxonomy) -> dict:
    "Tokens of a training example: all, those of its pictures, and those of its answer."
    from vlmtemporal.decode import model_inputs
    from vlmtemporal.prompts import answer_text
    config, ids = loaded.base.config, model_inputs(loaded, [example], taxonomy)['input_ids'][0].tolist()
    answer = len(loaded.processor.tokenizer(answer_text(example.answer))['input_ids']) + 2 # its end, and a line's
    place = config.video_token_id if loaded.backbone.name == 'llava-next-video' else config.image_token_id
    return dict(tokens=len(ids) + answer, pictures=ids.count(place), answer_tokens=answer)


# ---- on paper

def nf4_bytes(model) -> float:
    "Bytes of a model whose linear layers but the head are packed as NF4 with scales of 8 bits, all else in 16."
    import torch
    head = model.get_output_embeddings()
    packed = sum(m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear and m is not head)
    return packed*4.127/8 + 2*(sum(p.numel() for p in model.parameters()) - packed)


def recompute(model):
    "Switch gradient checkpointing on, by the name that this version of transformers has."
    switch = getattr(model, 'activation_checkpointing_enable', None) or model.gradient_checkpointing_enable
    switch(dict(use_reentrant=False))


def language_flops(config, family, tokens: int, answer: int) -> float:
    "Operations of one example in the language model, by torch's formulas: forward, again, and backward."
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForImageTextToText
    lora = LoraConfig(r=16, lora_alpha=32, task_type='CAUSAL_LM', target_modules=family.lora_targets)
    hidden, vocabulary = config.text_config.hidden_size, config.text_config.vocab_size
    with torch.device('meta'):
        model = get_peft_model(AutoModelForImageTextToText.from_config(config, dtype=torch.float16), lora)
        recompute(model.train())
        model = model.get_base_model().model
        language = getattr(model, 'language_model', None) or model.text_model
        x = torch.zeros(1, tokens, hidden, dtype=torch.float16, requires_grad=True)
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool) # its own would look at positions, which are nowhere
        with FlopCounterMode(display=False) as c:
            language(inputs_embeds=x, attention_mask=mask, position_ids=torch.arange(tokens)[None],
                     use_cache=False)[0].sum().backward()
    return c.get_total_flops() + 4*answer*hidden*vocabulary


def tower_flops(model, family, config, patches: int, pictures: int, frames: int) -> float:
    "Operations of one example in the tower, which only goes forward: its weights and its attention, and the projector."
    import torch
    from vlmtemporal.memory import _Tower
    inner, t = model.get_submodule(f'model.{family.vision}'), _Tower.of(config)
    def size(part): return sum(m.weight.numel() for m in part.modules() if type(m) is torch.nn.Linear)
    language = getattr(model.model, 'language_model', None) or model.model.text_model
    patch = sum(m.weight.numel() for m in inner.modules() if isinstance(m, torch.nn.modules.conv._ConvNd))
    beside = size(model.model) - size(language) - t.linear
    each = patches/frames # of a picture, which see each other, or a window
    seen = (t.depth - t.full)*min(t.window or each, each) + t.full*each
    return 2*patches*(t.linear + patch) + 4*patches*t.width*seen + 2*pictures*beside


def an_example():
    "A clip of eight grey pictures."
    import numpy as np
    from vlmtemporal.clips import Answer
    from vlmtemporal.operations import LOGISTICS
    from vlmtemporal.shards import Example
    frames, answer = np.full((8, 336, 336, 3), 99, np.uint8), Answer(LOGISTICS.names[0], 17, 98, LOGISTICS.names[1])
    return Example('U0101-S0100-000a', frames, np.arange(3, 125, 16), answer, 'U0101-S0100', 0., 125, 62.5)


def paper(row: str, tiny: bool, tokenizer: str | None) -> dict:
    "What can be said of a row without running it."
    from types import SimpleNamespace
    import torch
    from transformers import AutoModelForImageTextToText
    from vlmtemporal.backbones import BACKBONES
    from vlmtemporal.memory import _Tower, budget
    from vlmtemporal.operations import LOGISTICS
    name, config, processor = parts_of(row, tiny, tokenizer and Path(tokenizer))
    family = BACKBONES[name]
    with torch.device('meta'): model = AutoModelForImageTextToText.from_config(config)
    asked_of = SimpleNamespace(processor=family.prepare(processor), backbone=family,
                               base=SimpleNamespace(config=config), model=SimpleNamespace(device='cpu'))
    seen = tokens_of(asked_of, an_example(), LOGISTICS)
    side = 64 if tiny else 336
    said = {m: budget(config, m, side=side, text_tokens=seen['tokens'] - seen['pictures']) for m in (1, 2)}
    if said[1].pictures != seen['pictures']: raise SystemExit(f"{row}: page 2e says {said[1].pictures} tokens")
    patches = seen['pictures']*_Tower.of(config).merge**2
    flops = language_flops(config, family, seen['tokens'], seen['answer_tokens'])
    flops += tower_flops(model, family, config, patches, seen['pictures'], 8)
    return dict(row=row, parameters=sum(p.numel() for p in model.parameters()), nf4=nf4_bytes(model),
                trainable=said[1].trainable, flops=flops, said={m: b.total for m, b in said.items()}, **seen)


# ---- tables

def keep(out: Path | None, known: dict):
    "Write what is known to a file, whole or not at all."
    if not out: return
    new = out.with_suffix('.new')
    new.write_text(json.dumps(known, indent=0))
    new.replace(out)


class Bench:
    "Rows that are run, or were run by an earlier call."
    def __init__(self, a, shards: Path | None = None):
        self.a, self.shards, self.begin, self.longest = a, shards, time.monotonic(), 60.
        self.known = json.loads(a.out.read_text()) if a.out and a.out.exists() else {}
    def get(self, kind: str, **job) -> dict | str | None:
        "What is known of a job; None when there is no time left to find out."
        key = ' '.join([kind, *(str(job[k]) for k in ('row', 'micro', 'tiny') if k in job)])
        if isinstance(self.known.get(key), dict) or 'emory' in self.known.get(key, ''): return self.known[key]
        begin = time.monotonic()
        if self.a.minutes and begin - self.begin + self.longest > 60*self.a.minutes: return None
        self.known[key] = in_a_process('--job', json.dumps(dict(kind=kind, **job)), program=__file__)
        self.longest = max(self.longest, time.monotonic() - begin)
        keep(self.a.out, self.known)
        print(f'{key}: {time.monotonic() - begin:.0f} s {str(self.known[key])[:300]}', file=sys.stderr, flush=True)
        return self.known[key]
    def first_that_fits(self, row: str) -> dict | str | None:
        "The row at the largest micro-batch that has room."
        a, r = self.a, None
        for micro in map(int, a.micro.split(',')):
            r = self.get('measured', row=row, micro=micro, tiny=a.tiny, shards=str(self.shards), steps=a.steps,
                         effective=a.effective, clips=a.clips, tokenizer=a.tokenizer)
            if not isinstance(r, str) or 'emory' not in r: break
        return r


NOT_YET = 'not yet: call again'

def line(row: str, r: dict | str | None) -> tuple:
    "A measured row of the table."
    if not isinstance(r, dict):
        if not r: return row, NOT_YET, *['']*11
        return row, *['']*11, 'no: out of memory' if 'emory' in r else r
    late = sorted(r['seconds'][1:] or r['seconds'])
    answer = r['answer'] if isinstance(r['answer'], dict) else None
    said = [r['answer'], '', '']
    if answer: said = [f"{answer['clips']}", f"{answer['peak'][1]:.2f}", f"{answer['seconds']:.2f}"]
    fits = 'yes' if answer else 'trains; does not answer'
    return (row, f"{r['parameters']/1e9:.3g}", f"{r['tokens']} ({r['pictures']})", f"{r['loading']:.0f}",
            f"{r['weights']:.2f}", str(r['micro']), '{:.2f} / {:.2f}'.format(*r['peak']), f'{late[len(late)//2]:.2f}',
            f"{r['flops']/1e12:.3g}", *said, fits)


def measured_table(bench: Bench, rows: list[str]):
    "What was measured."
    found = [(row, bench.first_that_fits(row)) for row in rows]
    device = next((r['device'] + ', ' + r['dtype'] for _, r in found if isinstance(r, dict)), '?')
    table(f'Measured on {device}, memory capped at {T4} GiB; random weights, NF4, LoRA r=16, {bench.a.effective} '
          'examples a step',
          ('row', '10^9 parameters', 'tokens an example (pictures)', 'loading, s', 'weights, GiB', 'micro-batch',
           'training, GiB allocated / reserved', 'a step, s', 'TFLOP an example', 'clips at once',
           'answers, GiB reserved', 'answers, s', 'fits a T4'), [line(row, r) for row, r in found])


def paper_table(bench: Bench, rows: list[str]):
    "What was reckoned."
    out = []
    for row in rows:
        r = bench.get('paper', row=row, tiny=bench.a.tiny, tokenizer=bench.a.tokenizer)
        if not isinstance(r, dict):
            out.append((row, r or NOT_YET, *['']*7))
            continue
        one, two = r['said'].values()
        fits = 'yes' if two <= .85*T4 else 'with 1' if one <= .85*T4 else 'no'
        out.append((row, f"{r['parameters']/1e9:.3g}", f"{r['nf4']/2**30:.2f}", f"{r['trainable']/1e6:.1f}",
                    f"{r['tokens']} ({r['pictures']})", f"{r['flops']/1e12:.3g}", f'{one:.2f}', f'{two:.2f}', fits))
    table('On paper: nothing here was measured',
          ('row', '10^9 parameters', 'weights in NF4, GiB', '10^6 trained', 'tokens an example (pictures)',
           'TFLOP an example', 'GiB at micro-batch 1', 'GiB at 2', 'fits 85% of a T4'), out)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', default=','.join(SIZES))
    p.add_argument('--paper', action='store_true')
    p.add_argument('--tiny', action='store_true', help='the same code with small sizes')
    p.add_argument('--micro', default='2,1', help='micro-batches, of which the first that fits is shown')
    p.add_argument('--clips', type=int, default=8, help='clips that are answered at once')
    p.add_argument('--steps', type=int, default=3)
    p.add_argument('--effective', type=int, default=16, help='examples in an optimiser step')
    p.add_argument('--tokenizer', help='folder of a tokenizer; the bundled one when absent')
    p.add_argument('--out', type=Path)
    p.add_argument('--minutes', type=float, default=0, help='begin no row that would end later; 0: run all')
    p.add_argument('--job', help=argparse.SUPPRESS)
    return p.parse_args()


def main():
    a = arguments()
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('HF_DEACTIVATE_ASYNC_LOAD', '1') # or tensors would pile up before they are packed
    if a.job:
        job = json.loads(a.job)
        return print(json.dumps(dict(measured=measured, paper=paper)[job.pop('kind')](**job)))
    rows = a.rows.split(',')
    if unknown := [row for row in rows if row not in SIZES]:
        raise SystemExit(f'no row {unknown[0]}; use some of {", ".join(SIZES)}')
    if a.paper: return paper_table(Bench(a), rows)
    with tempfile.TemporaryDirectory() as tmp:
        examples(Path(tmp)/'train', max(a.steps*a.effective, a.clips))
        measured_table(Bench(a, Path(tmp)/'train'), rows)


if __name__ == '__main__': main()
