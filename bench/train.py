"""Chapter 2's speed and memory: our trainer beside the recipe that everyone writes, one run, one card.

    python bench/train.py TOKENIZER [--rows stock:2,ours:2,ours:4,ours:8,ours:16] [--steps 4] [--model FOLDER]

Qwen2.5-VL-3B's architecture with random weights (they cost the same as trained ones; TOKENIZER is a folder with the
real tokenizer), or any checkpoint; NF4, LoRA r=16, 8 pictures of 336x336 an example, 16 examples an optimiser step,
fp16, memory capped at what a T4 has, without the attention kernels that a T4 lacks. Every row is a process of its own
on the same examples in the same order. `stock` is TRL's trainer as everyone sets it up, with float32 adapters, without
which fp16 dies; `ours` is this library's; `kept` is ours without gradient checkpointing, `sdpa` ours with transformers'
own attention.
"""
import argparse, json, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np

from sampling import table

T4 = 14.56 # GiB that a 16 GB card has


def full_size(path: Path, tokenizer: Path):
    "Write a checkpoint of the 3B architecture with random weights, once."
    import torch
    from transformers import (PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
                              Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor)
    from vlmtemporal.backbones import bundled_model
    if (path/'config.json').exists(): return
    text = dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
                num_key_value_heads=2, vocab_size=151936, rope_theta=1e6, max_position_embeddings=128000,
                rope_scaling={'type': 'mrope', 'mrope_section': [16, 24, 24]}, tie_word_embeddings=True)
    vision = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=2048, patch_size=14,
                  spatial_merge_size=2, temporal_patch_size=2, window_size=112, fullatt_block_indexes=[7, 15, 23, 31])
    ids = dict(image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device('cuda' if torch.cuda.is_available() else 'cpu'):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(path)
    tok = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer/'tokenizer.json'), eos_token='<|im_end|>',
                                  pad_token='<|endoftext|>')
    images = Qwen2VLImageProcessor(min_pixels=28*28*4, max_pixels=336*336)
    template = (bundled_model()/'chat_template.jinja').read_text()
    Qwen2_5_VLProcessor(image_processor=images, tokenizer=tok, video_processor=Qwen2VLVideoProcessor(),
                        chat_template=template).save_pretrained(path)


def examples(path: Path, n: int):
    "Shards of noise, which is what costs a JPEG decoder and a vision tower as much as anything."
    from vlmtemporal.clips import Answer
    from vlmtemporal.frames import FrameSpec
    from vlmtemporal.operations import LOGISTICS
    from vlmtemporal.shards import Example, encode, write_shards
    g = np.random.default_rng(0)
    def example(i):
        start, end = sorted(g.choice(125, 2, replace=False).tolist())
        now, after = g.choice(LOGISTICS.names, 2).tolist()
        frames, indices = g.integers(0, 255, (8, 336, 336, 3), dtype=np.uint8), np.sort(g.choice(125, 8, replace=False))
        answer = Answer(now, start, end, after)
        return Example(f'U0101-S0100-{i:03d}a', frames, indices, answer, 'U0101-S0100', float(i), 125, 62.5)
    write_shards(path, ((e.key, encode(e)) for e in map(example, range(n))),
                 dict(split='train', taxonomy='logistics', frames=FrameSpec('uniform').to_dict(), people=['U0101'],
                      config='bench'))


def stock(model: str, shards, out: Path, config):
    "The recipe that everyone writes."
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer
    from vlmtemporal.backbones import BACKBONES
    from vlmtemporal.kernels import checkpointing_arguments
    from vlmtemporal.trainer import training_set
    gpu = torch.cuda.is_available()
    dtype = torch.float16 if gpu else torch.float32
    bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=dtype)
    m = AutoModelForImageTextToText.from_pretrained(
        model, quantization_config=bnb, dtype=dtype, device_map={'': 0 if gpu else 'cpu'}, attn_implementation='sdpa')
    args = SFTConfig(
        output_dir=str(out), max_steps=config.max_steps, learning_rate=config.learning_rate, lr_scheduler_type='cosine',
        per_device_train_batch_size=config.micro_batch, gradient_accumulation_steps=config.accumulation,
        max_grad_norm=config.max_grad_norm, save_strategy='no', logging_steps=1, seed=config.seed, fp16=gpu, bf16=False,
        use_cpu=not gpu, **checkpointing_arguments(True, SFTConfig), dataloader_num_workers=4 if gpu else 0,
        max_length=None, remove_unused_columns=False, dataset_kwargs=dict(skip_prepare_dataset=True), report_to=[],
        disable_tqdm=True)
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
                      task_type='CAUSAL_LM', target_modules=BACKBONES['qwen2.5-vl'].lora_targets)
    trainer = SFTTrainer(model=m, args=args, train_dataset=training_set(shards), peft_config=lora,
                         processing_class=AutoProcessor.from_pretrained(model))
    for p in trainer.model.parameters():
        if p.requires_grad: p.data = p.data.float()
    return trainer


