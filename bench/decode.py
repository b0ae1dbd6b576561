"""Chapter 3's speed: an answer by stock `generate` and by `constrained`, one model, one run.

    python bench/decode.py [TOKENIZER] [--model FOLDER] [--clips 8]

On a GPU: Qwen2.5-VL-3B's architecture with random weights (they cost the same as trained ones; TOKENIZER is a folder
with the real tokenizer), or any checkpoint. On a CPU without a checkpoint: `tiny`, a dry run that bounds nothing.

8 pictures of 336x336 a clip. Stock is what transformers and peft do with an NF4 model and its adapter: 60 new tokens,
the vision tower and attention as they come. `ours` answers with the same model, and with one in the card's own number
format, which is what the adapter costs once it is merged; as in an evaluation, the next batch is made ready while the
model works. Preparing the pictures and reading the answer are in every time; a row's first batch warms up and is not
counted. `prompt` is one pass over the prompt as we run it: what would be left if an answer cost nothing. The exit code
is 1 when a bound does not hold.
"""
import argparse, gc, platform, statistics, sys, tempfile, time
from importlib.metadata import version
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import torch

from sampling import bound, failed, table
from train import full_size
from vlmtemporal.kernels import ATTENTION
from vlmtemporal.loading import compute_dtype, load_model
from vlmtemporal.decode import answer_batches, model_inputs
from vlmtemporal.operations import LOGISTICS
from vlmtemporal.shards import Example

GPU, TOKENS, BATCHES, BOUNDS = torch.cuda.is_available(), 60, (1, 8), {1: 10, 8: 15}


def clips(n: int) -> list[Example]:
    "Clips of noise; their frame numbers, and so their prompts' lengths, differ."
    g = np.random.default_rng(0)
    frames = lambda: g.integers(0, 255, (8, 336, 336, 3), dtype=np.uint8)
    return [Example(str(i), frames(), np.sort(g.choice(125, 8, replace=False)), None, 's', 0., 125) for i in range(n)]


def with_adapter(loaded):
    "The model with an adapter of the shape that `fit` trains."
    from peft import LoraConfig, get_peft_model
    lora = LoraConfig(r=16, lora_alpha=32, task_type='CAUSAL_LM', target_modules=loaded.backbone.lora_targets)
    loaded.model = get_peft_model(loaded.model, lora).eval()
    return loaded


def stock(loaded, batch):
    x = model_inputs(loaded, batch, LOGISTICS, 'left').to(loaded.model.device)
    length = dict(min_new_tokens=TOKENS, max_new_tokens=TOKENS)
    with torch.no_grad(): out = loaded.model.generate(**x, do_sample=False, **length)
    assert out.shape[1] == x['input_ids'].shape[1] + TOKENS
    return loaded.processor.tokenizer.batch_decode(out[:, -TOKENS:], skip_special_tokens=True)


def prompt(loaded, batch):
    x = model_inputs(loaded, batch, LOGISTICS).to(loaded.model.device)
    with torch.no_grad(): return loaded.model(**x, logits_to_keep=1).logits.argmax(-1).tolist()


def ours(loaded, batches, size):
    for some, _ in answer_batches(loaded, chain.from_iterable(batches), LOGISTICS, batch=size): yield some


def measure(answer, loaded, some: list[Example], size: int) -> tuple[list[float], float]:
    "Seconds a clip, batch by batch, and the GiB allocated at the most."
    batches, times = [some[i:i + size] for i in range(0, len(some) - size + 1, size)], []
    if GPU: torch.cuda.reset_peak_memory_stats()
    feed = islice(cycle(batches), 1 + max(3, len(batches)))
    begin = time.perf_counter()
    for batch in ours(loaded, feed, size) if answer is ours else (answer(loaded, b) and b for b in feed):
        if GPU: torch.cuda.synchronize()
        now = time.perf_counter()
        times.append((now - begin)/len(batch))
        begin = now
    return times[1:], torch.cuda.max_memory_allocated()/2**30 if GPU else 0.


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('tokenizer', type=Path, nargs='?')
    p.add_argument('--model')
    p.add_argument('--clips', type=int, default=8)
    a = p.parse_args()
    model = a.model or ('tiny' if not GPU else str(Path(tempfile.gettempdir())/'qwen3b-random'))
    if a.clips < max(BATCHES): p.error(f'a batch has {max(BATCHES)} clips')
    if GPU and not a.model:
        if a.tokenizer is None: p.error('name a folder with the tokenizer, or a --model')
        full_size(Path(model), a.tokenizer)
        gc.collect()
        torch.cuda.empty_cache()
    some, own, rows, base = clips(a.clips), str(compute_dtype()).removeprefix('torch.'), [], {}
    for kind, answers in (('nf4, adapter beside', (stock, ours, prompt)), (f'{own}, adapter merged', (ours, prompt))):
        loaded = with_adapter(load_model(model)) if kind.startswith('nf4') else load_model(model, quantize=False)
        for answer in answers:
            loaded.model.config.text_config._attn_implementation = 'sdpa' if answer is stock else ATTENTION
            for size in BATCHES:
                times, peak = measure(answer, loaded, some, size)
                second = statistics.median(times)
                faster = base.setdefault(size, second)/second
                least = BOUNDS[size] if answer is ours and 'merged' in kind and model != 'tiny' else None
                rows.append((answer.__name__, kind, str(size), f'{second:.3f}', f'{min(times):.3f} to {max(times):.3f}',
                             f'{faster:.1f}', bound(f'ours at batch {size}', faster, least), f'{peak:.2f}'))
                print(*rows[-1], file=sys.stderr, flush=True)
        del loaded
        gc.collect()
        torch.cuda.empty_cache() if GPU else None
    versions = ', '.join(f'{x} {version(x)}' for x in ('torch', 'transformers', 'peft', 'bitsandbytes'))
    where = torch.cuda.get_device_name() if GPU else f'{platform.machine()}, {torch.get_num_threads()} threads'
    table(f'An answer about a clip: {Path(model).name} on {where}; {versions}',
          ('how', 'model', 'batch', 's a clip, median', 'range', 'times stock', 'bound', 'GiB'), rows)
    if failed: sys.exit(f'a bound does not hold: {", ".join(failed)}')


if __name__ == '__main__': main()