def one(how: str, micro: int, model: str, shards: str, steps: int) -> dict:
    "Seconds of every optimiser step, memory and losses of one recipe."
    import torch
    from transformers import TrainerCallback
    from vlmtemporal import loading, trainer as ours
    from vlmtemporal.shards import Shards
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_per_process_memory_fraction(T4*2**30/torch.cuda.get_device_properties(0).total_memory)
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False) # nor these kernels
        loading.compute_dtype = ours.compute_dtype = lambda: torch.float16 # a T4 has no bf16
    if how == 'sdpa': loading.attention_names = lambda: 'sdpa'
    config = ours.TrainConfig(max_steps=steps, micro_batch=micro, accumulation=16//micro, warmup=0,
                              gradient_checkpointing=how != 'kept')
    data, out = Shards(shards), Path(tempfile.mkdtemp())
    if how == 'stock': trainer = stock(model, data, out, config)
    else: trainer = ours.make_trainer(loading.load_model(model), data, out, config)
    trainer.args.save_strategy = 'no'
    stamps = []
    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            if gpu: torch.cuda.synchronize()
            stamps.append(time.perf_counter())
    trainer.add_callback(Clock())
    waits, get = [], trainer.get_batch_samples
    def timed(*args, **kwargs):
        begin = time.perf_counter()
        got = get(*args, **kwargs)
        waits.append(time.perf_counter() - begin)
        return got
    trainer.get_batch_samples = timed
    if gpu: torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    trainer.train()
    peaks = (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    peak = [round(f()/2**30, 2) for f in peaks] if gpu else [0, 0]
    seconds = np.diff([begin, *stamps])
    n = len(seconds) # the first step waits for the loader's processes to start
    waiting = round(float(sum(waits[1:n])/max(sum(seconds[1:]), 1e-9)), 4)
    losses = [round(h['loss'], 4) for h in trainer.state.log_history if 'loss' in h]
    return dict(seconds=seconds.round(2).tolist(), waiting=waiting, peak=peak, losses=losses)


def in_a_process(*command: str) -> dict | str:
    "What the last line of a run of this file says; the end of its complaint when it fails."
    run = subprocess.run([sys.executable, __file__, *map(str, command)], capture_output=True, text=True)
    try: return json.loads(run.stdout.splitlines()[-1])
    except (IndexError, ValueError): return 'failed: ' + (run.stderr.strip().splitlines() or ['?'])[-1][:120]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('tokenizer', type=Path)
    p.add_argument('--rows', default='stock:2,ours:2,ours:4,ours:8,ours:16')
    p.add_argument('--steps', type=int, default=4)
    p.add_argument('--model')
    p.add_argument('--one', help=argparse.SUPPRESS)
    p.add_argument('--write', help=argparse.SUPPRESS)
    p.add_argument('--shards', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.write:
        full_size(Path(a.write), a.tokenizer)
        print('{}')
        return
    if a.one:
        how, micro = a.one.split(':')
        print(json.dumps(one(how, int(micro), a.model, a.shards, a.steps)))
        return
    with tempfile.TemporaryDirectory() as tmp:
        model = a.model or str(Path(tempfile.gettempdir())/'qwen3b-random')
        examples(Path(tmp)/'train', 16*a.steps)
        if not a.model and (complaint := in_a_process(a.tokenizer, '--write', model)):
            raise SystemExit(complaint)
        rows, first = [], None
        for row in a.rows.split(','):
            r = in_a_process(a.tokenizer, '--one', row, '--model', model, '--shards', Path(tmp)/'train',
                             '--steps', a.steps)
            if isinstance(r, str):
                rows.append((row, r, *['']*5))
                continue
            warm = statistics.median(r['seconds'][1:] or r['seconds'])
            first = first or (warm, r['losses'])
            apart = max(abs(x - y)/abs(y) for x, y in zip(r['losses'], first[1]))
            memory = '{:.2f} / {:.2f}'.format(*r['peak'])
            rows.append((row, f"{r['seconds'][0]:.1f}", f'{warm:.2f}', f'{first[0]/warm:.1f}', memory,
                         f"{r['waiting']:.1%}", f'{apart:.2%}'))
            print(row, json.dumps(r), flush=True)
        columns = ('recipe:micro-batch', 'first step, s', 'later steps, s', 'times the first row',
                   'GiB allocated / reserved', 'waiting for data', 'losses apart')
        table('An optimiser step of 16 examples', columns, rows)


if __name__ == '__main__': main()
